"""The pictures of a run, drawn from what its folder holds."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxae
from jaxae import data, plots
from jaxae.cli import run_folder
from jaxae.cli.data_splits import Splits

_EXAMPLES, _USAGE_ROWS = 12, 10_000


def draw(
    out: Path, ae: jaxae.Autoencoder, params: Any, metrics: Mapping, splits: Splits
) -> None:
    """Filters, reconstructions, curves and how much each latent is used."""
    shape = splits.info.image_shape or plots.square_shape(ae.input_dim)
    untied = jax.tree.map(_drawable, ae.parametrization.expand(params))
    plots.filters(untied.W_enc, out / run_folder.FILTERS, shape)
    if not ae.tied:
        plots.filters(untied.W_dec, out / run_folder.DECODER_FILTERS, shape)
    shown = splits.test if len(splits.test) else splits.train
    examples = _first(shown, _EXAMPLES)
    X_hat = jax.vmap(ae.reconstruct, in_axes=(None, 0))(params, examples)
    plots.reconstructions(
        _drawable(examples), _drawable(X_hat), out / run_folder.RECONSTRUCTIONS, shape
    )
    Z = jax.vmap(ae.encode, in_axes=(None, 0))(params, _first(shown, _USAGE_ROWS))
    plots.latent_usage(_drawable(Z), out / run_folder.USAGE)
    if metrics:
        plots.curves(metrics, out / run_folder.CURVES)


def drawn(out: Path) -> Iterator[str]:
    """The names of the pictures that the folder has."""
    return (name for name in run_folder.PICTURES if (out / name).exists())


def _first(rows: Any, count: int) -> jax.Array:
    count = min(count, len(rows))
    return jnp.asarray(data.take(rows, np.arange(count)))


def _drawable(array) -> np.ndarray:
    return np.asarray(array).astype(np.float64)  # matplotlib knows no bfloat16
