"""Helpers of all plots: figures, heat maps, ticks, titles and saving.

matplotlib is imported in the functions that use it, and only through its object
interface, which has no global state.
"""

import os
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from jaxae._files import atomic

PathLike = str | os.PathLike[str]

_CHARACTERS_PER_INCH = 11  # of small text
MISSING_COLOUR = "0.75"  # of NaN


def show(
    axes: Any, values: np.ndarray, colours: str, num_colours: int, **options: Any
) -> Any:
    """Draw a matrix as an image; NaN, such as the gutters of a mosaic, is grey."""
    from matplotlib import colormaps

    cmap = colormaps[colours].resampled(num_colours).with_extremes(bad=MISSING_COLOUR)
    # "nearest", because the default interpolation blurs pixels.
    return axes.imshow(values, cmap=cmap, interpolation="nearest", **options)


def integer_ticks(axis: Any) -> None:
    """Put ticks at integers only."""
    axis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def title(axes: Any, text: str, **options: Any) -> None:
    """Set the title of the axes, wrapped to the width of the figure."""
    text = wrap(text, axes.figure.get_figwidth())
    axes.set_title(text, fontsize=9, loc="left", **options)


def wrap(text: str, inches: float) -> str:
    """The text in lines of about that length; a longer line would widen the figure."""
    return textwrap.fill(text, int(_CHARACTERS_PER_INCH * inches))


def figure(inches: tuple[float, float]) -> Any:
    """A figure of that size.

    Raises:
      ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "Pictures are drawn by matplotlib: pip install 'jaxae[plots]'."
        raise ImportError(message) from error
    figure = Figure(figsize=inches, layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: PathLike) -> Path:
    """Write a figure to a file, atomically; return the path."""
    path = Path(path)
    with atomic(path) as file:
        figure.savefig(file, format=path.suffix[1:] or "png", bbox_inches="tight")
    return path
