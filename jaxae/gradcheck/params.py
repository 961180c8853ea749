"""The floating-point leaves of params and of gradients, read and checked.

A complex leaf is represented by a real one with an additional last axis: z as
(Re z, Im z), and JAX's gradient by z, df/d(Re z) - i df/d(Im z), as the two
derivatives.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxae.gradcheck.rounding import canonicalize, float_dtype, is_complex


def require_callables(fn: Any, claim: Any, name: str = "grad") -> None:
    """Check that `fn` and the claim can be called."""
    if not callable(fn):
        raise ValueError(f"fn must be a function of the params, got {fn!r:.80}.")
    if claim is not None and not callable(claim):
        raise ValueError(
            f"{name} must be a function of the params or None, got {claim!r:.80}; for "
            "a gradient that is already computed, pass lambda *args: gradient."
        )


def read_seed(key: Any) -> Any:
    """A seed for NumPy: the data of the key, 0 for None."""
    if key is None:
        return 0
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", ())
    is_typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    is_raw = dtype == np.uint32 and shape == (2,)
    if not (is_raw or (is_typed and shape == ())):
        raise ValueError(
            f"key must be one JAX random key or None, got {_describe(key)}; make one "
            "with jax.random.key(0)."
        )
    return np.asarray(jax.random.key_data(key)).ravel()


def read_params(params: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The floating-point leaves, as real ones, and the paths of all other leaves."""
    leaves = leaves_by_path(params)
    floats = {
        path: complex_to_real(canonicalize(leaf))
        for path, leaf in leaves.items()
        if is_inexact(leaf)
    }
    if not floats:
        raise ValueError(
            f"params must hold at least one floating-point leaf, got {params!r:.80}."
        )
    if len(leaves) < len(jax.tree.leaves(params, is_leaf=_is_none)):
        raise ValueError(f"params must have distinct paths, got {list(leaves)}.")
    return floats, tuple(path for path in leaves if path not in floats)


def read_surrogate(surrogate: Any, floats: dict[str, Any]) -> frozenset[str]:
    """The declared paths; the path of a single array may be written "params"."""
    path_of = {path or "params": path for path in floats}
    if isinstance(surrogate, str) or not set(surrogate) <= {*floats, *path_of}:
        raise ValueError(
            f"surrogate must be a collection of paths among {list(path_of)}, "
            f"got {surrogate!r}."
        )
    return frozenset(path_of.get(path, path) for path in surrogate)


def replace_floats(tree: Any, floats: dict[str, Any]) -> Any:
    """The tree with `floats`, by path, in place of its own leaves."""

    def value(path: Any, leaf: Any) -> Any:
        name = _name(path)
        if name not in floats:
            return leaf
        array = floats[name]
        if not is_complex(leaf):
            return array
        return jax.lax.complex(array[..., 0], array[..., 1])

    return jax.tree_util.tree_map_with_path(value, tree)


def build_tangents(tree: Any, floats: dict[str, Any]) -> Any:
    """Tangents or cotangents of a tree: `floats` by path, zeros of float0 elsewhere."""

    def zeros_without_tangent(path: Any, leaf: Any) -> Any:
        if _name(path) in floats:
            return leaf
        return np.zeros(np.shape(leaf), jax.dtypes.float0)

    zeros = jax.tree_util.tree_map_with_path(zeros_without_tangent, tree)
    return replace_floats(zeros, floats)


def read_grads(grads: Any, params: Any, name: str = "grad") -> dict[str, Any]:
    """The claimed derivatives by path, as real leaves, checked against the params."""
    claims = read_matching(grads, params, name, "params")
    return {
        path: complex_to_real(jnp.conj(leaf) if is_complex(leaf) else leaf)
        for path, leaf in claims.items()
    }


def read_matching(claim: Any, tree: Any, name: str, tree_name: str) -> dict[str, Any]:
    """The floating-point leaves of a claim by path.

    The claim must have the structure, shapes and kinds of `tree`.
    """
    expected: Any = jax.tree.structure(tree, is_leaf=_is_none)
    structure: Any = jax.tree.structure(claim, is_leaf=_is_none)
    if structure != expected:
        raise ValueError(
            f"{name} must return a pytree of the same structure as {tree_name}, "
            f"{expected}, got {structure}."
        )
    claims = leaves_by_path(claim)
    targets = {p: leaf for p, leaf in leaves_by_path(tree).items() if is_inexact(leaf)}
    for path, leaf in targets.items():
        shape, claimed = np.shape(leaf), claims[path]
        kind = "complex" if is_complex(leaf) else "real"
        is_same_kind = is_complex(claimed) == is_complex(leaf)
        if np.shape(claimed) != shape or not is_inexact(claimed) or not is_same_kind:
            raise ValueError(
                f"{name} must return {kind} numbers of shape {shape} for leaf "
                f"{path or 'params'!r}, got {_describe(claimed)}."
            )
    return {path: claims[path] for path in targets}


def _describe(value: Any) -> str:
    """An array by its dtype and shape, anything else by its repr."""
    dtype = getattr(value, "dtype", None)
    return f"{value!r:.80}" if dtype is None else f"{dtype}{list(np.shape(value))}"


def complex_to_real(leaf: Any) -> Any:
    """(Re z, Im z) along a new last axis of a complex leaf; a real leaf unchanged."""
    if not is_complex(leaf):
        return leaf
    return jnp.stack([jnp.real(leaf), jnp.imag(leaf)], axis=-1)


def to_real_entries(derivatives: np.ndarray) -> np.ndarray:
    """The derivatives of a real leaf, unchanged."""
    return derivatives


def to_complex_gradient(derivatives: np.ndarray) -> np.ndarray:
    """Pairs of derivatives by real and imaginary part, as JAX's complex gradient."""
    return derivatives[0::2] - 1j * derivatives[1::2]


def to_complex_tangent(derivatives: np.ndarray) -> np.ndarray:
    """Pairs of real and imaginary part, as complex numbers."""
    return derivatives[0::2] + 1j * derivatives[1::2]


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf is a real or complex floating-point array or number."""
    return float_dtype(leaf) is not None or is_complex(leaf)


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Every leaf, None included, by `keystr(path, simple=True, separator="/")`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_none)
    return {_name(path): leaf for path, leaf in flat}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_none(leaf: Any) -> bool:
    return leaf is None
