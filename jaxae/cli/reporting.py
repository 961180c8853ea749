"""What a run says while it goes: lines in its folder, a bar, an ear for Ctrl-C."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxae.cli import folder
from jaxae.training import TrainState


class Reporter:
    """Writes a run's lines as it goes, shows progress, and hears Ctrl-C."""

    def __init__(self, out: Path, num_epochs: int, num_examples: int):
        self.was_interrupted = False
        self._out, self._num_epochs, self._num_examples = out, num_epochs, num_examples
        self._epoch, self._stack = 0, contextlib.ExitStack()

    def __enter__(self) -> "Reporter":
        self._advance = self._stack.enter_context(_progress(self._num_epochs))
        self._stack.enter_context(_on_interrupt(self._interrupt))
        self._started = time.perf_counter()
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def on_epoch(self, metrics: dict[str, float], state: TrainState) -> bool:
        """Write an epoch's lines; true if training should stop."""
        del state
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
        return self.was_interrupted

    def _interrupt(self) -> None:
        if self.was_interrupted:
            raise KeyboardInterrupt
        self.was_interrupted = True
        print(
            "\njaxae: stopping after this epoch; Ctrl-C again to stop at once.",
            file=sys.stderr,
        )


@contextlib.contextmanager
def _on_interrupt(handle: Callable[[], None]) -> Iterator[None]:
    previous = signal.signal(signal.SIGINT, lambda *_: handle())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


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
