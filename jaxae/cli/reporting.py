"""What a run says while it goes, and how it hears Ctrl-C."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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
        self._advance = self._stack.enter_context(_progress(self._num_epochs))
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
        self._advance(metrics["train/loss"], rate)
        self._started = time.perf_counter()


@contextlib.contextmanager
def _progress(num_epochs: int) -> Iterator[Callable[[float, float], None]]:
    """A bar with loss and examples per second; silent where nobody watches."""
    from rich import progress
    from rich.console import Console

    console = Console()
    bar = progress.Progress(
        progress.TextColumn("epoch"),
        progress.MofNCompleteColumn(),
        progress.BarColumn(),
        progress.TextColumn("loss {task.fields[loss]:.4f}"),
        progress.TextColumn("{task.fields[rate]:,.0f} examples/s"),
        progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=num_epochs, loss=float("nan"), rate=0.0)
        yield lambda loss, rate: bar.update(task, advance=1, loss=loss, rate=rate)
