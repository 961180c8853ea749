"""What every library does in this suite, without any of them.

The model is x_hat = o(c + W*^T h), h = sigm(b + W x): sigmoid latents, and either a
Bernoulli cross-entropy (tied, W* = W) or half the squared error (untied). All start
from the same parameters. Every epoch takes the batches of a random order of the rows.
"""

from typing import NamedTuple

import numpy as np


class Work(NamedTuple):
    """One size and its optimizer; each field is an option of every program.

    Attributes:
      input_dim, latent_dim: D and H.
      batch_size, num_rows, num_epochs: of training.
      tied: tied weights with cross-entropy; otherwise untied with half squared error.
      optimizer: "adam" or "sgd".
      dtype: "float32" or "bfloat16", of parameters and products.
    """

    input_dim: int
    latent_dim: int
    batch_size: int = 128
    num_rows: int = 6400
    num_epochs: int = 4
    tied: bool = True
    optimizer: str = "adam"
    dtype: str = "float32"

    @property
    def learning_rate(self) -> float:
        """A stable rate for the optimizer."""
        return 1e-3 if self.optimizer == "adam" else 1e-2

    @property
    def num_steps(self) -> int:
        """All steps of a run."""
        return self.num_epochs * (self.num_rows // self.batch_size)

    @property
    def num_flops(self) -> int:
        """Floating-point operations of the five products of a step."""
        return 5 * 2 * self.batch_size * self.input_dim * self.latent_dim

    def data(self) -> np.ndarray:
        """Rows of rank 16 in [0, 1], `[N, D]`."""
        rng = np.random.default_rng(0)
        factors = rng.standard_normal((self.num_rows, 16), dtype=np.float32)
        loadings = rng.standard_normal((16, self.input_dim), dtype=np.float32)
        X = np.matmul(factors, loadings / -4)
        # In place, so that the peak memory of a process has one copy.
        np.exp(X, out=X)
        X += 1
        return np.reciprocal(X, out=X)

    def weights(self) -> list[np.ndarray]:
        """W, and W* if untied: uniform as Glorot and Bengio (2010), `[H, D]` each."""
        rng = np.random.default_rng(1)
        limit = (6 / (self.input_dim + self.latent_dim)) ** 0.5
        shape = (self.latent_dim, self.input_dim)
        draws = [rng.uniform(-limit, limit, shape) for _ in range(2 - self.tied)]
        return [draw.astype(np.float32) for draw in draws]
