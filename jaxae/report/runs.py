"""The page of a run: results, curves, filters, latents and reconstructions."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxae import _checks, features
from jaxae._checks import ArgumentError
from jaxae.autoencoder import Autoencoder
from jaxae.data import View
from jaxae.data import rows as data_rows
from jaxae.features import Features
from jaxae.plots import square_shape
from jaxae.plots.runs import GRADIENT_NORM, Panel, curve_panels
from jaxae.report import images, page
from jaxae.report.latents import NUM_TOP, latents_section, most_used
from jaxae.report.page import Block
from jaxae.report.shown import Shown, as_floats
from jaxae.tokens import Tokens
from jaxae.tokens import check as check_tokens

_MAX_FILTERS, _NUM_RECONSTRUCTIONS = 100, 12


def write_run(
    ae: Autoencoder,
    params: Any,
    X: Any,
    path: Any,
    *,
    metrics: Mapping[str, Any] | None = None,
    results: Mapping[str, Mapping[str, float]] | None = None,
    held_out: Any = None,
    tokens: Tokens | None = None,
    image_shape: tuple[int, int] | None = None,
    latents: Iterable[int] | None = None,
    max_latents: int = 200,
    context: int = 10,
    max_rows: int = 100_000,
    title: str = "Run",
    about: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> Path:
    """Write the page of a trained model; return its path.

    The page shows which rows each latent responds to: as images, as tokens with their
    context, or as lines. The table has every latent, but for a large model the 10,000
    of largest use; details are shown for some of them. The page says what is left out.

    Args:
      ae: a model for use on one example, such as that of `run.model`.
      params: its parameters.
      X: `[N, D]`, an array or Rows, scaled as in training: where latents are measured.
      path: the `.html` file to write.
      metrics: values by name, one an epoch, as `run.metrics`.
      results: metrics by name of each split.
      held_out: `[M, D]`, rows whose reconstructions are shown; by default those of X.
      tokens: the tokens of the rows of X.
      image_shape: height and width of an input; by default that of a square.
      latents: those with details; by default the ones with the largest use, which is
        density times mean.
      max_latents: the number of latents with details.
      context: tokens shown before and after a row.
      max_rows: the first rows of X that are measured.
      title: of the page.
      about: facts about the run, by name.
      command: with which the run is repeated.

    Raises:
      ValueError: if an argument does not fit the model or the data.
    """
    path, X = page.as_file(path), features.check_data(ae, X)
    if held_out is None:
        held_out = X
    features.check_data(ae, held_out, "held_out")
    if tokens is not None:
        check_tokens(tokens, len(X), context)
    if image_shape is not None and math.prod(image_shape) != ae.input_dim:
        problem = f"must be that of {ae.input_dim} inputs"
        raise ArgumentError("image_shape", problem, str(image_shape))
    for name, number in {"max_latents": max_latents, "max_rows": max_rows}.items():
        _checks.positive_int(name, number)
    chosen = None if latents is None else _check_latents(latents, ae.latent_dim)
    measured = X
    if len(X) > max_rows:
        measured = View(X, np.arange(max_rows), dtype=None)
    stats = features.measure(ae, params, measured, num_top=NUM_TOP)
    if chosen is None:
        chosen = most_used(stats)[:max_latents]
    if tokens is None and image_shape is None:
        image_shape = square_shape(ae.input_dim)
    shown = Shown(ae, params, measured, image_shape, tokens, context)
    return page.write(
        path,
        title,
        f"{ae.latent_dim:,} latents of a model of {ae.input_dim:,} inputs, measured on "
        f"{stats.num_rows:,}{_of_all(X, stats)} rows.",
        [
            page.section("What was run", page.facts(about or {}), page.code(command)),
            _results_section(results or {}),
            _curves_section(metrics or {}),
            _filters_section(shown),
            latents_section(shown, stats, chosen),
            _reconstructions_section(shown, held_out),
            _paths_section(metrics or {}),
        ],
    )


def _of_all(X: Any, stats: Features) -> str:
    return "" if stats.num_rows == len(X) else f" of {len(X):,}"


def _check_latents(latents: Iterable[int], H: int) -> np.ndarray:
    chosen = np.array(list(latents))
    if chosen.dtype.kind not in "iu" or chosen.min() < 0 or chosen.max() >= H:
        raise ArgumentError(
            "latents", f"must be from 0 to {H - 1}", str(chosen.tolist())
        )
    return chosen


# ---- results and curves --------------------------------------------------------------


def _results_section(results: Mapping[str, Mapping[str, float]]) -> Block | None:
    names = list(dict.fromkeys(name for row in results.values() for name in row))
    rows: list = [[s, *(row.get(n) for n in names)] for s, row in results.items()]
    columns = ["split", *(name.replace("_", " ") for name in names)]
    return page.section("Results", page.table(columns, rows))


def _curves_section(metrics: Mapping[str, Any]) -> Block | None:
    panels = [p for p in curve_panels(metrics) if p.ylabel != GRADIENT_NORM]
    return page.section("Curves", *map(_lines, panels))


def _paths_section(metrics: Mapping[str, Any]) -> Block | None:
    (panel,) = [p for p in curve_panels(metrics) if p.ylabel == GRADIENT_NORM]
    return page.section(
        "Gradient paths",
        _lines(panel),
        text="The gradient of a parameter is the sum of a part that flows through the "
        "encoder and one that flows through the decoder.",
    )


def _lines(panel: Panel) -> Block | None:
    styles = {"--": "dashed", ":": "dotted"}
    return page.lines(
        panel.ylabel,
        {line.label: line.values for line in panel.lines},
        dashes=[
            styles.get(str(line.style.get("linestyle")), "") for line in panel.lines
        ],
        log=panel.is_log,
        limits=panel.limits,
    )


# ---- filters -------------------------------------------------------------------------


def _filters_section(shown: Shown) -> Block | None:
    if not shown.are_filters_drawn:
        return None
    W_dec = as_floats(shown.ae.expand(shown.params).W_dec)
    order = np.argsort(-np.linalg.norm(W_dec, axis=1), kind="stable")[:_MAX_FILTERS]
    items = [
        {"src": image, "alt": f"decoder weights of latent {j}", "latent": int(j)}
        for j, image in zip(order, shown.draw_filters(order), strict=True)
    ]
    return page.section(
        "Filters",
        {"type": "filters", "items": items},
        text=f"The decoder weights of {len(order)} of {len(W_dec):,} latents, largest "
        "norm first. Blue is negative, red is positive; each image is scaled by its "
        f"own largest weight, and shrunk if a side exceeds {images.MAX_SIDE} pixels.",
    )


# ---- reconstructions -----------------------------------------------------------------


def _reconstructions_section(shown: Shown, rows: Any) -> Block | None:
    ae = shown.ae
    if not shown.are_rows_drawn or ae.output_dim != ae.input_dim:
        return None
    chosen = np.linspace(0, len(rows) - 1, _NUM_RECONSTRUCTIONS).astype(int)
    block = data_rows.take(rows, np.unique(chosen))
    X = as_floats(block)
    X_hat = as_floats(jax.vmap(ae.reconstruct, (None, 0))(shown.params, block))
    drawn = shown.draw_rows(X, X), shown.draw_rows(X_hat, X)
    errors = np.sum((X_hat - X) ** 2, axis=1)
    items = [
        {"error": error, "input": before, "output": after}
        for error, before, after in zip(errors, *drawn, strict=True)
    ]
    return page.section(
        "Reconstructions",
        {"type": "reconstructions", "items": items},
        text="Each input beside its reconstruction, and the squared error.",
    )
