"""A run folder: which files it has, how they are written and read."""

import contextlib
import dataclasses
import json
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
from jaxae.autoencoder.files import CONFIG_FILE, PARAMS_FILE, write_atomically
from jaxae.checkpoints import locked
from jaxae.data.scaling import SCALING_FILE

METRICS_FILE = "metrics.jsonl"
TIMING_FILE = "timing.jsonl"  # everything that a clock says, apart
RESULTS_FILE = "results.json"
REPORT_FILE = "report.json"  # of gradcheck
FILTERS, DECODER_FILTERS = "filters.png", "decoder_filters.png"
RECONSTRUCTIONS, CURVES, USAGE = "reconstructions.png", "curves.png", "latents.png"
PICTURES = (FILTERS, DECODER_FILTERS, RECONSTRUCTIONS, CURVES, USAGE)
RUN_FILES = (
    *(CONFIG_FILE, PARAMS_FILE, SCALING_FILE, METRICS_FILE, TIMING_FILE),
    *(RESULTS_FILE, REPORT_FILE, *PICTURES),
)
CHECKPOINTS, BEST = "checkpoints", "best"
RUN_FOLDERS = (CHECKPOINTS, BEST)


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
    out = Path(name)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, but {out} is a file.")
    if not (overwrite or resume) and holds_run(out):
        raise ValueError(
            f"--out {out} holds a run already; choose another folder, replace it with "
            "--overwrite, or go on with --resume."
        )
    return out


def holds_run(out: Path) -> bool:
    """Whether the folder has a file or folder of a run."""
    return any((out / name).exists() for name in (*RUN_FILES, *RUN_FOLDERS))


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """The folder, made if need be, and kept from other processes.

    Raises:
      ValueError: if another process holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
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
    """Without what a kill left of a file that was being written."""
    for name in RUN_FILES:
        for path in out.glob(f".{name}.*"):
            path.unlink(missing_ok=True)


def remove(out: Path) -> None:
    """Remove a run's files, and the folder if nothing else is in it."""
    clear(out)
    with contextlib.suppress(OSError):
        out.rmdir()


# ---- JSON ----------------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
    """A file of JSON for people to read, whole or not at all."""
    write_atomically(path, (to_json(value, indent=2) + "\n").encode())


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
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        row = _parsed(line)
        if not isinstance(row, dict):
            raise ValueError(
                f"{path} must have a JSON object on each line, but line {number} is "
                "none; restore a copy, or go on with --resume."
            )
        rows.append(row)
    return rows


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# ---- config.json ---------------------------------------------------------------------

T = typing.TypeVar("T")


def read_config(path: Path) -> dict[str, Any]:
    """The `config.json` of a run.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is none of `jaxae train`.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give the config.json that `jaxae train` wrote."
        )
    config = _parsed(path.read_bytes())
    if not isinstance(config, dict) or not isinstance(config.get("options"), dict):
        raise ValueError(
            f'{path} is not the config.json of a run: a JSON object with "options" is '
            "needed, as `jaxae train` writes it."
        )
    return config


def as_options(kind: type[T], values: dict[str, Any], path: Path) -> T:
    """The options that a `config.json` holds; those that it lacks have their defaults.

    Raises:
      ValueError: naming one that is unknown, or of another type.
    """
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise ValueError(
                f"{path} has the option {name!r}, which this version of jaxae, "
                f"{jaxae.__version__}, does not know; remove it."
            )
        if not _is_of(value, hints[name]):
            raise ValueError(
                f"{path} has the option {name!r} as {value!r}, which is not "
                f"{getattr(hints[name], '__name__', hints[name])}."
            )
    return kind(**values)


def _is_of(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_is_of(value, part) for part in typing.get_args(hint))
    if hint is float:  # JSON writes 1.0 as it likes
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint


def to_options(options: Any) -> dict[str, Any]:
    """What `config.json` keeps of them: not where they came from, nor where to."""
    values = dataclasses.asdict(options)
    for name in ("config", "out", "overwrite", "resume"):
        del values[name]
    return values


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
