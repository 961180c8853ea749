"""What a run says while it goes, and how it hears Ctrl-C."""

import contextlib
import functools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxae
from jaxae.cli import run_folder


def note(sentence: str) -> None:
    """What should be known, and is no reason to stop."""
    print(f"jaxae: note: {sentence}", file=sys.stderr)


class Interrupt:
    """Turns the first Ctrl-C or SIGTERM into a request, the second into an exception.

    A request is asked for where stopping is tidy. The default handler raises wherever
    Python happens to be, and an exception inside a callback of the runtime is lost.
    """

    def __init__(self):
        self.is_requested = False

    def __enter__(self) -> "Interrupt":
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def raise_if_requested(self) -> None:
        """Stop here, where nothing has been written yet."""
        if self.is_requested:
            raise KeyboardInterrupt

    def _request(self, number, frame) -> None:
        if self.is_requested:
            raise KeyboardInterrupt
        self.is_requested = True
        print(
            "\njaxae: stopping; again to stop at once.",
            file=sys.stderr,
        )


class Reporter:
    """Writes a run's lines as it goes, and shows progress.

    Args:
      out: the run folder.
      config: of the run.
      num_steps: of the whole run.
      history: a row for each epoch that has ended before; they are written anew, since
        what a kill left of their lines may go beyond the state that was saved.
    """

    def __init__(
        self,
        out: Path,
        config: jaxae.TrainConfig,
        num_steps: int,
        history: tuple[dict[str, float], ...],
    ):
        self._out, self._config, self._num_steps = out, config, num_steps
        self._epoch, self._step = len(history), 0
        self._stack = contextlib.ExitStack()
        rows = [_numbered(epoch, row) for epoch, row in enumerate(history, 1)]
        run_folder.write_rows(out / run_folder.METRICS_FILE, rows)
        timings = out / run_folder.TIMING_FILE
        run_folder.write_rows(timings, run_folder.whole_rows(timings)[: len(history)])

    def __enter__(self) -> "Reporter":
        show = progress(
            "epoch",
            self._config.num_epochs,
            "loss {task.fields[loss]:.4f}",
            "{task.fields[rate]:,.0f} examples/s",
            loss=float("nan"),
            rate=0.0,
        )
        self._show = self._stack.enter_context(show)
        self._show(completed=self._epoch)
        self._started = time.perf_counter()
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def on_part(self, step: int) -> None:
        """Show how far the run is."""
        self._show(completed=self._config.num_epochs * step / self._num_steps)

    def on_epoch(self, metrics: dict[str, float], state: Any) -> None:
        """Write an epoch's lines."""
        del state
        self._epoch += 1
        seconds = time.perf_counter() - self._started
        num_examples = self._config.batch_size * self._num_steps
        rate = num_examples / self._config.num_epochs / seconds
        run_folder.append(
            self._out / run_folder.METRICS_FILE, _numbered(self._epoch, metrics)
        )
        timing = {"epoch": self._epoch, "seconds": seconds, "examples_per_second": rate}
        run_folder.append(self._out / run_folder.TIMING_FILE, timing)
        self._show(completed=self._epoch, loss=metrics["train/loss"], rate=rate)
        self._started = time.perf_counter()


def _numbered(epoch: int, row: dict[str, float]) -> dict[str, float | int]:
    return {"epoch": epoch, **row}


@contextlib.contextmanager
def progress(
    unit: str, total: int | None, *columns: str, **fields: Any
) -> Iterator[Callable[..., None]]:
    """A bar with the time left; silent where nobody watches.

    Args:
      unit, total: what is counted, up to which number; None if that is said later.
      columns: what else is shown; `{task.fields[NAME]}` is what was said last.
      fields: their first values.

    Yields:
      `(advance=, completed=, total=, **fields) -> None`.
    """
    import rich.progress
    from rich.console import Console

    console = Console()
    bar = rich.progress.Progress(
        rich.progress.TextColumn(unit),
        rich.progress.MofNCompleteColumn(),
        rich.progress.BarColumn(),
        *map(rich.progress.TextColumn, columns),
        rich.progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        yield functools.partial(bar.update, bar.add_task("", total=total, **fields))
