"""Paths from the user, and atomic writes of files."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where the files of killed processes are not removed
    fcntl: Any = None  # type: ignore[no-redef]

_SUFFIX = ".jaxae-tmp"


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with `~` or `~user` replaced by that user's home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{path} starts with the home folder of an unknown user; write the folder "
            f"out, or ./{path} for a name that starts with ~."
        ) from None


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears at `path` only when it is complete.

    It is written as `.NAME.RANDOM.jaxae-tmp` in the same folder and then renamed. Such
    files of killed processes are removed first.
    """
    remove_unfinished(path.parent)
    handle, temporary = _create(path)
    # The lock ends when the last descriptor is closed, which must be after the rename.
    lock = None if fcntl is None else os.dup(handle)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp creates private files
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file with this content; see `atomic`."""
    with atomic(path) as file:
        file.write(content)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of `atomic` that no process is writing.

    A writer holds a lock on its file, which the system releases when the process ends.
    """
    if fcntl is None:
        return
    for path in folder.glob(f".*{_SUFFIX}"):
        with contextlib.suppress(OSError), path.open("rb+") as file:  # another user's
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _create(path: Path) -> tuple[int, str]:
    """An empty file beside `path`, open and locked."""
    while True:
        # Not the full name, because file names have a maximal length.
        prefix = f".{path.name[:50]}."
        try:
            handle, temporary = tempfile.mkstemp(
                dir=path.parent, prefix=prefix, suffix=_SUFFIX
            )
        except OSError as error:
            error.filename = os.fspath(path)  # the name that the user knows
            raise
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(temporary):
            return handle, temporary
        os.close(handle)  # another process removed it before it was locked


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
