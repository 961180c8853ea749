"""The page of a sweep: best lanes, maps, lines, failures, and a table of all lanes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxae._checks import ArgumentError
from jaxae.plots.sweep_table import SweepTable, read_table
from jaxae.report import page
from jaxae.report.page import Block

_NUM_BEST = 8  # as many as there are colours
_MAX_TABLE_ROWS = 5_000


def write_sweep(
    sweep: Any,
    path: Any,
    *,
    metric: str | None = None,
    curves: Mapping[str, Any] | None = None,
    title: str = "Sweep",
    about: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> Path:
    """Write the page of a sweep; return its path.

    The reader of the page chooses a metric and one or two axes to see it against. Of a
    sweep of more than 5,000 lanes, the best 5,000 are in the page.

    Args:
      sweep: the result of `jaxae.sweep`, or its table.
      path: the `.html` file to write.
      metric: that ranks the lanes, smaller is better; by default "validation/loss", or
        "train/loss" if there is none.
      curves: metrics `[L, num_epochs]` by name; by default `sweep.metrics`.
      title: of the page.
      about: facts about the sweep, by name.
      command: with which the sweep is repeated.

    Raises:
      ValueError: if this is no sweep, or the metric is unknown.
    """
    path, table = page.as_file(path), read_table(sweep, metric)
    # A table from a file has the lanes as a column, one of `jaxae.sweep` as its index.
    frame = getattr(sweep, "table", sweep).drop(columns="lane", errors="ignore")
    curves = getattr(sweep, "metrics", {}) if curves is None else curves
    for name, values in curves.items():
        if np.ndim(values) != 2 or len(values) != len(frame):
            problem = f"must be [{len(frame)}, num_epochs], a row for each lane"
            raise ArgumentError(
                f"curves[{name!r}]", problem, f"shape {np.shape(values)}"
            )
    # Each missing value, of which pandas has several kinds, is None.
    objects = frame.astype(object).where(frame.notna(), None)
    columns = {
        "lane": np.arange(len(frame)),
        **{str(name): objects[name].to_numpy() for name in frame.columns},
    }
    order = _ranked(table)
    shown = order[:_MAX_TABLE_ROWS]
    left_out = len(order) - len(shown)
    note = f" The other {left_out:,} lanes are left out of this page." * bool(left_out)
    return page.write(
        path,
        title,
        f"{len(order):,} lanes: {_counts(table)}. {table.title[0].upper()}"
        f"{table.title[1:]}.{note}",
        [
            page.section("What was run", page.facts(about or {}), page.code(command)),
            _best_section(table, columns, order, curves),
            _axes_section(table, columns, shown),
            _failures_section(table, columns),
            page.section("All lanes", _table(columns, shown)),
        ],
    )


def _ranked(table: SweepTable) -> np.ndarray:
    """All lanes: those that were trained to the end first, then by the metric."""
    rank = np.select([table.is_done, table.is_halved], [0, 1], 2)
    return np.lexsort((table.values, rank))  # nan is last


def _counts(table: SweepTable) -> str:
    kinds = {"finished": table.is_done, "stopped early": table.is_halved}
    kinds["diverged"] = table.is_diverged
    return ", ".join(
        f"{mask.sum():,} {name}" for name, mask in kinds.items() if mask.any()
    )


def _table(columns: Mapping[str, np.ndarray], lanes: np.ndarray) -> Block | None:
    rows = zip(*(_values(column[lanes]) for column in columns.values()), strict=True)
    return page.table(list(columns), list(rows), search="lanes")


def _values(column: np.ndarray) -> list:
    """Numbers and texts; None for what is missing."""
    is_json = (bool, int, float, str, type(None))
    return [v if isinstance(v, is_json) else str(v) for v in column.tolist()]


def _best_section(
    table: SweepTable,
    columns: Mapping[str, np.ndarray],
    order: np.ndarray,
    curves: Mapping[str, Any],
) -> Block | None:
    best = order[table.is_done[order]][:_NUM_BEST]
    names = ["lane", *_axes(table, columns), table.metric]
    chart = None
    if table.metric in curves:
        named = {f"lane {j}": curves[table.metric][j] for j in best}
        chart = page.lines(table.metric, named)
    return page.section(
        "Best lanes", _table({name: columns[name] for name in names}, best), chart
    )


def _axes(table: SweepTable, columns: Mapping[str, np.ndarray]) -> list[str]:
    has_seeds = table.num_seeds > 1 and "seed" in columns
    return [*table.axes, *(["seed"] if has_seeds else [])]


def _axes_section(
    table: SweepTable, columns: Mapping[str, np.ndarray], lanes: np.ndarray
) -> Block | None:
    """The metric against one or two axes, which the reader chooses."""
    if not table.axes:
        return None
    metrics = {name: column for name, column in columns.items() if "/" in name}
    status = np.select(
        [table.is_done, table.is_halved], ["finished", "halved"], "diverged"
    )
    explorer = {
        "type": "explorer",
        "lanes": lanes,
        "axes": {n: _values(axis[lanes]) for n, axis in table.axes.items()},
        "metrics": {
            name: _values(np.asarray(column[lanes], float))
            for name, column in metrics.items()
        },
        "metric": table.metric,
        "status": status[lanes],
    }
    return page.section(
        "Metric against axes",
        explorer,
        text="Each value is that of the best setting of the other axes, the smallest, "
        "as the mean over seeds. Lanes that diverged or were stopped early do not "
        "count.",
    )


def _failures_section(
    table: SweepTable, columns: Mapping[str, np.ndarray]
) -> Block | None:
    lanes = np.flatnonzero(table.is_diverged)
    names = ["lane", *_axes(table, columns)]
    names += [name for name in ("stopped_at",) if name in columns]
    return page.section(
        "Failures",
        _table({name: columns[name] for name in names}, lanes),
        text=f"{len(lanes):,} lanes diverged: a step made the loss or a parameter "
        "non-finite. The number of that step is in the column stopped_at.",
    )
