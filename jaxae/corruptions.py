"""Denoising noise: pure functions (key, x, rate) -> x of one example.

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
    """A named noise; calling it calls `apply`.

    Attributes:
      name: how it is printed, saved and looked up.
      apply: `(key, x [D], rate []) -> x [D]`; the key is consumed.
      max_rate: the largest rate that has a meaning; 1 for a probability.
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
            raise ValueError(
                f"corruption {self}: apply must return {_checks.describe(x)}, as x is, "
                f"got {_checks.describe(value)}."
            )
        return value

    @property
    def rates(self) -> _checks.Range:
        """The rates that have a meaning."""
        largest = self.max_rate
        upper = "" if math.isinf(largest) else f" and at most {largest:g}"
        return _checks.Range(
            lambda rate: 0 <= rate <= largest, f"at least 0{upper} for {self}"
        )

    def __repr__(self) -> str:
        return self.name


# Drawn in float32 whatever x is and whether x64 is on or off, so that one key means one
# noise: a gradient can be compared across dtypes.


def _chance(key, shape: tuple[int, ...], probability) -> Bool[Array, "D"]:
    return jax.random.uniform(key, shape, jnp.float32) < probability


def _masking(key, x: Float[Array, "D"], rate) -> Float[Array, "D"]:
    return jnp.where(_chance(key, x.shape, rate), 0, x)


def _gaussian(key, x: Float[Array, "D"], rate) -> Float[Array, "D"]:
    noise = jax.random.normal(key, x.shape, jnp.float32)
    return x + (rate * noise).astype(x.dtype)


def _salt_and_pepper(key, x: Float[Array, "D"], rate) -> Float[Array, "D"]:
    where_key, value_key = jax.random.split(key)
    extreme = _chance(value_key, x.shape, 0.5).astype(x.dtype)
    return jnp.where(_chance(where_key, x.shape, rate), extreme, x)


masking = Corruption("masking", _masking)  # each input is 0 with probability rate
# Adds N(0, rate^2) to each input.
gaussian = Corruption("gaussian", _gaussian, max_rate=math.inf)
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
