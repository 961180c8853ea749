"""A run folder: which files it has, how they are written and read."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import shutil
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxae
from jaxae import _checks
from jaxae._files import expanded, write_atomically
from jaxae.autoencoder.files import (
    BEST,
    CONFIG_FILE,
    LANES_FILE,
    PARAMS_FILE,
    is_sweep,
    refuse_sweep,
)
from jaxae.checkpoints import locked
from jaxae.data.scaling import SCALING_FILE

METRICS_FILE = "metrics.jsonl"
TIMING_FILE = "timing.jsonl"  # everything that a clock says, apart
RESULTS_FILE = "results.json"
REPORT_FILE = "report.json"  # of gradcheck
FILTERS, DECODER_FILTERS = "filters.png", "decoder_filters.png"
RECONSTRUCTIONS, CURVES, USAGE = "reconstructions.png", "curves.png", "latents.png"
PICTURES = (FILTERS, DECODER_FILTERS, RECONSTRUCTIONS, CURVES, USAGE)
SUMS_FILE = "results.sha256"  # of what a run made; `sha256sum -c` reads it too
RUN_FILES = (
    *(CONFIG_FILE, PARAMS_FILE, SCALING_FILE, METRICS_FILE, TIMING_FILE),
    *(RESULTS_FILE, REPORT_FILE, SUMS_FILE, *PICTURES),
)
CHECKPOINTS = "checkpoints"
RUN_FOLDERS = (CHECKPOINTS, BEST)
# Of a sweep.
SPACE_FILE, CURVES_FILE = "space.toml", "metrics.npz"
TABLES = {"csv": "table.csv", "parquet": "table.parquet"}
LANES, TOP = "lanes", "top"
MAP, PARALLEL = "map.png", "parallel.png"


def check_out(name: str, overwrite: bool, resume: bool = False) -> Path:
    """The folder `--out` of that name, if a run may be written there.

    Raises:
      ValueError: if it has no name, is a file, or holds a run that may be neither
        overwritten nor resumed.
    """
    if not name:
        raise ValueError("--out must name a folder, got ''.")
    if overwrite and resume:
        raise ValueError("--overwrite and --resume exclude each other; give one.")
    out = expanded(name)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, but {out} is a file.")
    _check_kinds(out)
    if is_sweep(out) or (out / LANES / LANES_FILE).is_file():
        raise ValueError(
            f"--out {out} is the folder of a sweep; choose another folder."
        )
    if resume:
        _check_states(out)
    if not (overwrite or resume) and holds_run(out):
        raise ValueError(
            f"--out {out} holds a run already; choose another folder, replace it with "
            "--overwrite, or go on with --resume."
        )
    return out


def _check_kinds(out: Path) -> None:
    """Refuse folders in the place of files, and files in that of folders."""
    for name in RUN_FILES:
        if (out / name).is_dir():
            raise ValueError(
                f"--out {out} has a folder where the file {name} belongs; move it "
                "away, or choose another folder."
            )
    for name in RUN_FOLDERS:
        if (out / name).exists() and not (out / name).is_dir():
            raise ValueError(
                f"--out {out} has a file where the folder {name} belongs; move it "
                "away, or choose another folder."
            )


# A run that has one of these has ended.
_OF_THE_END = (RESULTS_FILE, REPORT_FILE, SUMS_FILE, BEST)
_OF_NO_RUN = {"cases", "best", "trial"}  # in config.json: gradcheck's, and best/'s


def _check_states(out: Path) -> None:
    """Refuse to start over what is no run, or a run that ended and lost its states."""
    states = out / CHECKPOINTS
    names = [path.name for path in states.iterdir()] if states.is_dir() else []
    if any(map(str.isdigit, names)):  # what is damaged is none
        return
    config = out / CONFIG_FILE
    said = read_config(config) if config.exists() else {}
    if found := _OF_NO_RUN & said.keys():
        raise ValueError(
            f"--resume goes on with a run of `jaxae train`, but --out {out} holds "
            f"something else, for its {CONFIG_FILE} has {min(found)!r}; choose another "
            "folder."
        )
    if any((out / name).exists() for name in _OF_THE_END):
        raise ValueError(
            f"--resume needs the states of the run in {states}, which holds none; "
            "restore them, replace the run with --overwrite, or choose another folder."
        )


def holds_run(out: Path) -> bool:
    """Whether the folder has a file or folder of a run."""
    return any((out / name).exists() for name in (*RUN_FILES, *RUN_FOLDERS))


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """The folder, made if need be, and kept from other processes.

    Raises:
      ValueError: if another process holds it.
      OSError: if it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"--out {out} cannot be made: {error.strerror}; choose another folder."
        ) from None
    with locked(out):
        yield


def clear(out: Path) -> None:
    """Make the folder, without the files of a run before."""
    out.mkdir(parents=True, exist_ok=True)
    for name in RUN_FILES:
        (out / name).unlink(missing_ok=True)
    for name in RUN_FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    clear_unfinished(out)


def clear_unfinished(out: Path) -> None:
    """Without what a kill left of a file that was being written, by any version."""
    for name in RUN_FILES:
        for path in (*out.glob(f".{name}.*"), *out.glob(f"{BEST}/.{name}.*")):
            if not path.is_dir():
                path.unlink(missing_ok=True)


def remove(out: Path) -> None:
    """Remove a run's files, and the folder if nothing else is in it."""
    clear(out)
    with contextlib.suppress(OSError):
        out.rmdir()


def sentence(error: OSError) -> str:
    """What the system refuses, in one sentence; the library's own as they are."""
    if error.errno is None or error.strerror is None:
        return str(error)
    name = error.filename if error.filename2 is None else error.filename2
    where = "" if name is None else f" {name}"
    return (
        f"cannot read or write{where}: {error.strerror}; make room, grant access, or "
        "choose another place."
    )


# ---- what a run made -----------------------------------------------------------------

_MODEL_FILES = (CONFIG_FILE, PARAMS_FILE, SCALING_FILE)
_MADE = (*_MODEL_FILES, METRICS_FILE, *(f"{BEST}/{name}" for name in _MODEL_FILES))


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Write `results.json`, and before it the SHA-256 of all that a run made."""
    content = _json_file(results)
    made = {name: (out / name).read_bytes() for name in _MADE if (out / name).exists()}
    lines = [
        f"{hashlib.sha256(raw).hexdigest()}  {name}\n"
        for name, raw in {**made, RESULTS_FILE: content}.items()
    ]
    write_atomically(out / SUMS_FILE, "".join(lines).encode())
    write_atomically(out / RESULTS_FILE, content)


def damaged(out: Path) -> list[str]:
    """The files of a run's results that are missing, or not what was written."""
    names = "|".join(map(re.escape, (*_MADE, RESULTS_FILE)))
    line = rf"([0-9a-f]{{64}})  ({names})\n"
    sums = _read_or_nothing(out / SUMS_FILE).decode(errors="replace")
    if not re.fullmatch(rf"({line})*[0-9a-f]{{64}}  {RESULTS_FILE}\n", sums):
        return [SUMS_FILE]
    return [
        name
        for sha256, name in re.findall(line, sums)
        if hashlib.sha256(_read_or_nothing(out / name)).hexdigest() != sha256
    ]


def _read_or_nothing(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


# ---- JSON ----------------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
    """A file of JSON for people to read, whole or not at all."""
    write_atomically(path, _json_file(value))


def _json_file(value: Any) -> bytes:
    return (to_json(value, indent=2) + "\n").encode()


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A file of a line of JSON a row, whole or not at all."""
    write_atomically(path, "".join(to_json(row) + "\n" for row in rows).encode())


def append(path: Path, row: dict[str, Any]) -> None:
    """One more line of JSON."""
    with path.open("a") as file:
        file.write(to_json(row) + "\n")


def to_json(value: Any, **options) -> str:
    """JSON in which what is not finite is null: NaN is no JSON."""

    def clean(value):
        if isinstance(value, dict):
            return {name: clean(item) for name, item in value.items()}
        if isinstance(value, float) and not np.isfinite(value):
            return None
        return value

    return json.dumps(clean(value), allow_nan=False, **options)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that `append` wrote; none where there is no file.

    Raises:
      ValueError: for a line that is no JSON object.
    """
    rows = whole_rows(path)
    if path.exists() and len(rows) != len(path.read_bytes().splitlines()):
        raise ValueError(
            f"{path} must have a JSON object on each line, but line {len(rows) + 1} is "
            "none; restore a copy, or go on with `jaxae train --resume`."
        )
    return rows


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """The rows before the first line that is no JSON object, as one that a kill cut."""
    if not path.exists():
        return []
    rows = map(_parsed, path.read_bytes().splitlines())
    return list(itertools.takewhile(lambda row: isinstance(row, dict), rows))


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# ---- config.json ---------------------------------------------------------------------


def read_config(path: Path) -> dict[str, Any]:
    """The `config.json` of a run.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is none of `jaxae train`, or that of a sweep.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give the config.json that `jaxae train` wrote."
        )
    if path.name == CONFIG_FILE:
        refuse_sweep(path.parent)
    config = _parsed(path.read_bytes())
    if not isinstance(config, dict) or not isinstance(config.get("options"), dict):
        raise ValueError(
            f'{path} is not the config.json of a run: a JSON object with "options" is '
            "needed, as `jaxae train` writes it."
        )
    return config


def of_data(config: dict[str, Any], name: str) -> Any:
    """What a `config.json` says of the run's data by that name; None if nothing."""
    data = config.get("data")
    return data.get(name) if isinstance(data, dict) else None


T = typing.TypeVar("T")


def as_options(kind: type[T], values: dict[str, Any], path: Path) -> T:
    """The options that a `config.json` holds; those that it lacks have their defaults.

    Raises:
      ValueError: naming one that is unknown, or of another type.
    """
    hints, found = typing.get_type_hints(kind), {}
    for name, value in values.items():
        if name not in hints:
            raise ValueError(
                f"{path} has the option {name!r}, which this version of jaxae, "
                f"{jaxae.__version__}, does not know; remove it."
            )
        found[name] = _as_a(hints[name], value)
        if found[name] is _OTHER:
            raise ValueError(
                f"{path} has the option {name!r} as {_checks.describe(value)}, which "
                f"is not {getattr(hints[name], '__name__', hints[name])}."
            )
    return kind(**found)


_OTHER: Any = object()


def _as_a(hint: Any, value: Any) -> Any:
    """The value as one of this type, or `_OTHER`."""
    if isinstance(hint, types.UnionType):
        parts = (_as_a(part, value) for part in typing.get_args(hint))
        return next((part for part in parts if part is not _OTHER), _OTHER)
    if hint is float and type(value) is int:  # JSON writes 1.0 as it likes
        with contextlib.suppress(OverflowError):
            return float(value)
    return value if type(value) is hint else _OTHER


def to_options(options: Any) -> dict[str, Any]:
    """What `config.json` keeps of them: not where they came from, nor where to."""
    values = dataclasses.asdict(options)
    for name in ("config", "out", "overwrite", "resume"):
        values.pop(name, None)
    return values


# A run that goes on may have others than its folder says.
_FREE = (
    *("epochs", "patience", "checkpoint_minutes", "checkpoint_steps"),
    *("keep_checkpoints", "memory_budget", "data_root"),
)


def differences(out: Path, options: Any) -> str:
    """Which options of a run are others than its folder's; "" where none can be named.

    Some numbers can be said in two ways, and files may lie elsewhere: what differs here
    need not make another run.
    """
    path = out / CONFIG_FILE
    try:
        was = as_options(type(options), read_config(path)["options"], path)
    except (ValueError, OSError):
        return ""
    was, now = to_options(was), to_options(options)
    return ", ".join(
        f"--{name.replace('_', '-')} is {given(was[name])} there and "
        f"{given(now[name])} here"
        for name in now
        if name not in _FREE and was[name] != now[name]
    )


def given(value: Any) -> str:
    """The value of an option, as an error tells it."""
    return "not given" if value is None else json.dumps(value)


def environment() -> dict[str, Any]:
    """What a run ran on, for its `config.json`."""
    import jaxlib
    import optax

    modules = (jaxae, jax, jaxlib, optax, np)
    versions = {module.__name__: module.__version__ for module in modules}
    return {
        "versions": {"python": sys.version.split()[0], **versions},
        "device": jax.devices()[0].device_kind,
    }
