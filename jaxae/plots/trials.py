"""A sweep's table as pictures take it: what varies, what came out, where it is."""

import math
from typing import Any, NamedTuple

import numpy as np

from jaxae import _checks

SEED = "seed"
_NO_AXES = ("lane", "epochs", "status", "stopped_at")
_MANY = 12  # distinct values, beyond which an axis has no tick for each


class Trials(NamedTuple):
    """The lanes of a sweep.

    Attributes:
      metric: what is drawn.
      axes: `[L]` by name, of what varies, except the seed.
      values: `[L]`, the metric; nan where the lane diverged.
      is_done: `[L]`, trained to the end and finite.
      is_diverged, is_halved: `[L]`.
      num_seeds: how many seeds there are.
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
        """What a number of the picture is."""
        over = f", mean of {self.num_seeds} seeds" if self.num_seeds > 1 else ""
        return f"{self.after}{over}"

    @property
    def after(self) -> str:
        """What the number of a lane is."""
        return f"{self.metric} after the last epoch"

    @property
    def title(self) -> str:
        """The best setting, and how good it is."""
        best = self.best()
        if best is None:
            return "no lane was trained to the end"
        row, value = best
        at = words(row) or "the only setting"
        over = f" (mean of {self.num_seeds} seeds)" if self.num_seeds > 1 else ""
        return f"best {self.metric}: {value:.4g}{over} at {at}"

    def settings(self, *names: str) -> dict[tuple, np.ndarray]:
        """The lanes of every combination of these axes that there is."""
        rows = list(zip(*(self.axes[n].tolist() for n in names), strict=True))
        rows = rows or [()] * len(self.values)
        found: dict[tuple, list[int]] = {}
        for lane, row in enumerate(rows):
            found.setdefault(row, []).append(lane)
        return {row: np.array(lanes) for row, lanes in found.items()}

    def mean(self, lanes: np.ndarray) -> float:
        """Of the lanes that were trained to the end; nan if none was."""
        done = lanes[self.is_done[lanes]]
        return float(self.values[done].mean()) if len(done) else math.nan

    def best(self) -> tuple[dict[str, Any], float] | None:
        """The setting with the least mean over seeds."""
        settings = self.settings(*self.axes)
        means = {row: self.mean(lanes) for row, lanes in settings.items()}
        means = {row: mean for row, mean in means.items() if not math.isnan(mean)}
        if not means:
            return None
        row = min(means, key=means.__getitem__)
        return dict(zip(self.axes, row, strict=True)), means[row]


def read(sweep: Any, metric: str | None) -> Trials:
    """The trials of a sweep, or of its table, which may have been read from a file.

    Raises:
      ValueError: for what is neither, or an unknown metric.
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
        if name not in (*metrics, *_NO_AXES, SEED) and len(set(column.tolist())) > 1
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
    """Refuse what does not vary in the sweep."""
    if name not in trials.axes:
        raise ValueError(
            f"{argument} must be an axis that varies and is not the seed, "
            f"{', '.join(trials.axes) or 'of which this sweep has none'}, got {name!r}"
            f"{_checks.closest(name, trials.axes)}."
        )


# ---- where values are drawn ----------------------------------------------------------


class Places(NamedTuple):
    """Where an axis' values are drawn, and its ticks.

    Attributes:
      at: `[L]`.
      ticks, labels: of the axis.
      scale: " (log scale)" where logarithms are drawn, else "".
      is_words: whether the values are none to be ordered.
    """

    at: np.ndarray
    ticks: np.ndarray
    labels: list[str]
    scale: str
    is_words: bool = False

    @property
    def distinct(self) -> np.ndarray:
        """The places in use, ascending."""
        return np.unique(self.at)


def place(values: np.ndarray) -> Places:
    """Numbers by size, by logarithm where they span a decade; words side by side.

    A zero beside numbers that span a decade has no logarithm: then few numbers, too,
    are side by side.
    """
    if values.dtype.kind not in "fiu":
        words = _side_by_side(values, list(dict.fromkeys(values.tolist())))
        return words._replace(is_words=True)
    distinct = np.unique(values[np.isfinite(values)])
    positive = distinct[distinct > 0]
    spans = len(positive) > 1 and positive[-1] >= 10 * positive[0]
    # Those that were drawn are no round numbers, and labels of them too long.
    is_few = len(distinct) <= _MANY and all(float(f"{d:.3g}") == d for d in distinct)
    if spans and len(positive) == len(distinct):
        at = np.log10(values)
        ticks = distinct if is_few else _decades(distinct[0], distinct[-1])
        return Places(at, np.log10(ticks), [f"{t:g}" for t in ticks], " (log scale)")
    if spans and len(distinct) <= _MANY:
        return _side_by_side(values, distinct.tolist())
    ticks = distinct if is_few else _round(distinct[0], distinct[-1])
    return Places(values.astype(np.float64), ticks, [f"{t:g}" for t in ticks], "")


def _side_by_side(values: np.ndarray, distinct: list) -> Places:
    at = np.array([distinct.index(value) for value in values.tolist()], np.float64)
    return Places(at, np.arange(len(distinct)), [word(v) for v in distinct], "")


def word(value: Any) -> str:
    """A value as a picture has it."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def words(row: dict[str, Any]) -> str:
    """A setting as a picture has it."""
    return ", ".join(f"{name} {word(value)}" for name, value in row.items())


def _decades(low: float, high: float) -> np.ndarray:
    decades = 10.0 ** np.arange(math.floor(math.log10(low)), math.log10(high) + 1)
    found = decades[(decades >= 0.99 * low) & (decades <= 1.01 * high)]
    if len(found) < 3:
        finer = np.concatenate([decades, 3 * decades])
        found = np.sort(finer[(finer >= 0.99 * low) & (finer <= 1.01 * high)])
    return found


def _round(low: float, high: float) -> np.ndarray:
    from matplotlib.ticker import MaxNLocator

    ticks = np.asarray(MaxNLocator(5).tick_values(low, high))
    return ticks[(ticks >= low) & (ticks <= high)]
