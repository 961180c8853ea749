"""Penalties on how many latents are active, and how much, with sparse latents.

References:
  Rajamanoharan et al., Jumping ahead: improving reconstruction fidelity with JumpReLU
  sparse autoencoders, 2024 (l0). Conerly et al., Update on how we train SAEs, Anthropic
  circuits updates, April 2024 (l1_decoder_norm); Circuits updates, January 2025
  (tanh_sparsity).
"""

import jax
import jax.numpy as jnp

from jaxae import _checks
from jaxae.autoencoder import Autoencoder
from jaxae.penalties._base import (
    SPARSE,
    decoder_pullback,
    row_norms,
    row_norms_vjp,
)
from jaxae.terms import Cotangents, Pass, Penalty

# ---- l1_decoder_norm: mean_b sum_j |z_bj| ||W_dec,j|| --------------------------------
# Unlike l1, it cannot be lowered by smaller z with larger rows of the decoder.


def _l1_decoder_norm(ae: Autoencoder, params, p: Pass):
    norms = row_norms(ae.parametrization.expand(params).W_dec)
    return jnp.mean(jnp.sum(_magnitudes(p.z) * norms[None], axis=-1))


def _l1_decoder_norm_cotangents(ae: Autoencoder, params, p: Pass):
    W_dec = ae.parametrization.expand(params).W_dec
    norms = row_norms(W_dec)
    d_norms = jnp.mean(jnp.abs(p.z), axis=0)
    return Cotangents(
        z=jnp.sign(p.z) * norms[None] / len(p.z),
        params=decoder_pullback(ae, params, row_norms_vjp(W_dec, norms, d_norms)),
    )


def _magnitudes(z):
    """|z|, whose gradient by autodiff is 0 at 0, as in l1."""
    return z * jnp.sign(z)


l1_decoder_norm = Penalty(
    "l1_decoder_norm", _l1_decoder_norm, _l1_decoder_norm_cotangents
)

# ---- tanh_sparsity: mean_b sum_j tanh(c |z_bj| ||W_dec,j||) --------------------------
# c is tanh_sparsity_scale. Strongly active latents cost 1, and are not shrunk.


def _tanh_parts(ae: Autoencoder, params, p: Pass):
    W_dec = ae.parametrization.expand(params).W_dec
    norms, scale = row_norms(W_dec), p.hparams["tanh_sparsity_scale"]
    return W_dec, norms, jnp.tanh(scale * _magnitudes(p.z) * norms[None])


def _tanh_sparsity(ae, params, p: Pass):
    return jnp.mean(jnp.sum(_tanh_parts(ae, params, p)[2], axis=-1))


def _tanh_sparsity_cotangents(ae, params, p: Pass):
    W_dec, norms, t = _tanh_parts(ae, params, p)
    d_product = p.hparams["tanh_sparsity_scale"] * (1 - t**2) / len(p.z)
    d_norms = jnp.sum(d_product * jnp.abs(p.z), axis=0)
    return Cotangents(
        z=d_product * jnp.sign(p.z) * norms[None],
        params=decoder_pullback(ae, params, row_norms_vjp(W_dec, norms, d_norms)),
    )


def _check_scale(hparams) -> None:
    _checks.POSITIVE.check("tanh_sparsity_scale", hparams)


tanh_sparsity = Penalty(
    "tanh_sparsity",
    _tanh_sparsity,
    _tanh_sparsity_cotangents,
    hparams=("tanh_sparsity_scale",),
    check_hparams=_check_scale,
)

# ---- l0: mean_b sum_j 1[a_bj > theta_j] ----------------------------------------------
# Its derivative is the activation's straight-through estimator, which moves thresholds
# alone: d 1[a > theta] / dtheta = -(1 / eps) K((a - theta) / eps).


def _l0(ae: Autoencoder, params, p: Pass):
    g = ae.activation.at(p.hparams)  # a bandwidth of the hparams counts

    def gates_of(a):
        assert g.gate is not None  # check rejects it
        gates = g.gate(a, *params.activation)
        return _checks.returned(f"activation {g}: gate", gates, a.shape)

    gates = jax.vmap(gates_of)(p.a)
    gates = gates if p.mask is None else jnp.where(p.mask[None], gates, 0)
    return jnp.mean(jnp.sum(gates, axis=-1))


def _l0_cotangents(ae: Autoencoder, params, p: Pass):
    g = ae.activation.at(p.hparams)
    is_latent = jnp.ones(p.a.shape[1], bool) if p.mask is None else p.mask
    d_gates = (is_latent / len(p.a)).astype(p.a.dtype)

    def vjp_of(a):
        assert g.gate_vjp is not None  # check rejects it
        da, d_theta = g.gate_vjp(a, d_gates, *params.activation)
        what = f"activation {g}: gate_vjp"
        return _checks.returned_like(what, (da, d_theta), (a, params.activation))

    d_a, d_theta = jax.vmap(vjp_of)(p.a)
    d_theta = jax.tree.map(lambda d: jnp.sum(d, axis=0), d_theta)
    zeros = jax.tree.map(jnp.zeros_like, params)
    return Cotangents(a=d_a, params=zeros._replace(activation=d_theta))


def _check_gate(ae: Autoencoder) -> None:
    if ae.activation.gate is None or ae.activation.gate_vjp is None:
        raise _checks.ArgumentError(
            "the l0 penalty",
            f"needs an activation with gate and gate_vjp, but {ae.activation} has none",
            advice="use jumprelu()",
        )


l0 = Penalty("l0", _l0, _l0_cotangents, check=_check_gate)

SPARSE |= {penalty.name: penalty for penalty in (l1_decoder_norm, tanh_sparsity, l0)}
