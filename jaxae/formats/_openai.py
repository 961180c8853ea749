"""OpenAI's sparse autoencoders: `autoencoder.pt`, a state dict of torch.

The layout is that of https://github.com/openai/sparse_autoencoder, commit 4965b94
(`model.py`). Its published files have other names; give the file itself.

References:
  Gao et al., Scaling and evaluating sparse autoencoders, 2024.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxae import _checks, activations
from jaxae._files import write_atomically
from jaxae.activations import Activation
from jaxae.autoencoder import Autoencoder
from jaxae.formats import _tensors, _torch, _weights
from jaxae.formats._base import Format, Model, refused
from jaxae.formats._weights import NORMALIZATION, Weights

NAME = "openai"
WEIGHTS_FILE = "autoencoder.pt"

_TIED = "decoder.linear.weight"
# What training counts, with the original's initial values.
_STATISTICS: dict[str, np.generic] = {
    "stats_last_nonzero": np.int64(0),
    "latents_activation_frequency": np.float32(1),
    "latents_mean_square": np.float32(0),
}


def _file(path: Path) -> Path:
    return path / WEIGHTS_FILE if path.is_dir() else path


def _recognizes(path: Path) -> bool:
    return _torch.has_any(_file(path), "latent_bias")


# ---- read ----------------------------------------------------------------------------


def _read(path: Path, inputs_normalized: bool) -> Model:
    path = _file(path)
    return from_state(path, _torch.read(path), inputs_normalized)


def from_state(path: Path, state: dict[str, Any], inputs_normalized: bool) -> Model:
    """The model of a state dict whose arrays are NumPy's."""
    state = dict(state)
    g = _activation(path, state)
    # The original takes the activation for the sign of a layer norm.
    is_normalized = g.max_active is not None
    if is_normalized and not inputs_normalized:
        raise refused(
            path,
            "activation='TopK', with which the original normalizes each input to mean "
            "0 and standard deviation 1, which an Autoencoder does not do",
            "normalize the inputs yourself, undo it on the outputs, and set "
            "{inputs_normalized}",
        )
    metadata: dict[str, Any] = {NORMALIZATION: "layer_norm"} if is_normalized else {}
    counted = [name for name in _STATISTICS if name in state]
    metadata |= {name: np.asarray(state.pop(name)).tolist() for name in counted}
    weights = _weights_of(path, state)
    return Model(*_weights.to_model(path, weights, g, pre_bias=True), metadata)


def _weights_of(path: Path, state: dict[str, Any]) -> Weights:
    H, D = _weights.sizes(path, state, "encoder.weight")
    is_tied = _TIED in state
    shapes = {"encoder.weight": (H, D), "latent_bias": (H,), "pre_bias": (D,)}
    shapes |= {_TIED: (H, D)} if is_tied else {"decoder.weight": (D, H)}
    tensors = {name: np.asarray(value) for name, value in state.items()}
    _tensors.check_shapes(path, tensors, shapes)
    tensors = _weights.as_float32(path, tensors)
    if is_tied and not np.array_equal(tensors[_TIED], tensors["encoder.weight"]):
        raise refused(path, f"a {_TIED} that is not encoder.weight")
    return Weights(
        W_enc=tensors["encoder.weight"],
        W_dec=None if is_tied else tensors["decoder.weight"].T,
        b_enc=tensors["latent_bias"],
        b_dec=tensors["pre_bias"],
    )


def _activation(path: Path, state: dict[str, Any]) -> Activation:
    """The activation, whose entries are removed from the state dict."""
    name = state.pop("activation", "ReLU")
    nested = state.pop("activation_state_dict", {})
    # The original writes the settings a second time, as activation.k.
    keys = [key for key in state if key.startswith("activation.")]
    settings = {key.removeprefix("activation."): state.pop(key) for key in keys}
    settings |= nested if isinstance(nested, dict) else {}
    if name in ("ReLU", "Identity"):
        return activations.relu if name == "ReLU" else activations.identity
    if name != "TopK":
        raise refused(path, f"activation={name!r}, which is not ReLU, Identity or TopK")
    if settings.get("postact_fn") != "ReLU":
        function = settings.get("postact_fn")
        raise refused(path, f"postact_fn={function!r} after TopK, which is not ReLU")
    k = np.asarray(settings.get("k")).tolist()  # a number or a tensor
    return activations.topk(_checks.positive_int(f"{path}: k", k))


# ---- write ---------------------------------------------------------------------------


def _write(
    folder: Path, ae: Autoencoder, params: Any, metadata: dict[str, Any]
) -> None:
    content = _torch.content(folder / WEIGHTS_FILE, to_state(ae, params, metadata))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS_FILE, content)


def to_state(ae: Autoencoder, params: Any, metadata: dict[str, Any]) -> dict[str, Any]:
    """The state dict, of NumPy arrays and plain values."""
    kind = _weights.kind(ae, NAME, "relu", "identity", "topk")
    weights = _weights.from_model(ae, params, NAME, pre_bias=True)
    if kind != "topk":
        _weights.refuse_normalization(metadata, NAME)
    elif metadata.get(NORMALIZATION) != "layer_norm":
        raise _checks.ArgumentError(
            f"metadata[{NORMALIZATION!r}]",
            "must be 'layer_norm' for topk, with which the original normalizes inputs",
            repr(metadata.get(NORMALIZATION)),
            "give it if your inputs are normalized",
        )
    w = _weights.as_float32(Path("params"), weights.arrays())
    decoder = {_TIED: w["W_dec"]} if ae.tied else {"decoder.weight": w["W_dec"].T}
    settings = {"k": ae.activation.max_active, "postact_fn": "ReLU"}
    return {
        "pre_bias": w["b_dec"],
        "latent_bias": w["b_enc"],
        **{name: _statistic(ae, metadata, name) for name in _STATISTICS},
        "encoder.weight": w["W_enc"],
        **decoder,
        "activation": {"relu": "ReLU", "identity": "Identity", "topk": "TopK"}[kind],
        "activation_state_dict": settings if kind == "topk" else {},
    }


def _statistic(ae: Autoencoder, metadata: dict[str, Any], name: str) -> np.ndarray:
    initial = _STATISTICS[name]
    values = metadata.get(name, [initial.item()] * ae.latent_dim)
    array = np.asarray(values)
    if array.shape != (ae.latent_dim,) or array.dtype.kind not in "if":
        problem = "must list a number for each latent"
        found = _checks.describe(values)
        raise _checks.ArgumentError(f"metadata[{name!r}]", problem, found)
    return array.astype(initial.dtype)


FORMAT = Format(
    NAME,
    files=(WEIGHTS_FILE,),
    recognizes=_recognizes,
    read=_read,
    write=_write,
    usage="""\
import torch
from sparse_autoencoder import Autoencoder

state_dict = torch.load("FOLDER/autoencoder.pt")
autoencoder = Autoencoder.from_state_dict(state_dict)""",
)
