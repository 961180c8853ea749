"""Plots of a sweep: a metric against one axis, over two axes, and over all axes."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxae._checks import ArgumentError
from jaxae.plots import drawing
from jaxae.plots.drawing import PathLike, Scale, scale_of
from jaxae.plots.sweep_table import SweepTable, check_axis, format_setting, read_table

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
      ArgumentError: if the axis does not vary or the metric is unknown.
    """
    table = read_table(sweep, metric)
    check_axis(table, "axis", axis)
    scale = scale_of(table.axes[axis])
    dependent, others = _split_other_axes(table, axis)
    settings = table.settings(*others)
    figure = drawing.figure((6.4, 4.0))
    axes = figure.subplots()
    if len(settings) <= len(_COLOURS):
        colours = _line_colours(table, others, list(settings))
        for (row, lanes), colour in zip(settings.items(), colours, strict=True):
            label = format_setting(others, row)
            if dependent:
                _draw_dots(axes, table, scale, lanes, color=colour, label=label)
            else:
                _draw_line(axes, table, scale, [lanes], colour, label)
    else:
        lanes, style = np.arange(len(table.values)), {"s": 10, "lw": 0}
        label = "each lane"
        _draw_dots(axes, table, scale, lanes, color=_LANE_COLOUR, label=label, **style)
        if not dependent:
            label = f"the best of {len(settings)} settings of {' x '.join(others)}"
            rows = list(settings.values())
            _draw_line(axes, table, scale, rows, _COLOURS[0], label)
    _draw_stopped_lanes(axes, table, scale)
    _set_axes_of_curves(axes, table, scale, axis, dependent)
    _draw_legend(axes, table, has_band=table.num_seeds > 1 and not dependent)
    return drawing.save(figure, path)


def _split_other_axes(table: SweepTable, axis: str) -> tuple[list[str], list[str]]:
    """The axes with one value for each value of this axis, and all other axes."""
    names = [name for name in table.axes if name != axis]
    num_values = len(table.settings(axis))
    dependent = [n for n in names if len(table.settings(axis, n)) == num_values]
    return dependent, [name for name in names if name not in dependent]


def _line_colours(table: SweepTable, others: list[str], rows: list[tuple]) -> list:
    """Shades of one colour map if the settings are ordered numbers; else colours."""
    if len(others) != 1 or table.axes[others[0]].dtype.kind not in "fiu":
        return list(_COLOURS[: len(rows)])
    from matplotlib import colormaps

    ranks = np.argsort(np.argsort([row[0] for row in rows]))
    return list(colormaps["viridis_r"](0.15 + 0.85 * ranks / max(1, len(rows) - 1)))


def _draw_dots(axes, table: SweepTable, scale: Scale, lanes, **style: Any) -> None:
    done = lanes[table.is_done[lanes]]
    if len(done):
        style = {"s": 22, **style}
        axes.scatter(scale.positions[done], table.values[done], **style)


def _draw_line(axes, table: SweepTable, scale: Scale, rows, colour, label: str) -> None:
    """The best of the rows of lanes at each position: mean, minimum and maximum."""
    points = []
    for position in scale.distinct:
        at_position = [lanes[scale.positions[lanes] == position] for lanes in rows]
        done = [lanes[table.is_done[lanes]] for lanes in at_position]
        values = [table.values[lanes] for lanes in done if len(lanes)]
        if values:
            best = min(values, key=np.mean)
            points.append((position, best.mean(), best.min(), best.max()))
    if not points:
        return
    x, mean, low, high = np.array(points).T
    style: dict[str, Any] = {"marker": "o", "markersize": 4, "color": colour}
    style["label"] = label
    if scale.is_categorical:  # without a line between categories
        axes.errorbar(x, mean, [mean - low, high - mean], ls="", zorder=3, **style)
        return
    axes.plot(x, mean, zorder=3, **style)
    if table.num_seeds > 1:
        axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0, zorder=2)


def _draw_stopped_lanes(axes: Any, table: SweepTable, scale: Scale) -> None:
    halved, diverged = table.is_halved, table.is_diverged
    if halved.any():
        x, y = scale.positions[halved], table.values[halved]
        label = f"stopped early by halving ({halved.sum()} lanes)"
        style = {"facecolors": "none", "edgecolors": "0.6", "lw": 0.8}
        axes.scatter(x, y, 14, label=label, **style)
    if diverged.any():
        x, y = scale.positions[diverged], np.full(diverged.sum(), 0.97)
        label = f"diverged ({diverged.sum()} of {len(diverged)} lanes)"
        style = {"color": _DIVERGED_COLOUR, "marker": "x", "zorder": 4}
        at_top = axes.get_xaxis_transform()
        axes.scatter(x, y, 36, label=label, transform=at_top, **style)


def _set_axes_of_curves(axes, table: SweepTable, scale: Scale, axis, dependent) -> None:
    """Scales, limits, ticks, labels and title."""
    values = table.values[table.is_done | table.is_halved]
    if drawing.spans_decade(values):
        drawing.log_scale(axes)
    if table.is_diverged.any():
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
    label = table.lane_label if dependent else table.label  # a dot is one lane
    axes.set_ylabel(label.replace(" after", "\nafter"))
    drawing.title(axes, table.title)
    axes.grid(color="0.92", which="both")
    axes.set_axisbelow(True)
    drawing.hide_frame(axes)


def _draw_legend(axes: Any, table: SweepTable, has_band: bool) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if has_band:
        from matplotlib.patches import Patch

        handles.append(Patch(color="0.85"))
        labels.append(f"least to largest of {table.num_seeds} seeds")
    named = [pair for pair in zip(handles, labels, strict=True) if pair[1]]
    if named:
        handles, labels = zip(*named, strict=True)
        is_short = max(map(len, labels)) < 30
        axes.figure.legend(
            handles,
            [drawing.wrap(label, 4.0) for label in labels],
            loc="outside lower center",
            ncols=min(3, len(labels)) if is_short else 1,
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
      ArgumentError: if x or y does not vary, both are the same axis, or the metric is
        unknown.
    """
    table = read_table(sweep, metric)
    check_axis(table, "x", x)
    check_axis(table, "y", y)
    if x == y:
        raise ArgumentError("x and y", "must be two axes", f"{x!r} twice")
    columns, rows = _cells(scale_of(table.axes[x])), _cells(scale_of(table.axes[y]))
    shape = rows.num_cells, columns.num_cells
    values = np.full(shape, np.nan)
    settings = list(table.settings(*table.axes).values())
    for i, j in np.ndindex(shape):
        is_in_cell = (rows.cells == i) & (columns.cells == j)
        means = [table.mean(lanes[is_in_cell[lanes]]) for lanes in settings]
        values[i, j] = np.nanmin([*means, np.inf])
    values[~np.isfinite(values)] = np.nan
    size = 1.6 + max(3.4, 0.62 * shape[1]), 1.3 + max(2.2, 0.42 * shape[0])
    figure = drawing.figure(size)
    axes = figure.subplots()
    norm = _colour_norm(values)
    style: dict[str, Any] = {"aspect": "auto", "origin": "lower", "norm": norm}
    image = drawing.show(axes, values, "viridis", 256, **style)
    _draw_cells(axes, table, values, rows.cells, columns.cells, image)
    axes.xaxis.set_ticks(columns.ticks, columns.labels)
    axes.yaxis.set_ticks(rows.ticks, rows.labels)
    if max(map(len, columns.labels)) > 6:
        axes.tick_params("x", labelrotation=30)
    axes.set_xlabel(f"{x}{columns.suffix}")
    axes.set_ylabel(f"{y}{rows.suffix}")
    drawing.title(axes, table.title)
    others = [name for name in table.axes if name not in (x, y)]
    best = f", best over {', '.join(others)}" if others else ""
    if np.isfinite(values).any():
        bar = figure.colorbar(image, ax=axes)
        bar.set_label(drawing.wrap(f"{table.label}{best}", size[1]))
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
    norm = LogNorm if drawing.spans_decade(finite) else Normalize
    return norm(finite.min(), finite.max())


def _draw_cells(axes: Any, table: SweepTable, values, rows, columns, image) -> None:
    """The text of each cell, and the frame of the best one."""
    from matplotlib.patches import Rectangle

    for i, j in np.ndindex(values.shape):
        is_in_cell = (rows == i) & (columns == j)
        num_lanes = is_in_cell.sum()
        num_diverged, value = (table.is_diverged & is_in_cell).sum(), values[i, j]
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
        style = {"ha": "center", "va": "center", "fontsize": 7, "zorder": 3}
        axes.text(j, i, text, color=colour, **style)
    if np.isfinite(values).any():
        i, j = np.unravel_index(np.nanargmin(values), values.shape)
        frame: dict[str, Any] = {"fill": False, "lw": 2.5, "edgecolor": _COLOURS[1]}
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, zorder=4, **frame))


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
      ArgumentError: if no axis but the seed varies, or the metric is unknown.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable

    table = read_table(sweep, metric)
    if not table.axes:
        raise ArgumentError("sweep", "must have an axis other than the seed")
    lines = _parallel_lines(table)
    figure = drawing.figure((1.6 + 1.55 * len(table.axes), 4.2))
    axes = figure.subplots()
    norm, colour_map = _colour_norm(lines.means), colormaps["viridis"]
    num_drawn = _draw_parallel_lines(axes, lines, norm, colour_map)
    for k, (name, column) in enumerate(table.axes.items()):
        _draw_vertical_axis(axes, k, name, scale_of(column))
    k = len(table.axes)
    metric_scale = scale_of(lines.ends)._replace(suffix="")
    _draw_vertical_axis(axes, k, table.metric, metric_scale)
    has_diverged = np.isnan(lines.ends).any()
    if has_diverged:
        style: dict[str, Any] = {"color": _DIVERGED_COLOUR, "fontsize": 8}
        axes.text(k + 0.06, 1.08, "diverged", va="center", **style)
    axes.set(xlim=(-0.35, k + 0.4), ylim=(-0.06, 1.12))
    axes.set_axis_off()
    drawing.title(axes, table.title, pad=34)
    num_settings = len(lines.order)
    drawn = f"{num_drawn} of {num_settings} settings, evenly by rank"
    notes = {
        drawn: num_drawn < num_settings,
        "thick: the best": table.is_done.any(),
        "grey: stopped early by halving": table.is_halved.any(),
        "dashed: diverged": has_diverged,
    }
    note = "; ".join(text for text, is_shown in notes.items() if is_shown)
    axes.text(k / 2, -0.12, note, fontsize=8, ha="center", va="top")
    if table.is_done.any():
        bar = figure.colorbar(ScalarMappable(norm, colour_map), ax=axes, pad=0.06)
        bar.set_label(table.label)
    return drawing.save(figure, path)


class _ParallelLines(NamedTuple):
    """The lines of S settings."""

    heights: np.ndarray  # [S, axes + 1] on each axis and on the metric's
    means: np.ndarray  # [S] over seeds; nan if no lane was trained to the end
    ends: np.ndarray  # [S] the same, or the mean of halved lanes; nan if all diverged
    order: np.ndarray  # [S] settings by their mean, the best first


def _parallel_lines(table: SweepTable) -> _ParallelLines:
    settings = list(table.settings(*table.axes).values())
    first = np.array([lanes[0] for lanes in settings])
    means = np.array([table.mean(lanes) for lanes in settings])
    halved = np.array([_halved_mean(table, lanes) for lanes in settings])
    ends = np.where(np.isnan(means), halved, means)
    order = np.argsort(np.where(np.isnan(means), np.inf, means), kind="stable")
    heights = []
    for column in table.axes.values():
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


def _halved_mean(table: SweepTable, lanes: np.ndarray) -> float:
    halved = lanes[table.is_halved[lanes]]
    return float(table.values[halved].mean()) if len(halved) else math.nan


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
        style = {"ha": "right", "va": "center", "fontsize": 8, "zorder": 4}
        axes.text(k - 0.04, tick, label, bbox=box, **style)
    title = f"{name}\n{scale.suffix.strip()}".strip()
    axes.text(k, 1.15, title, ha="center", fontsize=9)
