"""SAELens: a folder of `cfg.json` and `sae_weights.safetensors`.

W_enc is [D, H] and W_dec [H, O]. The layout is that of SAELens 6 (the classes of
`sae_lens.saes`, version 6.54); the flat cfg.json of earlier versions is read too
(`handle_pre_6_0_config` of `sae_lens.loading`).
"""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxae import _checks
from jaxae._files import write_atomically
from jaxae.activations import Gated, Threshold
from jaxae.autoencoder import Autoencoder, SkipParams, TiedParams, UntiedParams
from jaxae.autoencoder.files import to_json
from jaxae.formats import _base, _gated, _tensors
from jaxae.formats._base import Format, Model, has_files, refused, unsupported
from jaxae.formats._saelens_config import (
    ACTIVATIONS,
    BATCH_TOPK,
    DTYPES,
    KEPT,
    Config,
    has_skip,
    is_transcoder,
    read_config,
    shapes_of,
)

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"
SCALER_FILE = "activation_scaler.json"  # of a checkpoint of training

Tensors = dict[str, np.ndarray]

# ---- read ----------------------------------------------------------------------------


def _read(path: Path, inputs_normalized: bool) -> Model:
    config_file = path / CONFIG_FILE
    config, metadata = read_config(config_file)
    ae = _build(config_file, config, metadata)
    tensors = _tensors.read_safetensors(path / WEIGHTS_FILE)
    folded = []
    if "log_threshold" in tensors:  # of training, in earlier versions
        tensors["threshold"] = np.exp(tensors.pop("log_threshold"))
        folded.append("the exponential of log_threshold")
    shapes = shapes_of(config)
    if "scaling_factor" in tensors:
        shapes["scaling_factor"] = (config["d_sae"],)
    _tensors.check_shapes(path / WEIGHTS_FILE, tensors, shapes)
    if _fold_finetuning(path / WEIGHTS_FILE, config, tensors):
        folded.append("the finetuning factors")
    if config["rescale_acts_by_decoder_norm"]:
        _fold_decoder_norms(tensors)
        folded.append("the norms of the decoder rows")
    normalization = config["normalize_activations"]
    if normalization != "none" and inputs_normalized:
        metadata["normalize_activations"] = normalization
    elif normalization != "none":
        scale = _input_scale(path, config)
        _fold_input_scale(tensors, scale)
        folded.append(f"the input scale {scale}")
    params = _assemble(path / WEIGHTS_FILE, config, tensors)
    return Model(ae, params, metadata, tuple(folded))


def _build(path: Path, config: Config, metadata: dict[str, Any]) -> Autoencoder:
    is_tied = config["architecture"] == "matching_pursuit"
    try:
        return Autoencoder(
            input_dim=config["d_in"],
            latent_dim=config["d_sae"],
            output_dim=config["d_out"],
            activation=ACTIVATIONS[config["architecture"]](config, metadata),
            observation="gaussian",
            tied=is_tied,
            bias=not is_tied,
            pre_bias=config["apply_b_dec_to_input"],
            skip=has_skip(config),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _fold_finetuning(path: Path, config: Config, tensors: Tensors) -> bool:
    """Fold the factors of the latents of versions before 6 into W_dec, in place."""
    factors = tensors.pop("scaling_factor", None)
    # SAELens takes factors near 1 for those of a model that was not finetuned.
    if factors is None or np.allclose(factors.astype(np.float64), 1):
        return False
    if not config["finetuning_scaling_factor"]:
        raise refused(
            path,
            "a scaling_factor that is not 1, and finetuning_scaling_factor=False",
            "set it to true if the decoder multiplies the latents by these factors",
        )
    _multiply(tensors, "W_dec", factors[:, None])
    return True


def _fold_decoder_norms(tensors: Tensors) -> None:
    """z_j / ||W_dec,j||, chosen by its size, becomes z_j: all rows get norm 1."""
    norms = np.linalg.norm(tensors["W_dec"].astype(np.float64), axis=1)
    _multiply(tensors, "W_enc", norms)
    _multiply(tensors, "b_enc", norms)
    # A row of zeros stays one; SAELens divides by 0 there.
    _multiply(tensors, "W_dec", 1 / np.where(norms > 0, norms, 1)[:, None])


def _fold_input_scale(tensors: Tensors, scale: float) -> None:
    """The model of scale * x, its output divided by scale, becomes one of x."""
    _multiply(tensors, "W_enc", scale)
    _multiply(tensors, "W_dec", 1 / scale)
    _multiply(tensors, "b_dec", 1 / scale)


def _multiply(tensors: Tensors, name: str, factor: Any) -> None:
    product = tensors[name].astype(np.float64) * factor
    tensors[name] = product.astype(tensors[name].dtype)


def _input_scale(path: Path, config: Config) -> float:
    """The factor of the inputs, which a checkpoint of training has in its own file.

    Raises:
      ValueError: for another normalization, or without that file.
    """
    normalization, scale = config["normalize_activations"], None
    is_scaled = normalization == "expected_average_only_in"
    is_autoencoder = "W_enc" in shapes_of(config) and not is_transcoder(config)
    if is_scaled and is_autoencoder and (path / SCALER_FILE).exists():
        scale = _tensors.read_json(path / SCALER_FILE).get("scaling_factor")
    if scale is None:
        raise refused(
            path / CONFIG_FILE,
            f"normalize_activations={normalization!r}, which an Autoencoder does not "
            "do",
            "normalize the inputs yourself, undo it on the outputs, and set "
            "{inputs_normalized}",
        )
    positive = _checks.POSITIVE
    return _checks.number(f"{path / SCALER_FILE}: scaling_factor", scale, positive)


def _assemble(path: Path, config: Config, tensors: Tensors) -> Any:
    architecture, dtype = config["architecture"], DTYPES[config["dtype"]]
    if architecture in BATCH_TOPK:
        tensors["threshold"] = _learned_threshold(path, config, tensors)
    if architecture == "gated":
        repeated = _tensors.read_header(path, _gated.SHIFT)
        tensors["b_enc"] = tensors.pop("b_gate")
        gate = tensors["r_mag"], tensors["b_enc"]
        tensors["shift"] = _gated.shift(tensors.pop("b_mag"), *gate, repeated)
    if architecture == "matching_pursuit":
        # Its decoder adds b_dec only where its encoder subtracts it.
        tensors["b_dec"] = tensors["b_dec"] * config["apply_b_dec_to_input"]
    wide = jnp.promote_types(dtype, jnp.float32)
    learned = ("threshold", "r_mag", "shift")  # by the activation
    as_saved = {
        name: tensor.astype(wide if name in learned else dtype)
        for name, tensor in tensors.items()
    }
    t = _tensors.as_jax(path, as_saved)
    if architecture == "matching_pursuit":
        return TiedParams(t["W_dec"], (), t["b_dec"])
    theta: tuple = ()
    if architecture == "gated":
        theta = Gated(t["r_mag"], t["shift"])
    elif "threshold" in t:
        theta = Threshold(t["threshold"])
    params = UntiedParams(t["W_enc"].T, t["W_dec"], t["b_enc"], t["b_dec"], theta)
    if has_skip(config):
        return SkipParams(*params[:4], t["W_skip"], *params[4:])
    return params


def _learned_threshold(path: Path, config: Config, tensors: Tensors) -> np.ndarray:
    """The threshold of a model of batch top-k, `[H]`."""
    threshold = tensors.pop("topk_threshold")
    if not threshold > 0:
        raise refused(
            path,
            f"topk_threshold={threshold}, which no step of training has set",
            "train it for some steps in SAELens first",
        )
    return np.full(config["d_sae"], threshold)


# ---- write ---------------------------------------------------------------------------

_AUTOENCODERS = {
    "relu": "standard",
    "topk": "topk",
    "abs_topk": "abstopk",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "matching_pursuit": "matching_pursuit",
}
# (activation, skip) -> architecture
_TRANSCODERS = {
    ("relu", False): "transcoder",
    ("relu", True): "skip_transcoder",
    ("jumprelu", False): "jumprelu_transcoder",
    ("jumprelu", True): "jumprelu_skip_transcoder",
}


def _write(
    folder: Path, ae: Autoencoder, params: Any, metadata: dict[str, Any]
) -> None:
    architecture = _architecture(ae, metadata)
    pre_bias = ae.pre_bias and ae.parametrization.is_composed
    pre_bias = pre_bias and not architecture.endswith("transcoder")
    untied = _base.numpy_params(ae, params, pre_bias)
    tensors, header = _file_tensors(ae, untied)
    if architecture == "matching_pursuit":
        _check_matching_pursuit(ae, untied)
        del tensors["W_enc"], tensors["b_enc"]
    dtype = jnp.result_type(untied.W_enc, untied.W_dec, untied.b_enc, untied.b_dec)
    tensors = {name: _as_dtype(tensor, dtype) for name, tensor in tensors.items()}
    config = _file_config(ae, architecture, dtype.name, pre_bias, metadata)
    folder.mkdir(parents=True, exist_ok=True)
    content = safetensors.numpy.save(tensors, metadata=header or None)
    write_atomically(folder / WEIGHTS_FILE, content)
    write_atomically(folder / CONFIG_FILE, to_json("metadata", config))


def _architecture(ae: Autoencoder, metadata: dict[str, Any]) -> str:
    _base.check_linear_decoder(ae, "saelens")
    kind = _base.activation_kind(ae)
    is_named_so = str(metadata.get("architecture")).endswith("transcoder")
    if is_named_so or ae.skip or ae.output_dim != ae.input_dim:
        architecture = _TRANSCODERS.get((kind, ae.skip))
    else:
        architecture = _AUTOENCODERS.get(kind)
    if architecture is None:
        what = f"activation {ae.activation}"
        advice = "give the model that training returns, run.model"
        raise unsupported(
            *(
                ae,
                "saelens",
                f"{what} in a transcoder" if kind in _AUTOENCODERS else what,
            ),
            advice if kind == "batch_topk" else "",
        )
    return architecture


def _file_tensors(ae: Autoencoder, untied: Any) -> tuple[Tensors, dict[str, str]]:
    """The tensors by their names in the file, and its header."""
    tensors = {
        "W_enc": untied.W_enc.T,
        "b_enc": untied.b_enc,
        "W_dec": untied.W_dec,
        "b_dec": untied.b_dec,
    }
    header: dict[str, str] = {}
    theta = untied.activation
    if isinstance(theta, Gated):
        tensors["b_gate"] = tensors.pop("b_enc")
        tensors["r_mag"] = theta.log_scale
        tensors["b_mag"] = _gated.b_mag(theta.shift, theta.log_scale, untied.b_enc)
        header = {_gated.SHIFT: json.dumps(np.asarray(theta.shift, float).tolist())}
    if isinstance(theta, Threshold):
        tensors["threshold"] = _base.scaled_threshold(ae, theta)
    if isinstance(untied, SkipParams):
        tensors["W_skip"] = untied.W_skip
    return tensors, header


def _check_matching_pursuit(ae: Autoencoder, untied: Any) -> None:
    if not ae.tied or untied.b_enc.any():
        what = "matching pursuit without tied weights, or with an encoder bias"
        raise unsupported(ae, "saelens", what)
    if not ae.pre_bias and untied.b_dec.any():
        what = "matching pursuit with a b_dec that the encoder does not subtract"
        raise unsupported(ae, "saelens", what)


def _as_dtype(tensor: np.ndarray, dtype: Any) -> np.ndarray:
    """The tensor as `dtype`, or as it is where that would round it."""
    with np.errstate(over="ignore"):
        narrow = tensor.astype(dtype)
    is_exact = np.array_equal(narrow.astype(tensor.dtype), tensor, equal_nan=True)
    return np.ascontiguousarray(narrow if is_exact else tensor)


def _file_config(
    ae: Autoencoder,
    architecture: str,
    dtype: str,
    pre_bias: bool,
    metadata: dict[str, Any],
) -> Config:
    config: Config = {
        "architecture": architecture,
        "d_in": ae.input_dim,
        "d_sae": ae.latent_dim,
        "dtype": dtype,
        "device": "cpu",
        "apply_b_dec_to_input": pre_bias,
        "normalize_activations": metadata.get("normalize_activations", "none"),
        "reshape_activations": metadata.get("reshape_activations", "none"),
        "metadata": {
            "sae_lens_version": "6.0.0",  # the first of this layout
            **{name: v for name, v in metadata.items() if name not in KEPT},
        },
    }
    if architecture.endswith("transcoder"):
        config["d_out"] = ae.output_dim
    if architecture in ("topk", "abstopk"):
        config |= {"k": ae.activation.max_active, "rescale_acts_by_decoder_norm": False}
    if architecture == "matching_pursuit":
        config |= {
            "max_iterations": ae.activation.max_active,
            "residual_threshold": 0.0,
            "stop_on_duplicate_support": False,
        }
    return config


FORMAT = Format(
    "saelens",
    files=(CONFIG_FILE, WEIGHTS_FILE, SCALER_FILE),
    recognizes=has_files(CONFIG_FILE, WEIGHTS_FILE),
    read=_read,
    write=_write,
    scale_file=SCALER_FILE,
    usage="""\
from sae_lens import SAE

sae = SAE.load_from_disk("FOLDER")""",
)
