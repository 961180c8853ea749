"""A model and its data, and how they are shown: as images, tokens or lines."""

import math
from typing import Any, NamedTuple

import numpy as np

from jaxae.autoencoder import Autoencoder
from jaxae.report import images
from jaxae.report.page import Block
from jaxae.tokens import Tokens

_MAX_COLUMNS = 256  # of a row that is drawn as a line


class Shown(NamedTuple):
    """A model, the rows on which its latents are measured, and what these rows are.

    Attributes:
      ae, params: the model.
      X: `[N, D]`, an array or Rows.
      image_shape: of the image that a row is; None if it is none.
      tokens: the tokens of the rows; None if they have none.
      context: tokens shown before and after a row.
    """

    ae: Autoencoder
    params: Any
    X: Any
    image_shape: tuple[int, int] | None
    tokens: Tokens | None
    context: int

    @property
    def are_rows_drawn(self) -> bool:
        """Whether a row is an image, or few enough numbers for a line."""
        return self.image_shape is not None or self.ae.input_dim <= _MAX_COLUMNS

    @property
    def are_filters_drawn(self) -> bool:
        """Whether the decoder weights of a latent are an image, as the rows are."""
        shape = self.image_shape
        return shape is not None and math.prod(shape) == self.ae.output_dim

    def draw_rows(self, rows: np.ndarray, inputs: np.ndarray) -> list[Block]:
        """Each row as an image in the grey levels of the inputs, or as its values."""
        if self.image_shape is None:
            return [{"values": row} for row in rows]
        low, high = float(inputs.min()), float(inputs.max())
        pixels = rows.reshape(-1, *self.image_shape)
        return [{"src": images.grey(image, low, high)} for image in pixels]

    def draw_filters(self, latents: np.ndarray) -> list[str]:
        """The decoder weights of some latents as images."""
        W_dec = as_floats(self.ae.expand(self.params).W_dec)[latents]
        assert self.image_shape is not None  # where are_filters_drawn
        return [images.diverging(w) for w in W_dec.reshape(-1, *self.image_shape)]


def as_floats(array: Any) -> np.ndarray:
    """An array in float64: NumPy has no bfloat16, and float32 squares may overflow."""
    return np.asarray(array).astype(np.float64)
