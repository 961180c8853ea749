"""The `config.json` of a run: read, compared, and used as options of another run."""

import dataclasses
import json
import sys
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
    CommandError,
    TrainOptions,
    option_name,
)
from jaxae.cli.run_folder import parse_json


def read_config(path: Path) -> dict[str, Any]:
    """The `config.json` of a run."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give the config.json that `jaxae train` wrote."
        )
    if path.name == CONFIG_FILE:
        refuse_sweep(path.parent)
    config = parse_json(path.read_bytes())
    if not isinstance(config, dict) or not isinstance(config.get("options"), dict):
        raise CommandError(
            f'{path} is not the config.json of a run: a JSON object with "options" is '
            "needed, as `jaxae train` writes it."
        )
    return config


def data_entry(config: dict[str, Any], name: str) -> Any:
    """An entry of "data" in a `config.json`; None where it is missing."""
    data = config.get("data")
    return data.get(name) if isinstance(data, dict) else None


def read_options(path: Path) -> TrainOptions:
    """The options in the `config.json` of a run."""
    return parse_options(read_config(path), path)


def parse_options(config: dict[str, Any], path: Path) -> TrainOptions:
    """The options in the content of a `config.json`; missing ones have defaults."""
    types, options = typing.get_type_hints(TrainOptions), {}
    for name, value in config["options"].items():
        if name not in types:
            raise CommandError(
                f"{path} has the option {name!r}, which this version of jaxae, "
                f"{jaxae.__version__}, does not know; remove it."
            )
        members = typing.get_args(types[name]) or (types[name],)
        if float in members and type(value) is int and abs(value) < 2**1000:
            value = float(value)  # some writers of JSON write 1.0 as 1
        if type(value) not in members:
            raise CommandError(
                f"{path} has the option {name!r} as {_checks.describe(value)}, which "
                f"is not {getattr(types[name], '__name__', types[name])}."
            )
        options[name] = value
    return TrainOptions(**options)


def saved_options(options: Any) -> dict[str, Any]:
    """The options that `config.json` keeps: all but those that name run folders."""
    values = dataclasses.asdict(options)
    for name in ("config", "out", "overwrite", "resume"):
        values.pop(name, None)
    return values


def differences(out: Path, options: TrainOptions) -> str:
    """How options differ from those of the run in a folder; "" if they do not.

    A difference need not make another run: some numbers can be written in two ways, and
    a file may have moved.
    """
    try:
        before = saved_options(read_options(out / CONFIG_FILE))
    except (ValueError, OSError):
        return ""
    return ", ".join(
        f"{option_name(name)} is {_described(before[name])} there and "
        f"{_described(value)} here"
        for name, value in saved_options(options).items()
        if name not in FREE_OPTIONS and before[name] != value
    )


def _described(value: Any) -> str:
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
    """The defaults from `--config FILE` and `--start-from RUN`; None without either."""
    options = None
    if (name := _last_value(arguments, "--config")) is not None:
        options = read_options(expanded(name))
    if (run := _last_value(arguments, "--start-from")) is not None:
        options = _started_from(options or TrainOptions(), run)
    return options


def _last_value(arguments: list[str], option: str) -> str | None:
    """The value of an option among the arguments; the last where it is repeated."""
    for i, argument in reversed(list(enumerate(arguments))):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") != option or not (equals or arguments[i + 1 :]):
            continue
        value = value if equals else arguments[i + 1]
        if not value:
            raise CommandError(f"{option} must name a file or folder, got ''.")
        return value
    return None


def _started_from(options: TrainOptions, run: str) -> TrainOptions:
    """The options with the model, the scaling and the dtype of a run to start from."""
    of_run = read_options(expanded(run) / CONFIG_FILE)
    values = {name: getattr(of_run, name) for name in (*_START_OPTIONS, "dtype")}
    return dataclasses.replace(options, start_from=run, **values)


def check_start(options: TrainOptions) -> None:
    """Raise for options that disagree with the run that `--start-from` names."""
    if options.start_from is None:
        return
    if options.params is not None:
        raise CommandError("--start-from and --params exclude each other; give one.")
    of_run = _started_from(options, options.start_from)
    for name in _START_OPTIONS:
        before, now = getattr(of_run, name), getattr(options, name)
        if before != now:
            option = option_name(name)
            raise CommandError(
                f"--start-from {options.start_from} uses the model and the scaling of "
                f"that run, where {option} is {_described(before)}, but it is "
                f"{_described(now)} here; leave {option} out."
            )
