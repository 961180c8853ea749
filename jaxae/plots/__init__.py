"""Pictures of runs, a file each."""

from jaxae.plots.runs import (
    curves,
    filters,
    latent_usage,
    reconstructions,
    square_shape,
)

__all__ = ["curves", "filters", "latent_usage", "reconstructions", "square_shape"]
