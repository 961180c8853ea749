"""Dtypes as JAX reads them, unit roundoffs, and points one last bit away."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROUNDING_FACTOR = 8.0  # sqrt(64), for 64 roundings in sequence
FLOAT32_UNIT = 2.0**-24  # unit roundoff of float32


def unit_roundoff(*dtypes: Any) -> float:
    """Half the spacing at 1 of the coarsest of `dtypes`."""
    return max(float(jnp.finfo(dtype).eps) for dtype in dtypes) / 2


def tolerance(dtypes: list[Any], num_terms: int) -> float:
    """8 u + sqrt(N) u32, the last in u if that is less."""
    unit = unit_roundoff(*dtypes)
    return ROUNDING_FACTOR * unit + math.sqrt(num_terms) * min(unit, FLOAT32_UNIT)


def float_dtype(leaf: Any) -> Any:
    """The dtype in which JAX, as configured by the caller, reads a real leaf.

    None for a leaf that is no real floating-point array or number.
    """
    dtype = np.float64 if type(leaf) is float else getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        return None
    return jax.dtypes.canonicalize_dtype(dtype)


def is_complex(leaf: Any) -> bool:
    """Whether the entries of a leaf are complex numbers."""
    dtype = complex if type(leaf) is complex else getattr(leaf, "dtype", None)
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.complexfloating))


def as_numpy(leaf: Any) -> np.ndarray:
    """A real leaf as a NumPy array of the dtype in which JAX reads it."""
    return np.asarray(leaf).astype(float_dtype(leaf))


def canonicalize(leaf: Any) -> Any:
    """A NumPy array in the dtype in which JAX reads it; any other leaf unchanged.

    The claim and the function are then evaluated at the same point.
    """
    if not isinstance(leaf, np.ndarray | np.generic) or leaf.dtype.kind not in "iufc":
        return leaf
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    return leaf if leaf.dtype == dtype else np.asarray(leaf).astype(dtype)


def copy_array(leaf: Any) -> Any:
    """A copy of a JAX array; any other leaf unchanged."""
    return jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf


def evaluate_nearby(
    function: Callable[[Any], Any], floats: Any, rng: np.random.Generator, count: int
) -> list[Any]:
    """The values at `floats`, then at `count` random points one last bit away."""
    points = [perturb_last_bits(floats, rng) for _ in range(count)]
    return [function(point) for point in (floats, *points)]


def perturb_last_bits(floats: Any, rng: np.random.Generator, bits: int = 1) -> Any:
    """x (1 + 2 u s bits) for every entry x, with a random sign s."""
    return jax.tree.map(lambda leaf: _perturb_leaf(leaf, rng, bits), floats)


def _perturb_leaf(leaf: Any, rng: np.random.Generator, bits: int) -> Any:
    point = as_numpy(leaf)
    signs = rng.choice([-1.0, 1.0], size=point.shape)
    factor = 1 + 2 * unit_roundoff(point.dtype) * bits * signs
    result = np.asarray(point.astype(np.float64) * factor).astype(point.dtype)
    if isinstance(leaf, jax.Array):
        return jax.device_put(result, leaf.sharding)
    return float(result) if type(leaf) is float else result
