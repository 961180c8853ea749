"""The model in jaxae."""

import jax
import jax.numpy as jnp

import jaxae
from benchmarks.one_model.work import Work


def train(gradient: str, **options):
    """A call of `jaxae.train`; `gradient` is "manual" or "autodiff"."""
    work = Work(**options)
    observation = "bernoulli" if work.tied else "gaussian"
    ae = jaxae.Autoencoder(
        input_dim=work.input_dim,
        latent_dim=work.latent_dim,
        observation=getattr(jaxae.observations, observation),
        tied=work.tied,
    )
    objective = jaxae.Objective(ae)
    config = jaxae.TrainConfig(
        num_epochs=work.num_epochs,
        batch_size=work.batch_size,
        optimizer=getattr(jaxae.optimizers, work.optimizer),
        gradient=gradient,
        diagnostics=False,  # the others log the loss only
    )
    names = ("W",) if work.tied else ("W_enc", "W_dec")
    params = ae.init(jax.random.key(0))  # with biases of 0
    params = params._replace(**dict(zip(names, work.weights(), strict=True)))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, work.dtype), params)
    X = jnp.asarray(work.data())

    def run() -> float:
        trained = jaxae.train(
            objective,
            X,
            hparams={"learning_rate": work.learning_rate},
            key=jax.random.key(0),
            config=config,
            params=params,
        )
        return float(trained.metrics["train/loss"].mean())

    return run
