"""Ctrl-C and SIGTERM, which stop a command where it can stop cleanly."""

import signal
import sys
import threading

INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


class Interrupt:
    """Records the first Ctrl-C or SIGTERM as a request; the second raises.

    Training checks for the request where it can stop cleanly. The default handler
    raises at any line, and an exception inside a callback of the runtime is lost.
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
        """Raise KeyboardInterrupt if a signal has come."""
        if self.is_requested:
            raise KeyboardInterrupt

    def _request(self, number, frame) -> None:
        self.raise_if_requested()
        self.is_requested = True
        print("\njaxae: stopping; press Ctrl-C again to stop at once.", file=sys.stderr)
