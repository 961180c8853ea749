"""Plots of a run: filters, reconstructions, curves and usage of latents."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxae import _checks
from jaxae._checks import ArgumentError
from jaxae.metrics import is_dead
from jaxae.plots import drawing
from jaxae.plots.drawing import PathLike

ImageShape = tuple[int, int] | None

_DATA_COLOUR, _MODEL_COLOUR, _BAR_COLOUR = "0.25", "#c8553d", "0.45"
_BACKGROUND_STYLE: dict[str, Any] = {"linewidth": 5, "alpha": 0.3, "marker": None}
_SPLIT_COLOURS = {"train": _DATA_COLOUR, "validation": _MODEL_COLOUR}
_LEAF_COLOURS = ("#3f6fa3", _MODEL_COLOUR, "#5f9154", "#8464a8", "#b08a2e", "0.25")
# (colour map, number of colours). Few colours, because images of noisy weights compress
# badly; an odd number, so that 0 has a colour of its own.
_DIVERGING, _GREY = ("RdBu_r", 33), ("gray", 256)


def square_shape(input_dim: int) -> ImageShape:
    """(s, s) if s^2 = input_dim >= 16, the likely shape of an image; otherwise None."""
    side = math.isqrt(input_dim)
    return (side, side) if side >= 4 and side * side == input_dim else None


def filters(
    W: Any, path: PathLike, image_shape: ImageShape = None, max_filters: int = 100
) -> Path:
    """Plot the rows of W with the largest norms, as images or as one heat map.

    Each image is scaled by its own largest |weight|, so that faint filters are visible.

    Args:
      W: `[H, D]`, weights of the encoder or the decoder.
      path: the file to write.
      image_shape: height and width of an input; None for a heat map.
      max_filters: the largest number of rows to plot.

    Raises:
      ArgumentError: if W is not `[H, D]`, or its rows are not images of that shape.
    """
    W = _matrix("W", W, image_shape)
    order = np.argsort(-np.linalg.norm(W, axis=1), kind="stable")[:max_filters]
    title = f"{len(order)} of {len(W)} filters, largest norm first"
    if image_shape is None:
        return _heat_map(W[order], path, title)
    largest = np.abs(W[order]).max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a diverged run has infinite weights
        images = (W[order] / np.maximum(largest, 1e-30)).reshape(-1, *image_shape)
    num_columns = math.ceil(math.sqrt(len(images) * image_shape[0] / image_shape[1]))
    tiles = _mosaic(images, min(num_columns, len(images)))
    figure = drawing.figure((5.6, 5 * tiles.shape[0] / tiles.shape[1] + 0.4))
    axes = figure.subplots()
    picture = drawing.show(axes, tiles, *_DIVERGING, vmin=-1, vmax=1)
    axes.set_axis_off()
    axes.set_title(f"{title}\neach scaled by its own max |weight|", fontsize=9)
    bar = figure.colorbar(picture, ax=axes, ticks=[-1, 0, 1], fraction=0.03, pad=0.01)
    bar.ax.set_yticklabels(["−max", "0", "max"], fontsize=8)
    return drawing.save(figure, path)


def reconstructions(
    X: Any,
    X_hat: Any,
    path: PathLike,
    image_shape: ImageShape = None,
    max_examples: int = 12,
) -> Path:
    """Plot the first inputs and their reconstructions, as images or as lines.

    Images share one grey scale, the range of the inputs; values outside are clipped.

    Args:
      X, X_hat: `[N, D]`, inputs and reconstructions.
      path: the file to write.
      image_shape: height and width of an input; None for lines.
      max_examples: the largest number of rows to plot.

    Raises:
      ArgumentError: if the shapes differ, or the rows are not images of that shape.
    """
    X, X_hat = _matrix("X", X, image_shape), _matrix("X_hat", X_hat, image_shape)
    if X.shape != X_hat.shape:
        problem = f"has shape {X.shape}, but {{X_hat}} has shape {X_hat.shape}"
        raise ArgumentError("X", problem)
    X, X_hat = X[:max_examples], X_hat[:max_examples]
    if image_shape is None:
        return _line_panels(X, X_hat, path)
    pairs = np.concatenate([X, X_hat]).reshape(-1, *image_shape)
    tiles = _mosaic(pairs, len(X))
    width = 0.7 * len(X)
    figure = drawing.figure(
        (width + 1.7, width * tiles.shape[0] / tiles.shape[1] + 0.1)
    )
    axes = figure.subplots()
    picture = drawing.show(axes, tiles, *_GREY, vmin=X.min(), vmax=X.max())
    rows = tiles.shape[0] * np.array([0.25, 0.75]) - 0.5
    axes.set_yticks(rows, ["input", "reconstruction"])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(picture, ax=axes, fraction=0.02, pad=0.01)
    bar.ax.tick_params(labelsize=8)
    return drawing.save(figure, path)


def curves(metrics: Mapping[str, Any], path: PathLike) -> Path:
    """Plot metrics against epochs, in up to four panels.

    * The train and validation "loss", on a log scale if it spans more than a decade.
    * Their "fvu".
    * The norm of the gradient of each leaf ("gradient/W"), and by path for a leaf with
      a gradient from both paths.
    * Their "dead_fraction" and "saturated_fraction".

    A panel without metrics is left out.

    Args:
      metrics: values by name, one an epoch, as `run.metrics`.
      path: the file to write.

    Raises:
      ArgumentError: if metrics has neither "train/loss" nor "validation/loss".
    """
    if not any(f"{split}/loss" in metrics for split in _SPLIT_COLOURS):
        needed = "needs 'train/loss' or 'validation/loss' to draw curves, and has "
        raise ArgumentError("metrics", f"{needed}{sorted(metrics)}")
    panels = [panel for panel in curve_panels(metrics) if panel.lines]
    num_columns = min(len(panels), 2)
    num_rows = math.ceil(len(panels) / num_columns)
    figure = drawing.figure((5.5, 3.4) if len(panels) == 1 else (9.6, 3.2 * num_rows))
    figure.get_layout_engine().set(wspace=0.05, hspace=0.05)
    all_axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, panel in zip(all_axes, panels, strict=False):
        _draw_curves(axes, panel)
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    return drawing.save(figure, path)


def latent_usage(Z: Any, path: PathLike) -> Path:
    """Plot how strongly and how often each latent is used.

    Left: the mean |z| of each latent, largest first. Right: a histogram of the fraction
    of examples on which a latent is active, with dead latents in a bar of their own.

    A latent is active on an example if |z| is above 1% of the largest |z| in Z (for
    sigmoid latents, roughly z > 0.01). A dead latent is 0 on every example, as in
    `metrics.is_dead`.

    Args:
      Z: `[N, H]`, latents.
      path: the file to write.

    Raises:
      ArgumentError: if Z is not `[N, H]`.
    """
    Z = np.abs(_matrix("Z", Z, None))
    largest = Z[np.isfinite(Z)].max(initial=0.0)
    frequency = (~(Z <= 0.01 * largest)).mean(axis=0)  # NaN counts as active
    dead = np.asarray(is_dead(Z))
    figure = drawing.figure((8.4, 3.4))
    figure.get_layout_engine().set(wspace=0.05)
    strength_axes, frequency_axes = figure.subplots(1, 2)
    figure.suptitle(
        f"{Z.shape[1]} latents on {len(Z)} examples: {dead.sum()} dead, "
        f"{(frequency == 1).sum()} active on every one",
        fontsize=10,
    )
    _draw_strength(strength_axes, Z.mean(axis=0), dead)
    _draw_frequency(frequency_axes, frequency, dead)
    for axes in (strength_axes, frequency_axes):
        drawing.hide_frame(axes)
    return drawing.save(figure, path)


def _draw_strength(axes: Any, strength: np.ndarray, dead: np.ndarray) -> None:
    # Dead latents last, so that they form one block.
    order = np.lexsort((-strength, dead))
    num_alive = len(order) - dead.sum()
    axes.stairs(strength[order], fill=True, color=_BAR_COLOUR)
    axes.axvspan(num_alive, len(order), color=_MODEL_COLOUR, alpha=0.25, lw=0)
    axes.set(
        xlabel="latent, strongest first, dead last",
        ylabel="mean |z|",
        xlim=(0, len(order)),
    )
    drawing.integer_ticks(axes.xaxis)


def _draw_frequency(axes: Any, frequency: np.ndarray, dead: np.ndarray) -> None:
    edges = np.linspace(0, 1, 21)
    axes.hist(frequency[~dead], edges, color=_BAR_COLOUR, edgecolor="white", lw=0.5)
    axes.set(xlabel="fraction of examples on which active", ylabel="latents")
    axes.set_xticks(np.linspace(0, 1, 6))
    drawing.integer_ticks(axes.yaxis)
    if dead.any():
        label = "dead: 0 on every example"
        axes.bar(-0.05, dead.sum(), 0.05, color=_MODEL_COLOUR, label=label)
        axes.legend(frameon=False, fontsize=8)


GRADIENT_NORM = "norm of the gradient"  # label of the panel of gradients by path


class Line(NamedTuple):
    """A line of a panel."""

    label: str
    values: np.ndarray  # one an epoch
    style: dict[str, Any]


class Panel(NamedTuple):
    """The lines on one pair of axes."""

    ylabel: str
    lines: list[Line]
    is_log: bool | None = None  # None: if the values span more than a decade
    limits: tuple[float, float] | None = None


def curve_panels(metrics: Mapping[str, Any]) -> list[Panel]:
    """The panels of `curves`; without lines where there are no such metrics."""
    saturated = _lines_by_split(
        metrics, "saturated_fraction", " saturated", **_BACKGROUND_STYLE
    )
    dead = _lines_by_split(metrics, "dead_fraction", " dead")
    limits = (-0.03, 1.03)
    return [
        Panel("loss", _lines_by_split(metrics, "loss")),
        Panel("fraction of variance unexplained", _lines_by_split(metrics, "fvu")),
        Panel(GRADIENT_NORM, _lines_by_leaf(metrics), is_log=True),
        Panel("fraction of latents", saturated + dead, is_log=False, limits=limits),
    ]


def _lines_by_split(metrics, name: str, suffix: str = "", **style: Any) -> list[Line]:
    return [
        Line(
            f"{split}{suffix}",
            _values(metrics[f"{split}/{name}"]),
            {"color": colour, **style},
        )
        for split, colour in _SPLIT_COLOURS.items()
        if f"{split}/{name}" in metrics
    ]


def _lines_by_leaf(metrics) -> list[Line]:
    paths = ("encoder", "decoder")
    names = [name.split("/") for name in metrics if name.startswith("gradient/")]
    leaves = ["/".join(leaf) for _, *leaf in names if leaf[0] not in paths]
    lines = []
    for leaf, colour in zip(leaves, itertools.cycle(_LEAF_COLOURS)):
        norms = _values(metrics[f"gradient/{leaf}"])
        lines.append(Line(leaf, norms, {"color": colour}))
        by_path = [_values(metrics.get(f"gradient/{p}/{leaf}", 0.0)) for p in paths]
        if all(norms.any() for norms in by_path):
            for path, norms, linestyle in zip(paths, by_path, ("--", ":"), strict=True):
                style = {"color": colour, "linestyle": linestyle}
                lines.append(Line(f"{leaf}, {path} path", norms, style))
    return lines


def _draw_curves(axes: Any, panel: Panel) -> None:
    for label, values, style in panel.lines:
        epochs = np.arange(1, len(values) + 1)
        marker = "o" if len(values) <= 30 else None
        style = {"marker": marker, "markersize": 3, **style}
        axes.plot(epochs, values, label=label, **style)
    values = np.concatenate([values for _, values, _ in panel.lines])
    if panel.is_log is None and drawing.spans_decade(values):
        drawing.log_scale(axes)
    elif panel.is_log and (values[np.isfinite(values)] > 0).any():
        axes.set_yscale("log")
    axes.set(xlabel="epoch", ylabel=panel.ylabel, ylim=panel.limits)
    drawing.integer_ticks(axes.xaxis)
    axes.grid(color="0.9", which="both")
    drawing.hide_frame(axes)
    axes.legend(frameon=False, fontsize=None if len(panel.lines) <= 2 else 8)


def _values(values: Any) -> np.ndarray:
    return np.atleast_1d(np.asarray(values))


def _heat_map(W: np.ndarray, path: PathLike, title: str) -> Path:
    limit = np.abs(W[np.isfinite(W)]).max(initial=0.0) or 1.0
    figure = drawing.figure((6.0, 4.5))
    axes = figure.subplots()
    picture = drawing.show(axes, W, *_DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
    axes.set(xlabel="input column", ylabel="filter, by norm")
    axes.set_title(title, fontsize=9)
    drawing.integer_ticks(axes.xaxis)
    drawing.integer_ticks(axes.yaxis)
    figure.colorbar(picture, ax=axes, label="weight")
    return drawing.save(figure, path)


def _line_panels(X: np.ndarray, X_hat: np.ndarray, path: PathLike) -> Path:
    num_columns = min(4, len(X))
    num_rows = math.ceil(len(X) / num_columns)
    figure = drawing.figure((2.2 * num_columns + 0.4, 1.5 * num_rows + 0.6))
    panels = figure.subplots(
        num_rows, num_columns, sharex=True, sharey=True, squeeze=False
    ).ravel()
    style: dict[str, Any] = {"linewidth": 1, "markersize": 3}
    style["marker"] = "o" if X.shape[1] <= 32 else None
    for panel, x, x_hat in zip(panels, X, X_hat, strict=False):
        panel.plot(x, color=_DATA_COLOUR, label="input", **style)
        panel.plot(x_hat, color=_MODEL_COLOUR, label="reconstruction", **style)
        drawing.hide_frame(panel)
    for panel in panels[len(X) :]:
        panel.set_axis_off()
    drawing.integer_ticks(panels[0].xaxis)
    figure.supxlabel("column", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return drawing.save(figure, path)


def _matrix(name: str, values: Any, image_shape: ImageShape) -> np.ndarray:
    values = np.asarray(_checks.as_array(name, values)).astype(np.float64)
    if values.ndim != 2 or 0 in values.shape:
        found = f"shape {values.shape}"
        raise ArgumentError(name, "must be [N, D], not empty", found)
    if image_shape is not None and values.shape[1] != math.prod(image_shape):
        raise ArgumentError(
            name,
            f"has {values.shape[1]} columns, which is not the size of an image of "
            f"shape {image_shape}",
        )
    return values


def _mosaic(images: np.ndarray, num_columns: int) -> np.ndarray:
    """One image of all images `[N, h, w]` in a grid, with gutters of NaN."""
    num_images, height, width = images.shape
    num_rows = math.ceil(num_images / num_columns)
    gutter = max(1, round(min(height, width) / 16))
    tiles = np.full((num_rows * num_columns, height + gutter, width + gutter), np.nan)
    tiles[:num_images, :height, :width] = images
    tiles = tiles.reshape(num_rows, num_columns, height + gutter, width + gutter)
    mosaic = tiles.swapaxes(1, 2).reshape(num_rows * (height + gutter), -1)
    return mosaic[:-gutter, :-gutter]
