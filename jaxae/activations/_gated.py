"""The gated activation: one path decides which latents are active, the other how much.

References:
  Rajamanoharan et al., Improving dictionary learning with gated sparse autoencoders,
  2024.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxae.activations._base import SPARSE, Activation


class Gated(NamedTuple):
    """What the magnitude's path learns.

    Attributes:
      log_scale: `[H]`, the paper's r_mag.
      shift: `[H]`; the paper's b_mag is shift + exp(log_scale) b_enc.
    """

    log_scale: Float[Array, "H"]
    shift: Float[Array, "H"]


def _apply(a: Float[Array, "H"], log_scale, shift) -> Float[Array, "H"]:
    magnitude = _magnitude(a, log_scale, shift)
    return jnp.where((a > 0) & (magnitude > 0), magnitude, 0)


def _magnitude(a, log_scale, shift):
    return (jnp.exp(log_scale) * a + shift).astype(a.dtype)


def _vjp(a, z, dz, log_scale, shift):
    del a, shift
    return jnp.where(z != 0, jnp.exp(log_scale).astype(z.dtype) * dz, 0)


def _vjp_theta(a, z, dz, log_scale, shift) -> Gated:
    del shift
    d_shift = jnp.where(z != 0, dz, 0).astype(log_scale.dtype)
    return Gated(d_shift * jnp.exp(log_scale) * a, d_shift)


def _init(latent_dim: int) -> Gated:
    return Gated(jnp.zeros(latent_dim), jnp.zeros(latent_dim))


# z = 1[a > 0] relu(exp(log_scale) a + shift). The gate passes no gradient: gated_l1 and
# gated_aux, two penalties, train it.
gated = Activation(
    "gated",
    apply=_apply,
    vjp=_vjp,
    init=_init,
    vjp_theta=_vjp_theta,
    output_range=(0.0, math.inf),
    is_sparse=True,
)
SPARSE["gated"] = gated
