"""SIGINT and SIGTERM, held back until the state is safe."""

import signal
import threading
from typing import Any

_HELD = (signal.SIGINT, signal.SIGTERM)


class DeferredSignals:
    """Holds the first SIGINT or SIGTERM back, until `deliver`; a second one interrupts.

    The default handlers end the program wherever it happens to be. Here the one who
    asks first brings the state to a safe place, and then delivers the signal to
    whatever would have had it. Outside the main thread nothing can be held.
    """

    def __enter__(self) -> "DeferredSignals":
        self.number: int | None = None
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in _HELD:
                # What is ignored (nohup) or not Python's to restore stays as it is.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._hold)
        return self

    def __exit__(self, *exception) -> None:
        self._restore()

    @property
    def is_requested(self) -> bool:
        """Whether a signal waits."""
        return self.number is not None

    def deliver(self) -> None:
        """Let the signal that waits have its effect; returns if that is to go on."""
        self._restore()
        assert self.number is not None
        signal.raise_signal(self.number)

    def _hold(self, number, frame) -> None:
        if self.is_requested:
            raise KeyboardInterrupt
        self.number = number

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
