"""orbax-checkpoint, without its log, its warnings and its late errors.

One failure in orbax prints many messages: its log repeats the exception, the exception
contains the specification of an array, and the other reads that run at that time fail
later, where no caller can catch their errors.
"""

import contextlib
import gc
import inspect
import logging
import os
import re
import sys
import textwrap
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

from jaxae import _checks

_LATE_SECONDS = 0.2  # how long to wait for the other reads to fail


def load() -> Any:
    """The module `orbax.checkpoint`, or an ImportError that says how to install it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own dependencies
            import orbax.checkpoint
    except ImportError as error:
        raise _checks.extra(
            "checkpoint_dir", "orbax-checkpoint", "checkpoints"
        ) from error
    return orbax.checkpoint


@contextlib.contextmanager
def without_log() -> Iterator[None]:
    """Silence the log of orbax, which repeats what orbax raises."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the log and the warnings of orbax."""
    with without_log(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def without_late_errors() -> Iterator[None]:
    """Silence the errors of concurrent reads that fail after the first one.

    No caller waits for these reads, so Python would print a traceback for each when it
    deletes it. Here they are deleted while Python's hook for that is replaced.
    """
    hook, handled = sys.unraisablehook, sys.exception()

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
        _clear_frames(error, handled)
        raise
    finally:
        sys.unraisablehook = hook


def _is_orbax(unraisable) -> bool:
    return f"{os.sep}orbax{os.sep}" in unraisable.object.cr_code.co_filename


def _clear_frames(error: BaseException | None, handled: BaseException | None) -> None:
    """Delete the variables of an error's traceback and of its causes.

    `handled`, the exception that the caller was handling, and its causes keep theirs.
    """
    while error is not None and error is not handled:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()


def reason_of(error: BaseException) -> str:
    """The first cause of an error in a few words, those of the system if it has any."""
    while error.__cause__ is not None:
        error = error.__cause__
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code is not None:
        return os.strerror(int(code[1]))
    text, *_ = _checks.first_line(error).split(" [tensorstore_spec")
    return textwrap.shorten(text.rstrip(":"), 200)
