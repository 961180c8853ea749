"""The record of a file format, and what is read from a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxae import _checks
from jaxae.autoencoder import Autoencoder


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
    """

    name: str
    files: tuple[str, ...]
    recognizes: Callable[[Path], bool]
    read: Callable[[Path, bool], Model]
    write: Callable[[Path, Autoencoder, Any, dict[str, Any]], None] | None = None


def has_files(*names: str) -> Callable[[Path], bool]:
    """Whether a folder has all of these files, for `Format.recognizes`."""
    return lambda path: all((path / name).is_file() for name in names)


def refused(
    path: Path, key: str, value: Any, advice: str = ""
) -> _checks.ArgumentError:
    """The error for an entry of a file that has no place in the model."""
    return _checks.ArgumentError(
        str(path), f"has {key}={value!r}, which jaxae cannot represent", advice=advice
    )


def unsupported(ae: Autoencoder, format: str, what: str) -> _checks.ArgumentError:
    """The error for a model that a format cannot hold."""
    return _checks.ArgumentError(
        "ae", f"has {what}, which the format {format!r} cannot hold", repr(ae)
    )
