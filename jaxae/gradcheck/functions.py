"""A function of the floating-point leaves, compiled, and the same in float64."""

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae.gradcheck.differences import Line
from jaxae.gradcheck.rounding import (
    ROUNDINGS,
    float_dtype,
    is_complex,
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
        self.calls += 1
        return self.function(*args)


class Function(NamedTuple):
    """`loss(floats, args)` as a function of the leaves in float64."""

    loss: Callable[..., Any]
    points: Floats  # where it is differentiated
    placed: Floats  # the same on the device
    args: Any
    value: Counted  # (floats) -> []
    f0: float
    noise: float = 0.0  # standard deviation of its rounding, once measured
    is_coarse: bool = False  # rounds to less than float64 inside

    def gradient(self) -> Callable[[Floats], Floats]:
        """Autodiff; raises where the function has no derivative rule."""
        return compiled(jax.grad(self.loss), self.points, self.args)

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
    function: Callable[..., Any], floats: Floats, args: Any
) -> Callable[[Floats], Any]:
    """`floats -> function(floats, args)`, compiled unless Python branches on values.

    Arrays in `args` are traced; numbers and other objects stay as they are, since they
    may choose shapes or branches.
    """
    arrays = jax.tree.map(lambda leaf: leaf if _is_array(leaf) else None, args)

    def choose(leaf: Any, array: Any) -> Any:
        return leaf if array is None else array

    @jax.jit
    def traced(floats: Floats, arrays: Any) -> Any:
        return function(floats, jax.tree.map(choose, args, arrays))

    try:
        traced.eval_shape(floats, arrays)
    except _UNTRACEABLE:
        return lambda floats: function(jax.tree.map(jnp.asarray, floats), args)
    placed = jax.device_put(arrays)
    return lambda floats: traced(floats, placed)


def shapes_within(loss: Callable[..., Any], floats: Floats, args: Any) -> list[Any]:
    """The shapes of the arrays in `args` and of those that the function closes over."""
    try:  # both are constants of the traced function
        arrays = jax.make_jaxpr(lambda floats: loss(floats, _placed(args)))(
            floats
        ).consts
    except _UNTRACEABLE:
        arrays = jax.tree.leaves(args)
    return list(map(np.shape, arrays))


def longest_sum(shapes: Iterable[tuple[int, ...]]) -> int:
    """The product of all axes but the shortest, of the shape where it is largest."""
    return max(math.prod(sorted(shape)[1:] or shape) for shape in shapes)


def in_float64(
    loss: Callable[..., Any], points: Floats, args: Any, values: list[float]
) -> Function:
    """The function in float64, unless another than the one with `values` nearby.

    It is another if it draws random numbers in the precision of its arguments. Then the
    arrays in `args` keep their own; if that does not help, nothing is decided.
    """
    unit = unit_roundoff(*(point.dtype for point in points.values()))
    blur = ROUNDINGS * unit * abs(values[0]) + np.max(np.abs(np.diff(values)))
    points = {path: point.astype(np.float64) for path, point in points.items()}
    wide_args = jax.tree.map(_widen, args)

    def is_another(function: Function) -> bool:
        return bool(abs(function.f0 - values[0]) > 100 * blur)

    try:
        function = _evaluated(loss, points, wide_args)
    except Exception as error:
        error.add_note("gradcheck evaluates fn on float64 copies of params and args.")
        raise
    if not is_another(function):
        return function
    if _evaluated(loss, points, wide_args).f0 != function.f0:
        raise UndecidableError(_NOT_DETERMINISTIC)  # a trace freezes Python's draws
    with contextlib.suppress(TypeError, ValueError):  # of dtypes that do not mix
        second = _evaluated(loss, points, jax.tree.map(_on_cpu, args))
        if not is_another(second):
            return second
    raise UndecidableError(
        f"fn is {values[0]:.6g} in the caller's precision but {function.f0:.6g} in "
        "float64: give random numbers a dtype of their own, as bernoulli(key, "
        "jnp.float32(0.5)) has, or enable x64 if rounding ruins it"
    )


def _evaluated(loss: Callable[..., Any], points: Floats, args: Any) -> Function:
    value = Counted(compiled(loss, points, args))
    first, second = float(value(points)), float(value(points))
    if not math.isfinite(first):
        raise UndecidableError(f"fn is {first} here")
    if first != second:
        raise UndecidableError(_NOT_DETERMINISTIC)
    is_coarse = _is_coarse(loss, points, args)
    placed = jax.device_put(points)
    return Function(loss, points, placed, args, value, first, is_coarse=is_coarse)


def _is_coarse(loss: Callable[..., Any], points: Floats, args: Any) -> bool:
    """Whether something in it rounds to less than float64, or is out of sight."""
    try:
        traced = jax.make_jaxpr(lambda floats: loss(floats, _placed(args)))(points)
    except _UNTRACEABLE:
        return True
    return rounds_coarsely(traced.jaxpr)


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
