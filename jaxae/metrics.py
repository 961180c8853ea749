"""What is looked at: functions of whole batches `[B, D]`; do not vmap them."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxae import _checks
from jaxae.autoencoder import Autoencoder

SATURATED_SLOPE = 0.01


def squared_error(x, x_hat) -> Float[Array, ""]:
    """Mean over examples of ||x_hat - x||^2: twice the lecture's half squared error.

    Args:
      x, x_hat: `[B, D]`.

    Raises:
      ValueError: if they are not batches of one shape.
    """
    _check_batches(x=x, x_hat=x_hat)
    return jnp.mean(jnp.sum((x_hat - x) ** 2, axis=-1))


def fvu(x, x_hat) -> Float[Array, ""]:
    """Fraction of variance unexplained, sum ||x_hat - x||^2 / sum ||x - mean(x)||^2.

    nan where every row is the same, so that there is no variance.

    Args:
      x, x_hat: `[B, D]`.

    Raises:
      ValueError: if they are not batches of one shape.
    """
    _check_batches(x=x, x_hat=x_hat)
    residual = jnp.sum((x_hat - x) ** 2)
    # About the first row, for the mean of equal numbers rounds.
    from_first = x - x[:1]
    variance = jnp.sum((from_first - jnp.mean(from_first, axis=0, keepdims=True)) ** 2)
    return jnp.where(variance == 0, jnp.nan, residual / variance)


def l0(z) -> Float[Array, ""]:
    """Mean over examples, of latents `[B, H]`, of the number that is not 0.

    Raises:
      ValueError: if z is not a batch.
    """
    _check_batches(z=z)
    return jnp.mean(jnp.sum((z != 0).astype(jnp.float32), axis=-1))


def dead_fraction(z) -> Float[Array, ""]:
    """Fraction of latents, `[B, H]`, that are dead: 0 on every example.

    Raises:
      ValueError: if z is not a batch.
    """
    return jnp.mean(is_dead(z).astype(jnp.float32))


def is_dead(z) -> Bool[Array, "H"]:
    """Which latents, `[B, H]`, are dead: 0 on every example.

    A latent that is only close to 0, as sigmoid latents are, is not dead.

    Raises:
      ValueError: if z is not a batch.
    """
    _check_batches(z=z)
    return jnp.all(jnp.asarray(z) == 0, axis=0)


def saturated_fraction(ae: Autoencoder, a) -> Float[Array, ""]:
    """Fraction of latents that learn nothing: |g'(a)| < 0.01 on every example.

    For sigmoid: z within about 0.01 of 0 or of 1, on whichever side; for relu: dead.

    Args:
      ae: the model; its activation must be elementwise.
      a: `[B, H]`, encoder pre-activations.

    Raises:
      ValueError: if a is not a batch, or the activation has no slope.
    """
    _check_batches(a=a)
    if ae.activation.slope is None:
        raise _checks.ArgumentError(
            "saturated_fraction",
            f"needs an activation with slope, but {ae.activation} has none",
            advice="use an elementwise one",
        )
    is_flat = is_saturated(ae, a, ae.activation.apply(a))
    return jnp.mean(jnp.all(is_flat, axis=0).astype(jnp.float32))


def is_saturated(ae: Autoencoder, a, z) -> Bool[Array, "B H"]:
    """Where |g'(a)| < 0.01, of a and z `[B, H]`; needs an activation with slope."""
    assert ae.activation.slope is not None  # refused by who calls
    slope = ae.activation.slope(a, z)
    slope = _checks.returned(f"activation {ae.activation}: slope", slope, jnp.shape(a))
    return jnp.abs(slope) < SATURATED_SLOPE


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
    return bits_of_nats(float(np.mean(log_probs)), ae.input_dim)


def bits_of_nats(log_prob: Any, input_dim: int) -> Any:
    """Bits a column, from the log p of an example of so many columns."""
    return -log_prob / (input_dim * math.log(2))


def _check_batches(**arrays) -> None:
    """Refuse what would broadcast into a number without meaning."""
    for name, array in arrays.items():
        _checks.refuse_masked(name, array)
    shapes = {name: jnp.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or any(
        len(shape) != 2 for shape in shapes.values()
    ):
        found = " and ".join(f"{name} {list(s)}" for name, s in shapes.items())
        raise ValueError(
            f"metrics take whole batches of one shape [B, D], got {found}."
        )
