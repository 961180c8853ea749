"""Arrays in `.npy`, `.npz` and `.safetensors` files, known by their headers."""

import io
import json
import math
import os
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from jaxae import _checks
from jaxae.data.rows import reshape_advice

PathLike = str | os.PathLike[str]
SUFFIXES = (".npy", ".npz", ".safetensors")


class Header(NamedTuple):
    """The header of an `.npy` file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    order: Literal["C", "F"]
    offset: int  # of the first value in the file


MAX_HEADER_SIZE = 2**16  # bytes; NumPy rejects headers of over 10,000 characters


def check_stored(dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Check that this is an array `[N, D]` or `[N, h, w]` of real numbers."""
    check_real(dtype)
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"its shape is {shape}: {reshape_advice(shape)}")


def check_real(dtype: np.dtype) -> None:
    """Check that this is a dtype of real numbers, such as bfloat16."""
    if dtype.kind not in "biuf" and "float" not in dtype.name:
        raise ValueError(f"its dtype is {dtype}")


def named_one(names: Collection[str], name: str | None, path: Any) -> str:
    """The name, which must be one of those, or the only one if it is None."""
    chosen = list(names) if name is None else [name]
    if len(chosen) != 1 or chosen[0] not in names:
        held = ", ".join(names) or "no array"
        raise _checks.ArgumentError(
            "array", f"must name one array of {path}, which holds {held}", repr(name)
        )
    return chosen[0]


def parse_header(head: bytes, num_bytes: int) -> Header:
    """The header of real numbers, checked before memory is allocated."""
    file = io.BytesIO(head)
    version = "_".join(map(str, np.lib.format.read_magic(file)))
    # NumPy has no public reader for version 3.0, which only named fields need.
    read_header = getattr(np.lib.format, f"read_array_header_{version}")
    shape, is_fortran, dtype = read_header(file)
    if dtype == np.dtype("V2"):  # how NumPy stores bfloat16
        dtype = np.dtype(jnp.bfloat16)
    check_real(dtype)
    declared, actual = math.prod(shape) * dtype.itemsize, num_bytes - file.tell()
    if declared != actual:
        raise ValueError(f"it declares {declared} bytes of data and holds {actual}")
    return Header(shape, dtype, "F" if is_fortran else "C", file.tell())


class StoredArray(NamedTuple):
    """An array in a file, known by the file's header."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # of its first value in the file, in bytes

    def read(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Entries first, ..., last - 1 of the first axis; by default all."""
        last = self.shape[0] if last is None else last
        length = math.prod(self.shape[1:])
        offset = self.offset + first * length * self.dtype.itemsize
        count = (last - first) * length
        values = np.fromfile(self.path, self.dtype, count, offset=offset)
        if len(values) < count:
            raise _checks.ArgumentError(
                "data",
                f"are in {self.path}, which was truncated or replaced; load it again",
            )
        return values.reshape(-1, *self.shape[1:])


def array_names(path: Path) -> list[str]:
    """The names of the arrays in a file; that of an `.npy` file is ""."""
    match path.suffix.lower():
        case ".npz":
            with zipfile.ZipFile(path) as archive:
                return [name.removesuffix(".npy") for name in archive.namelist()]
        case ".safetensors":
            return list(_safetensors_header(path)[0])
    return [""]


def stored_array(path: Path, name: str) -> StoredArray:
    """The array of that name in a file, of which only headers are read."""
    match path.suffix.lower():
        case ".npz":
            return _in_npz(path, name)
        case ".safetensors":
            return _in_safetensors(path, name)
    return _npy_at(path, 0, os.path.getsize(path))


def _npy_at(path: Path, start: int, num_bytes: int) -> StoredArray:
    """The array in `.npy` format in `num_bytes` of the file from `start` on."""
    with path.open("rb") as file:
        file.seek(start)
        head = file.read(min(MAX_HEADER_SIZE, num_bytes))
    header = parse_header(head, num_bytes)
    if header.order == "F" and len(header.shape) > 1:
        raise ValueError("it is in Fortran order: store np.ascontiguousarray(X)")
    return StoredArray(path, header.dtype, header.shape, start + header.offset)


def _in_npz(path: Path, name: str) -> StoredArray:
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(
            "it is compressed, so its rows cannot be read from the disk: store it by "
            "np.savez"
        )
    with path.open("rb") as file:  # a local header, a name, an extra field, the array
        file.seek(member.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
    start = member.header_offset + 30 + int(lengths.sum())
    return _npy_at(path, start, member.file_size)


_SAFETENSORS_DTYPES = {
    **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"},
    **{f"{k}{8 * n}": f"{k.lower()}{n}" for k in "IU" for n in (1, 2, 4, 8)},
    "BOOL": "bool",
}


def _in_safetensors(path: Path, name: str) -> StoredArray:
    entries, start = _safetensors_header(path)
    entry = entries[name]
    if entry["dtype"] not in _SAFETENSORS_DTYPES:
        raise ValueError(f"the dtype of {name} is {entry['dtype']}")
    dtype = np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]])
    offset = start + entry["data_offsets"][0]
    return StoredArray(path, dtype, tuple(entry["shape"]), offset)


def _safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """The entries by name, and where the arrays start.

    Source: https://github.com/huggingface/safetensors#format
    """
    with safetensors.safe_open(path, framework="numpy"):
        pass  # it checks the header
    with path.open("rb") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(num_bytes))
    entries.pop("__metadata__", None)
    return entries, 8 + num_bytes
