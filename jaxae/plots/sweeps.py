"""Plots of a sweep: a metric against one axis, over two axes, and over all axes."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxae.plots import drawing
from jaxae.plots.drawing import PathLike
from jaxae.plots.trials import (
    Scale,
    Trials,
    check_axis,
    format_setting,
    read_trials,
    scale_of,
)

_COLOURS = ("#3f6fa3", "#c8553d", "#5f9154", "#8464a8", "#b08a2e", "0.25")
_DIVERGED_COLOUR, _LANE_COLOUR = "#b2182b", "0.72"
_MAX_CELLS = 16  # along one axis of a map; an axis of more values is cut into bins
_NUM_BINS = 8
_MAX_LINES = 300  # of a plot of parallel coordinates


def sweep_curves(
    sweep: Any, axis: str, path: PathLike, metric: str | None = None
) -> Path:
    """Plot a metric after the last epoch against one axis of a sweep.

    There is a line for each setting of the other axes if these are few. Otherwise all
    lanes are dots, with a line of the best setting at each value. If seeds are swept, a
    line is the mean over seeds, and its band is the range over seeds. If another axis
    has one value for each value of this axis, as random axes have, lanes are dots.
    Diverged lanes are crosses at the top. Lanes stopped early by successive halving are
    open circles at their last value.

    Args:
      sweep: the result of `jaxae.sweep`, or its table.
      axis: the axis to plot against, on a log scale if its values span a decade.
      path: the file to write.
      metric: by default "validation/loss", or "train/loss" if there is none.

    Raises:
      ValueError: if the axis does not vary or the metric is unknown.
    """
    trials = read_trials(sweep, metric)
    check_axis(trials, "axis", axis)
    scale = scale_of(trials.axes[axis])
    dependent, others = _split_other_axes(trials, axis)
    settings = trials.settings(*others)
    figure = drawing.figure((6.4, 4.0))
    axes = figure.subplots()
    if len(settings) <= len(_COLOURS):
        colours = _line_colours(trials, others, list(settings))
        for (row, lanes), colour in zip(settings.items(), colours, strict=True):
            label = format_setting(dict(zip(others, row, strict=True)))
            if dependent:
                _draw_dots(axes, trials, scale, lanes, color=colour, label=label)
            else:
                _draw_line(axes, trials, scale, [lanes], colour, label)
    else:
        lanes, style = np.arange(len(trials.values)), {"s": 10, "lw": 0}
        label = "each lane"
        _draw_dots(axes, trials, scale, lanes, color=_LANE_COLOUR, label=label, **style)
        if not dependent:
            label = f"the best of {len(settings)} settings of {' x '.join(others)}"
            rows = list(settings.values())
            _draw_line(axes, trials, scale, rows, _COLOURS[0], label)
    _draw_stopped_lanes(axes, trials, scale)
    _set_axes_of_curves(axes, trials, scale, axis, dependent)
    _draw_legend(axes, trials, has_band=trials.num_seeds > 1 and not dependent)
    return drawing.save(figure, path)


def _split_other_axes(trials: Trials, axis: str) -> tuple[list[str], list[str]]:
    """The axes with one value for each value of this axis, and all other axes."""
    names = [name for name in trials.axes if name != axis]
    num_values = len(trials.settings(axis))
    dependent = [n for n in names if len(trials.settings(axis, n)) == num_values]
    return dependent, [name for name in names if name not in dependent]


def _line_colours(trials: Trials, others: list[str], rows: list[tuple]) -> list:
    """Shades of one colour map if the settings are ordered numbers; else colours."""
    if len(others) != 1 or trials.axes[others[0]].dtype.kind not in "fiu":
        return list(_COLOURS[: len(rows)])
    from matplotlib import colormaps

    ranks = np.argsort(np.argsort([row[0] for row in rows]))
    return list(colormaps["viridis_r"](0.15 + 0.85 * ranks / max(1, len(rows) - 1)))


def _draw_dots(
    axes: Any, trials: Trials, scale: Scale, lanes: np.ndarray, **style: Any
) -> None:
    done = lanes[trials.is_done[lanes]]
    if len(done):
        style = {"s": 22, **style}
        axes.scatter(scale.positions[done], trials.values[done], **style)


def _draw_line(axes, trials: Trials, scale: Scale, rows, colour, label: str) -> None:
    """The best of the rows of lanes at each position: mean, minimum and maximum."""
    points = []
    for position in scale.distinct:
        at_position = [lanes[scale.positions[lanes] == position] for lanes in rows]
        done = [lanes[trials.is_done[lanes]] for lanes in at_position]
        values = [trials.values[lanes] for lanes in done if len(lanes)]
        if values:
            best = min(values, key=np.mean)
            points.append((position, best.mean(), best.min(), best.max()))
    if not points:
        return
    x, mean, low, high = np.array(points).T
    style: dict[str, Any] = {
        "marker": "o",
        "markersize": 4,
        "color": colour,
        "label": label,
    }
    if scale.is_categorical:  # without a line between categories
        axes.errorbar(x, mean, [mean - low, high - mean], ls="", zorder=3, **style)
        return
    axes.plot(x, mean, zorder=3, **style)
    if trials.num_seeds > 1:
        axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0, zorder=2)


def _draw_stopped_lanes(axes: Any, trials: Trials, scale: Scale) -> None:
    halved, diverged = trials.is_halved, trials.is_diverged
    if halved.any():
        label = f"stopped early by halving ({halved.sum()} lanes)"
        axes.scatter(
            scale.positions[halved],
            trials.values[halved],
            14,
            facecolors="none",
            edgecolors="0.6",
            label=label,
            lw=0.8,
        )
    if diverged.any():
        axes.scatter(
            scale.positions[diverged],
            np.full(diverged.sum(), 0.97),
            36,
            color=_DIVERGED_COLOUR,
            marker="x",
            label=f"diverged ({diverged.sum()} of {len(diverged)} lanes)",
            transform=axes.get_xaxis_transform(),
            zorder=4,
        )


def _set_axes_of_curves(
    axes: Any, trials: Trials, scale: Scale, axis: str, dependent: list[str]
) -> None:
    """Scales, limits, ticks, labels and title."""
    values = trials.values[trials.is_done | trials.is_halved]
    if values.size and values.min() > 0 and values.max() > 10 * values.min():
        from matplotlib.ticker import LogFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter())
    if trials.is_diverged.any():
        axes.margins(y=0.12)
    if not values.size:
        axes.set_yticks([])
    axes.xaxis.set_ticks(scale.ticks, scale.labels)
    if sum(map(len, scale.labels)) > 50:
        axes.xaxis.set_tick_params(labelrotation=30)
    low, high = scale.positions.min(), scale.positions.max()
    margin = 0.05 * (high - low)
    axes.set_xlim(low - margin, high + margin)
    changes = f"; {', '.join(dependent)} changes along" if dependent else ""
    axes.set_xlabel(f"{axis}{scale.suffix}{changes}")
    label = trials.lane_label if dependent else trials.label  # a dot is one lane
    axes.set_ylabel(label.replace(" after", "\nafter"))
    drawing.title(axes, trials.title)
    axes.grid(color="0.92", which="both")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_legend(axes: Any, trials: Trials, has_band: bool) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if has_band:
        from matplotlib.patches import Patch

        handles.append(Patch(color="0.85"))
        labels.append(f"least to largest of {trials.num_seeds} seeds")
    entries = [
        (handle, drawing.wrap(label, 4.0))
        for handle, label in zip(handles, labels, strict=True)
        if label
    ]
    if entries:
        is_short = max(len(label) for _, label in entries) < 30
        axes.figure.legend(
            *zip(*entries, strict=True),
            loc="outside lower center",
            ncols=min(3, len(entries)) if is_short else 1,
            frameon=False,
            fontsize=8,
        )


def sweep_map(
    sweep: Any, x: str, y: str, path: PathLike, metric: str | None = None
) -> Path:
    """Plot a heat map of a metric after the last epoch over two axes of a sweep.

    A cell shows the best setting of the other axes, as the mean over seeds. The best
    cell has a frame. A cell shows how many of its lanes diverged; a cross if all did.
    It is grey if no lane was trained to the end, and white if it has no lane. An axis
    of many values, such as a random one, is cut into bins.

    Args:
      sweep: the result of `jaxae.sweep`, or its table.
      x, y: the horizontal and the vertical axis.
      path: the file to write.
      metric: by default "validation/loss", or "train/loss" if there is none.

    Raises:
      ValueError: if x or y does not vary, both are the same axis, or the metric is
        unknown.
    """
    trials = read_trials(sweep, metric)
    check_axis(trials, "x", x)
    check_axis(trials, "y", y)
    if x == y:
        raise ValueError(f"x and y must be two axes, got {x!r} twice.")
    columns, rows = _cells(scale_of(trials.axes[x])), _cells(scale_of(trials.axes[y]))
    shape = rows.num_cells, columns.num_cells
    values = np.full(shape, np.nan)
    settings = list(trials.settings(*trials.axes).values())
    for i, j in np.ndindex(shape):
        is_in_cell = (rows.cells == i) & (columns.cells == j)
        means = [trials.mean(lanes[is_in_cell[lanes]]) for lanes in settings]
        values[i, j] = np.nanmin([*means, np.inf])
    values[~np.isfinite(values)] = np.nan
    size = 1.6 + max(3.4, 0.62 * shape[1]), 1.3 + max(2.2, 0.42 * shape[0])
    figure = drawing.figure(size)
    axes = figure.subplots()
    norm = _colour_norm(values)
    image = drawing.show(
        axes, values, "viridis", 256, aspect="auto", origin="lower", norm=norm
    )
    _draw_cells(axes, trials, values, rows.cells, columns.cells, image)
    axes.xaxis.set_ticks(columns.ticks, columns.labels)
    axes.yaxis.set_ticks(rows.ticks, rows.labels)
    if max(map(len, columns.labels)) > 6:
        axes.tick_params("x", labelrotation=30)
    axes.set_xlabel(f"{x}{columns.suffix}")
    axes.set_ylabel(f"{y}{rows.suffix}")
    drawing.title(axes, trials.title)
    others = [name for name in trials.axes if name not in (x, y)]
    best = f", best over {', '.join(others)}" if others else ""
    if np.isfinite(values).any():
        bar = figure.colorbar(image, ax=axes)
        bar.set_label(drawing.wrap(f"{trials.label}{best}", size[1]))
    return drawing.save(figure, path)


class _Cells(NamedTuple):
    """The cells of a map along one axis."""

    cells: np.ndarray  # [L] the cell of each lane
    num_cells: int
    ticks: np.ndarray  # centres of cells, or edges of bins
    labels: list[str]
    suffix: str = ""  # of the axis' label


def _cells(scale: Scale) -> _Cells:
    """A cell for each value; bins for an axis of many values."""
    distinct, is_log = scale.distinct, bool(scale.suffix)
    if len(distinct) <= _MAX_CELLS:
        cells = np.searchsorted(distinct, scale.positions)
        labels = scale.labels
        if not np.array_equal(scale.ticks, distinct):
            numbers = 10**distinct if is_log else distinct
            labels = [f"{number:.2g}" for number in numbers]
        return _Cells(cells, len(distinct), np.arange(len(distinct)), labels)
    edges = np.linspace(distinct[0], distinct[-1], _NUM_BINS + 1)
    cells = np.searchsorted(edges, scale.positions, "right") - 1
    numbers = 10**edges if is_log else edges
    every_second = slice(1, None, 2)
    labels = [f"{number:.2g}" for number in numbers[every_second]]
    ticks = np.arange(_NUM_BINS + 1)[every_second] - 0.5
    suffix = f" (bins{', log scale' if is_log else ''})"
    return _Cells(np.clip(cells, 0, _NUM_BINS - 1), _NUM_BINS, ticks, labels, suffix)


def _colour_norm(values: np.ndarray) -> Any:
    """Logarithmic if the values span more than a decade."""
    from matplotlib.colors import LogNorm, Normalize

    finite = values[np.isfinite(values)]
    if not finite.size:
        return Normalize(0, 1)
    is_wide = finite.min() > 0 and finite.max() > 10 * finite.min()
    return (LogNorm if is_wide else Normalize)(finite.min(), finite.max())


def _draw_cells(axes: Any, trials: Trials, values, rows, columns, image) -> None:
    """The text of each cell, and the frame of the best one."""
    from matplotlib.patches import Rectangle

    for i, j in np.ndindex(values.shape):
        is_in_cell = (rows == i) & (columns == j)
        num_lanes = is_in_cell.sum()
        num_diverged, value = (trials.is_diverged & is_in_cell).sum(), values[i, j]
        if not num_lanes:
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color="white", lw=0))
            continue
        if not math.isnan(value):
            text = f"{value:.3g}"
            r, g, b, _ = image.cmap(image.norm(value))
            colour = "white" if 0.3 * r + 0.6 * g + 0.1 * b < 0.55 else "black"
            if num_diverged:
                text += f"\n{num_diverged}/{num_lanes}\ndiverged"
        elif num_diverged == num_lanes:
            text, colour = "\N{MULTIPLICATION X}\ndiverged", _DIVERGED_COLOUR
        else:
            text, colour = "halved", "0.3"
        axes.text(
            j, i, text, color=colour, ha="center", va="center", fontsize=7, zorder=3
        )
    if np.isfinite(values).any():
        i, j = np.unravel_index(np.nanargmin(values), values.shape)
        frame = Rectangle(
            (j - 0.5, i - 0.5), 1, 1, fill=False, lw=2.5, edgecolor=_COLOURS[1]
        )
        frame.set_zorder(4)
        axes.add_patch(frame)


def sweep_parallel(sweep: Any, path: PathLike, metric: str | None = None) -> Path:
    """Plot the settings of a sweep as parallel coordinates, from all axes to a metric.

    A line is a setting, coloured by the metric after the last epoch as the mean over
    seeds. The best line is thick. Lines with the same value on an axis are spread out
    around it, the best lowest. Diverged settings are dashed and end above the scale.
    Settings stopped early by successive halving are grey. Of more than 300 settings,
    300 are drawn, evenly by rank.

    Args:
      sweep: the result of `jaxae.sweep`, or its table.
      path: the file to write.
      metric: by default "validation/loss", or "train/loss" if there is none.

    Raises:
      ValueError: if no axis but the seed varies, or the metric is unknown.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable

    trials = read_trials(sweep, metric)
    if not trials.axes:
        raise ValueError("sweep must have an axis other than the seed to be drawn.")
    lines = _parallel_lines(trials)
    figure = drawing.figure((1.6 + 1.55 * len(trials.axes), 4.2))
    axes = figure.subplots()
    norm, colour_map = _colour_norm(lines.means), colormaps["viridis"]
    num_drawn = _draw_parallel_lines(axes, lines, norm, colour_map)
    for k, (name, column) in enumerate(trials.axes.items()):
        _draw_vertical_axis(axes, k, name, scale_of(column))
    k = len(trials.axes)
    metric_scale = scale_of(lines.ends)._replace(suffix="")
    _draw_vertical_axis(axes, k, trials.metric, metric_scale)
    has_diverged = np.isnan(lines.ends).any()
    if has_diverged:
        style: dict[str, Any] = {"color": _DIVERGED_COLOUR, "fontsize": 8}
        axes.text(k + 0.06, 1.08, "diverged", va="center", **style)
    axes.set(xlim=(-0.35, k + 0.4), ylim=(-0.06, 1.12))
    axes.set_axis_off()
    drawing.title(axes, trials.title, pad=34)
    num_settings = len(lines.order)
    notes = {
        f"{num_drawn} of {num_settings} settings, evenly by rank": (
            num_drawn < num_settings
        ),
        "thick: the best": trials.is_done.any(),
        "grey: stopped early by halving": trials.is_halved.any(),
        "dashed: diverged": has_diverged,
    }
    note = "; ".join(text for text, is_shown in notes.items() if is_shown)
    axes.text(k / 2, -0.12, note, fontsize=8, ha="center", va="top")
    if trials.is_done.any():
        bar = figure.colorbar(ScalarMappable(norm, colour_map), ax=axes, pad=0.06)
        bar.set_label(trials.label)
    return drawing.save(figure, path)


class _ParallelLines(NamedTuple):
    """The lines of S settings."""

    heights: np.ndarray  # [S, axes + 1] on each axis and on the metric's
    means: np.ndarray  # [S] over seeds; nan if no lane was trained to the end
    ends: np.ndarray  # [S] the same, or the mean of halved lanes; nan if all diverged
    order: np.ndarray  # [S] settings by their mean, the best first


def _parallel_lines(trials: Trials) -> _ParallelLines:
    settings = list(trials.settings(*trials.axes).values())
    first = np.array([lanes[0] for lanes in settings])
    means = np.array([trials.mean(lanes) for lanes in settings])
    halved = np.array([_halved_mean(trials, lanes) for lanes in settings])
    ends = np.where(np.isnan(means), halved, means)
    order = np.argsort(np.where(np.isnan(means), np.inf, means), kind="stable")
    heights = []
    for column in trials.axes.values():
        scale = scale_of(column)
        heights.append(_spread_out(_to_unit(scale, scale.positions)[first], order))
    scale = scale_of(ends)
    end_heights = np.where(np.isnan(ends), 1.08, _to_unit(scale, scale.positions))
    return _ParallelLines(np.stack([*heights, end_heights], axis=1), means, ends, order)


def _draw_parallel_lines(axes: Any, lines: _ParallelLines, norm, colour_map) -> int:
    """Draw the lines, the best last; return their number."""
    ranks = np.linspace(0, len(lines.order) - 1, _MAX_LINES).astype(int)
    ranks = np.unique(ranks)
    for rank in ranks[::-1]:
        i = lines.order[rank]
        style: dict[str, Any] = {"color": "0.8", "lw": 0.8, "zorder": 1}
        if not math.isnan(lines.means[i]):
            colour, width = colour_map(norm(lines.means[i])), 3.0 if rank == 0 else 1.2
            style = {"color": colour, "lw": width, "zorder": 2}
        elif math.isnan(lines.ends[i]):
            style = {"color": _DIVERGED_COLOUR, "lw": 0.9, "alpha": 0.7}
            style["ls"] = (0, (4, 3))
        axes.plot(np.arange(lines.heights.shape[1]), lines.heights[i], **style)
    return len(ranks)


def _halved_mean(trials: Trials, lanes: np.ndarray) -> float:
    halved = lanes[trials.is_halved[lanes]]
    return float(trials.values[halved].mean()) if len(halved) else math.nan


def _to_unit(scale: Scale, positions: np.ndarray) -> np.ndarray:
    """Positions on a scale as heights from 0 to 1."""
    finite = scale.positions[np.isfinite(scale.positions)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    return (positions - low) / ((high - low) or 1.0)


def _spread_out(heights: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The heights `[S]`, those that are equal spread out by rank."""
    distinct = np.unique(heights)
    if len(distinct) == len(heights):
        return heights
    gap = 0.5 * np.diff(distinct).min() if len(distinct) > 1 else 0.5
    rank = np.empty(len(order))
    rank[order] = np.linspace(-0.5, 0.5, len(order))
    return heights + min(gap, 0.12) * rank


def _draw_vertical_axis(axes: Any, k: int, name: str, scale: Scale) -> None:
    axes.plot([k, k], [-0.05, 1.05], color="0.2", lw=1, zorder=3)
    last = -1.0
    for tick, label in zip(_to_unit(scale, scale.ticks), scale.labels, strict=True):
        if tick - last < 0.045:  # the labels would overlap
            continue
        last = tick
        axes.plot([k - 0.02, k], [tick, tick], color="0.2", lw=1, zorder=3)
        box = {"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 0.8}
        axes.text(
            k - 0.04, tick, label, ha="right", va="center", fontsize=8, bbox=box
        ).set_zorder(4)
    title = f"{name}\n{scale.suffix.strip()}".strip()
    axes.text(k, 1.15, title, ha="center", fontsize=9)
