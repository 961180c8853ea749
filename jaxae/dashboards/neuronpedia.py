"""The files that Neuronpedia imports, as of August 2026."""

import dataclasses
import datetime
import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxae._checks import ArgumentError
from jaxae.autoencoder import Autoencoder
from jaxae.dashboards.latents import (
    BATCH,
    CORRELATIONS,
    KINDS,
    Measured,
    Source,
    Unembedding,
    measure,
    new_folder,
    rounded,
    write,
)
from jaxae.features import Features
from jaxae.tokens import Tokens

_DEFAULT_STRENGTH = 10  # Neuronpedia's, of a latent without a vector


def write_neuronpedia(
    directory: Any,
    source: Source,
    ae: Autoencoder,
    params: Any,
    X: Any,
    tokens: Tokens,
    *,
    unembedding: Unembedding | None = None,
    explanations: Mapping[int, str] | None = None,
    context: int = 64,
    vectors: bool = False,
    created_at: datetime.datetime | None = None,
) -> Path:
    """Write what Neuronpedia imports; return the folder v1/MODEL/SOURCE.

    Args:
      directory: a new or empty folder.
      source: what the dashboards are called; its creator_id must be given.
      ae, params, X, tokens, unembedding, context, vectors: see `write_saedashboard`;
        with vectors, Neuronpedia can steer by a latent.
      explanations: what a latent stands for, by its number.
      created_at: the time of all rows; by default now.

    Raises:
      ValueError: if the folder is not empty, or an argument does not fit the model.
    """
    if not source.creator_id:
        raise ArgumentError(
            "source.creator_id",
            "must be the id of an account of Neuronpedia",
            repr(source.creator_id),
        )
    explanations = explanations or {}
    unknown = [j for j in explanations if not 0 <= j < ae.latent_dim]
    if unknown:
        problem = f"must have latents from 0 to {ae.latent_dim - 1}"
        raise ArgumentError("explanations", problem, str(unknown))
    directory = new_folder(directory)
    measured = measure(ae, params, X, tokens, unembedding, context, vectors)
    now = created_at or datetime.datetime.now(datetime.UTC)
    shared = {
        "creatorId": source.creator_id,
        "createdAt": now.astimezone(datetime.UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z"),
    }
    folder = directory / "v1" / source.model / source.id
    for name, row in _about(source, measured).items():
        _write_lines(folder / f"{name}.jsonl", [{**row, **shared}])
    of_source = {"modelId": source.model, "layer": source.id}
    for i, dashboards in enumerate(measured.batches()):
        rows = {
            "features": [_feature(source, measured.stats, d) for d in dashboards],
            "activations": [a for d in dashboards for a in _activations(source, d)],
        }
        for kind, of_kind in rows.items():
            lines = [{**of_source, **row, **shared} for row in of_kind]
            _write_lines(folder / kind / f"batch-{i}.jsonl.gz", lines)
    author = {"authorId": source.creator_id, "createdAt": shared["createdAt"]}
    explained = [
        {
            "id": _row_id(source, "explanation", j),
            **of_source,
            "index": str(j),
            "description": explanation,
            **author,
        }
        for j, explanation in sorted(explanations.items())
    ]
    for i, start in enumerate(range(0, len(explained), BATCH)):
        path = folder / "explanations" / f"batch-{i}.jsonl.gz"
        _write_lines(path, explained[start : start + BATCH])
    return folder


def _about(source: Source, measured: Measured) -> dict[str, dict[str, Any]]:
    """The rows of the files beside the batches, without creator and time."""
    urls = [source.url] if source.url else []
    return {
        "release": {
            "name": source.release,
            "description": source.release_title,
            "descriptionShort": source.release_title,
            "urls": urls,
            "creatorName": source.creator,
            "creatorNameShort": source.creator,
            "visibility": "PUBLIC",
        },
        "model": {
            "id": source.model,
            "displayName": source.model,
            "displayNameShort": source.model,
            "instruct": source.model.endswith("-it"),
            "layers": 0,
            "neuronsPerLayer": 0,
            "owner": "",
            "visibility": "PUBLIC",
        },
        "sourceset": {
            "modelId": source.model,
            "name": source.source_set,
            "description": source.description,
            "type": "",
            "creatorName": source.creator,
            "releaseName": source.release,
            "urls": urls,
            "hasDashboards": True,
            "visibility": "PUBLIC",
        },
        "source": {
            "id": source.id,
            "modelId": source.model,
            "setName": source.source_set,
            "hasDashboards": True,
            "dataset": source.dataset,
            "hfRepoId": source.weights_repo,
            "hfFolderId": source.weights_folder,
            **measured.prompts("num_prompts", "num_tokens_in_prompt"),
            "visibility": "PUBLIC",
        },
    }


# Fields of a dashboard that a row of Neuronpedia has by the same name.
_SAME_FIELDS = (
    *(f"neuron_alignment_{name}" for name in ("indices", "values", "l1")),
    *(f"correlated_{kind}_{name}" for kind in KINDS for name in CORRELATIONS),
    *("neg_str", "neg_values", "pos_str", "pos_values", "frac_nonzero"),
    *("freq_hist_data_bar_heights", "freq_hist_data_bar_values"),
    *("logits_hist_data_bar_heights", "logits_hist_data_bar_values"),
    *("decoder_weights_dist", "vector"),
)


def _feature(
    source: Source, stats: Features, dashboard: dict[str, Any]
) -> dict[str, Any]:
    j = dashboard["feature_index"]
    largest = max(max(a["values"]) for a in dashboard["activations"])
    has_vector = bool(dashboard["vector"])
    return {
        "index": str(j),
        "sourceSetName": source.source_set,
        "maxActApprox": largest,
        "hasVector": has_vector,
        "vectorLabel": None,
        "vectorDefaultSteerStrength": largest if has_vector else _DEFAULT_STRENGTH,
        "hookName": f"blocks.{source.layer}.{source.hook}",
        "topkCosSimIndices": stats.nearest[j].tolist(),
        "topkCosSimValues": rounded(stats.cosines[j]),
        **{name: dashboard[name] for name in _SAME_FIELDS},
    }


def _activations(source: Source, dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    j = dashboard["feature_index"]
    for i, activation in enumerate(dashboard["activations"]):
        values = activation["values"]
        yield {
            "id": _row_id(source, "activation", j, i),
            "index": str(j),
            "tokens": activation["tokens"],
            "values": values,
            "maxValue": max(values),
            "maxValueTokenIndex": values.index(max(values)),
            "minValue": min(values),
            "binMin": activation["bin_min"],
            "binMax": activation["bin_max"],
            "binContains": activation["bin_contains"],
            "qualifyingTokenIndex": activation["qualifying_token_index"],
            "dfaValues": [],
            "lossValues": [],
        }


def _row_id(source: Source, *names: Any) -> str:
    """An id in the form of Neuronpedia's, the same for the same row of a source."""
    text = json.dumps([dataclasses.astuple(source), *names])
    return f"c{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as lines of JSON; compressed, for a file named .gz."""
    content = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    write(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
