"""A run folder: its files, what may be written to it, and how it is read."""

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from jaxae._files import expanded, write_atomically
from jaxae.autoencoder import Autoencoder, save
from jaxae.autoencoder.files import (
    BEST,
    CONFIG_FILE,
    LANES_FILE,
    PARAMS_FILE,
    is_sweep,
)
from jaxae.checkpoints import locked
from jaxae.cli.options import option_name
from jaxae.data.scaling import SCALING_FILE, Scaling, save_scaling

METRICS_FILE = "metrics.jsonl"
TIMING_FILE = "timing.jsonl"  # all times, so that the other files can be compared
RESULTS_FILE = "results.json"
REPORT_FILE = "report.json"  # of gradcheck
FILTERS, DECODER_FILTERS = "filters.png", "decoder_filters.png"
RECONSTRUCTIONS, CURVES, USAGE = "reconstructions.png", "curves.png", "latents.png"
PICTURES = (FILTERS, DECODER_FILTERS, RECONSTRUCTIONS, CURVES, USAGE)
SUMS_FILE = "results.sha256"  # checksums of the results; `sha256sum -c` reads it too
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

# ---- where a run may be written ------------------------------------------------------

_ALL_FILES = (
    *(*RUN_FILES, SPACE_FILE, CURVES_FILE, LANES_FILE),
    *(*TABLES.values(), MAP, PARALLEL, "by_*.png"),
)
_CHECKPOINT_FOLDERS = (CHECKPOINTS, LANES)  # every file in them belongs to the run
_ALL_FOLDERS = (*_CHECKPOINT_FOLDERS, BEST, TOP)
# A user's own folder may have a config.json, but hardly a file of these names.
_MARKS = (PARAMS_FILE, SCALING_FILE, METRICS_FILE, TIMING_FILE, LANES)


def check_out(name: str, overwrite: bool, resume: bool = False) -> Path:
    """The folder `--out` of that name, if a run may be written there.

    Raises:
      ValueError: if it has no name, is a file, belongs to a sweep or to another run, or
        holds a run that may be neither overwritten nor resumed.
    """
    if overwrite and resume:
        raise ValueError("--overwrite and --resume exclude each other; give one.")
    out = check_folder(name, RUN_FILES)
    for folder in RUN_FOLDERS:
        if (out / folder).exists() and not (out / folder).is_dir():
            raise ValueError(
                f"--out {out} has a file {folder}, which must be a folder; move it "
                "away, or choose another folder."
            )
    if is_sweep(out) or (out / LANES / LANES_FILE).is_file():
        raise ValueError(
            f"--out {out} is the folder of a sweep; choose another folder."
        )
    if resume:
        _check_resumable(out)
    if overwrite:
        check_replaceable(out)
    if not (overwrite or resume) and holds_run(out):
        raise ValueError(
            f"--out {out} holds a run already; choose another folder, replace it with "
            "--overwrite, or resume it with --resume."
        )
    return out


def check_folder(name: str, files: Iterable[str]) -> Path:
    """The folder `--out` of that name, if these files may be written there.

    Raises:
      ValueError: if it has no name, is a file, is a part of another run or sweep, such
        as its `best`, or has a folder in the place of a file.
    """
    if not name:
        raise ValueError("--out must name a folder, got ''.")
    out = expanded(name)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, but {out} is a file.")
    if (owner := owner_of(out, _ALL_FOLDERS)) is not None:
        raise ValueError(
            f"--out {out} is a part of the run or sweep in {owner}, which it would "
            "replace; choose another folder."
        )
    for file in files:
        if (out / file).is_dir():
            raise ValueError(
                f"--out {out} has a folder {file}, which must be a file; move it "
                "away, or choose another folder."
            )
    return out


# A run that has one of these has ended.
_FINAL_FILES = (RESULTS_FILE, REPORT_FILE, SUMS_FILE, BEST)
# Keys of a config.json of gradcheck, a best epoch and a lane of a sweep.
_NOT_RESUMABLE = {"cases", "best", "trial"}


def _check_resumable(out: Path) -> None:
    """Raise if the folder holds no run of train, or a run without its checkpoints."""
    checkpoints = out / CHECKPOINTS
    names = [p.name for p in checkpoints.iterdir()] if checkpoints.is_dir() else []
    if any(map(str.isdigit, names)):  # a damaged checkpoint has another name
        return
    path = out / CONFIG_FILE
    config = parse_json(path.read_bytes()) if path.exists() else {"options": {}}
    is_run = isinstance(config, dict) and "options" in config
    if not is_run or _NOT_RESUMABLE & config.keys():
        raise ValueError(
            f"--resume needs a run of `jaxae train`, which did not write {path}; "
            "choose another folder."
        )
    if any((out / name).exists() for name in _FINAL_FILES):
        raise ValueError(
            f"--resume needs the checkpoints of the run in {checkpoints}, which holds "
            "none; restore them, replace the run with --overwrite, or choose another "
            "folder."
        )


def holds_run(out: Path) -> bool:
    """Whether the folder has a file or folder of a run."""
    return any((out / name).exists() for name in (*RUN_FILES, *RUN_FOLDERS))


# What orbax and `jaxae.checkpoints` write, and hidden files.
_CHECKPOINT_NAME = r"(damaged-)?\d+|.*\.orbax-checkpoint-tmp.*|\..*"


def check_replaceable(out: Path) -> None:
    """Raise if replacing a run would remove a folder that no run wrote.

    Raises:
      ValueError: the message names the folder.
    """
    for folder in (CHECKPOINTS, BEST, TOP):
        if (out / folder).is_dir() and _is_foreign(out, folder):
            raise ValueError(
                f"--out {out} has a folder {folder} that no run wrote, which "
                "--overwrite would remove; move it away, or choose another folder."
            )


def _is_foreign(out: Path, folder: str) -> bool:
    if not any((out / mark).exists() for mark in _MARKS):
        return True
    names = [path.name for path in (out / folder).iterdir()]
    is_other = not all(re.fullmatch(_CHECKPOINT_NAME, name) for name in names)
    return folder == CHECKPOINTS and is_other


def check_inputs(out: Path, **inputs: str | None) -> None:
    """Raise if replacing a run would remove a file or folder that is read.

    Args:
      out: the folder that is replaced.
      inputs: the file or folder that is read, by option.

    Raises:
      ValueError: the message names the option.
    """
    home = os.path.realpath(out)
    for name, input_name in inputs.items():
        if input_name is None:
            continue
        path = Path(os.path.realpath(expanded(input_name)))
        parts = path.relative_to(home).parts if path.is_relative_to(home) else ("..",)
        if not parts or parts[0] in (*_ALL_FOLDERS, *_ALL_FILES):
            raise ValueError(
                f"--out {out} would replace {input_name}, which {option_name(name)} "
                "reads; choose another folder."
            )


def check_output(
    name: str, run: str, suffix: str = "", data: str | None = None
) -> Path:
    """The file `--output` of that name, if it may be written.

    Args:
      name: the name of the file.
      run: the run folder that is read.
      suffix: the suffix that the name must have; any if empty.
      data: the file that is read.

    Raises:
      ValueError: for another suffix, for what is not a file, and for the data or a file
        of any run, sweep, model or checkpoint folder, also through a link.
      FileNotFoundError: if there is no folder to write it to.
    """
    path = expanded(name)
    if not path.name or (suffix and path.suffix != suffix):
        kind = f"an {suffix} file" if suffix else "a file"
        raise ValueError(f"--output must name {kind}, got {name!r}.")
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device"
        raise ValueError(f"--output must name a file, but {path} is {kind}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--output {path}: there is no folder {path.parent}.")
    if data is not None and _is_same_file(path, expanded(data)):
        raise ValueError(
            f"--output {path} is the data itself, which it would replace; name "
            "another file."
        )
    if (owner := owner_of(path, _CHECKPOINT_FOLDERS)) is None:
        # A hard link has another name, and so may a file on a disk that ignores case.
        home = expanded(run)
        below = ((home / folder).rglob("*") for folder in _ALL_FOLDERS)
        files = itertools.chain(home.glob("*"), *below)
        same = (file for file in files if _is_same_file(path, file))
        owners = (owner_of(file, _CHECKPOINT_FOLDERS) for file in same)
        owner = next(filter(None, owners), None)
    if owner is not None:
        raise ValueError(
            f"--output {path} is a file of the run, sweep or model in {owner}, which "
            "it would replace; name another file."
        )
    return path


def owner_of(path: Path, folders: tuple[str, ...]) -> Path | None:
    """The folder of a run, sweep, model or checkpoints to which a path belongs.

    Args:
      path: a path of a file or folder, which need not exist; links are followed.
      folders: names of the folders in which every file belongs to the run.
    """
    path = Path(os.path.realpath(path))
    for home in path.parents:
        first, *below = path.relative_to(home).parts
        if first.isdecimal() and (home / first / "about").is_dir():  # a checkpoint
            return home
        is_file = not below and any(fnmatch(first, name) for name in _ALL_FILES)
        if is_file or first in folders:
            if any((home / mark).exists() for mark in _MARKS):
                return home
    return None


def _is_same_file(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)


# ---- making and clearing -------------------------------------------------------------


@contextlib.contextmanager
def make_and_lock(out: Path) -> Iterator[None]:
    """Make the folder if need be, and lock it against other processes.

    Raises:
      ValueError: if another process uses it.
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
    """Make the folder, and remove the files of an earlier run from it."""
    out.mkdir(parents=True, exist_ok=True)
    for name in RUN_FILES:
        (out / name).unlink(missing_ok=True)
    for name in RUN_FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    clear_unfinished(out)


def clear_unfinished(out: Path) -> None:
    """Remove half-written files that a killed process of any version left."""
    for name in RUN_FILES:
        for path in (*out.glob(f".{name}.*"), *out.glob(f"{BEST}/.{name}.*")):
            if not path.is_dir():
                path.unlink(missing_ok=True)


# ---- results and their checksums -----------------------------------------------------

_MODEL_FILES = (CONFIG_FILE, PARAMS_FILE, SCALING_FILE)
_SUMMED = (*_MODEL_FILES, METRICS_FILE, *(f"{BEST}/{name}" for name in _MODEL_FILES))


def save_model(
    out: Path, ae: Autoencoder, params: Any, scaling: Scaling, description: dict
) -> None:
    """Write a model, its `config.json` and the scaling of its data."""
    save(out, ae, params, run=description)
    save_scaling(out, scaling)


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Write `results.json`, and before it the SHA-256 of each file of results."""
    content = _json_file(results)
    files = {n: (out / n).read_bytes() for n in _SUMMED if (out / n).exists()}
    lines = [
        f"{hashlib.sha256(raw).hexdigest()}  {name}\n"
        for name, raw in {**files, RESULTS_FILE: content}.items()
    ]
    write_atomically(out / SUMS_FILE, "".join(lines).encode())
    write_atomically(out / RESULTS_FILE, content)


def damaged_files(out: Path) -> list[str]:
    """The files of results that are missing, or differ from what was written."""
    names = "|".join(map(re.escape, (*_SUMMED, RESULTS_FILE)))
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
    """Write a JSON file, indented; atomically."""
    write_atomically(path, _json_file(value))


def _json_file(value: Any) -> bytes:
    return (to_json(value, indent=2) + "\n").encode()


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a file with a line of JSON for each row; atomically."""
    write_atomically(path, "".join(to_json(row) + "\n" for row in rows).encode())


def append(path: Path, row: dict[str, Any]) -> None:
    """Append a line of JSON to a file."""
    with path.open("a") as file:
        file.write(to_json(row) + "\n")


def to_json(value: Any, **options) -> str:
    """JSON, with null for numbers that are not finite: JSON has no NaN."""

    def clean(value):
        if isinstance(value, dict):
            return {name: clean(item) for name, item in value.items()}
        if isinstance(value, float) and not np.isfinite(value):
            return None
        return value

    return json.dumps(clean(value), allow_nan=False, **options)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that `append` wrote; empty where there is no file.

    Raises:
      ValueError: for a line that is not a JSON object.
    """
    rows = read_intact_rows(path)
    if path.exists() and len(rows) != len(path.read_bytes().splitlines()):
        raise ValueError(
            f"{path} must have a JSON object on each line, but line {len(rows) + 1} is "
            "none; restore a copy, or resume the run with `jaxae train --resume`."
        )
    return rows


def read_intact_rows(path: Path) -> list[dict[str, Any]]:
    """The rows before the first invalid line: a kill may leave half a line."""
    if not path.exists():
        return []
    rows = map(parse_json, path.read_bytes().splitlines())
    return list(itertools.takewhile(lambda row: isinstance(row, dict), rows))


def parse_json(text: bytes) -> Any:
    """The value of a JSON text; None where it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
