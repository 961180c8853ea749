"""A function of the floating-point leaves, compiled, and the same in float64."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae.gradcheck.differences import Line
from jaxae.gradcheck.promotion import promoted
from jaxae.gradcheck.rounding import (
    ROUNDINGS,
    float_dtype,
    is_complex,
    narrow,
    unit_roundoff,
)
from jaxae.gradcheck.stochastic import rounds_coarsely

Floats = dict[str, Any]  # the floating-point leaves by path
_UNTRACEABLE = (jax.errors.JAXTypeError, jax.errors.JAXIndexError)
_NOT_DETERMINISTIC = "fn is not deterministic: evaluated again, it differs"


class UndecidableError(Exception):
    """Says why nothing can be said of a function's gradient."""


class Counted:
    """A function that knows how often it was called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any) -> Any:
        """Call it once more."""
        out = self.function(*args)
        self.calls += 1
        return out


class Referee:
    """`function(floats, args, *seeds)` in float64, where it depends on floats or seeds.

    It is made and traced as the caller has set up JAX, and called under x64. Where the
    trace cannot be promoted, the function is run again as Python, and `note` says why.
    """

    def __init__(
        self, function: Callable[..., Any], floats: Floats, args: Any, *seeds: Any
    ) -> None:
        self.shapes = [np.shape(leaf) for leaf in jax.tree.leaves(args)]
        self.note, self.args = "", args
        self._function = function
        self._promoted: Callable[..., Any] | None = None
        self._compiled: Callable[..., Any] | None = None
        arrays = _placed(args)
        try:
            program, out = jax.make_jaxpr(
                lambda floats, *seeds: function(floats, arrays, *seeds),
                return_shape=True,
            )(floats, *seeds)
        except Exception as error:  # one of its own is raised when it is run again
            self._run_again(error)
            return
        self.shapes = [np.shape(leaf) for leaf in program.consts]
        unit = unit_roundoff(*(narrow(leaf).dtype for leaf in floats.values()))
        compute = promoted(program, unit)

        def run(constants: Any, *inputs: Any) -> Any:
            outputs = compute(constants, jax.tree.leaves(inputs))
            return jax.tree.unflatten(jax.tree.structure(out), outputs)

        constants = list(map(_on_cpu, program.consts))
        self._promoted = functools.partial(run, constants)
        self._compiled = functools.partial(jax.jit(run), constants)

    def __call__(self, floats: Floats, *seeds: Any) -> Any:
        """Its value in float64."""
        if self._promoted is not None:
            assert self._compiled is not None
            try:
                return self._compiled(floats, *seeds)
            except Exception as error:  # an operation may fail in its own way
                self._run_again(error)
        if self._compiled is None:
            args = jax.tree.map(_widen, self.args)
            run = compiled(self._of_inputs, (floats, *seeds), args)
            self._compiled = lambda *inputs: run(inputs)
        return self._compiled(floats, *seeds)

    def is_coarse(self, floats: Floats) -> bool:
        """Whether something in it rounds to less than float64, or is out of sight."""
        run = self._promoted or functools.partial(
            self._function, args=_placed(jax.tree.map(_widen, self.args))
        )
        try:
            return rounds_coarsely(jax.make_jaxpr(run)(floats).jaxpr)
        except Exception:  # a function may fail on tracers in its own way
            return True

    def _of_inputs(self, inputs: Any, args: Any) -> Any:
        floats, *seeds = inputs
        return self._function(floats, args, *seeds)

    def _run_again(self, error: Exception) -> None:
        self._promoted = self._compiled = None
        reason = str(error).partition("\n")[0]
        self.note = f"run again as Python under x64: {reason:.120}"


class Function(NamedTuple):
    """A function of the leaves in float64."""

    points: Floats  # where it is differentiated
    placed: Floats  # the same on the device
    value: Counted  # (floats) -> []
    f0: float
    noise: float = 0.0  # standard deviation of its rounding, once measured
    is_coarse: bool = False  # rounds to less than float64 inside

    def line(self, moves: Floats, size: float = 1.0) -> Line:
        """t -> f(points + t moves)."""
        moves = jax.device_put({k: np.asarray(v, float) for k, v in moves.items()})

        def value(t: float) -> float:
            moved = {k: self.placed[k] + t * move for k, move in moves.items()}
            return float(self.value(self.placed | moved))

        return Line(value, self.f0, self.noise, size, self.is_coarse)


def scalar(out: Any, has_aux: bool) -> jax.Array:
    """The value among what `fn` returns."""
    is_pair = isinstance(out, tuple) and len(out) == 2
    value = out[0] if has_aux and is_pair else out
    if has_aux != is_pair or float_dtype(value) is None or np.shape(value) != ():
        raise ValueError(
            "fn must return a real scalar, or (real scalar, aux) if has_aux; with "
            f"has_aux={has_aux} it returned {out!r:.80}."
        )
    return jnp.asarray(value)


def compiled(
    function: Callable[..., Any], floats: Any, args: Any
) -> Callable[[Any], Any]:
    """`floats -> function(floats, args)`, compiled unless Python branches on values.

    Arrays in `args` are traced; numbers and other objects stay as they are, since they
    may choose shapes or branches.
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
    placed = jax.device_put(arrays)
    return lambda floats: traced(floats, placed)


def own_derivative(
    derivative: Callable[..., Any],
    function: Callable[..., Any],
    floats: Floats,
    args: Any,
    remedy: str,
) -> Callable[[Floats], Any]:
    """`derivative(function)`, compiled; a ValueError names the leaf where JAX has none.

    What `function` itself raises stays what it is.
    """

    @functools.cache
    def derive() -> Callable[[Floats], Any]:
        return compiled(derivative(function), floats, args)

    def claim(at: Floats) -> Any:
        try:
            return derive()(at)
        except Exception as error:
            compiled(function, floats, args)(at)
            path = _first_without(derivative, function, at, args) or "params"
            line = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
            found = f"JAX says {line:.160}; "
            if "nondiff_argnums" in str(error):
                found = (
                    "it is a nondiff argument of a custom rule; take it out of "
                    "nondiff_argnums, or "
                )
            raise ValueError(
                f"fn must be differentiable in leaf {path!r}, but {found}{remedy}."
            ) from error

    return claim


def _first_without(
    derivative: Callable[..., Any], function: Callable[..., Any], at: Floats, args: Any
) -> str:
    """The first leaf by which the function has no derivative."""
    for path, leaf in at.items():
        try:
            by_leaf = derivative(lambda one, args: function(at | one, args))
            by_leaf({path: jnp.asarray(leaf)}, args)
        except Exception:
            return path
    return ", ".join(at)


def longest_sum(shapes: Iterable[tuple[int, ...]]) -> int:
    """The product of all axes but the shortest, of the shape where it is largest."""
    return max(math.prod(sorted(shape)[1:] or shape) for shape in shapes)


def in_float64(
    value: Referee,
    points: Floats,
    values: list[float],
    evaluate_again: Callable[[], float],
) -> Function:
    """The function in float64, unless it is another than the one with `values` nearby.

    `evaluate_again` is what the function is in the caller's precision, run once more.
    """
    unit = unit_roundoff(*(point.dtype for point in points.values()))
    blur = ROUNDINGS * unit * abs(values[0]) + np.max(np.abs(np.diff(values)))
    points = {path: point.astype(np.float64) for path, point in points.items()}
    try:
        function = _evaluated(value, points)
    except UndecidableError:
        raise
    except Exception as error:
        error.add_note("gradcheck evaluates fn on float64 copies of params and args.")
        raise
    if not abs(function.f0 - values[0]) > 100 * blur:
        return function
    if abs(evaluate_again() - values[0]) > blur:  # a trace freezes Python's draws
        raise UndecidableError(_NOT_DETERMINISTIC)
    if function.is_coarse and not value.note:
        return function  # a compiler may leave out what is rounded in between
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


def _evaluated(value: Referee, points: Floats) -> Function:
    counted = Counted(value)
    first, second = float(counted(points)), float(counted(points))
    if not math.isfinite(first):
        raise UndecidableError(f"fn is {first} here")
    if first != second:
        raise UndecidableError(_NOT_DETERMINISTIC)
    placed = jax.device_put(points)
    is_coarse = value.is_coarse(points)
    return Function(points, placed, counted, first, is_coarse=is_coarse)


def _placed(args: Any) -> Any:
    """With JAX's arrays for NumPy's, as a compiled function sees them."""
    return jax.tree.map(lambda x: jnp.asarray(x) if _is_array(x) else x, args)


def _widen(leaf: Any) -> Any:
    if not _is_array(leaf):
        return leaf
    if is_complex(leaf):
        return np.asarray(leaf).astype(np.complex128)
    is_real = float_dtype(leaf) is not None
    return np.asarray(leaf).astype(np.float64) if is_real else _on_cpu(leaf)


def _on_cpu(leaf: Any) -> Any:
    is_jax = isinstance(leaf, jax.Array)
    return jax.device_put(leaf, jax.devices("cpu")[0]) if is_jax else leaf


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray | jax.Array)
