"""SAELens: a folder of `cfg.json` and `sae_weights.safetensors`.

W_enc is [D, H] and W_dec [H, O]. The layout is that of SAELens 6 (the classes of
`sae_lens.saes`, version 6.54); the flat cfg.json of earlier versions is read too
(`handle_pre_6_0_config` of `sae_lens.loading`).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxae import _checks
from jaxae._files import write_atomically
from jaxae.activations import (
    Activation,
    Gated,
    Threshold,
    abs_topk,
    gated,
    jumprelu,
    matching_pursuit,
    relu,
    topk,
)
from jaxae.autoencoder import Autoencoder, SkipParams, TiedParams, UntiedParams
from jaxae.autoencoder.files import to_json
from jaxae.formats import _base, _gated, _tensors
from jaxae.formats._base import Format, Model, has_files, refused, unsupported

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"
SCALER_FILE = "activation_scaler.json"  # of a checkpoint of training

Config = dict[str, Any]
Tensors = dict[str, np.ndarray]

# ---- cfg.json ------------------------------------------------------------------------

# The entries that determine the function, with the values of a file without them.
_FUNCTION = {
    "architecture": "standard",
    "d_in": None,
    "d_sae": None,
    "d_out": None,
    "dtype": "float32",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "rescale_acts_by_decoder_norm": False,
    "k": None,
    "activation_fn": "relu",
    "finetuning_scaling_factor": False,
    "use_error_term": False,
    "residual_threshold": 1e-2,
    "max_iterations": None,
    "stop_on_duplicate_support": True,
}
# The entries of version 6 about training. Any other may be of the function of a later
# version, so it is refused. Earlier versions have no entries but those above that
# change the function.
_TRAINING = (
    *("decoder_init_norm", "l1_coefficient", "lp_norm", "l1_warm_up_steps"),
    *("aux_loss_coefficient", "use_sparse_activations", "topk_threshold_lr"),
    *("matryoshka_widths", "use_matryoshka_aux_loss", "jumprelu_init_threshold"),
    *("jumprelu_bandwidth", "jumprelu_sparsity_loss_mode", "jumprelu_tanh_scale"),
    *("jumprelu_ste_to_input", "l0_coefficient", "l0_warm_up_steps", "target_l0"),
    "pre_act_loss_coefficient",
)
# The entries of the function that an Autoencoder has no field for: they are metadata.
_KEPT = ("architecture", "normalize_activations", "reshape_activations")
_RENAMED = {
    "activation_fn_str": "activation_fn",
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
}


def _read_config(path: Path) -> tuple[Config, dict[str, Any]]:
    """The entries of the function, and the others."""
    entries = _tensors.read_json(path)
    metadata = entries.pop("metadata", None)
    if metadata is None:
        entries = _flat(entries)
    else:
        _check_known(path, entries, metadata)
    config = {name: entries.pop(name, value) for name, value in _FUNCTION.items()}
    entries.pop("device", None)
    if config["architecture"] in _BATCH_TOPK:  # k is of the batches of training
        entries |= {"training_architecture": config["architecture"], "k": config["k"]}
    if config["reshape_activations"] != "none":
        entries["reshape_activations"] = config["reshape_activations"]
    if str(config["architecture"]).endswith("transcoder"):  # also of equal widths
        entries["architecture"] = config["architecture"]
    return config, {**entries, **(metadata or {})}


def _check_known(path: Path, entries: dict[str, Any], metadata: Any) -> None:
    if not isinstance(metadata, dict):
        raise refused(path, f"metadata={metadata!r}, which must be a JSON object")
    for name in sorted({*entries} - {*_FUNCTION, *_TRAINING, "device"}):
        raise refused(
            path,
            f"{name}={entries[name]!r}, which jaxae does not know and which may "
            "change the function",
            "if it does not, move it into the entry 'metadata'",
        )


def _flat(entries: dict[str, Any]) -> dict[str, Any]:
    """The entries of a version before 6 under the names of version 6."""
    entries = {_RENAMED.get(name, name): value for name, value in entries.items()}
    if entries.get("activation_fn") == "topk":
        options = entries.pop("activation_fn_kwargs", None)
        k = options.get("k") if isinstance(options, dict) else None
        entries |= {"architecture": "topk", "activation_fn": "relu", "k": k}
    normalization = entries.get("normalize_activations")
    if normalization in (None, False):
        entries["normalize_activations"] = "none"
    elif normalization is True:
        entries["normalize_activations"] = "expected_average_only_in"
    if "hook_z" in str(entries.get("hook_name")):
        entries.setdefault("reshape_activations", "hook_z")
    entries.pop("sae_lens_version", None)  # of the layout
    return entries


def _check_config(path: Path, config: Config) -> None:
    """Check that jaxae represents the function, but for a normalization."""
    architecture = config["architecture"]
    _checks.lookup(f"{path}: architecture", _ACTIVATIONS, architecture)
    _checks.lookup(f"{path}: dtype", _DTYPES, config["dtype"])
    for name in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm"):
        _checks.boolean(f"{path}: {name}", config[name])
    represented: dict[str, tuple] = {
        "activation_fn": ("relu",),
        "use_error_term": (False,),
        "reshape_activations": ("none", "hook_z"),
    }
    if architecture not in ("topk", "abstopk", *_BATCH_TOPK):
        represented["rescale_acts_by_decoder_norm"] = (False,)
    if _is_transcoder(config):
        represented["apply_b_dec_to_input"] = (False,)
    if architecture == "matching_pursuit":
        # jaxae's has a fixed number of steps.
        represented |= {
            "residual_threshold": (0,),
            "stop_on_duplicate_support": (False,),
        }
    for name, values in represented.items():
        if config[name] not in values:
            raise refused(
                path,
                f"{name}={config[name]!r} in the architecture {architecture!r}, which "
                "an Autoencoder does not have",
            )


_DTYPES = {
    f"{prefix}{name}": jnp.dtype(name)
    for name in ("float16", "bfloat16", "float32", "float64")
    for prefix in ("", "torch.")
}

# ---- architectures -------------------------------------------------------------------

_BATCH_TOPK = ("batchtopk", "matryoshka_batchtopk")


def _jumprelu_of(config: Config, metadata: dict[str, Any]) -> Activation:
    """JumpReLU with the bandwidth of training, where the file has it."""
    details = metadata.get("training_architecture_details")
    known = {**details, **metadata} if isinstance(details, dict) else metadata
    bandwidth = known.get("jumprelu_bandwidth")
    return jumprelu() if bandwidth is None else jumprelu(bandwidth=bandwidth)


_ACTIVATIONS: dict[str, Callable[[Config, dict[str, Any]], Activation]] = {
    "standard": lambda config, metadata: relu,
    "gated": lambda config, metadata: gated,
    "topk": lambda config, metadata: topk(config["k"]),
    "abstopk": lambda config, metadata: abs_topk(config["k"]),
    "matching_pursuit": lambda config, metadata: matching_pursuit(
        config["d_in"] if (k := config["max_iterations"]) is None else k
    ),
    "jumprelu": _jumprelu_of,
    "batchtopk": _jumprelu_of,
    "matryoshka_batchtopk": _jumprelu_of,
    "transcoder": lambda config, metadata: relu,
    "skip_transcoder": lambda config, metadata: relu,
    "jumprelu_transcoder": _jumprelu_of,
    "jumprelu_skip_transcoder": _jumprelu_of,
}


def _is_transcoder(config: Config) -> bool:
    return config["architecture"].endswith("transcoder")


def _has_skip(config: Config) -> bool:
    return config["architecture"].endswith("skip_transcoder")


def _shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the tensors of an architecture."""
    D, H, num_out = config["d_in"], config["d_sae"], config["d_out"]
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (D, H),
        "b_enc": (H,),
        "W_dec": (H, num_out),
        "b_dec": (num_out,),
    }
    architecture = config["architecture"]
    if architecture == "gated":
        del shapes["b_enc"]
        shapes |= {"b_gate": (H,), "b_mag": (H,), "r_mag": (H,)}
    if architecture.startswith("jumprelu"):
        shapes["threshold"] = (H,)
    if architecture in _BATCH_TOPK:
        shapes["topk_threshold"] = ()
    if architecture == "matching_pursuit":
        del shapes["W_enc"], shapes["b_enc"]
    if _has_skip(config):
        shapes["W_skip"] = (num_out, D)
    return shapes


# ---- read ----------------------------------------------------------------------------


def _read(path: Path, inputs_normalized: bool) -> Model:
    config_file = path / CONFIG_FILE
    config, metadata = _read_config(config_file)
    _check_config(config_file, config)
    if not _is_transcoder(config):
        config["d_out"] = config["d_in"]
    for name in ("d_in", "d_sae", "d_out"):
        config[name] = _checks.positive_int(f"{config_file}: {name}", config[name])
    ae = _build(config_file, config, metadata)
    tensors = _tensors.read_safetensors(path / WEIGHTS_FILE)
    folded = []
    if "log_threshold" in tensors:  # of training, in earlier versions
        tensors["threshold"] = np.exp(tensors.pop("log_threshold"))
        folded.append("the exponential of log_threshold")
    shapes = _shapes(config)
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
            activation=_ACTIVATIONS[config["architecture"]](config, metadata),
            observation="gaussian",
            tied=is_tied,
            bias=not is_tied,
            pre_bias=config["apply_b_dec_to_input"],
            skip=_has_skip(config),
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
    is_autoencoder = "W_enc" in _shapes(config) and not _is_transcoder(config)
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
    architecture, dtype = config["architecture"], _DTYPES[config["dtype"]]
    if architecture in _BATCH_TOPK:
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
    if _has_skip(config):
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
    is_transcoder = architecture.endswith("transcoder")
    pre_bias = ae.pre_bias and ae.parametrization.is_composed and not is_transcoder
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
    is_transcoder = str(metadata.get("architecture")).endswith("transcoder")
    if is_transcoder or ae.skip or ae.output_dim != ae.input_dim:
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
            **{name: v for name, v in metadata.items() if name not in _KEPT},
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
    usage="""\
from sae_lens import SAE

sae = SAE.load_from_disk("FOLDER")""",
)
