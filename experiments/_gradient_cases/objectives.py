"""Bugs in the gradients of penalties and of normalisations.

The right part of a claim comes from `jax.grad`; the wrong part is written by hand.
"""

import functools

import jax
import jax.numpy as jnp

from _gradient_cases.case import Catalogue, Function, f32
from _gradient_cases.models import (
    encode,
    example_loss,
    mean,
    tied,
    tied_grad,
    tied_inputs,
    untied_inputs,
)

CASES = Catalogue()
bug = CASES.bug
hold = jax.lax.stop_gradient


# ---- penalties -----------------------------------------------------------------------


def sparse_loss(p, X):
    """The loss plus the mean activation of the latents."""
    return tied.loss(p, X) + jnp.mean(jax.vmap(encode, (None, 0))(p, X))


sparse = tied._replace(loss=sparse_loss)


@bug(sparse, "a term wrongly detached", "the l1 term's z is held", wrong="W b_enc")
def l1_detached(p, X):
    return tied_grad(p, X)


TARGET = 0.1


def kl_of_mean_activation(rho):
    """KL(target || mean activation), summed over the latents."""
    return -jnp.sum(TARGET * jnp.log(rho) + (1 - TARGET) * jnp.log1p(-rho))


def mean_activation(p, X):
    return jnp.mean(jax.vmap(encode, (None, 0))(p, X), axis=0)


def kl_inputs(rng, size):
    """The KL penalty with the mean activation of the previous batch."""
    params, X = tied_inputs(rng, size)
    return params, X, f32(rng.uniform(0.2, 0.4, size=size.H))


def kl_loss(p, X, stale):
    del stale
    return tied.loss(p, X) + kl_of_mean_activation(mean_activation(p, X))


@bug(
    Function(kl_inputs, kl_loss),
    "stale statistics",
    "the slope of the KL term is taken at the mean activation of the batch before",
    wrong="W b_enc",
)
def stale_statistics(p, X, stale):
    slope = jax.grad(kl_of_mean_activation)(stale)
    penalty = jax.grad(lambda p: jnp.vdot(slope, mean_activation(p, X)))(p)
    return jax.tree.map(jnp.add, tied_grad(p, X), penalty)


def decay_loss(p, X):
    return tied.loss(p, X) + 0.1 * jnp.sum(p.W**2)


decay = tied._replace(loss=decay_loss)


@bug(decay, "decay's factor 2 missing", "λ W for 2 λ W", wrong="W")
def decay_halved(p, X):
    grads = tied_grad(p, X)
    return grads._replace(W=grads.W + 0.1 * p.W)


@bug(decay, "decay counted twice", "W decayed as encoder, as decoder", wrong="W")
def decay_twice(p, X):
    grads = tied_grad(p, X)
    return grads._replace(W=grads.W + 2 * 0.2 * p.W)


@bug(decay, "biases decayed", "λ is applied to every leaf", wrong="b_enc b_dec")
def biases_decayed(p, X):
    return jax.tree.map(lambda grad, leaf: grad + 0.2 * leaf, tied_grad(p, X), p)


def absolute_loss(p, X):
    return tied.loss(p, X) + 0.1 * jnp.sum(jnp.abs(p.W))


@bug(
    tied._replace(loss=absolute_loss),
    "sign of |w| missing",
    "λ for λ sign(w)",
    wrong="W",
)
def absolute_sign(p, X):
    grads = tied_grad(p, X)
    return grads._replace(W=grads.W + 0.1)


def squared_jacobian(p, x):
    """||dz/dx||² of the contractive autoencoder: sum_j z_j'² ||w_j||²."""
    z = encode(p, x)
    return jnp.sum((z * (1 - z)) ** 2 * jnp.sum(p.W**2, axis=1))


def contractive_loss(p, x):
    return example_loss(p, x, x) + squared_jacobian(p, x)


@bug(
    tied._replace(loss=mean(contractive_loss)),
    "curvature missing",
    "contractive penalty with its slope g' taken as a constant",
    wrong="W b_enc",
)
def curvature_missing(p, X):
    def penalty(W, x):
        z = hold(encode(p, x))
        return jnp.sum((z * (1 - z)) ** 2 * jnp.sum(W**2, axis=1))

    held = jax.grad(lambda W: jnp.mean(jax.vmap(penalty, (None, 0))(W, X)))(p.W)
    grads = tied_grad(p, X)
    return grads._replace(W=grads.W + held)


# ---- normalisations ------------------------------------------------------------------


def layer_norm(a, held=lambda x: x):
    centred = a - jnp.mean(a)
    return centred / held(jnp.sqrt(jnp.mean(centred**2) + 1e-3))


def layer_norm_loss(p, x, held=lambda x: x):
    z = layer_norm(p.W_enc @ x + p.b_enc, held)
    return jnp.sum((p.W_dec.T @ z + p.b_dec - x) ** 2) / 2


@bug(
    Function(untied_inputs, mean(layer_norm_loss)),
    "layer norm's deviation constant",
    "the standard deviation of the pre-activations is held",
    wrong="W_enc b_enc",
)
def layer_norm_constant(p, X):
    return jax.grad(mean(functools.partial(layer_norm_loss, held=hold)))(p, X)


def batch_norm_loss(p, X, held=lambda x: x):
    pre_acts = jax.vmap(lambda x: p.W_enc @ x)(X)
    centre, spread = held((jnp.mean(pre_acts, axis=0), jnp.var(pre_acts, axis=0)))

    def example(pre_acts, x):
        z = jnp.tanh((pre_acts - centre) / jnp.sqrt(spread + 1e-3) + p.b_enc)
        return jnp.sum((p.W_dec.T @ z + p.b_dec - x) ** 2) / 2

    return jnp.mean(jax.vmap(example)(pre_acts, X))


@bug(
    Function(untied_inputs, batch_norm_loss),
    "batch statistics constant",
    "the mean and variance of the batch are held",
    wrong="W_enc",
)
def batch_norm_constant(p, X):
    return jax.grad(functools.partial(batch_norm_loss, held=hold))(p, X)


def unit_norm_loss(p, x):
    """A dictionary with atoms of norm 1."""
    atoms = p.W_dec / jnp.linalg.norm(p.W_dec, axis=1, keepdims=True)
    z = jnp.tanh(p.W_enc @ x + p.b_enc)
    return jnp.sum((atoms.T @ z + p.b_dec - x) ** 2) / 2


@bug(
    Function(untied_inputs, mean(unit_norm_loss)),
    "projection missing",
    "the length of a normalised atom is held",
    wrong="W_dec",
)
def projection_missing(p, X):
    def held(W_dec, x):
        lengths = hold(jnp.linalg.norm(W_dec, axis=1, keepdims=True))
        z = jnp.tanh(p.W_enc @ x + p.b_enc)
        return jnp.sum(((W_dec / lengths).T @ z + p.b_dec - x) ** 2) / 2

    grads = jax.grad(mean(unit_norm_loss))(p, X)
    return grads._replace(W_dec=jax.grad(mean(held))(p.W_dec, X))
