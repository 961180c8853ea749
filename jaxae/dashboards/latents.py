"""The dashboard of a latent, in the fields of SAEDashboard, and its source."""

from collections.abc import Iterator
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

NUM_TOP, NUM_QUANTILES, PER_QUANTILE = 20, 5, 5  # SAEDashboard's numbers
BATCH = 1024  # latents of a file
_NUM_ALIGNED, _NUM_LOGITS, _NUM_LOGIT_BINS = 3, 10, 50
_DIGITS = 5  # after the point
_TOP_BIN = -1  # bin_min and bin_contains of the strongest examples
# Correlations of activations, which are not computed here.
KINDS, CORRELATIONS = ("neurons", "features"), ("indices", "pearson", "l1")


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


class Measured(NamedTuple):
    """The measured latents, and all that their dashboards need."""

    ae: Autoencoder
    params: Any
    X: Any
    tokens: Tokens
    unembedding: Unembedding | None
    context: int
    vectors: bool
    stats: Features
    W_dec: np.ndarray

    def prompts(self, count: str, length: str) -> dict[str, int]:
        """The number of documents and the length of the longest, by these names."""
        ends = [*self.tokens.starts[1:], len(self.tokens.values)]
        lengths = np.subtract(ends, self.tokens.starts)
        return {count: len(lengths), length: int(lengths.max())}

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        """The dashboards of the latents that are not dead, by files."""
        alive = np.flatnonzero(~self.stats.is_dead).tolist()
        for start in range(0, len(alive), BATCH):
            yield _dashboards(self, alive[start : start + BATCH])


def measure(
    ae: Autoencoder,
    params: Any,
    X: Any,
    tokens: Tokens,
    unembedding: Unembedding | None,
    context: int,
    vectors: bool,
) -> Measured:
    """Check the arguments, and measure the latents."""
    X = features.check_data(ae, X)
    check_tokens(tokens, len(X), context)
    if unembedding is not None:
        shape, V = np.shape(unembedding.weights), len(unembedding.texts)
        if shape != (ae.output_dim, V):
            problem = f"must be [{ae.output_dim}, {V}], one column for each text"
            raise ArgumentError("unembedding.weights", problem, f"shape {shape}")
    W_dec = np.asarray(ae.expand(params).W_dec).astype(np.float32)
    stats = features.measure(ae, params, X, num_top=NUM_TOP)
    return Measured(ae, params, X, tokens, unembedding, context, vectors, stats, W_dec)


def _dashboards(measured: Measured, latents: list[int]) -> list[dict[str, Any]]:
    """The fields of SAEDashboard for each latent, but for the name of the dataset."""
    prompts = measured.prompts("n_prompts_total", "n_tokens_in_prompt")
    activations = _examples(measured, latents)
    return [
        {
            "feature_index": j,
            **_weights(measured, j),
            **_logits(measured, j),
            **_histogram(measured.stats, j),
            "frac_nonzero": rounded(measured.stats.density[j]),
            **prompts,
            "decoder_weights_dist": [],
            "vector": rounded(measured.W_dec[j]) if measured.vectors else [],
            "activations": activations[j],
        }
        for j in latents
    ]


def _weights(measured: Measured, j: int) -> dict[str, Any]:
    """The outputs with which the decoder weights align."""
    weights = measured.W_dec[j]
    aligned = np.argsort(-weights, kind="stable")[:_NUM_ALIGNED]
    shares = np.abs(weights[aligned]) / (np.abs(weights).sum() or 1.0)
    return {
        "neuron_alignment_indices": aligned.tolist(),
        "neuron_alignment_values": rounded(weights[aligned]),
        "neuron_alignment_l1": rounded(shares),
        **{f"correlated_{kind}_{name}": [] for kind in KINDS for name in CORRELATIONS},
    }


def _logits(measured: Measured, j: int) -> dict[str, Any]:
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
        *([str(texts[i]) for i in lowest], rounded(logits[lowest])),
        *([str(texts[i]) for i in highest], rounded(logits[highest])),
    )
    bars = heights.tolist(), rounded((edges[1:] + edges[:-1]) / 2)
    return dict(zip((*names, *histogram), (*tops, *bars), strict=True))


def _histogram(stats: Features, j: int) -> dict[str, Any]:
    """The histogram of |z|, up to the last bin that is not empty."""
    counts = np.trim_zeros(stats.counts[j], "b")
    width = stats.limit[j] / stats.counts.shape[1]
    return {
        "freq_hist_data_bar_heights": counts.tolist(),
        "freq_hist_data_bar_values": rounded(width * (np.arange(len(counts)) + 0.5)),
    }


def _examples(
    measured: Measured, latents: list[int]
) -> dict[int, list[dict[str, Any]]]:
    """The examples of each latent, with the tokens around them."""
    tokens = measured.tokens
    places = [(j, *place) for j in latents for place in _places(measured.stats, j)]
    windows = [tokens.window(row, measured.context) for _, row, _ in places]
    values = features.values_in(
        measured.ae, measured.params, measured.X, [j for j, _, _ in places], windows
    )
    examples: dict[int, list[dict[str, Any]]] = {j: [] for j in latents}
    for (j, row, of_bin), window, z in zip(places, windows, values, strict=True):
        example = {
            **of_bin,
            "tokens": tokens.texts(window),
            "values": rounded(z),
            "qualifying_token_index": row - window.start,
        }
        examples[j].append(example)
    return examples


def _places(stats: Features, j: int) -> Iterator[tuple[int, dict[str, float]]]:
    """The rows of a latent's examples, and the bin of each."""
    largest = rounded(stats.max[j])
    top = {"bin_min": _TOP_BIN, "bin_max": largest, "bin_contains": _TOP_BIN}
    yield from ((int(row), top) for row in stats.top.rows[j] if row >= 0)
    contains = rounded(stats.density[j] / NUM_QUANTILES)
    strengths = np.abs(stats.sample.values[j])
    strength_of = dict(zip(stats.sample.rows[j], strengths, strict=True))
    for rows in features.quantiles(stats.sample, j, NUM_QUANTILES, PER_QUANTILE):
        if len(rows):  # the largest first
            of_bin = {
                "bin_min": rounded(strength_of[rows[-1]]),
                "bin_max": rounded(strength_of[rows[0]]),
                "bin_contains": contains,
            }
            yield from ((int(row), of_bin) for row in rows)


def rounded(values: Any) -> Any:
    """Floats with 5 digits after the point, as a list or a number."""
    return np.round(np.asarray(values, np.float64), _DIGITS).tolist()


# ---- files ---------------------------------------------------------------------------


def new_folder(directory: Any) -> Path:
    """The path of a folder, which must be new or empty."""
    directory = expanded(_checks.folder("directory", directory))
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        problem = "must be a new or an empty folder"
        raise ArgumentError("directory", problem, str(directory))
    return directory


def write(path: Path, content: bytes) -> None:
    """Write a file atomically, in a folder that may be new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
