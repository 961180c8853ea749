"""The section of latents: histograms, the table, and the rows they respond to."""

from typing import Any

import numpy as np

from jaxae import features
from jaxae.data import rows as data_rows
from jaxae.features import Features
from jaxae.report import page
from jaxae.report.page import Block
from jaxae.report.shown import Shown, as_floats

NUM_TOP = 12  # strongest rows of a latent
_NUM_QUANTILES, _PER_QUANTILE = 4, 3  # other rows of a latent
_MAX_TABLE_ROWS = 10_000
_NUM_BARS = 40


def most_used(stats: Features) -> np.ndarray:
    """The latents that are not dead, by density times mean, the largest first."""
    order = np.argsort(-stats.density * stats.mean, kind="stable")
    return order[~stats.is_dead[order]]


def latents_section(shown: Shown, stats: Features, chosen: np.ndarray) -> Block | None:
    """The section of all latents, with details of the chosen ones."""
    table = _table(stats, chosen)
    details = _details(shown, stats, chosen)
    densities = features.log_density_histogram(stats.density, _NUM_BARS)
    means = np.histogram(stats.mean[~stats.is_dead], _NUM_BARS)
    label = "log10 of the density: the fraction of rows on which a latent is active"
    return page.section(
        "Latents",
        page.bars("latents by density", label, "latents", *densities),
        page.bars("latents by mean", "mean of |z| where active", "latents", *means),
        {
            "type": "latents",
            **table,
            "details": details,
            "first": int(chosen[0]) if len(chosen) else 0,
            "inputs": _inputs(shown, details),
        },
        text=_describe(stats, chosen, len(table["rows"])),
    )


def _describe(stats: Features, chosen: np.ndarray, num_rows: int) -> str:
    H, num_dead = len(stats.density), int(stats.is_dead.sum())
    sentences = [
        f"{H - num_dead:,} of {H:,} latents are active, that is not 0, on some row; "
        f"{num_dead:,} are dead.",
        "Mean and max are those of |z| where a latent is active; norm is that of its "
        "decoder weights.",
        "Nearest is the latent whose decoder weights have the largest cosine with its "
        "own.",
    ]
    if num_rows < H:
        sentences.append(
            f"The table leaves out {H - num_rows:,} latents of little use."
        )
    num_without = int(np.isin(most_used(stats), chosen, invert=True).sum())
    if num_without:
        sentences.append(f"{num_without:,} latents that are not dead have no details.")
    return " ".join(sentences)


def _table(stats: Features, chosen: np.ndarray) -> dict[str, Any]:
    """The columns and rows of the table; of a large model, the most used latents."""
    latents = np.arange(len(stats.density))
    if len(latents) > _MAX_TABLE_ROWS:
        by_use = [*most_used(stats), *np.flatnonzero(stats.is_dead)]
        latents = np.union1d(by_use[:_MAX_TABLE_ROWS], chosen)
    columns = {
        "latent": latents,
        "density": stats.density[latents],
        "mean": stats.mean[latents],
        "max": stats.max[latents],
        "norm": stats.decoder_norm[latents],
    }
    if stats.nearest.shape[1]:
        columns["nearest"] = stats.nearest[latents, 0]
        columns["cosine"] = stats.cosines[latents, 0]
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return {"columns": list(columns), "rows": list(rows)}


def _details(shown: Shown, stats: Features, chosen: np.ndarray) -> Block:
    """What is shown of each chosen latent, by its number."""
    groups = {int(j): _groups(stats, int(j)) for j in chosen}
    pairs = [(j, row) for j in groups for _, rows in groups[j] for row in rows]
    examples = iter(_examples(shown, pairs))
    has_filters = shown.are_filters_drawn
    filters = shown.draw_filters(chosen) if has_filters else [None] * len(chosen)
    return {
        str(j): {
            "histogram": {"counts": stats.counts[j], "limit": stats.limit[j]},
            "nearest": np.stack([stats.nearest[j], stats.cosines[j]], axis=1),
            "filter": image,
            "groups": [
                {"title": title, "examples": [next(examples) for _ in rows]}
                for title, rows in groups[j]
            ],
        }
        for j, image in zip(groups, filters, strict=True)
    }


def _groups(stats: Features, j: int) -> list[tuple[str, list[int]]]:
    """Rows of a latent: the strongest ones, and some of each quantile bin."""
    top = stats.top.rows[j]
    groups = [("strongest rows", top[top >= 0].tolist())]
    bins = features.quantiles(stats.sample, j, _NUM_QUANTILES, _PER_QUANTILE)
    for i, rows in enumerate(bins):
        high, low = (round(100 * (1 - k / _NUM_QUANTILES)) for k in (i, i + 1))
        groups.append((f"active rows, {low} to {high}% by strength", rows.tolist()))
    return [(title, rows) for title, rows in groups if rows]


def _examples(shown: Shown, pairs: list[tuple[int, int]]) -> list[Block]:
    """The latent on each row, and on the rows around it where there are tokens."""
    windows = [slice(row, row + 1) for _, row in pairs]
    if shown.tokens is not None:
        windows = [shown.tokens.window(row, shown.context) for _, row in pairs]
        # Of the rows that are measured.
        windows = [slice(w.start, min(w.stop, len(shown.X))) for w in windows]
    latents = [j for j, _ in pairs]
    values = features.values_in(shown.ae, shown.params, shown.X, latents, windows)
    examples = []
    for (_, row), window, z in zip(pairs, windows, values, strict=True):
        at = row - window.start
        example = {"row": row, "value": z[at]}
        if shown.tokens is not None:
            example |= {"tokens": shown.tokens.texts(window), "values": z, "at": at}
        examples.append(example)
    return examples


def _inputs(shown: Shown, details: Block) -> Block:
    """How each row that is an example is drawn, by its number."""
    groups = (group for detail in details.values() for group in detail["groups"])
    rows = sorted({example["row"] for group in groups for example in group["examples"]})
    if shown.tokens is not None or not shown.are_rows_drawn or not rows:
        return {}
    X = as_floats(data_rows.take(shown.X, np.array(rows)))
    return dict(zip(map(str, rows), shown.draw_rows(X, X), strict=True))
