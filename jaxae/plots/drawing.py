"""What all pictures share: figures, heat maps, ticks, and how they are saved.

matplotlib is imported where it is used, and only its object interface: no global state.
"""

import os
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from jaxae._files import atomic

PathLike = str | os.PathLike[str]

_CHARACTERS = 11  # an inch, of small print with room beside it
NOTHING = "0.75"  # where there is no number


def show(
    axes: Any, values: np.ndarray, colours: str, num_colours: int, **options: Any
) -> Any:
    """A matrix, a square an entry; grey where there is nothing."""
    from matplotlib import colormaps

    # Grey where there is nothing: gutters, NaN. Nearest, for the default blurs pixels.
    cmap = colormaps[colours].resampled(num_colours).with_extremes(bad=NOTHING)
    return axes.imshow(values, cmap=cmap, interpolation="nearest", **options)


def integer_ticks(axis: Any) -> None:
    """Ticks at whole numbers only."""
    axis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def title(axes: Any, text: str, **options: Any) -> None:
    """Above the axes, in as many lines as the figure's width makes of it."""
    text = wrapped(text, axes.figure.get_figwidth())
    axes.set_title(text, fontsize=9, loc="left", **options)


def wrapped(text: str, inches: float) -> str:
    """In lines of about that length: a longer one would stretch the figure."""
    return textwrap.fill(text, int(_CHARACTERS * inches))


def figure(inches: tuple[float, float]) -> Any:
    """A figure of that size.

    Raises:
      ImportError: where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "Pictures are drawn by matplotlib: pip install 'jaxae[plots]'."
        raise ImportError(message) from error
    made = Figure(figsize=inches, layout="constrained", dpi=150)
    FigureCanvasAgg(made)
    return made


def save(figure: Any, path: PathLike) -> Path:
    """Write it, whole or not at all; return where."""
    path = Path(path)
    with atomic(path) as file:
        figure.savefig(file, format=path.suffix[1:] or "png", bbox_inches="tight")
    return path
