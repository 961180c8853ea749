"""jaxae: autoencoders done exactly, in JAX.

z = g(W x + b), x_hat = o(W* z + c), a loss that is -log p(x | x_hat); parameters are
pytrees, everything on them is a pure function, and every gradient is also derived by
hand.
"""

from jaxae import (
    activations,
    corruptions,
    data,
    gradcheck,
    manual,
    metrics,
    observations,
    optimizers,
    penalties,
    plots,
    training,
)
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

__all__ = [
    "Autoencoder",
    "Objective",
    "TiedParams",
    "TrainConfig",
    "UntiedParams",
    "__version__",
    "activations",
    "corruptions",
    "data",
    "gradcheck",
    "load",
    "manual",
    "metrics",
    "observations",
    "optimizers",
    "penalties",
    "plots",
    "save",
    "sweep",
    "train",
    "training",
    "untie",
]
