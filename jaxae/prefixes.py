"""Nested prefixes of the latents, each decoded by itself (Matryoshka).

With prefixes that end at m_1 < ... < m_M = H, eta_m = b_dec + sum_{j < m} z_j W_dec,j.
The latents between two ends are a level, and eta of a prefix is the sum of the
contributions of its levels. Ordinary latents are one level, `sizes = (H,)`.

References:
  Bussmann, Nabeshima, Karvonen and Nanda, Learning multi-level features with Matryoshka
  sparse autoencoders, 2025.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxae.autoencoder.model import product

Sizes = tuple[int, ...]


def contributions(W_dec, Z, sizes: Sizes, dtype) -> Float[Array, "B M O"]:
    """sum_j z_bj W_dec,j over the latents j of each level."""

    def of_level(start, end):
        W = W_dec[start:end].T
        return jax.vmap(functools.partial(product, W, dtype=dtype))(Z[:, start:end])

    return jnp.stack([of_level(*ends) for ends in _intervals(sizes)], axis=1)


def etas(contributions, first, is_cut: bool) -> Float[Array, "B M O"]:
    """The decoder pre-activations of each prefix.

    Args:
      contributions: `[B, M, O]`, of each level.
      first: `[B, O]`, what is added to the first level: b_dec and a skip connection.
      is_cut: whether the loss of a prefix trains its last level only: the earlier ones
        are then held fixed in its gradient.
    """
    total, of_prefixes = first, []
    for level in range(contributions.shape[1]):
        total = contributions[:, level] + total
        of_prefixes.append(total)
        total = jax.lax.stop_gradient(total) if is_cut else total
    return jnp.stack(of_prefixes, axis=1)


def d_contributions(d_etas, is_cut: bool) -> Float[Array, "B M O"]:
    """The gradient by each level's contribution; that of the first is by b_dec too.

    d_level = sum of d_eta over the prefixes that contain the level: a reversed
    cumulative sum, or d_eta itself where gradients between levels are cut.
    """
    if is_cut or d_etas.shape[1] == 1:
        return d_etas
    return jnp.flip(jnp.cumsum(jnp.flip(d_etas, axis=1), axis=1), axis=1)


def d_latents(W_dec, d_levels, sizes: Sizes, dtype) -> Float[Array, "B H"]:
    """d_z_bj = W_dec,j . d_level_bm, m the level of j."""

    def of_level(level, start, end):
        decoder = functools.partial(product, W_dec[start:end], dtype=dtype)
        return jax.vmap(decoder)(d_levels[:, level])

    intervals = enumerate(_intervals(sizes))
    return jnp.concatenate([of_level(m, *ends) for m, ends in intervals], axis=1)


def d_decoder(W_dec, Z, d_levels, sizes: Sizes) -> Float[Array, "H O"]:
    """dW_dec,j = sum_b z_bj d_level_bm, m the level of j."""
    intervals = enumerate(_intervals(sizes))
    return jnp.concatenate(
        [
            sum_of_outer(W_dec, Z[:, start:end], d_levels[:, m])
            for m, (start, end) in intervals
        ]
    )


def sum_of_outer(W, left, right) -> Float[Array, "H D"]:
    """sum_b left_b right_b^T of factors cast to W's dtype; the sum keeps left's."""
    dtype, left, right = left.dtype, left.astype(W.dtype), right.astype(W.dtype)
    return jnp.einsum("bh,bd->hd", left, right, preferred_element_type=dtype)


def _intervals(sizes: Sizes) -> list[tuple[int, int]]:
    return list(zip((0, *sizes[:-1]), sizes, strict=True))
