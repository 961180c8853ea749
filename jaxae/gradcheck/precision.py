"""What a gradient loses to the precision in which it is computed."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae.gradcheck.evidence import largest
from jaxae.gradcheck.functions import Floats, own_derivative, scalar
from jaxae.gradcheck.params import (
    fill,
    read_grads,
    read_params,
    require_callables,
)
from jaxae.gradcheck.report import aligned, as_json
from jaxae.gradcheck.rounding import canonical, float_dtype, narrow

# What params and args are cast to, and the precision of matrix products. On GPUs and
# TPUs the default rounds float32 factors to tf32 or bfloat16; on CPUs it does not.
_MODES = {
    "bfloat16": (jnp.bfloat16, "highest"),
    "float16": (jnp.float16, "highest"),
    "float32": (jnp.float32, "highest"),
    "float32, default matmul": (jnp.float32, "default"),
}
_REMEDY = "pass a gradient of your own as grad="


class Deviation(NamedTuple):
    """How the gradient found in one leaf differs from the true one."""

    error: float  # relative to the largest true entry; absolute if all are zero
    cosine: float  # of the angle between the two; NaN if an entry is not finite
    sign_flips: float  # fraction with the opposite sign, of entries truly not zero
    underflow: float  # fraction that is exactly zero, of the same: lost or cancelled
    not_finite: float  # fraction of all entries; the error is then infinite


@dataclass(frozen=True, repr=False)
class Precision:
    """`leaves[path][mode]` is a `Deviation`; `print` shows them as a table."""

    leaves: dict[str, dict[str, Deviation]]
    ignored: tuple[str, ...] = ()  # paths of integer, bool, None and other leaves
    unavailable: dict[str, str] = field(default_factory=dict)  # modes that raised: why

    def to_json(self) -> str:
        """All of it as JSON text; numbers that are not finite become strings."""
        leaves = {
            path: {mode: deviation._asdict() for mode, deviation in modes.items()}
            for path, modes in self.leaves.items()
        }
        return as_json(vars(self) | {"leaves": leaves})

    def __str__(self) -> str:
        """A table, one row a leaf and mode."""
        rows = [["leaf", "precision", *Deviation._fields]]
        for path, modes in self.leaves.items():
            names = [path or "params"] + [""] * len(modes)  # each leaf is named once
            rows += map(_row, names, modes, modes.values())
        lines = ["precision: against the gradient in float64", *aligned(rows)]
        lines += [f"no {mode}: {reason}" for mode, reason in self.unavailable.items()]
        if self.ignored:
            lines.append(f"ignored, not real numbers: {', '.join(self.ignored)}")
        return "\n".join(lines)

    __repr__ = __str__


def precision(
    fn: Any, params: Any, *args: Any, grad: Any = None, has_aux: bool = False
) -> Precision:
    """Measure, leaf by leaf, what lower precisions do to the gradient of `fn`.

        g_mode = grad(cast(params), *cast(args)),    true = the same in float64

        error  = max_i |g_i - true_i| / max_i |true_i|
        cosine = <g, true> / (|g| |true|)

    The modes are bfloat16, float16 and float32 with matrix products in full precision,
    and float32 with the device's default ones, each on the default device. They are all
    compared with the one gradient in float64, at the params as they are given: to round
    params and args to the mode's dtype is part of what is measured.

    Nothing here says that the gradient is that of `fn`, which is for `check` to judge:
    one that is wrong in the same way in every precision deviates by nothing.

    Args:
      fn: `(params, *args) -> []`, a real scalar, or `(scalar, aux)` with `has_aux`.
        What it closes over keeps its own precision, so give data as `args`; random
        numbers must be drawn in a fixed dtype, or each mode draws its own.
      params: any pytree of real floating-point arrays or floats; other leaves are
        ignored and listed. As everywhere in JAX, a float64 NumPy array counts as
        float32 unless the caller has enabled x64.
      args: passed on, real floating-point arrays cast; Python's floats and all else as
        they are.
      grad: `(params, *args) ->` gradient, a pytree like `params`, evaluated as it is in
        every precision, on the CPU in float64; `fn` is then not called. None stands for
        `jax.grad(fn)`, compiled, so that a compiler may keep intermediate results wider
        than the mode's dtype, as it may in training.
      has_aux: whether `fn` returns `(scalar, aux)`. `grad` never returns aux.

    Returns:
      A `Precision`, whose leaves are keyed as those of `check`. Where a leaf's true
      gradient is zero, its error is absolute and its cosine 1 if what was found is zero
      too, otherwise 0; an empty leaf deviates by nothing. A mode in which the gradient
      cannot be computed (where a dtype is written into `fn`) is in `unavailable`.

    Raises:
      ValueError: `fn` or `grad` is not callable, `fn` gives no real scalar or, without
        `grad`, cannot be differentiated by JAX, `params` has no floating-point leaf or
        a complex one, `grad` has another structure or shape or is not in float64 where
        its arguments are, the gradient in float64 is not finite.

    Source: float16's narrow range, Micikevicius et al., "Mixed precision training",
    2018; bfloat16, Kalamkar et al., "A study of BFLOAT16 for deep learning training",
    2019.

    Example:
      >>> print(precision(lambda p: jnp.sum(p**2), params))
    """
    require_callables(fn, grad)
    _require_real(params)
    floats, ignored = read_params(params)
    points = {path: narrow(leaf) for path, leaf in floats.items()}
    args = jax.tree.map(canonical, args)

    def loss(floats: Floats, args: Any) -> jax.Array:
        return scalar(fn(fill(params, floats), *args), has_aux)

    def gradient(floats: Floats, args: Any) -> Floats:
        if grad is None:
            return own_derivative(jax.grad, loss, floats, args, _REMEDY)(floats)
        return read_grads(grad(fill(params, floats), *args), params)

    with np.errstate(all="ignore"):  # what is not finite is counted, not warned of
        true = _in_float64(gradient, points, args)
        found, unavailable = _in_each_mode(gradient, points, args)
        leaves = {
            path: {mode: _compare(g[path], true[path]) for mode, g in found.items()}
            for path in points
        }
    return Precision(leaves, ignored, unavailable)


def _require_real(params: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if np.iscomplexobj(leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"params must be real, leaf {name!r} is complex, which has no half "
                "precision; pass its real and imaginary parts as two leaves."
            )


def _in_float64(
    gradient: Callable[[Floats, Any], Floats], points: Floats, args: Any
) -> dict[str, np.ndarray]:
    """The gradient in float64 on the CPU, every leaf flat."""
    cpu = jax.devices("cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        try:
            grads = gradient(*_cast((points, args), np.float64, cpu))
        except Exception as error:
            error.add_note("precision needs the gradient at float64 params and args.")
            raise
        grads = {path: np.asarray(leaf) for path, leaf in grads.items()}
    for path, leaf in grads.items():
        if leaf.dtype != np.float64:
            raise ValueError(
                "grad must be in float64 where params and args are, got "
                f"{leaf.dtype} for leaf {path!r}; write no dtype into it."
            )
        if not np.all(np.isfinite(leaf)):
            raise ValueError(
                "params must be where the gradient is finite in float64, got "
                f"{leaf[~np.isfinite(leaf)][0]} in leaf {path!r}; check fn there."
            )
    return {path: leaf.ravel() for path, leaf in grads.items()}


def _in_each_mode(
    gradient: Callable[[Floats, Any], Floats], points: Floats, args: Any
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, str]]:
    """The gradients by mode, every leaf flat; and why there are no others."""
    found, unavailable = {}, {}
    for mode, (dtype, matmul) in _MODES.items():
        try:
            with jax.default_matmul_precision(matmul):
                grads = gradient(*_cast((points, args), dtype))
            found[mode] = {path: _flat(leaf) for path, leaf in grads.items()}
        except Exception as error:  # a function may fail in its own way
            reason = str(error).partition("\n")[0]
            unavailable[mode] = f"{type(error).__name__}: {reason:.120}"
    return found, unavailable


def _cast(tree: Any, dtype: Any, device: Any = None) -> Any:
    """Real arrays in `dtype`, arrays of JAX on the device, all else as it is."""

    def cast(leaf: Any) -> Any:
        if type(leaf) is not float and float_dtype(leaf) is not None:
            return jnp.asarray(np.asarray(leaf).astype(dtype))
        return jax.device_put(leaf, device) if isinstance(leaf, jax.Array) else leaf

    return jax.tree.map(cast, tree)


def _flat(leaf: Any) -> np.ndarray:
    return np.asarray(leaf).astype(np.float64).ravel()


def _compare(found: np.ndarray, true: np.ndarray) -> Deviation:
    is_finite, is_nonzero = np.isfinite(found), true != 0
    error = largest(found - true) / (largest(true) or 1.0)
    num_nonzero = max(np.sum(is_nonzero), 1)
    return Deviation(
        error=error if np.all(is_finite) else math.inf,
        cosine=_cosine(found, true) if np.all(is_finite) else math.nan,
        sign_flips=float(np.sum(np.sign(found) * np.sign(true) < 0) / num_nonzero),
        underflow=float(np.sum((found == 0) & is_nonzero) / num_nonzero),
        not_finite=float(np.sum(~is_finite) / max(found.size, 1)),
    )


def _cosine(found: np.ndarray, true: np.ndarray) -> float:
    scales = largest(found), largest(true)
    if not all(scales):
        return float(not any(scales))
    found, true = found / scales[0], true / scales[1]  # whose squares may underflow
    return float(found @ true / (np.linalg.norm(found) * np.linalg.norm(true)))


def _row(path: str, mode: str, deviation: Deviation) -> list[str]:
    error, cosine, *fractions = deviation
    return [
        path,
        mode,
        f"{error:.1e}",
        f"{cosine:.6f}",
        *map("{:.2g}".format, fractions),
    ]
