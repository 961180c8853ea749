"""The checks of jaxae and of JAX, on one function."""

import jax
import jax.numpy as jnp
from jax.test_util import check_grads as jax_check_grads

from benchmarks.one_model.work import Work


def loss(params, X):
    """The mean over the rows of X of -log p(x | x_hat)."""
    H = jax.nn.sigmoid(X @ params["W"].T + params["b"])
    eta = H @ params["W"] + params["c"]
    return jnp.sum(jnp.logaddexp(0, eta) - X * eta) / len(X)


def inputs(work: Work, dtype):
    """The parameters and the rows."""
    [W] = work.weights()
    b, c = jnp.zeros(work.latent_dim, dtype), jnp.zeros(work.input_dim, dtype)
    params = {"W": jnp.asarray(W, dtype), "b": b, "c": c}
    return params, jnp.asarray(work.data(), dtype)


def jaxae_check(is_first: bool, **options):
    """`jaxae.gradcheck.check`, of float32 parameters; it computes in float64 itself."""
    import jaxae

    params, X = inputs(Work(**options), jnp.float32)
    expected, grad = float(loss(params, X)), jax.jit(jax.grad(loss))

    def run():
        if is_first:
            jax.clear_caches()
        report = jaxae.gradcheck.check(loss, params, X, grad=grad)
        return {"accepted": report.ok, "loss": expected}

    return run


def check_grads(is_first: bool, **options):
    """`jax.test_util.check_grads`, under x64; it calls a compiled loss."""
    jax.config.update("jax_enable_x64", True)
    params, X = inputs(Work(**options), jnp.float64)
    expected, compiled = float(loss(params, X)), jax.jit(loss)

    def run():
        if is_first:
            jax.clear_caches()
        try:
            jax_check_grads(lambda p: compiled(p, X), (params,), 1, modes=["rev"])
        except AssertionError:
            return {"accepted": False, "loss": expected}
        return {"accepted": True, "loss": expected}

    return run
