"""Views, which select and scale rows as they are read, and random splits."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxae import _checks
from jaxae.data.rows import (
    BlockShuffle,
    as_rows,
    block_shuffle_of,
    check_rows,
    check_shape,
    is_rows,
    read,
    row_numbers,
    take,
)
from jaxae.data.scaling import Scaling, real


class _WithLength:
    """An array that has a shape but no length, such as zarr's, with a length."""

    def __init__(self, array: Any):
        self.array = array

    def __len__(self) -> int:
        return self.array.shape[0]

    def __getitem__(self, rows: Any) -> Any:
        return self.array[rows]


class _Dense:
    """The rows of a sparse matrix of scipy, dense as they are read."""

    def __init__(self, matrix: Any):
        check_shape("rows", matrix.shape)
        self.matrix = matrix.tocsr()

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.matrix[rows].toarray()


def _as_rows(rows: Any) -> Any:
    if hasattr(type(rows), "tocsr"):
        return _Dense(rows)
    rows = _checks.as_array("rows", rows)
    has_length = hasattr(rows, "__len__") or not hasattr(rows, "shape")
    return rows if has_length else _WithLength(rows)


@dataclass(frozen=True, eq=False, repr=False)
class View:
    """Selected rows of an array or Rows, scaled as they are read. A View is Rows.

    `view[rows]` reads those rows only; `np.asarray(view)` reads all rows.

    Attributes:
      rows: an array, data frame, tensor or Rows `[N, D]`, a sparse matrix of scipy,
        which becomes dense as it is read, or an array without a length, such as zarr's.
      index: row numbers `[n]` in any order; None for all.
      scaling: applied to the rows that are read; None for none.
      dtype: of the rows that the view gives; None for the dtype of `rows`.
      shape: (n, D).

    Raises:
      ValueError: on construction, if the rows cannot be read or are not real numbers,
        the index is not row numbers, or the scaling has another width or is used with
        an integer dtype.
    """

    rows: Any
    index: Any = None
    scaling: Scaling | None = None
    dtype: Any = np.float32
    shape: tuple[int, int] = field(init=False)

    # Under beartype in the tests, the errors of the checks below come first.
    __no_type_check__ = True

    def __post_init__(self):
        rows = _as_rows(self.rows)
        object.__setattr__(self, "rows", rows)
        num_rows, start = check_rows(rows, "rows"), 0
        if self.index is not None:
            # A copy, so that a change of the caller's array does not change the view.
            index = row_numbers(self.index, num_rows).copy()
            index.flags.writeable = False
            num_rows = len(index)
            object.__setattr__(self, "index", index)
            start = int(index[0]) if num_rows else 0  # other rows may be invalid
        first = read(rows, slice(start, start + 1), "rows")
        dtype = np.dtype(first.dtype if self.dtype is None else self.dtype)
        if dtype != first.dtype:
            real("rows", first)
        if self.scaling is not None:
            _check_scaling(self.scaling, first, dtype)
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "shape", (num_rows, first.shape[1]))

    @property
    def ndim(self) -> int:
        """2, as for an array `[n, D]`."""
        return 2

    @property
    def block_shuffle(self) -> BlockShuffle | None:
        """That of `rows`; None if the index is not increasing."""
        if self.index is None or (self.index[1:] > self.index[:-1]).all():
            return block_shuffle_of(self.rows)
        return None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The rows `[n, D]` of a slice or of row numbers; one row `[D]` of an int."""
        if isinstance(rows, int | np.integer):
            return self[[range(len(self))[rows]]][0]
        block = self._read(rows)
        if self.scaling is None:
            with np.errstate(over="ignore"):  # overflow gives inf, as in a scaling
                return block.astype(self.dtype, copy=False)
        return self.scaling.apply(block, self.dtype)

    def _read(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            if self.index is None and rows.step in (None, 1):
                return read(self.rows, rows)
            rows = np.arange(*rows.indices(len(self)))
        index = row_numbers(rows, len(self))
        return take(self.rows, index if self.index is None else self.index[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype, copy=copy)

    def __repr__(self) -> str:
        scaling = "" if self.scaling is None else f", {self.scaling.name}"
        source = type(self.rows).__name__
        return f"View({self.dtype}{list(self.shape)} of {source}{scaling})"


def _check_scaling(scaling: Scaling, first: np.ndarray, dtype: np.dtype) -> None:
    if "float" not in dtype.name:
        raise _checks.ArgumentError(
            "dtype",
            "must be floating point for a scaling",
            str(dtype),
            "omit it for float32",
        )
    scaling.apply(first)


def split(X: Any, *fractions: float | int, seed: int = 0) -> tuple[Any, ...]:
    """Split X `[N, D]` at random into disjoint subsets: (remainder, subset_1, ...).

    Subset i has round(fraction_i * N) rows, at least one unless its fraction is 0. It
    depends on the seed and on the fractions up to its own, so that changing the
    validation fraction in `split(X, test, validation)` does not change the test rows.

    Args:
      X: an array, data frame or tensor, or Rows.
      fractions: the fraction of the rows in each subset after the first.
      seed: seeds the permutation of the rows.

    Returns:
      Arrays if X is an array, data frame or tensor; Views in X's dtype, which copy
      nothing, if X is a memory map or other Rows (`is_rows`).

    Raises:
      ValueError: if X is not an array or Rows, a fraction is outside [0, 1), their sum
        is 1 or more, or there are too few rows.
    """
    X = as_rows(X, "X")
    if not all(0 <= fraction < 1 for fraction in fractions) or sum(fractions) >= 1:
        raise _checks.ArgumentError(
            "fractions", "must be >= 0 and sum to < 1", str(fractions)
        )
    num_rows = len(X)
    sizes = [max(1, round(f * num_rows)) if f > 0 else 0 for f in fractions]
    if sum(sizes) >= num_rows:
        raise _checks.ArgumentError(
            "X",
            f"has too few rows for fractions {fractions} and a remainder",
            f"{num_rows}",
        )
    rows = np.random.default_rng(seed).permutation(num_rows)
    *subsets, remainder = np.split(rows, np.cumsum(sizes, dtype=int))
    if block_shuffle_of(X) is not None:  # blocks of a subset are blocks of X
        subsets, remainder = [np.sort(s) for s in subsets], np.sort(remainder)
    return tuple(
        View(X, index, dtype=None) if is_rows(X) else X[index]
        for index in (remainder, *subsets)
    )
