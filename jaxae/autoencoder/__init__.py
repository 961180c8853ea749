"""The model: parameters, parametrizations, the pure functions on them, files."""

from jaxae.autoencoder.files import load, save
from jaxae.autoencoder.model import Autoencoder, Forward
from jaxae.autoencoder.parametrizations import (
    Parametrization,
    SkipParams,
    TiedParams,
    UntiedParams,
    aligned,
    skip,
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
    "SkipParams",
    "TiedParams",
    "UntiedParams",
    "aligned",
    "load",
    "save",
    "skip",
    "tied",
    "untie",
    "untied",
    "with_pre_bias",
    "without_encoder_bias",
]
