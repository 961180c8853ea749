"""Rows: data of any size that are read by blocks."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from jaxae import _checks


@runtime_checkable
class Rows(Protocol):
    """Data read by rows: memory map, HDF5 dataset, list of rows, `View`, or your own.

    `__getitem__` takes a slice or a strictly increasing int array of n row numbers and
    returns `[n, D]`. If that raises an error, rows are read one by one, which is
    slower: `__getitem__` then takes a Python int and returns `[D]`.

    Rows that are slow to read in random order have an attribute `block_shuffle`, a
    `BlockShuffle`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class BlockShuffle(NamedTuple):
    """The row order of an epoch, for Rows that are slow to read in random order.

    The blocks of `block_rows` consecutive rows are read in random order. Of the rows in
    that order, each `buffer_rows` successive ones are shuffled.

    Attributes:
      block_rows: the number of rows that are read at once.
      buffer_rows: the number of rows that are in memory. Training rounds it down to
        whole batches; it holds two buffers, one of which is being read.
    """

    block_rows: int
    buffer_rows: int


def block_shuffle_of(X: Any) -> BlockShuffle | None:
    """How the Rows X ask to be shuffled; None for rows in any order."""
    shuffle = getattr(X, "block_shuffle", None)
    return shuffle if isinstance(shuffle, BlockShuffle) else None


def is_rows(X: Any) -> bool:
    """Whether X is Rows to be read by blocks, and not an array in memory.

    A memory map is Rows. A tuple (a pair of data), a mapping (columns), a data frame
    and a tensor (arrays) are not.
    """
    is_excluded = isinstance(X, str | bytes | tuple | Mapping)
    is_array = is_in_memory(X) or _checks.is_table(X) or _checks.is_tensor(X)
    return isinstance(X, Rows) and not is_excluded and not is_array


def is_in_memory(X: Any) -> bool:
    """Whether X is a JAX array, or a NumPy array that is not a memory map."""
    return isinstance(X, np.ndarray | jax.Array) and not isinstance(X, np.memmap)


def as_rows(X: Any, name: str = "data") -> Any:
    """X itself if it is an array or Rows; a data frame or tensor as a NumPy array."""
    X = _checks.as_array(name, X)
    if is_in_memory(X) and X.ndim == 0:  # without a length for `check_rows`
        check_shape(name, X.shape)
    check_rows(X, name)
    return X


def check_rows(X: Any, name: str = "data") -> int:
    """The number of rows of an array or of Rows."""
    if not (is_in_memory(X) or is_rows(X)):
        raise _checks.ArgumentError(
            name,
            "must be a NumPy or JAX array, or have a length and give X[rows]",
            f"a {type(X).__name__}",
            "wrap an array that has a shape but no length, such as zarr's, in View(X)",
        )
    try:
        return len(X)
    except Exception as error:  # the user's code may raise anything
        reason = _checks.first_line(error)
        raise _checks.ArgumentError(
            name, f"must have a length, but len raised {reason}"
        ) from error


def take(X: Any, index: Any) -> np.ndarray:
    """X[index], `[n, D]`, for any row numbers: unsorted, repeated or none.

    Rows that are not in memory are read once each and in increasing order, which disks
    prefer and HDF5 requires. Consecutive rows of a memory map are not copied.

    Raises:
      ValueError: if index is not row numbers of X, or rows cannot be read.
    """
    X = as_rows(X)
    index = row_numbers(index, len(X))
    if isinstance(X, np.ndarray) and is_in_memory(X):
        return X[index]
    if len(index) == 0:
        return read(X, slice(0, 1))[:0]
    unique, inverse = np.unique(index, return_inverse=True)
    rows: slice | np.ndarray = unique
    if unique[-1] - unique[0] < len(unique):
        # A slice reads consecutive rows at once, and does not copy those of a memory
        # map.
        rows = slice(int(unique[0]), int(unique[-1]) + 1)
    block = read(X, rows)
    is_in_order = len(unique) == len(index) and bool((inverse[1:] > inverse[:-1]).all())
    return block if is_in_order else block[inverse]


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Check that a shape is `[N, D]`, N and D >= 1."""
    if len(shape) != 2 or 0 in shape:
        advice = reshape_advice(shape)
        raise _checks.ArgumentError(
            name, "must be [N, D], N and D >= 1", f"shape {shape}", advice
        )


def reshape_advice(shape: tuple[int, ...]) -> str:
    """How to reshape an array to `[N, D]`, in words."""
    if len(shape) == 1:
        return "reshape one example by X[None], one column by X[:, None]"
    if len(shape) == 3:
        return (
            f"reshape tokens [N, T, D] by X.reshape(-1, {shape[-1]}), images [N, h, w] "
            "by X.reshape(len(X), -1)"
        )
    if len(shape) == 4 and shape[-1] < min(5, *shape[1:3]):
        return (
            "reshape images with channels last by X.reshape(len(X), -1), or select one "
            "channel by X[..., 0]"
        )
    if len(shape) > 3:
        return "reshape it by X.reshape(len(X), -1)"
    return "give one row per example"


def row_numbers(index: Any, num_rows: int) -> np.ndarray:
    """`index` as an int array `[n]` of row numbers below `num_rows`."""
    numbers = np.asarray(index)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise _checks.ArgumentError(
            "index",
            "must be row numbers, ints [n]",
            _checks.describe(index),
            "for a mask, give np.flatnonzero(mask)",
        )
    if numbers.size and (numbers.min() < 0 or numbers.max() >= num_rows):
        raise _checks.ArgumentError(
            "index",
            f"must hold rows 0 to {num_rows - 1}",
            f"{numbers.min()} to {numbers.max()}",
            "count from 0, not from the end",
        )
    return numbers.astype(np.int64, copy=False)


def read(X: Any, rows: slice | np.ndarray, name: str = "data") -> np.ndarray:
    """X[rows] as a NumPy array `[n, D]`, for a slice or increasing row numbers.

    Raises:
      ValueError: if X[rows] fails, or is not an array of this shape.
    """
    _check_file_size(X, name)
    numbers = range(len(X))[rows] if isinstance(rows, slice) else rows
    try:
        values = _get_rows(X, rows, numbers)
        block = np.asarray(_checks.as_array(name, values))
    except _checks.ArgumentError as error:  # X may be a View, which names its own rows
        problem, found, advice = error.problem, error.found, error.advice
        raise _checks.ArgumentError(name, problem, found, advice) from error.__cause__
    except Exception as error:  # the user's code may raise anything
        raise _checks.ArgumentError(
            name,
            f"gave no {_describe_rows(numbers)} ({_checks.first_line(error)}): X[rows] "
            "must be [n, D] for a slice and for increasing row numbers",
        ) from error
    if block.ndim != 2 or len(block) != len(numbers):
        shape = _checks.describe(values if block.dtype == object else block)
        raise _checks.ArgumentError(
            name,
            f"must give [{len(numbers)}, D] for {_describe_rows(numbers)}, got {shape}:"
            " implement a __getitem__ that gives one row per example",
        )
    return block


def _get_rows(X: Any, rows: slice | np.ndarray, numbers: range | np.ndarray) -> Any:
    try:
        return X[rows]
    except _checks.ArgumentError:  # of a View, or of data that hold no numbers
        raise
    except (LookupError, TypeError, ValueError, AttributeError, NotImplementedError):
        # Lists, and sources of single records, take one int at a time.
        return [X[int(number)] for number in numbers]


def _describe_rows(numbers: range | np.ndarray) -> str:
    if len(numbers) == 1:
        return f"row {numbers[0]}"
    return f"rows {numbers[0]} to {numbers[-1]}" if len(numbers) else "rows"


def _check_file_size(X: Any, name: str) -> None:
    """Reading a memory map past the end of its file would crash the process."""
    path = getattr(X, "filename", None) if isinstance(X, np.memmap) else None
    if path is None or not os.path.isfile(path):  # the map of a deleted file is valid
        return
    mapped, size = X.offset + X.nbytes, os.path.getsize(path)
    if size < mapped:
        raise _checks.ArgumentError(
            name,
            f"is a map of {mapped} bytes of {path}, which now has {size}: the file was "
            "truncated or replaced; load it again",
        )
