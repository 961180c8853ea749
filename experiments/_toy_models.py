"""Toy Models of Superposition (Elhage et al., 2022): model, candidates and measures.

In NumPy and float64, except for `objective`, which is the library's.
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
MIN_NORM = 0.5  # of a represented feature
MIN_INTERFERENCE = 0.25  # of a superposed feature; two that share a dimension have 1


def objective(num_features, latent_dim, importance=None, inverse_link=activations.relu):
    """x_hat = o(W^T W x + b): tied, without b_enc; the importances I_i are weights.

    The loss has the factor 1/2 of the lecture, which the paper's loss lacks.
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


# ---- measures of a feature -----------------------------------------------------------


def norms(W) -> np.ndarray:
    """||W_i||, [n], where W_i is the column of feature i."""
    return np.linalg.norm(W, axis=0)


def squared_overlaps(W) -> np.ndarray:
    """(W_i . W_j / ||W_i||)^2, [n, n]: the squared projection of j on i."""
    lengths = norms(W)
    return (W.T @ W / np.where(lengths == 0, 1, lengths)[:, None]) ** 2


def interference(W) -> np.ndarray:
    """sum_{j != i} (W_i . W_j / ||W_i||)^2, [n]: the other features along i."""
    return squared_overlaps(W).sum(axis=1) - norms(W) ** 2


def dimensionality(W) -> np.ndarray:
    """D_i = ||W_i||^2 / sum_j (W_i . W_j / ||W_i||)^2, [n]; 0 if W_i is 0."""
    total = squared_overlaps(W).sum(axis=1)
    return norms(W) ** 2 / np.where(total == 0, 1, total)


def dimensions_per_feature(W) -> float:
    """D* = m / ||W||_F^2."""
    return len(W) / np.sum(W**2)


def kinds(W) -> np.ndarray:
    """The kind of each feature, [n], of KINDS."""
    is_superposed = ~(interference(W) < MIN_INTERFERENCE)
    represented = np.where(is_superposed, SUPERPOSED, OWN_DIMENSION)
    return np.where(norms(W) < MIN_NORM, NOT_REPRESENTED, represented)


# ---- candidates for n features and n - 1 latents -------------------------------------
# x_i ~ U(0, 1) with probability p, otherwise 0: E x = p / 2, E x^2 = p / 3.


def loss_of_ignoring(importance, density):
    """The loss of x_hat_i = E x_i with all others exact: I_i / 2 times the variance."""
    return importance / 2 * (density / 3 - density**2 / 4)


def loss_of_sharing(importance, other_importance, density):
    """The loss of W_j = -W_i with all others exact: x_hat_i = relu(x_i - x_j).

    If both features are active, the error of each is the smaller of the two, and the
    mean of min(u, v)^2 is 1/6 for u and v from U(0, 1).
    """
    return (importance + other_importance) / 2 * density**2 / 6


def candidates(importance, density) -> dict[str, float]:
    """The least loss for each kind of the last of n features, m = n - 1.

    One feature is ignored, or two share a dimension; all others have one each.
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
    for is_active in itertools.product((False, True), repeat=num_features):
        count = sum(is_active)
        x, weights = _quadrature(num_features, is_active, num_nodes)
        errors = np.maximum(x @ W.T @ W + b, 0) - x
        loss = weights @ (errors**2 @ np.asarray(importance)) / 2
        total += density**count * (1 - density) ** (num_features - count) * loss
    return float(total)


@functools.cache
def _quadrature(num_features, is_active, num_nodes):
    """Gauss-Legendre nodes in (0, 1) for active features, 0 for others; and weights."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    count = sum(is_active)
    grid = itertools.product((nodes + 1) / 2, repeat=count)
    x = np.zeros((num_nodes**count, num_features))
    x[:, np.flatnonzero(is_active)] = list(grid)
    products = np.ones(1)
    for _ in range(count):
        products = np.outer(products, weights / 2).ravel()
    return x, products
