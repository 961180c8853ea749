"""Corruptions of denoising autoencoders: pure functions (key, x, rate) -> x.

References:
  Vincent, Larochelle, Lajoie, Bengio and Manzagol, Stacked denoising autoencoders,
  JMLR 2010: masking, Gaussian and salt-and-pepper noise.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxae import _checks


class Corruption(NamedTuple):
    """A corruption of one example; calling it calls `apply`.

    Attributes:
      name: identifies the corruption in output, saved files and look-ups.
      apply: `(key, x [D], rate []) -> x [D]`; the key is consumed.
      max_rate: the largest valid rate; 1 for a probability.
    """

    name: str
    apply: Callable[..., Array]
    max_rate: float = 1.0

    def __call__(self, key, x, rate) -> Array:
        """The corrupted example, `(key, x [D], rate []) -> [D]`.

        Raises:
          ValueError: if `apply` changes the shape or the dtype of x.
        """
        value = self.apply(key, x, rate)
        if _checks.describe(value) != _checks.describe(x):
            raise _checks.ArgumentError(
                f"corruption {self}: apply",
                f"must return {_checks.describe(x)}, as x is",
                _checks.describe(value),
            )
        return value

    @property
    def rates(self) -> _checks.Range:
        """The valid rates."""
        limit = self.max_rate
        upper = "" if math.isinf(limit) else f" and at most {limit:g}"
        return _checks.Range(
            lambda rate: 0 <= rate <= limit, f"at least 0{upper} for {self}"
        )

    def __repr__(self) -> str:
        return self.name


# Noise is drawn in float32, whatever the dtype of x and whether x64 is enabled, so that
# a key determines the noise and gradients can be compared across dtypes.


def _bernoulli(key, shape: tuple[int, ...], probability) -> Bool[Array, "D"]:
    return jax.random.uniform(key, shape, jnp.float32) < probability


def _masking(key, x: Float[Array, "D"], rate) -> Float[Array, "D"]:
    return jnp.where(_bernoulli(key, x.shape, rate), 0, x)


def _gaussian(key, x: Float[Array, "D"], rate) -> Float[Array, "D"]:
    noise = jax.random.normal(key, x.shape, jnp.float32)
    return x + (rate * noise).astype(x.dtype)


def _salt_and_pepper(key, x: Float[Array, "D"], rate) -> Float[Array, "D"]:
    mask_key, value_key = jax.random.split(key)
    values = _bernoulli(value_key, x.shape, 0.5).astype(x.dtype)
    return jnp.where(_bernoulli(mask_key, x.shape, rate), values, x)


# Sets each input to 0 with probability rate.
masking = Corruption("masking", _masking)
# Adds N(0, rate^2) to each input.
gaussian = Corruption("gaussian", _gaussian, max_rate=math.inf)
# Sets each input to 0 or 1, equally likely, with probability rate.
salt_and_pepper = Corruption("salt_and_pepper", _salt_and_pepper)

CATALOGUE: dict[str, Corruption] = {
    c.name: c for c in (masking, gaussian, salt_and_pepper)
}


def get(name: str) -> Corruption:
    """The corruption of that name.

    Raises:
      ValueError: for an unknown name; the message lists the known ones.
    """
    return _checks.lookup("corruption", CATALOGUE, name)
