"""The user's `.npy` and `.npz` files: read or memory-mapped, never unpickled."""

import hashlib
import io
import math
import os
import zipfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxae import _checks
from jaxae.data.rows import reshape_advice

PathLike = str | os.PathLike[str]


class Dataset(NamedTuple):
    """A dataset as stored, with its source."""

    name: str
    train: np.ndarray  # [N, D] raw values; np.memmap if they exceed the memory budget
    test: np.ndarray | None  # [M, D] if the dataset has a test split
    scale: float  # train / scale is in [0, 1]; 1.0 for the user's own files
    image_shape: tuple[int, int] | None  # height and width, if a row is an image
    source: str
    licence: str
    sha256: str  # of the uncompressed IDX file, the user's file or the digits' bytes


def load_file(path: Path, array: str | None, memory_budget: int) -> Dataset:
    """The array of a file; a `.npy` of more than `memory_budget` bytes is mapped."""
    if not os.path.isfile(path):
        is_folder = ", but a folder" if os.path.isdir(path) else ""
        raise FileNotFoundError(
            f"There is no file {path}{is_folder}: give the path of an array."
        )
    with _checks.reading(
        path, "store real numbers, [N, D] or images [N, h, w], by np.save"
    ):
        with path.open("rb") as file:
            if path.suffix.lower() == ".npz":
                X = _read_npz(file, array, memory_budget)
            else:
                X = _read_npy(file, memory_budget)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    image_shape = (X.shape[1], X.shape[2]) if X.ndim == 3 else None
    X = X.reshape(len(X), -1)
    return Dataset(path.stem, X, None, 1.0, image_shape, str(path), "yours", sha256)


class Header(NamedTuple):
    """The header of an `.npy` file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    order: Literal["C", "F"]
    offset: int  # of the first value in the file


MAX_HEADER_SIZE = 2**16  # bytes; NumPy rejects headers of over 10,000 characters
_SPARSE_MEMBERS = {"format", "shape", "data"}  # of scipy.sparse.save_npz, any format


def _read_npy(file: Any, memory_budget: int) -> np.ndarray:
    num_bytes = os.fstat(file.fileno()).st_size
    header = _header_of_rows(file.read(MAX_HEADER_SIZE), num_bytes)
    if num_bytes - header.offset <= memory_budget:
        file.seek(0)
        return _to_array(file.read(), header)
    if header.order == "F":  # reading one row would touch every page of the file
        raise ValueError(
            "it is in Fortran order and larger than memory_budget, so its rows cannot "
            "be read from the disk one by one: store np.ascontiguousarray(X)"
        )
    return np.memmap(file, header.dtype, "r", header.offset, header.shape)


def _read_npz(file: Any, array: str | None, memory_budget: int) -> np.ndarray:
    _check_budget("it", os.fstat(file.fileno()).st_size, memory_budget)
    # In memory, so that reading ends with the file whatever sizes it declares.
    with zipfile.ZipFile(io.BytesIO(file.read())) as archive:
        members = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
        if _SPARSE_MEMBERS <= set(members):
            raise ValueError(
                "it holds a sparse matrix: convert it by "
                "scipy.sparse.load_npz(path).toarray()"
            )
        names = list(members) if array is None else [array]
        if len(names) != 1 or names[0] not in members:
            available = ", ".join(members) or "no array"
            raise _checks.ArgumentError(
                "array",
                f"must name one array of {file.name}, which holds {available}",
                repr(array),
            )
        member = members[names[0]]
        _check_budget(f"array {names[0]}", member.file_size, memory_budget)
        raw = archive.read(member)
    return _to_array(raw, _header_of_rows(raw[:MAX_HEADER_SIZE], len(raw)))


def _check_budget(subject: str, num_bytes: int, memory_budget: int) -> None:
    if num_bytes > memory_budget:
        raise ValueError(
            f"{subject} has {num_bytes} bytes, more than memory_budget={memory_budget};"
            " only a .npy file can be read from the disk by rows"
        )


def parse_header(head: bytes, num_bytes: int) -> Header:
    """The header of real numbers, checked before memory is allocated."""
    file = io.BytesIO(head)
    version = "_".join(map(str, np.lib.format.read_magic(file)))
    # NumPy has no public reader for version 3.0, which only named fields need.
    read_header = getattr(np.lib.format, f"read_array_header_{version}")
    shape, is_fortran, dtype = read_header(file)
    if dtype == np.dtype(
        "V2"
    ):  # as which NumPy stores JAX's only other type of 2 bytes
        dtype = np.dtype(jnp.bfloat16)
    elif dtype.kind not in "biuf":
        raise ValueError(f"its dtype is {dtype}")
    declared, actual = math.prod(shape) * dtype.itemsize, num_bytes - file.tell()
    if declared != actual:
        raise ValueError(f"it declares {declared} bytes of data and holds {actual}")
    return Header(shape, dtype, "F" if is_fortran else "C", file.tell())


def _header_of_rows(head: bytes, num_bytes: int) -> Header:
    """The header of an array `[N, D]`, or of images `[N, h, w]`."""
    header = parse_header(head, num_bytes)
    if len(header.shape) not in (2, 3) or min(header.shape) < 1:
        advice = reshape_advice(header.shape)
        raise ValueError(f"its shape is {header.shape}: {advice}")
    return header


def _to_array(raw: bytes, header: Header) -> np.ndarray:
    X = np.frombuffer(raw, header.dtype, offset=header.offset)
    return np.ascontiguousarray(X.reshape(header.shape, order=header.order))
