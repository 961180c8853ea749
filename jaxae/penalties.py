"""What is added to the reconstruction loss: values, and cotangents by hand.

A penalty acts on the batch and carries no hidden factor; its coefficient is the
hyperparameter of its name. Its hand gradient is the cotangents that it adds to the
backward pass: on `a`, on `z`, on the parameters. `manual` carries them on and knows no
penalty by name.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxae import _checks
from jaxae.autoencoder import Autoencoder, Forward, UntiedParams
from jaxae.autoencoder.model import padded_latents


class Cotangents(NamedTuple):
    """What a penalty adds to the backward pass; None where it adds nothing."""

    a: Array | None = None  # [B, H]
    z: Array | None = None  # [B, H]
    params: Any = None  # the params' own type


COEFFICIENTS = _checks.AT_LEAST_0._replace(
    reason="below it the objective has no minimum"
)


def _accept_any(argument: Any) -> None:
    del argument


class Penalty(NamedTuple):
    """A function of a batch's latents and of the parameters.

    Attributes:
      name: how it is printed, and the name of its coefficient in `hparams`.
      value: `(ae, params, forward, hparams) -> []`; forward holds a, z `[B, H]` and
        eta `[B, D]`.
      cotangents: the same arguments `-> Cotangents`, the derivatives of value, with
        the shapes of what they are by.
      hparams: names of further hyperparameters that it reads.
      check: `(ae) -> None`, or a ValueError if the model cannot bear it.
      check_hparams: `(hparams) -> None`, or a ValueError for a number out of range.
    """

    name: str
    value: Callable[..., Array]
    cotangents: Callable[..., Cotangents]
    hparams: tuple[str, ...] = ()
    check: Callable[[Autoencoder], None] = _accept_any
    check_hparams: Callable[[Any], None] = _accept_any

    def __repr__(self) -> str:
        return self.name


# ---- l1: mean_b sum_j |z_bj| ---------------------------------------------------------


def _l1(ae, params, forward: Forward, hparams):
    del ae, params, hparams
    # z sign(z) is |z| whose slope at 0 is 0, the middle of the subdifferential, under
    # autodiff too: jax.grad of abs at 0 is 1.
    return jnp.mean(jnp.sum(forward.z * jnp.sign(forward.z), axis=-1))


def _l1_cotangents(ae, params, forward: Forward, hparams):
    del ae, params, hparams
    return Cotangents(z=jnp.sign(forward.z) / len(forward.z))


l1 = Penalty("l1", _l1, _l1_cotangents)

# ---- kl_sparsity: sum_j KL(rho || mean_b z_bj), for latents in (0, 1) ----------------
# Ng, Sparse autoencoder, CS294A lecture notes, 2011; rho is kl_sparsity_target.


def _activity(ae, forward: Forward, hparams):
    """rho_hat; of padding the target itself, which costs nothing."""
    rho, rho_hat = hparams["kl_sparsity_target"], jnp.mean(forward.z, axis=0)
    is_latent = padded_latents(ae, hparams)
    return rho, rho_hat if is_latent is None else jnp.where(is_latent, rho_hat, rho)


def _kl_sparsity(ae, params, forward: Forward, hparams):
    del params
    rho, rho_hat = _activity(ae, forward, hparams)
    active = rho * (jnp.log(rho) - jnp.log(rho_hat))
    silent = (1 - rho) * (jnp.log1p(-rho) - jnp.log1p(-rho_hat))
    return jnp.sum(active + silent)


def _kl_sparsity_cotangents(ae, params, forward: Forward, hparams):
    del params
    rho, rho_hat = _activity(ae, forward, hparams)
    d_rho_hat = (1 - rho) / (1 - rho_hat) - rho / rho_hat
    return Cotangents(z=jnp.broadcast_to(d_rho_hat / len(forward.z), forward.z.shape))


def _check_between_0_and_1(ae: Autoencoder) -> None:
    low, high = ae.activation.output_range
    if low < 0 or high > 1:
        raise ValueError(
            "the kl_sparsity penalty needs latents between 0 and 1, but those of "
            f"{ae.activation} lie in [{low}, {high}]; use sigmoid."
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


def _contractive_parts(ae: Autoencoder, params, forward: Forward):
    assert ae.activation.slope is not None  # refused by check
    W_enc = ae.parametrization.expand(params).W_enc
    slope = ae.activation.slope(forward.a, forward.z)
    slope = _checks.returned(
        f"activation {ae.activation}: slope", slope, forward.a.shape
    )
    return W_enc, jnp.sum(W_enc**2, axis=1), slope


def _contractive(ae, params, forward, hparams):
    del hparams
    _, squared_norms, slope = _contractive_parts(ae, params, forward)
    return jnp.mean(slope**2 @ squared_norms)


def _contractive_cotangents(ae, params, forward, hparams):
    del hparams
    W_enc, squared_norms, slope = _contractive_parts(ae, params, forward)
    curvature = ae.activation.curvature(forward.a, forward.z)
    curvature = _checks.returned(
        f"activation {ae.activation}: curvature", curvature, forward.a.shape
    )
    d_W_enc = 2 * jnp.mean(slope**2, axis=0)[:, None] * W_enc
    untied = ae.parametrization.expand(params)
    zeros: UntiedParams = jax.tree.map(jnp.zeros_like, untied)
    return Cotangents(
        a=2 * slope * curvature * squared_norms[None, :] / len(slope),
        params=ae.parametrization.pullback(params, zeros._replace(W_enc=d_W_enc)),
    )


def _check_elementwise(ae: Autoencoder) -> None:
    if ae.activation.slope is None or ae.activation.curvature is None:
        raise ValueError(
            f"the contractive penalty needs an activation with slope and curvature, "
            f"but {ae.activation} has none; use an elementwise one."
        )


contractive = Penalty(
    "contractive", _contractive, _contractive_cotangents, check=_check_elementwise
)

# ---- weight_decay: sum of squared weights, W once when tied, no biases ---------------


def _weight_decay(ae: Autoencoder, params, forward, hparams):
    del forward, hparams
    return sum(
        jnp.sum(getattr(params, name) ** 2) for name in ae.parametrization.weights
    )


def _weight_decay_cotangents(ae: Autoencoder, params, forward, hparams):
    del forward, hparams
    d_weights = {name: 2 * getattr(params, name) for name in ae.parametrization.weights}
    zeros = jax.tree.map(jnp.zeros_like, params)
    return Cotangents(params=zeros._replace(**d_weights))


weight_decay = Penalty("weight_decay", _weight_decay, _weight_decay_cotangents)

CATALOGUE: dict[str, Penalty] = {
    p.name: p for p in (l1, kl_sparsity, contractive, weight_decay)
}


def get(name: str) -> Penalty:
    """The penalty of that name.

    Raises:
      ValueError: for an unknown name; the message lists the known ones.
    """
    return _checks.lookup("penalty", CATALOGUE, name)
