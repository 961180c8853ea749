"""Observations whose derivatives are written by hand."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt32

from jaxae import _checks, activations
from jaxae.activations import Activation
from jaxae.observations._base import (
    CATALOGUE,
    FACTORIES,
    Observation,
    check_values,
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
    # A grey level has probability 0 under a Bernoulli: an error if x is not traced,
    # otherwise -inf.
    is_binary = _is_binary(x)
    check_values(
        is_binary,
        x,
        "must be 0 or 1 for the log-probability of bernoulli "
        "(grey levels in [0, 1] have a loss, not a likelihood; binarize them first)",
    )
    is_in_support = jnp.all(is_binary, axis=-1)
    return jnp.where(is_in_support, -_bernoulli_loss(eta, x), -jnp.inf)


def _bernoulli_sample(key: PRNGKey, eta: Eta) -> Data:
    return jax.random.bernoulli(key, activations.sigmoid.apply(eta)).astype(eta.dtype)


def _bernoulli_validate(X) -> None:
    values = np.asarray(X)
    # A NaN fails both comparisons, so it raises too.
    check_values((values >= 0) & (values <= 1), X, "must be in [0, 1] for bernoulli")


def _bernoulli_eta_of_mean(mean: Float[Array, "D"]) -> Float[Array, "D"]:
    # Clipped, because the bias of a pixel that is always 0 would be -inf.
    mean = jnp.clip(mean, 1e-3, 1 - 1e-3)
    return jnp.log(mean) - jnp.log1p(-mean)


bernoulli = Observation(
    "bernoulli",
    inverse_link=activations.sigmoid,
    loss=_bernoulli_loss,
    dloss=_bernoulli_dloss,
    log_prob=_bernoulli_log_prob,
    sample=_bernoulli_sample,
    validate=_bernoulli_validate,
    base_measure="counting",
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
    inverse_link=activations.identity,
    loss=_gaussian_loss,
    dloss=_gaussian_dloss,
    log_prob=_gaussian_log_prob,
    sample=_gaussian_sample,
    validate=validate_finite,
    base_measure="lebesgue",
    derived="hand",
    eta_of_mean=_gaussian_eta_of_mean,
)

CATALOGUE.update({o.name: o for o in (bernoulli, gaussian)})

# ---- gaussian_with: real x, an inverse link, a variance for each column --------------

Weights = tuple[float, ...] | None


def gaussian_with(inverse_link, weights=None) -> Observation:
    """x_i ~ N(o(eta_i), 1 / w_i): half the squared error, column i counted w_i times.

    loss = 1/2 sum_i w_i (o(eta_i) - x_i)^2;
    d loss / d eta_i = w_i (o(eta_i) - x_i) o'(eta_i).

    Args:
      inverse_link: o, an elementwise `Activation` without parameters, or its name.
      weights: w, D positive numbers, the importance of each column; None for 1 each.

    Returns:
      An `Observation`; the same object for the same inverse link and weights, which are
      both in its name.

    Raises:
      ValueError: if inverse_link or weights are of another kind; in a model or a call,
        if the number of weights is not the number of columns.

    References:
      Elhage et al., Toy Models of Superposition, 2022,
      https://transformer-circuits.pub/2022/toy_model: a relu, and weights that are the
      importance of each feature. Their loss has no factor 1/2.
    """
    if isinstance(inverse_link, str):
        inverse_link = activations.get(inverse_link)
    is_activation = isinstance(inverse_link, Activation)
    if not is_activation or inverse_link.slope is None or inverse_link.init is not None:
        raise _checks.ArgumentError(
            "inverse_link",
            "must be an elementwise Activation without parameters, such as "
            "jaxae.activations.relu",
            repr(inverse_link),
        )
    return _gaussian_with(inverse_link, _as_weights(weights))


@functools.cache
def _gaussian_with(o: Activation, weights: Weights) -> Observation:
    def bind(function):
        return functools.partial(function, o, weights)

    return Observation(
        f"gaussian_with({o.name}{'' if weights is None else f', {weights}'})",
        inverse_link=o,
        loss=bind(_gaussian_with_loss),
        dloss=bind(_gaussian_with_dloss),
        log_prob=bind(_gaussian_with_log_prob),
        sample=bind(_gaussian_with_sample),
        validate=validate_finite,
        base_measure="lebesgue",
        derived="hand",
        eta_of_mean=_gaussian_eta_of_mean if o is activations.identity else None,
        input_dim=None if weights is None else len(weights),
    )


def _gaussian_with_loss(
    o: Activation, weights: Weights, eta: Eta, x: Data
) -> Float[Array, "*batch"]:
    return jnp.sum(_weighted(weights, (o.apply(eta) - x) ** 2), axis=-1) / 2


def _gaussian_with_dloss(o: Activation, weights: Weights, eta: Eta, x: Data) -> Eta:
    x_hat = o.apply(eta)
    return o.vjp(eta, x_hat, _weighted(weights, x_hat - x))


def _gaussian_with_log_prob(
    o: Activation, weights: Weights, eta: Eta, x: Data
) -> Float[Array, "*batch"]:
    log_weights = 0.0 if weights is None else math.fsum(map(math.log, weights))
    log_normaliser = (log_weights - x.shape[-1] * math.log(2 * math.pi)) / 2
    return log_normaliser - _gaussian_with_loss(o, weights, eta, x)


def _gaussian_with_sample(
    o: Activation, weights: Weights, key: PRNGKey, eta: Eta
) -> Data:
    deviations = None if weights is None else tuple(w**-0.5 for w in weights)
    noise = jax.random.normal(key, eta.shape, eta.dtype)
    return o.apply(eta) + _weighted(deviations, noise)


def _weighted(weights: Weights, values: Eta) -> Eta:
    """w_i v_i."""
    if weights is None:
        return values
    if len(weights) != values.shape[-1]:
        raise _checks.ArgumentError(
            "gaussian_with",
            f"has {len(weights)} weights, but there are {values.shape[-1]} columns",
            advice="give one weight per column",
        )
    return jnp.broadcast_to(jnp.asarray(weights, values.dtype), values.shape) * values


def _as_weights(weights: Any) -> Weights:
    if weights is None:
        return None
    try:
        array = np.asarray(weights)
    except (TypeError, ValueError):
        array = np.asarray(None)
    is_vector = array.ndim == 1 and array.size > 0 and array.dtype.kind in "fiu"
    if not (is_vector and (np.isfinite(array) & (array > 0)).all()):
        raise _checks.ArgumentError(
            "weights",
            "must be a tuple of positive finite numbers, one a column, or None",
            _checks.describe(weights),
        )
    return tuple(map(float, array))


def _parse_gaussian_with(arguments: str) -> Observation | None:
    """The observation named gaussian_with(ARGUMENTS), if the arguments are valid."""
    link, comma, numbers = arguments.partition(",")
    texts = [text for text in numbers.strip(" ()").split(",") if text.strip()]
    try:
        weights = list(map(float, texts)) if comma else None
        return gaussian_with(activations.get(link.strip()), weights)
    except ValueError:
        return None


FACTORIES["gaussian_with"] = _parse_gaussian_with
