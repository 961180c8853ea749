"""Metrics: functions of a batch `[B, D]`, not of an example: do not vmap them.

Integers and booleans are cast to float32 first.
"""

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
    """Mean over examples of ||x_hat - x||^2, for x and x_hat `[B, D]`.

    Twice the squared error of Larochelle's lecture (2012), which has a factor 1/2.

    Raises:
      ValueError: if they are not batches of one shape.
    """
    x, x_hat = _as_batches(x=x, x_hat=x_hat)
    return jnp.mean(jnp.sum((x_hat - x) ** 2, axis=-1))


def fvu(x, x_hat) -> Float[Array, ""]:
    """Fraction of variance unexplained, sum ||x_hat - x||^2 / sum ||x - mean(x)||^2.

    For x and x_hat `[B, D]`; nan if all rows of x are equal, whose variance is 0.

    Raises:
      ValueError: if they are not batches of one shape.
    """
    x, x_hat = _as_batches(x=x, x_hat=x_hat)
    residual = jnp.sum((x_hat - x) ** 2)
    # Subtract the first row: the mean of a constant column has a rounding error, the
    # mean of zeros has none.
    from_first = x - x[:1]
    variance = jnp.sum((from_first - jnp.mean(from_first, axis=0, keepdims=True)) ** 2)
    return jnp.where(variance == 0, jnp.nan, residual / variance)


def l0(z) -> Float[Array, ""]:
    """Mean over examples of the number of latents z `[B, H]` that are not 0.

    Raises:
      ValueError: if z is not a batch.
    """
    (z,) = _as_batches(z=z)
    return jnp.mean(jnp.sum((z != 0).astype(jnp.float32), axis=-1))


def dead_fraction(z) -> Float[Array, ""]:
    """Fraction of the latents z `[B, H]` that are dead (see `is_dead`).

    Raises:
      ValueError: if z is not a batch.
    """
    return jnp.mean(is_dead(z).astype(jnp.float32))


def is_dead(z) -> Bool[Array, "H"]:
    """Which of the latents z `[B, H]` are dead: 0 on every example of the batch.

    A latent that is only close to 0, as sigmoid latents may be, is not dead.

    Raises:
      ValueError: if z is not a batch.
    """
    (z,) = _as_batches(z=z)
    return jnp.all(z == 0, axis=0)


def saturated_fraction(ae: Autoencoder, a) -> Float[Array, ""]:
    """Fraction of latents that are saturated: |g'(a)| < 0.01 on every example.

    A saturated sigmoid latent is within about 0.01 of 0 or of 1 on each example. A
    saturated relu latent is dead.

    Args:
      ae: the model; its activation must be elementwise.
      a: `[B, H]`, encoder pre-activations.

    Raises:
      ValueError: if a is not a batch, or the activation has no slope.
    """
    (a,) = _as_batches(a=a)
    if ae.activation.slope is None:
        raise _checks.ArgumentError(
            "saturated_fraction",
            f"needs an activation with slope, but {ae.activation} has none",
            advice="use an elementwise one",
        )
    mask = is_saturated(ae, a, ae.activation.apply(a))
    return jnp.mean(jnp.all(mask, axis=0).astype(jnp.float32))


def is_saturated(ae: Autoencoder, a, z) -> Bool[Array, "B H"]:
    """|g'(a)| < 0.01, for a and z `[B, H]` and an activation with a slope."""
    assert ae.activation.slope is not None  # checked by the callers
    slope = ae.activation.slope(a, z)
    slope = _checks.returned(f"activation {ae.activation}: slope", slope, jnp.shape(a))
    return jnp.abs(slope) < SATURATED_SLOPE


def bits_per_dim(ae: Autoencoder, params, X) -> float:
    """-mean log2 p(x | x_hat) / O, in bits per column of the O that are predicted.

    Compare bits per dimension only between discrete likelihoods, or between densities
    on data of the same scale.

    Args:
      ae: the model; its observation must be a likelihood.
      params: its parameters.
      X: `[N, D]`, in the support of that likelihood, or a pair (inputs, targets).

    Raises:
      ValueError: if the data are outside the support (such as grey levels under a
        Bernoulli), or the observation is not a likelihood.
    """
    data = X if isinstance(X, tuple) else (X,)
    in_axes = (None, *(0 for _ in data))
    log_probs = jax.vmap(ae.log_prob, in_axes)(params, *data)
    losses = jax.vmap(ae.loss, in_axes)(params, *data)
    outside = np.flatnonzero(is_outside_support(log_probs, losses))
    if outside.size:
        others = f"and {outside.size - 1} more " if outside.size > 1 else ""
        raise _checks.ArgumentError(
            "data",
            f"must be in the support of {ae.observation}, but row {outside[0]} "
            f"{others}cannot occur under it",
            advice="binarize grey levels, which have a loss but no bits",
        )
    return bits_of_nats(float(np.mean(np.asarray(log_probs))), ae.output_dim)


def is_outside_support(log_prob, loss) -> Bool[Array, "*batch"]:
    """Whether x is outside the support, by its log-probability and its loss."""
    # If the loss is infinite as well, the model diverged, and x may be possible.
    return jnp.isneginf(log_prob) & jnp.isfinite(loss)


def bits_of_nats(log_prob: Any, output_dim: int) -> Any:
    """Bits per column, from the log p of an example in nats."""
    return -log_prob / (output_dim * math.log(2))


def _as_batches(**arrays) -> list[Array]:
    """Arrays of one shape `[B, D]` as floats; unsigned integers could wrap around."""
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    is_batch = all(len(shape) == 2 for shape in shapes.values())
    if not is_batch or len(set(shapes.values())) > 1:
        description = " and ".join(f"{name} {list(s)}" for name, s in shapes.items())
        raise _checks.ArgumentError(
            "metrics", "take whole batches of one shape [B, D]", description
        )
    return [_as_floats(name, array) for name, array in arrays.items()]


def _as_floats(name: str, array: Any) -> Array:
    array = _checks.as_array(name, array)
    if isinstance(array, list | tuple):
        array = np.asarray(array)
    is_float = jnp.issubdtype(array.dtype, jnp.floating)
    return jnp.asarray(array, None if is_float else jnp.float32)
