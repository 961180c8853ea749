"""jaxae's own folder: `config.json` and `params.safetensors`.

A run folder has the scaling of its data too. The model of raw data that is read from it
has the scaling in its weights.
"""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxae.autoencoder import Autoencoder, SkipParams, files
from jaxae.data.scaling import SCALING_FILE, Scaling, load_scaling
from jaxae.formats import _base
from jaxae.formats._base import Format, Model, has_files, refused


def _read(path: Path, inputs_normalized: bool) -> Model:
    ae, params = files.load(path)
    config = json.loads((path / files.CONFIG_FILE).read_bytes())
    is_run = "options" in config  # they have paths of this machine, and stay here
    metadata = {n: v for n, v in config.items() if n not in ("jaxae", "model")}
    model = Model(ae, params, {} if is_run else metadata)
    if inputs_normalized or not (path / SCALING_FILE).exists():
        return model
    scaling = load_scaling(path)
    if not (scaling.clip or scaling.shift.any() or (scaling.scale != 1).any()):
        return model
    _check_foldable(path, ae, scaling)
    return _fold(model, scaling)


def _check_foldable(path: Path, ae: Autoencoder, scaling: Scaling) -> None:
    is_affine = _base.is_linear(ae) and not scaling.clip
    if not is_affine or ae.activation.uses_weights or ae.output_dim != ae.input_dim:
        raise refused(
            path / SCALING_FILE,
            f"the scaling {scaling.name!r}, which cannot be folded into a model of "
            f"activation {ae.activation} and observation {ae.observation}",
            "scale the inputs yourself, undo it on the outputs, and set "
            "{inputs_normalized}",
        )


def _fold(model: Model, scaling: Scaling) -> Model:
    """The model of x, from that of x' = (x - shift) / scale, with untied weights.

    W_enc x' + b_enc = (W_enc / scale) x + (b_enc - (W_enc / scale) shift), and
    x_hat = x_hat' scale + shift.
    """
    ae, shift, scale = model.ae, scaling.shift, scaling.scale
    old = _base.numpy_params(ae, model.params, pre_bias=False)
    W_enc = old.W_enc.astype(np.float64) / scale
    b_dec = old.b_dec * scale + shift
    new = {
        "W_enc": W_enc,
        "W_dec": old.W_dec * scale,
        "b_enc": old.b_enc - W_enc @ np.broadcast_to(shift, ae.input_dim),
    }
    if isinstance(old, SkipParams):
        new["W_skip"] = np.reshape(scale, (-1, 1)) * (old.W_skip / scale)
        b_dec = b_dec - new["W_skip"] @ np.broadcast_to(shift, ae.input_dim)
    new["b_dec"] = b_dec
    folded = Autoencoder(
        input_dim=ae.input_dim,
        latent_dim=ae.latent_dim,
        activation=ae.activation,
        observation=ae.observation,
        tied=False,
        skip=ae.skip,
    )
    params = old._replace(
        **{n: jnp.asarray(a.astype(old.W_enc.dtype)) for n, a in new.items()},
        activation=model.params.activation,
        observation=model.params.observation,
    )
    scaled = (f"the scaling {scaling.name!r} of the data",)
    return Model(folded, params, model.metadata, scaled)


def _write(
    folder: Path, ae: Autoencoder, params: Any, metadata: dict[str, Any]
) -> None:
    files.save(folder, ae, params, run=metadata)


FORMAT = Format(
    "jaxae",
    files=(files.CONFIG_FILE, files.PARAMS_FILE, SCALING_FILE),
    recognizes=has_files(files.CONFIG_FILE, files.PARAMS_FILE),
    read=_read,
    write=_write,
    scale_file=SCALING_FILE,
)
