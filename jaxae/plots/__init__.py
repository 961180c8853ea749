"""Plots of runs and of sweeps, each written to one file."""

from jaxae.plots.runs import (
    curves,
    filters,
    latent_usage,
    reconstructions,
    square_shape,
)
from jaxae.plots.sweeps import sweep_curves, sweep_map, sweep_parallel

__all__ = [
    "curves",
    "filters",
    "latent_usage",
    "reconstructions",
    "square_shape",
    "sweep_curves",
    "sweep_map",
    "sweep_parallel",
]
