"""The `Observation` record, its catalogue, and checks that observations share."""

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
      name: identifies the observation in output, saved files, look-ups and pickles.
      inverse_link: the lecture's o, mean = o(eta) (a GLM's inverse link).
      loss: `(eta, x, *theta) -> []`, -log p(x | mean(eta)) without the terms that are
        free of eta and theta.
      dloss: `(eta, x, *theta) -> [D]`, d loss / d eta.
      log_prob: `(eta, x, *theta) -> []`, normalised.
      sample: `(key, eta, *theta) -> x [D]`; None if samples cannot be drawn.
      validate: `(X) -> None`; raises a ValueError that names the first bad row, column
        and value.
      base_measure: of the density log_prob, "counting" or "lebesgue"; "none" if the
        loss is not a likelihood.
      derived: "hand" or "autodiff", how dloss was derived.
      init: `(input_dim) -> theta`, a tuple or NamedTuple of arrays; None if the
        observation has no parameters.
      dtheta: `(eta, x, *theta) -> dtheta`, a tuple like theta, for one example.
      eta_of_mean: `(mean [D]) -> eta [D]`, for an output bias from the data's mean.
      input_dim: D, if the observation is for one number of columns only.
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
        """The loss of one example, `[D] -> []`; raises unless it is a number."""
        loss = self.loss(eta, x, *theta)
        return _checks.returned(f"observation {self}: loss", loss, ())

    def checked_log_prob(self, eta: Array, x: Array, theta: tuple) -> Array:
        """The log_prob of one example, `[D] -> []`; raises unless it is a number."""
        log_prob = self.log_prob(eta, x, *theta)
        return _checks.returned(f"observation {self}: log_prob", log_prob, ())

    def checked_dloss(self, eta: Array, x: Array, theta: tuple) -> Array:
        """dloss; raises unless it has the shape of eta."""
        d_eta = self.dloss(eta, x, *theta)
        return _checks.returned_like(f"observation {self}: dloss", d_eta, eta)

    def checked_dtheta(self, eta: Array, x: Array, theta: tuple) -> tuple:
        """dtheta of one example; raises unless it is a tuple like theta."""
        name = f"observation {self}: dtheta"
        return _checks.returned_by_theta(name, self.dtheta, (eta, x), theta)

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self):
        # By name, so that unpickling gives the same object, if the name identifies it.
        if find(self.name) is self:
            return get, (self.name,)
        return Observation, tuple(self)


# Filled by the modules that define observations. A factory takes the text between the
# parentheses of a name and returns the observation, or None.
CATALOGUE: dict[str, Observation] = {}
FACTORIES: dict[str, Callable[[str], Observation | None]] = {}
_RENAMED = {"gaussian_link": "gaussian_with"}  # in files of version 0.1


def find(name: str) -> Observation | None:
    """The observation of that name, or None."""
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
    """Check that X holds no NaN or infinity."""
    check_values(np.isfinite(np.asarray(X)), X, "must be finite")


def check_values(is_valid, X, requirement: str) -> None:
    """Check that `is_valid` holds for every entry of X.

    Does nothing if `is_valid` is traced.

    Raises:
      ValueError: "data REQUIREMENT, found VALUE at row R, column C and N more."
    """
    if isinstance(is_valid, jax.core.Tracer):
        return
    is_valid = np.asarray(is_valid)
    if is_valid.all():
        return
    index = tuple(map(int, np.unravel_index(np.argmin(is_valid), is_valid.shape)))
    num_others = int((~is_valid).sum()) - 1
    value = str(np.asarray(X)[index])
    raise _checks.DataError("data", requirement, value, index, num_others)
