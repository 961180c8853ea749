"""Successive halving: most lanes stop early, the best go on.

References:
  Jamieson and Talwalkar, Non-stochastic best arm identification and hyperparameter
  optimization, AISTATS 2016.
"""

import math
from dataclasses import dataclass

import numpy as np

from jaxae import _checks


@dataclass(frozen=True)
class Halving:
    """After `first` epochs, and after `factor` times as many, and so on, lanes stop.

    Of those that are left the ceil(1 / factor) best go on, by a metric of which less is
    better; a lane that diverged comes last. Lanes are compared with those of the same
    observation only, for losses of different ones say nothing of each other.

    Attributes:
      first: epochs until the first rung.
      factor: by which lanes become fewer and epochs more.
      metric: "validation/loss", or any metric that every epoch has.

    Raises:
      ValueError: for first < 1 or factor < 2.
    """

    # jaxtyping leaves this constructor alone: it refuses bad fields in its own words.
    __no_type_check__ = True

    first: int = 1
    factor: int = 2
    metric: str = "validation/loss"

    def __post_init__(self):
        _checks.positive_int("first", self.first)
        if _checks.positive_int("factor", self.factor) < 2:
            raise _checks.ArgumentError(
                "factor", "must be at least 2", str(self.factor)
            )
        if not isinstance(self.metric, str):
            raise _checks.ArgumentError(
                "metric", "must be a metric's name", repr(self.metric)
            )


def rungs_of(halving, num_epochs: int, validation) -> list[range]:
    """The epochs between which nothing is decided.

    Raises:
      ValueError: where the metric needs validation data and there are none.
    """
    if halving is None:
        return [range(num_epochs)]
    if not isinstance(halving, Halving):
        raise _checks.ArgumentError(
            "halving", "must be a jaxae.sweeps.Halving or None", repr(halving)
        )
    if halving.metric.startswith("validation/") and validation is None:
        raise _checks.ArgumentError(
            "halving",
            f"compares {halving.metric}, but there are no validation data",
            advice="give validation=, or Halving(metric='train/loss')",
        )
    ends, end = [], halving.first
    while end < num_epochs:
        ends.append(end)
        end *= halving.factor
    return [range(a, b) for a, b in zip([0, *ends], [*ends, num_epochs], strict=True)]


def check_metric(halving: Halving, names: list[str]) -> None:
    """Refuse to compare by what no epoch has.

    Raises:
      ValueError: listing the names.
    """
    if halving.metric not in names:
        raise ValueError(
            f"halving's metric must be one of {', '.join(names)}, got "
            f"{halving.metric!r}{_checks.closest(halving.metric, names)}."
        )


def survivors(halving: Halving, ledgers, alive: list[np.ndarray], rung: range):
    """Which lanes of each group go on after a rung."""
    kept = [np.zeros(len(led.group.lanes), bool) for led in ledgers]
    kinds = [str(led.group.objective.ae.observation) for led in ledgers]
    for kind in dict.fromkeys(kinds):
        mine = [g for g, other in enumerate(kinds) if other == kind]
        places = [(g, int(i)) for g in mine for i in alive[g]]
        values = [_value(halving, ledgers[g], i, rung) for g, i in places]
        number = math.ceil(len(places) / halving.factor)
        # Stable: of equals the first go on, whatever the machine.
        for at in np.argsort(values, kind="stable")[:number]:
            g, i = places[at]
            kept[g][i] = True
    return [np.flatnonzero(keep) for keep in kept]


def _value(halving: Halving, ledger, i: int, rung: range) -> float:
    value = ledger.metrics[halving.metric][i, rung.stop - 1]
    return math.inf if ledger.stopped_at[i] >= 0 or math.isnan(value) else value
