"""What data are, found in one pass: refused with the place, or measured."""

import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from jaxae import _checks
from jaxae.data.rows import as_rows, is_in_memory, is_rows, read, refuse_shape

Validate = Callable[[Any], None]


def check_array(
    X: Any, name: str = "data", *, validate: Validate | None = None
) -> None:
    """Refuses all but a non-empty, finite floating-point array `[N, D]`.

    Args:
      X: an array; a data frame or a tensor is looked at as one.
      name: what the sentences call it.
      validate: such as `Observation.validate`: it refuses values by a ValueError.

    Raises:
      ValueError: which of these fails, where, and what would do.
    """
    X = _checks.as_array(name, X)
    if not hasattr(X, "dtype"):
        kind = f"a {type(X).__name__}"
        raise ValueError(f"{name} must be a NumPy or JAX array, got {kind}.")
    refuse_shape(name, X.shape)
    _refuse_dtype(name, X, validate)
    _refuse_not_finite(name, np.asarray(X), 0, "")
    if validate is not None:
        _validate(validate, name, np.asarray(X), 0, "")


class ColumnStats(NamedTuple):
    """What one pass over data `[N, D]` found; columns' measures in float64."""

    num_rows: int
    num_columns: int
    dtype: np.dtype
    sha256: str  # of the values' bytes, row by row, in their dtype, little-endian
    low: np.ndarray  # [D] the least
    high: np.ndarray  # [D] the greatest
    mean: np.ndarray  # [D]
    variance: np.ndarray  # [D] the mean square about the mean, so divided by N

    @property
    def mean_square_norm(self) -> float:
        """The mean over rows of ||x||^2 = sum_j x_j^2."""
        return float(np.sum(self.variance + self.mean**2))


def column_stats(
    X: Any,
    name: str = "data",
    *,
    validate: Validate | None = None,
    block_bytes: int = 2**26,
) -> ColumnStats:
    """One pass over an array or Rows `[N, D]`: refuse, or measure and hash.

    The hash is of the values alone: the same for an array, a memory map or a list of
    the same rows, whatever `block_bytes`. The measures may differ in their last bits.

    Args:
      X: an array, data frame or tensor, or Rows, of which about `block_bytes` are read
        at a time.
      name: what the sentences call it.
      validate: such as `Observation.validate`: given each block, it refuses values by
        a ValueError about "row i" of the block, told here as the row of the whole.
      block_bytes: of memory, per block.

    Raises:
      ValueError: what is not `[N, D]`, real floating and finite, or of varying width
        or dtype; what `validate` refuses; rows that cannot be read.
    """
    block_bytes = _checks.positive_int("block_bytes", block_bytes)
    X, digest = as_rows(X, name), hashlib.sha256()
    first = _first_row(name, X, validate)
    blocks = _hashed(_blocks(name, X, first, block_bytes), digest)
    parts = (_examine(name, X, start, block, validate) for start, block in blocks)
    moments = functools.reduce(_merge, parts)
    return _report(moments, first.dtype, digest.hexdigest())


def _first_row(name: str, X: Any, validate: Validate | None) -> Any:
    """Row 0 as `[1, D]`, once what it tells of the shape and the dtype is accepted."""
    if isinstance(X, np.ndarray) or is_in_memory(X):
        refuse_shape(name, X.shape)
    elif len(X) == 0:
        raise ValueError(f"{name} must be [N, D], N and D >= 1, got no rows.")
    first = X[:1] if is_in_memory(X) else read(X, slice(0, 1), name)
    refuse_shape(name, first.shape)
    _refuse_dtype(name, X, validate, first.dtype)
    return first


Blocks = Iterator[tuple[int, np.ndarray]]


def _blocks(name: str, X: Any, first: Any, block_bytes: int) -> Blocks:
    """(number of its first row, block `[n, D]`), all of the first row's kind."""
    X = np.asarray(X) if is_in_memory(X) else X
    num_rows = max(1, block_bytes // first.nbytes)
    for start in range(0, len(X), num_rows):
        block = read(X, slice(start, min(start + num_rows, len(X))), name)
        is_alike = block.dtype.name == first.dtype.name  # in whatever byte order
        if block.shape[1:] != first.shape[1:] or not is_alike:
            raise ValueError(
                f"{name} must have one width and one dtype, but row 0 is "
                f"{_checks.describe(first[0])} and rows from {start} on are "
                f"{_checks.describe(block)}: convert them alike."
            )
        yield start, block


def _hashed(blocks: Blocks, digest: Any) -> Blocks:
    with ThreadPoolExecutor(1) as thread:
        for start, block in blocks:
            # As most machines store them, so that a hash is the same on all.
            values = np.ascontiguousarray(block, block.dtype.newbyteorder("<"))
            hashing = thread.submit(digest.update, values.view(np.uint8).data)
            yield start, block  # is hashed while it is measured
            hashing.result()


def _examine(
    name: str,
    X: Any,
    start: int,
    block: np.ndarray,
    validate: Validate | None,
) -> "_Moments":
    is_whole = len(block) == len(X)
    place = "" if is_whole else f" in rows {start} to {start + len(block) - 1}"
    moments = _block_moments(block)
    # The extremes of NaN are NaN, so finite ones vouch for all between.
    if not (np.isfinite(moments.low).all() and np.isfinite(moments.high).all()):
        _refuse_not_finite(name, block, start, place)
    if validate is not None:
        _validate(validate, name, block, start, place)
    return moments


class _Moments(NamedTuple):
    num_rows: int
    low: np.ndarray  # [D]
    high: np.ndarray  # [D]
    mean: np.ndarray  # [D]
    squares: np.ndarray  # [D] sum of (x - mean)^2


_CHUNK = 2**15  # values: what is converted to float64 stays in the processor's cache


def _block_moments(block: np.ndarray) -> _Moments:
    num_rows = max(32, _CHUNK // block.shape[1])
    starts = range(0, len(block), num_rows)
    chunks = (block[start : start + num_rows] for start in starts)
    return functools.reduce(_merge, map(_chunk_moments, chunks))


def _chunk_moments(chunk: np.ndarray) -> _Moments:
    # Overflow gives infinite moments, which `fit_scaling` refuses where it needs them.
    with np.errstate(over="ignore", invalid="ignore"):
        # In one order, for that of a sum decides its last bits: frames are by column.
        x = chunk.astype(np.float64, order="C")
        low, high, mean = x.min(axis=0), x.max(axis=0), x.mean(axis=0)
        x -= mean
        return _Moments(len(x), low, high, mean, np.einsum("nd,nd->d", x, x))


def _merge(a: _Moments, b: _Moments) -> _Moments:
    """Moments of the union of two samples (Chan, Golub and LeVeque, 1979).

    d = mean_b - mean_a;  mean = mean_a + d n_b / n;
    squares = squares_a + squares_b + d^2 n_a n_b / n
    """
    num_rows = a.num_rows + b.num_rows
    with np.errstate(over="ignore", invalid="ignore"):
        d = b.mean - a.mean
        mean = a.mean + d * (b.num_rows / num_rows)
        squares = a.squares + b.squares + d**2 * (a.num_rows * b.num_rows / num_rows)
    low, high = np.minimum(a.low, b.low), np.maximum(a.high, b.high)
    return _Moments(num_rows, low, high, mean, squares)


def _report(moments: _Moments, dtype: np.dtype, sha256: str) -> ColumnStats:
    num_rows, low, high, mean, squares = moments
    # The mean of equal numbers rounds, and must not make a constant column vary.
    is_constant = low == high
    mean = np.where(is_constant, low, mean)
    variance = np.where(is_constant, 0.0, squares / num_rows)
    return ColumnStats(num_rows, len(mean), dtype, sha256, low, high, mean, variance)


def _refuse_dtype(name: str, X: Any, validate: Validate | None, dtype=None) -> None:
    dtype = X.dtype if dtype is None else dtype
    if "float" in dtype.name:  # by name, for NumPy has no kind for bfloat16
        return
    if dtype.kind in "biu":
        x, spelling = (X, "rows") if is_rows(X) else (np.asarray(X), "array")
        advice = f"convert it: {integer_advice(x, spelling, validate)}"
    else:
        advice = _ADVICE.get(str(dtype), _ADVICE.get(dtype.kind, _NO_NUMBERS))
    raise ValueError(f"{name} must be real floating point, got {dtype}: {advice}.")


_NO_NUMBERS = "give numbers, one a column"
_ADVICE = {  # by the dtype, or its kind
    "c": "give real parts only, X.real.astype('float32')",
    "|V2": "if NumPy stored bfloat16, it is X.view(jax.numpy.bfloat16)",
    "V": "give one array of numbers, as of numpy.lib.recfunctions."
    "structured_to_unstructured(X)",
}


class _Conversion(NamedTuple):
    """One way to make floats of integers: what for, and how it is spelled."""

    use: str
    array: str
    rows: str
    option: str


_CONVERSIONS = {
    "divide": _Conversion(
        "for grey levels", "X / 255", "View(X, scaling=divide(255))", "--divide-by 255"
    ),
    "cast": _Conversion(
        "for counts", "X.astype('float32')", "View(X)", "--divide-by 1"
    ),
    "standardize": _Conversion(
        "for columns in other units",
        "fit_scaling('standardize', View(X)).apply(X)",
        "View(X, scaling=fit_scaling('standardize', View(X)))",
        "--scaling standardize",
    ),
    "unit": _Conversion(
        "for the range [0, 1]",
        "fit_scaling('unit', View(X)).apply(X)",
        "View(X, scaling=fit_scaling('unit', View(X)))",
        "--scaling unit",
    ),
}
_LOOKED_AT = 2**20  # values


def integer_advice(X: Any, spelling: str, validate: Validate | None = None) -> str:
    """How integers `[N, D]` become floats that `validate` accepts, in words.

    Args:
      X: an array or Rows, of which the first rows are looked at.
      spelling: "array", "rows" or "option", a field of `_Conversion`.
      validate: such as `Observation.validate`; None accepts all.
    """
    num_rows = max(1, _LOOKED_AT // read(X, slice(0, 1)).shape[1])
    x = read(X, slice(0, min(num_rows, len(X)))).astype(np.float64)
    kinds = [kind for kind, values in _floats(x) if _accepts(validate, values)]
    found = [_CONVERSIONS[kind] for kind in kinds or ["unit"]]
    if len(found) == 1:
        return getattr(found[0], spelling)
    return ", ".join(f"{getattr(one, spelling)} {one.use}" for one in found)


def _floats(x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What each conversion that suits these values makes of them."""
    low, high = x.min(), x.max()
    if low >= 0 and 128 <= high <= 255:
        yield "divide", x / 255
    yield "cast", x
    if low < 0 or high > 1:
        spread = x.std(axis=0)
        yield "standardize", (x - x.mean(axis=0)) / np.where(spread == 0, 1, spread)


def _accepts(validate: Validate | None, values: np.ndarray) -> bool:
    try:
        if validate is not None:
            validate(values)
    except Exception:  # another's code may raise anything
        return False
    return True


def _refuse_not_finite(name: str, X: np.ndarray, first: int, place: str) -> None:
    is_bad = ~np.isfinite(X)
    if is_bad.any():
        row, column = divmod(int(is_bad.argmax()), X.shape[1])
        raise ValueError(
            f"{name} must be finite, but row {first + row}, column {column} (from 0) "
            f"is {X[row, column]}, first of {is_bad.sum()} such values{place}: drop or "
            "fill them."
        )


def _validate(
    validate: Validate,
    name: str,
    block: np.ndarray,
    first: int,
    place: str,
) -> None:
    try:
        validate(block)
    except ValueError as error:
        # It speaks of "data", and counts rows, and such values, in what it was given.
        text = str(error).replace("data", name, 1)
        text = re.sub(
            r"(?<=\brow )\d+", lambda m: str(first + int(m[0])), text, count=1
        )
        raise ValueError(f"{text.removesuffix('.')}{place}.") from None
