"""Datasets in HDF5 files, read by rows."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxae import _checks
from jaxae.data.stored import named_one


class StoredDataset(NamedTuple):
    """A dataset in an HDF5 file; the file is open only while rows are read."""

    path: Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    def read(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Entries first, ..., last - 1 of the first axis; by default all."""
        with _h5py().File(self.path) as file:
            return file[self.name][first:last]


def stored_dataset(path: Path, array: str | None) -> StoredDataset:
    """The dataset of that name, or the only one of the file."""
    h5py, datasets = _h5py(), {}

    def visit(name: str, value: Any) -> None:
        if isinstance(value, h5py.Dataset):
            datasets[name] = (value.dtype, value.shape or ())

    with h5py.File(path) as file:
        file.visititems(visit)
    name = named_one(datasets, array and array.strip("/"), path)
    return StoredDataset(path, name, *datasets[name])


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise _checks.extra("an HDF5 file", "h5py", "files") from error
    return h5py
