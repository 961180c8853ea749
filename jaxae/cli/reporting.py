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

from jaxae.cli import folder


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
            "\njaxae: stopping at the next epoch's end; again to stop at once.",
            file=sys.stderr,
        )


class Reporter:
    """Writes a run's lines as it goes, and shows progress.

    Leaves nothing of an unfinished run behind when an exception ends it.
    """

    def __init__(self, out: Path, num_epochs: int, num_examples: int):
        self._out, self._num_epochs, self._num_examples = out, num_epochs, num_examples
        self._epoch, self._stack = 0, contextlib.ExitStack()

    def __enter__(self) -> "Reporter":
        show = progress(
            "epoch",
            self._num_epochs,
            "loss {task.fields[loss]:.4f}",
            "{task.fields[rate]:,.0f} examples/s",
            loss=float("nan"),
            rate=0.0,
        )
        self._show = self._stack.enter_context(show)
        self._started = time.perf_counter()
        return self

    def __exit__(self, kind, *exception) -> None:
        self._stack.close()
        if kind is not None and self._epoch > 0:
            folder.remove(self._out)

    def on_epoch(self, metrics: dict[str, float]) -> None:
        """Write an epoch's lines."""
        if self._epoch == 0:  # every refusal lies behind: now the disk may change
            folder.clear(self._out)
        self._epoch += 1
        seconds = time.perf_counter() - self._started
        rate = self._num_examples / seconds
        line = {"epoch": self._epoch, **metrics}
        folder.append(self._out / folder.METRICS_FILE, line)
        timing = {"epoch": self._epoch, "seconds": seconds, "examples_per_second": rate}
        folder.append(self._out / folder.TIMING_FILE, timing)
        self._show(advance=1, loss=metrics["train/loss"], rate=rate)
        self._started = time.perf_counter()


@contextlib.contextmanager
def progress(
    unit: str, total: int, *columns: str, **fields: Any
) -> Iterator[Callable[..., None]]:
    """A bar with the time left; silent where nobody watches.

    Args:
      unit, total: what is counted, up to which number.
      columns: what else is shown; `{task.fields[NAME]}` is what was said last.
      fields: their first values.

    Yields:
      `(advance, **fields) -> None`.
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
