"""Generators of random keys, and functions of keys under vmap."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# All other generators count as not vmap-invariant. JAX documents that "rbg" and
# "unsafe_rbg" are not: under vmap they draw from the first key for all keys
# (https://github.com/jax-ml/jax/issues/34497).
_VMAP_INVARIANT = ("threefry2x32",)


def generator_of(key) -> str:
    """JAX's name of a key's generator, such as "threefry2x32" or "rbg"."""
    return str(jax.random.key_impl(key))


def is_vmap_invariant(key) -> bool:
    """Whether functions of such keys give the same numbers with and without `vmap`."""
    return generator_of(key) in _VMAP_INVARIANT


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(key, ...)`, with the same random numbers with and without `vmap`.

    If the generator is not vmap-invariant, `vmap` becomes a loop over the keys.
    """

    @jax.custom_batching.sequential_vmap
    def sequential(*arguments):  # of named arguments JAX would trace the defaults too
        return function(*arguments)

    def call(key, *arguments):
        if is_vmap_invariant(key):
            return function(key, *arguments)
        return sequential(key, *arguments)

    return call


def is_key(leaf: Any) -> bool:
    """Whether an array holds typed keys, as `jax.random.key` returns."""
    is_array = isinstance(leaf, jax.Array)
    return is_array and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def as_key_data(tree: Any) -> Any:
    """A pytree with the data of its typed keys, which NumPy and files can hold."""
    return jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree
    )


def with_keys(tree: Any, like: Any) -> Any:
    """A pytree from `as_key_data`, with keys again where `like` has them."""

    def restored(leaf, example):
        if not is_key(example):
            return leaf
        return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(example))

    return jax.tree.map(restored, tree, like)
