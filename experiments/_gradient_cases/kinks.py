"""Right gradients that are hard to check: kinks, ties and declared surrogates."""

import jax
import jax.numpy as jnp
import numpy as np

from _gradient_cases import published
from _gradient_cases.case import Catalogue, Function, f32
from _gradient_cases.models import (
    Tied,
    Untied,
    bernoulli,
    mean,
    sigmoid,
    softplus,
    tied,
    tied_grad,
    tied_inputs,
    untied_inputs,
)
from _gradient_cases.numerics import vector
from _gradient_cases.parts import activated, hold, relu, with_d_a

CASES = Catalogue()
right = CASES.right


# ---- kinks and ties: the claim is between the one-sided slopes -----------------------


def dead_inputs(rng, size):
    """A latent whose pre-activations are exactly 0; no input is below 0."""
    params, X = untied_inputs(rng, size)
    params.W_enc[0], params.b_enc[0] = 0, 0
    return params, np.abs(X)


@right(relu._replace(inputs=dead_inputs), "relu at exactly 0", "its slope there is 0")
def relu_at_zero(p, X):
    a, z, residual, d_z = activated(jax.nn.relu, p, X)
    return with_d_a(jnp.where(a > 0, d_z, 0), z, residual, X)


def all_dead_inputs(rng, size):
    params, X = untied_inputs(rng, size)
    return params._replace(b_enc=params.b_enc - 100), X


@right(
    relu._replace(inputs=all_dead_inputs),
    "all latents dead",
    "three leaves have no gradient at all",
)
def all_dead(p, X):
    zero = jnp.zeros_like(p.W_enc)
    b_dec = jnp.mean(p.b_dec[None] - X, axis=0)
    return Untied(zero, zero, jnp.zeros_like(p.b_enc), b_dec)


def with_zeros(rng, size):
    """A third of the weights are exactly 0, as after pruning."""
    params, X = tied_inputs(rng, size)
    params.W[:, ::3] = 0
    return params, X


@right(
    Function(with_zeros, lambda p, X: tied.loss(p, X) + jnp.sum(jnp.abs(p.W))),
    "|w| at exactly 0",
    "an l1 penalty on weights of which a third are 0",
)
def absolute_at_zero(p, X):
    grads = tied_grad(p, X)
    return grads._replace(W=grads.W + jnp.sign(p.W))


def tied_maximum(rng, size):
    """Two entries share the largest value."""
    x = vector(rng, size)
    x[np.argsort(x)[-2:]] = x.max() + 1
    return ({"x": x},)


@right(
    Function(tied_maximum, lambda p: jnp.max(p["x"])),
    "maximum with a tie",
    "each of the two largest gets one half",
)
def tie(p):
    is_largest = p["x"] == jnp.max(p["x"])
    return {"x": is_largest / jnp.sum(is_largest).astype(p["x"].dtype)}


def tied_top_k(rng, size):
    """The k-th and the k+1-th largest values are equal."""
    x = np.sort(np.abs(vector(rng, size)))[::-1].copy()
    x[len(x) // 4] = x[len(x) // 4 - 1]
    return ({"x": x},)


@right(
    Function(tied_top_k, lambda p: jnp.sum(jax.lax.top_k(p["x"], len(p["x"]) // 4)[0])),
    "top-k with a tie",
    "of two equal entries the first is selected",
)
def tied_selection(p):
    _, indices = jax.lax.top_k(p["x"], len(p["x"]) // 4)
    return {"x": jnp.zeros_like(p["x"]).at[indices].set(1.0)}


def with_zero_rows(rng, size):
    params, X = tied_inputs(rng, size)
    params.W[0] = 0
    return params, X


def safe_norms(W):
    """Norms of the rows, with a derivative of 0 where the norm is 0."""
    squares = jnp.sum(W**2, axis=1)
    is_zero = squares == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squares)))


def group_loss(p, X):
    return tied.loss(p, X) + jnp.sum(safe_norms(p.W))


@right(
    Function(with_zero_rows, group_loss),
    "norm of a zero row",
    "a group penalty where a row is 0: a cone's tip",
)
def norm_at_zero(p, X):
    lengths = safe_norms(p.W)[:, None]
    unit = jnp.where(lengths == 0, 0, p.W / jnp.where(lengths == 0, 1, lengths))
    grads = tied_grad(p, X)
    return grads._replace(W=grads.W + unit)


# ---- declared surrogates -------------------------------------------------------------


def binary_inputs(rng, size):
    params, X = tied_inputs(rng, size)
    return params, X - f32(0.5)


def binary_loss(p, x):
    """Latents rounded to 0 or 1 in the forward pass only."""
    z = sigmoid(p.W @ x + p.b_enc)
    z = z + hold(jnp.round(z) - z)
    return bernoulli(p.W.T @ z + p.b_dec, x + 0.5)


@right(
    Function(binary_inputs, mean(binary_loss), ("W", "b_enc")),
    "straight-through",
    "declared: rounding counts as the identity",
)
def straight_through(p, X):
    Z = sigmoid(X @ p.W.T + p.b_enc[None])
    d_eta = sigmoid(jnp.round(Z) @ p.W + p.b_dec[None]) - (X + 0.5)
    d_a = d_eta @ p.W.T * Z * (1 - Z)
    W = d_a.T @ X + jnp.round(Z).T @ d_eta
    return Tied(W / len(X), jnp.mean(d_a, axis=0), jnp.mean(d_eta, axis=0))


right(
    published.auxk,
    "AuxK, residual detached",
    "declared: the residual is held, as it should be",
)(jax.grad(published.auxk.loss))


@right(
    published.jump_relu,
    "JumpReLU threshold",
    "declared: the function has no slope in log θ, training needs one",
)
def jump_relu(p, X):
    model, threshold = p["model"], jnp.exp(p["log_threshold"])
    A = X @ model.W_enc.T + model.b_enc[None]
    is_on = A > threshold[None]
    residual = (A * is_on) @ model.W_dec + model.b_dec[None] - X
    d_z = 2 * residual @ model.W_dec.T
    # d theta: -θ over the bandwidth of 1, times θ again for the logarithm.
    is_near = jnp.abs(A - threshold[None]) < 0.5
    d_theta = -threshold * jnp.sum(d_z * is_near, axis=0) / len(X)
    grads = with_d_a(d_z * is_on, A * is_on, 2 * residual, X)
    return {"log_threshold": d_theta * threshold, "model": grads}


def target_loss(p, x):
    """The distance of a noisy view's latents to the clean one's, which are detached."""
    z, target = sigmoid(p.W @ x + p.b_enc), hold(sigmoid(p.W @ (0.9 * x) + p.b_enc))
    return jnp.sum((z - target) ** 2) / 2 + jnp.sum(softplus(p.b_dec) - p.b_dec * x)


@right(
    tied._replace(loss=mean(target_loss), surrogate=("W", "b_enc")),
    "detached target",
    "declared: the target moves with the parameters, its gradient is not taken",
)
def detached_target(p, X):
    Z = sigmoid(X @ p.W.T + p.b_enc[None])
    target = sigmoid(0.9 * X @ p.W.T + p.b_enc[None])
    d_a = (Z - target) * Z * (1 - Z) / len(X)
    b_dec = jnp.mean(sigmoid(p.b_dec)[None] - X, axis=0)
    return Tied(d_a.T @ X, jnp.sum(d_a, axis=0), b_dec)
