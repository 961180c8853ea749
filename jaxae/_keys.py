"""Generators of random keys, and functions of keys under vmap."""

from collections.abc import Callable
from typing import Any

import jax

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
