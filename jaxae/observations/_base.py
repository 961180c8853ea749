"""The record that an observation is, and the checks that they share."""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxae import _checks
from jaxae.activations import Activation


class Observation(NamedTuple):
    """A conditional distribution p(x | mean(eta)) over the inputs.

    Functions act on the last axis: `[D] -> []`, and `[B, D] -> [B]` unchanged.

    Attributes:
      name: how it is printed, saved, looked up and pickled.
      inverse_link: the lecture's o, mean = o(eta) (a GLM's inverse link).
      loss: `(eta, x, *theta) -> []`, -log p(x | mean(eta)) without the terms that are
        free of eta and theta.
      dloss: `(eta, x, *theta) -> [D]`, d loss / d eta.
      log_prob: `(eta, x, *theta) -> []`, normalised.
      sample: `(key, eta, *theta) -> x [D]`, or None where none was given.
      validate: `(X) -> None`, or a ValueError that names the first bad row, column and
        value.
      base_measure: "counting" or "lebesgue", what log_prob is a density against; "none"
        where the loss is no likelihood.
      derived: "hand" or "autodiff", where dloss comes from.
      init: `(input_dim) -> theta`, a tuple or NamedTuple of arrays, if p is learned.
      dtheta: `(eta, x, *theta) -> dtheta`, a tuple like theta, for one example.
      eta_of_mean: `(mean [D]) -> eta [D]`, for an output bias from the data's mean.
      input_dim: D, where it is for that many columns only.
    """

    name: str
    inverse_link: Activation
    loss: Callable[..., Array]
    dloss: Callable[..., Array]
    log_prob: Callable[..., Array]
    sample: Callable[..., Array] | None
    validate: Callable[..., None]
    base_measure: str
    derived: str
    init: Callable[..., tuple] | None = None
    dtheta: Callable[..., tuple] | None = None
    eta_of_mean: Callable[..., Array] | None = None
    input_dim: int | None = None

    def mean(self, eta: Array) -> Array:
        """E[x | eta] = o(eta), `[D] -> [D]`."""
        mean = self.inverse_link.apply(eta)
        return _checks.returned(
            f"observation {self}: inverse_link", mean, jnp.shape(eta)
        )

    def checked_loss(self, eta: Array, x: Array, theta: tuple) -> Array:
        """The loss of one example, `[D] -> []`, refused unless it is a number."""
        loss = self.loss(eta, x, *theta)
        return _checks.returned(f"observation {self}: loss", loss, ())

    def checked_log_prob(self, eta: Array, x: Array, theta: tuple) -> Array:
        """The log_prob of one example, `[D] -> []`, refused unless it is a number."""
        log_prob = self.log_prob(eta, x, *theta)
        return _checks.returned(f"observation {self}: log_prob", log_prob, ())

    def checked_dloss(self, eta: Array, x: Array, theta: tuple) -> Array:
        """dloss, refused unless it is like eta."""
        d_eta = self.dloss(eta, x, *theta)
        return _checks.returned_like(f"observation {self}: dloss", d_eta, eta)

    def checked_dtheta(self, eta: Array, x: Array, theta: tuple) -> tuple:
        """dtheta of one example, refused unless it is like theta."""
        what = f"observation {self}: dtheta"
        return _checks.returned_by_theta(what, self.dtheta, (eta, x), theta)

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self):
        # As for activations: by name where the name finds this very object.
        if find(self.name) is self:
            return get, (self.name,)
        return Observation, tuple(self)


# Filled where the observations are defined; factories make one, or None, of what is
# between the parentheses of its name.
CATALOGUE: dict[str, Observation] = {}
FACTORIES: dict[str, Callable[[str], Observation | None]] = {}
_RENAMED = {"gaussian_link": "gaussian_with"}  # in files of version 0.1


def find(name: str) -> Observation | None:
    """The observation that is saved under that name, if jaxae has one."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    match = re.fullmatch(r"(\w+)\((.*)\)", name)
    if match is None:
        return None
    factory = FACTORIES.get(_RENAMED.get(match[1], match[1]))
    return None if factory is None else factory(match[2])


def get(name: str) -> Observation:
    """The observation of that name, such as "gaussian" or "gaussian_with(relu)".

    Raises:
      ValueError: for an unknown name; the message lists the known ones.
    """
    found = find(name) if isinstance(name, str) else None
    if found is None:
        known = ", ".join([*CATALOGUE, *(f"{factory}(...)" for factory in FACTORIES)])
        similar = _checks.closest(name, CATALOGUE)
        raise _checks.ArgumentError(
            "observation", f"must be one of {known}", f"{name!r}{similar}"
        )
    return found


def validate_finite(X) -> None:
    """Refuse NaN and infinity."""
    refuse_unless(np.isfinite(np.asarray(X)), X, "must be finite")


def refuse_unless(is_good, X, promise: str) -> None:
    """Raise a ValueError about the first entry of X that is not good.

    Does nothing under a JAX transformation, where values cannot be seen.
    """
    if isinstance(is_good, jax.core.Tracer):
        return
    is_good = np.asarray(is_good)
    if is_good.all():
        return
    where = np.unravel_index(np.argmin(is_good), is_good.shape)
    place = "row {}, column {}".format(*where) if len(where) == 2 else f"entry {where}"
    if len(where) == 1:
        place = f"column {where[0]}"
    count = int((~is_good).sum())
    raise ValueError(
        f"data {promise}, found {np.asarray(X)[where]} at {place}"
        f"{'' if count == 1 else f' and {count - 1} more'}."
    )
