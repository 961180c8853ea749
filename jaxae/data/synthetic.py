"""Synthetic data drawn batch by batch: pure sources (key, hparams) -> batch."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxae import _checks

DENSITY = "density"


def sparse_features(num_features, batch_size):
    """Sparse features: x_i ~ U(0, 1) with probability `density`, otherwise x_i = 0.

    All features of all examples are independent. The density is the traced number
    hparams["density"], which a sweep may vary. One key draws the same values for every
    density; a larger density sets fewer of them to 0.

    Args:
      num_features: D.
      batch_size: B.

    Returns:
      A source `(key, hparams) -> [B, D]` in float32, one object for the same sizes.

    Raises:
      ValueError: if a size is below 1.

    Example:
      jaxae.train(objective, jaxae.data.sparse_features(20, 1024), hparams={"density":
      0.05, ...}, key=key, config=jaxae.TrainConfig(steps_per_epoch=100))

    References:
      Elhage et al., Toy Models of Superposition, 2022,
      https://transformer-circuits.pub/2022/toy_model: there S = 1 - density.
    """
    return _sparse_features(
        _checks.positive_int("num_features", num_features),
        _checks.positive_int("batch_size", batch_size),
    )


@dataclass(frozen=True, repr=False)
class _SparseFeatures:
    """The source, a record so that it has a repr and can be pickled."""

    num_features: int
    batch_size: int

    def __call__(self, key, hparams: Mapping[str, Any]) -> Float[Array, "B D"]:
        _checks.prng_key(key)
        shape = self.batch_size, self.num_features
        presence_key, value_key = jax.random.split(key)
        # In float32, as for corruptions, so that a key determines the batch.
        u = jax.random.uniform(presence_key, shape, jnp.float32)
        values = jax.random.uniform(value_key, shape, jnp.float32)
        return jnp.where(u < hparams[DENSITY], values, 0)

    def check_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Check the range of the density, which must not be traced."""
        words = f"above 0 and at most 1 for {self!r}"
        _checks.Range(lambda x: 0 < x <= 1, words).check(DENSITY, hparams)

    @property
    def name(self) -> str:
        return f"sparse_features({self.num_features}, {self.batch_size})"

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self):
        return sparse_features, (self.num_features, self.batch_size)


_sparse_features = functools.cache(_SparseFeatures)
