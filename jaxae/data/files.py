"""The user's files of arrays and tables, in memory or on the disk; never unpickled."""

import hashlib
import io
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxae import _checks
from jaxae.data import tables
from jaxae.data.hdf5 import stored_dataset
from jaxae.data.shards import Shards
from jaxae.data.stored import (
    MAX_HEADER_SIZE,
    Header,
    array_names,
    check_stored,
    named_one,
    parse_header,
    stored_array,
)
from jaxae.data.stored_activations import (
    activations,
    files_of,
    is_of_shards,
    matching,
    natural,
)


class Dataset(NamedTuple):
    """A dataset as stored, with its source."""

    name: str
    train: Any  # [N, D] raw values: an array, a memory map, or Rows
    test: np.ndarray | None  # [M, D] if the dataset has a test split
    scale: float  # train / scale is in [0, 1]; 1.0 for the user's own files
    image_shape: tuple[int, int] | None  # height and width, if a row is an image
    source: str
    licence: str
    sha256: str  # of the uncompressed IDX file, the user's file or the digits' bytes


def load_file(path: Path, array: str | None, memory_budget: int) -> Dataset:
    """The array of a file of `SUFFIXES`; above the budget, in bytes, on the disk."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no file {path}: give the path of an array.")
    with _checks.reading(
        path, "store real numbers, [N, D] or images [N, h, w], by np.save"
    ):
        with path.open("rb") as file:
            X = _READERS[path.suffix.lower()](file, array, memory_budget)
            is_on_disk = isinstance(X, Shards)  # in rows [N, D] already
            shape = X.arrays[0].shape if is_on_disk else X.shape
            check_stored(X.dtype, shape)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    image_shape = (shape[1], shape[2]) if len(shape) == 3 else None
    X = X if is_on_disk else X.reshape(len(X), -1)
    return Dataset(path.stem, X, None, 1.0, image_shape, str(path), "yours", sha256)


def load_folder(path: Path, array: str | None, memory_budget: int) -> Dataset:
    """The tables, or else the activations, in a folder or of a pattern."""
    if paths := table_paths(path):
        return _load_tables(path, paths, array, memory_budget)
    return load_shards(path, array)


def table_paths(path: Path) -> list[Path]:
    """The files of a folder or a pattern if all are tables, in natural order."""
    paths = [p for p in matching(path, SUFFIXES) if os.path.isfile(p)]
    are_tables = all(p.suffix.lower() in tables.SUFFIXES for p in paths)
    return sorted(paths, key=natural) if are_tables else []


def _load_tables(
    path: Path, paths: list[Path], array: str | None, memory_budget: int
) -> Dataset:
    """The rows of tables with the same columns, one after the other."""
    advice = "write tables with the same columns, all .csv or all .parquet"
    with _checks.reading(path, advice):
        if len({p.suffix.lower() for p in paths}) > 1:
            raise ValueError(f"it has both {' and '.join(tables.SUFFIXES)} files")
        _check_budget("it", sum(map(os.path.getsize, paths)), memory_budget)
    if array is None:
        names = {}
        for file_path in paths:
            with _checks.reading(file_path, advice):
                names[file_path] = tables.column_names(file_path)
        tables.check_same_columns(names)
    parts = [load_file(file_path, array, memory_budget) for file_path in paths]
    widths = sorted({part.train.shape[1] for part in parts})
    if len(widths) > 1:  # a column of lists in each file
        raise _checks.ArgumentError(
            str(path), "must have lists of one length in all files", str(widths)
        )
    digest = hashlib.sha256()
    for part in parts:
        digest.update(bytes.fromhex(part.sha256))
    sha256, X = digest.hexdigest(), np.concatenate([part.train for part in parts])
    return Dataset(path.name, X, None, 1.0, None, str(path), "yours", sha256)


def load_shards(path: Path, array: str | None, **selection: Any) -> Dataset:
    """The activations in a folder or of a pattern; see `activations`.

    They are Rows of any size: an array would be shuffled in another order.
    """
    rows = activations(path, array=array, **selection)
    digest = hashlib.sha256()
    for file_path in files_of(path):
        with file_path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    sha256 = digest.hexdigest()
    return Dataset(path.name, rows, None, 1.0, None, str(path), "yours", sha256)


def _num_bytes(array: Any) -> int:
    return math.prod(array.shape) * array.dtype.itemsize


_SPARSE_MEMBERS = {"format", "shape", "data"}  # of scipy.sparse.save_npz, any format


def _read_npy(file: Any, array: str | None, memory_budget: int) -> np.ndarray:
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
        name = named_one(members, array, file.name)
        member = members[name]
        _check_budget(f"array {name}", member.file_size, memory_budget)
        raw = archive.read(member)
    return _to_array(raw, _header_of_rows(raw[:MAX_HEADER_SIZE], len(raw)))


def _check_budget(subject: str, num_bytes: int, memory_budget: int) -> None:
    if num_bytes > memory_budget:
        raise ValueError(
            f"{subject} has {num_bytes} bytes, more than memory_budget={memory_budget};"
            " only .npy, .safetensors and HDF5 files can be read from the disk by rows"
        )


def _header_of_rows(head: bytes, num_bytes: int) -> Header:
    header = parse_header(head, num_bytes)
    check_stored(header.dtype, header.shape)
    return header


def _read_safetensors(file: Any, array: str | None, memory_budget: int) -> np.ndarray:
    path = Path(file.name)
    stored = stored_array(path, named_one(array_names(path), array, path))
    check_stored(stored.dtype, stored.shape)
    if _num_bytes(stored) <= memory_budget:
        return stored.read()
    return np.memmap(file, stored.dtype, "r", stored.offset, stored.shape)


def _read_hdf5(file: Any, array: str | None, memory_budget: int) -> Shards:
    """Rows of any size: an array would be shuffled in another order."""
    del memory_budget
    stored = stored_dataset(Path(file.name), array)
    check_stored(stored.dtype, stored.shape)
    return Shards([stored], stored.dtype)


def _read_csv(file: Any, array: str | None, memory_budget: int) -> np.ndarray:
    _check_budget("it", os.fstat(file.fileno()).st_size, memory_budget)
    return tables.read_csv(Path(file.name))


def _read_parquet(file: Any, array: str | None, memory_budget: int) -> np.ndarray:
    _check_budget("it", os.fstat(file.fileno()).st_size, memory_budget)
    return tables.read_parquet(Path(file.name), array)


_READERS: dict[str, Callable[[Any, str | None, int], Any]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
SUFFIXES = tuple(_READERS)
WITH_NAMES = (".h5", ".hdf5", ".npz", ".parquet", ".safetensors")  # of arrays


def may_have_names(path: Path) -> bool:
    """Whether the arrays of a file, a folder or a pattern may have names."""
    paths = table_paths(path) if is_of_shards(path) else [path]
    return not paths or paths[0].suffix.lower() in WITH_NAMES


def _to_array(raw: bytes, header: Header) -> np.ndarray:
    X = np.frombuffer(raw, header.dtype, offset=header.offset)
    return np.ascontiguousarray(X.reshape(header.shape, order=header.order))
