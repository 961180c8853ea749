"""The error of a gradient in lower precisions."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae.gradcheck.evidence import max_abs
from jaxae.gradcheck.functions import Floats, autodiff_claim, extract_scalar
from jaxae.gradcheck.params import (
    leaves_by_path,
    read_grads,
    read_params,
    replace_floats,
    require_callables,
)
from jaxae.gradcheck.report import align_columns, as_json
from jaxae.gradcheck.rounding import as_numpy, canonicalize, float_dtype

# The dtype of params and args, and the precision of matrix products. On GPUs and TPUs
# the default rounds float32 factors to tf32 or bfloat16; on CPUs it does not.
_MODES = {
    "bfloat16": (jnp.bfloat16, "highest"),
    "float16": (jnp.float16, "highest"),
    "float32": (jnp.float32, "highest"),
    "float32, default matmul": (jnp.float32, "default"),
}
_REMEDY = "pass a gradient of your own as grad="


class Deviation(NamedTuple):
    """The deviation of the gradient in one leaf from the true gradient."""

    error: float  # relative to the largest true entry; absolute if all are zero
    cosine: float  # of the angle between the two; NaN if an entry is not finite
    sign_flips: float  # fraction of the nonzero true entries with the opposite sign
    underflow: float  # fraction of the nonzero true entries that became exactly zero
    not_finite: float  # fraction of all entries; the error is then infinite


@dataclass(frozen=True, repr=False)
class Precision:
    """Deviations by leaf and mode; `print` shows them as a table."""

    leaves: dict[str, dict[str, Deviation]]  # by path, then by mode
    ignored: tuple[str, ...] = ()  # paths of integer, bool, None and other leaves
    unavailable: dict[str, str] = field(default_factory=dict)  # mode: its error

    def to_json(self) -> str:
        """The result as JSON text; numbers that are not finite become strings."""
        leaves = {
            path: {mode: deviation._asdict() for mode, deviation in modes.items()}
            for path, modes in self.leaves.items()
        }
        return as_json(vars(self) | {"leaves": leaves})

    def __str__(self) -> str:
        """A table, one row a leaf and mode."""
        rows = [["leaf", "precision", *Deviation._fields]]
        for path, modes in self.leaves.items():
            labels = [path or "params"] + [""] * len(modes)  # on the first row only
            rows += map(_row, labels, modes, modes.values())
        lines = ["precision: against the gradient in float64", *align_columns(rows)]
        lines += [f"no {mode}: {reason}" for mode, reason in self.unavailable.items()]
        if self.ignored:
            lines.append(f"ignored, not real numbers: {', '.join(self.ignored)}")
        return "\n".join(lines)

    __repr__ = __str__


def precision(
    fn: Any, params: Any, *args: Any, grad: Any = None, has_aux: bool = False
) -> Precision:
    """Measure, leaf by leaf, the error of the gradient of `fn` in lower precisions.

        g_mode = grad(cast(params), *cast(args)),    true = the same in float64

        error  = max_i |g_i - true_i| / max_i |true_i|
        cosine = <g, true> / (|g| |true|)

    The modes are bfloat16, float16 and float32 with matrix products in full precision,
    and float32 with the device's default matrix products, each on the default device.
    All are compared with the gradient in float64 at the unrounded params, so the error
    includes the rounding of params and args to the mode's dtype.

    This does not check that the gradient is that of `fn`: use `check` for that. A
    gradient with the same bug in every precision has no deviation.

    Args:
      fn: `(params, *args) -> []`, a real scalar, or `(scalar, aux)` with `has_aux`.
        Arrays that it closes over keep their precision, so pass data as `args`. Draw
        random numbers in a fixed dtype, otherwise each mode draws different ones.
      params: any pytree of real floating-point arrays or floats; other leaves are
        ignored and listed. As everywhere in JAX, a float64 NumPy array counts as
        float32 unless the caller has enabled x64.
      args: passed on; real floating-point arrays are cast, Python floats and everything
        else are not.
      grad: `(params, *args) ->` gradient, a pytree like `params`, evaluated in every
        precision, in float64 on the CPU; `fn` is then not called. None stands for
        `jax.grad(fn)`, compiled. As in training, the compiler may then keep
        intermediate results in a wider dtype than the mode's.
      has_aux: whether `fn` returns `(scalar, aux)`. `grad` never returns aux.

    Returns:
      A `Precision`, whose leaves are keyed as those of `check`. If a leaf's true
      gradient is zero, its error is absolute, and its cosine is 1 if the gradient is
      zero too, otherwise 0. An empty leaf has no deviation. A mode in which the
      gradient cannot be computed, because `fn` requires a dtype, is in `unavailable`.

    Raises:
      ValueError: `fn` or `grad` is not callable, `fn` does not return a real scalar or,
        without `grad`, cannot be differentiated by JAX, `params` has no floating-point
        leaf or a complex one, `grad` returns another structure or shape or another
        dtype than float64 for float64 arguments, or the gradient in float64 is not
        finite.

    Source: float16's narrow range, Micikevicius et al., "Mixed precision training",
    2018; bfloat16, Kalamkar et al., "A study of BFLOAT16 for deep learning training",
    2019.

    Example:
      >>> print(precision(lambda p: jnp.sum(p**2), params))
    """
    require_callables(fn, grad)
    _require_real(params)
    floats, ignored = read_params(params)
    points = {path: as_numpy(leaf) for path, leaf in floats.items()}
    args = jax.tree.map(canonicalize, args)

    def loss(floats: Floats, args: Any) -> jax.Array:
        return extract_scalar(fn(replace_floats(params, floats), *args), has_aux)

    def gradient(floats: Floats, args: Any) -> Floats:
        if grad is None:
            return autodiff_claim(jax.grad, loss, floats, args, _REMEDY)(floats)
        return read_grads(grad(replace_floats(params, floats), *args), params)

    with np.errstate(all="ignore"):  # entries that are not finite are counted instead
        true = _gradient_in_float64(gradient, points, args)
        grads, unavailable = _gradients_by_mode(gradient, points, args)
        leaves = {
            path: {mode: _compare(g[path], true[path]) for mode, g in grads.items()}
            for path in points
        }
    return Precision(leaves, ignored, unavailable)


def _require_real(params: Any) -> None:
    for path, leaf in leaves_by_path(params).items():
        if np.iscomplexobj(leaf):
            raise ValueError(
                f"params must be real, leaf {path!r} is complex, which has no half "
                "precision; pass its real and imaginary parts as two leaves."
            )


def _gradient_in_float64(
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


def _gradients_by_mode(
    gradient: Callable[[Floats, Any], Floats], points: Floats, args: Any
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, str]]:
    """The gradients by mode, every leaf flat; and the errors of the other modes."""
    grads_by_mode, unavailable = {}, {}
    for mode, (dtype, matmul) in _MODES.items():
        try:
            with jax.default_matmul_precision(matmul):
                grads = gradient(*_cast((points, args), dtype))
            grads_by_mode[mode] = {
                path: np.asarray(leaf).astype(np.float64).ravel()
                for path, leaf in grads.items()
            }
        except Exception as error:  # a function may fail in its own way
            reason = str(error).partition("\n")[0]
            unavailable[mode] = f"{type(error).__name__}: {reason:.120}"
    return grads_by_mode, unavailable


def _cast(tree: Any, dtype: Any, device: Any = None) -> Any:
    """The tree with real arrays in `dtype` and other JAX arrays on the device."""

    def cast(leaf: Any) -> Any:
        if type(leaf) is not float and float_dtype(leaf) is not None:
            return jnp.asarray(np.asarray(leaf).astype(dtype))
        return jax.device_put(leaf, device) if isinstance(leaf, jax.Array) else leaf

    return jax.tree.map(cast, tree)


def _compare(grad: np.ndarray, true: np.ndarray) -> Deviation:
    is_finite, is_nonzero = np.isfinite(grad), true != 0
    error = max_abs(grad - true) / (max_abs(true) or 1.0)
    num_nonzero = max(np.sum(is_nonzero), 1)
    return Deviation(
        error=error if np.all(is_finite) else math.inf,
        cosine=_cosine(grad, true) if np.all(is_finite) else math.nan,
        sign_flips=float(np.sum(np.sign(grad) * np.sign(true) < 0) / num_nonzero),
        underflow=float(np.sum((grad == 0) & is_nonzero) / num_nonzero),
        not_finite=float(np.sum(~is_finite) / max(grad.size, 1)),
    )


def _cosine(grad: np.ndarray, true: np.ndarray) -> float:
    scales = max_abs(grad), max_abs(true)
    if not all(scales):
        return float(not any(scales))
    grad, true = grad / scales[0], true / scales[1]  # unscaled squares may underflow
    return float(grad @ true / (np.linalg.norm(grad) * np.linalg.norm(true)))


def _row(path: str, mode: str, deviation: Deviation) -> list[str]:
    error, cosine, *fractions = deviation
    numbers = f"{error:.1e}", f"{cosine:.6f}", *map("{:.2g}".format, fractions)
    return [path, mode, *numbers]
