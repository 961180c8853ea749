"""Matching pursuit: latents chosen one after another, each for what the others left.

References:
  Mallat and Zhang, Matching pursuits with time-frequency dictionaries, 1993. Costa et
  al., From flat to hierarchical: extracting sparse representations with matching
  pursuit, 2025.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxae import _checks
from jaxae.activations import _topk
from jaxae.activations._base import SPARSE, Activation
from jaxae.sparse import Codes, dense


def matching_pursuit(k) -> Activation:
    """z by k steps that each explain a part of the residual r, from r_1 = x.

        j_t = argmax_j a_j(r_t),  c_t = relu(a_j_t(r_t)),  r_{t+1} = r_t - c_t W_dec,j_t

    with a(r) = W_enc r + b_enc, and z_j = sum of c_t over the steps with j_t = j. Of
    equal pre-activations the one of lowest index is chosen. The gradient is that of the
    values, with the choices held fixed.

    It is meant for tied weights with rows of norm 1, which
    `optimizers.build(unit_norm=True)` keeps, or for `aligned` ones: a step then makes
    the chosen pre-activation 0.
    hparams["k"], an integer from 1 to k, replaces k.

    Raises:
      ValueError: for a k that is not an integer above 0.
    """
    return _matching_pursuit(_checks.positive_int("k", k))


@functools.cache
def _matching_pursuit(k: int) -> Activation:
    return _with_count(k, None)


def _with_count(k: int, count) -> Activation:
    codes = functools.partial(_codes, k, count)
    return Activation(
        f"matching_pursuit({k})",
        apply=functools.partial(_apply, codes),
        vjp=functools.partial(_vjp, codes),
        vjp_theta=functools.partial(_vjp_theta, codes),
        uses_weights=True,
        output_range=(0.0, math.inf),
        is_sparse=True,
        max_active=k,
        hparams=("k",),
        with_hparams=lambda g, hparams: _with_count(k, hparams["k"]),
        check_hparams=_topk.check_count,
        codes=codes,
        codes_vjp=_codes_vjp,
        for_inference=_with_number,
    )


def _with_number(g: Activation, hparams, theta, state, latent_dim):
    """The activation of hparams["k"] as its own k."""
    del state, latent_dim
    return _matching_pursuit(int(hparams.get("k", g.max_active))), theta


def _codes(k: int, count, A: Float[Array, "B H"], W_enc, W_dec) -> Codes:
    """c_t and j_t for each step t."""

    def step(A, t):
        j = jnp.argmax(A, axis=1)
        largest = jnp.take_along_axis(A, j[:, None], axis=1)
        is_used = largest > 0 if count is None else (largest > 0) & (t < count)
        c = jnp.where(is_used, largest, 0)
        change = (W_dec[j] @ W_enc.T).astype(A.dtype)
        return A - c * change, (c[:, 0], j)

    _, (values, indices) = jax.lax.scan(step, A, jnp.arange(k))
    return Codes(values.T, indices.T)


def _codes_vjp(codes: Codes, d_values, W_enc, W_dec):
    """dc_t, and the gradients by W_enc and W_dec through the residuals.

    With v_t = sum_{s > t} dc_s W_enc,j_s, the gradient by r_{t+1}:

        dc_t = dz_j_t - <W_dec,j_t, v_t> where c_t > 0, else 0
        dW_dec,j_t gets -c_t v_t,  dW_enc,j_t gets dc_t (r_t - x)
    """
    values, indices = codes.values.T, codes.indices.T
    dtype = codes.values.dtype
    zeros = jnp.zeros((len(codes.values), W_enc.shape[1]), dtype)

    def backward(carry, step):
        v, d_W_dec = carry
        c, j, d_z = step
        along = jnp.sum(W_dec[j].astype(dtype) * v, axis=1)
        d_c = jnp.where(c > 0, d_z - along, 0)
        d_W_dec = d_W_dec.at[j].add(-c[:, None] * v)
        return (v + d_c[:, None] * W_enc[j].astype(dtype), d_W_dec), d_c

    start = zeros, jnp.zeros(W_dec.shape, dtype)
    steps = values, indices, d_values.T
    (_, d_W_dec), d_c = jax.lax.scan(backward, start, steps, reverse=True)

    def forward(carry, step):
        from_x, d_W_enc = carry  # r_t - x
        c, j, d_c = step
        d_W_enc = d_W_enc.at[j].add(d_c[:, None] * from_x)
        return (from_x - c[:, None] * W_dec[j].astype(dtype), d_W_enc), None

    start = zeros, jnp.zeros(W_enc.shape, dtype)
    (_, d_W_enc), _ = jax.lax.scan(forward, start, (values, indices, d_c))
    return d_c.T, (d_W_enc, d_W_dec)


def _apply(codes, a: Float[Array, "H"], W_enc, W_dec) -> Float[Array, "H"]:
    return dense(codes(a[None], W_enc, W_dec), a.shape[0])[0]


def _of_example(codes, a, dz, W_enc, W_dec):
    of_one = codes(a[None], W_enc, W_dec)
    d_c, d_weights = _codes_vjp(of_one, dz[of_one.indices], W_enc, W_dec)
    return dense(Codes(d_c, of_one.indices), a.shape[0])[0], d_weights


def _vjp(codes, a, z, dz, W_enc, W_dec):
    del z
    return _of_example(codes, a, dz, W_enc, W_dec)[0]


def _vjp_theta(codes, a, z, dz, W_enc, W_dec):
    del z
    return _of_example(codes, a, dz, W_enc, W_dec)[1]


SPARSE["matching_pursuit"] = matching_pursuit
