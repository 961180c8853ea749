"""jaxae: autoencoders done exactly, in JAX.

z = g(W x + b), x_hat = o(W* z + c), a loss that is -log p(x | x_hat); parameters are
pytrees, everything on them is a pure function, and every gradient is also derived by
hand.
"""

import importlib
from typing import TYPE_CHECKING

from jaxae import (
    activations,
    corruptions,
    data,
    dead_latents,
    features,
    manual,
    metrics,
    observations,
    optimizers,
    penalties,
    recovery,
    schedules,
    sweeps,
    training,
)
from jaxae._checks import ArgumentError
from jaxae._version import __version__
from jaxae.autoencoder import (
    Autoencoder,
    TiedParams,
    UntiedParams,
    load,
    save,
    untie,
)
from jaxae.objective import Objective
from jaxae.sweeps import sweep
from jaxae.training import TrainConfig, train

if TYPE_CHECKING:
    from jaxae import dashboards, gradcheck, plots, report, tokens

__all__ = [
    "ArgumentError",
    "Autoencoder",
    "Objective",
    "TiedParams",
    "TrainConfig",
    "UntiedParams",
    "__version__",
    "activations",
    "corruptions",
    "dashboards",
    "data",
    "dead_latents",
    "features",
    "gradcheck",
    "load",
    "manual",
    "metrics",
    "observations",
    "optimizers",
    "penalties",
    "plots",
    "recovery",
    "report",
    "save",
    "schedules",
    "sweep",
    "sweeps",
    "tokens",
    "train",
    "training",
    "untie",
]


def __getattr__(name: str):
    # Imported when first used: nothing that trains needs them.
    if name in ("dashboards", "gradcheck", "plots", "report", "tokens"):
        return importlib.import_module(f"jaxae.{name}")
    raise AttributeError(f"module 'jaxae' has no attribute {name!r}")


def __dir__() -> list[str]:
    dunders = [name for name in globals() if name.startswith("__")]
    return sorted({*__all__, *dunders})
