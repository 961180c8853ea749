"""Gemma Scope: `params.npz`, a JumpReLU autoencoder without a pre-encoder bias.

W_enc is [D, H] and W_dec [H, D].

References:
  Lieberum et al., Gemma Scope: open sparse autoencoders everywhere all at once on
  Gemma 2, 2024.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from jaxae import activations
from jaxae._files import write_atomically
from jaxae.autoencoder import Autoencoder
from jaxae.formats import _tensors, _weights
from jaxae.formats._base import Format, Model, refused
from jaxae.formats._weights import Weights

NAME = "gemma_scope"
WEIGHTS_FILE = "params.npz"


def _file(path: Path) -> Path:
    return path / WEIGHTS_FILE if path.is_dir() else path


def _recognizes(path: Path) -> bool:
    return _file(path).suffix == ".npz" and _file(path).is_file()


def refuse_gemma_scope_2(path: Path) -> None:
    """Check that a file or folder is not of Gemma Scope 2, which has another layout."""
    file = path / "params.safetensors" if path.is_dir() else path
    names: Any = ()
    with contextlib.suppress(safetensors.SafetensorError, OSError):  # `load` names it
        if file.suffix == ".safetensors":
            with safetensors.safe_open(file, framework="np") as arrays:
                names = arrays.keys()
    if "w_enc" in names:
        raise refused(
            file,
            "the layout of Gemma Scope 2, which jaxae does not read",
            "a model without affine_skip_connection can be written as params.npz: the "
            "same arrays, with w_enc and w_dec named W_enc and W_dec",
        )


def _read(path: Path, inputs_normalized: bool) -> Model:
    del inputs_normalized  # the file says nothing about the inputs
    path = _file(path)
    arrays = _tensors.read_npz(path)
    D, H = _weights.sizes(path, arrays, "W_enc")
    shapes = {
        "W_enc": (D, H),
        "W_dec": (H, D),
        "b_enc": (H,),
        "b_dec": (D,),
        "threshold": (H,),
    }
    _tensors.check_shapes(path, arrays, shapes)
    arrays = _weights.as_float32(path, arrays)
    weights = Weights(**{**arrays, "W_enc": arrays["W_enc"].T})
    g = activations.jumprelu()
    return Model(*_weights.to_model(path, weights, g, pre_bias=False), metadata={})


def _write(
    folder: Path, ae: Autoencoder, params: Any, metadata: dict[str, Any]
) -> None:
    _weights.refuse_normalization(metadata, NAME)  # the file has no place for others
    _weights.kind(ae, NAME, "jumprelu")
    weights = _weights.from_model(ae, params, NAME, pre_bias=False)
    arrays: dict[str, Any] = _weights.as_float32(folder, weights.arrays())
    arrays["W_enc"] = np.ascontiguousarray(arrays["W_enc"].T)
    file = io.BytesIO()
    np.savez(file, **arrays)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS_FILE, file.getvalue())


FORMAT = Format(
    NAME,
    files=(WEIGHTS_FILE,),
    recognizes=_recognizes,
    read=_read,
    write=_write,
    usage="""\
import numpy as np

params = np.load("FOLDER/params.npz")""",
)
