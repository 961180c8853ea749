"""Programs whose result is their amount of work: operations, or bytes moved."""

import jax
import jax.numpy as jnp

import jaxae
from jaxae.training import init_state
from jaxae.training.train_step import init_means, run_steps

NUM_REPEATS = 10
KEY = jax.random.key(0)


def product(size: int, dtype: str):
    """Products of two square matrices."""
    A, B = jax.random.normal(KEY, (2, size, size), dtype)
    return repeated(jax.jit(jnp.matmul), (A, B), 2 * size**3)


def copy(num_bytes: int):
    """Copies of an array of float32, each read and written once."""
    A = jnp.zeros(num_bytes // 4, jnp.float32)
    return repeated(jax.jit(lambda A: A + 1), (A,), 2 * num_bytes)


def encoder_product(**sizes):
    """The encoder's product in bfloat16."""
    _, params, X = wide(**sizes)
    operands = [array.astype(jnp.bfloat16) for array in (X, params.W_enc)]
    flops = 2 * params.W_enc.size * len(X)
    return repeated(jax.jit(lambda X, W: X @ W.T), operands, flops)


def encode(**sizes):
    """The product and the k largest of each row."""
    objective, params, X = wide(**sizes)
    W, X = params.W_enc.astype(jnp.bfloat16), X.astype(jnp.bfloat16)
    topk = objective.ae.activation.codes
    return repeated(jax.jit(lambda X, W: topk(X @ W.T)), (X, W), 2 * W.size * len(X))


def train(num_steps: int, k: int, **sizes):
    """Training steps by codes, with Adam.

    Those that count: the encoder's product, and for the k active latents of each row
    decoding, the gradient of z, and the gradients of W_dec and W_enc, 2 B k D each.
    """
    objective, params, X = wide(num_steps=num_steps, k=k, **sizes)
    config = jaxae.TrainConfig(gradient="manual")
    hparams = {"learning_rate": jnp.float32(1e-3)}
    settings = {"objective": objective, "config": config}
    state = init_state(objective, hparams, KEY, config=config, params=params)
    means = init_means(state, X, hparams, objective=objective)

    @jax.jit(donate_argnums=0)
    def run_some(state, X):
        return run_steps(state, means, lambda i: X, hparams, 0, num_steps, **settings)

    carried = [state]

    def run() -> float:
        state, _ = jax.block_until_ready(run_some(carried.pop(), X))
        carried.append(state)
        flops = 2 * len(X) * (state.params.W_enc.size + 4 * k * X.shape[1])
        return float(num_steps * flops)

    return run


def wide(input_dim: int, latent_dim: int, batch_size: int, k: int, num_steps: int):
    """The objective of a TopK autoencoder, its parameters and a batch."""
    del num_steps
    ae = jaxae.Autoencoder(
        input_dim=input_dim,
        latent_dim=latent_dim,
        activation=jaxae.activations.topk(k),
        observation="gaussian",
        tied=False,
    )
    objective = jaxae.Objective(ae, compute_dtype="bfloat16")
    return objective, ae.init(KEY), jax.random.normal(KEY, (batch_size, input_dim))


def repeated(function, operands, amount: int):
    """A run that calls the function some times; its result is the amount of all."""

    def run() -> float:
        for _ in range(NUM_REPEATS):
            results = function(*operands)
        jax.block_until_ready(results)
        return float(NUM_REPEATS * amount)

    return run
