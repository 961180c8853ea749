"""The static configuration of training.

Each field of `TrainConfig` says once, through `setting`, which values it may have,
whether the compiled program depends on it, and whether it may change on resume. From
that follow the check on construction, `program()`, the fingerprint of a run, and the
options of the command line. To read it: `settings()["batch_size"].in_program`.
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxae import _checks, optimizers
from jaxae.optimizers import Optimizer


class Setting(NamedTuple):
    """What is known of one field of `TrainConfig`.

    Attributes:
      check: `(name, value) -> value`, converted where that is needed (a NumPy integer
        to an int); a ValueError that begins with that name for other values.
      in_program: whether the compiled program depends on it.
      may_change_on_resume: whether a run may be resumed with another value. False for
        all that changes results; it is then a part of the run's fingerprint.
      choices: the allowed values, where they are few.
    """

    check: Callable[[str, Any], Any]
    in_program: bool
    may_change_on_resume: bool
    choices: tuple[str, ...] | None = None


def setting(
    default: Any,
    check: Callable[[str, Any], Any] | None = None,
    *,
    in_program: bool = True,
    may_change_on_resume: bool = False,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A field of `TrainConfig`: its default, and its `Setting`.

    The defaults are the safe ones: a field that does not say otherwise is compiled in,
    and fixed for a run. Give either `check` or `choices`.
    """
    if choices is not None:
        check = functools.partial(_check_choice, choices=choices)
    assert check is not None
    about = Setting(check, in_program, may_change_on_resume, choices)
    return dataclasses.field(default=default, metadata={"setting": about})


def _optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        listed = " or ".join(map(repr, choices))
        raise _checks.ArgumentError(name, f"must be {listed}", repr(value))
    return value


def _check_optimizer(name: str, value: Any) -> Optimizer:
    if isinstance(value, str):
        return optimizers.get(value)
    if not callable(value):
        raise _checks.ArgumentError(
            name,
            "must be a function hparams -> optax.GradientTransformation such as "
            "jaxae.optimizers.adam, or the name of one",
            repr(value),
        )
    _check_hashable(name, value)
    return value


def _check_after_update(name: str, value: Any) -> Any:
    if not callable(value):
        raise _checks.ArgumentError(
            name, "must be None or a function (state, p) -> state", repr(value)
        )
    _check_hashable(name, value)
    return value


def _check_hashable(name: str, value: Any) -> None:
    try:
        hash(value)
    except TypeError:
        raise _checks.ArgumentError(
            name,
            "must be hashable",
            repr(value),
            "make its class a frozen dataclass",
        ) from None


def _check_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _checks.ArgumentError(name, "must be True or False", repr(value))
    return value


def _check_metric(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _checks.ArgumentError(
            name, "must be a metric's name such as 'validation/loss'", repr(value)
        )
    return value


def _check_minutes(name: str, value: Any) -> Any:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if value is not None and not (is_number and math.isfinite(value) and value >= 0):
        raise _checks.ArgumentError(
            name, "must be a number of minutes of at least 0, or None", repr(value)
        )
    return value


_positive_int = _checks.positive_int
_host_setting = functools.partial(setting, in_program=False, may_change_on_resume=True)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The static configuration of training: frozen and hashable.

    Attributes:
      num_epochs: passes over the data.
      batch_size: examples a step; the last partial batch of an epoch is dropped.
      optimizer: `hparams -> optax.GradientTransformation`, or the name of one of
        `jaxae.optimizers`.
      gradient: "autodiff", or "manual" for the hand-derived one.
      log_every: an epoch's metrics are means over every so many of its steps.
      steps_per_epoch: for data that is a source; for an array, its length decides.
      after_update: a pure function `(state, p) -> state` of the `TrainState` after each
        update and the `jaxae.terms.Pass` of its batch, to change parameters or
        optimizer state other than by the gradient; None for no change. The key, the
        step and stopped_at stay as they are.
      on_nonfinite: at a step that makes the loss or the parameters non-finite, "stop"
        ends training; "skip" undoes the step, counts it and continues.
      diagnostics: whether each epoch ends with an evaluation of the model: variance
        unexplained, bits, dead latents, gradient norms.
      monitor: the metric by which the best epoch is chosen; smaller is better.
      patience: number of epochs without improvement of `monitor` after which training
        stops; a monitor that is nan does not improve. None disables early stopping.
      checkpoint_steps: save a checkpoint every so many steps; None for never.
      checkpoint_minutes: save a checkpoint every so many minutes; None for never.
      keep_checkpoints: how many of the last checkpoints are kept.
      memory_budget: bytes; data that are larger, or that are no arrays, are not copied
        to the device: their batches are read as training goes. It changes no result.

    Raises:
      ValueError: for a number out of range, an optimizer that is no function, an
        unknown choice.
    """

    # Without jaxtyping's check of types, whose message is longer than ours.
    __no_type_check__ = True

    num_epochs: int = _host_setting(20, _positive_int)
    batch_size: int = setting(128, _positive_int)
    optimizer: Optimizer = setting(optimizers.adam, _check_optimizer)
    gradient: str = setting("autodiff", choices=("autodiff", "manual"))
    log_every: int = setting(1, _positive_int)
    steps_per_epoch: int | None = setting(None, _optional(_positive_int))
    after_update: Callable[..., Any] | None = setting(
        None, _optional(_check_after_update)
    )
    on_nonfinite: str = setting("stop", choices=("stop", "skip"))
    diagnostics: bool = setting(True, _check_bool, in_program=False)
    monitor: str = setting("validation/loss", _check_metric, in_program=False)
    patience: int | None = _host_setting(None, _optional(_positive_int))
    checkpoint_steps: int | None = _host_setting(None, _optional(_positive_int))
    checkpoint_minutes: float | None = _host_setting(10.0, _check_minutes)
    keep_checkpoints: int = _host_setting(2, _positive_int)
    memory_budget: int = _host_setting(2**30, _positive_int)

    def __post_init__(self):
        for name, about in settings().items():
            value = about.check(name, getattr(self, name))
            object.__setattr__(self, name, value)

    def program(self) -> "TrainConfig":
        """What the compiled program depends on; other fields have their defaults.

        Two configurations for which it is equal share one compiled program.
        """
        names = [name for name, about in settings().items() if about.in_program]
        return TrainConfig(**{name: getattr(self, name) for name in names})


@functools.cache
def settings() -> Mapping[str, Setting]:
    """What is known of each field of `TrainConfig`, in their order."""
    fields = dataclasses.fields(TrainConfig)
    return MappingProxyType({f.name: f.metadata["setting"] for f in fields})
