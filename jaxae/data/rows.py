"""Rows: what has a length and gives the rows asked for, in memory or not."""

import os
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from jaxae import _checks


@runtime_checkable
class Rows(Protocol):
    """A source of rows: memory map, HDF5 data set, list of rows, `View`, your own.

    `__getitem__` takes a slice or a strictly increasing int array of n row numbers and
    returns `[n, D]`. Where that fails each row is asked for by a Python int, which
    returns `[D]` and is slower.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


def is_rows(X: Any) -> bool:
    """Whether X is Rows to be read by blocks, and no array that lies in memory.

    A memory map counts as Rows, a tuple as a pair of data, a mapping as columns, and a
    data frame or a tensor as an array.
    """
    is_other = isinstance(X, str | bytes | tuple | Mapping)
    is_array = is_in_memory(X) or _checks.is_table(X) or _checks.is_tensor(X)
    return isinstance(X, Rows) and not is_other and not is_array


def is_in_memory(X: Any) -> bool:
    """Whether X is a JAX array, or a NumPy array that is not a memory map."""
    return isinstance(X, np.ndarray | jax.Array) and not isinstance(X, np.memmap)


def as_rows(X: Any, name: str = "data") -> Any:
    """X as an array or Rows: a data frame and a tensor become NumPy arrays.

    Raises:
      ValueError: for anything else.
    """
    X = _checks.as_array(name, X)
    if is_in_memory(X) and X.ndim == 0:  # it has no length to be checked
        refuse_shape(name, X.shape)
    check_rows(X, name)
    return X


def check_rows(X: Any, name: str = "data") -> int:
    """The number of rows of an array or of Rows.

    Raises:
      ValueError: for anything else.
    """
    if not (is_in_memory(X) or is_rows(X)):
        raise ValueError(
            f"{name} must be a NumPy or JAX array, or have a length and give X[rows], "
            f"got a {type(X).__name__}; what has a shape, as zarr's arrays, but no "
            "length, wrap: View(X)."
        )
    try:
        return len(X)
    except Exception as error:  # another's code may raise anything
        found = _checks.first_line(error)
        raise ValueError(f"{name} must have a length, but len gave {found}.") from error


def take(X: Any, index: Any) -> np.ndarray:
    """X[index], `[n, D]`, for any row numbers: unsorted, repeated, none.

    Rows that are not in memory are read once each and in increasing order, as disks
    prefer and HDF5 demands; what is one run of them in this order may share memory.

    Raises:
      ValueError: an index that is not row numbers of X; rows that cannot be read.
    """
    X = as_rows(X)
    index = row_numbers(index, len(X))
    if isinstance(X, np.ndarray) and is_in_memory(X):
        return X[index]
    if len(index) == 0:
        return read(X, slice(0, 1))[:0]
    unique, inverse = np.unique(index, return_inverse=True)
    block = read(X, _as_slice(unique))
    is_as_read = len(unique) == len(index) and bool((inverse[1:] > inverse[:-1]).all())
    return block if is_as_read else block[inverse]


def refuse_shape(name: str, shape: tuple[int, ...]) -> None:
    """Refuse an array that is not `[N, D]`, or is empty.

    Raises:
      ValueError: saying how the axes of this one become two.
    """
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"{name} must be [N, D], N and D >= 1, got shape {shape}: "
            f"{two_axes(shape)}."
        )


def two_axes(shape: tuple[int, ...]) -> str:
    """How an array of another shape becomes `[N, D]`."""
    if len(shape) == 1:
        return "of one example make X[None], of one column X[:, None]"
    if len(shape) == 3:
        return (
            f"of tokens [N, T, D] make X.reshape(-1, {shape[-1]}), of images [N, h, w] "
            "X.reshape(len(X), -1)"
        )
    if len(shape) == 4 and shape[-1] < min(5, *shape[1:3]):
        return (
            "of images with their channels last make X.reshape(len(X), -1), or take "
            "one channel, X[..., 0]"
        )
    return "make X.reshape(len(X), -1)" if len(shape) > 3 else "one row an example"


def row_numbers(index: Any, num_rows: int) -> np.ndarray:
    """`index` as an int array `[n]`, refused where it names no row of `num_rows`."""
    numbers = np.asarray(index)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise ValueError(
            f"index must be row numbers, ints [n], got {_checks.describe(index)}; of a "
            "mask, take np.flatnonzero(mask)."
        )
    if numbers.size and (numbers.min() < 0 or numbers.max() >= num_rows):
        raise ValueError(
            f"index must hold rows 0 to {num_rows - 1}, got {numbers.min()} to "
            f"{numbers.max()}; count from 0, and not from the end."
        )
    return numbers.astype(np.int64, copy=False)


def _as_slice(increasing: np.ndarray) -> slice | np.ndarray:
    first, last = int(increasing[0]), int(increasing[-1])
    # One run of the file, and for a memory map no copy.
    return slice(first, last + 1) if last - first < len(increasing) else increasing


class UnreadableError(ValueError):
    """Why rows cannot be read, said once, however many Views they are read through."""


def read(X: Any, rows: slice | np.ndarray, name: str = "data") -> np.ndarray:
    """X[rows] as a NumPy array `[n, D]`, for a slice or increasing row numbers.

    Raises:
      UnreadableError: where X fails, or gives something that is no array, or of another
        shape; its cause is what X raised.
    """
    _refuse_shrunk(X, name)
    numbers = range(len(X))[rows] if isinstance(rows, slice) else rows
    try:
        found = _ask(X, rows, numbers)
        block = np.asarray(_as_block(found))
    except UnreadableError as error:  # of a View, which calls its rows "data"
        sentence = str(error).replace("data", name, 1)
        raise UnreadableError(sentence) from error.__cause__
    except Exception as error:  # another's code may raise anything
        raise UnreadableError(
            f"{name} gave no {_place(numbers)} ({_checks.first_line(error)}): "
            "X[rows] must be [n, D] for a slice and for increasing row numbers."
        ) from error
    if block.ndim != 2 or len(block) != len(numbers):
        raise UnreadableError(
            f"{name} must give [{len(numbers)}, D] for {_place(numbers)}, got "
            f"{_checks.describe(found if block.dtype == object else block)}: one row "
            "an example; write a few lines of __getitem__ that give it."
        )
    return block


def _ask(X: Any, rows: slice | np.ndarray, numbers: range | np.ndarray) -> Any:
    try:
        return X[rows]
    except UnreadableError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, NotImplementedError):
        # Lists, and sources of single records, know one int at a time.
        return [X[int(number)] for number in numbers]


def _as_block(found: Any) -> Any:
    """What X gave, an array or a list of rows, without what is refused as an array."""
    try:
        return _checks.as_array("data", found)
    except ValueError as error:
        raise UnreadableError(str(error)) from error


def _place(numbers: range | np.ndarray) -> str:
    if len(numbers) == 1:
        return f"row {numbers[0]}"
    return f"rows {numbers[0]} to {numbers[-1]}" if len(numbers) else "rows"


def _refuse_shrunk(X: Any, name: str) -> None:
    """To read a map past the end of its file would end the process, without a word."""
    path = getattr(X, "filename", None) if isinstance(X, np.memmap) else None
    if path is None or not os.path.isfile(path):  # a deleted file stays mapped
        return
    mapped, held = X.offset + X.nbytes, os.path.getsize(path)
    if held < mapped:
        raise UnreadableError(
            f"{name} is a map of {mapped} bytes of {path}, which now has {held}: the "
            "file was cut or replaced; load it again."
        )
