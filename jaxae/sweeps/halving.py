"""Successive halving: most lanes stop early, and the best continue.

References:
  Jamieson and Talwalkar, Non-stochastic best arm identification and hyperparameter
  optimization, AISTATS 2016.
"""

import math
from dataclasses import dataclass

import numpy as np

from jaxae import _checks
from jaxae._checks import ArgumentError
from jaxae.sweeps.results import LaneResults


@dataclass(frozen=True)
class Halving:
    """Stop the worse lanes after first, first x factor, first x factor^2, ... epochs.

    The best 1 / factor of the remaining lanes continue, rounded up: those with the
    smallest metric; a diverged lane ranks last. Lanes are compared only with lanes of
    the same observation, since losses of different observations are not comparable.

    Attributes:
      first: the epochs of the first rung.
      factor: divides the number of lanes and multiplies the epochs at each rung.
      metric: "validation/loss", or any metric that every epoch has.

    Raises:
      ValueError: for first < 1 or factor < 2.
    """

    # jaxtyping leaves this constructor alone, so that bad fields raise our messages.
    __no_type_check__ = True

    first: int = 1
    factor: int = 2
    metric: str = "validation/loss"

    def __post_init__(self):
        _checks.positive_int("first", self.first)
        if _checks.positive_int("factor", self.factor) < 2:
            raise ArgumentError("factor", "must be at least 2", str(self.factor))
        if not isinstance(self.metric, str):
            raise ArgumentError("metric", "must be a metric's name", repr(self.metric))


def rungs_of(halving, num_epochs: int, validation) -> list[range]:
    """The epochs of each rung; lanes may stop between two rungs.

    Raises:
      ValueError: if the metric needs validation data and there are none.
    """
    if halving is None:
        return [range(num_epochs)]
    if not isinstance(halving, Halving):
        raise ArgumentError(
            "halving", "must be a jaxae.sweeps.Halving or None", repr(halving)
        )
    if halving.metric.startswith("validation/") and validation is None:
        raise ArgumentError(
            "halving",
            f"compares {halving.metric}, but there are no validation data",
            advice="give validation=, or Halving(metric='train/loss')",
        )
    ends, end = [], halving.first
    while end < num_epochs:
        ends.append(end)
        end *= halving.factor
    return [range(a, b) for a, b in zip([0, *ends], [*ends, num_epochs], strict=True)]


def survivors(
    halving: Halving, results: list[LaneResults], alive: list[np.ndarray], rung: range
) -> list[np.ndarray]:
    """The lanes of each group that continue after a rung, of those still alive."""
    continues = [np.zeros(len(of_group), bool) for of_group in results]
    observations = [str(r.group.objective.ae.observation) for r in results]
    for observation in dict.fromkeys(observations):
        groups = [g for g, other in enumerate(observations) if other == observation]
        lanes = [(g, int(i)) for g in groups for i in alive[g]]
        values = [_value(halving, results[g], i, rung) for g, i in lanes]
        num_survivors = math.ceil(len(lanes) / halving.factor)
        # A stable sort breaks ties by the lane's number, on every machine.
        for rank in np.argsort(values, kind="stable")[:num_survivors]:
            g, i = lanes[rank]
            continues[g][i] = True
    return [np.flatnonzero(mask) for mask in continues]


def _value(halving: Halving, results: LaneResults, i: int, rung: range) -> float:
    value = results.metrics[halving.metric][i, rung.stop - 1]
    return math.inf if results.stopped_at[i] >= 0 or math.isnan(value) else value
