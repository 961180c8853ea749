"""The lecture's equations in plain NumPy float64, sharing no code with the library."""

import numpy as np


def sigm(a):
    return 1 / (1 + np.exp(-a))


G = {
    "sigmoid": (sigm, lambda a: sigm(a) * (1 - sigm(a))),
    "tanh": (np.tanh, lambda a: 1 / np.cosh(a) ** 2),
    "relu": (lambda a: np.where(a > 0, a, 0.0), lambda a: np.where(a > 0, 1.0, 0.0)),
    "softplus": (lambda a: np.logaddexp(0, a), sigm),
    "identity": (lambda a: a, np.ones_like),
}


def cross_entropy(x_hat, x):
    return -np.sum(x * np.log(x_hat) + (1 - x) * np.log(1 - x_hat))


def half_squared_error(x_hat, x):
    return 0.5 * np.sum((x_hat - x) ** 2)


OUTPUT = {
    "bernoulli": (sigm, cross_entropy),
    "gaussian": (lambda eta: eta, half_squared_error),
}


def lecture(W_enc, W_dec, b, c, x, target, activation, observation):
    """Forward and backward as on the slides; loops instead of matrix products."""
    W_enc, W_dec, b, c, x, target = map(np.asarray, (W_enc, W_dec, b, c, x, target))
    g, slope = G[activation]
    o, loss = OUTPUT[observation]
    (H, D), t = W_enc.shape, target
    a = np.array([b[j] + sum(W_enc[j, k] * x[k] for k in range(D)) for j in range(H)])
    h = g(a)
    eta = np.array([c[k] + sum(W_dec[j, k] * h[j] for j in range(H)) for k in range(D)])
    x_hat = o(eta)
    d_eta = x_hat - t
    d_h = np.array([sum(W_dec[j, k] * d_eta[k] for k in range(D)) for j in range(H)])
    d_a = d_h * slope(a)
    dW_enc = np.array([[d_a[j] * x[k] for k in range(D)] for j in range(H)])
    dW_dec = np.array([[h[j] * d_eta[k] for k in range(D)] for j in range(H)])
    return {
        "a": a,
        "z": h,
        "eta": eta,
        "x_hat": x_hat,
        "loss": loss(x_hat, t),
        "d_eta": d_eta,
        "d_z": d_h,
        "d_a": d_a,
        "W_enc": dW_enc,
        "W_dec": dW_dec,
        "b_enc": d_a,
        "b_dec": d_eta,
    }
