"""The `cfg.json` of SAELens: what determines the function, and what does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxae import _checks
from jaxae.activations import (
    Activation,
    abs_topk,
    gated,
    jumprelu,
    matching_pursuit,
    relu,
    topk,
)
from jaxae.formats import _tensors
from jaxae.formats._base import refused

Config = dict[str, Any]

# ---- entries -------------------------------------------------------------------------

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
KEPT = ("architecture", "normalize_activations", "reshape_activations")
_RENAMED = {
    "activation_fn_str": "activation_fn",
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
}


def read_config(path: Path) -> tuple[Config, dict[str, Any]]:
    """The entries of the function, checked, and the others.

    Raises:
      ValueError: for an entry that jaxae does not know or cannot represent, but for a
        normalization of the inputs.
    """
    entries = _tensors.read_json(path)
    metadata = entries.pop("metadata", None)
    if metadata is None:
        entries = _flat(entries)
    # First, since another architecture has entries of its own.
    architecture = entries.get("architecture", _FUNCTION["architecture"])
    _checks.lookup(f"{path}: architecture", ACTIVATIONS, architecture)
    if metadata is not None:
        _check_known(path, entries, metadata)
    config = {name: entries.pop(name, value) for name, value in _FUNCTION.items()}
    entries.pop("device", None)
    if config["architecture"] in BATCH_TOPK:  # k is of the batches of training
        entries |= {"training_architecture": config["architecture"], "k": config["k"]}
    if config["reshape_activations"] != "none":
        entries["reshape_activations"] = config["reshape_activations"]
    if str(config["architecture"]).endswith("transcoder"):  # also of equal widths
        entries["architecture"] = config["architecture"]
    _check_config(path, config)
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
    _checks.lookup(f"{path}: dtype", DTYPES, config["dtype"])
    for name in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm"):
        _checks.boolean(f"{path}: {name}", config[name])
    represented: dict[str, tuple] = {
        "activation_fn": ("relu",),
        "use_error_term": (False,),
        "reshape_activations": ("none", "hook_z"),
    }
    if architecture not in ("topk", "abstopk", *BATCH_TOPK):
        represented["rescale_acts_by_decoder_norm"] = (False,)
    if is_transcoder(config):
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
    if not is_transcoder(config):
        config["d_out"] = config["d_in"]
    for name in ("d_in", "d_sae", "d_out"):
        config[name] = _checks.positive_int(f"{path}: {name}", config[name])


DTYPES = {
    f"{prefix}{name}": jnp.dtype(name)
    for name in ("float16", "bfloat16", "float32", "float64")
    for prefix in ("", "torch.")
}

# ---- architectures -------------------------------------------------------------------

BATCH_TOPK = ("batchtopk", "matryoshka_batchtopk")


def _jumprelu_of(config: Config, metadata: dict[str, Any]) -> Activation:
    """JumpReLU with the bandwidth of training, where the file has it."""
    details = metadata.get("training_architecture_details")
    known = {**details, **metadata} if isinstance(details, dict) else metadata
    bandwidth = known.get("jumprelu_bandwidth")
    return jumprelu() if bandwidth is None else jumprelu(bandwidth=bandwidth)


ACTIVATIONS: dict[str, Callable[[Config, dict[str, Any]], Activation]] = {
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


def is_transcoder(config: Config) -> bool:
    return config["architecture"].endswith("transcoder")


def has_skip(config: Config) -> bool:
    return config["architecture"].endswith("skip_transcoder")


def shapes_of(config: Config) -> dict[str, tuple[int, ...]]:
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
    if architecture in BATCH_TOPK:
        shapes["topk_threshold"] = ()
    if architecture == "matching_pursuit":
        del shapes["W_enc"], shapes["b_enc"]
    if has_skip(config):
        shapes["W_skip"] = (num_out, D)
    return shapes
