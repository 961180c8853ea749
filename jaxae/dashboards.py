"""Dashboards of latents for other programs: SAEDashboard's files, and Neuronpedia's.

Both describe each latent by the tokens on which it is active. The names of the fields
are those that SAEDashboard 0.8.0 writes and that Neuronpedia imports (August 2026).
"""

import dataclasses
import datetime
import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxae import _checks, features
from jaxae._checks import ArgumentError
from jaxae._files import expanded, write_atomically
from jaxae.autoencoder import Autoencoder
from jaxae.features import Features
from jaxae.tokens import Tokens
from jaxae.tokens import check as check_tokens

_NUM_TOP, _NUM_QUANTILES, _PER_QUANTILE = 20, 5, 5  # SAEDashboard's numbers
_NUM_ALIGNED, _NUM_LOGITS, _NUM_LOGIT_BINS = 3, 10, 50
_DIGITS = 5  # after the point
_BATCH = 1024  # latents of a file
_TOP_BIN = -1  # bin_min and bin_contains of the strongest examples
_DEFAULT_STRENGTH = 10  # Neuronpedia's, of a latent without a vector


@dataclass(frozen=True)
class Source:
    """What dashboards are called.

    Attributes:
      model: the id of the language model, such as "gpt2-small".
      layer: whose activations the autoencoder encodes.
      source_set: the name of the set of autoencoders, such as "res-mine".
      suffix: tells autoencoders of one set and layer apart; may be empty.
      hook: the place in the layer, such as "hook_resid_post".
      dataset: the name of the text.
      description: of the set.
      creator, creator_id: the author, and the id of the author's account; Neuronpedia
        needs an id that its database has.
      release, release_title, url: of the publication.
      weights_repo, weights_folder: where the weights are on the Hugging Face hub.
    """

    model: str
    layer: int
    source_set: str
    suffix: str = ""
    hook: str = "hook_resid_post"
    dataset: str = ""
    description: str = ""
    creator: str = ""
    creator_id: str = ""
    release: str = ""
    release_title: str = ""
    url: str = ""
    weights_repo: str = ""
    weights_folder: str = ""

    def __post_init__(self):
        for name in ("model", "source_set", "suffix"):
            value = getattr(self, name)
            is_missing = not value and name != "suffix"
            if is_missing or value in (".", "..") or set("/\\\0") & {*value}:
                problem = "must be a name that a folder can have"
                raise ArgumentError(f"source.{name}", problem, repr(value))

    @property
    def id(self) -> str:
        """The id of one autoencoder: "0-res-mine", or "0-res-mine__suffix"."""
        suffix = f"__{self.suffix}" if self.suffix else ""
        return f"{self.layer}-{self.source_set}{suffix}"


class Unembedding(NamedTuple):
    """From the outputs of a decoder to logits.

    Attributes:
      weights: `[D, V]`.
      texts: `[V]`, the text of each token.
    """

    weights: Any
    texts: Any


# ---- SAEDashboard --------------------------------------------------------------------


def write_saedashboard(
    directory: Any,
    source: Source,
    ae: Autoencoder,
    params: Any,
    X: Any,
    tokens: Tokens,
    *,
    unembedding: Unembedding | None = None,
    context: int = 64,
    vectors: bool = False,
) -> Path:
    """Write the files of a run of SAEDashboard: settings, skipped latents, batches.

    Dead latents are the skipped ones. A latent has its 20 strongest tokens, and 5 of
    each of 5 quantile bins, which hold equally many of its active tokens;
    SAEDashboard's own bins have equal widths.

    Args:
      directory: a new or empty folder.
      source: what the dashboards are called.
      ae: a model for use on one example, such as that of `run.model`.
      params: its parameters.
      X: `[N, D]`, activations, an array or Rows, scaled as in training.
      tokens: the tokens of the rows of X.
      unembedding: gives the tokens whose logits a latent raises and lowers; without
        one, these fields are empty.
      context: tokens before and after each example.
      vectors: whether to write the decoder weights of each latent.

    Raises:
      ValueError: if the folder is not empty, or an argument does not fit the model.
    """
    directory = _new_folder(directory)
    measured = _measure(ae, params, X, tokens, unembedding, context, vectors)
    settings = {
        "sae_set": source.source_set,
        "sae_path": source.weights_folder,
        "outputs_dir": str(directory),
        "np_set_name": source.source_set,
        "np_sae_id_suffix": source.suffix or None,
        "huggingface_dataset_path": source.dataset,
        **measured.prompts("n_prompts_total", "n_tokens_in_prompt"),
        "n_features_at_a_time": _BATCH,
        "n_quantiles": _NUM_QUANTILES,
        "top_acts_group_size": _NUM_TOP,
        "quantile_group_size": _PER_QUANTILE,
        "model_id": source.model,
        "layer": source.layer,
    }
    skipped = {
        "model_id": source.model,
        "layer": str(source.layer),
        "sae_set": source.source_set,
        "skipped_indexes": np.flatnonzero(measured.found.is_dead).tolist(),
    }
    files = {"run_settings.json": settings, "skipped_indexes.json": skipped}
    for name, content in files.items():
        _write(directory / name, json.dumps(content, indent=2))
    for i, dashboards in enumerate(measured.batches()):
        batch = {
            "model_id": source.model,
            "layer": source.layer,
            "sae_set": source.source_set,
            "sae_id_suffix": source.suffix or None,
            "features": [{**d, "dataset": source.dataset} for d in dashboards],
        }
        _write(directory / f"batch-{i}.json", json.dumps(batch))
    return directory


# ---- Neuronpedia ---------------------------------------------------------------------


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
    directory = _new_folder(directory)
    measured = _measure(ae, params, X, tokens, unembedding, context, vectors)
    now = created_at or datetime.datetime.now(datetime.UTC)
    shared = {
        "creatorId": source.creator_id,
        "createdAt": now.astimezone(datetime.UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z"),
    }
    folder = directory / "v1" / source.model / source.id
    for name, row in _about(source, measured).items():
        _write(folder / f"{name}.jsonl", _as_lines([{**row, **shared}]))
    of_source = {"modelId": source.model, "layer": source.id}
    for i, dashboards in enumerate(measured.batches()):
        rows = {
            "features": [_feature(source, measured.found, d) for d in dashboards],
            "activations": [a for d in dashboards for a in _activations(source, d)],
        }
        for kind, of_kind in rows.items():
            lines = [{**of_source, **row, **shared} for row in of_kind]
            _write_gzip(folder / kind / f"batch-{i}.jsonl.gz", lines)
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
    for i, start in enumerate(range(0, len(explained), _BATCH)):
        path = folder / "explanations" / f"batch-{i}.jsonl.gz"
        _write_gzip(path, explained[start : start + _BATCH])
    return folder


def _about(source: Source, measured: "_Measured") -> dict[str, dict[str, Any]]:
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


# Correlations of activations, which are not computed here.
_KINDS, _CORRELATIONS = ("neurons", "features"), ("indices", "pearson", "l1")
# Fields of a dashboard that a row of Neuronpedia has by the same name.
_SAME_FIELDS = (
    *(f"neuron_alignment_{name}" for name in ("indices", "values", "l1")),
    *(f"correlated_{kind}_{name}" for kind in _KINDS for name in _CORRELATIONS),
    *("neg_str", "neg_values", "pos_str", "pos_values", "frac_nonzero"),
    *("freq_hist_data_bar_heights", "freq_hist_data_bar_values"),
    *("logits_hist_data_bar_heights", "logits_hist_data_bar_values"),
    *("decoder_weights_dist", "vector"),
)


def _feature(
    source: Source, found: Features, dashboard: dict[str, Any]
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
        "topkCosSimIndices": found.nearest[j].tolist(),
        "topkCosSimValues": _rounded(found.cosines[j]),
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


# ---- the dashboards of both ----------------------------------------------------------


class _Measured(NamedTuple):
    """The measured latents, and all that their dashboards need."""

    ae: Autoencoder
    params: Any
    X: Any
    tokens: Tokens
    unembedding: Unembedding | None
    context: int
    vectors: bool
    found: Features
    W_dec: np.ndarray

    def prompts(self, count: str, length: str) -> dict[str, int]:
        """The number of documents and the length of the longest, by these names."""
        ends = [*self.tokens.starts[1:], len(self.tokens.values)]
        lengths = np.subtract(ends, self.tokens.starts)
        return {count: len(lengths), length: int(lengths.max())}

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        """The dashboards of the latents that are not dead, by files."""
        alive = np.flatnonzero(~self.found.is_dead).tolist()
        for start in range(0, len(alive), _BATCH):
            yield _dashboards(self, alive[start : start + _BATCH])


def _new_folder(directory: Any) -> Path:
    directory = expanded(_checks.folder("directory", directory))
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        problem = "must be a new or an empty folder"
        raise ArgumentError("directory", problem, str(directory))
    return directory


def _measure(
    ae: Autoencoder,
    params: Any,
    X: Any,
    tokens: Tokens,
    unembedding: Unembedding | None,
    context: int,
    vectors: bool,
) -> _Measured:
    """Check the arguments, and measure the latents."""
    X = features.check_data(ae, X)
    check_tokens(tokens, len(X), context)
    if unembedding is not None:
        shape, V = np.shape(unembedding.weights), len(unembedding.texts)
        if shape != (ae.output_dim, V):
            problem = f"must be [{ae.output_dim}, {V}], one column for each text"
            raise ArgumentError("unembedding.weights", problem, f"shape {shape}")
    W_dec = np.asarray(ae.expand(params).W_dec).astype(np.float32)
    found = features.measure(ae, params, X, num_top=_NUM_TOP)
    return _Measured(ae, params, X, tokens, unembedding, context, vectors, found, W_dec)


def _dashboards(measured: _Measured, latents: list[int]) -> list[dict[str, Any]]:
    """The fields of SAEDashboard for each latent, but for the name of the dataset."""
    prompts = measured.prompts("n_prompts_total", "n_tokens_in_prompt")
    activations = _examples(measured, latents)
    return [
        {
            "feature_index": j,
            **_weights(measured, j),
            **_logits(measured, j),
            **_histogram(measured.found, j),
            "frac_nonzero": _rounded(measured.found.density[j]),
            **prompts,
            "decoder_weights_dist": [],
            "vector": _rounded(measured.W_dec[j]) if measured.vectors else [],
            "activations": activations[j],
        }
        for j in latents
    ]


def _weights(measured: _Measured, j: int) -> dict[str, Any]:
    """The outputs with which the decoder weights align."""
    weights = measured.W_dec[j]
    aligned = np.argsort(-weights, kind="stable")[:_NUM_ALIGNED]
    shares = np.abs(weights[aligned]) / (np.abs(weights).sum() or 1.0)
    return {
        "neuron_alignment_indices": aligned.tolist(),
        "neuron_alignment_values": _rounded(weights[aligned]),
        "neuron_alignment_l1": _rounded(shares),
        **{
            f"correlated_{kind}_{name}": [] for kind in _KINDS for name in _CORRELATIONS
        },
    }


def _logits(measured: _Measured, j: int) -> dict[str, Any]:
    """The tokens whose logits the latent lowers and raises most, and a histogram."""
    names = ("neg_str", "neg_values", "pos_str", "pos_values")
    histogram = ("logits_hist_data_bar_heights", "logits_hist_data_bar_values")
    if measured.unembedding is None:
        return {name: [] for name in (*names, *histogram)}
    weights, texts = measured.unembedding
    logits = measured.W_dec[j] @ np.asarray(weights, np.float32)
    order = np.argsort(logits, kind="stable")
    lowest, highest = order[:_NUM_LOGITS], order[::-1][:_NUM_LOGITS]
    heights, edges = np.histogram(logits, _NUM_LOGIT_BINS)
    tops = (
        *([str(texts[i]) for i in lowest], _rounded(logits[lowest])),
        *([str(texts[i]) for i in highest], _rounded(logits[highest])),
    )
    bars = heights.tolist(), _rounded((edges[1:] + edges[:-1]) / 2)
    return dict(zip((*names, *histogram), (*tops, *bars), strict=True))


def _histogram(found: Features, j: int) -> dict[str, Any]:
    """The histogram of |z|, up to the last bin that is not empty."""
    counts = np.trim_zeros(found.counts[j], "b")
    width = found.limit[j] / found.counts.shape[1]
    return {
        "freq_hist_data_bar_heights": counts.tolist(),
        "freq_hist_data_bar_values": _rounded(width * (np.arange(len(counts)) + 0.5)),
    }


def _examples(
    measured: _Measured, latents: list[int]
) -> dict[int, list[dict[str, Any]]]:
    """The examples of each latent, with the tokens around them."""
    tokens = measured.tokens
    places = [(j, *place) for j in latents for place in _places(measured.found, j)]
    windows = [tokens.window(row, measured.context) for _, row, _ in places]
    values = features.values_in(
        measured.ae, measured.params, measured.X, [j for j, _, _ in places], windows
    )
    examples: dict[int, list[dict[str, Any]]] = {j: [] for j in latents}
    for (j, row, of_bin), window, z in zip(places, windows, values, strict=True):
        example = {
            **of_bin,
            "tokens": tokens.texts(window),
            "values": _rounded(z),
            "qualifying_token_index": row - window.start,
        }
        examples[j].append(example)
    return examples


def _places(found: Features, j: int) -> Iterator[tuple[int, dict[str, float]]]:
    """The rows of a latent's examples, and the bin of each."""
    largest = _rounded(found.max[j])
    top = {"bin_min": _TOP_BIN, "bin_max": largest, "bin_contains": _TOP_BIN}
    yield from ((int(row), top) for row in found.top.rows[j] if row >= 0)
    contains = _rounded(found.density[j] / _NUM_QUANTILES)
    sample = dict(
        zip(found.sample.rows[j], np.abs(found.sample.values[j]), strict=True)
    )
    for rows in features.quantiles(found.sample, j, _NUM_QUANTILES, _PER_QUANTILE):
        strengths = [sample[row] for row in rows]
        for row in rows:
            yield (
                int(row),
                {
                    "bin_min": _rounded(min(strengths)),
                    "bin_max": _rounded(max(strengths)),
                    "bin_contains": contains,
                },
            )


def _rounded(values: Any) -> Any:
    """Floats with a few digits after the point, as a list or a number."""
    return np.round(np.asarray(values, np.float64), _DIGITS).tolist()


# ---- files ---------------------------------------------------------------------------


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode(errors="replace"))


def _write_gzip(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = gzip.compress(_as_lines(rows).encode(errors="replace"), mtime=0)
    write_atomically(path, content)


def _as_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)
