"""Means and sums of squared deviations of samples, merged on the host in float64."""

from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Mean and squared deviations of the rows of a sample `[num_rows, D]`."""

    num_rows: int
    mean: np.ndarray  # [D]
    squares: np.ndarray  # [D] sum over rows of (x - mean)^2


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the union of two samples.

    With n = n_a + n_b and d = mean_b - mean_a:

        mean    = mean_a + d n_b / n
        squares = squares_a + squares_b + d^2 n_a n_b / n

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances", 1979.
    """
    num_rows = a.num_rows + b.num_rows
    with np.errstate(over="ignore", invalid="ignore"):
        d = b.mean - a.mean
        mean = a.mean + d * (b.num_rows / num_rows)
        squares = a.squares + b.squares + d**2 * (a.num_rows * b.num_rows / num_rows)
    return Moments(num_rows, mean, squares)
