"""When a run is saved, and how a signal waits for that."""

import contextlib
import math
import time

from jaxae.checkpoints import Checkpoints
from jaxae.training import progress as progress_module
from jaxae.training.config import TrainConfig
from jaxae.training.progress import Progress
from jaxae.training.signals import DeferredSignals

_PART_SECONDS = 0.5  # how long a run that can be saved goes on unasked
_FIRST_STEPS = 16


class Pace:
    """How many steps to take until the clock is read again: `_PART_SECONDS` of them."""

    def __init__(self, first_steps: int):
        self._asked_at, self._num_steps = time.monotonic(), first_steps

    def num_steps(self) -> int:
        """From now on, by how long those of the call before took."""
        now = time.monotonic()
        elapsed, self._asked_at = now - self._asked_at, now
        self._num_steps *= 2 if elapsed < _PART_SECONDS else 1
        if elapsed > 2 * _PART_SECONDS:
            self._num_steps = max(1, self._num_steps // 2)
        return self._num_steps


class Checkpointer:
    """Saves a run as its config says and at its end; does nothing without a folder.

    While it is entered, SIGINT and SIGTERM wait for the state to be saved.
    """

    def __init__(
        self, checkpoints: Checkpoints | None, config: TrainConfig, progress: Progress
    ):
        self._checkpoints, self._config = checkpoints, config
        self._saved = int(progress.state.step) if int(progress.state.step) else None
        self._saved_at, self._pace = time.monotonic(), Pace(_FIRST_STEPS)
        self._held = None if checkpoints is None else DeferredSignals()

    def __enter__(self) -> "Checkpointer":
        with contextlib.ExitStack() as stack:
            if self._held is not None:
                stack.enter_context(self._held)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    @property
    def is_interrupted(self) -> bool:
        """Whether a signal waits."""
        return self._held is not None and self._held.is_requested

    def num_steps(self, step: int) -> float | int:
        """How many steps from this one may be taken before the saver is asked again.

        About as many as take `_PART_SECONDS`; where parts end changes no result.
        """
        if self._checkpoints is None:
            return math.inf
        num_steps, every = self._pace.num_steps(), self._config.checkpoint_steps
        return num_steps if every is None else min(num_steps, every - step % every)

    def save_if_due(self, progress: Progress) -> None:
        """Save, where so many steps or minutes have passed."""
        if self._checkpoints is None or int(progress.state.step) == self._saved:
            return
        every, minutes = self._config.checkpoint_steps, self._config.checkpoint_minutes
        seconds = time.monotonic() - self._saved_at
        is_step = every is not None and int(progress.state.step) % every == 0
        if is_step or (minutes is not None and seconds >= 60 * minutes):
            self._save(progress)

    def finish(self, progress: Progress) -> None:
        """Save what is not yet, wait for it, and let a signal that waits go on."""
        if self._checkpoints is None:
            return
        if int(progress.state.step) != self._saved or progress.reason is not None:
            self._save(progress)
        self._checkpoints.wait()
        if self._held is not None and self._held.is_requested:
            self._held.deliver()

    def _save(self, progress: Progress) -> None:
        assert self._checkpoints is not None
        progress_module.save(self._checkpoints, progress)
        self._saved, self._saved_at = int(progress.state.step), time.monotonic()
