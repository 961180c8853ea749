"""Sparse latents as codes: the few values of each example, and their latents.

Each function equals one on dense latents `[B, H]`, and makes no array of that size. The
latents may be split into levels, consecutive intervals that end at `sizes`; ordinary
latents are one level, `sizes = (H,)`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Examples whose rows are gathered at once. On a CPU, the rows of a few examples stay in
# the cache; a gather for all examples was measured to be 10 times slower there.
_CPU_EXAMPLES, _EXAMPLES = 16, 256


class Codes(NamedTuple):
    """Latents z with z_b[indices_bk] = values_bk, and 0 elsewhere.

    Attributes:
      values: `[B, k]`; may be 0.
      indices: `[B, k]`, of latents. Values with the same index add up.
    """

    values: Float[Array, "B k"]
    indices: Int[Array, "B k"]


def dense(codes: Codes, latent_dim: int) -> Float[Array, "B H"]:
    """The latents as an array."""
    examples = jnp.arange(len(codes.values))[:, None]
    zeros = jnp.zeros((len(codes.values), latent_dim), codes.values.dtype)
    return zeros.at[examples, codes.indices].add(codes.values)


def concatenate(left: Codes, right: Codes) -> Codes:
    """The codes of the sum of two latents."""
    return Codes(
        *(jnp.concatenate(pair, axis=1) for pair in zip(left, right, strict=True))
    )


def sum_of_rows(codes: Codes, latent_dim: int) -> Float[Array, "H"]:
    """sum_b z_b."""
    zeros = jnp.zeros(latent_dim, codes.values.dtype)
    return zeros.at[codes.indices.ravel()].add(codes.values.ravel())


def decode(codes: Codes, W, sizes: tuple[int, ...]) -> Float[Array, "B M O"]:
    """sum_j z_bj W_j over the latents j of each level, for W `[H, D]`."""
    levels = _levels(codes.indices, sizes)

    def of_example(values, indices, levels):
        is_of_level = levels[None, :] == jnp.arange(len(sizes))[:, None]
        weights = jnp.where(is_of_level, values[None, :], 0).astype(W.dtype)
        return jnp.matmul(weights, W[indices], preferred_element_type=values.dtype)

    return _map_examples(of_example, codes.values, codes.indices, levels)


def project(V, W, indices, sizes: tuple[int, ...]) -> Float[Array, "B k"]:
    """W_j . V_bm for each index j, m its level; V `[B, M, O]`, W `[H, D]`."""

    def of_example(V, indices, levels):
        rows = W[indices]
        if len(sizes) == 1:
            return jnp.matmul(
                rows, V[0].astype(W.dtype), preferred_element_type=V.dtype
            )
        products = jnp.matmul(rows, V.astype(W.dtype).T, preferred_element_type=V.dtype)
        return jnp.take_along_axis(products, levels[:, None], axis=1)[:, 0]

    return _map_examples(of_example, V, indices, _levels(indices, sizes))


def sum_of_outer(codes: Codes, V, W, sizes: tuple[int, ...]) -> Float[Array, "H D"]:
    """sum_b z_bj V_bm for each latent j, m its level; V `[B, M, O]`.

    As the gradient of W `[H, D]`: the factors are rounded to W's dtype, and the sum has
    that of V.
    """
    levels = _levels(codes.indices, sizes)
    factors = V.astype(W.dtype).astype(V.dtype)
    examples = jnp.arange(len(V))

    def add_entry(total, entry):
        values, indices, levels = entry
        values = values.astype(W.dtype).astype(V.dtype)
        of_level = factors[:, 0] if len(sizes) == 1 else factors[examples, levels]
        return total.at[indices].add(values[:, None] * of_level), None

    entries = codes.values.T, codes.indices.T, levels.T
    # XLA shares constant zeros between the sums of a step, and copies them for each. A
    # zero that depends on the indices is written in place: on two CPU cores, two sums
    # of 65,536 x 768 then take 2/3 of the time.
    zero = jnp.min(codes.indices, initial=0).astype(V.dtype)
    zeros = jnp.full((W.shape[0], V.shape[-1]), zero)
    return jax.lax.scan(add_entry, zeros, entries)[0]


def _levels(indices, sizes: tuple[int, ...]) -> Int[Array, "B k"]:
    ends = jnp.asarray(sizes[:-1], indices.dtype)
    return jnp.sum(indices[..., None] >= ends[None, None], axis=-1, dtype=jnp.int32)


def _map_examples(function: Callable[..., Any], *arrays):
    """vmap, of few examples at once."""

    def in_blocks(size, *arrays):
        return jax.lax.map(lambda one: function(*one), arrays, batch_size=size)

    return jax.lax.platform_dependent(
        *arrays,
        cpu=functools.partial(in_blocks, _CPU_EXAMPLES),
        default=functools.partial(in_blocks, _EXAMPLES),
    )
