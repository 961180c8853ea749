"""What is looked at: functions of whole batches `[B, D]`; do not vmap them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxae.autoencoder import Autoencoder

AnyArray = Array | np.ndarray


def squared_error(
    x: Float[AnyArray, "B D"], x_hat: Float[AnyArray, "B D"]
) -> Float[Array, ""]:
    """Mean over examples of ||x_hat - x||^2: twice the lecture's half squared error."""
    return jnp.mean(jnp.sum((x_hat - x) ** 2, axis=-1))


def fvu(x: Float[AnyArray, "B D"], x_hat: Float[AnyArray, "B D"]) -> Float[Array, ""]:
    """Fraction of variance unexplained, sum ||x_hat - x||^2 / sum ||x - mean(x)||^2."""
    residual = jnp.sum((x_hat - x) ** 2)
    return residual / jnp.sum((x - jnp.mean(x, axis=0, keepdims=True)) ** 2)


def l0(z: Float[AnyArray, "B H"]) -> Float[Array, ""]:
    """Mean over examples of the number of latents that are not 0."""
    return jnp.mean(jnp.sum((z != 0).astype(jnp.float32), axis=-1))


def dead_fraction(z: Float[AnyArray, "B H"]) -> Float[Array, ""]:
    """Fraction of latents that are 0 on every example."""
    return jnp.mean(jnp.all(z == 0, axis=0).astype(jnp.float32))


def bits_per_dim(ae: Autoencoder, params, X) -> float:
    """-mean log2 p(x | x_hat) / D, in bits a column.

    Compare only like with like: a mass function's bits with a mass function's, and
    densities on data of one scale.

    Args:
      ae: the model; its observation must be a likelihood.
      params: its parameters.
      X: `[N, D]`, in the support of that likelihood.

    Raises:
      ValueError: for data outside the support (grey levels under a Bernoulli), or an
        observation that is not a likelihood.
    """
    log_probs = np.asarray(jax.vmap(ae.log_prob, in_axes=(None, 0))(params, X))
    impossible = np.flatnonzero(np.isneginf(log_probs))
    if impossible.size:
        raise ValueError(
            f"data must be in the support of {ae.observation}, but row {impossible[0]} "
            f"{f'and {impossible.size - 1} more ' if impossible.size > 1 else ''}"
            "cannot occur under it (grey levels have a loss but no bits: binarize)."
        )
    return float(-np.mean(log_probs) / (ae.input_dim * math.log(2)))
