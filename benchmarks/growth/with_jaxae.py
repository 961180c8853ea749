"""Training in jaxae, of one model or of a sweep, with data from NumPy."""

import jax
import jax.numpy as jnp

import jaxae
from benchmarks.one_model.work import Work

KEY = jax.random.key(0)


def train(memory_budget: int = 2**40, **options):
    """A call of `jaxae.train`; data beyond the budget are read by blocks."""
    work = Work(**options)
    objective, X, arguments = prepared(work, memory_budget)

    def run() -> float:
        trained = jaxae.train(objective, X, **arguments)
        return float(trained.metrics["train/loss"][-1])

    return run


def sweep(num_lanes: int, **options):
    """A call of `jaxae.sweep` over seeds; the result is the mean loss of the lanes."""
    work = Work(**options)
    objective, X, arguments = prepared(work)

    def run() -> float:
        trained = jaxae.sweep(objective, X, {"seed": range(num_lanes)}, **arguments)
        return float(trained.final["train/loss"].mean())

    return run


def prepared(work: Work, memory_budget: int = 2**40):
    """The objective, the data, and the other arguments of training."""
    ae = jaxae.Autoencoder(input_dim=work.input_dim, latent_dim=work.latent_dim)
    [W] = work.weights()
    arguments = {
        "hparams": {"learning_rate": work.learning_rate},
        "key": KEY,
        "config": jaxae.TrainConfig(
            num_epochs=work.num_epochs,
            batch_size=work.batch_size,
            diagnostics=False,  # the others have none
            memory_budget=memory_budget,
        ),
        "params": ae.init(KEY)._replace(W=jnp.asarray(W)),
    }
    return jaxae.Objective(ae), work.data(), arguments
