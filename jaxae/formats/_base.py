"""The record of a file format, and what is read from a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxae import _checks, activations
from jaxae.autoencoder import Autoencoder, parametrizations


class Model(NamedTuple):
    """A model that was read from a file of another library.

    Attributes:
      ae: the model.
      params: its parameters.
      metadata: what the file says that is not part of the function, such as the name of
        the language model; `formats.save` writes it back.
      folded: what was folded into the parameters, in words; empty if they are the
        file's own numbers.
    """

    ae: Autoencoder
    params: Any
    metadata: dict[str, Any]
    folded: tuple[str, ...] = ()


class Format(NamedTuple):
    """A file format of another library.

    Attributes:
      name: such as "saelens".
      files: the names of its files, as patterns such as "*.pt"; a download fetches
        these alone.
      recognizes: `path -> bool`, whether a file or folder has this format.
      read: `(path, inputs_normalized) -> Model`.
      write: `(folder, ae, params, metadata) -> None`, which creates the folder; None
        for a format that is only read.
      scale_file: the file of `files` that holds a scale of the inputs, which `read`
        folds into the model and `write` never writes; None for a format without one.
      usage: Python code that loads the folder "FOLDER" in the other library, for the
        model card; None if `write` writes the card.
    """

    name: str
    files: tuple[str, ...]
    recognizes: Callable[[Path], bool]
    read: Callable[[Path, bool], Model]
    write: Callable[[Path, Autoencoder, Any, dict[str, Any]], None] | None = None
    scale_file: str | None = None
    usage: str | None = None


def has_files(*names: str) -> Callable[[Path], bool]:
    """Whether a folder has all of these files, for `Format.recognizes`."""
    return lambda path: all((path / name).is_file() for name in names)


def refused(path: Path, what: str, advice: str = "") -> _checks.ArgumentError:
    """The error for an entry of a file that has no place in the model."""
    return _checks.ArgumentError(str(path), f"has {what}", advice=advice)


def unsupported(
    ae: Autoencoder, format: str, what: str, advice: str = ""
) -> _checks.ArgumentError:
    """The error for a model that a format cannot hold."""
    problem = f"has {what}, which the format {format!r} cannot hold"
    return _checks.ArgumentError("ae", problem, repr(ae), advice)


def activation_kind(ae: Autoencoder) -> str:
    """The name of jaxae's activation without its numbers, such as "topk"; else ""."""
    name = ae.activation.name
    return name.partition("(")[0] if activations.find(name) is ae.activation else ""


def is_linear(ae: Autoencoder) -> bool:
    """Whether x_hat = eta: the decoder has no nonlinearity."""
    return ae.observation.inverse_link is activations.identity


def check_linear_decoder(ae: Autoencoder, format: str) -> None:
    """Check that x_hat = eta, as in the formats of other libraries."""
    if not is_linear(ae):
        advice = "an observation such as gaussian has a linear decoder"
        raise unsupported(ae, format, f"observation {ae.observation}", advice)


def scaled_threshold(ae: Autoencoder, theta: activations.Threshold) -> np.ndarray:
    """The threshold of jumprelu in units of the pre-activations.

    One below 0, which counts as 0 in every library, is left as it is.
    """
    assert ae.activation.threshold is not None
    learned = np.asarray(theta.threshold)
    return np.where(learned > 0, ae.activation.threshold(*theta), learned)


def numpy_params(ae: Autoencoder, params: Any, pre_bias: bool) -> Any:
    """W_enc, W_dec, b_enc and b_dec as NumPy arrays, and W_skip where there is one.

    With `pre_bias`, the format subtracts b_dec from the input of the encoder as the
    model does; otherwise b_enc has that bias in it.
    """
    p = ae.parametrization
    if pre_bias:
        expanded = parametrizations.compose(p.name, p.bias, False).expand(params)
    else:
        expanded = ae.expand(params)
    return jax.tree.map(np.asarray, expanded)
