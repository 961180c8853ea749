"""Saved models: `config.json`, to be read by people too, and `params.safetensors`.

The safetensors file repeats the model's description in its metadata, so that a mismatch
of the two files is detected. Nothing is unpickled.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxae import _checks, activations, observations
from jaxae._files import expanded, write_atomically
from jaxae._version import __version__
from jaxae.autoencoder.cards import write_card
from jaxae.autoencoder.model import Autoencoder
from jaxae.autoencoder.parametrizations import BASES, Params

PARAMS_FILE = "params.safetensors"
CONFIG_FILE = "config.json"
BEST = "best"  # folder of the best model, in the folder of a run or a sweep
LANES_FILE = "sweep.json"  # in the folder of a saved sweep
_USAGE = """\
import jaxae

ae, params = jaxae.load("FOLDER")"""


def describe(ae: Autoencoder) -> dict[str, Any]:
    """A model as JSON values, its parts by name."""
    model = {
        "input_dim": ae.input_dim,
        "latent_dim": ae.latent_dim,
        "activation": ae.activation.name,
        "observation": ae.observation.name,
        "tied": ae.tied,
        "bias": ae.bias,
    }
    if ae.output_dim != ae.input_dim:
        model["output_dim"] = ae.output_dim
    if ae.pre_bias:
        model["pre_bias"] = True
    if ae.skip:
        model["skip"] = True
    if not ae.parametrization.is_selected:
        model["parametrization"] = ae.parametrization.name
    return model


# Fields that older files lack, and newer files unless they differ from the default.
_DEFAULTS = {
    "output_dim": None,
    "bias": True,
    "pre_bias": False,
    "skip": False,
    "parametrization": None,
}
_MODEL_FIELDS = (
    *("input_dim", "latent_dim", "activation", "observation", "tied"),
    *_DEFAULTS,
)


def save(directory, ae, params, *, run: dict | None = None) -> None:
    """Write a model to a folder: `config.json` and `params.safetensors`.

    `README.md` is a model card for the Hugging Face hub; your own README.md is kept.
    Each file is written atomically: a reader never sees half a file. A model that is
    already in the folder is replaced.

    Args:
      directory: the folder; created if it does not exist.
      ae: the model.
      params: its parameters.
      run: further JSON values for `config.json`, such as the training configuration.

    Raises:
      ValueError: if `params` are not those of this model or not finite, `directory` is
        a file, `run` is not JSON, or a custom activation or observation has the name of
        one of jaxae's.
    """
    _check_names(ae)
    check_params(ae, params)
    directory = expanded(_checks.folder("directory", directory))
    if directory.exists() and not directory.is_dir():
        raise _checks.ArgumentError(
            "directory", f"must be a folder, but {directory} is a file"
        )
    model = describe(ae)
    config = to_json("run", {"jaxae": __version__, **(run or {}), "model": model})
    # safetensors writes the buffer of an array without regard to its strides.
    leaves = _checks.named(params)
    tensors = {name: np.ascontiguousarray(leaf) for name, leaf in leaves}
    # One entry, because the order in which safetensors writes several varies.
    metadata = {"jaxae": add_checksum(model, tensors)}
    content = safetensors.numpy.save(tensors, metadata=metadata)
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / PARAMS_FILE, content)
    write_atomically(directory / CONFIG_FILE, config)
    write_card(directory, ae, params, library="jaxae", usage=_USAGE)


def load(
    directory, *, activation=None, observation=None, parametrization=None
) -> tuple[Autoencoder, Params]:
    """Read the model that `save` wrote: `ae, params = jaxae.load(DIR)`.

    Args:
      directory: the folder.
      activation, observation, parametrization: those of the model that are not
        jaxae's; their names must be the saved ones.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file is damaged, the two files disagree, the saved name of the
        activation or observation is unknown and none is given, the parameters are
        float64 and x64 is not enabled, or the folder is that of a sweep (the message
        names the folder of its best model).
    """
    directory = expanded(_checks.folder("directory", directory))
    refuse_sweep(directory)
    model = _read_model(directory / CONFIG_FILE)
    tensors, metadata = read_tensors(directory / PARAMS_FILE)
    if isinstance(metadata, dict):
        metadata = {**_DEFAULTS, **metadata}
    if metadata != model:
        raise _checks.ArgumentError(
            str(directory / CONFIG_FILE),
            f"describes another model than {PARAMS_FILE}: {model} against {metadata}",
            advice="restore both files from one save",
        )
    ae = _build(directory, model, activation, observation, parametrization)
    return ae, _assemble(directory, ae, tensors)


def refuse_sweep(directory: Path) -> None:
    """Check that a folder is not that of a sweep, which holds many models.

    Raises:
      ValueError: if it is; the message names the folder of the best model.
    """
    if (directory / LANES_FILE).is_file() and not (directory / CONFIG_FILE).exists():
        advice = "save one of its models by jaxae.save(DIR, ae, sweep.params(lane))"
    elif not is_sweep(directory):
        return
    elif (directory / BEST).is_dir():
        advice = f"its best model is in {directory / BEST}"
    else:
        advice = "it has no best model yet: run the same `jaxae sweep` to finish it"
    raise _checks.ArgumentError(
        str(directory), "is the folder of a sweep, not of a model", advice=advice
    )


def is_sweep(directory: Path) -> bool:
    """Whether `jaxae sweep` wrote the folder."""
    try:
        config = json.loads((directory / CONFIG_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):  # `load` raises for a damaged file
        return False
    return isinstance(config, dict) and "sweep" in config and "model" not in config


def _check_names(ae: Any) -> None:
    """Check that the names of the activation and observation identify them."""
    order = "the order is jaxae.save(DIR, ae, params)"
    _checks.instance("ae", ae, Autoencoder, "jaxae.Autoencoder", order)
    named_parts = (
        ("activation", ae.activation, activations.find(ae.activation.name)),
        ("observation", ae.observation, observations.find(ae.observation.name)),
    )
    for kind, part, own in named_parts:
        if own is not None and own is not part:
            raise _checks.ArgumentError(
                f"{kind} {part.name!r}",
                "has the name of one of jaxae's, which would be loaded instead",
                advice="give yours another name",
            )


def check_params(ae: Autoencoder, params: Any) -> None:
    """Check that parameters are those of a model, and finite, before they are saved.

    Raises:
      ValueError: if they are not; the message names the field.
    """
    ae.check_params(params)
    _checks.finite("params", params, "save those of an earlier step")


def to_json(argument: str, config: dict[str, Any]) -> bytes:
    """The text of a JSON file; a value that JSON does not have is the argument's."""
    try:
        return (json.dumps(config, indent=2, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        problem = f"must be JSON values: {error}"
        raise _checks.ArgumentError(argument, problem) from None


def digest(arrays: Mapping[str, Any]) -> str:
    """SHA-256 of the names, dtypes, shapes and values of arrays."""
    sha256 = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha256.update(f"{name} {array.dtype} {array.shape} ".encode())
        sha256.update(array.reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()


def add_checksum(description: dict[str, Any], tensors: Mapping[str, Any]) -> str:
    """The metadata entry of a safetensors file: a description, and the checksum."""
    return json.dumps({**description, "sha256": digest(tensors)})


def verify_checksum(entry: Any, tensors: Mapping[str, Any]) -> Any:
    """The description in a parsed metadata entry, after a check of its checksum.

    Files of other programs and of early versions have none.

    Raises:
      ValueError: if the tensors do not have the checksum.
    """
    if isinstance(entry, dict) and "sha256" in entry:
        entry = dict(entry)
        if entry.pop("sha256") != digest(tensors):
            raise ValueError("its numbers are not those that were saved")
    return entry


def _read_model(path: Path) -> dict[str, Any]:
    _check_exists(path)
    try:
        model = {**_DEFAULTS, **json.loads(path.read_bytes())["model"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        model = None
    if model is None or set(model) != set(_MODEL_FIELDS):
        raise _checks.ArgumentError(
            str(path),
            'is not the config.json of a jaxae model: a JSON object with a "model" '
            f"of {', '.join(_MODEL_FIELDS)} is needed",
        )
    return model


def read_tensors(path: Path) -> tuple[dict[str, jax.Array], Any]:
    """The tensors of a safetensors file by name, and the model that it describes.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is damaged, or float64 tensors would be rounded.
    """
    _check_exists(path)
    try:
        with safetensors.safe_open(path, framework="flax") as file:
            model = json.loads((file.metadata() or {}).get("jaxae", "null"))
            _check_precision(path, file)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError, json.JSONDecodeError) as error:
        raise _checks.ArgumentError(
            str(path),
            f"is damaged or not a safetensors file ({error})",
            advice="restore a copy or train again",
        ) from None
    try:
        return tensors, verify_checksum(model, tensors)
    except ValueError as error:
        raise _checks.ArgumentError(
            str(path), f"is damaged: {error}", advice="restore a copy or train again"
        ) from None


def _check_precision(path: Path, file) -> None:
    is_double = any(file.get_slice(name).get_dtype() == "F64" for name in file.keys())
    if is_double and not jax.config.read("jax_enable_x64"):
        raise _checks.ArgumentError(
            str(path),
            "holds float64 parameters, which JAX would round to float32 here",
            advice="load it inside `with jax.enable_x64(True):`",
        )


def _build(directory, model, activation, observation, parametrization) -> Autoencoder:
    try:
        return Autoencoder(
            input_dim=model["input_dim"],
            latent_dim=model["latent_dim"],
            output_dim=model["output_dim"],
            activation=_part(model, "activation", activation, activations.find),
            observation=_part(model, "observation", observation, observations.find),
            **_parametrization(model, parametrization),
        )
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from None


def _parametrization(model: dict[str, Any], custom: Any) -> dict[str, Any]:
    """The arguments of `Autoencoder` that choose the parametrization."""
    choices = {key: model[key] for key in ("tied", "bias", "pre_bias", "skip")}
    if model["parametrization"] is None and custom is None:
        return choices
    part = _part(model, "parametrization", custom, BASES.get)
    return {"parametrization": part, **choices}


_KNOWN: dict[str, Collection[str]] = {
    "activation": {**activations.CATALOGUE, **activations.SPARSE},
    "observation": observations.CATALOGUE,
    "parametrization": BASES,
}


def _part(model: dict[str, Any], kind: str, custom: Any, find: Callable) -> Any:
    """The user's own part, which must have the saved name, or the one of that name."""
    name = model[kind]
    if custom is not None:
        if not any(hasattr(custom, name) for name in ("apply", "dloss", "expand")):
            raise _checks.ArgumentError(kind, "must be the part itself", repr(custom))
        if custom.name != name:
            raise _checks.ArgumentError(
                "the model",
                f"was saved with {kind} {name!r}, but {custom.name!r} was given",
                advice=f"give the {kind} it was built with",
            )
        return custom
    part = find(name) if isinstance(name, str) else None
    if part is None:
        raise _checks.ArgumentError(
            "the model",
            f"was saved with {kind} {name!r}, which is not one of "
            f"{', '.join(sorted(_KNOWN[kind]))}",
            advice=f"if it is your own, pass it: jaxae.load(DIR, {kind}=...)",
        )
    return part


def _assemble(directory: Path, ae: Autoencoder, tensors: dict) -> Params:
    template = jax.eval_shape(lambda: ae.init(jax.random.key(0)))
    expected = dict(_checks.named(template))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if shapes != {name: leaf.shape for name, leaf in expected.items()}:
        raise _checks.ArgumentError(
            str(directory / PARAMS_FILE),
            f"holds {_shapes(tensors)}, but the model in {CONFIG_FILE} has "
            f"{_shapes(expected)}",
            advice="restore both files from one save",
        )
    for name, tensor in tensors.items():
        _checks.floating(f"tensor {name} of {directory / PARAMS_FILE}", tensor)
    leaves = [jnp.asarray(tensors[name]) for name in expected]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _shapes(leaves: dict) -> str:
    return ", ".join(f"{name}{list(leaf.shape)}" for name, leaf in leaves.items())


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; {path.parent} is not a folder that jaxae.save or "
            "`jaxae train` has finished writing."
        )
