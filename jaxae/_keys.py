"""Random keys: which generator they belong to, and how functions of them are mapped."""

from collections.abc import Callable
from typing import Any

import jax

# Every other generator counts as one that is not. JAX documents that "rbg" and
# "unsafe_rbg" are not: under vmap they draw for all keys from the first of them
# (https://github.com/jax-ml/jax/issues/34497).
_VMAP_INVARIANT = ("threefry2x32",)


def generator_of(key) -> str:
    """JAX's name of a key's generator, such as "threefry2x32" or "rbg"."""
    return str(jax.random.key_impl(key))


def is_vmap_invariant(key) -> bool:
    """Whether a function of such keys draws the same under `vmap` as key by key."""
    return generator_of(key) in _VMAP_INVARIANT


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(key, ...)`, which draws the same under `vmap` as key by key.

    For a generator that is not vmap-invariant, `vmap` becomes a loop over the keys.
    """

    @jax.custom_batching.sequential_vmap
    def looped(*arguments):  # JAX would trace the defaults of named ones too
        return function(*arguments)

    def called(key, *arguments):
        chosen = function if is_vmap_invariant(key) else looped
        return chosen(key, *arguments)

    return called
