"""The lecture's autoencoder and its backward pass, as in the equations.

Hugo Larochelle, Neural networks: Autoencoder, Université de Sherbrooke, October 2012.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from _gradient_cases.case import Function, f32

sigmoid, softplus = jax.nn.sigmoid, jax.nn.softplus


class Tied(NamedTuple):
    """Parameters of which the decoder's weights are those of the encoder."""

    W: Any  # [H, D]
    b_enc: Any  # [H]
    b_dec: Any  # [D]


class Untied(NamedTuple):
    """Parameters with a decoder of its own."""

    W_enc: Any  # [H, D]
    W_dec: Any  # [H, D]
    b_enc: Any  # [H]
    b_dec: Any  # [D]


def tied_inputs(rng, size):
    """Parameters as after some training, and grey levels `[B, D]`."""
    W = rng.normal(size=(size.H, size.D)) / size.D**0.5
    b_enc, b_dec = 0.1 * rng.normal(size=size.H), 0.1 * rng.normal(size=size.D)
    X = rng.uniform(size=(size.B, size.D))
    return Tied(f32(W), f32(b_enc), f32(b_dec)), f32(X)


def untied_inputs(rng, size):
    """The same with a decoder of its own, and real numbers."""
    tied, _ = tied_inputs(rng, size)
    W_dec = f32(rng.normal(size=tied.W.shape) / size.H**0.5)
    X = f32(rng.normal(size=(size.B, size.D)))
    return Untied(tied.W, W_dec, tied.b_enc, tied.b_dec), X


def denoising_inputs(rng, size):
    """Corrupted inputs before clean ones: a third of them masked."""
    params, X = tied_inputs(rng, size)
    return params, f32(X * (rng.uniform(size=X.shape) > 1 / 3)), X


def bernoulli(eta, x):
    """-log p(x | sigm(eta)), summed over the inputs."""
    return jnp.sum(softplus(eta) - x * eta)


def encode(p, x):
    """[D] -> [H], sigmoid latents."""
    return sigmoid(p.W @ x + p.b_enc)


def mean(example_loss):
    """`(params, *args) -> []`: the batch mean of `example_loss(params, *example)`."""

    def loss(p, *batch):
        per_example = jax.vmap(lambda *example: example_loss(p, *example))
        return jnp.mean(per_example(*batch))

    return loss


def example_loss(p, x, target):
    """The lecture's loss of one example."""
    return bernoulli(p.W.T @ encode(p, x) + p.b_dec, target)


class Pass(NamedTuple):
    """The lecture's backward pass, a row an example."""

    z: Any
    x_hat: Any
    d_eta: Any
    d_z: Any
    d_a: Any


def backward(p, X, targets) -> Pass:
    """From the inputs to the gradient at the pre-activations of the latents."""

    def example(x, target):
        a = p.W @ x + p.b_enc
        z = sigmoid(a)
        x_hat = sigmoid(p.W.T @ z + p.b_dec)
        d_eta = x_hat - target
        d_z = p.W @ d_eta
        return Pass(z, x_hat, d_eta, d_z, d_z * z * (1 - z))

    return jax.vmap(example)(X, targets)


def assemble(s: Pass, X) -> Tied:
    """The encoder's path and the decoder's, averaged over the batch."""
    W = s.d_a.T @ X + s.z.T @ s.d_eta
    return Tied(W / len(X), jnp.mean(s.d_a, axis=0), jnp.mean(s.d_eta, axis=0))


def tied_grad(p, X) -> Tied:
    """The right gradient of `tied`."""
    return assemble(backward(p, X, X), X)


tied = Function(tied_inputs, mean(lambda p, x: example_loss(p, x, x)))
denoising = Function(denoising_inputs, mean(example_loss))
