"""Bugs in the backward pass of the lecture's tied autoencoder.

Each claim is the lecture's pass with one thing wrong in it.
"""

import jax
import jax.numpy as jnp

from _gradient_cases.case import Catalogue, Function, f32
from _gradient_cases.models import (
    Tied,
    assemble,
    backward,
    denoising,
    example_loss,
    mean,
    sigmoid,
    tied,
    tied_grad,
    tied_inputs,
)

CASES = Catalogue()
bug = CASES.bug
ALL = "W b_enc b_dec"


# ---- a path or a factor is missing ---------------------------------------------------


@bug(tied, "encoder path missing", "dW = z d_etaᵀ alone", wrong="W")
def encoder_path_missing(p, X):
    s = backward(p, X, X)
    return assemble(s, X)._replace(W=s.z.T @ s.d_eta / len(X))


@bug(tied, "decoder path missing", "dW = d_a xᵀ alone", wrong="W")
def decoder_path_missing(p, X):
    s = backward(p, X, X)
    return assemble(s, X)._replace(W=s.d_a.T @ X / len(X))


def square_inputs(rng, size):
    return tied_inputs(rng, size._replace(D=min(size.D, size.H), H=min(size.D, size.H)))


square = tied._replace(inputs=square_inputs)


@bug(square, "transpose missing", "D = H, dW is handed back as [D, H]", wrong="W")
def transpose_missing(p, X):
    grads = tied_grad(p, X)
    return grads._replace(W=grads.W.T)


@bug(square, "decoder's half transposed", "D = H, d_eta zᵀ for z d_etaᵀ", wrong="W")
def half_transposed(p, X):
    s = backward(p, X, X)
    return assemble(s, X)._replace(W=(s.d_a.T @ X + s.d_eta.T @ s.z) / len(X))


@bug(tied, "g' missing", "d_a = d_z", wrong="W b_enc")
def slope_missing(p, X):
    s = backward(p, X, X)
    return assemble(s._replace(d_a=s.d_z), X)


@bug(tied, "g' at z instead of a", "d_a = d_z g'(z), z = g(a)", wrong="W b_enc")
def slope_at_z(p, X):
    s = backward(p, X, X)
    slope = sigmoid(s.z) * (1 - sigmoid(s.z))
    return assemble(s._replace(d_a=s.d_z * slope), X)


@bug(tied, "slope of another g", "tanh's 1 - z² for the sigmoid", wrong="W b_enc")
def slope_of_tanh(p, X):
    s = backward(p, X, X)
    return assemble(s._replace(d_a=s.d_z * (1 - s.z**2)), X)


@bug(tied, "o' once too often", "d_eta = (x_hat - x) x_hat (1 - x_hat)", wrong=ALL)
def output_slope_too_often(p, X):
    s = backward(p, X, X)
    d_eta = s.d_eta * s.x_hat * (1 - s.x_hat)
    d_z = d_eta @ p.W.T
    d_a = d_z * s.z * (1 - s.z)
    return assemble(s._replace(d_eta=d_eta, d_z=d_z, d_a=d_a), X)


# ---- what is summed, and over what ---------------------------------------------------


@bug(tied, "sum for mean", "B times too large", wrong=ALL)
def sum_for_mean(p, X):
    return jax.tree.map(lambda leaf: len(X) * leaf, tied_grad(p, X))


@bug(tied, "mean over D for B", "divided by the number of inputs", wrong=ALL)
def mean_over_inputs(p, X):
    factor = X.shape[0] / X.shape[1]
    return jax.tree.map(lambda leaf: factor * leaf, tied_grad(p, X))


@bug(tied, "biases averaged twice", "a mean of a mean", wrong="b_enc b_dec")
def averaged_twice(p, X):
    grads = tied_grad(p, X)
    return Tied(grads.W, grads.b_enc / len(X), grads.b_dec / len(X))


@bug(tied, "last example only", "the bias is overwritten, not summed", wrong="b_dec")
def last_example(p, X):
    d_eta = backward(p, X, X).d_eta
    return tied_grad(p, X)._replace(b_dec=d_eta[-1] / len(X))


@bug(tied, "last example dropped", "a loop that ends at B - 1", wrong=ALL)
def last_example_dropped(p, X):
    factor = (len(X) - 1) / len(X)
    return jax.tree.map(lambda leaf: factor * leaf, tied_grad(p, X[:-1]))


def as_many_examples_as_inputs(rng, size):
    return tied_inputs(rng, size._replace(B=size.D))


@bug(
    tied._replace(inputs=as_many_examples_as_inputs),
    "wrong axis summed",
    "B = D, a bias summed over inputs instead of examples",
    wrong="b_dec",
)
def wrong_axis(p, X):
    d_eta = backward(p, X, X).d_eta
    return tied_grad(p, X)._replace(b_dec=jnp.mean(d_eta, axis=1))


# ---- other inputs than those of the forward pass -------------------------------------


@bug(denoising, "corruption forgotten", "d_a times the clean x", wrong="W")
def corruption_forgotten(p, X_noisy, X):
    return assemble(backward(p, X_noisy, X), X)


@bug(denoising, "noisy target", "d_eta = x_hat - noisy x", wrong=ALL)
def noisy_target(p, X_noisy, X):
    del X
    return tied_grad(p, X_noisy)


def dropout_inputs(rng, size):
    """Two masks over the latents: that of the loss, and a different one."""
    params, X = tied_inputs(rng, size)
    masks = rng.uniform(size=(2, size.B, size.H)) < 0.5
    masks[:, 0], masks[1, 0] = True, False  # they are never the same
    return params, X, f32(masks[0]), f32(masks[1])


def dropout_loss(p, x, mask, other):
    """A dropout mask: half of the latents are dropped, the others doubled."""
    del other
    z = sigmoid(p.W @ x + p.b_enc) * mask / 0.5
    eta = p.W.T @ z + p.b_dec
    return jnp.sum(jax.nn.softplus(eta) - x * eta)


def dropout_grad(p, X, mask, mask_backward, rate=0.5):
    """The lecture's pass with a factor on z, and another in the backward pass."""
    z = sigmoid(X @ p.W.T + p.b_enc[None])
    d_eta = sigmoid((z * mask / 0.5) @ p.W + p.b_dec[None]) - X
    d_a = d_eta @ p.W.T * mask_backward / rate * z * (1 - z)
    W = d_a.T @ X + (z * mask / 0.5).T @ d_eta
    return Tied(W / len(X), jnp.mean(d_a, axis=0), jnp.mean(d_eta, axis=0))


dropout = Function(dropout_inputs, mean(dropout_loss))


@bug(dropout, "dropout redrawn", "another mask on the way back", wrong="W b_enc")
def dropout_redrawn(p, X, mask, other):
    return dropout_grad(p, X, mask, other)


@bug(dropout, "dropout's scale forgotten", "no 1/keep on the way back", wrong="W b_enc")
def dropout_unscaled(p, X, mask, other):
    del other
    return dropout_grad(p, X, mask, mask, rate=1.0)


# ---- entries -------------------------------------------------------------------------


@bug(tied, "one row zero", "a latent's weights get no gradient", wrong="W")
def one_row_zero(p, X):
    grads = tied_grad(p, X)
    return grads._replace(W=grads.W.at[1].set(0.0))


@bug(tied, "two rows swapped", "an index off by one", wrong="W")
def rows_swapped(p, X):
    grads = tied_grad(p, X)
    return grads._replace(W=grads.W.at[:2].set(grads.W[1::-1]))


@bug(tied, "one entry off by 1 %", "W[1, 2], whatever its size", wrong="W")
def one_entry_off(p, X):
    grads = tied_grad(p, X)
    return grads._replace(W=grads.W.at[1, 2].multiply(1.01))


@bug(tied, "one leaf off by 1 %", "the smallest error that we know of", wrong="b_enc")
def one_leaf_off(p, X):
    grads = tied_grad(p, X)
    return grads._replace(b_enc=1.01 * grads.b_enc)


@bug(tied, "sign", "x - x_hat for x_hat - x", wrong=ALL)
def sign(p, X):
    return jax.tree.map(jnp.negative, tied_grad(p, X))


@bug(tied, "one leaf zero", "a bias that was never connected", wrong="b_enc")
def one_leaf_zero(p, X):
    grads = tied_grad(p, X)
    return grads._replace(b_enc=jnp.zeros_like(grads.b_enc))


@bug(tied, "clipped", "entries clipped to half of the largest", wrong="W")
def clipped(p, X):
    grads = tied_grad(p, X)
    bound = jnp.max(jnp.abs(grads.W)) / 2
    return grads._replace(W=jnp.clip(grads.W, -bound, bound))


# ---- precision -----------------------------------------------------------------------


def bfloat16(x):
    """Rounded to 8 significant bits, in a way that compilers do not remove."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


@bug(tied, "low-precision accumulation", "a running sum in bfloat16", wrong=ALL)
def low_precision_sum(p, X):
    def add(total, x):
        grads = jax.grad(lambda p: example_loss(p, x, x))(p)
        return jax.tree.map(lambda t, g: bfloat16(t + g), total, grads), None

    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, p), X)
    return jax.tree.map(lambda leaf: leaf / len(X), total)


@bug(tied, "low-precision operands", "outer products of bfloat16 factors", wrong="W")
def low_precision_operands(p, X):
    s = backward(p, X, X)
    rounded = jax.tree.map(bfloat16, s)
    return assemble(s, X)._replace(W=assemble(rounded, bfloat16(X)).W)


@bug(tied, "8-bit gradient", "quantised to 255 levels for transport", wrong="W")
def eight_bits(p, X):
    grads = tied_grad(p, X)
    step = jnp.max(jnp.abs(grads.W)) / 127
    return grads._replace(W=jnp.round(grads.W / step) * step)
