"""Reads and writes files of torch.save, where torch is installed."""

import importlib
import io
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxae import _checks

_START = 2**20  # bytes; the names come before the numbers
_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # before torch 1.6


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
        try:
            values = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # of many types; the text of one advises to unpickle anyway
            problem = "it is damaged, or holds other objects than tensors and numbers"
            raise ValueError(problem) from None
        is_named = isinstance(values, dict) and all(isinstance(n, str) for n in values)
        if not is_named:
            raise ValueError("it does not hold tensors by name")
        return array(values)


def has_any(path: Path, *names: str) -> bool:
    """Whether a file of torch has one of these names near its start; needs no torch."""
    try:
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError:  # a folder, or no such file
        return False
    is_torch = b"/data.pkl" in start or start.startswith(_MAGIC)
    return is_torch and any(name.encode() in start for name in names)


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
