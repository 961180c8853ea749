"""sparsify: a folder of `cfg.json` and `sae.safetensors`.

W_dec is [H, D], as in this library: row i is what latent i writes. The layout is that
of sparsify 1.3.3 (`sparse_coder.py`).
"""

from pathlib import Path
from typing import Any

import safetensors.numpy

from jaxae import _checks, activations
from jaxae._files import write_atomically
from jaxae.autoencoder import Autoencoder
from jaxae.autoencoder.files import to_json
from jaxae.formats import _tensors, _weights
from jaxae.formats._base import Format, Model, has_files, refused
from jaxae.formats._weights import Weights

NAME = "sparsify"
CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae.safetensors"
# A field of `Weights` -> the name of the tensor.
_TENSORS = {
    "W_enc": "encoder.weight",
    "W_dec": "W_dec",
    "b_enc": "encoder.bias",
    "b_dec": "b_dec",
    "W_skip": "W_skip",
}
_FLAGS = ("skip_connection", "transcode")
_FUNCTION = ("d_in", "num_latents", "k", *_FLAGS)
# The entries of training, with sparsify's defaults. Any other may change the function.
_TRAINING = {"expansion_factor": 32, "normalize_decoder": True, "multi_topk": False}


def _read(path: Path, inputs_normalized: bool) -> Model:
    del inputs_normalized  # sparsify does not normalize inputs
    config, metadata = _read_config(path / CONFIG_FILE)
    tensors = _tensors.read_safetensors(path / WEIGHTS_FILE)
    D, H = config["d_in"], config["num_latents"]
    shapes = {
        "encoder.weight": (H, D),
        "W_dec": (H, D),
        "encoder.bias": (H,),
        "b_dec": (D,),
    }
    if config["skip_connection"]:
        shapes["W_skip"] = D, D
    _tensors.check_shapes(path / WEIGHTS_FILE, tensors, shapes)
    ae, params = _weights.to_model(
        path / WEIGHTS_FILE,
        Weights(**{field: tensors.get(name) for field, name in _TENSORS.items()}),
        activations.topk(config["k"]),
        pre_bias=not config["transcode"],
    )
    return Model(ae, params, metadata)


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries of the function, num_latents filled in, and the others."""
    entries = _TRAINING | _tensors.read_json(path)
    # Early versions had "signed": the k largest magnitudes.
    for name, known in (("activation", "topk"), ("signed", False)):
        if (value := entries.pop(name, known)) != known:
            raise refused(path, f"{name}={value!r}, which jaxae does not have")
    config = {name: entries.pop(name, False) for name in _FUNCTION}
    metadata = {name: entries.pop(name) for name in _TRAINING}
    if isinstance(entries.get("metadata"), dict):
        metadata |= entries.pop("metadata")
    for name, value in sorted(entries.items()):
        raise refused(
            path,
            f"{name}={value!r}, which jaxae does not know and which may change the "
            "function",
            "if it does not, move it into the entry 'metadata'",
        )
    for name in _FLAGS:
        _checks.boolean(f"{path}: {name}", config[name])
    if not config["num_latents"]:
        factor = metadata["expansion_factor"]
        _checks.positive_int(f"{path}: expansion_factor", factor)
        config["num_latents"] = factor * config["d_in"]
    for name in ("d_in", "num_latents", "k"):
        _checks.positive_int(f"{path}: {name}", config[name])
    return config, metadata


def _write(
    folder: Path, ae: Autoencoder, params: Any, metadata: dict[str, Any]
) -> None:
    _weights.refuse_normalization(metadata, NAME)
    _weights.kind(ae, NAME, "topk")
    weights = _weights.from_model(ae, params, NAME, pre_bias=ae.pre_bias, skip=ae.skip)
    config = {
        "activation": "topk",
        **{name: metadata.get(name, value) for name, value in _TRAINING.items()},
        "num_latents": ae.latent_dim,
        "k": ae.activation.max_active,
        "skip_connection": ae.skip,
        "transcode": not ae.pre_bias,
        "d_in": ae.input_dim,
    }
    others = {name: v for name, v in metadata.items() if name not in _TRAINING}
    config |= {"metadata": others} if others else {}
    arrays = weights.arrays()
    if len({array.dtype for array in arrays.values()}) > 1:
        # The original would read all of them in the dtype of the first.
        arrays = _weights.as_float32(folder, arrays)
    tensors = {_TENSORS[field]: array for field, array in arrays.items()}
    text = to_json("metadata", config)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS_FILE, safetensors.numpy.save(tensors))
    write_atomically(folder / CONFIG_FILE, text)


FORMAT = Format(
    NAME,
    files=(CONFIG_FILE, WEIGHTS_FILE),
    recognizes=has_files(CONFIG_FILE, WEIGHTS_FILE),
    read=_read,
    write=_write,
    usage="""\
from sparsify import Sae

sae = Sae.load_from_disk("FOLDER")""",
)
