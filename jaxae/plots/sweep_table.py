"""The table of a sweep as plots need it: axes, one metric, and which lanes count."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from jaxae import _checks
from jaxae._checks import ArgumentError
from jaxae.plots.drawing import format_value

_SEED = "seed"
_NON_AXIS_COLUMNS = ("lane", "epochs", "status", "stopped_at", _SEED)


class SweepTable(NamedTuple):
    """The lanes `[L]` of a sweep.

    A setting is a combination of values of the axes. It has a lane for each seed.

    Attributes:
      metric: the name of the metric that is drawn.
      axes: values `[L]` of each axis that varies, by name, except the seed.
      values: `[L]`, the metric; nan for a diverged lane.
      is_done: `[L]`, trained to the end and finite.
      is_diverged: `[L]`.
      is_halved: `[L]`, stopped early by successive halving.
      num_seeds: the number of seeds.
    """

    metric: str
    axes: dict[str, np.ndarray]
    values: np.ndarray
    is_done: np.ndarray
    is_diverged: np.ndarray
    is_halved: np.ndarray
    num_seeds: int

    @property
    def label(self) -> str:
        """The label of a mean over seeds."""
        over = f", mean of {self.num_seeds} seeds" if self.num_seeds > 1 else ""
        return f"{self.lane_label}{over}"

    @property
    def lane_label(self) -> str:
        """The label of the value of a lane."""
        return f"{self.metric} after the last epoch"

    @property
    def title(self) -> str:
        """The best setting and its value, in words."""
        settings = self.settings(*self.axes)
        means = {row: self.mean(lanes) for row, lanes in settings.items()}
        means = {row: mean for row, mean in means.items() if not math.isnan(mean)}
        if not means:
            return "no lane was trained to the end"
        row = min(means, key=means.__getitem__)
        at = format_setting(self.axes, row) or "the only setting"
        over = f" (mean of {self.num_seeds} seeds)" if self.num_seeds > 1 else ""
        return f"best {self.metric}: {means[row]:.4g}{over} at {at}"

    def settings(self, *names: str) -> dict[tuple, np.ndarray]:
        """The lanes of each combination of values of the named axes."""
        rows = list(zip(*(self.axes[n].tolist() for n in names), strict=True))
        rows = rows or [()] * len(self.values)
        lanes_of: dict[tuple, list[int]] = {}
        for lane, row in enumerate(rows):
            lanes_of.setdefault(row, []).append(lane)
        return {row: np.array(lanes) for row, lanes in lanes_of.items()}

    def mean(self, lanes: np.ndarray) -> float:
        """The mean of the lanes that were trained to the end; nan if there are none."""
        done = lanes[self.is_done[lanes]]
        return float(self.values[done].mean()) if len(done) else math.nan


def read_table(sweep: Any, metric: str | None) -> SweepTable:
    """The table of a sweep, or the table itself, which may come from a file."""
    table = getattr(sweep, "table", sweep)
    if not hasattr(table, "columns") or not len(table):
        raise ArgumentError(
            "sweep",
            "must be what jaxae.sweep returned, or its table with at least one lane",
            _checks.describe(sweep),
        )
    columns = {str(name): table[name].to_numpy() for name in table.columns}
    metrics = [name for name in columns if "/" in name]
    if metric is None:
        loss = "validation/loss"
        metric = loss if loss in metrics else "train/loss"
    if metric not in metrics:
        raise ArgumentError(
            "metric",
            f"must be one of {', '.join(metrics)}",
            f"{metric!r}{_checks.closest(metric, metrics)}",
        )
    axes = {
        name: column
        for name, column in columns.items()
        if name not in (*metrics, *_NON_AXIS_COLUMNS) and len(set(column.tolist())) > 1
    }
    values = columns[metric].astype(np.float64)
    status = columns.get("status", np.full(len(values), "finished")).astype(str)
    is_diverged = (status == "diverged") | ~np.isfinite(values)
    is_halved = (status == "halved") & ~is_diverged
    return SweepTable(
        metric=metric,
        axes=axes,
        values=np.where(is_diverged, np.nan, values),
        is_done=~is_diverged & ~is_halved,
        is_diverged=is_diverged,
        is_halved=is_halved,
        num_seeds=len(set(columns.get(_SEED, np.zeros(1)).tolist())),
    )


def check_axis(table: SweepTable, argument: str, name: str) -> None:
    """Check that the name is that of an axis that varies."""
    if name not in table.axes:
        known = ", ".join(table.axes) or "of which this sweep has none"
        raise ArgumentError(
            argument,
            f"must be an axis that varies and is not the seed, {known}",
            f"{name!r}{_checks.closest(name, table.axes)}",
        )


def format_setting(names: Iterable[str], values: Iterable[Any]) -> str:
    """A setting in a label: the values of the named axes."""
    pairs = zip(names, values, strict=True)
    return ", ".join(f"{name} {format_value(value)}" for name, value in pairs)
