"""The penalties of any model: l1, kl_sparsity, contractive, weight_decay."""

import jax
import jax.numpy as jnp

from jaxae import _checks
from jaxae.autoencoder import Autoencoder, UntiedParams
from jaxae.penalties._base import CATALOGUE
from jaxae.terms import Cotangents, Pass, Penalty

# ---- l1: mean_b sum_j |z_bj| ---------------------------------------------------------


def _l1(ae, params, p: Pass):
    del ae, params
    # |z| as z sign(z), whose gradient by autodiff is 0 at 0, the middle of the
    # subdifferential. The gradient of jnp.abs at 0 is 1.
    return jnp.mean(jnp.sum(p.z * jnp.sign(p.z), axis=-1))


def _l1_cotangents(ae, params, p: Pass):
    del ae, params
    return Cotangents(z=jnp.sign(p.z) / len(p.z))


l1 = Penalty("l1", _l1, _l1_cotangents)

# ---- kl_sparsity: sum_j KL(rho || mean_b z_bj), for latents in (0, 1) ----------------
# Ng, Sparse autoencoder, CS294A lecture notes, 2011. rho is kl_sparsity_target, and
# rho_hat_j the mean activity, mean_b z_bj.


def _activity(p: Pass):
    """rho, rho_hat `[H]`, and where rho_hat was clipped, which makes it constant."""
    rho, mean = p.hparams["kl_sparsity_target"], jnp.mean(p.z, axis=0)
    if p.mask is not None:
        mean = jnp.where(p.mask, mean, rho)  # the penalty of padding is 0
    # A sigmoid is above 0 and below 1, but rounds to them where it saturates. At 0 and
    # 1 the divergence is infinite, so use the nearest normal numbers between them.
    limits = jnp.finfo(mean.dtype)
    lowest, highest = float(limits.tiny), 1 - float(limits.epsneg)
    is_low, is_high = mean < lowest, mean > highest
    rho_hat = jnp.where(is_low, lowest, jnp.where(is_high, highest, mean))
    return rho, rho_hat, is_low | is_high


def _kl_sparsity(ae, params, p: Pass):
    del ae, params
    rho, rho_hat, _ = _activity(p)
    active = rho * (jnp.log(rho) - jnp.log(rho_hat))
    silent = (1 - rho) * (jnp.log1p(-rho) - jnp.log1p(-rho_hat))
    return jnp.sum(active + silent)


def _kl_sparsity_cotangents(ae, params, p: Pass):
    del ae, params
    rho, rho_hat, is_clipped = _activity(p)
    d_rho_hat = (1 - rho) / (1 - rho_hat) - rho / rho_hat
    d_rho_hat = jnp.where(is_clipped, 0, d_rho_hat)
    return Cotangents(z=jnp.broadcast_to(d_rho_hat / len(p.z), p.z.shape))


def _check_between_0_and_1(ae: Autoencoder) -> None:
    low, high = ae.activation.output_range
    if low < 0 or high > 1:
        raise _checks.ArgumentError(
            "the kl_sparsity penalty",
            "needs latents between 0 and 1, but those of "
            f"{ae.activation} lie in [{low}, {high}]",
            advice="use sigmoid",
        )


def _check_target(hparams) -> None:
    target = _checks.Range(lambda rho: 0 < rho < 1, "above 0 and below 1")
    target.check("kl_sparsity_target", hparams)


kl_sparsity = Penalty(
    "kl_sparsity",
    _kl_sparsity,
    _kl_sparsity_cotangents,
    hparams=("kl_sparsity_target",),
    check=_check_between_0_and_1,
    check_hparams=_check_target,
)

# ---- contractive: mean_b ||dz/dx||_F^2 = mean_b sum_j g'(a_bj)^2 ||W_enc,j||^2 -------
# Rifai, Vincent, Muller, Glorot and Bengio, Contractive auto-encoders, ICML 2011.


def _contractive_parts(ae: Autoencoder, params, p: Pass):
    assert ae.activation.slope is not None  # check rejects it
    untied = ae.parametrization.expand(params)
    slope = ae.activation.slope(p.a, p.z)
    slope = _checks.returned(f"activation {ae.activation}: slope", slope, p.a.shape)
    return untied, jnp.sum(untied.W_enc**2, axis=1), slope


def _contractive(ae, params, p: Pass):
    _, squared_norms, slope = _contractive_parts(ae, params, p)
    return jnp.mean(slope**2 @ squared_norms)


def _contractive_cotangents(ae, params, p: Pass):
    untied, squared_norms, slope = _contractive_parts(ae, params, p)
    curvature = ae.activation.curvature(p.a, p.z)
    curvature = _checks.returned(
        f"activation {ae.activation}: curvature", curvature, p.a.shape
    )
    d_W_enc = 2 * jnp.mean(slope**2, axis=0)[:, None] * untied.W_enc
    zeros: UntiedParams = jax.tree.map(jnp.zeros_like, untied)
    return Cotangents(
        a=2 * slope * curvature * squared_norms[None, :] / len(slope),
        params=ae.parametrization.pullback(params, zeros._replace(W_enc=d_W_enc)),
    )


def _check_elementwise(ae: Autoencoder) -> None:
    if ae.activation.slope is None or ae.activation.curvature is None:
        raise _checks.ArgumentError(
            "the contractive penalty",
            "needs an activation with slope and curvature, but "
            f"{ae.activation} has none",
            advice="use an elementwise one",
        )


contractive = Penalty(
    "contractive", _contractive, _contractive_cotangents, check=_check_elementwise
)

# ---- weight_decay: sum of squared weights, W once when tied, no biases ---------------


def _weight_decay(ae: Autoencoder, params, p: Pass):
    del p
    return sum(
        jnp.sum(getattr(params, name) ** 2) for name in ae.parametrization.weights
    )


def _weight_decay_cotangents(ae: Autoencoder, params, p: Pass):
    del p
    d_weights = {name: 2 * getattr(params, name) for name in ae.parametrization.weights}
    zeros = jax.tree.map(jnp.zeros_like, params)
    return Cotangents(params=zeros._replace(**d_weights))


weight_decay = Penalty("weight_decay", _weight_decay, _weight_decay_cotangents)

CATALOGUE |= {
    penalty.name: penalty for penalty in (l1, kl_sparsity, contractive, weight_decay)
}
