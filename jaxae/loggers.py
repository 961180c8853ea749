"""Loggers of a run's metrics: CSV files, TensorBoard, Weights & Biases, or your own.

A logger is an `on_epoch` callback of `jaxae.train`. It logs the metrics of each epoch
with `state.step`, the number of steps so far. After each epoch, the file of a CSV or
TensorBoard logger is complete and closed.
"""

import importlib.util
import os
import socket
import time
from csv import DictReader, DictWriter
from io import StringIO
from pathlib import Path
from typing import Any

from jaxae import _checks
from jaxae._checks import ArgumentError
from jaxae._files import expanded, write_atomically

__all__ = ["Logger", "csv", "log_to", "tensorboard", "wandb"]


class Logger:
    """An `on_epoch` callback that logs metrics to `target`, and never stops training.

    A context manager: at its end, also after an error or Ctrl-C, the target is closed
    by its method `finish`, if it has one.
    """

    def __init__(self, target: Any):
        self.target = target

    def __call__(self, metrics: dict[str, float], state: Any) -> None:
        """Log the metrics of an epoch."""
        self.target.log(metrics, step=int(state.step))

    def close(self) -> None:
        """Call `target.finish()`, if it has this method."""
        if hasattr(self.target, "finish"):
            self.target.finish()

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def log_to(target: Any) -> Logger:
    """A logger that calls `target.log(metrics, step=)` after each epoch.

    Args:
      target: a run of wandb or trackio, or an object of your own.

    Raises:
      ValueError: if the target has no method `log`.
    """
    if not callable(getattr(target, "log", None)):
        raise ArgumentError(
            "target",
            "must have a method log(metrics, step=)",
            _checks.describe(target),
            "give a run, such as that of wandb.init()",
        )
    return Logger(target)


# ---- CSV -----------------------------------------------------------------------------


def csv(path, *, resume=False) -> Logger:
    """A logger that writes a table: a row for each epoch, a column for each metric.

    The first column is "step". The file is written atomically, so it is always
    complete.

    Args:
      path: the file to write; its folder is made.
      resume: whether to continue the file if it exists. Its rows of the step that is
        logged and of later steps are replaced, so a resumed run repeats no row.

    Raises:
      ValueError: if the path is a folder, or a file without `resume`. After the first
        epoch, if the file to continue is not a log of the same metrics.
      OSError: if its folder cannot be made.
    """
    return Logger(_CsvFile(_path("path", path), _checks.boolean("resume", resume)))


class _CsvFile:
    def __init__(self, path: Path, resume: bool):
        if path.is_dir():
            raise ArgumentError("path", f"must be a file, but {path} is a folder")
        if path.exists() and not resume:
            raise ArgumentError(
                "path",
                f"must be a new file, but {path} exists",
                advice="choose another, or continue it with resume=True",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def log(self, metrics: dict[str, float], *, step: int) -> None:
        row = {"step": step, **metrics}
        rows = [*self._rows_before(step, list(row)), row]
        text = StringIO()
        writer = DictWriter(text, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, text.getvalue().encode())

    def _rows_before(self, step: int, columns: list[str]) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        reader = DictReader(StringIO(self.path.read_text(errors="replace")))
        if reader.fieldnames != columns:
            raise ArgumentError(
                str(self.path),
                f"must be a log of this run, with the columns {', '.join(columns)}",
                ", ".join(reader.fieldnames or ["none"]),
                "log to another file",
            )
        try:
            rows = list(reader)
            # The names and numbers that a row lacks are None.
            if any(None in (*row, *row.values()) for row in rows):
                raise ValueError(f"a row does not have {len(columns)} columns")
            return [row for row in rows if int(row["step"]) < step]
        except ValueError as error:
            raise ArgumentError(
                str(self.path), f"is damaged ({error})", advice="log to another file"
            ) from None


# ---- TensorBoard ---------------------------------------------------------------------


def tensorboard(directory) -> Logger:
    """A logger that writes scalars for TensorBoard. Needs the extra `loggers`.

    A resumed run logs to the same folder: TensorBoard then leaves out the events of the
    steps that are repeated.

    Args:
      directory: the folder of the event files; it is made.

    Raises:
      ImportError: if tensorboard is not installed.
      ValueError: if the directory is a file.
      OSError: if the folder cannot be made.
    """
    return Logger(_EventFile(_path("directory", directory)))


class _EventFile:
    """An event file, opened for each epoch, so that there is nothing to close."""

    def __init__(self, directory: Path):
        if importlib.util.find_spec("tensorboard") is None:
            raise _checks.extra("loggers.tensorboard", "tensorboard", "loggers")
        if directory.exists() and not directory.is_dir():
            raise ArgumentError(
                "directory", f"must be a folder, but {directory} is a file"
            )
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / _event_file_name()

    def log(self, metrics: dict[str, float], *, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        events = []
        if not self.path.exists():
            # TensorBoard leaves out earlier events of the steps from this one on.
            start = SessionLog(status=SessionLog.START)
            events = [
                Event(file_version="brain.Event:2"),
                Event(step=step, session_log=start),
            ]
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in metrics.items()
        ]
        _append(self.path, [*events, Event(step=step, summary=Summary(value=values))])


def _event_file_name() -> str:
    """A new name, as TensorBoard needs it; it reads files in the order of names."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    host, process = socket.gethostname(), os.getpid()
    return f"events.out.tfevents.{seconds:010d}.{host}.{process}.{nanoseconds:09d}"


def _append(path: Path, events: list) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    with path.open("ab") as file:
        writer = RecordWriter(file)
        for event in events:
            event.wall_time = time.time()
            writer.write(event.SerializeToString())


# ---- Weights & Biases ----------------------------------------------------------------


def wandb(**settings: Any) -> Logger:
    """A logger of a new run of Weights & Biases. Needs the extra `loggers`.

    The run starts now, and `close` finishes it:
    `with jaxae.loggers.wandb(project="p") as log: jaxae.train(..., on_epoch=log)`.

    Args:
      **settings: the arguments of `wandb.init`, such as mode="offline".

    Raises:
      ImportError: if wandb is not installed.
      ValueError: if wandb cannot start the run.
    """
    try:
        import wandb as package
    except ImportError as error:
        raise _checks.extra("loggers.wandb", "wandb", "loggers") from error
    try:
        return Logger(package.init(**settings))
    except Exception as error:  # wandb raises many types
        raise ValueError(
            f"wandb.init failed: {_checks.first_line(error)}; without an account, set "
            "the environment variable WANDB_MODE=offline."
        ) from error


# ---- paths ---------------------------------------------------------------------------


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ArgumentError(name, "must be a path", _checks.describe(value))
    return expanded(value)
