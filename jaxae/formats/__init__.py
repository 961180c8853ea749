"""Models of other libraries: read them, and write them.

A module a format, each with one `Format`; FORMATS lists them.
"""

import itertools
import os
from pathlib import Path
from typing import Any

from jaxae import _checks
from jaxae._files import expanded
from jaxae.autoencoder import Autoencoder, files
from jaxae.autoencoder.cards import write_card
from jaxae.formats import (
    _dictionary_learning,
    _gemma_scope,
    _hub,
    _jaxae,
    _openai,
    _saelens,
    _sparsify,
)
from jaxae.formats._base import Format, Model

__all__ = ["FORMATS", "WRITABLE", "Format", "Model", "load", "metadata", "read", "save"]

_MODULES = (_jaxae, _saelens, _sparsify, _dictionary_learning, _gemma_scope, _openai)
FORMATS = {module.FORMAT.name: module.FORMAT for module in _MODULES}
WRITABLE = {name: f for name, f in FORMATS.items() if f.write is not None}


def load(source, *, format=None, inputs_normalized=False) -> tuple[Autoencoder, Any]:
    """Read a model of another library: `ae, params = jaxae.formats.load(SOURCE)`.

    The model computes the function of the file. A file whose function has no place in
    an `Autoencoder` raises an error that names the entry.

    Args:
      source: a folder, a file, or a hub id, such as "owner/repo",
        "owner/repo/folder" or "owner/repo@revision". A file or folder that exists is
        taken before a hub id; "hf://owner/repo" is always one.
      format: one of FORMATS; by default detected from the files.
      inputs_normalized: whether you normalize the inputs, and undo it on the outputs,
        as the file asks. By default a file that asks for a normalization that an
        `Autoencoder` does not have raises an error.

    Raises:
      FileNotFoundError: if there is no such file or folder.
      ImportError: if a package is missing, for a hub id or a file of torch.
      ValueError: if the source has none of the formats, is damaged, or holds a function
        that jaxae cannot represent.
    """
    model = read(source, format=format, inputs_normalized=inputs_normalized)
    return model.ae, model.params


def metadata(source, *, format=None, inputs_normalized=False) -> dict[str, Any]:
    """What a file says that is not part of the function, for `save(metadata=)`.

    Args:
      source, format, inputs_normalized: as in `load`.
    """
    return read(source, format=format, inputs_normalized=inputs_normalized).metadata


def read(source, *, format=None, inputs_normalized=False) -> Model:
    """`load`, with the file's metadata and a list of what was folded.

    Args:
      source, format, inputs_normalized: as in `load`.
    """
    chosen = None if format is None else _checks.lookup("format", FORMATS, format)
    _checks.boolean("inputs_normalized", inputs_normalized)
    path = _locate(source, chosen)
    _gemma_scope.refuse_gemma_scope_2(path)
    if chosen is not None and not chosen.recognizes(path):
        raise _checks.ArgumentError(
            str(path),
            f"does not have the format {chosen.name!r}, which has the files "
            f"{', '.join(chosen.files)}",
        )
    model = (chosen or _recognize(path)).read(path, inputs_normalized)
    model.ae.check_params(model.params)
    return model


def save(directory, ae, params, *, format="saelens", metadata=None) -> None:
    """Write a model as files of another library, with a model card, `README.md`.

    Your own README.md is kept. As in `jaxae.save`, a model of the same format that is
    already in the folder is replaced.

    Args:
      directory: the folder; created if it does not exist.
      ae: the model.
      params: its parameters.
      format: one of WRITABLE, the FORMATS that can be written.
      metadata: JSON values beside the function, such as those of `formats.metadata`.

    Raises:
      ValueError: if the format cannot hold the model, `params` are not those of the
        model or not finite, `directory` is a file, holds a model of another format of
        which this would replace a file or a scale that would apply to the new model, or
        `metadata` is not JSON.
    """
    chosen = _checks.lookup("format", WRITABLE, format)
    _checks.instance("ae", ae, Autoencoder, "jaxae.Autoencoder")
    files.check_params(ae, params)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict):
        found = _checks.describe(metadata)
        raise _checks.ArgumentError("metadata", "must be a dict of JSON values", found)
    files.to_json("metadata", metadata)
    folder = expanded(_checks.folder("directory", directory))
    if folder.exists() and not folder.is_dir():
        raise _checks.ArgumentError(
            "directory", f"must be a folder, but {folder} is a file"
        )
    _check_other_formats(folder, chosen)
    _check_no_scale(folder, chosen)
    assert chosen.write is not None
    chosen.write(folder, ae, params, metadata)
    if chosen.usage is not None:
        write_card(folder, ae, params, library=chosen.name, usage=chosen.usage)


def _check_other_formats(folder: Path, chosen: Format) -> None:
    """Check that the files of this format replace no file of a model of another."""
    for other in FORMATS.values():
        shared = set(chosen.files) & set(other.files)
        if other is not chosen and shared and other.recognizes(folder):
            raise _checks.ArgumentError(
                "directory",
                f"must not hold a model of {other.name}, which has a "
                f"{', '.join(sorted(shared))} too",
                str(folder),
                "choose another folder",
            )


def _check_no_scale(folder: Path, chosen: Format) -> None:
    """Check that no file is left there that `read` would fold into the new model."""
    if chosen.scale_file is not None and (folder / chosen.scale_file).exists():
        raise _checks.ArgumentError(
            "directory",
            f"must not hold a {chosen.scale_file}, which would scale the inputs of the "
            "new model",
            str(folder),
            "choose another folder",
        )


def _locate(source: Any, format: Format | None) -> Path:
    """The file or folder, downloaded if the source is a hub id."""
    path = expanded(_checks.folder("source", source))
    is_explicit = isinstance(source, str) and source.startswith("hf://")
    if path.exists() and not is_explicit:
        return path
    if not is_explicit and (isinstance(source, os.PathLike) or not _hub.parse(source)):
        raise FileNotFoundError(
            f"{path} does not exist; give a file, a folder or a hub id such as "
            "'owner/repo/folder'."
        )
    formats = FORMATS.values() if format is None else (format,)
    return _hub.download(source, [name for f in formats for name in f.files])


def _recognize(path: Path) -> Format:
    files.refuse_sweep(path)
    matching = [f for f in FORMATS.values() if f.recognizes(path)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        names = ", ".join(f.name for f in matching)
        problem, advice = f"has more than one format: {names}", "give {format}"
    else:
        problem = f"has none of the formats {', '.join(FORMATS)}"
        advice = _inner_folders(path) or "give the folder that holds the weights"
    raise _checks.ArgumentError(str(path), problem, advice=advice)


def _inner_folders(path: Path) -> str:
    """The folders inside that hold a model, as advice; "" if there are none."""
    inside = itertools.chain(path.glob("*/"), path.glob("*/*/"))
    models = sorted(p for p in inside if any(f.recognizes(p) for f in FORMATS.values()))
    names = ", ".join(str(p.relative_to(path)) for p in models[:5])
    return f"give one of its folders, such as {names}" if models else ""
