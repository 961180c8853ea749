"""Right gradients that are hard to check: precision, scale and cancellation."""

import jax
import jax.numpy as jnp
import numpy as np

from _gradient_cases.case import Catalogue, Function, f32
from _gradient_cases.models import (
    Tied,
    assemble,
    backward,
    bernoulli,
    denoising,
    mean,
    sigmoid,
    tied,
    tied_grad,
    tied_inputs,
)
from _gradient_cases.parts import lookup_loss

CASES = Catalogue()
right = CASES.right


def vector(rng, size):
    """Unstructured random numbers, as many as there are latents and inputs."""
    return f32(rng.normal(size=size.H + size.D))


def vector_inputs(rng, size):
    return (vector(rng, size),)


# ---- precision -----------------------------------------------------------------------


def narrow(dtype):
    def inputs(rng, size):
        return jax.tree.map(
            lambda leaf: jnp.asarray(leaf, dtype), tied_inputs(rng, size)
        )

    return tied._replace(inputs=inputs)


for dtype in (jnp.bfloat16, jnp.float16):
    name = jnp.dtype(dtype).name
    right(narrow(dtype), name, f"parameters, data and claim in {name}")(tied_grad)


def many_inputs(rng, size):
    return tied_inputs(rng, size._replace(B=max(8 * size.B, 1024)))


right(tied._replace(inputs=many_inputs), "large batch", "1024 examples")(tied_grad)


def saturated_inputs(rng, size):
    """Pre-activations of both signs, most of size 5 to 20."""
    params, X = tied_inputs(rng, size)
    return params._replace(W=20 * params.W), X - f32(0.5)


def stable_loss(p, x):
    return bernoulli(p.W.T @ sigmoid(p.W @ x + p.b_enc) / 20 + p.b_dec, x + 0.5)


@right(
    Function(saturated_inputs, mean(stable_loss)),
    "saturated sigmoids",
    "slopes down to 1e-9, as sigm(a) sigm(-a) so that nothing cancels",
)
def saturated(p, X):
    def example(x):
        a = p.W @ x + p.b_enc
        z = sigmoid(a)
        d_eta = sigmoid(p.W.T @ z / 20 + p.b_dec) - (x + 0.5)
        d_a = p.W @ d_eta / 20 * z * sigmoid(-a)
        return a, z, d_eta, d_a

    _, z, d_eta, d_a = jax.vmap(example)(X)
    W = d_a.T @ X + z.T @ d_eta / 20
    return Tied(W / len(X), jnp.mean(d_a, axis=0), jnp.mean(d_eta, axis=0))


def all_saturated_inputs(rng, size):
    signs = np.where(rng.uniform(size=size.H + size.D) < 0.5, -1, 1)
    return ({"x": f32(signs * rng.uniform(12, 18, size=len(signs)))},)


@right(
    Function(all_saturated_inputs, lambda p: jnp.sum(sigmoid(p["x"]))),
    "nothing but saturated",
    "every slope is below 1e-5, and the value moves by as little",
)
def all_saturated(p):
    return {"x": sigmoid(p["x"]) * sigmoid(-p["x"])}


def scaled_inputs(rng, size):
    params, X = tied_inputs(rng, size)
    scaled = Tied(params.W * f32(1e4), params.b_enc * f32(1e-4), params.b_dec)
    return scaled, X


def scaled_loss(p, X):
    """W in units of 1e-4 and b_enc in units of 1e4: gradients of 1e-4 and 1e4."""
    return tied.loss(Tied(1e-4 * p.W, 1e4 * p.b_enc, p.b_dec), X)


@right(
    Function(scaled_inputs, scaled_loss),
    "badly scaled leaves",
    "one leaf's gradient is 1e8 times another's",
)
def scaled(p, X):
    grads = tied_grad(Tied(1e-4 * p.W, 1e4 * p.b_enc, p.b_dec), X)
    return Tied(1e-4 * grads.W, 1e4 * grads.b_enc, grads.b_dec)


right(
    tied._replace(loss=lambda p, X: 1e6 + tied.loss(p, X)),
    "large offset",
    "a constant 1e6 beside a loss of the order of D",
)(tied_grad)


@right(
    tied._replace(loss=lambda p, X: 1e-12 * tied.loss(p, X)),
    "tiny loss",
    "value and gradient of the order of 1e-12",
)
def tiny(p, X):
    return jax.tree.map(lambda leaf: 1e-12 * leaf, tied_grad(p, X))


def cancelling_inputs(rng, size):
    """An orthonormal linear autoencoder: x_hat equals x up to rounding."""
    n = min(size.D, size.H)
    W = np.linalg.qr(rng.normal(size=(n, n)))[0]
    X = rng.normal(size=(size.B, n))
    return {"W": f32(W + 1e-3 * rng.normal(size=W.shape))}, f32(X)


def linear_loss(p, x):
    return jnp.sum((p["W"].T @ (p["W"] @ x) - x) ** 2) / 2


@right(
    Function(cancelling_inputs, mean(linear_loss)),
    "x_hat - x cancels",
    "a good reconstruction, so that rounding is most of the residual's error",
)
def cancelling(p, X):
    Z = X @ p["W"].T
    residual = Z @ p["W"] - X
    return {"W": ((residual @ p["W"].T).T @ X + Z.T @ residual) / len(X)}


# ---- shapes of functions -------------------------------------------------------------


def rare_inputs(rng, size):
    """A table of which only three rows are looked up."""
    table = f32(rng.normal(size=(max(size.H, 5), size.D)))
    return {"table": table}, np.asarray([1, 1, 3]), f32(rng.normal(size=(3, size.D)))


@right(
    Function(rare_inputs, lookup_loss),
    "sparse gradient",
    "two rows of a table, one of them looked up twice",
)
def sparse(p, indices, X):
    rows = (p["table"][indices] - X) / len(X)
    return {"table": jnp.zeros_like(p["table"]).at[indices].add(rows)}


right(
    Function(
        lambda rng, size: (vector(rng, size),), lambda x: jnp.sum(jnp.sin(100 * x))
    ),
    "fast oscillation",
    "the slope changes sign within 1 % of an entry",
)(lambda x: 100 * jnp.cos(100 * x))


right(
    Function(
        lambda rng, size: (1e4 * vector(rng, size),),
        lambda x: jax.scipy.special.logsumexp(x),
    ),
    "log-sum-exp of thousands",
    "exp would overflow; all but one entry underflow",
)(jax.nn.softmax)


def shifted_inputs(rng, size):
    return {"x": vector(rng, size), "shift": f32(0.3)}, vector(rng, size)


@right(
    Function(
        shifted_inputs, lambda p, v: jnp.vdot(jax.nn.softmax(p["x"] + p["shift"]), v)
    ),
    "gradient exactly 0",
    "a softmax does not see a shift; what is claimed for it is rounding",
)
def shift_invariant(p, v):
    s = jax.nn.softmax(p["x"] + p["shift"])
    d_a = s * (v - jnp.vdot(s, v))
    return {"x": d_a, "shift": jnp.sum(d_a)}


def optimum_inputs(rng, size):
    x = vector(rng, size)
    return x, x


right(
    Function(optimum_inputs, lambda x, target: jnp.sum((x - target) ** 2)),
    "at the optimum",
    "the gradient is 0, the curvature is not",
)(lambda x, target: 2 * (x - target))


@right(
    Function(
        lambda rng, size: ({"x": 5 + vector(rng, size)}, f32([3.0])),
        lambda p, k: jnp.sum(jnp.exp(p["x"]) - k * p["x"]),
    ),
    "exponential link",
    "a Poisson loss with rates from 10 to 3000",
)
def poisson(p, k):
    return {"x": jnp.exp(p["x"]) - k}


@right(denoising, "claim in NumPy", "no tracer goes through it", untraceable=True)
def in_numpy(p, X_noisy, X):
    W, b_enc, b_dec, X_noisy, X = map(np.asarray, (*p, X_noisy, X))
    z = 1 / (1 + np.exp(-(X_noisy @ W.T + b_enc)))
    d_eta = 1 / (1 + np.exp(-(z @ W + b_dec))) - X
    d_a = d_eta @ W.T * z * (1 - z)
    grads = Tied(d_a.T @ X_noisy + z.T @ d_eta, d_a.sum(axis=0), d_eta.sum(axis=0))
    return jax.tree.map(lambda leaf: leaf / len(X), grads)


def dropped_inputs(rng, size):
    params, X = tied_inputs(rng, size)
    return params, X, np.asarray([0, rng.integers(2**31)], np.uint32)


def mask(key, X):
    return jax.random.bernoulli(key, jnp.float32(0.7), X.shape)


@right(
    Function(dropped_inputs, lambda p, X, key: denoising.loss(p, mask(key, X) * X, X)),
    "noise drawn inside",
    "the mask is drawn from a key, which is an argument",
)
def drawn_inside(p, X, key):
    X_noisy = mask(key, X) * X
    return assemble(backward(p, X_noisy, X), X_noisy)
