"""Functions of the floating-point leaves, compiled or evaluated in float64."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae.gradcheck.differences import Line
from jaxae.gradcheck.promotion import promote
from jaxae.gradcheck.rounding import (
    ROUNDING_FACTOR,
    as_numpy,
    float_dtype,
    is_complex,
    unit_roundoff,
)
from jaxae.gradcheck.stochastic import rounds_coarsely

Floats = dict[str, Any]  # floating-point leaves by path
_UNTRACEABLE = (jax.errors.JAXTypeError, jax.errors.JAXIndexError)
_NOT_DETERMINISTIC = "fn is not deterministic: evaluated again, it differs"


class UndecidableError(Exception):
    """No verdict on the gradient of a function is possible; the message says why."""


class CallCounter:
    """A function that counts its calls in `calls`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        out = self.function(*args)
        self.calls += 1
        return out


class Float64Function:
    """`(floats, *seeds) -> function(floats, args, *seeds)` in float64.

    Construct it under the caller's configuration of JAX, for which the function is
    traced, and call it under x64. What depends on the floats or the seeds is promoted.
    If the trace cannot be promoted, the function is called again as Python, and `note`
    says why.
    """

    def __init__(
        self, function: Callable[..., Any], floats: Floats, args: Any, *seeds: Any
    ) -> None:
        self.shapes = [np.shape(leaf) for leaf in jax.tree.leaves(args)]
        self.note, self.args = "", args
        self._function = function
        self._promoted: Callable[..., Any] | None = None
        self._compiled: Callable[..., Any] | None = None
        arrays = _to_jax(args)
        try:
            program, out = jax.make_jaxpr(
                lambda floats, *seeds: function(floats, arrays, *seeds),
                return_shape=True,
            )(floats, *seeds)
        except Exception as error:  # the function's own is raised by the call as Python
            self._fall_back_to_python(error)
            return
        self.shapes = [np.shape(leaf) for leaf in program.consts]
        unit = unit_roundoff(*(as_numpy(leaf).dtype for leaf in floats.values()))
        compute = promote(program, unit)

        def run(constants: Any, *inputs: Any) -> Any:
            outputs = compute(constants, jax.tree.leaves(inputs))
            return jax.tree.unflatten(jax.tree.structure(out), outputs)

        constants = list(map(_to_cpu, program.consts))
        self._promoted = functools.partial(run, constants)
        self._compiled = functools.partial(jax.jit(run), constants)

    def __call__(self, floats: Floats, *seeds: Any) -> Any:
        """The value of the function in float64."""
        if self._promoted is not None:
            assert self._compiled is not None
            try:
                return self._compiled(floats, *seeds)
            except Exception as error:  # an operation may fail in its own way
                self._fall_back_to_python(error)
        if self._compiled is None:
            args = jax.tree.map(_to_float64, self.args)
            run = compile_function(
                lambda inputs, args: self._function(inputs[0], args, *inputs[1:]),
                (floats, *seeds),
                args,
            )
            self._compiled = lambda *inputs: run(inputs)
        return self._compiled(floats, *seeds)

    def is_coarse(self, floats: Floats) -> bool:
        """Whether an operation in it may round to less than float64."""
        run = self._promoted or functools.partial(
            self._function, args=_to_jax(jax.tree.map(_to_float64, self.args))
        )
        try:
            return rounds_coarsely(jax.make_jaxpr(run)(floats).jaxpr)
        except Exception:  # a function may fail on tracers in its own way
            return True

    def _fall_back_to_python(self, error: Exception) -> None:
        self._promoted = self._compiled = None
        reason = str(error).partition("\n")[0]
        self.note = f"run again as Python under x64: {reason:.120}"


class ReferenceFunction(NamedTuple):
    """The scalar function in float64 at the point where it is differentiated."""

    points: Floats  # the point, by path
    device_points: Floats  # the same on the device
    value: CallCounter  # (floats) -> []
    f0: float  # value(points)
    noise: float = 0.0  # standard deviation of the rounding error, once measured
    is_coarse: bool = False  # an operation in it rounds to less than float64

    def line(self, direction: Floats, unit: float = 1.0) -> Line:
        """t -> f(points + t direction)."""
        direction = jax.device_put(
            {path: np.asarray(leaf, float) for path, leaf in direction.items()}
        )

        def value(t: float) -> float:
            shifted = {
                path: self.device_points[path] + t * leaf
                for path, leaf in direction.items()
            }
            return float(self.value(self.device_points | shifted))

        return Line(value, self.f0, self.noise, unit, self.is_coarse)


def extract_scalar(out: Any, has_aux: bool) -> jax.Array:
    """The scalar of what `fn` returned, with or without aux."""
    is_pair = isinstance(out, tuple) and len(out) == 2
    value = out[0] if has_aux and is_pair else out
    if has_aux != is_pair or float_dtype(value) is None or np.shape(value) != ():
        raise ValueError(
            "fn must return a real scalar, or (real scalar, aux) if has_aux; with "
            f"has_aux={has_aux} it returned {out!r:.80}."
        )
    return jnp.asarray(value)


def compile_function(
    function: Callable[..., Any], floats: Any, args: Any
) -> Callable[[Any], Any]:
    """`floats -> function(floats, args)`, compiled unless Python branches on values.

    Arrays in `args` are traced; numbers and other objects are static, since they may
    determine shapes or branches.
    """
    arrays = jax.tree.map(lambda leaf: leaf if _is_array(leaf) else None, args)

    def choose(leaf: Any, array: Any) -> Any:
        return leaf if array is None else array

    @jax.jit
    def traced(floats: Any, arrays: Any) -> Any:
        return function(floats, jax.tree.map(choose, args, arrays))

    try:
        traced.eval_shape(floats, arrays)
    except _UNTRACEABLE:
        return lambda floats: function(jax.tree.map(jnp.asarray, floats), args)
    device_arrays = jax.device_put(arrays)
    return lambda floats: traced(floats, device_arrays)


def autodiff_claim(
    derivative: Callable[..., Any],
    function: Callable[..., Any],
    floats: Floats,
    args: Any,
    remedy: str,
) -> Callable[[Floats], Any]:
    """`derivative(function)`, compiled; the claim that is checked by default.

    Raises:
      ValueError: when called, naming the leaf that JAX cannot differentiate by. Errors
        of `function` itself propagate.
    """

    @functools.cache
    def compiled_derivative() -> Callable[[Floats], Any]:
        return compile_function(derivative(function), floats, args)

    def claim(point: Floats) -> Any:
        try:
            return compiled_derivative()(point)
        except Exception as error:
            compile_function(function, floats, args)(point)
            path = _first_nondifferentiable(derivative, function, point, args)
            message = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
            reason = f"JAX says {message:.160}; "
            if "nondiff_argnums" in str(error):
                reason = (
                    "it is a nondiff argument of a custom rule; take it out of "
                    "nondiff_argnums, or "
                )
            raise ValueError(
                f"fn must be differentiable in leaf {path or 'params'!r}, but "
                f"{reason}{remedy}."
            ) from error

    return claim


def _first_nondifferentiable(
    derivative: Callable[..., Any],
    function: Callable[..., Any],
    point: Floats,
    args: Any,
) -> str:
    """The path of the first leaf that JAX cannot differentiate the function by."""
    for path, leaf in point.items():
        try:
            by_leaf = derivative(lambda one, args: function(point | one, args))
            by_leaf({path: jnp.asarray(leaf)}, args)
        except Exception:
            return path
    return ", ".join(point)


def longest_sum(shapes: Iterable[tuple[int, ...]]) -> int:
    """The largest product, over all shapes, of all axes but the shortest."""
    return max(math.prod(sorted(shape)[1:] or shape) for shape in shapes)


def build_reference(
    value: Float64Function,
    points: Floats,
    values: list[float],
    evaluate_again: Callable[[], float],
) -> ReferenceFunction:
    """The function in float64, checked against its values in the caller's precision.

    `values` are those at `points` and one last bit away; `evaluate_again` repeats the
    first of them.

    Raises:
      UndecidableError: if the two functions differ.
    """
    unit = unit_roundoff(*(point.dtype for point in points.values()))
    uncertainty = ROUNDING_FACTOR * unit * abs(values[0])
    uncertainty += np.max(np.abs(np.diff(values)))
    points = {path: point.astype(np.float64) for path, point in points.items()}
    try:
        function = _evaluate_reference(value, points)
    except UndecidableError:
        raise
    except Exception as error:
        error.add_note("gradcheck evaluates fn on float64 copies of params and args.")
        raise
    if not abs(function.f0 - values[0]) > 100 * uncertainty:
        return function
    # Random numbers drawn in Python are constants of a trace: call the function again.
    if abs(evaluate_again() - values[0]) > uncertainty:
        raise UndecidableError(_NOT_DETERMINISTIC)
    if function.is_coarse and not value.note:
        return function  # a compiler may skip a rounding between two operations
    remedy = (
        "give random numbers a dtype of their own, as bernoulli(key, "
        "jnp.float32(0.5)) has, or enable x64 if rounding ruins it"
        if value.note
        else "rounding ruins it, so enable x64"
    )
    raise UndecidableError(
        f"fn is {values[0]:.6g} in the caller's precision but {function.f0:.6g} in "
        f"float64: {remedy}"
    )


def _evaluate_reference(value: Float64Function, points: Floats) -> ReferenceFunction:
    counted = CallCounter(value)
    first, second = float(counted(points)), float(counted(points))
    if not math.isfinite(first):
        raise UndecidableError(f"fn is {first} here")
    if first != second:
        raise UndecidableError(_NOT_DETERMINISTIC)
    device_points = jax.device_put(points)
    is_coarse = value.is_coarse(points)
    return ReferenceFunction(points, device_points, counted, first, is_coarse=is_coarse)


def _to_jax(args: Any) -> Any:
    """The args with JAX arrays in place of NumPy arrays, as in a compiled function."""
    return jax.tree.map(lambda x: jnp.asarray(x) if _is_array(x) else x, args)


def _to_float64(leaf: Any) -> Any:
    if not _is_array(leaf):
        return leaf
    if is_complex(leaf):
        return np.asarray(leaf).astype(np.complex128)
    is_real = float_dtype(leaf) is not None
    return np.asarray(leaf).astype(np.float64) if is_real else _to_cpu(leaf)


def _to_cpu(leaf: Any) -> Any:
    is_jax = isinstance(leaf, jax.Array)
    return jax.device_put(leaf, jax.devices("cpu")[0]) if is_jax else leaf


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray | jax.Array)
