"""The two penalties that train the gate of the gated activation.

References:
  Rajamanoharan et al., Improving dictionary learning with gated sparse autoencoders,
  2024.
"""

import jax
import jax.numpy as jnp

from jaxae import _checks, activations
from jaxae.autoencoder import Autoencoder
from jaxae.autoencoder.model import decoder_pre_acts
from jaxae.penalties._base import SPARSE
from jaxae.terms import Cotangents, Pass, Penalty


def _check_gated(name: str, ae: Autoencoder) -> None:
    if ae.activation is not activations.gated:
        raise _checks.ArgumentError(
            f"the {name} penalty",
            "trains the gate of the activation gated, but the activation is "
            f"{ae.activation}",
            advice="use gated",
        )


def _gate(p: Pass):
    """relu(a) `[B, H]`, with relu'(0) = 0."""
    return activations.relu.apply(p.a)


# ---- gated_l1: mean_b sum_j relu(a_bj) -----------------------------------------------
# The paper's form, without ||W_dec,j||: its decoder has rows of norm 1. Train with
# `optimizers.build(..., unit_norm=True)`, or larger rows lower the penalty.


def _gated_l1(ae, params, p: Pass):
    del ae, params
    return jnp.mean(jnp.sum(_gate(p), axis=-1))


def _gated_l1_cotangents(ae, params, p: Pass):
    del ae, params
    return Cotangents(a=(p.a > 0).astype(p.a.dtype) / len(p.a))


def _check_gated_l1(ae: Autoencoder) -> None:
    _check_gated("gated_l1", ae)


gated_l1 = Penalty("gated_l1", _gated_l1, _gated_l1_cotangents, check=_check_gated_l1)

# ---- gated_aux: mean_b l(W_dec^T relu(a_b) + b_dec, x_b), the decoder held fixed -----
# W_dec, b_dec, W_skip and the observation's parameters are constants, so that the term
# trains the gate's path alone. Where the encoder shares them (tied, pre_bias), they are
# trained through a.


def _gate_losses(ae: Autoencoder, untied, p: Pass):
    def loss(gate, x, target):
        eta = decoder_pre_acts(untied, gate, x)
        return ae.observation.checked_loss(eta, target, untied.observation)

    return jax.vmap(loss)(_gate(p), p.inputs, p.targets)


def _gated_aux(ae: Autoencoder, params, p: Pass):
    untied = jax.lax.stop_gradient(ae.parametrization.expand(params))
    return jnp.mean(_gate_losses(ae, untied, p))


def _gated_aux_cotangents(ae: Autoencoder, params, p: Pass):
    untied = ae.parametrization.expand(params)

    def d_gate_of(gate, x, target):
        eta = decoder_pre_acts(untied, gate, x)
        d_eta = ae.observation.checked_dloss(eta, target, untied.observation)
        return untied.W_dec @ d_eta

    d_gates = jax.vmap(d_gate_of)(_gate(p), p.inputs, p.targets) / len(p.a)
    return Cotangents(a=jnp.where(p.a > 0, d_gates, 0))


def _check_gated_aux(ae: Autoencoder) -> None:
    _check_gated("gated_aux", ae)


gated_aux = Penalty(
    "gated_aux",
    _gated_aux,
    _gated_aux_cotangents,
    check=_check_gated_aux,
    holds_fixed=True,
)

SPARSE |= {penalty.name: penalty for penalty in (gated_l1, gated_aux)}
