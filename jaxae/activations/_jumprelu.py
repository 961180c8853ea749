"""JumpReLU: z = a where a is above a learned threshold, else 0.

References:
  Rajamanoharan et al., Jumping ahead: improving reconstruction fidelity with JumpReLU
  sparse autoencoders, 2024.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxae import _checks
from jaxae.activations._base import SPARSE, Activation


class Threshold(NamedTuple):
    """What jumprelu learns.

    Attributes:
      threshold: `[H]`, in units of jumprelu's `scale`; below 0 it counts as 0.
    """

    threshold: Float[Array, "H"]


def jumprelu(bandwidth=1e-3, threshold=1e-3, scale=1.0) -> Activation:
    """z = a where a > theta, else 0; theta_j = scale * threshold_j is learned.

    The derivatives by theta are straight-through estimators, with K the box on
    [-1/2, 1/2] and eps = scale * bandwidth:

        dz/dtheta = -(theta / eps) K((a - theta) / eps)
        d 1[a > theta] / dtheta = -(1 / eps) K((a - theta) / eps)

    The threshold is learned in units of the scale, by itself and not as a logarithm:
    Adam, whose steps have a fixed size, then moves it as far at any scale of the
    pre-activations. It is kept in float32 at least, because a step of Adam is smaller
    than half a unit in the last place of a bfloat16 threshold.

    Args:
      bandwidth: the width of the box, in units of the scale. hparams["bandwidth"]
        replaces it.
      threshold: the initial value, in units of the scale.
      scale: the size of typical pre-activations, such as the root mean square of the
        data.

    Raises:
      ValueError: for a number that is not finite and above 0, or a threshold below 0.
    """
    return _jumprelu(
        _checks.number("bandwidth", bandwidth, _checks.POSITIVE),
        _checks.number("threshold", threshold, _checks.AT_LEAST_0),
        _checks.number("scale", scale, _checks.POSITIVE),
    )


@functools.cache
def _jumprelu(bandwidth: float, threshold: float, scale: float) -> Activation:
    name = f"jumprelu(bandwidth={bandwidth}, threshold={threshold}, scale={scale})"
    return Activation(
        name,
        apply=functools.partial(_apply, bandwidth * scale, scale),
        vjp=functools.partial(_vjp, scale),
        init=functools.partial(_init, threshold),
        vjp_theta=functools.partial(_vjp_theta, bandwidth * scale, scale),
        output_range=(0.0, math.inf),
        surrogate=("threshold",),
        is_sparse=True,
        hparams=("bandwidth",),
        with_hparams=functools.partial(_with_bandwidth, scale),
        check_hparams=_check_bandwidth,
        gate=functools.partial(_gate, bandwidth * scale, scale),
        gate_vjp=functools.partial(_gate_vjp, bandwidth * scale, scale),
        threshold=functools.partial(_theta, scale),
        threshold_vjp=functools.partial(_theta_vjp, scale),
    )


def _with_bandwidth(scale: float, g: Activation, hparams) -> Activation:
    eps = hparams["bandwidth"] * scale
    return g._replace(
        apply=functools.partial(_apply, eps, scale),
        vjp_theta=functools.partial(_vjp_theta, eps, scale),
        gate=functools.partial(_gate, eps, scale),
        gate_vjp=functools.partial(_gate_vjp, eps, scale),
    )


def _check_bandwidth(g: Activation, hparams) -> None:
    del g
    _checks.POSITIVE.check("bandwidth", hparams)


def _init(threshold: float, latent_dim: int) -> Threshold:
    return Threshold(jnp.full(latent_dim, threshold))


def _theta(scale: float, threshold):
    """scale max(threshold, 0)."""
    return scale * jnp.where(threshold > 0, threshold, 0)


def _theta_vjp(scale: float, dtheta, threshold) -> Threshold:
    dthreshold = jnp.where(threshold > 0, scale * dtheta, 0)
    return Threshold(dthreshold.astype(threshold.dtype))


def _theta_like(a, scale: float, threshold):
    """theta in the dtype of a."""
    return _theta(scale, threshold).astype(a.dtype)


def _box(eps, a, theta):
    """K((a - theta) / eps) / eps, the derivative that stands for a step's."""
    return (jnp.where(jnp.abs(a - theta) < eps / 2, 1, 0) / eps).astype(a.dtype)


def _straight_through(scale: float, threshold, derivative):
    """0, whose derivative by theta is `derivative`, for autodiff."""
    # Below 0 the threshold has derivatives as if it were not clipped, so that a penalty
    # on the number of active latents can raise it again.
    theta = scale * threshold.astype(derivative.dtype)
    return jax.lax.stop_gradient(derivative) * (theta - jax.lax.stop_gradient(theta))


def _apply(eps, scale, a: Float[Array, "H"], threshold) -> Float[Array, "H"]:
    theta = jax.lax.stop_gradient(_theta_like(a, scale, threshold))
    derivative = -theta * _box(eps, a, theta)
    return jnp.where(a > theta, a, 0) + _straight_through(scale, threshold, derivative)


def _vjp(scale, a, z, dz, threshold):
    del z
    return jnp.where(a > _theta_like(a, scale, threshold), dz, 0)


def _vjp_theta(eps, scale, a, z, dz, threshold) -> Threshold:
    del z
    theta = _theta_like(a, scale, threshold)
    d_theta = -theta * _box(eps, a, theta) * dz
    return Threshold((scale * d_theta).astype(threshold.dtype))


def _gate(eps, scale, a: Float[Array, "H"], threshold) -> Float[Array, "H"]:
    theta = jax.lax.stop_gradient(_theta_like(a, scale, threshold))
    is_open = jnp.where(a > theta, 1, 0).astype(a.dtype)
    return is_open + _straight_through(scale, threshold, -_box(eps, a, theta))


def _gate_vjp(eps, scale, a, dgate, threshold) -> tuple[Array, Threshold]:
    d_theta = -_box(eps, a, _theta_like(a, scale, threshold)) * dgate
    return jnp.zeros_like(a), Threshold((scale * d_theta).astype(threshold.dtype))


SPARSE["jumprelu"] = jumprelu
