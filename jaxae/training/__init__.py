"""Training: one pure function per epoch, and the host loop around it."""

from jaxae.training.config import TrainConfig
from jaxae.training.epochs import TrainState, epoch, init_state, step
from jaxae.training.host import train
from jaxae.training.loop import Run

__all__ = [
    "Run",
    "TrainConfig",
    "TrainState",
    "epoch",
    "init_state",
    "step",
    "train",
]
