"""Arrays in several files, read by rows in chunks: `Shards`."""

import itertools
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxae import _checks
from jaxae.data.rows import BlockShuffle

_CHUNK_BYTES = 2**20  # read at once
_GAP_BYTES = 2**16  # between rows that are read at once
_MAX_THREADS = 8  # that read; a fast disk needs several requests at a time
_BLOCK_BYTES = 2**20  # of the blocks of an epoch, by default
_BUFFER_BYTES = 2**27  # of its buffer


class Shards:
    """The rows of stored arrays `[N, ...]`, one array after the other: `Rows`.

    Args:
      arrays: `StoredArray`s or `StoredDataset`s of one width and dtype; a file is open
        only while rows of it are read.
      dtype: of the rows that are given.
      block_rows, buffer_rows: of the `BlockShuffle`; None for the default.
    """

    def __init__(
        self,
        arrays: Sequence[Any],
        dtype: Any,
        block_rows: int | None = None,
        buffer_rows: int | None = None,
    ):
        self.arrays, self.dtype = tuple(arrays), np.dtype(dtype)
        self._starts = np.cumsum([0, *(array.shape[0] for array in arrays)])
        width = math.prod(arrays[0].shape[1:])
        self.shape = (int(self._starts[-1]), width)
        self._row_bytes = width * arrays[0].dtype.itemsize
        self.block_shuffle = BlockShuffle(
            block_rows or max(1, _BLOCK_BYTES // self._row_bytes),
            buffer_rows or max(1, _BUFFER_BYTES // (width * self.dtype.itemsize)),
        )

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The rows `[n, D]` of a slice or of increasing row numbers; one of an int."""
        if isinstance(rows, int | np.integer):
            return self[[range(len(self))[rows]]][0]
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.asarray(rows, np.int64)
        values = np.empty((len(rows), self.shape[1]), self.dtype)

        def read(chunk: slice) -> None:
            values[chunk] = self._read(rows[chunk])

        with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as threads:
            list(threads.map(read, self._chunks(rows)))
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype, copy=copy)

    def __repr__(self) -> str:
        return f"Shards({self.dtype}{list(self.shape)})"

    def _chunks(self, rows: np.ndarray) -> list[slice]:
        """Slices of row numbers whose rows are read at once, each from one array."""
        is_cut = (np.diff(rows) - 1) * self._row_bytes > _GAP_BYTES
        for part in (self._array_of(rows), rows * self._row_bytes // _CHUNK_BYTES):
            is_cut |= np.diff(part) > 0
        cuts = sorted({0, *(np.flatnonzero(is_cut) + 1).tolist(), len(rows)})
        return [slice(*pair) for pair in itertools.pairwise(cuts)]

    def _array_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, rows, side="right") - 1

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """Finite rows `[n, D]` of one array."""
        i = int(self._array_of(rows[:1])[0])
        array, numbers = self.arrays[i], rows - self._starts[i]
        first, last = int(numbers[0]), int(numbers[-1]) + 1
        block = array.read(first, last).reshape(last - first, -1)
        if len(block) > len(numbers):
            block = block[numbers - first]
        with np.errstate(over="ignore"):
            x = block.astype(self.dtype, copy=False)
        if not np.isfinite(x).all():
            row, column = np.argwhere(~np.isfinite(x))[0]
            raise _checks.ArgumentError(
                "data",
                f"must be finite in {self.dtype}, but row {numbers[row]}, column "
                f"{column} (from 0) of {array.path} is {block[row, column]}",
                advice="drop or fill them",
            )
        return x
