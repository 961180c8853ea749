"""What every library does in this suite, without any of them.

The model is x_hat = c + W* z, z = topk(b + W (x - c)): untied, with the squared error.
All start from the same parameters, rows of norm 1 with W* = W^T and biases of 0, and
take the same batches in the same order, again from the first when the rows are used up.
"""

from typing import NamedTuple

import numpy as np

NUM_FEATURES = 4096  # of the generator of the data
NUM_ACTIVE = 16  # features of one row


class Work(NamedTuple):
    """One size; each field is an option of every program.

    Attributes:
      latent_dim, k, input_dim: H, the number of active latents, and D.
      batch_size: rows of a step.
      num_steps: steps of one run. A run goes on from where the one before ended.
      num_batches: different batches.
      learning_rate: of Adam.
    """

    latent_dim: int
    k: int = 32
    input_dim: int = 768
    batch_size: int = 512
    num_steps: int = 8
    num_batches: int = 16
    learning_rate: float = 1e-3

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """The batches `[num_batches, B, D]` and as many other rows as one has.

        Each row is a sum of few features with positive coefficients, and noise.
        Feature j is chosen with a probability proportional to 1 / j. The rows are
        centered and their mean square norm is 1/4, so that no gradient has a norm above
        1, where some libraries clip it.
        """
        rng = np.random.default_rng(0)
        D, num_rows = self.input_dim, self.batch_size * (self.num_batches + 1)
        features = unit_rows(rng, NUM_FEATURES, D)
        chances = 1 / np.arange(1, NUM_FEATURES + 1)
        chosen = rng.choice(
            NUM_FEATURES, (num_rows, NUM_ACTIVE), p=chances / chances.sum()
        )
        sizes = rng.exponential(size=chosen.shape).astype(np.float32)
        X = 0.01 * rng.standard_normal((num_rows, D), dtype=np.float32)
        for column, size in zip(chosen.T, sizes.T, strict=True):
            X += size[:, None] * features[column]
        X -= X.mean(axis=0)
        X /= 2 * np.sqrt(np.mean(np.sum(X**2, axis=1)))
        batches = X.reshape(-1, self.batch_size, D)
        return batches[:-1], batches[-1]

    def weights(self) -> np.ndarray:
        """The initial W and the transpose of W*, `[H, D]`."""
        return unit_rows(np.random.default_rng(1), self.latent_dim, self.input_dim)


def unit_rows(rng, num_rows: int, num_columns: int) -> np.ndarray:
    """Random rows of norm 1."""
    rows = rng.standard_normal((num_rows, num_columns), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def fvu(X, X_hat) -> float:
    """Fraction of variance unexplained."""
    return float(np.sum((X - X_hat) ** 2) / np.sum((X - X.mean(axis=0)) ** 2))
