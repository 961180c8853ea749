"""The files of a run of SAEDashboard 0.8.0."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxae.autoencoder import Autoencoder
from jaxae.dashboards.latents import (
    BATCH,
    NUM_QUANTILES,
    NUM_TOP,
    PER_QUANTILE,
    Source,
    Unembedding,
    measure,
    new_folder,
    write,
)
from jaxae.tokens import Tokens


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
    directory = new_folder(directory)
    measured = measure(ae, params, X, tokens, unembedding, context, vectors)
    settings = {
        "sae_set": source.source_set,
        "sae_path": source.weights_folder,
        "outputs_dir": str(directory),
        "np_set_name": source.source_set,
        "np_sae_id_suffix": source.suffix or None,
        "huggingface_dataset_path": source.dataset,
        **measured.prompts("n_prompts_total", "n_tokens_in_prompt"),
        "n_features_at_a_time": BATCH,
        "n_quantiles": NUM_QUANTILES,
        "top_acts_group_size": NUM_TOP,
        "quantile_group_size": PER_QUANTILE,
        "model_id": source.model,
        "layer": source.layer,
    }
    skipped = {
        "model_id": source.model,
        "layer": str(source.layer),
        "sae_set": source.source_set,
        "skipped_indexes": np.flatnonzero(measured.stats.is_dead).tolist(),
    }
    files = {"run_settings.json": settings, "skipped_indexes.json": skipped}
    for name, content in files.items():
        write(directory / name, json.dumps(content, indent=2).encode())
    for i, dashboards in enumerate(measured.batches()):
        batch = {
            "model_id": source.model,
            "layer": source.layer,
            "sae_set": source.source_set,
            "sae_id_suffix": source.suffix or None,
            "features": [{**d, "dataset": source.dataset} for d in dashboards],
        }
        write(directory / f"batch-{i}.json", json.dumps(batch).encode())
    return directory
