"""What is given: the numbers in params and in a gradient like them.

Complex leaves become real ones, an axis longer: z as (Re z, Im z); of the gradient of a
real function, which JAX gives as df/d(Re z) - i df/d(Im z), the two derivatives.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxae.gradcheck.rounding import canonical, float_dtype, is_complex


def require_callables(fn: Any, claim: Any, name: str = "grad") -> None:
    """Refuse what cannot be called."""
    if not callable(fn):
        raise ValueError(f"fn must be a function of the params, got {fn!r:.80}.")
    if claim is not None and not callable(claim):
        raise ValueError(
            f"{name} must be a function of the params or None, got {claim!r:.80}; for "
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


def read_params(params: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The real and complex leaves as real ones, and the paths of all others."""
    leaves = leaves_by_path(params)
    floats = {
        path: in_parts(canonical(leaf))
        for path, leaf in leaves.items()
        if is_number(leaf)
    }
    if not floats:
        raise ValueError(
            f"params must hold at least one floating-point leaf, got {params!r:.80}."
        )
    if len(leaves) < len(jax.tree.leaves(params, is_leaf=_is_none)):
        raise ValueError(f"params must have distinct paths, got {list(leaves)}.")
    return floats, tuple(path for path in leaves if path not in floats)


def read_surrogate(surrogate: Any, floats: dict[str, Any]) -> frozenset[str]:
    """The declared paths; a single array goes by "params", as in the table, too."""
    known = {path or "params": path for path in floats}
    if isinstance(surrogate, str) or not set(surrogate) <= {*floats, *known}:
        raise ValueError(
            f"surrogate must be a collection of paths among {list(known)}, "
            f"got {surrogate!r}."
        )
    return frozenset(known.get(path, path) for path in surrogate)


def fill(params: Any, floats: dict[str, Any]) -> Any:
    """The params with the values of `floats`."""

    def value(path: Any, leaf: Any) -> Any:
        found = floats.get(_name(path), leaf)
        is_given = found is leaf or not is_complex(leaf)
        return found if is_given else jax.lax.complex(found[..., 0], found[..., 1])

    return jax.tree_util.tree_map_with_path(value, params)


def fill_tangents(tree: Any, floats: dict[str, Any]) -> Any:
    """Tangents or cotangents of a pytree; where it has no numbers, zeros of float0."""

    def value(path: Any, leaf: Any) -> Any:
        if _name(path) in floats:
            return leaf
        return np.zeros(np.shape(leaf), jax.dtypes.float0)

    return fill(jax.tree_util.tree_map_with_path(value, tree), floats)


def read_grads(grads: Any, params: Any, name: str = "grad") -> dict[str, Any]:
    """The derivatives by each number in params, checked against them."""
    claims = read_like(grads, params, name, "params")
    return {path: in_parts(conjugate(claim)) for path, claim in claims.items()}


def read_like(claim: Any, tree: Any, name: str, model: str) -> dict[str, Any]:
    """The numbers of a claim, which must be those of `tree` in all but value."""
    expected: Any = jax.tree.structure(tree, is_leaf=_is_none)
    structure: Any = jax.tree.structure(claim, is_leaf=_is_none)
    if structure != expected:
        raise ValueError(
            f"{name} must return a pytree of the same structure as {model}, "
            f"{expected}, got {structure}."
        )
    given, claims = leaves_by_path(tree), leaves_by_path(claim)
    numbers = {path: leaf for path, leaf in given.items() if is_number(leaf)}
    for path, leaf in numbers.items():
        shape, found = np.shape(leaf), claims[path]
        kind = "complex" if is_complex(leaf) else "real"
        is_same_kind = is_complex(found) == is_complex(leaf)
        if np.shape(found) != shape or not is_number(found) or not is_same_kind:
            raise ValueError(
                f"{name} must return {kind} numbers of shape {shape} for leaf "
                f"{path or 'params'!r}, got {_described(found)}."
            )
    return {path: claims[path] for path in numbers}


def _described(found: Any) -> str:
    dtype = getattr(found, "dtype", None)
    return f"{found!r:.60}" if dtype is None else f"{dtype}{list(np.shape(found))}"


def conjugate(leaf: Any) -> Any:
    """Its complex conjugate; real leaves stay what they are."""
    return jnp.conj(leaf) if is_complex(leaf) else leaf


def in_parts(leaf: Any) -> Any:
    """A complex leaf as a real one, an axis longer; a real one as it is."""
    if not is_complex(leaf):
        return leaf
    return jnp.stack([jnp.real(leaf), jnp.imag(leaf)], axis=-1)


def real_numbers(derivatives: np.ndarray) -> np.ndarray:
    """Derivatives of real entries, as they are."""
    return derivatives


def gradient_numbers(derivatives: np.ndarray) -> np.ndarray:
    """Pairs of derivatives by real and imaginary part, as JAX's complex gradient."""
    return derivatives[0::2] - 1j * derivatives[1::2]


def tangent_numbers(derivatives: np.ndarray) -> np.ndarray:
    """Pairs of real and imaginary part, as complex numbers."""
    return derivatives[0::2] + 1j * derivatives[1::2]


def is_number(leaf: Any) -> bool:
    """Whether it is a real or complex floating-point leaf."""
    return float_dtype(leaf) is not None or is_complex(leaf)


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Every leaf, None included, by `keystr(path, simple=True, separator="/")`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_none)
    return {_name(path): leaf for path, leaf in flat}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_none(leaf: Any) -> bool:
    return leaf is None
