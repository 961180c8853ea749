"""The static configuration of training.

Each field declares its `Setting`: the constructor's checks, `compiled()`, a run's
fingerprint and the command-line options follow from it.
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxae import _checks, optimizers, penalties
from jaxae._checks import ArgumentError
from jaxae.objective import Objective
from jaxae.optimizers import Optimizer


class Setting(NamedTuple):
    """The metadata of one field of `TrainConfig`.

    Attributes:
      check: `(name, value) -> value`, converted if necessary (a NumPy integer to an
        int). Raises an ArgumentError of that name for an invalid value.
      in_program: whether the compiled program depends on it.
      may_change_on_resume: whether a run may be resumed with another value. False for
        fields that change results; these are part of the run's fingerprint.
      choices: the allowed values, if they are few.
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
    """Declare a field of `TrainConfig`; give either `check` or `choices`."""
    if choices is not None:
        listed = " or ".join(map(repr, choices))
        check = _must_be(listed, lambda v: isinstance(v, str) and v in choices)
    assert check is not None
    about = Setting(check, in_program, may_change_on_resume, choices)
    return dataclasses.field(default=default, metadata={"setting": about})


def _optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


def _must_be(words: str, is_valid: Callable[[Any], bool]) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if not is_valid(value):
            raise ArgumentError(name, f"must be {words}", repr(value))
        return value

    return check


def _function(words: str) -> Callable[[str, Any], Any]:
    must_be_callable = _must_be(words, callable)

    def check(name: str, value: Any) -> Any:
        try:
            hash(must_be_callable(name, value))
        except TypeError:
            raise ArgumentError(
                name,
                "must be hashable",
                repr(value),
                "make its class a frozen dataclass",
            ) from None
        return value

    return check


_check_transformation = _function(
    "a function hparams -> optax.GradientTransformation such as "
    "jaxae.optimizers.adam, or the name of one"
)


def _check_optimizer(name: str, value: Any) -> Optimizer:
    if isinstance(value, str):
        return optimizers.get(value)
    return _check_transformation(name, value)


def _is_minutes(value: Any) -> bool:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0


_positive_int = _checks.positive_int
_bool = _must_be("True or False", lambda value: isinstance(value, bool))
_metric = _must_be(
    "a metric's name such as 'validation/loss'", lambda value: isinstance(value, str)
)
_minutes = _must_be("a number of minutes of at least 0, or None", _is_minutes)
_after_update = _function("None or a function (state, p) -> state")
_host_setting = functools.partial(setting, in_program=False, may_change_on_resume=True)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The static configuration of training: frozen and hashable.

    Attributes:
      num_epochs: passes over the data.
      batch_size: examples a step; the last partial batch of an epoch is dropped.
      optimizer: `hparams -> optax.GradientTransformation`, or the name of one of
        `jaxae.optimizers`.
      gradient: "autodiff" for `jax.grad`, "manual" for the hand-derived gradient, or
        "auto" for the one that was measured faster for this kind of model:
        `gradient_of(objective)`.
      log_every: an epoch's training metrics are means over every `log_every`-th step.
      steps_per_epoch: the number of steps of an epoch if `data` is a source. None for
        arrays, whose length determines it.
      after_update: a pure function `(state, p) -> state`, called after every optimizer
        update with the new `TrainState` and the batch's forward pass, a
        `jaxae.terms.Pass`. It may change the parameters, the optimizer's state and the
        objective's state; changes of the key, the step and stopped_at are ignored. None
        for no change.
      on_nonfinite: what to do if a step makes the loss or the parameters non-finite.
        "stop" ends training. "skip" undoes the step, counts it in the metric
        `skipped_steps`, and continues.
      diagnostics: whether each epoch ends with an evaluation of the model: variance
        unexplained, bits, dead latents, gradient norms.
      monitor: the metric that chooses the best epoch; smaller is better.
      patience: number of epochs without improvement of `monitor` after which training
        stops; a monitor that is nan does not improve. None disables early stopping.
      checkpoint_steps: number of steps between checkpoints; None disables these.
      checkpoint_minutes: number of minutes between checkpoints; None disables these.
      keep_checkpoints: number of most recent checkpoints to keep.
      memory_budget: maximum size in bytes of data that are copied to the device. Of
        larger data, and of data that are not arrays, batches are read during training.
        It does not change results.

    Raises:
      ValueError: if a number is out of range, the optimizer is not a function or not
        hashable, or a choice is unknown.
    """

    # No runtime type check by jaxtyping: the checks below have shorter messages.
    __no_type_check__ = True

    num_epochs: int = _host_setting(20, _positive_int)
    batch_size: int = setting(128, _positive_int)
    optimizer: Optimizer = setting(optimizers.adam, _check_optimizer)
    gradient: str = setting("auto", choices=("auto", "autodiff", "manual"))
    log_every: int = setting(1, _positive_int)
    steps_per_epoch: int | None = setting(None, _optional(_positive_int))
    after_update: Callable[..., Any] | None = setting(None, _optional(_after_update))
    on_nonfinite: str = setting("stop", choices=("stop", "skip"))
    diagnostics: bool = setting(True, _bool, in_program=False)
    monitor: str = setting("validation/loss", _metric, in_program=False)
    patience: int | None = _host_setting(None, _optional(_positive_int))
    checkpoint_steps: int | None = _host_setting(None, _optional(_positive_int))
    checkpoint_minutes: float | None = _host_setting(10.0, _optional(_minutes))
    keep_checkpoints: int = _host_setting(2, _positive_int)
    memory_budget: int = _host_setting(2**30, _positive_int)

    def __post_init__(self):
        for name, about in settings().items():
            value = about.check(name, getattr(self, name))
            object.__setattr__(self, name, value)

    def gradient_of(self, objective: Objective) -> str:
        """The gradient that training this objective uses: "autodiff" or "manual".

        By hand where the latents have codes, of k entries, and k is small enough that a
        step by codes is faster on a CPU (benchmarks/results/sparse_codes_cpu.json): at
        most 256, and at most a 16th of the latents. By hand, too, with `aux_k`, whose
        derivatives take codes for any activation. Else by autodiff.
        """
        if self.gradient != "auto":
            return self.gradient
        ae, made_by = objective.ae, [p.made_by for p in objective.penalties]
        num_active = ae.activation.max_active or ae.latent_dim
        is_sparse = num_active <= min(ae.latent_dim // 16, 256)
        has_aux_k = any(made and made[0] is penalties.aux_k for made in made_by)
        is_by_hand = (objective.has_codes and is_sparse) or (
            has_aux_k and (ae.activation.init is None or ae.activation.vjp_theta)
        )
        return "manual" if is_by_hand else "autodiff"

    def compiled(self) -> "TrainConfig":
        """Return a copy with the fields that the compiled program depends on.

        All other fields have their defaults. Configurations whose copies are equal
        share one compiled program.
        """
        names = [name for name, about in settings().items() if about.in_program]
        return TrainConfig(**{name: getattr(self, name) for name in names})


@functools.cache
def settings() -> Mapping[str, Setting]:
    """Return the `Setting` of each field of `TrainConfig`, in their order."""
    fields = dataclasses.fields(TrainConfig)
    return MappingProxyType({f.name: f.metadata["setting"] for f in fields})
