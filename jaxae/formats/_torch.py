"""Reads and writes files of torch.save, where torch is installed."""

import importlib
import io
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxae import _checks


def read(path: Path) -> dict[str, Any]:
    """The dictionary of a file; tensors as NumPy arrays, bfloat16 too.

    Raises:
      ImportError: if torch is not installed.
      ValueError: if the file holds anything but tensors and plain values.
    """
    torch = _torch(path)

    def array(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: array(item) for name, item in value.items()}
        if not isinstance(value, torch.Tensor):
            return value
        value = value.detach()
        if value.dtype == torch.bfloat16:  # NumPy has none of its own
            return value.view(torch.uint16).numpy().view(jnp.bfloat16)
        return value.numpy()

    with _checks.reading(path, "restore or download it again"):
        values = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(values, dict):
            raise ValueError("it does not hold tensors by name")
        return array(values)


def has_any(path: Path, *names: str) -> bool:
    """Whether a file has one of these names in it; needs no torch."""
    try:
        with zipfile.ZipFile(path) as archive:
            [member] = (n for n in archive.namelist() if n.endswith("/data.pkl"))
            text = archive.read(member)
    except (OSError, ValueError, zipfile.BadZipFile):  # damaged, or not of torch
        return False
    return any(name.encode() in text for name in names)


def content(path: Path, values: dict[str, Any]) -> bytes:
    """The bytes of a file for `path`, with NumPy arrays as tensors.

    Raises:
      ImportError: if torch is not installed.
    """
    torch = _torch(path)
    tensors = {
        name: torch.tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


def _torch(path: Path) -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise _checks.extra(f"{path}, a file of torch,", "torch", "torch") from error
