"""Activations, the lecture's g and o, with their derivatives by hand.

Every function acts on the last axis and works unchanged on one example `[H]` or a
batch `[B, H]`. None of them has a custom rule, so that `jax.grad` of a model is an
independent check of the derivatives written here.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxae import _checks


class Activation(NamedTuple):
    """A differentiable function `z = g(a)` and its hand-derived derivatives.

    Attributes:
      name: how it is printed, saved, looked up and pickled.
      apply: `(a, *theta) -> z`.
      vjp: `(a, z, dz, *theta) -> da`, the cotangent of `a` from that of `z`.
      slope: `(a, z) -> g'(a)` where g is elementwise, else None.
      curvature: `(a, z) -> g''(a)` where g is elementwise, else None.
      init: `(latent_dim) -> theta`, a tuple or NamedTuple of arrays, if g is learned.
      vjp_theta: `(a, z, dz, *theta) -> dtheta`, a tuple like theta, for one example.
      init_gain: factor on Glorot's uniform limit for weights in front of this g.
      output_range: bounds of g; kl_sparsity needs latents between 0 and 1.
      apply_batch: `(A [B, H], theta, state, training) -> Z [B, H]`, for a g that
        depends on the other examples of a batch; objectives use it instead of apply.
      vjp_batch: `(A, Z, dZ, theta, state) -> dA [B, H]`, beside apply_batch; vjp of
        each example where None.
      init_state: `(latent_dim) ->` a pytree of arrays that g carries from step to step;
        () is its state where None.
      update_state: `(A, Z, theta, state) -> state` after a step.
      surrogate: names of what g learns whose vjp_theta is a straight-through estimator,
        not a derivative; gradcheck judges these leaves by autodiff.
    """

    name: str
    apply: Callable[..., Array]
    vjp: Callable[..., Array]
    slope: Callable[..., Array] | None = None
    curvature: Callable[..., Array] | None = None
    init: Callable[..., tuple] | None = None
    vjp_theta: Callable[..., tuple] | None = None
    init_gain: float = 1.0
    output_range: tuple[float, float] = (-math.inf, math.inf)
    apply_batch: Callable[..., Array] | None = None
    vjp_batch: Callable[..., Array] | None = None
    init_state: Callable[..., Any] | None = None
    update_state: Callable[..., Any] | None = None
    surrogate: tuple[str, ...] = ()

    def checked_apply(self, a, theta: tuple) -> Array:
        """apply on one example; raises unless z has the shape of a."""
        z = self.apply(a, *theta)
        return _checks.returned(f"activation {self}: apply", z, a.shape)

    def checked_apply_batch(self, A, theta: tuple, state, training: bool) -> Array:
        """apply_batch, or apply where None; raises unless Z has the shape of A."""
        if self.apply_batch is None:
            return jax.vmap(self.checked_apply, (0, None))(A, theta)
        Z = self.apply_batch(A, theta, state, training)
        return _checks.returned(f"activation {self}: apply_batch", Z, A.shape)

    def checked_vjp_batch(self, A, Z, dZ, theta: tuple, state) -> Array:
        """vjp_batch, or vjp where None; raises unless dA is like A."""
        if self.vjp_batch is None:
            return jax.vmap(self.checked_vjp, (0, 0, 0, None))(A, Z, dZ, theta)
        dA = self.vjp_batch(A, Z, dZ, theta, state)
        return _checks.returned_like(f"activation {self}: vjp_batch", dA, A)

    def checked_state(self, A, Z, theta: tuple, state) -> Any:
        """The state after a step; raises unless it is like the one before."""
        if self.update_state is None:
            return state
        what = f"activation {self}: update_state"
        return _checks.returned_state(
            what, self.update_state(A, Z, theta, state), state
        )

    def checked_vjp(self, a, z, dz, theta: tuple) -> Array:
        """vjp; raises unless it is like a."""
        da = self.vjp(a, z, dz, *theta)
        return _checks.returned_like(f"activation {self}: vjp", da, a)

    def checked_vjp_theta(self, a, z, dz, theta: tuple) -> tuple:
        """vjp_theta; raises unless it is like theta."""
        what = f"activation {self}: vjp_theta"
        return _checks.returned_by_theta(what, self.vjp_theta, (a, z, dz), theta)

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self):
        # By name if the name gives this object, so that it hits the same compilation
        # caches after unpickling.
        if CATALOGUE.get(self.name) is self:
            return get, (self.name,)
        return Activation, tuple(self)


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

CATALOGUE: dict[str, Activation] = {
    g.name: g for g in (sigmoid, tanh, relu, softplus, identity)
}


def get(name: str) -> Activation:
    """The activation of that name.

    Raises:
      ValueError: for an unknown name; the message lists the known ones.
    """
    return _checks.lookup("activation", CATALOGUE, name)
