"""The model in jaxae: training steps, and the parts of one."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxae
from benchmarks.sparse.work import Work, fvu
from jaxae import manual
from jaxae.training import init_state
from jaxae.training.train_step import init_means, run_steps


def objective_and_params(work: Work):
    """The objective, and its initial parameters."""
    ae = jaxae.Autoencoder(
        input_dim=work.input_dim,
        latent_dim=work.latent_dim,
        activation=jaxae.activations.topk(work.k),
        observation="gaussian",
        tied=False,
        pre_bias=True,
    )
    W = jnp.asarray(work.weights())
    params = jax.eval_shape(ae.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
    return jaxae.Objective(ae), params._replace(W_enc=W, W_dec=jnp.copy(W))


def train(gradient: str, **options):
    """Steps of `jaxae.train` in one program; `gradient` is that of `TrainConfig`."""
    work = Work(**options)
    batches, other_rows = work.data()
    X = jnp.asarray(batches)
    objective, params = objective_and_params(work)
    ae = objective.ae
    config = jaxae.TrainConfig(gradient=gradient)
    hparams = {"learning_rate": jnp.float32(work.learning_rate)}
    key = jax.random.key(0)
    state = init_state(objective, hparams, key, config=config, params=params)
    means = init_means(state, X[0], hparams, objective=objective)

    @jax.jit(donate_argnums=0)
    def run_some(state, X):
        first = state.step
        return run_steps(
            state,
            means,
            lambda i: X[(first + i) % len(X)],
            hparams,
            0,
            work.num_steps,
            objective=objective,
            config=config,
        )

    @jax.jit
    def reconstruct(params, X):
        return jax.vmap(ae.reconstruct, in_axes=(None, 0))(params, X)

    carried = [state]
    del params, state

    def run():
        state, _ = carried[0], carried.clear()
        state, _ = jax.block_until_ready(run_some(state, X))
        carried.append(state)

        def evaluate() -> float:
            X_hat = reconstruct(state.params, jnp.asarray(other_rows))
            return fvu(other_rows, np.asarray(X_hat))

        return evaluate

    return run


def loss_and_gradient(gradient: str, **options):
    """As many losses and gradients as a run of the others has steps."""
    work = Work(**options)
    objective, params = objective_and_params(work)
    autodiff = jax.value_and_grad(objective, has_aux=True)
    function = manual.value_and_grad(objective) if gradient == "manual" else autodiff
    compiled = jax.jit(lambda params, batch: function(params, batch, None, {}))
    return repeated(compiled, params, work)


def floor(**options):
    """The product of the encoder and the choice of k, which no step can leave out."""
    work = Work(**options)
    _, params = objective_and_params(work)

    @jax.jit
    def encode(params, batch):
        return jax.lax.top_k(batch @ params.W_enc.T + params.b_enc[None], work.k)

    return repeated(encode, params, work)


def product(**options):
    """The product of the encoder alone."""
    work = Work(**options)
    _, params = objective_and_params(work)
    return repeated(jax.jit(lambda params, batch: batch @ params.W_enc.T), params, work)


def repeated(function, params, work: Work):
    """A run that calls the function on batches; its result is the number of calls."""
    batches = [jnp.asarray(batch) for batch in work.data()[0]]

    def run() -> int:
        for i in range(work.num_steps):
            jax.block_until_ready(function(params, batches[i % len(batches)]))
        return work.num_steps

    return run
