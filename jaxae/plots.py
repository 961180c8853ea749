"""Pictures of a run: filters, reconstructions and curves, each written to one file.

matplotlib is imported where it is used, and only its object interface: no global state.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

PathLike = str | os.PathLike[str]
ImageShape = tuple[int, int] | None

_DATA, _MODEL, _NOTHING = "0.25", "#c8553d", "0.75"
_COLOURS = {"train": _DATA, "validation": _MODEL}
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
    figure = _figure((5.6, 5 * tiles.shape[0] / tiles.shape[1] + 0.4))
    axes = figure.subplots()
    picture = _show(axes, tiles, *_DIVERGING, vmin=-1, vmax=1)
    axes.set_axis_off()
    axes.set_title(f"{title}\neach scaled by its own max |weight|", fontsize=9)
    bar = figure.colorbar(picture, ax=axes, ticks=[-1, 0, 1], fraction=0.03, pad=0.01)
    bar.ax.set_yticklabels(["−max", "0", "max"], fontsize=8)
    return _save(figure, path)


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
    figure = _figure((width + 1.7, width * tiles.shape[0] / tiles.shape[1] + 0.1))
    axes = figure.subplots()
    picture = _show(axes, tiles, *_GREY, vmin=X.min(), vmax=X.max())
    rows = tiles.shape[0] * np.array([0.25, 0.75]) - 0.5
    axes.set_yticks(rows, ["input", "reconstruction"])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(picture, ax=axes, fraction=0.02, pad=0.01)
    bar.ax.tick_params(labelsize=8)
    return _save(figure, path)


def curves(metrics: Mapping[str, Any], path: PathLike) -> Path:
    """Train and validation loss against epoch; log scale beyond a decade.

    Raises:
      ValueError: metrics has neither "train/loss" nor "validation/loss".
    """
    parts = [part for part in _COLOURS if f"{part}/loss" in metrics]
    if not parts:
        raise ValueError(
            "metrics needs 'train/loss' or 'validation/loss' to draw curves, and has "
            f"{sorted(metrics)}."
        )
    losses = [np.atleast_1d(np.asarray(metrics[f"{part}/loss"])) for part in parts]
    figure = _figure((5.5, 3.4))
    axes = figure.subplots()
    for part, loss in zip(parts, losses, strict=True):
        epochs = np.arange(1, len(loss) + 1)
        marker = "o" if len(loss) <= 30 else None
        colour = _COLOURS[part]
        axes.plot(epochs, loss, color=colour, marker=marker, markersize=3, label=part)
    values = np.concatenate(losses)
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > 10 * values.min():
        from matplotlib.ticker import LogFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter())
    axes.set(xlabel="epoch", ylabel="loss")
    _integer_ticks(axes.xaxis)
    axes.grid(color="0.9", which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return _save(figure, path)


def _heat_map(W: np.ndarray, path: PathLike, title: str) -> Path:
    limit = np.abs(W[np.isfinite(W)]).max(initial=0.0) or 1.0
    figure = _figure((6.0, 4.5))
    axes = figure.subplots()
    picture = _show(axes, W, *_DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
    axes.set(xlabel="input column", ylabel="filter, by norm")
    axes.set_title(title, fontsize=9)
    _integer_ticks(axes.xaxis)
    _integer_ticks(axes.yaxis)
    figure.colorbar(picture, ax=axes, label="weight")
    return _save(figure, path)


def _line_panels(X: np.ndarray, X_hat: np.ndarray, path: PathLike) -> Path:
    num_columns = min(4, len(X))
    num_rows = math.ceil(len(X) / num_columns)
    figure = _figure((2.2 * num_columns + 0.4, 1.5 * num_rows + 0.6))
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
    _integer_ticks(panels[0].xaxis)
    figure.supxlabel("column", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return _save(figure, path)


def _matrix(name: str, values: Any, image_shape: ImageShape) -> np.ndarray:
    values = np.asarray(values).astype(np.float64)
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


def _show(
    axes: Any, values: np.ndarray, colours: str, num_colours: int, **options: Any
) -> Any:
    from matplotlib import colormaps

    # Grey where there is nothing: gutters, NaN. Nearest, for the default blurs pixels.
    cmap = colormaps[colours].resampled(num_colours).with_extremes(bad=_NOTHING)
    return axes.imshow(values, cmap=cmap, interpolation="nearest", **options)


def _integer_ticks(axis: Any) -> None:
    axis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def _figure(inches: tuple[float, float]) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "Pictures are drawn by matplotlib: pip install 'jaxae[plots]'."
        raise ImportError(message) from error
    figure = Figure(figsize=inches, layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: PathLike) -> Path:
    # Written beside and moved into place: a reader never sees half a picture.
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        kind = path.suffix[1:] or "png"
        figure.savefig(unfinished, format=kind, bbox_inches="tight")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
