"""Helpers of all plots: figures, heat maps, scales, ticks, titles and saving.

matplotlib is imported in the functions that use it, and only through its object
interface, which has no global state.
"""

import math
import os
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxae import _checks
from jaxae._files import atomic

PathLike = str | os.PathLike[str]

_CHARACTERS_PER_INCH = 11  # of small text
_MAX_TICKED_VALUES = 12  # an axis of more distinct values has no tick for each
_MISSING_COLOUR = "0.75"  # of NaN


def show(
    axes: Any, values: np.ndarray, colours: str, num_colours: int, **options: Any
) -> Any:
    """Draw a matrix as an image; NaN, such as the gutters of a mosaic, is grey."""
    from matplotlib import colormaps

    cmap = colormaps[colours].resampled(num_colours).with_extremes(bad=_MISSING_COLOUR)
    # "nearest", because the default interpolation blurs pixels.
    return axes.imshow(values, cmap=cmap, interpolation="nearest", **options)


def integer_ticks(axis: Any) -> None:
    """Put ticks at integers only."""
    axis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def spans_decade(values: np.ndarray) -> bool:
    """Whether the finite values are positive and span more than a decade."""
    finite = values[np.isfinite(values)]
    return bool(finite.size and 0 < 10 * finite.min() < finite.max())


def log_scale(axes: Any) -> None:
    """Draw y on a log scale, with numbers such as 0.01 at the ticks."""
    from matplotlib.ticker import LogFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter())


def hide_frame(axes: Any) -> None:
    """Hide the upper and the right border."""
    axes.spines[["top", "right"]].set_visible(False)


def title(axes: Any, text: str, **options: Any) -> None:
    """Set the title of the axes, wrapped to the width of the figure."""
    text = wrap(text, axes.figure.get_figwidth())
    axes.set_title(text, fontsize=9, loc="left", **options)


def wrap(text: str, inches: float) -> str:
    """The text in lines of about that length; a longer line would widen the figure."""
    return textwrap.fill(text, int(_CHARACTERS_PER_INCH * inches))


def figure(inches: tuple[float, float]) -> Any:
    """A figure of that size."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise _checks.extra("a plot", "matplotlib", "plots") from error
    figure = Figure(figsize=inches, layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: PathLike) -> Path:
    """Write a figure to a file, atomically; return the path."""
    path = Path(path)
    with atomic(path) as file:
        figure.savefig(file, format=path.suffix[1:] or "png", bbox_inches="tight")
    return path


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
