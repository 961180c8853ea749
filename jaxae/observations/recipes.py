"""The lecture's recipe for other types of input, with derivatives from autodiff.

Choose p(x | mu), choose how mu follows from the output pre-activation, and take -log p
as the loss. Hand-written observations are faster and more exact: they compute log mu
directly, without forming mu. These are for trying an idea in two lines.
"""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxae import _checks
from jaxae.activations import Activation
from jaxae.observations._base import Observation, validate_finite


@functools.cache  # the same functions give the same object: nothing recompiles
def from_log_prob(
    log_prob,
    mean,
    *,
    name: str | None = None,
    sample: Callable[..., Array] | None = None,
    validate: Callable[..., None] = validate_finite,
    base_measure: str = "lebesgue",
) -> Observation:
    """The lecture's recipe: l(f(x)) = -log p(x | mu), with mu = mean(eta).

    Args:
      log_prob: `(x [D], mu) -> []` (a result `[D]` is summed: independent columns).
      mean: `(eta [D]) -> mu`, the mean as a function of the output pre-activation.
      name: identifies it in output and saved files; by default the name of `log_prob`.
      sample: `(key, mu) -> x [D]`; None if samples cannot be drawn.
      validate: `(X) -> None`, raises a ValueError for bad values; by default values
        must be finite.
      base_measure: "counting" for a mass function, "lebesgue" for a density.

    Returns:
      An `Observation` with `derived == "autodiff"`. Its loss is -log p with all its
      terms, including those that are free of eta.

    References:
      Hugo Larochelle, Neural networks: Autoencoder, Université de Sherbrooke, 2012.
    """
    _check_callable("log_prob", log_prob)
    _check_callable("mean", mean)

    def log_likelihood(eta, x):
        return _sum_columns(log_prob(x, mean(eta)), x, "log_prob")

    def sample_from_eta(key, eta):
        return sample(key, mean(eta))

    return _from_likelihood(
        log_likelihood,
        mean,
        sample=None if sample is None else sample_from_eta,
        name=name or _name_of(log_prob),
        validate=validate,
        base_measure=base_measure,
    )


@functools.cache
def from_distribution(
    make,
    *,
    name: str | None = None,
    validate: Callable[..., None] = validate_finite,
    base_measure: str = "lebesgue",
) -> Observation:
    """The lecture's recipe with a distribution object: l(f(x)) = -log make(eta)(x).

    Args:
      make: `(eta [D]) -> distribution`, any object with `log_prob(x)`, `mean` (a value
        or a method) and, for samples, `sample`, such as those of numpyro, distrax and
        TFP. Log-probabilities of columns are summed.
      name: identifies it in output and saved files; by default the name of `make`.
      validate: `(X) -> None`, raises a ValueError for bad values; by default values
        must be finite.
      base_measure: "counting" for a mass function, "lebesgue" for a density.
    """
    _check_callable("make", make)

    def log_likelihood(eta, x):
        return _sum_columns(make(eta).log_prob(x), x, "make(eta).log_prob")

    def mean(eta):
        value = make(eta).mean
        return value() if callable(value) else value

    def sample(key, eta):
        distribution = make(eta)
        parameters = inspect.signature(distribution.sample).parameters
        if "seed" in parameters:  # distrax and TFP
            return distribution.sample(seed=key)
        return distribution.sample(key)  # numpyro

    return _from_likelihood(
        log_likelihood,
        mean,
        sample=sample,
        name=name or _name_of(make),
        validate=validate,
        base_measure=base_measure,
    )


def _from_likelihood(log_likelihood, mean, *, sample, name, validate, base_measure):
    if base_measure not in ("counting", "lebesgue"):
        raise _checks.ArgumentError(
            "base_measure", "must be 'counting' or 'lebesgue'", repr(base_measure)
        )
    # The user writes these functions for one example; vectorize adds the batch axis.
    log_prob = jnp.vectorize(log_likelihood, signature="(d),(d)->()")

    def mean_of_example(eta):
        return _checks.returned(f"observation {name}: mean", mean(eta), eta.shape)

    mean_fn = jnp.vectorize(mean_of_example, signature="(d)->(d)")

    def loss(eta, x):
        return -log_prob(eta, x)

    def dloss(eta, x):
        return jax.grad(lambda eta: jnp.sum(loss(eta, x)))(eta)

    def link_vjp(a, z, dz):
        del z
        return jax.vjp(mean_fn, a)[1](dz)[0]

    return Observation(
        name,
        inverse_link=Activation(f"mean of {name}", mean_fn, link_vjp),
        loss=loss,
        dloss=dloss,
        log_prob=log_prob,
        sample=sample,
        validate=validate,
        base_measure=base_measure,
        derived="autodiff",
    )


def _sum_columns(log_probs, x, name: str):
    if not _checks.is_real(log_probs) or jnp.shape(log_probs) not in ((), x.shape):
        raise _checks.ArgumentError(
            name,
            f"must return a number, or one for each of the {len(x)} columns",
            _checks.describe(log_probs),
        )
    return jnp.sum(log_probs)


def _name_of(function: Callable) -> str:
    return getattr(function, "__name__", type(function).__name__).strip("<>")


def _check_callable(name: str, value) -> None:
    if not callable(value):
        raise _checks.ArgumentError(name, "must be a function", repr(value))
