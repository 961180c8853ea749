"""What is fixed while training."""

import dataclasses
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxae import _checks, optimizers
from jaxae.optimizers import Optimizer

GRADIENTS = ("autodiff", "manual")
ON_NONFINITE = ("stop", "skip")
# What the host alone reads: no part of the compiled program.
_HOST = (
    "num_epochs",
    "diagnostics",
    "monitor",
    "patience",
    "checkpoint_steps",
    "checkpoint_minutes",
    "keep_checkpoints",
    "memory_budget",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is fixed while training; static and hashable.

    Attributes:
      num_epochs: passes over the data.
      batch_size: examples a step; the last partial batch of an epoch is dropped.
      optimizer: `hparams -> optax.GradientTransformation`, or the name of one of
        `jaxae.optimizers`.
      gradient: "autodiff", or "manual" for the hand-derived one.
      log_every: an epoch's metrics are means over every so many of its steps.
      steps_per_epoch: for data that is a source; an array has its own.
      after_update: None, or a pure function `(state, p) -> state` of the `TrainState`
        after each update and the `jaxae.terms.Pass` of its batch, to change parameters
        or optimizer state other than by the gradient. Key and step stay as they are.
      on_nonfinite: "stop" at a step that makes loss or parameters non-finite, or
        "skip" it: it is undone and counted, and training goes on.
      diagnostics: whether each epoch ends with a look at the model: variance
        unexplained, bits, dead latents, gradient norms.
      monitor: the metric, smaller is better, whose best epoch is kept, where there is
        such a metric.
      patience: stop after so many epochs without a better `monitor`; None for never.
      checkpoint_steps: save every so many steps; None for never.
      checkpoint_minutes: save every so many minutes; None for never.
      keep_checkpoints: how many of the last are kept.
      memory_budget: bytes; data that are larger, or no arrays, stay where they lie, and
        batches are read from there. It changes no result.

    Raises:
      ValueError: for a number out of range, an optimizer that is no function, an
        unknown choice.
    """

    # jaxtyping leaves this constructor alone: it refuses bad fields in its own words.
    __no_type_check__ = True

    num_epochs: int = 20
    batch_size: int = 128
    optimizer: Optimizer = optimizers.adam
    gradient: str = "autodiff"
    log_every: int = 1
    steps_per_epoch: int | None = None
    after_update: Callable[..., Any] | None = None
    on_nonfinite: str = "stop"
    diagnostics: bool = True
    monitor: str = "validation/loss"
    patience: int | None = None
    checkpoint_steps: int | None = None
    checkpoint_minutes: float | None = 10.0
    keep_checkpoints: int = 2
    memory_budget: int = 2**30

    def __post_init__(self):
        self._as_ints("num_epochs", "batch_size", "log_every", "keep_checkpoints")
        self._as_ints("memory_budget")
        optional = ("steps_per_epoch", "patience", "checkpoint_steps")
        self._as_ints(*(name for name in optional if getattr(self, name) is not None))
        if isinstance(self.optimizer, str):
            object.__setattr__(self, "optimizer", optimizers.get(self.optimizer))
        if not callable(self.optimizer):
            raise ValueError(
                "optimizer must be a function hparams -> optax.GradientTransformation "
                "such as jaxae.optimizers.adam, or the name of one, got "
                f"{self.optimizer!r}."
            )
        if not (self.after_update is None or callable(self.after_update)):
            raise ValueError(
                "after_update must be a function (state, p) -> state or None, got "
                f"{self.after_update!r}."
            )
        _check_choice("gradient", self.gradient, GRADIENTS)
        _check_choice("on_nonfinite", self.on_nonfinite, ON_NONFINITE)
        if not isinstance(self.diagnostics, bool):
            raise ValueError(
                f"diagnostics must be True or False, got {self.diagnostics!r}."
            )
        if not isinstance(self.monitor, str):
            raise ValueError(
                "monitor must be a metric's name such as 'validation/loss', got "
                f"{self.monitor!r}."
            )
        if not (self.checkpoint_minutes is None or _is_time(self.checkpoint_minutes)):
            raise ValueError(
                "checkpoint_minutes must be a number of minutes of at least 0, or "
                f"None, got {self.checkpoint_minutes!r}."
            )

    def _as_ints(self, *names: str) -> None:
        for name in names:
            value = _checks.positive_int(name, getattr(self, name))
            object.__setattr__(self, name, value)

    def program(self) -> "TrainConfig":
        """The same, with what the compiled program does not depend on set aside."""
        fields = dataclasses.fields(self)
        aside: Any = {
            field.name: field.default for field in fields if field.name in _HOST
        }
        return dataclasses.replace(self, **aside)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        first, second = choices
        raise ValueError(f"{name} must be {first!r} or {second!r}, got {value!r}.")


def _is_time(value: Any) -> bool:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0
