"""Calls of `jaxae.train` and `jaxae.sweep` with one step."""

import jax
import numpy as np

import jaxae
from benchmarks.one_model.work import Work

BATCH_SIZE = 64


def train(is_first: bool, input_dim: int, latent_dim: int):
    """A call of `train`."""
    objective, X, config = arguments(input_dim, latent_dim)

    def run() -> float:
        if is_first:
            jax.clear_caches()
        trained = jaxae.train(
            objective,
            X,
            hparams={"learning_rate": 1e-3},
            key=jax.random.key(0),
            config=config,
        )
        return float(trained.metrics["train/loss"][-1])

    return run


def sweep(is_first: bool, num_lanes: int):
    """A call of `sweep`, one lane for each learning rate."""
    objective, X, config = arguments(64, 32)
    space = {"learning_rate": np.geomspace(1e-4, 1e-2, num_lanes).tolist()}

    def run() -> float:
        if is_first:
            jax.clear_caches()
        swept = jaxae.sweep(objective, X, space, key=jax.random.key(0), config=config)
        return float(np.mean(swept.table["train/loss"]))

    return run


def arguments(input_dim: int, latent_dim: int):
    """The objective, the rows and the configuration."""
    work = Work(input_dim, latent_dim, BATCH_SIZE, num_rows=BATCH_SIZE)
    ae = jaxae.Autoencoder(input_dim=input_dim, latent_dim=latent_dim)
    config = jaxae.TrainConfig(num_epochs=1, batch_size=BATCH_SIZE)
    return jaxae.Objective(ae), work.data(), config
