"""Some rows of anything, scaled as they are read; random splits."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxae.data.rows import check_rows, is_rows, read, row_numbers, take
from jaxae.data.scaling import Scaling


@dataclass(frozen=True, eq=False, repr=False)
class View:
    """Chosen rows of an array or Rows, scaled as they are read; itself Rows.

    `view[rows]` reads those rows only; `np.asarray(view)` reads them all.

    Attributes:
      rows: an array or Rows `[N, D]`.
      index: row numbers `[n]` in any order; None for all.
      scaling: applied to what is read.
      dtype: of what is given; None for the rows' own.
      shape: (n, D).

    Raises:
      ValueError: when made, for rows that cannot be read, an index that is not row
        numbers, a scaling of another width or with an integer dtype.
    """

    rows: Any
    index: Any = None
    scaling: Scaling | None = None
    dtype: Any = np.float32
    shape: tuple[int, int] = field(init=False)

    # The sentences below come before those of a type checker.
    __no_type_check__ = True

    def __post_init__(self):
        num_rows = check_rows(self.rows, "rows")
        first = read(self.rows, slice(0, 1), "rows")
        dtype = np.dtype(first.dtype if self.dtype is None else self.dtype)
        if self.scaling is not None:
            if "float" not in dtype.name:
                raise ValueError(
                    f"dtype must be floating point for a scaling, got {dtype}: leave "
                    "it out for float32."
                )
            self.scaling.apply(first)
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
            with np.errstate(
                over="ignore"
            ):  # what overflows is inf, and told by survey
                return block.astype(self.dtype, copy=False)
        return self.scaling.apply(block, self.dtype)

    def _read(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            if self.index is None and rows.step in (None, 1):
                return read(self.rows, rows, "rows")
            rows = np.arange(len(self))[rows]
        index = row_numbers(rows, len(self))
        return take(self.rows, index if self.index is None else self.index[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # it is one, but for a view of an array in memory
        return self[:].astype(dtype or self.dtype, copy=False)

    def __repr__(self) -> str:
        kind = "" if self.scaling is None else f", {self.scaling.name}"
        found = f"{self.dtype}{list(self.shape)} of {type(self.rows).__name__}"
        return f"View({found}{kind})"


def split(X: Any, *fractions: float | int, seed: int = 0) -> tuple[Any, ...]:
    """(rest, part_1, part_2, ...): disjoint random rows of X `[N, D]`.

    A part takes round(fraction * N) rows, at least one unless its fraction is 0. It
    depends on the seed and on the fractions before it, not on those after it: changing
    the validation split in `split(X, test, validation)` leaves the test rows alone.
    Of an array the parts are arrays; of a memory map or other Rows (`is_rows`) they are
    Views in its dtype, of the same rows, and nothing is copied.

    Raises:
      ValueError: a fraction outside [0, 1), a sum of 1 or more, too few rows.
    """
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
