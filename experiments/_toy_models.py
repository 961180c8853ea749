"""Toy Models of Superposition (Elhage et al., 2022): the model, its rivals, measures.

In NumPy and float64, but for `objective`, which is the library's.
"""

import functools
import itertools

import numpy as np

import jaxae
from jaxae import activations, observations

NOT_REPRESENTED, OWN_DIMENSION, SUPERPOSED = KINDS = (
    "not represented",
    "own dimension",
    "superposed",
)
LEAST_NORM = 0.5  # of a feature that is represented
LEAST_INTERFERENCE = 0.25  # of one that is superposed: two that share, evenly, have 1


def objective(num_features, latent_dim, importance=None, inverse_link=activations.relu):
    """x_hat = o(W^T W x + b): tied, no bias before the latents; I_i is a weight.

    The loss has the factor 1/2 of the lecture, which the paper's has not.
    """
    return jaxae.Objective(
        jaxae.Autoencoder(
            input_dim=num_features,
            latent_dim=latent_dim,
            activation=activations.identity,
            observation=observations.gaussian_with(inverse_link, importance),
            bias=False,
        )
    )


# ---- what a feature is given ---------------------------------------------------------


def norms(W) -> np.ndarray:
    """||W_i||, [n], W_i the column of feature i."""
    return np.linalg.norm(W, axis=0)


def squared_overlaps(W) -> np.ndarray:
    """(W_i . W_j / ||W_i||)^2, [n, n]: how much of j is along i."""
    lengths = norms(W)
    return (W.T @ W / np.where(lengths == 0, 1, lengths)[:, None]) ** 2


def interference(W) -> np.ndarray:
    """sum_{j != i} (W_i . W_j / ||W_i||)^2, [n]: what others put along i."""
    return squared_overlaps(W).sum(axis=1) - norms(W) ** 2


def dimensionality(W) -> np.ndarray:
    """D_i = ||W_i||^2 / sum_j (W_i . W_j / ||W_i||)^2, [n]; 0 of a feature left out."""
    total = squared_overlaps(W).sum(axis=1)
    return norms(W) ** 2 / np.where(total == 0, 1, total)


def dimensions_per_feature(W) -> float:
    """D* = m / ||W||_F^2."""
    return len(W) / np.sum(W**2)


def kinds(W) -> np.ndarray:
    """Which of KINDS each feature is, [n]."""
    of_represented = np.where(
        interference(W) < LEAST_INTERFERENCE, OWN_DIMENSION, SUPERPOSED
    )
    return np.where(norms(W) < LEAST_NORM, NOT_REPRESENTED, of_represented)


# ---- one dimension too few: the rivals -----------------------------------------------
# x_i is 0, but with probability p it is U(0, 1): E x = p / 2, E x^2 = p / 3.


def loss_of_ignoring(importance, density):
    """x_hat_i = E x_i, and all others exact: I_i / 2 times the variance."""
    return importance / 2 * (density / 3 - density**2 / 4)


def loss_of_sharing(importance, other_importance, density):
    """W_j = -W_i, and all others exact: x_hat_i = relu(x_i - x_j).

    Where both are there, each is off by the smaller, and E min^2 of two of U(0, 1) is
    1/6.
    """
    return (importance + other_importance) / 2 * density**2 / 6


def rivals(importance, density) -> dict[str, float]:
    """The least loss for each kind that the last of n features may be, m = n - 1.

    One feature is ignored, or two share a dimension; the rest have one each.
    """
    *others, last = importance
    return {
        NOT_REPRESENTED: loss_of_ignoring(last, density),
        OWN_DIMENSION: min(
            [
                *(loss_of_ignoring(other, density) for other in others),
                *(
                    loss_of_sharing(*pair, density)
                    for pair in itertools.combinations(others, 2)
                ),
            ]
        ),
        SUPERPOSED: min(loss_of_sharing(last, other, density) for other in others),
    }


# ---- the expected loss, by quadrature ------------------------------------------------


def expected_loss(W, b, importance, density, num_nodes=24) -> float:
    """E 1/2 sum_i I_i (relu(W^T W x + b)_i - x_i)^2, over all 2^n sets of features."""
    num_features = W.shape[1]
    total = 0.0
    for is_there in itertools.product((False, True), repeat=num_features):
        count = sum(is_there)
        x, weights = _cube(num_features, is_there, num_nodes)
        errors = np.maximum(x @ W.T @ W + b, 0) - x
        loss = weights @ (errors**2 @ np.asarray(importance)) / 2
        total += density**count * (1 - density) ** (num_features - count) * loss
    return float(total)


@functools.cache
def _cube(num_features, is_there, num_nodes):
    """Gauss and Legendre's nodes in (0, 1) for what is there, 0 for what is not."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    count = sum(is_there)
    grid = itertools.product((nodes + 1) / 2, repeat=count)
    x = np.zeros((num_nodes**count, num_features))
    x[:, np.flatnonzero(is_there)] = list(grid)
    products = np.ones(1)
    for _ in range(count):
        products = np.outer(products, weights / 2).ravel()
    return x, products
