"""Where results may be written: not over a file of a run, a sweep or a model."""

import itertools
import os
from fnmatch import fnmatch
from pathlib import Path

from jaxae._files import expanded
from jaxae.autoencoder.files import LANES_FILE
from jaxae.cli import run_folder

_FILES = (
    *(*run_folder.RUN_FILES, run_folder.SPACE_FILE, run_folder.CURVES_FILE, LANES_FILE),
    *(*run_folder.TABLES.values(), run_folder.MAP, run_folder.PARALLEL, "by_*.png"),
)
_STATES = (
    run_folder.CHECKPOINTS,
    run_folder.LANES,
)  # folders in which every file counts
_FOLDERS = (*_STATES, run_folder.BEST, run_folder.TOP)
# Few other folders have files of these names: a user's own may have a config.json.
_MARKS = (
    *(run_folder.PARAMS_FILE, run_folder.SCALING_FILE, run_folder.METRICS_FILE),
    *(run_folder.TIMING_FILE, run_folder.LANES),
)


def check_output(
    name: str, run: str, suffix: str = "", data: str | None = None
) -> Path:
    """The file `--output` of that name, if it may be written.

    Args:
      name: of the file.
      run: the run folder that is used.
      suffix: that the name must have.
      data: the file that is read.

    Raises:
      ValueError: another suffix; no file; the data or a file of any run, sweep, model
        or checkpoint folder, by whatever name.
      FileNotFoundError: no folder to write it to.
    """
    path = Path(name)
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
    if (home := owner(path)) is None:
        # By another name: a hard link, or capitals where the disk ignores them.
        inside = (file for name in _FOLDERS for file in Path(run, name).rglob("*"))
        files = itertools.chain(Path(run).glob("*"), inside)
        same = (file for file in files if _is_same_file(path, file))
        home = next(filter(None, map(owner, same)), None)
    if home is not None:
        raise ValueError(
            f"--output {path} is a file of the run, sweep or model in {home}, which it "
            "would replace; name another file."
        )
    return path


def check_folder(out: Path) -> None:
    """Refuse an `--out` that is a part of another run or sweep, such as its `best`.

    Raises:
      ValueError: naming the run.
    """
    if (home := owner(out, _FOLDERS)) is not None:
        raise ValueError(
            f"--out {out} is a part of the run or sweep in {home}, which it would "
            "replace; choose another folder."
        )


def check_inputs(out: Path, **inputs: str | None) -> None:
    """Refuse to read what `--overwrite` would then remove.

    Args:
      out: the folder that is replaced.
      inputs: by option, the file or folder that is read.

    Raises:
      ValueError: naming the option.
    """
    home = os.path.realpath(out)
    for option, name in inputs.items():
        if name is None:
            continue
        path = Path(os.path.realpath(expanded(name)))
        parts = path.relative_to(home).parts if path.is_relative_to(home) else ("..",)
        if not parts or parts[0] in (*_FOLDERS, *_FILES):
            raise ValueError(
                f"--out {out} would replace {name}, which --{option} reads; choose "
                "another folder."
            )


def owner(path: Path, folders: tuple[str, ...] = _STATES) -> Path | None:
    """The folder of a run, sweep, model or checkpoints to which a path belongs.

    Args:
      path: of a file or folder, which need not exist; links are followed.
      folders: names of those in which everything belongs to the run.
    """
    path = Path(os.path.realpath(path))
    for home in path.parents:
        first, *below = path.relative_to(home).parts
        if first.isdecimal() and (home / first / "about").is_dir():  # a saved state
            return home
        is_file = not below and any(fnmatch(first, name) for name in _FILES)
        if is_file or first in folders:
            if any((home / mark).exists() for mark in _MARKS):
                return home
    return None


def _is_same_file(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)
