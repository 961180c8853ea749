"""SynthSAEBench: its generator as a `Dictionary`, and the reader of its files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Array

from jaxae import _checks
from jaxae._files import expanded
from jaxae.data import dictionaries
from jaxae.data.dictionaries import Dictionary
from jaxae.data.dictionary_draws import ROOT


def synthsaebench(
    key,
    *,
    num_features=16_384,
    input_dim=768,
    num_roots=128,
    num_children=4,
    depth=3,
    highest=0.4,
    lowest=5e-4,
    rank=25,
    decorrelation_steps=100,
) -> Dictionary:
    """The generator of SynthSAEBench-16k, with random numbers of its own.

    Shifted Zipf probabilities, compensated; trees with exclusive, scaled children;
    correlations of scale 0.1; mean magnitudes that fall from 5 to 4; spreads |N(0.5,
    0.5^2)|; decorrelated features; a bias of norm 0.5. On average 34.5 features are
    active. To read the published model instead, see `load_synthsaebench`.

    Args:
      key: a random key, used up here.
      num_features, input_dim: N and D.
      num_roots, num_children, depth: as for `forest`.
      highest, lowest: as for `zipf`.
      rank: R, as for `correlation_factor`.
      decorrelation_steps: as num_steps of `decorrelated`. 100 steps of the full size
        take minutes on two cores.

    Raises:
      ValueError: if a size is below 1, or a probability out of range.

    References:
      SynthSAEBench, 2026, https://arxiv.org/abs/2602.14687.
      SAELens documentation, SynthSAEBench.
    """
    _checks.prng_key(key)
    feature_key, bias_key, factor_key, spread_key = jax.random.split(key, 4)
    features = dictionaries.random_features(feature_key, num_features, input_dim)
    N = len(features)
    parents = dictionaries.forest(N, num_roots, num_children, depth)
    return dictionaries.build(
        dictionaries.decorrelated(features, num_steps=decorrelation_steps),
        dictionaries.compensated(dictionaries.zipf(N, highest, lowest), parents),
        bias=0.5 * dictionaries.random_features(bias_key, 1, input_dim)[0],
        magnitudes=np.linspace(5, 4, N),
        spreads=_folded_normal(spread_key, N, 0.5, 0.5),
        factor=dictionaries.correlation_factor(factor_key, N, rank),
        parents=parents,
    )


def _folded_normal(key, N: int, mean, std) -> Array:
    return jnp.abs(mean + std * jax.random.normal(key, (N,), jnp.float32))


# ---- SynthSAEBench's files -----------------------------------------------------------

_CONFIG = "synthetic_model_config.json"
_TREES = "hierarchy.json"
_ARRAYS = "synthetic_model.safetensors"


def load_synthsaebench(directory, key) -> Dictionary:
    """Read a model of SynthSAEBench, such as `decoderesearch/synth-sae-bench-16k-v2`.

    The files hold no spreads: SAELens draws them from a seed of torch. They are drawn
    here from `key`, with the distribution of the configuration. All else is the files'.

    Args:
      directory: a folder with synthetic_model_config.json, synthetic_model.safetensors
        and, if there are trees, hierarchy.json.
      key: a random key, used up here.

    Raises:
      ValueError: if a file is missing, damaged or disagrees with the others.

    References:
      SynthSAEBench, 2026, https://arxiv.org/abs/2602.14687.
    """
    _checks.prng_key(key)
    folder = expanded(_checks.folder("directory", directory))
    with _checks.reading(folder / _CONFIG, "download it again"):
        config = json.loads((folder / _CONFIG).read_bytes())
        means = config.get("mean_firing_magnitudes", 1.0)
        stds = config.get("std_firing_magnitudes", 0.0)
    with _checks.reading(folder / _ARRAYS, "download it again"):
        arrays = safetensors.numpy.load_file(folder / _ARRAYS)
        features = arrays["feature_vectors"]
        q, bias = arrays["firing_probabilities"], arrays["bias"]
    mean_key, spread_key = jax.random.split(key)
    parents, exclusive, scaled = _read_trees(folder / _TREES, len(features))
    return dictionaries.build(
        features,
        q,
        bias=bias,
        magnitudes=_magnitudes(
            "mean_firing_magnitudes", means, len(features), mean_key
        ),
        spreads=_magnitudes("std_firing_magnitudes", stds, len(features), spread_key),
        factor=_read_factor(arrays),
        parents=parents,
        exclusive=exclusive,
        scaled=scaled,
    )


def _read_factor(arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    factor, diagonal = map(arrays.get, ("correlation_factor", "correlation_diag"))
    if factor is None:
        return None
    variances = np.sum(factor**2, axis=1)
    if diagonal is not None and not np.allclose(variances + diagonal, 1, atol=1e-3):
        raise _checks.ArgumentError(
            _ARRAYS, "must hold a correlation_factor and correlation_diag of variance 1"
        )
    return factor


def _read_trees(path: Path, N: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parents, exclusive and scaled of the features in hierarchy.json, if it exists."""
    parents = np.full(N, ROOT, np.int32)
    exclusive, scaled = np.zeros(N, bool), np.zeros(N, bool)
    if not path.exists():
        return parents, exclusive, scaled
    with _checks.reading(path, "download it again"):
        pending = [(ROOT, node) for node in json.loads(path.read_bytes())["roots"]]
        seen = set()
        while pending:
            parent, node = pending.pop()
            i = node["feature_index"]
            if type(i) is not int or not 0 <= i < N or i in seen:
                raise ValueError(f"feature_index {i!r} is out of range or there twice")
            seen.add(i)
            parents[i] = parent
            exclusive[i] = node.get("mutually_exclusive_children", False)
            scaled[i] = node.get("scale_children_by_parent", False)
            pending += [(i, child) for child in node.get("children", ())]
    return parents, exclusive, scaled


def _magnitudes(name: str, value: Any, N: int, key) -> Any:
    """What the configuration says of means or spreads, `[N]`."""
    kind = value.get("generator_name") if isinstance(value, dict) else "number"
    if kind == "number":
        return value
    if kind == "constant":
        return value["value"]
    if kind == "linear":
        return np.linspace(value["start"], value["end"], N)
    bounds = [value.get("min_value"), value.get("max_value")]
    if kind == "folded_normal":
        drawn = _folded_normal(key, N, value["mean"], value["std"])
        return drawn if bounds == [None, None] else jnp.clip(drawn, *bounds)
    raise _checks.ArgumentError(
        f"{name} of {_CONFIG}",
        "must be a number, constant, linear or folded_normal",
        _checks.describe(kind),
    )
