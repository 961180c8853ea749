"""Bugs in the gradients of other activations, other losses, other structures.

The right part of a claim comes from `jax.grad`; the wrong part is written by hand.
"""

import functools

import jax
import jax.numpy as jnp

from _gradient_cases.case import Catalogue, Function, f32
from _gradient_cases.models import (
    Tied,
    Untied,
    bernoulli,
    encode,
    mean,
    sigmoid,
    tied,
    tied_grad,
    tied_inputs,
    untied_inputs,
)

CASES = Catalogue()
bug = CASES.bug
hold = jax.lax.stop_gradient


# ---- activations ---------------------------------------------------------------------


def activated(g, p, X):
    """The batch loss ½ ||x_hat - x||² with latents g(a), and the backward pass to a."""

    def example(x):
        a = p.W_enc @ x + p.b_enc
        residual = p.W_dec.T @ g(a) + p.b_dec - x
        return a, g(a), residual, p.W_dec @ residual

    return jax.vmap(example)(X)


def half_squared(g):
    def loss(p, x):
        z = g(p.W_enc @ x + p.b_enc)
        return jnp.sum((p.W_dec.T @ z + p.b_dec - x) ** 2) / 2

    return Function(untied_inputs, mean(loss))


def with_d_a(d_a, z, residual, X) -> Untied:
    """The gradient by the params, from that by the pre-activations."""
    W_enc, W_dec = d_a.T @ X / len(X), z.T @ residual / len(X)
    return Untied(W_enc, W_dec, jnp.mean(d_a, axis=0), jnp.mean(residual, axis=0))


relu, softmax = half_squared(jax.nn.relu), half_squared(jax.nn.softmax)


@bug(
    relu,
    "gradient through a relu's zeros",
    "d_a = d_z also where a is negative",
    wrong="W_enc b_enc",
)
def through_zeros(p, X):
    _, z, residual, d_z = activated(jax.nn.relu, p, X)
    return with_d_a(d_z, z, residual, X)


@bug(
    relu,
    "relu's mask of the wrong tensor",
    "zero where d_z, not where a is negative",
    wrong="W_enc b_enc",
)
def guided(p, X):
    _, z, residual, d_z = activated(jax.nn.relu, p, X)
    return with_d_a(jax.nn.relu(d_z), z, residual, X)


@bug(
    softmax,
    "softmax taken for elementwise",
    "d_a = d_z z (1 - z)",
    wrong="W_enc b_enc",
)
def softmax_diagonal(p, X):
    _, z, residual, d_z = activated(jax.nn.softmax, p, X)
    return with_d_a(d_z * z * (1 - z), z, residual, X)


@bug(
    half_squared(jnp.tanh),
    "encoder and decoder exchanged",
    "the two have one shape",
    wrong="W_enc W_dec",
)
def exchanged(p, X):
    a, z, residual, d_z = activated(jnp.tanh, p, X)
    grads = with_d_a(d_z * (1 - jnp.tanh(a) ** 2), z, residual, X)
    return grads._replace(W_enc=grads.W_dec, W_dec=grads.W_enc)


def prelu_inputs(rng, size):
    params, X = untied_inputs(rng, size)
    return {"slope": f32(0.25), "model": params}, X


def prelu(a, slope):
    return jnp.where(a > 0, a, slope * a)


def prelu_loss(p, x):
    g = functools.partial(prelu, slope=p["slope"])
    model = p["model"]
    z = g(model.W_enc @ x + model.b_enc)
    return jnp.sum((model.W_dec.T @ z + model.b_dec - x) ** 2) / 2


@bug(
    Function(prelu_inputs, mean(prelu_loss)),
    "learned slope's mask missing",
    "d slope = d_z a, summed over all a instead of the negative",
    wrong="slope",
)
def prelu_unmasked(p, X):
    grads = jax.grad(mean(prelu_loss))(p, X)
    g = functools.partial(prelu, slope=p["slope"])
    a, _, _, d_z = activated(g, p["model"], X)
    return grads | {"slope": jnp.sum(d_z * a) / len(X)}


# ---- losses and their parts ----------------------------------------------------------


def squared_sigmoid(p, x):
    """Squared error of a sigmoid output, as is often used for grey levels."""
    return jnp.sum((sigmoid(p.W.T @ encode(p, x) + p.b_dec) - x) ** 2) / 2


@bug(
    tied._replace(loss=mean(squared_sigmoid)),
    "o' missing",
    "d_eta = x_hat - x although the loss is not the canonical one",
    wrong="W b_enc b_dec",
)
def output_slope_missing(p, X):
    return tied_grad(p, X)


def distance(p, x):
    """||x_hat - x||, not squared."""
    z = jnp.tanh(p.W_enc @ x + p.b_enc)
    return jnp.sqrt(jnp.sum((p.W_dec.T @ z + p.b_dec - x) ** 2))


@bug(
    Function(untied_inputs, mean(distance)),
    "square root forgotten",
    "the gradient of ½ ||x_hat - x||² for that of ||x_hat - x||",
    wrong="W_enc W_dec b_enc b_dec",
)
def squared_for_distance(p, X):
    return jax.grad(mean(lambda p, x: distance(p, x) ** 2 / 2))(p, X)


def two_heads_inputs(rng, size):
    """One decoder of means and one of log-deviations."""
    params, X = untied_inputs(rng, size)
    V = f32(0.3 * rng.normal(size=(size.H, size.D)) / size.H**0.5)
    return {"mean": params, "V": V, "s": f32(0.1 * rng.normal(size=size.D))}, X


def two_heads(p, x, held=lambda z: z):
    """-log N(x | mean, exp(log_sigma)), both decoded from z."""
    model = p["mean"]
    z = jnp.tanh(model.W_enc @ x + model.b_enc)
    residual = model.W_dec.T @ z + model.b_dec - x
    log_sigma = p["V"].T @ held(z) + p["s"]
    return jnp.sum(log_sigma + residual**2 * jnp.exp(-2 * log_sigma) / 2)


@bug(
    Function(two_heads_inputs, mean(two_heads)),
    "an ignored cotangent",
    "what the second output, log sigma, sends back to z is dropped",
    wrong="mean/W_enc mean/b_enc",
)
def ignored_cotangent(p, X):
    return jax.grad(mean(functools.partial(two_heads, held=hold)))(p, X)


def pre_bias_loss(p, x):
    """The decoder's bias is subtracted from the input first."""
    return bernoulli(p.W.T @ sigmoid(p.W @ (x - p.b_dec) + p.b_enc) + p.b_dec, x)


@bug(
    tied._replace(loss=mean(pre_bias_loss)),
    "bias counted twice",
    "b_dec, also the encoder's pre-bias, gets the decoder's share twice",
    wrong="b_dec",
)
def bias_twice(p, X):
    grads = jax.grad(mean(pre_bias_loss))(p, X)

    def decoder_alone(b_dec, x):
        z = sigmoid(p.W @ (x - p.b_dec) + p.b_enc)
        return bernoulli(p.W.T @ z + b_dec, x)

    share = jax.grad(mean(decoder_alone))(p.b_dec, X)
    return grads._replace(b_dec=grads.b_dec + share)


# ---- repeated and selected parts -----------------------------------------------------


def unrolled(p, x, held=lambda z: z):
    """Three rounds of z <- tanh(W (x - Wᵀ z) + b), an unrolled sparse coder."""
    z = jnp.zeros_like(p.b_enc)
    for _ in range(3):
        z = jnp.tanh(p.W @ (x - p.W.T @ held(z)) + p.b_enc)
    return bernoulli(p.W.T @ z + p.b_dec, x)


@bug(
    tied._replace(loss=mean(unrolled)),
    "truncated backpropagation",
    "only the last of three rounds is gone back through",
    wrong="W b_enc",
)
def truncated(p, X) -> Tied:
    return jax.grad(mean(functools.partial(unrolled, held=hold)))(p, X)


def lookup_inputs(rng, size):
    """A table of H rows, and 2 B indices with many repetitions."""
    table = f32(rng.normal(size=(size.H, size.D)))
    indices = rng.integers(0, max(size.H // 2, 2), size=2 * size.B)
    return {"table": table}, indices, f32(rng.normal(size=(2 * size.B, size.D)))


def lookup_loss(p, indices, X):
    return jnp.mean(jnp.sum((p["table"][indices] - X) ** 2, axis=1)) / 2


@bug(
    Function(lookup_inputs, lookup_loss),
    "duplicates overwritten",
    "rows looked up twice are set, not added to",
    wrong="table",
)
def duplicates_overwritten(p, indices, X):
    rows = (p["table"][indices] - X) / len(X)
    return {"table": jnp.zeros_like(p["table"]).at[indices].set(rows)}


def without_output_bias(rng, size):
    params, X = tied_inputs(rng, size)
    return {"W": params.W, "b": params.b_enc}, X - f32(0.5)


pooled = Function(
    without_output_bias,
    lambda p, X: jnp.mean(jax.vmap(lambda x: jnp.max(p["W"] @ x + p["b"]))(X)),
)


@bug(
    pooled,
    "maximum's index off",
    "the gradient goes to the neighbour of the largest latent",
    wrong="W b",
)
def neighbour_of_maximum(p, X):
    H = len(p["b"])
    largest = jnp.argmax(jax.vmap(lambda x: p["W"] @ x + p["b"])(X), axis=1)
    chosen = jax.nn.one_hot((largest + 1) % H, H, dtype=X.dtype) / len(X)
    return {"W": chosen.T @ X, "b": jnp.sum(chosen, axis=0)}
