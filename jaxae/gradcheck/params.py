"""What is given: the floating-point leaves of params and of a gradient like them."""

from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from jaxae.gradcheck.rounding import canonical, float_dtype


def require_callables(fn: Any, grad: Any) -> None:
    """Refuse what cannot be called."""
    if not callable(fn):
        raise ValueError(f"fn must be a function of the params, got {fn!r:.80}.")
    if grad is not None and not callable(grad):
        raise ValueError(
            f"grad must be a function of the params or None, got {grad!r:.80}; for "
            "numbers that are at hand, pass lambda *args: numbers."
        )


def read_seed(key: Any) -> Any:
    """Whole numbers that seed NumPy: those of the key, 0 for None."""
    if key is None:
        return 0
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", ())
    is_typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    is_raw = dtype == np.uint32 and shape == (2,)
    if not (is_raw or (is_typed and shape == ())):
        found = f"{dtype}{list(shape)}" if dtype is not None else f"{key!r:.80}"
        raise ValueError(
            f"key must be one JAX random key or None, got {found}; make one with "
            "jax.random.key(0)."
        )
    return np.asarray(jax.random.key_data(key)).ravel()


def read_params(
    params: Any, surrogate: Collection[str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The floating-point leaves, and the paths of all others."""
    leaves = _leaves_by_path(params)
    floats = {
        path: canonical(leaf)
        for path, leaf in leaves.items()
        if float_dtype(leaf) is not None
    }
    for path, leaf in leaves.items():
        if np.iscomplexobj(leaf):
            raise ValueError(
                f"params must be real, but leaf {path!r} is complex: pass its real and "
                "imaginary parts as two leaves."
            )
    if not floats:
        raise ValueError(
            f"params must hold at least one floating-point leaf, got {params!r:.80}."
        )
    if len(leaves) < len(jax.tree.leaves(params, is_leaf=_is_none)):
        raise ValueError(f"params must have distinct paths, got {list(leaves)}.")
    if isinstance(surrogate, str) or not set(surrogate) <= set(floats):
        raise ValueError(
            f"surrogate must be a collection of paths among {list(floats)}, "
            f"got {surrogate!r}."
        )
    return floats, tuple(path for path in leaves if path not in floats)


def fill(params: Any, floats: dict[str, Any]) -> Any:
    """The params with `floats` as floating-point leaves."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: floats.get(_name(path), leaf), params
    )


def read_grads(grads: Any, params: Any, floats: dict[str, Any]) -> dict[str, Any]:
    """The gradients of `floats`, checked against them."""
    expected: Any = jax.tree.structure(params, is_leaf=_is_none)
    structure: Any = jax.tree.structure(grads, is_leaf=_is_none)
    if structure != expected:
        raise ValueError(
            "grad must return a pytree of the same structure as params, "
            f"{expected}, got {structure}."
        )
    leaves = _leaves_by_path(grads)
    for path, leaf in floats.items():
        shape, claim = np.shape(leaf), leaves[path]
        if np.shape(claim) != shape or float_dtype(claim) is None:
            raise ValueError(
                f"grad must return real numbers of shape {shape} for leaf {path!r}, "
                f"got {claim!r:.60} of shape {np.shape(claim)}."
            )
    return {path: leaves[path] for path in floats}


def _leaves_by_path(tree: Any) -> dict[str, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_none)
    return {_name(path): leaf for path, leaf in flat}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_none(leaf: Any) -> bool:
    return leaf is None
