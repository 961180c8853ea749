"""Elementwise activations: z_i = g(a_i), with g' and g'' by hand."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxae.activations._base import CATALOGUE, Activation


def elementwise(
    name: str,
    apply: Callable[..., Array],
    slope: Callable[..., Array],
    curvature: Callable[..., Array] | None = None,
    *,
    init_gain: float = 1.0,
    output_range: tuple[float, float] = (-math.inf, math.inf),
) -> Activation:
    """An elementwise activation: da_i = dz_i g'(a_i).

    Args:
      name: see `Activation`.
      apply: `a -> g(a)`.
      slope: `(a, z) -> g'(a)`.
      curvature: `(a, z) -> g''(a)`; only the contractive penalty's gradient needs it.
      init_gain, output_range: see `Activation`.
    """
    vjp = functools.partial(_elementwise_vjp, slope)
    return Activation(
        name,
        apply,
        vjp,
        slope,
        curvature,
        init_gain=init_gain,
        output_range=output_range,
    )


def _elementwise_vjp(slope, a, z, dz):
    return dz * slope(a, z)


def _sigmoid(a: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jax.nn.sigmoid(a)


def _sigmoid_slope(a, z):
    del a
    return z * (1 - z)  # the lecture's h_j (1 - h_j)


def _sigmoid_curvature(a, z):
    return _sigmoid_slope(a, z) * (1 - 2 * z)


def _tanh(a: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.tanh(a)


def _tanh_slope(a, z):
    del a
    return 1 - z**2


def _tanh_curvature(a, z):
    return -2 * z * _tanh_slope(a, z)


def _relu(a: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    # `where(a <= 0, ...)`: slope 0 at 0 under autodiff too, where `maximum` would give
    # 1/2, and a NaN passes through instead of becoming 0.
    return jnp.where(a <= 0, 0, a)


def _relu_slope(a, z):
    del z
    return jnp.where(a > 0, 1, 0).astype(a.dtype)


def softplus_of(a: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(1 + exp(a)) = max(a, 0) + log1p(exp(-|a|)), with no overflow.

    Written with `where` on the sign rather than `max` and `abs`, so that autodiff
    finds the right derivative of every order at a = 0 as well.
    """
    is_positive = a > 0
    log_term = jnp.log1p(jnp.exp(jnp.where(is_positive, -a, a)))
    return jnp.where(is_positive, a, 0) + log_term


def _softplus_slope(a, z):
    del z
    return _sigmoid(a)


def _softplus_curvature(a, z):
    del z
    return _sigmoid_slope(a, _sigmoid(a))


def _identity(a: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return a


def _one(a, z):
    del z
    return jnp.ones_like(a)


def _zero(a, z):
    del z
    return jnp.zeros_like(a)


# The gain 4: sigm'(0) = 1/4, see Glorot and Bengio, "Understanding the difficulty of
# training deep feedforward neural networks", 2010, and the Theano tutorials' limit
# 4 sqrt(6 / (fan_in + fan_out)) for sigmoid units.
sigmoid = elementwise(
    "sigmoid",
    _sigmoid,
    _sigmoid_slope,
    _sigmoid_curvature,
    init_gain=4.0,
    output_range=(0.0, 1.0),
)
tanh = elementwise(
    "tanh", _tanh, _tanh_slope, _tanh_curvature, output_range=(-1.0, 1.0)
)
relu = elementwise("relu", _relu, _relu_slope, _zero, output_range=(0.0, math.inf))
softplus = elementwise(
    "softplus",
    softplus_of,
    _softplus_slope,
    _softplus_curvature,
    output_range=(0.0, math.inf),
)
identity = elementwise("identity", _identity, _one, _zero)

CATALOGUE |= {g.name: g for g in (sigmoid, tanh, relu, softplus, identity)}
