"""Some rows of anything, scaled as they are read; random splits."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxae import _checks
from jaxae.data.rows import as_rows, check_rows, is_rows, read, row_numbers, take
from jaxae.data.scaling import Scaling, real


class _Sized:
    """What has a shape but no length, as zarr's arrays, with both."""

    def __init__(self, array: Any):
        self.array = array

    def __len__(self) -> int:
        return self.array.shape[0]

    def __getitem__(self, rows: Any) -> Any:
        return self.array[rows]


@dataclass(frozen=True, eq=False, repr=False)
class View:
    """Chosen rows of an array or Rows, scaled as they are read; itself Rows.

    `view[rows]` reads those rows only; `np.asarray(view)` reads them all.

    Attributes:
      rows: an array, data frame, tensor or Rows `[N, D]`; of zarr, an array too, which
        has no length.
      index: row numbers `[n]` in any order; None for all.
      scaling: applied to what is read.
      dtype: of what is given; None for the rows' own.
      shape: (n, D).

    Raises:
      ValueError: when made, for rows that cannot be read or are no real numbers, an
        index that is not row numbers, a scaling of another width or with an integer
        dtype.
    """

    rows: Any
    index: Any = None
    scaling: Scaling | None = None
    dtype: Any = np.float32
    shape: tuple[int, int] = field(init=False)

    # The sentences below come before those of a type checker.
    __no_type_check__ = True

    def __post_init__(self):
        rows = _checks.as_array("rows", self.rows)
        if hasattr(rows, "shape") and not hasattr(rows, "__len__"):
            rows = _Sized(rows)
        object.__setattr__(self, "rows", rows)
        num_rows = check_rows(rows, "rows")
        first = read(self.rows, slice(0, 1), "rows")
        dtype = np.dtype(first.dtype if self.dtype is None else self.dtype)
        if dtype != first.dtype:
            real("rows", first)
        if self.scaling is not None:
            _check_scaling(self.scaling, first, dtype)
        if self.index is not None:
            # A copy: what the caller does to theirs must not change the view.
            index = row_numbers(self.index, num_rows).copy()
            index.flags.writeable = False
            num_rows = len(index)
            object.__setattr__(self, "index", index)
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "shape", (num_rows, first.shape[1]))

    @property
    def ndim(self) -> int:
        """2, as of an array `[n, D]`."""
        return 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The rows `[n, D]` of a slice or of row numbers; one row `[D]` of an int."""
        if isinstance(rows, int | np.integer):
            return self[[range(len(self))[rows]]][0]
        block = self._read(rows)
        if self.scaling is None:
            with np.errstate(over="ignore"):  # what overflows is inf, as if scaled
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
        kind = "" if self.scaling is None else f", {self.scaling.name}"
        found = f"{self.dtype}{list(self.shape)} of {type(self.rows).__name__}"
        return f"View({found}{kind})"


def _check_scaling(scaling: Scaling, first: np.ndarray, dtype: np.dtype) -> None:
    if "float" not in dtype.name:
        raise ValueError(
            f"dtype must be floating point for a scaling, got {dtype}: leave it out "
            "for float32."
        )
    scaling.apply(first)


def split(X: Any, *fractions: float | int, seed: int = 0) -> tuple[Any, ...]:
    """(rest, part_1, part_2, ...): disjoint random rows of X `[N, D]`.

    A part takes round(fraction * N) rows, at least one unless its fraction is 0. It
    depends on the seed and on the fractions before it, not on those after it: changing
    the validation split in `split(X, test, validation)` leaves the test rows alone.
    Of an array, a data frame or a tensor the parts are arrays; of a memory map or other
    Rows (`is_rows`) they are Views in its dtype, of the same rows, and nothing is
    copied.

    Raises:
      ValueError: what is no array or Rows; a fraction outside [0, 1), a sum of 1 or
        more, too few rows.
    """
    X = as_rows(X, "X")
    if not all(0 <= fraction < 1 for fraction in fractions) or sum(fractions) >= 1:
        raise ValueError(f"Fractions must be >= 0 and sum to < 1, got {fractions}.")
    num_rows = len(X)
    sizes = [max(1, round(f * num_rows)) if f > 0 else 0 for f in fractions]
    if sum(sizes) >= num_rows:
        raise ValueError(f"{num_rows} rows are too few for a rest beside {fractions}.")
    rows = np.random.default_rng(seed).permutation(num_rows)
    *parts, rest = np.split(rows, np.cumsum(sizes, dtype=int))
    return tuple(_select(X, part) for part in (rest, *parts))


def _select(X: Any, part: np.ndarray) -> Any:
    return View(X, part, dtype=None) if is_rows(X) else X[part]
