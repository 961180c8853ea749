"""dictionary_learning: `ae.pt`, a state dict of torch, and `config.json`.

The layout is that of version 0.1.0 (`dictionary.py`, `trainers/`), and of the backups
that newer versions write under the same name during training (`training.py` of commit
60ec6bf): the state dict in an entry "ae", of inputs divided by an entry "norm_factor".
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxae import _checks, activations
from jaxae._files import write_atomically
from jaxae.activations import Activation
from jaxae.autoencoder import Autoencoder
from jaxae.autoencoder.files import to_json
from jaxae.formats import _gated, _tensors, _torch, _weights
from jaxae.formats._base import Format, Model, unsupported
from jaxae.formats._weights import Weights

NAME = "dictionary_learning"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "ae.pt"

State = dict[str, np.ndarray]
Config = dict[str, Any]

# ---- the classes ---------------------------------------------------------------------

_LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias"}
_LINEAR |= {"W_dec": "decoder.weight", "b_dec": "b_dec"}
_PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
_GATED = {"b_enc": "gate_bias", "b_mag": "mag_bias", "log_scale": "r_mag"}
_ONE_THRESHOLD = {"threshold": "threshold", "k": "k"}
# Class -> a field of `Weights` or a setting -> its name in the state dict.
_NAMES = {
    "AutoEncoder": {**_LINEAR, "b_dec": "bias"},
    "AutoEncoderNew": {**_LINEAR, "b_dec": "decoder.bias"},
    "GatedAutoEncoder": {**_LINEAR, **_GATED, "b_dec": "decoder_bias"},
    "JumpReluAutoEncoder": {**_PLAIN, "threshold": "threshold"},
    "AutoEncoderTopK": {**_LINEAR, **_ONE_THRESHOLD},
    "BatchTopKSAE": {**_LINEAR, **_ONE_THRESHOLD},
    "MatryoshkaBatchTopKSAE": {
        **_PLAIN,
        **_ONE_THRESHOLD,
        "group_sizes": "group_sizes",
    },
}
_TRANSPOSED = ("W_enc", "decoder.weight")  # [D, H] in the file
_DTYPES = {"k": np.int32, "group_sizes": np.int64}
_SETTINGS = tuple(_DTYPES)
_WITHOUT_PRE_BIAS = ("AutoEncoderNew", "JumpReluAutoEncoder")
_BATCH_TOPK = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")


def _shapes(name: str, state: State, D: int, H: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the tensors of a class."""
    shapes: dict[str, tuple[int, ...]]
    shapes = {"W_enc": (H, D), "W_dec": (H, D), "b_dec": (D,), "k": ()}
    if "k" in _NAMES[name]:  # one threshold for all latents
        shapes["threshold"] = ()
    if "group_sizes" in state:
        shapes["group_sizes"] = (state["group_sizes"].size,)
    shapes = {key: shapes.get(field, (H,)) for field, key in _NAMES[name].items()}
    return {k: s[::-1] if k in _TRANSPOSED else s for k, s in shapes.items()}


def _dict_class(path: Path, state: State, stated: Any) -> str:
    """The class that `config.json` states, or the only one with these tensors."""
    fitting = [c for c, names in _NAMES.items() if {*names.values()} == {*state}]
    if stated in fitting or (stated is None and len(fitting) == 1):
        return stated or fitting[0]
    found = ", ".join(sorted(state))
    if stated is not None:
        names = _checks.lookup(f"{path}: dict_class", _NAMES, stated).values()
        problem = f"must hold {', '.join(sorted(names))} for dict_class {stated}"
        advice = "the file and its configuration may be of two models"
    elif fitting:
        problem = f"may be of class {' or '.join(fitting)}, which encode differently"
        found, advice = "", "put the config.json of its training beside it"
    else:
        problem = f"must hold the tensors of one of the classes {', '.join(_NAMES)}"
        advice = ""
    raise _checks.ArgumentError(str(path), problem, found, advice)


def _check_settings(what: str, settings: Config, latent_dim: int) -> None:
    """Check the number of active latents and the sizes of Matryoshka's groups."""
    if "k" in settings:
        k = _checks.positive_int(f"{what}: k", settings["k"])
        if k > latent_dim:
            problem = f"must be at most the number of latents, {latent_dim}"
            raise _checks.ArgumentError(f"{what}: k", problem, str(k))
    if "group_sizes" in settings:
        sizes = settings["group_sizes"]
        is_list = isinstance(sizes, list) and all(isinstance(n, int) for n in sizes)
        if not is_list or min(sizes, default=0) < 1 or sum(sizes) != latent_dim:
            problem = f"must be integers of at least 1 whose sum is {latent_dim}"
            name = f"{what}: group_sizes"
            raise _checks.ArgumentError(name, problem, repr(sizes))


# ---- read ----------------------------------------------------------------------------


def _file(path: Path) -> Path:
    return path / WEIGHTS_FILE if path.is_dir() else path


def _recognizes(path: Path) -> bool:
    file = _file(path)
    is_openai = _torch.has_any(file, "latent_bias")
    return _torch.has_any(file, "encoder.weight", "W_enc") and not is_openai


def _read(path: Path, inputs_normalized: bool) -> Model:
    del inputs_normalized  # a finished model takes data as it is
    path = _file(path)
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    config_file = folder / CONFIG_FILE
    config = _tensors.read_json(config_file) if config_file.exists() else {}
    return from_state(path, _torch.read(path), config)


def from_state(path: Path, state: dict[str, Any], config: Config) -> Model:
    """The model of a state dict, or of a backup with one; its arrays are NumPy's."""
    factor = None
    if isinstance(state.get("ae"), dict):
        factor = _norm_factor(path, state)
        config = {"trainer": state.get("config"), **config}
        state = state["ae"]
    trainer = _trainer(path, config)
    state = {str(key): np.asarray(value) for key, value in state.items()}
    if trainer.get("dict_class") == "AutoEncoderTopK" and "k" in trainer:
        # Files of early versions lack these.
        early = {"k": np.array(trainer["k"]), "threshold": np.array(-1, np.float32)}
        state = early | state
    name = _dict_class(path, state, trainer.get("dict_class"))
    settings = _settings(path, name, state, trainer)
    tensors = _tensors_of(path, name, state)
    if factor is not None:
        _scale_biases(tensors, factor)
    if name == "AutoEncoderTopK":  # encodes by k, unless told to use the threshold
        settings["threshold"] = tensors.pop("threshold").item()
    weights = _to_weights(name, tensors, config.get(_gated.SHIFT))
    g, pre_bias = _activation(name, settings), name not in _WITHOUT_PRE_BIAS
    ae, params = _weights.to_model(path, weights, g, pre_bias=pre_bias)
    others = {n: value for n, value in config.items() if n != _gated.SHIFT}
    trainer |= {"dict_class": name, **settings}
    folded = () if factor is None else (f"the norm of the data {factor}",)
    return Model(ae, params, {**others, "trainer": trainer}, folded)


def _norm_factor(path: Path, backup: dict[str, Any]) -> float:
    factor = backup.get("norm_factor")
    return _checks.number(f"{path}: norm_factor", factor, _checks.POSITIVE)


def _trainer(path: Path, config: Config) -> Config:
    trainer = config.get("trainer") or {}
    if not isinstance(trainer, dict):
        problem = "must hold a JSON object as the trainer of config.json"
        raise _checks.ArgumentError(str(path), problem, _checks.describe(trainer))
    return dict(trainer)


def _settings(path: Path, name: str, state: State, trainer: Config) -> dict[str, Any]:
    """k and group_sizes of a class that has them, after a check of all shapes."""
    key = _NAMES[name]["W_enc"]
    sizes = _weights.sizes(path, state, key)
    D, H = sizes if key in _TRANSPOSED else sizes[::-1]
    _tensors.check_shapes(path, state, _shapes(name, state, D, H))
    stated = trainer.get("activation_dim", D), trainer.get("dict_size", H)
    if stated != (D, H):
        raise _checks.ArgumentError(
            str(path),
            f"must have the activation_dim and dict_size of config.json, {stated}",
            str((D, H)),
            "the file and its configuration may be of two models",
        )
    settings = {n: state[n].tolist() for n in _SETTINGS if n in state}
    _check_settings(str(path), settings, H)
    return settings


def _tensors_of(path: Path, name: str, state: State) -> State:
    """The tensors by field, one row for each latent."""
    names = {f: key for f, key in _NAMES[name].items() if f not in _SETTINGS}
    floats = _weights.as_float32(path, {key: state[key] for key in names.values()})
    return {
        field: floats[key].T if key in _TRANSPOSED else floats[key]
        for field, key in names.items()
    }


def _scale_biases(tensors: State, factor: float) -> None:
    """The model of x / factor, its outputs multiplied by factor, becomes one of x."""
    for field in {"b_enc", "b_dec", "b_mag", "threshold"} & {*tensors}:
        scaled = tensors[field] * factor
        is_unset = (field == "threshold") & (tensors[field] < 0)
        tensors[field] = np.where(is_unset, tensors[field], scaled)


def _to_weights(name: str, tensors: State, repeated_shift: Any) -> Weights:
    if name in _BATCH_TOPK:
        tensors["threshold"] = np.full_like(tensors["b_enc"], tensors["threshold"])
    if name == "GatedAutoEncoder":
        b_mag, gate = tensors.pop("b_mag"), (tensors["log_scale"], tensors["b_enc"])
        shift = _gated.shift(b_mag, *gate, repeated_shift)
        tensors["shift"] = shift.astype(b_mag.dtype)
    return Weights(**tensors)


def _activation(name: str, settings: dict[str, Any]) -> Activation:
    if name in ("AutoEncoder", "AutoEncoderNew"):
        return activations.relu
    if name == "GatedAutoEncoder":
        return activations.gated
    if name == "AutoEncoderTopK":
        return activations.topk(settings["k"])
    # A threshold below 0 was never set. The original then encodes as relu does, and so
    # does jumprelu.
    return activations.jumprelu()


# ---- write ---------------------------------------------------------------------------


def _write(
    folder: Path, ae: Autoencoder, params: Any, metadata: dict[str, Any]
) -> None:
    state, config = to_state(ae, params, metadata)
    weights_file = folder / WEIGHTS_FILE
    content, text = _torch.content(weights_file, state), to_json("metadata", config)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(weights_file, content)
    write_atomically(folder / CONFIG_FILE, text)


def to_state(ae: Autoencoder, params: Any, metadata: Config) -> tuple[State, Config]:
    """The state dict, of NumPy arrays, and `config.json`."""
    _weights.refuse_normalization(metadata, NAME)
    trainer = _trainer(Path("metadata"), metadata)
    name = _class_of(ae, trainer)
    pre_bias = name not in _WITHOUT_PRE_BIAS
    weights = _weights.from_model(ae, params, NAME, pre_bias=pre_bias)
    tensors = _weights.as_float32(Path("params"), weights.arrays())
    sizes = {"activation_dim": ae.input_dim, "dict_size": ae.latent_dim}
    trainer |= {"dict_class": name, **sizes}
    repeated: Config = {}
    if name == "GatedAutoEncoder":
        shift, gate = tensors.pop("shift"), (tensors["log_scale"], tensors["b_enc"])
        tensors["b_mag"] = _gated.b_mag(shift, *gate)
        repeated = {_gated.SHIFT: shift.tolist()}
    elif name == "AutoEncoderTopK":
        trainer["k"] = ae.activation.max_active
        tensors["threshold"] = _unused_threshold(trainer)
    elif name in _BATCH_TOPK:
        tensors["threshold"] = _one_threshold(ae, name, tensors["threshold"])
    settings = {n: trainer.get(n) for n in _SETTINGS if n in _NAMES[name]}
    _check_settings("metadata: trainer", settings, ae.latent_dim)
    tensors |= {n: np.array(v, _DTYPES[n]) for n, v in settings.items()}
    state = {
        key: tensors[field].T if key in _TRANSPOSED else tensors[field]
        for field, key in _NAMES[name].items()
    }
    return state, {**metadata, **repeated, "trainer": trainer}


def _class_of(ae: Autoencoder, trainer: Config) -> str:
    kind = _weights.kind(ae, NAME, "relu", "gated", "topk", "jumprelu")
    if kind == "relu":
        return "AutoEncoder" if ae.pre_bias else "AutoEncoderNew"
    if kind == "jumprelu" and trainer.get("dict_class") in _BATCH_TOPK:
        return trainer["dict_class"]
    return {
        "gated": "GatedAutoEncoder",
        "topk": "AutoEncoderTopK",
        "jumprelu": "JumpReluAutoEncoder",
    }[kind]


def _unused_threshold(trainer: Config) -> np.ndarray:
    """What training has averaged, which is not part of the function."""
    any_number = _checks.Range(lambda x: True, "a number")
    threshold = trainer.get("threshold", -1)
    name = "metadata: trainer: threshold"
    return np.array(_checks.number(name, threshold, any_number), np.float32)


def _one_threshold(ae: Autoencoder, name: str, threshold: np.ndarray) -> np.ndarray:
    if (threshold != threshold[0]).any():
        raise unsupported(
            *(ae, NAME, f"more than one threshold as {name}"),
            "leave dict_class out of metadata['trainer'] to write JumpReluAutoEncoder",
        )
    return np.array(threshold[0])


FORMAT = Format(
    NAME,
    files=(WEIGHTS_FILE, CONFIG_FILE),
    recognizes=_recognizes,
    read=_read,
    write=_write,
    usage="""\
from dictionary_learning.utils import load_dictionary

dictionary, config = load_dictionary("FOLDER", device="cpu")""",
)
