"""Reads the tensors of a file into NumPy arrays by name; nothing is unpickled."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from jaxae import _checks

_ADVICE = "restore or download it again"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file."""
    with _checks.reading(path, _ADVICE):
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
    return value


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file."""
    with _checks.reading(path, _ADVICE):
        with safetensors.safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}


def read_header(path: Path, name: str) -> np.ndarray | None:
    """The numbers that an entry of a safetensors file's header lists; None without."""
    with _checks.reading(path, _ADVICE):
        with safetensors.safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(name)
        return None if text is None else np.asarray(json.loads(text), np.float64)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file."""
    # NumPy does not close a file of its own that is damaged.
    with _checks.reading(path, _ADVICE), path.open("rb") as file:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def check_shapes(
    path: Path, tensors: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]
) -> None:
    """Check that a file holds the tensors of these names and shapes, and no others."""
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != shapes:
        raise _checks.ArgumentError(
            str(path),
            f"must hold {_outline(shapes)}",
            _outline(found),
            "the file and its configuration may be of two models",
        )


def _outline(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name}{list(shapes[name])}" for name in sorted(shapes))


def as_jax(path: Path, tensors: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The tensors of a file as arrays of JAX, in their dtypes.

    Raises:
      ValueError: if float64 tensors would be rounded.
    """
    is_double = any(tensor.dtype == np.float64 for tensor in tensors.values())
    if is_double and not jax.config.read("jax_enable_x64"):
        raise _checks.ArgumentError(
            str(path),
            "holds float64 parameters, which JAX would round to float32 here",
            advice="load it inside `with jax.enable_x64(True):`",
        )
    return {name: jnp.asarray(tensor) for name, tensor in tensors.items()}
