"""Pictures of a run: filters, reconstructions, curves, use of latents; a file each."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxae import _checks
from jaxae.metrics import is_dead
from jaxae.plots import drawing
from jaxae.plots.drawing import PathLike

ImageShape = tuple[int, int] | None

_DATA, _MODEL = "0.25", "#c8553d"
_BAR = "0.45"
_BEHIND: dict[str, Any] = {"linewidth": 5, "alpha": 0.3, "marker": None}
_COLOURS = {"train": _DATA, "validation": _MODEL}
_LEAF_COLOURS = ("#3f6fa3", _MODEL, "#5f9154", "#8464a8", "#b08a2e", _DATA)
# Few colours, for noisy weights compress badly; an odd number, for 0 to have its own.
_DIVERGING, _GREY = ("RdBu_r", 33), ("gray", 256)


def square_shape(input_dim: int) -> ImageShape:
    """(s, s) where s^2 = input_dim >= 16, the likely shape of an image, else None."""
    side = math.isqrt(input_dim)
    return (side, side) if side >= 4 and side * side == input_dim else None


def filters(
    W: Any, path: PathLike, image_shape: ImageShape = None, max_filters: int = 100
) -> Path:
    """The rows of W `[H, D]` with the largest norms, as images or as one heat map.

    As images, each is scaled by its own largest |weight|, so that faint ones show too.

    Raises:
      ValueError: W is not `[H, D]`, or its rows are not images of that shape.
    """
    W = _matrix("W", W, image_shape)
    order = np.argsort(-np.linalg.norm(W, axis=1), kind="stable")[:max_filters]
    title = f"{len(order)} of {len(W)} filters, largest norm first"
    if image_shape is None:
        return _heat_map(W[order], path, title)
    largest = np.abs(W[order]).max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a run that diverged has infinite weights
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
    """The first rows of X above those of X_hat `[N, D]`: as images, else as lines.

    Images share one grey scale, the range of those inputs; what leaves it is clipped.

    Raises:
      ValueError: the shapes differ, or the rows are not images of that shape.
    """
    X, X_hat = _matrix("X", X, image_shape), _matrix("X_hat", X_hat, image_shape)
    if X.shape != X_hat.shape:
        raise ValueError(f"X has shape {X.shape}, but X_hat has shape {X_hat.shape}.")
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
    """Loss against epoch, and one panel for each kind of the rest that is there.

    Train and validation "loss", on a log scale beyond a decade; their "fvu"; the norm
    of the gradient by leaf ("gradient/W"), for a leaf that both paths reach by path
    too; their "dead_fraction" and "saturated_fraction".

    Raises:
      ValueError: metrics has neither "train/loss" nor "validation/loss".
    """
    if not any(f"{part}/loss" in metrics for part in _COLOURS):
        raise ValueError(
            "metrics needs 'train/loss' or 'validation/loss' to draw curves, and has "
            f"{sorted(metrics)}."
        )
    panels = [panel for panel in _panels(metrics) if panel.lines]
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
    """How much each latent of Z `[N, H]` is used: how strongly, and how often.

    A latent is active on an example where |z| is above 1% of the largest |z| of all: of
    sigmoid latents, roughly where z > 0.01. A dead latent is 0 on every example, as in
    `metrics.is_dead`. Left, the latents' mean |z|, largest first; right, how many are
    active on which fraction of the examples, dead ones apart.

    Raises:
      ValueError: Z is not `[N, H]`.
    """
    Z = np.abs(_matrix("Z", Z, None))
    largest = Z[np.isfinite(Z)].max(initial=0.0)
    how_often = (~(Z <= 0.01 * largest)).mean(axis=0)  # NaN counts as active
    dead = np.asarray(is_dead(Z))
    figure = drawing.figure((8.4, 3.4))
    figure.get_layout_engine().set(wspace=0.05)
    strength, often = figure.subplots(1, 2)
    figure.suptitle(
        f"{Z.shape[1]} latents on {len(Z)} examples: {dead.sum()} dead, "
        f"{(how_often == 1).sum()} active on every one",
        fontsize=10,
    )
    _draw_strengths(strength, Z.mean(axis=0), dead)
    _draw_how_often(often, how_often, dead)
    for axes in (strength, often):
        axes.spines[["top", "right"]].set_visible(False)
    return drawing.save(figure, path)


def _draw_strengths(axes: Any, strengths: np.ndarray, is_dead: np.ndarray) -> None:
    # Dead ones last, for them to be one piece.
    order = np.lexsort((-strengths, is_dead))
    num_alive = len(order) - is_dead.sum()
    axes.stairs(strengths[order], fill=True, color=_BAR)
    axes.axvspan(num_alive, len(order), color=_MODEL, alpha=0.25, lw=0)
    axes.set(
        xlabel="latent, strongest first, dead last",
        ylabel="mean |z|",
        xlim=(0, len(order)),
    )
    drawing.integer_ticks(axes.xaxis)


def _draw_how_often(axes: Any, how_often: np.ndarray, is_dead: np.ndarray) -> None:
    edges = np.linspace(0, 1, 21)
    axes.hist(how_often[~is_dead], edges, color=_BAR, edgecolor="white", lw=0.5)
    axes.set(xlabel="fraction of examples on which active", ylabel="latents")
    axes.set_xticks(np.linspace(0, 1, 6))
    drawing.integer_ticks(axes.yaxis)
    if is_dead.any():
        label = "dead: 0 on every example"
        axes.bar(-0.05, is_dead.sum(), 0.05, color=_MODEL, label=label)
        axes.legend(frameon=False, fontsize=8)


class _Panel(NamedTuple):
    """Curves on one pair of axes: for each, its label, its values and its style."""

    ylabel: str
    lines: list[tuple[str, np.ndarray, dict[str, Any]]]
    is_log: bool | None = None  # None: beyond a decade
    limits: tuple[float, float] | None = None


def _panels(metrics: Mapping[str, Any]) -> list[_Panel]:
    return [
        _Panel("loss", _by_part(metrics, "loss")),
        _Panel("fraction of variance unexplained", _by_part(metrics, "fvu")),
        _Panel("norm of the gradient", _by_leaf(metrics), is_log=True),
        _Panel(
            "fraction of latents",
            [
                *_by_part(metrics, "saturated_fraction", " saturated", **_BEHIND),
                *_by_part(metrics, "dead_fraction", " dead"),
            ],
            is_log=False,
            limits=(-0.03, 1.03),
        ),
    ]


def _by_part(metrics, name: str, suffix: str = "", **style: Any) -> list:
    return [
        (
            f"{part}{suffix}",
            _values(metrics[f"{part}/{name}"]),
            {"color": colour, **style},
        )
        for part, colour in _COLOURS.items()
        if f"{part}/{name}" in metrics
    ]


def _by_leaf(metrics) -> list:
    paths = ("encoder", "decoder")
    names = [name.split("/") for name in metrics if name.startswith("gradient/")]
    leaves = ["/".join(rest) for _, *rest in names if rest[0] not in paths]
    lines = []
    for leaf, colour in zip(leaves, itertools.cycle(_LEAF_COLOURS)):
        lines.append((leaf, _values(metrics[f"gradient/{leaf}"]), {"color": colour}))
        halves = [_values(metrics.get(f"gradient/{p}/{leaf}", 0.0)) for p in paths]
        if all(half.any() for half in halves):
            for path, half, linestyle in zip(paths, halves, ("--", ":"), strict=True):
                style = {"color": colour, "linestyle": linestyle}
                lines.append((f"{leaf}, {path} path", half, style))
    return lines


def _draw_curves(axes: Any, panel: _Panel) -> None:
    for label, values, style in panel.lines:
        epochs = np.arange(1, len(values) + 1)
        marker = "o" if len(values) <= 30 else None
        style = {"marker": marker, "markersize": 3, **style}
        axes.plot(epochs, values, label=label, **style)
    values = np.concatenate([values for _, values, _ in panel.lines])
    values = values[np.isfinite(values)]
    is_wide = values.size and values.min() > 0 and values.max() > 10 * values.min()
    if panel.is_log is None and is_wide:
        from matplotlib.ticker import LogFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter())
    elif panel.is_log and (values > 0).any():
        axes.set_yscale("log")
    axes.set(xlabel="epoch", ylabel=panel.ylabel, ylim=panel.limits)
    drawing.integer_ticks(axes.xaxis)
    axes.grid(color="0.9", which="both")
    axes.spines[["top", "right"]].set_visible(False)
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
        panel.plot(x, color=_DATA, label="input", **style)
        panel.plot(x_hat, color=_MODEL, label="reconstruction", **style)
        panel.spines[["top", "right"]].set_visible(False)
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
        raise ValueError(f"{name} must be [N, D], not empty, got shape {values.shape}.")
    if image_shape is not None and values.shape[1] != math.prod(image_shape):
        raise ValueError(
            f"{name} has {values.shape[1]} columns, which make no image of shape "
            f"{image_shape}."
        )
    return values


def _mosaic(images: np.ndarray, num_columns: int) -> np.ndarray:
    """Images `[N, h, w]` side by side in one, with gutters of NaN between them."""
    num_images, height, width = images.shape
    num_rows = math.ceil(num_images / num_columns)
    gutter = max(1, round(min(height, width) / 16))
    tiles = np.full((num_rows * num_columns, height + gutter, width + gutter), np.nan)
    tiles[:num_images, :height, :width] = images
    tiles = tiles.reshape(num_rows, num_columns, height + gutter, width + gutter)
    whole = tiles.swapaxes(1, 2).reshape(num_rows * (height + gutter), -1)
    return whole[:-gutter, :-gutter]
