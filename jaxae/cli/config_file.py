"""The `config.json` of a run: read, compared, and used as options of another run."""

import contextlib
import dataclasses
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxae
from jaxae import _checks
from jaxae._files import expanded
from jaxae.autoencoder.files import CONFIG_FILE, refuse_sweep
from jaxae.cli.options import (
    FREE_OPTIONS,
    MODEL_OPTIONS,
    TrainOptions,
    option_name,
)
from jaxae.cli.run_folder import parse_json


def read_config(path: Path) -> dict[str, Any]:
    """The `config.json` of a run.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if `jaxae train` did not write it.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give the config.json that `jaxae train` wrote."
        )
    if path.name == CONFIG_FILE:
        refuse_sweep(path.parent)
    config = parse_json(path.read_bytes())
    if not isinstance(config, dict) or not isinstance(config.get("options"), dict):
        raise ValueError(
            f'{path} is not the config.json of a run: a JSON object with "options" is '
            "needed, as `jaxae train` writes it."
        )
    return config


def data_entry(config: dict[str, Any], name: str) -> Any:
    """An entry of "data" in a `config.json`; None where it is missing."""
    data = config.get("data")
    return data.get(name) if isinstance(data, dict) else None


T = typing.TypeVar("T")


def as_options(kind: type[T], values: dict[str, Any], path: Path) -> T:
    """The options in a `config.json`; missing ones have their defaults.

    Raises:
      ValueError: for an unknown option, or a value of a different type.
    """
    hints, options = typing.get_type_hints(kind), {}
    for name, value in values.items():
        if name not in hints:
            raise ValueError(
                f"{path} has the option {name!r}, which this version of jaxae, "
                f"{jaxae.__version__}, does not know; remove it."
            )
        options[name] = _as_type(hints[name], value)
        if options[name] is _OTHER:
            raise ValueError(
                f"{path} has the option {name!r} as {_checks.describe(value)}, which "
                f"is not {getattr(hints[name], '__name__', hints[name])}."
            )
    return kind(**options)


_OTHER: Any = object()


def _as_type(hint: Any, value: Any) -> Any:
    """The value as one of this type, or `_OTHER` where it has another."""
    if isinstance(hint, types.UnionType):
        values = (_as_type(member, value) for member in typing.get_args(hint))
        return next((value for value in values if value is not _OTHER), _OTHER)
    if hint is float and type(value) is int:  # some writers of JSON write 1.0 as 1
        with contextlib.suppress(OverflowError):
            return float(value)
    return value if type(value) is hint else _OTHER


def to_options(options: Any) -> dict[str, Any]:
    """The options that `config.json` keeps: all but those that name run folders."""
    values = dataclasses.asdict(options)
    for name in ("config", "out", "overwrite", "resume"):
        values.pop(name, None)
    return values


def differences(out: Path, options: Any) -> str:
    """How options differ from those of the run in a folder; "" if they do not.

    A difference need not make another run: some numbers can be written in two ways, and
    a file may have moved.
    """
    path = out / CONFIG_FILE
    try:
        saved = as_options(type(options), read_config(path)["options"], path)
    except (ValueError, OSError):
        return ""
    before, now = to_options(saved), to_options(options)
    return ", ".join(
        f"{option_name(name)} is {option_value(before[name])} there and "
        f"{option_value(now[name])} here"
        for name in now
        if name not in FREE_OPTIONS and before[name] != now[name]
    )


def option_value(value: Any) -> str:
    """The value of an option, in the words of an error."""
    return "not given" if value is None else json.dumps(value)


def environment() -> dict[str, Any]:
    """Versions and device, for `config.json`."""
    import jaxlib
    import optax

    modules = (jaxae, jax, jaxlib, optax, np)
    versions = {module.__name__: module.__version__ for module in modules}
    return {
        "versions": {"python": sys.version.split()[0], **versions},
        "device": jax.devices()[0].device_kind,
    }


# ---- options from another run --------------------------------------------------------

# The options that `--start-from` takes from a run.
_START_OPTIONS = (*MODEL_OPTIONS, "scaling", "divide_by")


def defaults(arguments: list[str]) -> TrainOptions | None:
    """The defaults from `--config FILE` and `--start-from RUN`; None without either.

    Raises:
      FileNotFoundError, ValueError: as `read_config`.
    """
    options = None
    if (name := _last_value(arguments, "--config")) is not None:
        path = expanded(name)
        options = as_options(TrainOptions, read_config(path)["options"], path)
    if (run := _last_value(arguments, "--start-from")) is not None:
        options = _started_from(options or TrainOptions(), run)
    return options


def _last_value(arguments: list[str], option: str) -> str | None:
    """The value of an option among the arguments; the last where it is repeated."""
    for i, argument in reversed(list(enumerate(arguments))):
        name, _, value = argument.partition("=")
        is_option = name.replace("_", "-") == option
        if is_option and (value or i + 1 < len(arguments)):
            return value or arguments[i + 1]
    return None


def _started_from(options: TrainOptions, run: str) -> TrainOptions:
    """The options with the model, the scaling and the dtype of a run to start from."""
    path = expanded(run) / CONFIG_FILE
    of_run = as_options(TrainOptions, read_config(path)["options"], path)
    values = {name: getattr(of_run, name) for name in (*_START_OPTIONS, "dtype")}
    return dataclasses.replace(options, start_from=run, **values)


def check_start(options: TrainOptions) -> None:
    """Raise for options that disagree with the run that `--start-from` names.

    Raises:
      ValueError: the message names one.
    """
    if options.start_from is None:
        return
    if options.params is not None:
        raise ValueError("--start-from and --params exclude each other; give one.")
    of_run = _started_from(options, options.start_from)
    for name in _START_OPTIONS:
        before, now = getattr(of_run, name), getattr(options, name)
        if before != now:
            option = option_name(name)
            raise ValueError(
                f"--start-from {options.start_from} uses the model and the scaling of "
                f"that run, where {option} is {option_value(before)}, but it is "
                f"{option_value(now)} here; leave {option} out."
            )
