"""A run folder: its files, what may be written to it, and how it is read."""

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
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
from jaxae.cli.options import CommandError, option_name
from jaxae.cli.sweep_file import AXES
from jaxae.data.scaling import SCALING_FILE, Scaling, save_scaling

METRICS_FILE = "metrics.jsonl"
CSV_FILE, LOGGERS = "metrics.csv", "loggers"  # of --log
TIMING_FILE = "timing.jsonl"  # all times, so that the other files can be compared
RESULTS_FILE = "results.json"
SUMS_FILE = "results.sha256"  # checksums of the results; `sha256sum -c` reads it too
REPORT_FILE = "report.json"  # of gradcheck
FILTERS, DECODER_FILTERS = "filters.png", "decoder_filters.png"
RECONSTRUCTIONS, CURVES, USAGE = "reconstructions.png", "curves.png", "latents.png"
PICTURES = (FILTERS, DECODER_FILTERS, RECONSTRUCTIONS, CURVES, USAGE)
PAGE = "report.html"  # of a run or a sweep
CHECKPOINTS = "checkpoints"
# Of a sweep.
SPACE_FILE, CURVES_FILE = "space.toml", "metrics.npz"
TABLES = {"csv": "table.csv", "parquet": "table.parquet"}
LANES, TOP = "lanes", "top"
MAP, PARALLEL = "map.png", "parallel.png"


class Contents(NamedTuple):
    """The names of the files and folders that a command may write or replace."""

    files: tuple[str, ...]
    folders: tuple[str, ...]

    def exist(self, out: Path) -> bool:
        """Whether the folder has one of them."""
        return any((out / name).exists() for name in (*self.files, *self.folders))


_MODEL_FILES = (CONFIG_FILE, PARAMS_FILE, SCALING_FILE)
RUN = Contents(  # of train or of gradcheck
    files=(
        *(*_MODEL_FILES, METRICS_FILE, TIMING_FILE, RESULTS_FILE, SUMS_FILE),
        *(REPORT_FILE, CSV_FILE, *PICTURES, PAGE),
    ),
    folders=(CHECKPOINTS, BEST, LOGGERS),
)
SWEEP = Contents(
    files=(
        *(CONFIG_FILE, TIMING_FILE, SPACE_FILE, CURVES_FILE, *TABLES.values()),
        *(MAP, PARALLEL, *(f"by_{name}.png" for name in AXES), PAGE),
    ),
    folders=(LANES, BEST, TOP),
)
# What gradcheck does not write.
OTHER_THAN_GRADCHECK = Contents(
    tuple({*RUN.files} - {CONFIG_FILE, TIMING_FILE, REPORT_FILE}),
    (CHECKPOINTS, BEST, LOGGERS, LANES),
)
_FILES = {*RUN.files, *SWEEP.files, LANES_FILE}
_FOLDERS = {*RUN.folders, *SWEEP.folders}
_CHECKPOINT_FOLDERS = {CHECKPOINTS, LANES}  # every file in them belongs to the run
# A user's own folder may have a config.json, but hardly a file of these names.
_MARKS = (PARAMS_FILE, SCALING_FILE, METRICS_FILE, TIMING_FILE, LANES)

# ---- where a run may be written ------------------------------------------------------


def check_out(name: str, overwrite: bool, resume: bool | None = None) -> Path:
    """The folder `--out` of that name, if train or gradcheck may write a run there.

    `resume` is None for gradcheck, which cannot resume.
    """
    if overwrite and resume:
        raise CommandError("--overwrite and --resume exclude each other; give one.")
    out = check_folder(name, RUN)
    if is_sweep(out) or (out / LANES / LANES_FILE).is_file():
        raise CommandError(
            f"--out {out} is the folder of a sweep; choose another folder."
        )
    if resume:
        _check_resumable(out)
    if overwrite:
        check_replaceable(out)
    if not (overwrite or resume) and RUN.exist(out):
        advice = "choose another folder, or replace it with --overwrite"
        if resume is not None:
            advice = (
                "choose another folder, replace it with --overwrite, or resume it with "
                "--resume"
            )
        raise CommandError(f"--out {out} holds a run already; {advice}.")
    return out


def check_folder(name: str, contents: Contents) -> Path:
    """The folder `--out` of that name, if these contents may be written there."""
    if not name:
        raise CommandError("--out must name a folder, got ''.")
    out = expanded(name)
    if out.exists() and not out.is_dir():
        raise CommandError(f"--out must be a folder, but {out} is a file.")
    if (owner := _owner_of(out, _FOLDERS)) is not None:
        raise CommandError(
            f"--out {out} is a part of the run or sweep in {owner}, which it would "
            "replace; choose another folder."
        )
    in_place = [(n, "folder", "file") for n in contents.files if (out / n).is_dir()]
    in_place += [(n, "file", "folder") for n in contents.folders if (out / n).is_file()]
    for entry, kind, expected in in_place:
        raise CommandError(
            f"--out {out} has a {kind} {entry}, which must be a {expected}; move it "
            "away, or choose another folder."
        )
    return out


# A run that has one of these has ended.
_FINAL = Contents((RESULTS_FILE, REPORT_FILE, SUMS_FILE), (BEST,))
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
        raise CommandError(
            f"--resume needs a run of `jaxae train`, which did not write {path}; "
            "choose another folder."
        )
    if _FINAL.exist(out):
        raise CommandError(
            f"--resume needs the checkpoints of the run in {checkpoints}, which holds "
            "none; restore them, replace the run with --overwrite, or choose another "
            "folder."
        )


# What orbax and `jaxae.checkpoints` write, and hidden files.
_CHECKPOINT_NAME = r"(damaged-)?\d+|.*\.orbax-checkpoint-tmp.*|\..*"


def check_replaceable(out: Path) -> None:
    """Raise if replacing a run would remove a folder that no run wrote."""
    has_mark = any((out / mark).exists() for mark in _MARKS)
    for folder in (CHECKPOINTS, BEST, LOGGERS, TOP):
        if not (out / folder).is_dir():
            continue
        names = [p.name for p in (out / folder).iterdir() if folder == CHECKPOINTS]
        if not has_mark or not all(re.fullmatch(_CHECKPOINT_NAME, n) for n in names):
            raise CommandError(
                f"--out {out} has a folder {folder} that no run wrote, which "
                "--overwrite would remove; move it away, or choose another folder."
            )


def check_inputs(out: Path, **inputs: str | None) -> None:
    """Raise if replacing a run would remove a file or folder that an option reads."""
    home = os.path.realpath(out)
    for option, name in inputs.items():
        if name is None:
            continue
        path = Path(os.path.realpath(expanded(name)))
        parts = path.relative_to(home).parts if path.is_relative_to(home) else ("..",)
        if not parts or parts[0] in _FOLDERS | _FILES:
            raise CommandError(
                f"--out {out} would replace {name}, which {option_name(option)} reads; "
                "choose another folder."
            )


def check_output(
    name: str, run: str, suffix: str = "", data: str | None = None
) -> Path:
    """The file `--output` of that name, if it may be written.

    It may not be the data or a file of any run, sweep, model or checkpoint folder, also
    through a link.
    """
    path = expanded(name)
    if not path.name or (suffix and path.suffix != suffix):
        kind = f"an {suffix} file" if suffix else "a file"
        raise CommandError(f"--output must name {kind}, got {name!r}.")
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device"
        raise CommandError(f"--output must name a file, but {path} is {kind}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--output {path}: there is no folder {path.parent}.")
    if data is not None and _is_same_file(path, expanded(data)):
        raise CommandError(
            f"--output {path} is the data itself, which it would replace; name another "
            "file."
        )
    if (owner := _owner_of_file(path, expanded(run))) is not None:
        raise CommandError(
            f"--output {path} is a file of the run, sweep or model in {owner}, which "
            "it would replace; name another file."
        )
    return path


def _owner_of_file(path: Path, run: Path) -> Path | None:
    """The folder of the run, sweep or model to which a file belongs."""
    if (owner := _owner_of(path, _CHECKPOINT_FOLDERS)) is not None:
        return owner
    # A hard link has another name, and so may a file on a disk that ignores case.
    below = ((run / folder).rglob("*") for folder in _FOLDERS)
    files = itertools.chain(run.glob("*"), *below)
    same = (file for file in files if _is_same_file(path, file))
    owners = (_owner_of(file, _CHECKPOINT_FOLDERS) for file in same)
    return next(filter(None, owners), None)


def _owner_of(path: Path, folders: set[str]) -> Path | None:
    """The folder of the run, sweep, model or checkpoints to which a path belongs.

    `folders` are the names of folders in which every file belongs to the run. The path
    need not exist; links are followed.
    """
    path = Path(os.path.realpath(path))
    for home in path.parents:
        first, *below = path.relative_to(home).parts
        if first.isdecimal() and (home / first / "about").is_dir():  # a checkpoint
            return home
        if (first in _FILES and not below) or first in folders:
            if any((home / mark).exists() for mark in _MARKS):
                return home
    return None


def _is_same_file(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)


# ---- making and clearing -------------------------------------------------------------


@contextlib.contextmanager
def make_and_lock(out: Path) -> Iterator[None]:
    """Make the folder if need be, and lock it against other processes."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"--out {out} cannot be made: {error.strerror}; choose another folder."
        ) from None
    with locked(out):
        yield


def clear(out: Path, *kinds: Contents) -> None:
    """Make the folder, and remove the contents of an earlier run or sweep from it."""
    out.mkdir(parents=True, exist_ok=True)
    for contents in kinds:
        for name in contents.files:
            if name != SPACE_FILE:  # it may be the one that was read
                (out / name).unlink(missing_ok=True)
        for name in contents.folders:
            shutil.rmtree(out / name, ignore_errors=True)
    clear_unfinished(out)


def clear_unfinished(out: Path) -> None:
    """Remove half-written files that a killed process of any version left."""
    for name in RUN.files:
        for path in (*out.glob(f".{name}.*"), *out.glob(f"{BEST}/.{name}.*")):
            if not path.is_dir():
                path.unlink(missing_ok=True)


# ---- results and their checksums -----------------------------------------------------

_SUMMED = (*_MODEL_FILES, METRICS_FILE, *(f"{BEST}/{name}" for name in _MODEL_FILES))


def save_model(
    out: Path, ae: Autoencoder, params: Any, scaling: Scaling, description: dict
) -> None:
    """Write a model, its `config.json` and the scaling of its data."""
    save(out, ae, params, run=description)
    save_scaling(out, scaling)


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Write `results.json`, and before it the SHA-256 of each file of results."""
    content = _indented(results)
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


def read_float64(place: str, read: Callable[[], Any], is_allowed: bool, problem: str):
    """The arrays that `read` returns; raise for float64 that is not allowed."""
    with jax.enable_x64(True):  # to load float64, and reject it in our own words
        value = read()
    dtypes = {getattr(leaf, "dtype", None) for leaf in jax.tree.leaves(value)}
    if not is_allowed and np.dtype("float64") in dtypes:
        raise CommandError(f"{place} holds float64 arrays, which {problem}.")
    return value


def _read_or_nothing(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


# ---- JSON, with null for numbers that are not finite: JSON has no NaN ----------------


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, indented; atomically."""
    write_atomically(path, _indented(value))


def _indented(value: Any) -> bytes:
    return f"{_to_json(value, indent=2)}\n".encode()


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a file with a line of JSON for each row; atomically."""
    write_atomically(path, "".join(f"{_to_json(row)}\n" for row in rows).encode())


def append(path: Path, row: dict[str, Any]) -> None:
    """Append a line of JSON to a file."""
    with path.open("a") as file:
        file.write(f"{_to_json(row)}\n")


def _to_json(value: Any, indent: int | None = None) -> str:
    def clean(value):
        if isinstance(value, dict):
            return {name: clean(item) for name, item in value.items()}
        is_nan = isinstance(value, float) and not np.isfinite(value)
        return None if is_nan else value

    return json.dumps(clean(value), allow_nan=False, indent=indent)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that `append` wrote; empty where there is no file."""
    rows = read_intact_rows(path)
    if path.exists() and len(rows) != len(path.read_bytes().splitlines()):
        raise CommandError(
            f"{path} must have a JSON object on each line, but line {len(rows) + 1} is "
            "none; restore a copy, or resume the run with `jaxae train --resume`."
        )
    return rows


def read_intact_rows(path: Path) -> list[dict[str, Any]]:
    """The rows before the first invalid line: a kill may leave half a line."""
    rows = map(parse_json, _read_or_nothing(path).splitlines())
    return list(itertools.takewhile(lambda row: isinstance(row, dict), rows))


def parse_json(text: bytes) -> Any:
    """The value of a JSON text; None where it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
