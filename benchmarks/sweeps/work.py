"""What every library does in this suite, without any of them.

Every lane is a tied sigmoid autoencoder with Bernoulli cross-entropy, trained by Adam
on batches in a new order each epoch, with the mean loss of each epoch logged. All lanes
start from the same parameters. A lane has its own learning rate; lanes of one seed
share the order of the rows.
"""

import itertools
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Work(NamedTuple):
    """One size and its lanes; each field is an option of every program.

    Attributes:
      input_dim, latent_dim: D and H.
      batch_size, num_rows, num_epochs: of training.
      num_rates, num_seeds: lanes are all pairs of a learning rate and a seed.
    """

    input_dim: int
    latent_dim: int
    batch_size: int
    num_rows: int
    num_epochs: int
    num_rates: int
    num_seeds: int

    @property
    def rates(self) -> list[float]:
        """The learning rates of the lanes of one seed."""
        return np.geomspace(1e-3, 1e-2, self.num_rates).tolist()

    @property
    def lanes(self) -> list[tuple[float, int]]:
        """(learning rate, seed) of each lane."""
        return list(itertools.product(self.rates, range(self.num_seeds)))

    @property
    def num_steps(self) -> int:
        """All steps of all lanes."""
        return len(self.lanes) * self.num_epochs * (self.num_rows // self.batch_size)

    def data(self) -> np.ndarray:
        """`[N, D]`, uniform in [0, 1]."""
        shape = self.num_rows, self.input_dim
        return np.random.default_rng(0).random(shape, dtype=np.float32)

    def params(self) -> list[np.ndarray]:
        """W `[H, D]`, uniform as Glorot and Bengio (2010), and biases of 0."""
        limit = (6 / (self.input_dim + self.latent_dim)) ** 0.5
        shape = self.latent_dim, self.input_dim
        W = np.random.default_rng(1).uniform(-limit, limit, shape)
        biases = np.zeros(self.latent_dim), np.zeros(self.input_dim)
        return [leaf.astype(np.float32) for leaf in (W, *biases)]


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def fastest(settings: list[tuple], trial: Callable, num_trials: int = 6) -> tuple:
    """The setting with the least median time of `trial(*setting)`.

    The first trial of each is a warm-up. The median, because torch on several threads
    is sometimes many times slower if another process uses a core.
    """
    times: dict[tuple, list[float]] = {setting: [] for setting in settings}
    for _ in range(num_trials):
        for setting, seconds in times.items():
            start = time.perf_counter()
            trial(*setting)
            seconds.append(time.perf_counter() - start)
    return min(times, key=lambda setting: statistics.median(times[setting][1:]))
