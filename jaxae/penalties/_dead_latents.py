"""Penalties that train dead latents: aux_k and pre_act.

A latent is dead that was 0 on every example of the last `dead_after` batches.

References:
  Gao et al., Scaling and evaluating sparse autoencoders, 2024 (aux_k). Circuits
  updates, Anthropic, January 2025 (pre_act).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxae import _checks, activations, prefixes, sparse
from jaxae.autoencoder import Autoencoder
from jaxae.penalties._base import (
    SPARSE,
    decoder_pullback,
    row_norms,
    row_norms_vjp,
)
from jaxae.sparse import Codes
from jaxae.terms import Cotangents, Pass, Penalty

# ---- aux_k: 1/2 mean_b ||e_b - W_dec^T z'_b||^2, e = x - x_hat held fixed ------------


def aux_k(k: int) -> Penalty:
    """1/2 mean_b ||e_b - e_hat_b||^2, for dead latents to explain the residual.

    e_b = target_b - x_hat_b is held fixed, and e_hat_b = sum_j z'_bj W_dec,j without
    b_dec, which x_hat contains; z'_b are the k largest pre-activations of dead latents,
    at least 0 (of largest magnitude, with their signs, for latents below 0). The value
    is 0 while no latent is dead. Under prefixes, it is the mean over prefixes of this
    value, of the prefix's residual and the chosen latents that it contains; the
    gradient is cut between prefixes as that of the reconstruction is.

    It has the scale of the half squared error, the loss of gaussian: neither is divided
    by D or by a variance. The coefficient is hparams["aux_k"].

    Args:
      k: at most latent_dim; the paper uses about D / 2.

    Raises:
      ValueError: for a k that is not an integer above 0; in an objective, for more than
        latent_dim, or an observation whose mean is not its eta.

    References:
      Gao et al., Scaling and evaluating sparse autoencoders, 2024.
    """
    return _aux_k(_checks.positive_int("k", k))


@functools.cache  # the same number gives the same object
def _aux_k(k: int) -> Penalty:
    return Penalty(
        "aux_k",
        functools.partial(_aux_k_value, k),
        functools.partial(_aux_k_cotangents, k),
        check=functools.partial(_check_aux_k, k),
        needs_dead=True,
        holds_fixed=True,
        made_by=(aux_k, (k,)),
    )


class _Residuals(NamedTuple):
    """What the chosen dead latents explain, and what they leave."""

    codes: Codes
    W_dec: Float[Array, "H O"]
    left: Float[Array, "B M O"]  # e - e_hat of each prefix


def _residuals(k: int, ae: Autoencoder, params, p: Pass) -> _Residuals:
    assert p.is_dead is not None and p.levels is not None and p.etas is not None
    W_dec = ae.parametrization.expand(params).W_dec
    dead = jnp.where(p.is_dead[None], p.a, 0)  # a 0 may be chosen, and adds nothing
    codes = _codes_of(ae)(dead, k)
    of_levels = sparse.decode(codes, W_dec, p.levels.sizes)
    # Without b_dec: x_hat, and so the residual, contains it already.
    no_bias = jnp.zeros_like(of_levels[:, 0])
    e_hats = prefixes.etas(of_levels, no_bias, p.levels.is_cut)
    residuals = jax.lax.stop_gradient(p.targets[:, None] - p.etas)
    return _Residuals(codes, W_dec, residuals - e_hats)


def _codes_of(ae: Autoencoder):
    is_signed = ae.activation.output_range[0] < 0
    return activations.abs_topk_codes if is_signed else activations.topk_codes


def _if_any_is_dead(p: Pass, compute: Callable[[], Any]):
    """compute(), or zeros like its result while no latent is dead, at no cost."""
    assert p.is_dead is not None
    result = jax.eval_shape(compute)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), result)
    return jax.lax.cond(jnp.any(p.is_dead), compute, lambda: zeros)


def _aux_k_value(k: int, ae: Autoencoder, params, p: Pass):
    def value():
        left = _residuals(k, ae, params, p).left
        return jnp.mean(jnp.sum(left**2, axis=-1)) / 2

    return _if_any_is_dead(p, value)


def _aux_k_cotangents(k: int, ae: Autoencoder, params, p: Pass):
    return _if_any_is_dead(p, lambda: _cotangents_of_dead(k, ae, params, p))


def _cotangents_of_dead(k: int, ae: Autoencoder, params, p: Pass) -> Cotangents:
    """By codes: of the size B x H there are only the pre-activations of the dead."""
    codes, W_dec, left = _residuals(k, ae, params, p)
    assert p.levels is not None
    sizes = p.levels.sizes
    num_examples, num_prefixes, _ = left.shape
    d_e_hats = -left / (num_examples * num_prefixes)
    d_levels = prefixes.d_contributions(d_e_hats, p.levels.is_cut)
    d_values = sparse.project(d_levels, W_dec, codes.indices, sizes)
    d_W_dec = sparse.sum_of_outer(codes, d_levels, W_dec, sizes)
    return Cotangents(
        a=Codes(jnp.where(codes.values != 0, d_values, 0), codes.indices),
        params=decoder_pullback(ae, params, d_W_dec),
    )


def _check_aux_k(k: int, ae: Autoencoder) -> None:
    if k > ae.latent_dim:
        raise _checks.ArgumentError(
            f"the penalty aux_k({k})",
            f"needs at least {k} latents",
            f"latent_dim {ae.latent_dim}",
        )
    if ae.observation.inverse_link is not activations.identity:
        raise _checks.ArgumentError(
            f"the penalty aux_k({k})",
            "explains the residual x - eta, but the mean of the observation "
            f"{ae.observation} is {ae.observation.inverse_link}(eta)",
            advice="use gaussian",
        )


# ---- pre_act: mean_b sum over dead j of relu(theta_j - a_bj) ||W_dec,j|| -------------
# theta is the threshold of jumprelu, in units of a, and 0 for other activations. The
# derivatives are those of the value, also by theta: nothing is straight-through.


def _pre_act_parts(ae: Autoencoder, params, p: Pass):
    assert p.is_dead is not None
    W_dec, g = ae.parametrization.expand(params).W_dec, ae.activation
    theta = jnp.zeros(p.a.shape[1], p.a.dtype)
    if g.threshold is not None:
        theta = g.threshold(*params.activation).astype(p.a.dtype)
    below = theta[None] - p.a
    is_below = (below > 0) & p.is_dead[None]
    return W_dec, row_norms(W_dec), jnp.where(is_below, below, 0), is_below


def _pre_act(ae: Autoencoder, params, p: Pass):
    _, norms, below, _ = _pre_act_parts(ae, params, p)
    return jnp.mean(jnp.sum(below * norms[None], axis=-1))


def _pre_act_cotangents(ae: Autoencoder, params, p: Pass):
    W_dec, norms, below, is_below = _pre_act_parts(ae, params, p)
    d_below = jnp.where(is_below, norms[None], 0) / len(p.a)
    d_W_dec = row_norms_vjp(W_dec, norms, jnp.mean(below, axis=0))
    d_params = decoder_pullback(ae, params, d_W_dec)
    if (threshold_vjp := ae.activation.threshold_vjp) is not None:
        d_theta = threshold_vjp(jnp.sum(d_below, axis=0), *params.activation)
        d_params = d_params._replace(activation=d_theta)
    return Cotangents(a=-d_below, params=d_params)


pre_act = Penalty("pre_act", _pre_act, _pre_act_cotangents, needs_dead=True)

SPARSE |= {"aux_k": aux_k, "pre_act": pre_act}
