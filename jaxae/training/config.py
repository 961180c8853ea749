"""What is fixed while training."""

from dataclasses import dataclass

from jaxae import _checks, optimizers
from jaxae.optimizers import Optimizer

GRADIENTS = ("autodiff", "manual")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is fixed while training; static and hashable.

    Attributes:
      num_epochs: passes over the data.
      batch_size: examples a step; the last partial batch of an epoch is dropped.
      optimizer: `hparams -> optax.GradientTransformation`.
      gradient: "autodiff", or "manual" for the hand-derived one.
      log_every: metrics are computed at every so many steps of an epoch.
      steps_per_epoch: for data that is a source; an array has its own.

    Raises:
      ValueError: for a number below 1, an optimizer that is no function, an unknown
        gradient.
    """

    # jaxtyping leaves this constructor alone: it refuses bad fields in its own words.
    __no_type_check__ = True

    num_epochs: int = 20
    batch_size: int = 128
    optimizer: Optimizer = optimizers.adam
    gradient: str = "autodiff"
    log_every: int = 1
    steps_per_epoch: int | None = None

    def __post_init__(self):
        for name in ("num_epochs", "batch_size", "log_every", "steps_per_epoch"):
            value = getattr(self, name)
            if name != "steps_per_epoch" or value is not None:
                object.__setattr__(self, name, _checks.positive_int(name, value))
        if not callable(self.optimizer):
            raise ValueError(
                "optimizer must be a function hparams -> optax.GradientTransformation "
                f"such as jaxae.optimizers.adam, got {self.optimizer!r}."
            )
        if self.gradient not in GRADIENTS:
            raise ValueError(
                f"gradient must be 'autodiff' or 'manual', got {self.gradient!r}."
            )
