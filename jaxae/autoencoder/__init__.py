"""The model: parameters, parametrizations, the pure functions on them, files."""

from jaxae.autoencoder.files import load, save
from jaxae.autoencoder.model import Autoencoder, Forward
from jaxae.autoencoder.parametrizations import (
    Parametrization,
    TiedParams,
    UntiedParams,
    tied,
    untie,
    untied,
    with_pre_bias,
    without_encoder_bias,
)

__all__ = [
    "Autoencoder",
    "Forward",
    "Parametrization",
    "TiedParams",
    "UntiedParams",
    "load",
    "save",
    "tied",
    "untie",
    "untied",
    "with_pre_bias",
    "without_encoder_bias",
]
