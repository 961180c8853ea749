"""Denoising noise: pure functions (key, x, rate) -> x of one example.

References:
  Vincent, Larochelle, Lajoie, Bengio and Manzagol, Stacked denoising autoencoders,
  JMLR 2010: masking, Gaussian and salt-and-pepper noise.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxae import _checks


class Corruption(NamedTuple):
    """A named noise; calling it calls `apply`.

    Attributes:
      name: how it is printed, saved and looked up.
      apply: `(key, x [D], rate []) -> x [D]`; the key is consumed.
    """

    name: str
    apply: Callable[..., Array]

    def __call__(self, key, x, rate) -> Array:
        """The corrupted example, `(key, x [D], rate []) -> [D]`."""
        return self.apply(key, x, rate)

    def __repr__(self) -> str:
        return self.name


def _masking(key, x: Float[Array, "D"], rate) -> Float[Array, "D"]:
    return jnp.where(jax.random.uniform(key, x.shape) < rate, 0, x)


def _gaussian(key, x: Float[Array, "D"], rate) -> Float[Array, "D"]:
    noise = jax.random.normal(key, x.shape, x.dtype)
    return x + jnp.asarray(rate, x.dtype) * noise


def _salt_and_pepper(key, x: Float[Array, "D"], rate) -> Float[Array, "D"]:
    where_key, value_key = jax.random.split(key)
    is_hit = jax.random.uniform(where_key, x.shape) < rate
    extreme = jax.random.bernoulli(value_key, shape=x.shape).astype(x.dtype)
    return jnp.where(is_hit, extreme, x)


masking = Corruption("masking", _masking)  # each input is 0 with probability rate
gaussian = Corruption("gaussian", _gaussian)  # adds N(0, rate^2) to each input
salt_and_pepper = Corruption("salt_and_pepper", _salt_and_pepper)  # 0 or 1, likewise

CATALOGUE: dict[str, Corruption] = {
    c.name: c for c in (masking, gaussian, salt_and_pepper)
}


def get(name: str) -> Corruption:
    """The corruption of that name.

    Raises:
      ValueError: for an unknown name; the message lists the known ones.
    """
    return _checks.lookup("corruption", CATALOGUE, name)
