"""The lanes of a sweep as plots need them: axes, metric, status, and scales of axes."""

import math
from typing import Any, NamedTuple

import numpy as np

from jaxae import _checks

SEED = "seed"
_NON_AXIS_COLUMNS = ("lane", "epochs", "status", "stopped_at")
_MAX_TICKED_VALUES = 12  # an axis of more distinct values has no tick for each


class Trials(NamedTuple):
    """The lanes of a sweep.

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
        best = self.best()
        if best is None:
            return "no lane was trained to the end"
        setting, value = best
        at = format_setting(setting) or "the only setting"
        over = f" (mean of {self.num_seeds} seeds)" if self.num_seeds > 1 else ""
        return f"best {self.metric}: {value:.4g}{over} at {at}"

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

    def best(self) -> tuple[dict[str, Any], float] | None:
        """The setting with the least mean over seeds, and that mean."""
        settings = self.settings(*self.axes)
        means = {row: self.mean(lanes) for row, lanes in settings.items()}
        means = {row: mean for row, mean in means.items() if not math.isnan(mean)}
        if not means:
            return None
        row = min(means, key=means.__getitem__)
        return dict(zip(self.axes, row, strict=True)), means[row]


def read_trials(sweep: Any, metric: str | None) -> Trials:
    """The trials of a sweep, or of its table, which may come from a file.

    Raises:
      ValueError: if `sweep` is neither, or the metric is unknown.
    """
    table = getattr(sweep, "table", sweep)
    if not hasattr(table, "columns") or not len(table):
        raise ValueError(
            "sweep must be what jaxae.sweep returned, or its table with at least one "
            f"lane, got {_checks.describe(sweep)}."
        )
    columns = {str(name): table[name].to_numpy() for name in table.columns}
    metrics = [name for name in columns if "/" in name]
    if metric is None:
        loss = "validation/loss"
        metric = loss if loss in metrics else "train/loss"
    if metric not in metrics:
        raise ValueError(
            f"metric must be one of {', '.join(metrics)}, got {metric!r}"
            f"{_checks.closest(metric, metrics)}."
        )
    axes = {
        name: column
        for name, column in columns.items()
        if name not in (*metrics, *_NON_AXIS_COLUMNS, SEED)
        and len(set(column.tolist())) > 1
    }
    values = columns[metric].astype(np.float64)
    status = columns.get("status", np.full(len(values), "finished")).astype(str)
    is_diverged = (status == "diverged") | ~np.isfinite(values)
    is_halved = (status == "halved") & ~is_diverged
    seeds = columns.get(SEED, np.zeros(1))
    return Trials(
        metric=metric,
        axes=axes,
        values=np.where(is_diverged, np.nan, values),
        is_done=~is_diverged & ~is_halved,
        is_diverged=is_diverged,
        is_halved=is_halved,
        num_seeds=len(set(seeds.tolist())),
    )


def check_axis(trials: Trials, argument: str, name: str) -> None:
    """Check that the name is that of an axis that varies."""
    if name not in trials.axes:
        raise ValueError(
            f"{argument} must be an axis that varies and is not the seed, "
            f"{', '.join(trials.axes) or 'of which this sweep has none'}, got {name!r}"
            f"{_checks.closest(name, trials.axes)}."
        )


# ---- scales of axes ------------------------------------------------------------------


class Scale(NamedTuple):
    """The positions of an axis' values, and its ticks.

    Attributes:
      positions: `[L]`, of the lanes.
      ticks: positions of the ticks.
      labels: texts of the ticks.
      suffix: of the axis' label, " (log scale)" if positions are logarithms.
      is_categorical: whether the values are texts without an order.
    """

    positions: np.ndarray
    ticks: np.ndarray
    labels: list[str]
    suffix: str
    is_categorical: bool = False

    @property
    def distinct(self) -> np.ndarray:
        """The distinct positions, ascending."""
        return np.unique(self.positions)


def scale_of(values: np.ndarray) -> Scale:
    """The scale of the values of an axis.

    Numbers are drawn on a linear scale, or on a log scale if they span a decade. Texts
    are equally spaced. Few numbers that span a decade and include 0, which has no
    logarithm, are equally spaced too.
    """
    if values.dtype.kind not in "fiu":
        scale = _equally_spaced(values, list(dict.fromkeys(values.tolist())))
        return scale._replace(is_categorical=True)
    distinct = np.unique(values[np.isfinite(values)])
    positive = distinct[distinct > 0]
    spans_decade = len(positive) > 1 and positive[-1] >= 10 * positive[0]
    is_few = len(distinct) <= _MAX_TICKED_VALUES
    # The digits of random values would make labels too long.
    has_ticks = is_few and all(float(f"{value:.3g}") == value for value in distinct)
    if spans_decade and len(positive) == len(distinct):
        ticks = distinct if has_ticks else _decades(distinct[0], distinct[-1])
        labels = [f"{tick:g}" for tick in ticks]
        return Scale(np.log10(values), np.log10(ticks), labels, " (log scale)")
    if spans_decade and is_few:
        return _equally_spaced(values, distinct.tolist())
    ticks = distinct if has_ticks else _round_numbers(distinct[0], distinct[-1])
    return Scale(values.astype(np.float64), ticks, [f"{tick:g}" for tick in ticks], "")


def _equally_spaced(values: np.ndarray, distinct: list) -> Scale:
    positions = np.array([distinct.index(v) for v in values.tolist()], np.float64)
    labels = [format_value(value) for value in distinct]
    return Scale(positions, np.arange(len(distinct)), labels, "")


def format_value(value: Any) -> str:
    """A value in a label: floats to three digits."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def format_setting(setting: dict[str, Any]) -> str:
    """A setting in a label."""
    return ", ".join(f"{name} {format_value(v)}" for name, v in setting.items())


def _decades(low: float, high: float) -> np.ndarray:
    """Powers of ten in the range; with three times each if there are fewer than 3."""
    decades = 10.0 ** np.arange(math.floor(math.log10(low)), math.log10(high) + 1)
    ticks = decades[(decades >= 0.99 * low) & (decades <= 1.01 * high)]
    if len(ticks) < 3:
        finer = np.concatenate([decades, 3 * decades])
        ticks = np.sort(finer[(finer >= 0.99 * low) & (finer <= 1.01 * high)])
    return ticks


def _round_numbers(low: float, high: float) -> np.ndarray:
    from matplotlib.ticker import MaxNLocator

    ticks = np.asarray(MaxNLocator(5).tick_values(low, high))
    return ticks[(ticks >= low) & (ticks <= high)]
