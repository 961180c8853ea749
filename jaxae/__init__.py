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
    from jaxae import (
        dashboards,
        formats,
        gradcheck,
        loggers,
        plots,
        report,
        sklearn,
        tokens,
    )

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
    "formats",
    "gradcheck",
    "load",
    "loggers",
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
    "sklearn",
    "sweep",
    "sweeps",
    "tokens",
    "train",
    "training",
    "untie",
]


# Nothing that trains needs these.
_IMPORTED_WHEN_USED = (
    "dashboards",
    "formats",
    "gradcheck",
    "loggers",
    "plots",
    "report",
    "sklearn",
    "tokens",
)


def __getattr__(name: str):
    if name in _IMPORTED_WHEN_USED:
        return importlib.import_module(f"jaxae.{name}")
    raise AttributeError(f"module 'jaxae' has no attribute {name!r}")


def __dir__() -> list[str]:
    dunders = [name for name in globals() if name.startswith("__")]
    return sorted({*__all__, *dunders})
