"""Files on disk: paths from a user, and files that are whole or not there."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where what a kill left stays
    fcntl: Any = None  # type: ignore[no-redef]

_SUFFIX = ".jaxae-tmp"


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with `~` or `~user` replaced by that user's home folder.

    Raises:
      ValueError: if there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{path} starts with the home folder of a user whom this system does not "
            f"know; write the folder out, or ./{path} for a name that starts with ~."
        ) from None


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which appears at `path` when it is whole, or not at all.

    It is written beside its place, as `.NAME.RANDOM.jaxae-tmp`, and then renamed. Such
    files that a killed process left in the folder are removed first.
    """
    remove_unfinished(path.parent)
    handle, temporary = _create(path)
    # The lock ends when the last descriptor is closed: after the file has its name.
    lock = None if fcntl is None else os.dup(handle)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file; see `atomic`."""
    with atomic(path) as file:
        file.write(content)


def remove_unfinished(folder: Path) -> None:
    """Remove files of `atomic` that no process is writing any more.

    A writer holds a lock on its file, which the system releases however it ends.
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
        # A part of the name is enough to recognise it; a long one would get too long.
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
        os.close(handle)  # another process removed it before the lock was there


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
