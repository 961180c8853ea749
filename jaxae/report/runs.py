"""The page of a run: results, curves, filters, latents and reconstructions."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxae import _checks, features
from jaxae._checks import ArgumentError
from jaxae.autoencoder import Autoencoder
from jaxae.data import View
from jaxae.data import rows as data_rows
from jaxae.features import Features
from jaxae.plots import square_shape
from jaxae.plots.runs import Panel, curve_panels
from jaxae.report import images, page
from jaxae.report.page import Block
from jaxae.tokens import Tokens
from jaxae.tokens import check as check_tokens

_NUM_TOP = 12  # strongest rows of a latent
_NUM_QUANTILES, _PER_QUANTILE = 4, 3  # other rows of a latent
_MAX_FILTERS, _NUM_RECONSTRUCTIONS = 100, 12
_MAX_TABLE_ROWS = 10_000
_MAX_COLUMNS = 256  # of a row that is drawn as a line
_PATHS_TITLE = "norm of the gradient"  # of a panel of `curve_panels`


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
    found = features.measure(ae, params, measured, num_top=_NUM_TOP)
    if chosen is None:
        chosen = _most_used(found)[:max_latents]
    if tokens is None and image_shape is None:
        image_shape = square_shape(ae.input_dim)
    data = _Data(ae, params, measured, image_shape, tokens, context)
    return page.write(
        path,
        title,
        f"{ae.latent_dim:,} latents of a model of {ae.input_dim:,} inputs, measured on "
        f"{found.num_rows:,}{_of_all(X, found)} rows.",
        [
            page.section("What was run", page.facts(about or {}), page.code(command)),
            _results_section(results or {}),
            _curves_section(metrics or {}),
            _filters_section(data),
            _latents_section(data, found, chosen),
            _reconstructions_section(data, held_out),
            _paths_section(metrics or {}),
        ],
    )


class _Data(NamedTuple):
    """The model, and how its data are shown."""

    ae: Autoencoder
    params: Any
    X: Any
    image_shape: tuple[int, int] | None
    tokens: Tokens | None
    context: int

    @property
    def has_filters(self) -> bool:
        """Whether the decoder weights of a latent are an image, as the inputs are."""
        shape = self.image_shape
        return shape is not None and math.prod(shape) == self.ae.output_dim


def _of_all(X: Any, found: Features) -> str:
    return "" if found.num_rows == len(X) else f" of {len(X):,}"


def _check_latents(latents: Iterable[int], H: int) -> np.ndarray:
    chosen = np.array(list(latents))
    if chosen.dtype.kind not in "iu" or chosen.min() < 0 or chosen.max() >= H:
        raise ArgumentError(
            "latents", f"must be from 0 to {H - 1}", str(chosen.tolist())
        )
    return chosen


def _most_used(found: Features) -> np.ndarray:
    """The latents that are not dead, by density times mean, the largest first."""
    order = np.argsort(-found.density * found.mean, kind="stable")
    return order[~found.is_dead[order]]


# ---- results and curves --------------------------------------------------------------


def _results_section(results: Mapping[str, Mapping[str, float]]) -> Block | None:
    names = list(dict.fromkeys(name for row in results.values() for name in row))
    rows: list = [[s, *(row.get(n) for n in names)] for s, row in results.items()]
    columns = ["split", *(name.replace("_", " ") for name in names)]
    return page.section("Results", page.table(columns, rows))


def _curves_section(metrics: Mapping[str, Any]) -> Block | None:
    panels = [p for p in curve_panels(metrics) if p.ylabel != _PATHS_TITLE]
    return page.section("Curves", *map(_lines, panels))


def _paths_section(metrics: Mapping[str, Any]) -> Block | None:
    (panel,) = [p for p in curve_panels(metrics) if p.ylabel == _PATHS_TITLE]
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


def _filters_section(data: _Data) -> Block | None:
    if not data.has_filters:
        return None
    W_dec = np.asarray(data.ae.expand(data.params).W_dec, np.float64)
    order = np.argsort(-np.linalg.norm(W_dec, axis=1), kind="stable")[:_MAX_FILTERS]
    items = [
        {
            "src": images.diverging(W_dec[j].reshape(data.image_shape)),
            "alt": f"decoder weights of latent {j}",
            "caption": str(j),
            "latent": int(j),
        }
        for j in order
    ]
    return page.section(
        "Filters",
        {"type": "images", "items": items},
        text=f"The decoder weights of {len(order)} of {len(W_dec):,} latents, largest "
        "norm first. Blue is negative, red is positive; each image is scaled by its "
        f"own largest weight.{_shrunk(data.image_shape)}",
    )


def _shrunk(shape: tuple[int, int] | None) -> str:
    if shape is None or max(shape) <= images.MAX_SIDE:
        return ""
    return f" Images are shrunk to at most {images.MAX_SIDE} pixels a side."


# ---- latents -------------------------------------------------------------------------


def _latents_section(data: _Data, found: Features, chosen: np.ndarray) -> Block | None:
    H = len(found.density)
    alive = _most_used(found)
    details = _details(data, found, chosen)
    shown = np.arange(H)
    if H > _MAX_TABLE_ROWS:
        used = np.concatenate([alive, np.flatnonzero(found.is_dead)])
        shown = np.union1d(used[:_MAX_TABLE_ROWS], chosen)
    columns = ("density", "mean", "max", "decoder_norm")
    values = [getattr(found, name)[shown] for name in columns]
    has_nearest = found.nearest.shape[1] > 0
    if has_nearest:
        values += [found.nearest[shown, 0], found.cosines[shown, 0]]
    rows = np.stack([shown, *values], axis=1).tolist()
    for row in rows:
        row[0] = int(row[0])
    densities = features.log_density_histogram(found.density)
    means = np.histogram(found.mean[~found.is_dead], 40)
    num_dead = int(found.is_dead.sum())
    left_out = []
    if len(shown) < H:
        left_out.append(
            f"{H - len(shown):,} latents of little use are not in the table"
        )
    if len(chosen) < len(alive):
        left_out.append(
            f"{len(alive) - len(np.intersect1d(chosen, alive)):,} latents that are not "
            "dead have no details"
        )
    return page.section(
        "Latents",
        page.bars(
            "latents by density",
            "log10 of the density: the fraction of rows on which a latent is active",
            "latents",
            *densities,
        ),
        page.bars("latents by mean", "mean of |z| where active", "latents", *means),
        {
            "type": "latents",
            "columns": [
                *("latent", "density", "mean", "max", "norm"),
                *(("nearest", "cosine") if has_nearest else ()),
            ],
            "rows": rows,
            "details": details,
            "first": int(chosen[0]) if len(chosen) else 0,
            "inputs": _inputs(data, details),
        },
        text=f"{H - num_dead:,} of {H:,} latents are active, that is not 0, on some "
        f"row, and {num_dead:,} are dead. Mean and max are those of |z| where a "
        "latent is active; norm is that of its decoder weights. Nearest is the latent "
        "whose decoder weights have the largest cosine with its own."
        + "".join(f" {sentence[0].upper()}{sentence[1:]}." for sentence in left_out),
    )


def _details(data: _Data, found: Features, chosen: np.ndarray) -> Block:
    """What is shown of each chosen latent, by its number."""
    shown = {int(j): _examples(found, int(j)) for j in chosen}
    pairs = [
        (j, row) for j, groups in shown.items() for _, rows in groups for row in rows
    ]
    examples = iter(_contexts(data, pairs))
    return {
        str(j): {
            "histogram": {"counts": found.counts[j], "limit": found.limit[j]},
            "nearest": np.stack([found.nearest[j], found.cosines[j]], 1),
            "filter": _filter(data, j),
            "groups": [
                {"title": title, "examples": [next(examples) for _ in rows]}
                for title, rows in groups
            ],
        }
        for j, groups in shown.items()
    }


def _examples(found: Features, j: int) -> list[tuple[str, list[int]]]:
    """Groups of rows of a latent: the strongest ones, and some of each quantile bin."""
    top = [int(row) for row in found.top.rows[j] if row >= 0]
    groups = [("strongest rows", top)]
    bins = features.quantiles(found.sample, j, _NUM_QUANTILES, _PER_QUANTILE)
    for i, rows in enumerate(bins):
        high, low = (round(100 * (1 - k / _NUM_QUANTILES)) for k in (i, i + 1))
        title = f"active rows, {low} to {high}% by strength"
        groups.append((title, [int(row) for row in rows]))
    return [(title, rows) for title, rows in groups if rows]


def _contexts(data: _Data, pairs: list[tuple[int, int]]) -> list[Block]:
    """The latent on each row, and on the rows around it where there are tokens."""
    windows = [slice(row, row + 1) for _, row in pairs]
    if data.tokens is not None:
        windows = [data.tokens.window(row, data.context) for _, row in pairs]
        windows = [slice(w.start, min(w.stop, len(data.X))) for w in windows]
    values = features.values_in(
        data.ae, data.params, data.X, [j for j, _ in pairs], windows
    )
    examples = []
    for (_, row), window, z in zip(pairs, windows, values, strict=True):
        example = {"row": row, "value": z[row - window.start]}
        if data.tokens is not None:
            example["tokens"] = data.tokens.texts(window)
            example["values"], example["at"] = z, row - window.start
        examples.append(example)
    return examples


def _filter(data: _Data, j: int) -> str | None:
    if not data.has_filters:
        return None
    W_dec = data.ae.expand(data.params).W_dec
    return images.diverging(_as_floats(W_dec[j]).reshape(data.image_shape))


def _inputs(data: _Data, details: Block) -> Block:
    """How each row that is an example is drawn, by its number."""
    if data.tokens is not None or not _is_drawn(data):
        return {}
    groups = (group for detail in details.values() for group in detail["groups"])
    rows = sorted({example["row"] for group in groups for example in group["examples"]})
    if not rows:
        return {}
    X = _as_floats(data_rows.take(data.X, np.array(rows)))
    drawn = _draw(data, X, X)
    return dict(zip(map(str, rows), drawn, strict=True))


def _is_drawn(data: _Data) -> bool:
    return data.image_shape is not None or data.ae.input_dim <= _MAX_COLUMNS


def _draw(data: _Data, rows: np.ndarray, inputs: np.ndarray) -> list[Block]:
    """Each row as an image in the grey levels of the inputs, or as its values."""
    if data.image_shape is None:
        return [{"values": row} for row in rows]
    low, high = float(inputs.min()), float(inputs.max())
    return [
        {"src": images.grey(row.reshape(data.image_shape), low, high)} for row in rows
    ]


def _as_floats(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.float32)  # NumPy has no bfloat16


# ---- reconstructions -----------------------------------------------------------------


def _reconstructions_section(data: _Data, held_out: Any) -> Block | None:
    ae = data.ae
    if not _is_drawn(data) or ae.output_dim != ae.input_dim:
        return None
    chosen = np.unique(
        np.linspace(0, len(held_out) - 1, _NUM_RECONSTRUCTIONS).astype(int)
    )
    block = data_rows.take(held_out, chosen)
    X = _as_floats(block)
    X_hat = _as_floats(jax.vmap(ae.reconstruct, (None, 0))(data.params, block))
    inputs, outputs = (_draw(data, rows, X) for rows in (X, X_hat))
    errors = np.sum((X_hat - X.astype(np.float64)) ** 2, axis=1)
    items = [
        {"error": error, "input": before, "output": after}
        for error, before, after in zip(errors, inputs, outputs, strict=True)
    ]
    return page.section(
        "Reconstructions",
        {"type": "reconstructions", "items": items},
        text="Each input beside its reconstruction, and the squared error.",
    )
