"""Pictures of a sweep: a metric against one axis, over two, and over all of them."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxae.plots import drawing, trials
from jaxae.plots.drawing import PathLike
from jaxae.plots.trials import Places, Trials

_FEW = 6  # lines, each with its own colour
_COLOURS = ("#3f6fa3", "#c8553d", "#5f9154", "#8464a8", "#b08a2e", "0.25")
_DIVERGED, _FAINT = "#b2182b", "0.72"
_BINS = 8  # of an axis that has more values than a map has room for
_CELLS = 16
_LINES = 300  # beyond which nobody tells them apart


def sweep_curves(
    sweep: Any, axis: str, path: PathLike, metric: str | None = None
) -> Path:
    """A metric after the last epoch against one axis of a sweep.

    A line for each setting of the other axes where these are few, else one of the best
    setting at each value, before all lanes as dots. Where `seed` is swept, a line is
    the mean over seeds and its band reaches from the least to the largest. Lanes whose
    other axes change along with this one, as drawn ones do, are dots. Diverged lanes
    are crosses at the top, lanes that halving stopped open circles, at their own end.

    Args:
      sweep: what `jaxae.sweep` returned, or its table.
      axis: whose values are drawn to the right; by logarithm if they span a decade.
      path: the file to write.
      metric: "validation/loss", or "train/loss" where there is none, unless given.

    Raises:
      ValueError: for an axis that does not vary, or an unknown metric.
    """
    found = trials.read(sweep, metric)
    trials.check_axis(found, "axis", axis)
    places = trials.place(found.axes[axis])
    along, others = _others(found, axis)
    settings = found.settings(*others)
    figure = drawing.figure((6.4, 4.0))
    axes = figure.subplots()
    is_dots = bool(along)
    if len(settings) <= _FEW:
        colours = _colours(found, others, list(settings))
        for (row, lanes), colour in zip(settings.items(), colours, strict=True):
            label = trials.words(dict(zip(others, row, strict=True)))
            if is_dots:
                done = lanes[found.is_done[lanes]]
                if not len(done):
                    continue
                axes.scatter(
                    places.at[done], found.values[done], 22, color=colour, label=label
                )
            else:
                _draw_line(axes, found, places, [lanes], colour, label)
    else:
        done = np.flatnonzero(found.is_done)
        label = "each lane"
        axes.scatter(
            places.at[done], found.values[done], 10, color=_FAINT, lw=0, label=label
        )
        if not is_dots:
            label = f"the best of {len(settings)} settings of {' x '.join(others)}"
            rows = list(settings.values())
            _draw_line(axes, found, places, rows, _COLOURS[0], label)
    _draw_others(axes, found, places)
    _finish_curves(axes, found, places, axis, along)
    return drawing.save(figure, path)


def _others(found: Trials, axis: str) -> tuple[list[str], list[str]]:
    """The other axes: those of which each value here has its own, and the rest."""
    names = [name for name in found.axes if name != axis]
    num_here = len(found.settings(axis))
    along = [name for name in names if len(found.settings(axis, name)) == num_here]
    return along, [name for name in names if name not in along]


def _colours(found: Trials, others: list[str], rows: list[tuple]) -> list:
    """Shades where the lines have an order, else colours."""
    if len(others) != 1 or found.axes[others[0]].dtype.kind not in "fiu":
        return list(_COLOURS[: len(rows)])
    from matplotlib import colormaps

    ranks = np.argsort(np.argsort([row[0] for row in rows]))
    return list(colormaps["viridis_r"](0.15 + 0.85 * ranks / max(1, len(rows) - 1)))


def _draw_line(axes, found: Trials, places: Places, rows, colour, label: str) -> None:
    """At each place the row of lanes with the least mean: mean, least and largest."""
    points = []
    for at in places.distinct:
        here = [lanes[places.at[lanes] == at] for lanes in rows]
        here = [lanes[found.is_done[lanes]] for lanes in here]
        values = [found.values[lanes] for lanes in here if len(lanes)]
        if values:
            best = min(values, key=np.mean)
            points.append((at, best.mean(), best.min(), best.max()))
    if not points:
        return
    at, mean, low, high = np.array(points).T
    style: dict[str, Any] = {
        "marker": "o",
        "markersize": 4,
        "color": colour,
        "label": label,
    }
    if places.is_words:  # nothing lies between words
        axes.errorbar(at, mean, [mean - low, high - mean], ls="", zorder=3, **style)
        return
    axes.plot(at, mean, zorder=3, **style)
    if found.num_seeds > 1:
        axes.fill_between(at, low, high, color=colour, alpha=0.2, lw=0, zorder=2)


def _draw_others(axes: Any, found: Trials, places: Places) -> None:
    halved, diverged = found.is_halved, found.is_diverged
    if halved.any():
        label = f"stopped early by halving ({halved.sum()} lanes)"
        axes.scatter(
            places.at[halved],
            found.values[halved],
            14,
            facecolors="none",
            edgecolors="0.6",
            label=label,
            lw=0.8,
        )
    if diverged.any():
        axes.scatter(
            places.at[diverged],
            np.full(diverged.sum(), 0.97),
            36,
            color=_DIVERGED,
            marker="x",
            label=f"diverged ({diverged.sum()} of {len(diverged)} lanes)",
            transform=axes.get_xaxis_transform(),
            zorder=4,
        )


def _finish_curves(axes, found: Trials, places: Places, axis: str, along) -> None:
    shown = found.values[found.is_done | found.is_halved]
    if shown.size and shown.min() > 0 and shown.max() > 10 * shown.min():
        from matplotlib.ticker import LogFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter())
    if found.is_diverged.any():
        axes.margins(y=0.12)
    if not shown.size:
        axes.set_yticks([])
    _ticks(axes.xaxis, places)
    margin = 0.05 * (places.at.max() - places.at.min())
    axes.set_xlim(places.at.min() - margin, places.at.max() + margin)
    changes = f"; {', '.join(along)} changes along" if along else ""
    axes.set_xlabel(f"{axis}{places.scale}{changes}")
    label = found.after if along else found.label  # dots are single lanes
    axes.set_ylabel(label.replace(" after", "\nafter"))
    drawing.title(axes, found.title)
    axes.grid(color="0.92", which="both")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if found.num_seeds > 1 and not along:
        from matplotlib.patches import Patch

        handles.append(Patch(color="0.85"))
        labels.append(f"least to largest of {found.num_seeds} seeds")
    named = [
        (h, drawing.wrapped(label, 4.0))
        for h, label in zip(handles, labels, strict=True)
        if label
    ]
    if named:
        longest = max(len(label) for _, label in named)
        axes.figure.legend(
            *zip(*named, strict=True),
            loc="outside lower center",
            ncols=min(3, len(named)) if longest < 30 else 1,
            frameon=False,
            fontsize=8,
        )


def sweep_map(
    sweep: Any, x: str, y: str, path: PathLike, metric: str | None = None
) -> Path:
    """A heat map of a metric after the last epoch over two axes of a sweep.

    A cell is the mean over seeds of the best setting of the other axes; the best cell
    has a frame. A cell all of whose lanes diverged has a cross, and one of which some
    did says how many; grey is what has no lane at the end, white what has no lane. An
    axis of many values, as one that is drawn, is cut into bins.

    Args:
      sweep: what `jaxae.sweep` returned, or its table.
      x, y: the axes, to the right and upwards.
      path: the file to write.
      metric: "validation/loss", or "train/loss" where there is none, unless given.

    Raises:
      ValueError: for an axis that does not vary, one axis twice, an unknown metric.
    """
    found = trials.read(sweep, metric)
    trials.check_axis(found, "x", x)
    trials.check_axis(found, "y", y)
    if x == y:
        raise ValueError(f"x and y must be two axes, got {x!r} twice.")
    columns, x_ticks = _cells(trials.place(found.axes[x]))
    rows, y_ticks = _cells(trials.place(found.axes[y]))
    shape = _num_cells(rows, y_ticks), _num_cells(columns, x_ticks)
    values = np.full(shape, np.nan)
    settings = list(found.settings(*found.axes).values())
    for i, j in np.ndindex(shape):
        here = (rows == i) & (columns == j)
        means = [found.mean(lanes[here[lanes]]) for lanes in settings]
        values[i, j] = np.nanmin([*means, np.inf])
    values[~np.isfinite(values)] = np.nan
    size = 1.6 + max(3.4, 0.62 * shape[1]), 1.3 + max(2.2, 0.42 * shape[0])
    figure = drawing.figure(size)
    axes = figure.subplots()
    norm = _norm(values)
    picture = drawing.show(
        axes, values, "viridis", 256, aspect="auto", origin="lower", norm=norm
    )
    _draw_cells(axes, found, values, rows, columns, picture)
    for axis, ticks in ((axes.xaxis, x_ticks), (axes.yaxis, y_ticks)):
        axis.set_ticks(*ticks[:2])
    if max(map(len, x_ticks[1])) > 6:
        axes.tick_params("x", labelrotation=30)
    axes.set_xlabel(f"{x}{x_ticks[2]}")
    axes.set_ylabel(f"{y}{y_ticks[2]}")
    drawing.title(axes, found.title)
    others = [name for name in found.axes if name not in (x, y)]
    best = f", best over {', '.join(others)}" if others else ""
    if np.isfinite(values).any():
        bar = figure.colorbar(picture, ax=axes)
        bar.set_label(drawing.wrapped(f"{found.label}{best}", size[1]))
    return drawing.save(figure, path)


def _cells(places: Places) -> tuple[np.ndarray, tuple[np.ndarray, list[str], str]]:
    """Of each lane its cell, and the ticks: cells' middles, or bins' edges."""
    distinct = places.distinct
    if len(distinct) <= _CELLS:
        cells = np.searchsorted(distinct, places.at)
        labels = places.labels
        if not np.array_equal(places.ticks, distinct):
            numbers = 10**distinct if places.scale else distinct
            labels = [f"{number:.2g}" for number in numbers]
        return cells, (np.arange(len(distinct)), labels, "")
    edges = np.linspace(distinct[0], distinct[-1], _BINS + 1)
    cells = np.clip(np.searchsorted(edges, places.at, "right") - 1, 0, _BINS - 1)
    numbers = 10**edges if places.scale else edges
    every = slice(1, None, 2)
    labels = [f"{number:.2g}" for number in numbers[every]]
    ticks = np.arange(_BINS + 1)[every] - 0.5
    return cells, (ticks, labels, f" (bins{', log scale' if places.scale else ''})")


def _num_cells(cells: np.ndarray, ticks: tuple) -> int:
    return _BINS if ticks[2] else int(cells.max()) + 1


def _norm(values: np.ndarray) -> Any:
    """Of colours: logarithmic beyond a decade."""
    from matplotlib.colors import LogNorm, Normalize

    shown = values[np.isfinite(values)]
    if not shown.size:
        return Normalize(0, 1)
    is_wide = shown.min() > 0 and shown.max() > 10 * shown.min()
    return (LogNorm if is_wide else Normalize)(shown.min(), shown.max())


def _draw_cells(axes: Any, found: Trials, values, rows, columns, picture) -> None:
    """In each cell its number, and what became of lanes that are not in it."""
    from matplotlib.patches import Rectangle

    for i, j in np.ndindex(values.shape):
        here = (rows == i) & (columns == j)
        num_diverged, value = (found.is_diverged & here).sum(), values[i, j]
        if not here.any():
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color="white", lw=0))
            continue
        if not math.isnan(value):
            text = f"{value:.3g}"
            r, g, b, _ = picture.cmap(picture.norm(value))
            colour = "white" if 0.3 * r + 0.6 * g + 0.1 * b < 0.55 else "black"
            if num_diverged:
                text += f"\n{num_diverged}/{here.sum()}\ndiverged"
        elif num_diverged == here.sum():
            text, colour = "\N{MULTIPLICATION X}\ndiverged", _DIVERGED
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
    """Parallel coordinates: a line a setting through all axes of a sweep to a metric.

    A line is the mean over seeds, coloured by the metric after the last epoch; the best
    one is drawn thick. Of very many, some are drawn, evenly by their rank. Lines that
    share a value are fanned out there, the best lowest. Diverged settings are dashed
    and end above the scale, halved ones are grey.

    Args:
      sweep: what `jaxae.sweep` returned, or its table.
      path: the file to write.
      metric: "validation/loss", or "train/loss" where there is none, unless given.

    Raises:
      ValueError: for a sweep in which nothing but the seed varies, an unknown metric.
    """
    found = trials.read(sweep, metric)
    if not found.axes:
        raise ValueError("sweep must have an axis other than the seed to be drawn.")
    settings = list(found.settings(*found.axes).values())
    first = np.array([lanes[0] for lanes in settings])
    means = np.array([found.mean(lanes) for lanes in settings])
    halved = np.array([_halved_mean(found, lanes) for lanes in settings])
    ends = np.where(np.isnan(means), halved, means)
    order = np.argsort(np.where(np.isnan(means), np.inf, means), kind="stable")
    heights = [
        _fanned(*_unit(trials.place(column)), first, order)
        for column in found.axes.values()
    ]
    end_places = trials.place(ends)
    end_heights, end_ticks = _unit(end_places)
    end_heights = np.where(np.isnan(ends), 1.08, end_heights)
    lines = np.stack([*heights, end_heights], axis=1)

    figure = drawing.figure((1.6 + 1.55 * len(found.axes), 4.2))
    axes = figure.subplots()
    norm, colours = _norm(means), _colour_map()
    ranks = np.unique(np.linspace(0, len(order) - 1, _LINES).astype(int))
    for rank, i in zip(ranks[::-1], order[ranks[::-1]], strict=True):
        style: dict[str, Any] = {"color": "0.8", "lw": 0.8, "zorder": 1}
        if not math.isnan(means[i]):
            style = {"color": colours(norm(means[i])), "lw": 1.2, "zorder": 2}
            style["lw"] = 3.0 if rank == 0 else 1.2
        elif math.isnan(ends[i]):
            style = {"color": _DIVERGED, "lw": 0.9, "ls": (0, (4, 3)), "alpha": 0.7}
        axes.plot(np.arange(lines.shape[1]), lines[i], **style)
    for k, (name, column) in enumerate(found.axes.items()):
        places = trials.place(column)
        _draw_scale(axes, k, name, places.scale, _unit(places)[1], places.labels)
    k = len(found.axes)
    _draw_scale(axes, k, found.metric, "", end_ticks, end_places.labels)
    if np.isnan(ends).any():
        axes.text(k + 0.06, 1.08, "diverged", color=_DIVERGED, fontsize=8, va="center")
    axes.set(xlim=(-0.35, k + 0.4), ylim=(-0.06, 1.12))
    axes.set_axis_off()
    drawing.title(axes, found.title, pad=34)
    said = ["thick: the best"] if found.is_done.any() else []
    if len(ranks) < len(order):
        said.insert(0, f"{len(ranks)} of {len(order)} settings, evenly by rank")
    if found.is_halved.any():
        said.append("grey: stopped early by halving")
    if np.isnan(ends).any():
        said.append("dashed: diverged")
    axes.text(k / 2, -0.12, "; ".join(said), fontsize=8, ha="center", va="top")
    return _with_colours(figure, axes, found, norm, colours, path)


def _with_colours(figure, axes, found: Trials, norm, colours, path) -> Path:
    from matplotlib.cm import ScalarMappable

    if found.is_done.any():
        bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, pad=0.06)
        bar.set_label(found.label)
    return drawing.save(figure, path)


def _colour_map() -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"]


def _halved_mean(found: Trials, lanes: np.ndarray) -> float:
    halved = lanes[found.is_halved[lanes]]
    return float(found.values[halved].mean()) if len(halved) else math.nan


def _unit(places: Places) -> tuple[np.ndarray, np.ndarray]:
    """Heights of values and of ticks, from 0 to 1."""
    finite = places.at[np.isfinite(places.at)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    span = (high - low) or 1.0
    return (places.at - low) / span, (places.ticks - low) / span


def _fanned(heights: np.ndarray, ticks, first: np.ndarray, order) -> np.ndarray:
    """Of each setting, apart from those of the same value by their rank."""
    own = heights[first]
    distinct = np.unique(own)
    if len(distinct) == len(own):
        return own
    room = 0.5 * np.diff(distinct).min() if len(distinct) > 1 else 0.5
    rank = np.empty(len(order))
    rank[order] = np.linspace(-0.5, 0.5, len(order))
    return own + min(room, 0.12) * rank


def _draw_scale(axes: Any, k: int, name: str, scale: str, ticks, labels) -> None:
    axes.plot([k, k], [-0.05, 1.05], color="0.2", lw=1, zorder=3)
    last = -1.0
    for tick, label in zip(ticks, labels, strict=True):
        if tick - last < 0.045:  # no room
            continue
        last = tick
        axes.plot([k - 0.02, k], [tick, tick], color="0.2", lw=1, zorder=3)
        box = {"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 0.8}
        axes.text(
            k - 0.04, tick, label, ha="right", va="center", fontsize=8, bbox=box
        ).set_zorder(4)
    axes.text(k, 1.15, f"{name}\n{scale.strip()}".strip(), ha="center", fontsize=9)


# ---- words ---------------------------------------------------------------------------


def _ticks(axis: Any, places: Places) -> None:
    axis.set_ticks(places.ticks, places.labels)
    if sum(map(len, places.labels)) > 50:
        axis.set_tick_params(labelrotation=30)
