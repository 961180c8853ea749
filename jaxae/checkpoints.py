"""What survives a kill: numbered states in a folder, each whole or not there.

orbax writes a state beside its place and renames it there, so that a kill leaves the
states before it untouched. Two things are added: a digest, since a flipped byte in a
compressed array may still be a valid number, and a fingerprint, which says in plain
words what made the state, since a state of another run must not be resumed.
"""

import contextlib
import gc
import hashlib
import inspect
import json
import logging
import os
import re
import shutil
import sys
import textwrap
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxae import _checks
from jaxae._files import expanded
from jaxae.autoencoder.files import digest

_NONE: Any = None  # no manager, for there is no folder yet
_UNFINISHED = ".orbax-checkpoint-tmp"  # part of the name of what a kill leaves behind


class OtherRunError(ValueError):
    """A folder holds the states of another run; `difference` says which field is."""

    def __init__(self, name: str, difference: str):
        super().__init__(
            f"{name} holds another run: {difference}; resume with the same, or choose "
            "another folder."
        )
        self.difference = difference


class Checkpoint(NamedTuple):
    """One state as it was saved."""

    step: int
    arrays: dict[str, Any]  # by name
    notes: dict[str, Any]  # plain JSON values


class Checkpoints:
    """The states of one run in one folder; a context manager that holds the folder.

    Args:
      directory: made when first saved to.
      fingerprint: JSON values that say what makes these states: model, data, versions.
      keep: how many of the last states are kept.

    Raises:
      ImportError: orbax-checkpoint is not installed.
      ValueError: on entering, if the folder is a file, or another process is using it.
    """

    def __init__(
        self, directory: str | os.PathLike[str], fingerprint: Mapping, *, keep: int = 2
    ):
        self._orbax = _import_orbax()
        # Absolute, for orbax refuses others.
        self._directory = expanded(directory).absolute()
        self._fingerprint, self._keep = _plain(fingerprint), keep
        self._stack, self._manager = contextlib.ExitStack(), _NONE

    def __enter__(self) -> "Checkpoints":
        if self._directory.exists():
            self._open()
        return self

    def __exit__(self, *exception) -> None:
        try:
            with _one_sentence(self._directory), self._stack:
                pass
        except OSError:
            if exception[0] is None:  # what went wrong first is what is told
                raise

    def save(self, step: int, arrays: Mapping[str, Any], notes: Mapping) -> None:
        """Save a state in the background; an older one may have to go.

        Raises:
          OSError: this or the save before it failed (disk full, folder read-only); the
            states before that are whole.
        """
        if self._manager is _NONE:
            self._make()
        # Copies: the arrays may be donated while they are being written.
        host = {name: np.array(array) for name, array in arrays.items()}
        about = _about(self._fingerprint, notes, host)
        args = self._orbax.args
        with _one_sentence(self._directory), _quiet():
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._manager.save(
                step,
                args=args.Composite(
                    arrays=args.StandardSave(host), about=args.JsonSave(about)
                ),
                force=True,
            )

    def wait(self) -> None:
        """Until what was saved is on disk.

        Raises:
          OSError: as `save`.
        """
        if self._manager is not _NONE:
            with _one_sentence(self._directory), _quiet():
                self._manager.wait_until_finished()

    def restore(
        self, like: Mapping[str, Any], maybe: Mapping[str, Any] | None = None
    ) -> Checkpoint | None:
        """The last state that is whole.

        Damaged states are told of in a RuntimeWarning, passed over and moved aside, to
        `damaged-STEP`: what cannot be read now may be read elsewhere.

        Args:
          like: an array for each that the state must have, of its shape and dtype;
            it is placed as this one, on whatever devices that is.
          maybe: the same for arrays that it may have; others come as NumPy's.

        Returns:
          None where there is no state.

        Raises:
          ValueError: for a state of another fingerprint, naming the field; or if every
            state is damaged.
        """
        damage = []
        for step in sorted(self._steps(), reverse=True):
            try:
                found = self._read(step, like, maybe or {})
            except _Damaged as error:
                damage.append(step)
                _warn(f"{self._directory / str(step)} is damaged ({error})")
            else:
                self._move_aside(damage)
                return found
        if damage:
            raise ValueError(
                f"checkpoint_dir {self._directory} holds no state that is whole: all "
                f"of {', '.join(map(str, damage))} are damaged; restore a copy, or "
                "remove the folder to start over."
            )
        return None

    def _move_aside(self, steps: list[int]) -> None:
        for step in steps:
            aside = self._directory / f"damaged-{step}"
            with _one_sentence(self._directory):
                if aside.is_dir():
                    shutil.rmtree(aside)
                aside.unlink(missing_ok=True)
                (self._directory / str(step)).rename(aside)
        if steps:
            self._manager.reload()

    def _steps(self) -> list[int]:
        if self._manager is _NONE:
            return []
        # A file in the place of a state is one that is damaged; orbax sees none.
        files = [path.name for path in self._directory.iterdir() if path.is_file()]
        strays = [int(name) for name in files if re.fullmatch("0|[1-9][0-9]*", name)]
        return [*self._manager.all_steps(), *strays]

    def _read(self, step: int, like: Mapping, maybe: Mapping) -> Checkpoint:
        if (self._directory / str(step)).is_file():
            raise _Damaged("a file and no folder")
        about = self._read_item(step, about=self._orbax.args.JsonRestore())
        with _damage():
            if about["words_sha256"] != _digest_words(about["words"]):
                raise ValueError("its words are not those that were saved")
        words = about["words"]
        _check_identity(self._directory, words["identity"], self._fingerprint)
        _check_arrays(self._directory, words["arrays"], like)
        places = {
            name: getattr(a, "sharding", None) for name, a in {**maybe, **like}.items()
        }
        target = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=places.get(name))
            for name, (dtype, shape) in words["arrays"].items()
        }
        arrays = self._read_item(step, arrays=self._orbax.args.StandardRestore(target))
        with _damage():
            if about["arrays_sha256"] != digest(arrays):
                raise ValueError("its numbers are not those that were saved")
        return Checkpoint(step, arrays, words["notes"])

    def _read_item(self, step: int, **item: Any) -> Any:
        (name,) = item
        with _damage(), _alone(), _quiet():
            args = self._orbax.args.Composite(**item)
            return self._manager.restore(step, args=args)[name]

    def _make(self) -> None:
        with _one_sentence(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
        self._open()

    def _open(self) -> None:
        if not self._directory.is_dir():
            raise ValueError(
                f"checkpoint_dir must be a folder, but {self._directory} is a file."
            )
        self._stack.enter_context(locked(self._directory))
        # Saving goes on in the background, and so may fail at any time.
        self._stack.enter_context(_silent())
        self._stack.enter_context(_alone())
        for path in self._directory.glob(f"*{_UNFINISHED}*"):
            shutil.rmtree(path, ignore_errors=True)
        options = self._orbax.CheckpointManagerOptions(max_to_keep=self._keep)
        with _one_sentence(self._directory), _quiet():
            self._manager = self._orbax.CheckpointManager(
                self._directory, options=options
            )
        self._stack.callback(self._close)

    def _close(self) -> None:
        with _quiet():
            self._manager.close()


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a folder; the system lets go of it however this process ends.

    Raises:
      ValueError: if another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{directory} is in use by another process; wait for it, or choose "
                "another folder."
            ) from None
        yield
    finally:
        os.close(handle)


class _Damaged(Exception):
    """Why a state cannot be read."""


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # broken bytes raise a dozen types
        raise _Damaged(_why(error)) from error


def _why(error: BaseException) -> str:
    """In a few words what the system, or the file's reader, said first."""
    while error.__cause__ is not None:
        error = error.__cause__
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code is not None:
        return os.strerror(int(code[1]))
    text, *_ = _checks.first_line(error).split(" [tensorstore_spec")
    return textwrap.shorten(text.rstrip(":"), 200)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """What is raised is raised once: where one array fails, the others that still go on
    find nobody waiting, and Python would print a traceback for each of them when it
    drops it.
    """
    hook, before = sys.unraisablehook, sys.exception()

    def ignore_late(unraisable):
        is_late = isinstance(unraisable.exc_value, RuntimeError)
        if is_late and "loop is closed" in str(unraisable.exc_value):
            return
        if not (inspect.iscoroutine(unraisable.object) and _is_orbax(unraisable)):
            hook(unraisable)

    sys.unraisablehook = ignore_late
    try:
        yield
    except Exception as error:
        time.sleep(_LATE_SECONDS)
        _drop_frames(error, before)
        raise
    finally:
        sys.unraisablehook = hook


_LATE_SECONDS = 0.2


def _is_orbax(unraisable) -> bool:
    return f"{os.sep}orbax{os.sep}" in unraisable.object.cr_code.co_filename


def _drop_frames(error: BaseException | None, before: BaseException | None) -> None:
    """Drop now, and not when it happens, what the tracebacks of an error refer to.

    Args:
      error: it and its causes.
      before: the caller's own, which was being handled; it is left as it is.
    """
    while error is not None and error is not before:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()


@contextlib.contextmanager
def _one_sentence(directory: Path) -> Iterator[None]:
    """What goes wrong while writing is an OSError of one sentence."""
    try:
        with _alone():
            yield
    except Exception as error:  # a full disk raises half a dozen types
        raise OSError(
            f"cannot save to checkpoint_dir {directory}: {_why(error)}; the states "
            "saved before are whole: make room or grant access, and resume."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's warnings and log."""
    with _silent(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the library's log, which repeats what is raised."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _import_orbax() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own dependencies
            import orbax.checkpoint
    except ImportError as error:
        raise _checks.extra(
            "checkpoint_dir", "orbax-checkpoint", "checkpoints"
        ) from error
    return orbax.checkpoint


def _plain(value: Any) -> Any:
    """As JSON gives it back: tuples are lists, keys are strings."""
    return json.loads(json.dumps(value))


def _about(fingerprint: Any, notes: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """The words of a state, and the digests of words and numbers."""
    shapes = {name: [str(a.dtype), a.shape] for name, a in arrays.items()}
    words = _plain({"identity": fingerprint, "notes": notes, "arrays": shapes})
    return {
        "words": words,
        "words_sha256": _digest_words(words),
        "arrays_sha256": digest(arrays),
    }


def _digest_words(words: Any) -> str:
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()


def _check_identity(directory: Path, saved: Any, now: Any) -> None:
    """Refuse a state of another run, naming the first field that differs."""
    for name, found, wanted in differences(saved, now):
        difference = f"{name} is {found} there and {wanted} here"
        raise OtherRunError(f"checkpoint_dir {directory}", difference)


def _check_arrays(directory: Path, saved: Mapping, like: Mapping[str, Any]) -> None:
    """Refuse a state that lacks an array that is needed, or has it in another form."""
    wanted = {name: _checks.describe(array) for name, array in like.items()}
    found = {name: f"{dtype}{shape}" for name, (dtype, shape) in saved.items()}
    _check_identity(directory, {name: found.get(name) for name in wanted}, wanted)


def differences(saved: Any, now: Any, name: str = "") -> Iterator[tuple]:
    """The name of every field that differs, and what it is in each, as JSON."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in {**now, **saved}:
            inner = f"{name}.{key}" if name else key
            yield from differences(saved.get(key), now.get(key), inner)
    elif saved != now:
        yield name, json.dumps(saved), json.dumps(now)


def _warn(sentence: str) -> None:
    warnings.warn(
        f"{sentence}; the state before it is tried.", RuntimeWarning, stacklevel=4
    )
