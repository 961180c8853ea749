"""Observations whose every derivative is written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt32

from jaxae import activations
from jaxae.observations._base import (
    CATALOGUE,
    Observation,
    refuse_unless,
    validate_finite,
)

Eta = Float[Array, "*batch D"]
Data = Float[Array, "*batch D"]
PRNGKey = Key[Array, ""] | UInt32[Array, "2"]

# ---- bernoulli: binary x, or grey levels in [0, 1] as a loss -------------------------


def _bernoulli_loss(eta: Eta, x: Data) -> Float[Array, "*batch"]:
    # -x log sigm(eta) - (1 - x) log(1 - sigm(eta)), from logits: finite for any eta.
    return jnp.sum(activations.softplus_of(eta) - x * eta, axis=-1)


def _bernoulli_dloss(eta: Eta, x: Data) -> Eta:
    return activations.sigmoid.apply(eta) - x


def _is_binary(x: Data) -> Bool[Array, "*batch D"]:
    return (x == 0) | (x == 1)


def _bernoulli_log_prob(eta: Eta, x: Data) -> Float[Array, "*batch"]:
    # A grey level has no probability under a Bernoulli: refused where values can be
    # seen, -inf (which is the truth) where they cannot, under jit and vmap.
    is_binary = _is_binary(x)
    refuse_unless(
        is_binary,
        x,
        "must be 0 or 1 for the log-probability of bernoulli "
        "(grey levels in [0, 1] have a loss, not a likelihood; binarize them first)",
    )
    in_support = jnp.all(is_binary, axis=-1)
    return jnp.where(in_support, -_bernoulli_loss(eta, x), -jnp.inf)


def _bernoulli_sample(key: PRNGKey, eta: Eta) -> Data:
    return jax.random.bernoulli(key, activations.sigmoid.apply(eta)).astype(eta.dtype)


def _bernoulli_validate(X) -> None:
    values = np.asarray(X)
    # A NaN fails both comparisons, so this refuses it too.
    refuse_unless((values >= 0) & (values <= 1), X, "must be in [0, 1] for bernoulli")


def _bernoulli_eta_of_mean(mean: Float[Array, "D"]) -> Float[Array, "D"]:
    # Clipped: a pixel that is always off would ask for a bias of -inf.
    mean = jnp.clip(mean, 1e-3, 1 - 1e-3)
    return jnp.log(mean) - jnp.log1p(-mean)


bernoulli = Observation(
    "bernoulli",
    link=activations.sigmoid,
    loss=_bernoulli_loss,
    dloss=_bernoulli_dloss,
    log_prob=_bernoulli_log_prob,
    sample=_bernoulli_sample,
    validate=_bernoulli_validate,
    support="counting",
    derived="hand",
    eta_of_mean=_bernoulli_eta_of_mean,
)

# ---- gaussian: real x, identity covariance -------------------------------------------


def _gaussian_loss(eta: Eta, x: Data) -> Float[Array, "*batch"]:
    return jnp.sum((eta - x) ** 2, axis=-1) / 2


def _gaussian_dloss(eta: Eta, x: Data) -> Eta:
    return eta - x


def _gaussian_log_prob(eta: Eta, x: Data) -> Float[Array, "*batch"]:
    return -_gaussian_loss(eta, x) - x.shape[-1] / 2 * float(np.log(2 * np.pi))


def _gaussian_sample(key: PRNGKey, eta: Eta) -> Data:
    return eta + jax.random.normal(key, eta.shape, eta.dtype)


def _gaussian_eta_of_mean(mean: Float[Array, "D"]) -> Float[Array, "D"]:
    return mean


gaussian = Observation(
    "gaussian",
    link=activations.identity,
    loss=_gaussian_loss,
    dloss=_gaussian_dloss,
    log_prob=_gaussian_log_prob,
    sample=_gaussian_sample,
    validate=validate_finite,
    support="lebesgue",
    derived="hand",
    eta_of_mean=_gaussian_eta_of_mean,
)

CATALOGUE.update({o.name: o for o in (bernoulli, gaussian)})
