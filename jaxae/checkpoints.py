"""Crash-safe checkpoints: a folder of numbered checkpoints, each written atomically.

orbax writes a checkpoint beside its final place and renames it, so that a kill leaves
earlier ones untouched. Here each gets a digest, since a flipped byte in a compressed
array may still decode to a number, and the fingerprint of its run, in JSON values.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxae import _orbax
from jaxae._checks import ArgumentError, describe
from jaxae._files import expanded, fcntl
from jaxae.autoencoder.files import digest

_UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of what a kill leaves behind
_REPLACED = "replaced-"  # in front of a step whose checkpoint is being saved again


class OtherRunError(ValueError):
    """A folder holds checkpoints of another run; `difference` says which field."""

    def __init__(self, name: str, difference: str):
        super().__init__(
            f"{name} holds another run: {difference}; resume with the same, or choose "
            "another folder."
        )
        self.difference = difference


class Checkpoint(NamedTuple):
    """One checkpoint, as it was saved."""

    step: int
    arrays: dict[str, Any]  # by name
    notes: dict[str, Any]  # JSON values


class Checkpoints:
    """The checkpoints of one run in one folder; a context manager that locks it.

    Args:
      directory: created on entering, and removed on leaving if nothing was saved.
      fingerprint: JSON values that identify the run: model, data, versions.
      keep: number of most recent checkpoints to keep.

    Raises:
      ImportError: orbax-checkpoint is not installed.
      ValueError: on entering, if the folder is a file, or another process uses it.
    """

    def __init__(
        self, directory: str | os.PathLike[str], fingerprint: Mapping, *, keep: int = 2
    ):
        self._orbax = _orbax.load()
        self._directory = expanded(directory).absolute()  # orbax rejects other paths
        self._fingerprint, self._keep = _as_json(fingerprint), keep
        self._manager: Any = None  # until it is entered

    def __enter__(self) -> "Checkpoints":
        with contextlib.ExitStack() as stack:
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        try:
            with _as_os_error(self._directory), self._stack:
                pass
        except OSError:
            if exception[0] is None:  # else the first error is the one to report
                raise

    def save(self, step: int, arrays: Mapping[str, Any], notes: Mapping) -> None:
        """Save a checkpoint in the background, and delete those beyond `keep`.

        If the step has a checkpoint, the call waits until the new one is on disk and
        has replaced it.

        Raises:
          OSError: this or the previous save failed (disk full, folder read-only);
            earlier checkpoints are intact.
        """
        # Copies: the caller may donate the arrays while they are being written.
        host_arrays = {name: np.array(array) for name, array in arrays.items()}
        about = _about(self._fingerprint, notes, host_arrays)
        with _as_os_error(self._directory), _orbax.quiet():
            self._manager.wait_until_finished()
            if step in self._manager.all_steps():
                self._replace(step, host_arrays, about)
            else:
                self._save(step, host_arrays, about)

    def _save(self, step: int, arrays: Mapping, about: Mapping) -> None:
        args = self._orbax.args
        items = args.Composite(
            arrays=args.StandardSave(arrays), about=args.JsonSave(about)
        )
        self._manager.save(step, args=items, force=True)

    def _replace(self, step: int, arrays: Mapping, about: Mapping) -> None:
        """Save beside the old checkpoint of the step, which a failure puts back."""
        (self._directory / str(step)).rename(self._directory / f"{_REPLACED}{step}")
        self._manager.reload()
        try:
            self._save(step, arrays, about)
            self._manager.wait_until_finished()
        finally:
            self._settle_replaced()
            self._manager.reload()

    def _settle_replaced(self) -> None:
        """Keep one of the two checkpoints of a step: the new one, if it is complete."""
        for old in self._directory.glob(f"{_REPLACED}*"):
            new = self._directory / old.name.removeprefix(_REPLACED)
            if new.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.rename(new)

    def wait(self) -> None:
        """Wait until every save is on disk.

        Raises:
          OSError: as `save`.
        """
        with _as_os_error(self._directory), _orbax.quiet():
            self._manager.wait_until_finished()

    def restore(
        self, like: Mapping[str, Any], optional: Mapping[str, Any] | None = None
    ) -> Checkpoint | None:
        """Return the last intact checkpoint; None if there is no checkpoint.

        A RuntimeWarning names each damaged checkpoint that is skipped. Damaged
        checkpoints are renamed to `damaged-STEP`, not deleted: another machine may
        still be able to read them.

        Args:
          like: arrays with the expected names, shapes and dtypes. Restored arrays get
            the same sharding.
          optional: like `like`, for arrays that may be absent. All other arrays are
            restored as NumPy arrays.

        Raises:
          ValueError: if a field of the fingerprint differs (the message names it), or
            if all checkpoints are damaged.
        """
        damaged = []
        for step in sorted(self._steps(), reverse=True):
            try:
                checkpoint = self._read(step, like, optional or {})
            except _DamagedError as error:
                damaged.append(step)
                warnings.warn(
                    f"{self._directory / str(step)} is damaged ({error}); trying the "
                    "previous checkpoint.",
                    RuntimeWarning,
                    stacklevel=3,
                )
            else:
                self._move_aside(damaged)
                return checkpoint
        if damaged:
            raise ArgumentError(
                "checkpoint_dir",
                f"{self._directory} holds no intact checkpoint: all of "
                f"{', '.join(map(str, damaged))} are damaged",
                advice="restore a copy, or remove the folder to start over",
            )
        return None

    def _move_aside(self, steps: list[int]) -> None:
        for step in steps:
            aside = self._directory / f"damaged-{step}"
            with _as_os_error(self._directory):
                if aside.is_dir():
                    shutil.rmtree(aside)
                aside.unlink(missing_ok=True)
                (self._directory / str(step)).rename(aside)
        if steps:
            self._manager.reload()

    def _steps(self) -> list[int]:
        # orbax lists folders only; a file named by a step is a damaged checkpoint.
        files = [path.name for path in self._directory.iterdir() if path.is_file()]
        steps = [int(name) for name in files if re.fullmatch("0|[1-9][0-9]*", name)]
        return [*self._manager.all_steps(), *steps]

    def _read(self, step: int, like: Mapping, optional: Mapping) -> Checkpoint:
        if (self._directory / str(step)).is_file():
            raise _DamagedError("expected a folder, found a file")
        about = self._read_item(step, about=self._orbax.args.JsonRestore())
        with _as_damaged():
            words = about["words"]
            if about["words_sha256"] != _json_sha256(words):
                raise ValueError("its text is not what was saved")
        self._check(words["identity"], self._fingerprint)
        forms = {
            name: f"{dtype}{shape}" for name, (dtype, shape) in words["arrays"].items()
        }
        expected = {name: describe(array) for name, array in like.items()}
        self._check({name: forms.get(name) for name in expected}, expected)
        shardings = {
            name: getattr(array, "sharding", None)
            for name, array in {**optional, **like}.items()
        }
        target = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=shardings.get(name))
            for name, (dtype, shape) in words["arrays"].items()
        }
        arrays = self._read_item(step, arrays=self._orbax.args.StandardRestore(target))
        with _as_damaged():
            if about["arrays_sha256"] != digest(arrays):
                raise ValueError("its arrays are not what was saved")
        return Checkpoint(step, arrays, words["notes"])

    def _read_item(self, step: int, **item: Any) -> Any:
        (name,) = item
        with _as_damaged(), _orbax.without_late_errors(), _orbax.quiet():
            args = self._orbax.args.Composite(**item)
            return self._manager.restore(step, args=args)[name]

    def _check(self, saved: Any, expected: Any) -> None:
        for name, there, here in differences(saved, expected):
            difference = f"{name} is {there} there and {here} here"
            raise OtherRunError(f"checkpoint_dir {self._directory}", difference)

    def _open(self, stack: contextlib.ExitStack) -> None:
        new_folders = self._create()
        stack.enter_context(locked(self._directory))
        stack.callback(_remove_empty, new_folders)
        # Until it is closed, because a save in the background may fail at any time.
        stack.enter_context(_orbax.without_log())
        stack.enter_context(_orbax.without_late_errors())
        for path in self._directory.glob(f"*{_UNFINISHED}*"):
            shutil.rmtree(path, ignore_errors=True)
        with _as_os_error(self._directory):
            self._settle_replaced()
        options = self._orbax.CheckpointManagerOptions(max_to_keep=self._keep)
        with _as_os_error(self._directory), _orbax.quiet():
            self._manager = self._orbax.CheckpointManager(
                self._directory, options=options
            )
        stack.callback(self._close)

    def _create(self) -> list[Path]:
        """Create the folder; return the folders that did not exist, innermost first."""
        if self._directory.exists() and not self._directory.is_dir():
            raise ArgumentError(
                "checkpoint_dir", f"must be a folder, but {self._directory} is a file"
            )
        candidates = (self._directory, *self._directory.parents)
        new_folders = [folder for folder in candidates if not folder.exists()]
        with _as_os_error(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
        return new_folders

    def _close(self) -> None:
        with _orbax.quiet():
            self._manager.close()


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):  # one that is not empty stays
        for folder in folders:
            folder.rmdir()


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock a folder; the system unlocks it however this process ends."""
    if fcntl is None:
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArgumentError(
                str(directory),
                "is in use by another process",
                advice="wait for it, or choose another folder",
            ) from None
        yield
    finally:
        os.close(handle)


def differences(saved: Any, now: Any, name: str = "") -> Iterator[tuple]:
    """Yield (name, saved value, value now) of the fields that differ, as JSON."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in {**now, **saved}:
            inner = f"{name}.{key}" if name else key
            yield from differences(saved.get(key), now.get(key), inner)
    elif saved != now:
        yield name, json.dumps(saved), json.dumps(now)


# ---- metadata ------------------------------------------------------------------------


def _about(fingerprint: Any, notes: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """Return the metadata of a checkpoint, and the digests of metadata and arrays."""
    shapes = {name: [str(a.dtype), a.shape] for name, a in arrays.items()}
    words = _as_json({"identity": fingerprint, "notes": notes, "arrays": shapes})
    return {
        "words": words,
        "words_sha256": _json_sha256(words),
        "arrays_sha256": digest(arrays),
    }


def _as_json(value: Any) -> Any:
    """Return the value as JSON reads it: tuples become lists, keys become strings."""
    return json.loads(json.dumps(value))


def _json_sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# ---- errors --------------------------------------------------------------------------


class _DamagedError(Exception):
    """Why a checkpoint cannot be read."""


@contextlib.contextmanager
def _as_damaged() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # damaged bytes raise a dozen types
        raise _DamagedError(_orbax.reason_of(error)) from error


@contextlib.contextmanager
def _as_os_error(directory: Path) -> Iterator[None]:
    try:
        with _orbax.without_late_errors():
            yield
    except Exception as error:  # a full disk raises half a dozen types
        raise OSError(
            f"cannot save to checkpoint_dir {directory}: {_orbax.reason_of(error)}; "
            "earlier checkpoints are intact: make room or grant access, then resume."
        ) from error
