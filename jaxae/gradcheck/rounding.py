"""Real numbers in the caller's precision, and what rounding may do to them."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROUNDINGS = 8.0  # sqrt(64): see the package's docstring
SINGLE = 2.0**-24  # unit roundoff of float32


def unit_roundoff(*dtypes: Any) -> float:
    """Half the spacing at 1 of the coarsest of `dtypes`."""
    return max(float(jnp.finfo(dtype).eps) for dtype in dtypes) / 2


def tolerance(dtypes: list[Any], num_terms: int) -> float:
    """8 u + sqrt(N) u32, the last in u if that is less."""
    unit = unit_roundoff(*dtypes)
    return ROUNDINGS * unit + math.sqrt(num_terms) * min(unit, SINGLE)


def float_dtype(leaf: Any) -> Any:
    """What JAX, as the caller has set it up, makes of a real leaf; None for others."""
    dtype = np.float64 if type(leaf) is float else getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        return None
    return jax.dtypes.canonicalize_dtype(dtype)


def is_complex(leaf: Any) -> bool:
    """Whether its entries are complex numbers."""
    dtype = complex if type(leaf) is complex else getattr(leaf, "dtype", None)
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.complexfloating))


def narrow(leaf: Any) -> np.ndarray:
    """The values of a real leaf as JAX reads them."""
    return np.asarray(leaf).astype(float_dtype(leaf))


def canonical(leaf: Any) -> Any:
    """A NumPy array as JAX reads it: claim and function then see one point."""
    if not isinstance(leaf, np.ndarray | np.generic) or leaf.dtype.kind not in "iufc":
        return leaf
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    return leaf if leaf.dtype == dtype else np.asarray(leaf).astype(dtype)


def copied(leaf: Any) -> Any:
    """A JAX array of its own; other leaves as they are."""
    return jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf


def nearby(
    function: Callable[[Any], Any], floats: Any, rng: np.random.Generator, count: int
) -> list[Any]:
    """Its value at `floats`, then at `count` points that are one last bit away."""
    near = [perturbed(floats, rng) for _ in range(count)]
    return [function(point) for point in (floats, *near)]


def perturbed(floats: Any, rng: np.random.Generator, bits: int = 1) -> Any:
    """A point that is `bits` last bits away in every entry."""
    return jax.tree.map(lambda x: _nudge(x, rng, bits), floats)


def _nudge(leaf: Any, rng: np.random.Generator, bits: int) -> Any:
    """x (1 + 2 u s bits), s = 1 or -1 at random."""
    point = narrow(leaf)
    signs = rng.choice([-1.0, 1.0], size=point.shape)
    factor = 1 + 2 * unit_roundoff(point.dtype) * bits * signs
    moved = np.asarray(point.astype(np.float64) * factor).astype(point.dtype)
    if isinstance(leaf, jax.Array):
        return jax.device_put(moved, leaf.sharding)
    return float(moved) if type(leaf) is float else moved
