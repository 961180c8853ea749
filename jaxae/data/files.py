"""The user's own `.npy` and `.npz` files: read or mapped, never unpickled."""

import hashlib
import io
import math
import os
import zipfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxae import _checks
from jaxae.data.rows import two_axes

PathLike = str | os.PathLike[str]


class Dataset(NamedTuple):
    """Rows of a data set as they were stored, with where they came from."""

    name: str
    train: np.ndarray  # [N, D] raw values; np.memmap where they exceed the budget
    test: np.ndarray | None  # [M, D], where the set comes with its own test split
    scale: float  # train / scale lies in [0, 1]; 1.0 for the user's own files
    image_shape: tuple[int, int] | None  # a row is an image of this height and width
    source: str
    licence: str
    sha256: str  # of the IDX file, uncompressed; of the user's file; of digits' bytes


def load_file(path: Path, array: str | None, memory_budget: int) -> Dataset:
    """The array of a file; a `.npy` of more than `memory_budget` bytes is mapped.

    Raises:
      ValueError, FileNotFoundError: as `load`.
    """
    if not os.path.isfile(path):
        found = ", but a folder" if os.path.isdir(path) else ""
        raise FileNotFoundError(
            f"There is no file {path}{found}: give the path of an array."
        )
    with _checks.reading(
        path, "store real numbers, [N, D] or images [N, h, w], by np.save"
    ):
        is_npz = path.suffix.lower() == ".npz"
        with path.open("rb") as file:
            read = _read_npz if is_npz else _read_npy
            X = read(file, array, memory_budget)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    image_shape = (X.shape[1], X.shape[2]) if X.ndim == 3 else None
    X = X.reshape(len(X), -1)
    return Dataset(path.stem, X, None, 1.0, image_shape, str(path), "yours", sha256)


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype
    order: Literal["C", "F"]
    offset: int  # of the first value in the file


_LONGEST_HEADER = 2**16  # NumPy itself refuses headers of more than 10,000 characters


def _read_npy(file: Any, array: str | None, memory_budget: int) -> np.ndarray:
    del array
    num_bytes = os.fstat(file.fileno()).st_size
    header = _parse_header(file.read(_LONGEST_HEADER), num_bytes)
    if num_bytes - header.offset > memory_budget:
        return _map(file, header)
    file.seek(0)
    return _as_array(file.read(), header)


def _map(file: Any, header: _Header) -> np.memmap:
    if header.order == "F":  # a row would be read from every page of the file
        raise ValueError(
            "it is in Fortran order and larger than memory_budget, so its rows cannot "
            "be read from the disk one by one: store np.ascontiguousarray(X)"
        )
    return np.memmap(file, header.dtype, "r", header.offset, header.shape)


def _read_npz(file: Any, array: str | None, memory_budget: int) -> np.ndarray:
    _refuse_over_budget("it", os.fstat(file.fileno()).st_size, memory_budget)
    # Of a file in memory no more can be read than is there, whatever it declares.
    with zipfile.ZipFile(io.BytesIO(file.read())) as archive:
        members = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
        if _SPARSE <= set(members):
            raise ValueError(
                "it holds a sparse matrix, and rows are dense here: they are "
                "scipy.sparse.load_npz(path).toarray()"
            )
        names = list(members) if array is None else [array]
        if len(names) != 1 or names[0] not in members:
            held = ", ".join(members) or "no array"
            lacks = "" if array is None else f", and no {array!r}"
            raise ValueError(f"it holds {held}{lacks}; choose one by array=NAME")
        member = members[names[0]]
        _refuse_over_budget(f"array {names[0]}", member.file_size, memory_budget)
        raw = archive.read(member)
    return _as_array(raw, _parse_header(raw[:_LONGEST_HEADER], len(raw)))


_SPARSE = {"format", "shape", "data"}  # of every format of scipy.sparse.save_npz


def _refuse_over_budget(what: str, num_bytes: int, memory_budget: int) -> None:
    if num_bytes > memory_budget:
        raise ValueError(
            f"{what} has {num_bytes} bytes, more than memory_budget={memory_budget}, "
            "and only a .npy file can stay on the disk"
        )


def _parse_header(head: bytes, num_bytes: int) -> _Header:
    """What `np.load` reads, but refused before anything of that size is allocated."""
    file = io.BytesIO(head)
    version = "_".join(map(str, np.lib.format.read_magic(file)))
    # NumPy has no public reader for version 3.0, which only named fields need.
    read_header = getattr(np.lib.format, f"read_array_header_{version}")
    shape, is_fortran, dtype = read_header(file)
    if dtype == np.dtype("V2"):  # as of any type of two bytes that NumPy lacks
        raise ValueError(
            "its dtype is |V2, as which NumPy stores bfloat16: if it is, the numbers "
            "are np.load(path).view(jax.numpy.bfloat16).astype('float32')"
        )
    if dtype.kind not in "biuf":
        raise ValueError(f"its dtype is {dtype}")
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"its shape is {shape}: {two_axes(shape)}")
    declared, held = math.prod(shape) * dtype.itemsize, num_bytes - file.tell()
    if declared != held:
        raise ValueError(f"it declares {declared} bytes of data and holds {held}")
    return _Header(shape, dtype, "F" if is_fortran else "C", file.tell())


def _as_array(raw: bytes, header: _Header) -> np.ndarray:
    X = np.frombuffer(raw, header.dtype, offset=header.offset)
    return np.ascontiguousarray(X.reshape(header.shape, order=header.order))
