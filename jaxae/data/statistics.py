"""Checks and column statistics of data, in one pass over arrays or Rows."""

import functools
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from jaxae import _checks
from jaxae._moments import Moments, merge
from jaxae.data.rows import as_rows, check_shape, is_in_memory, is_rows, read

Validate = Callable[[Any], None]


def check_array(
    X: Any, name: str = "data", *, validate: Validate | None = None
) -> None:
    """Check that X is a non-empty, finite floating-point array `[N, D]`.

    Args:
      X: an array; a data frame or a tensor is converted to one.
      name: the name of the argument in errors.
      validate: a further check that raises a ValueError, such as
        `Observation.validate`.

    Raises:
      ValueError: if a check fails.
    """
    X = _checks.as_array(name, X)
    if not hasattr(X, "dtype"):
        kind = f"a {type(X).__name__}"
        raise _checks.ArgumentError(name, "must be a NumPy or JAX array", kind)
    check_shape(name, X.shape)
    _check_dtype(name, X, validate)
    block = _Block(np.asarray(X))
    _check_finite(name, block)
    if validate is not None:
        _check_values(validate, name, block)


class ColumnStats(NamedTuple):
    """Statistics of data `[N, D]`; those of columns are float64."""

    num_rows: int
    num_columns: int
    dtype: np.dtype
    sha256: str  # of the values' bytes, row by row, in their dtype, little-endian
    low: np.ndarray  # [D] minimum
    high: np.ndarray  # [D] maximum
    mean: np.ndarray  # [D]
    variance: np.ndarray  # [D] mean squared deviation: divided by N, not N - 1

    @property
    def mean_square_norm(self) -> float:
        """The mean over rows of ||x||^2 = sum_j x_j^2."""
        return float(np.sum(self.variance + self.mean**2))

    @property
    def mean_to_spread(self) -> float:
        """||mean|| / ||std||, norms over columns; inf where no column varies.

        Where it is large, the mean decides which latents are active at first, and those
        that point away from it are dead. Subtract the mean then. Simon, Adams and Zou,
        On the relationship between activation outliers and feature death in sparse
        autoencoders, 2026.
        """
        spread = np.sqrt(np.sum(self.variance))
        return float(np.linalg.norm(self.mean) / spread) if spread else np.inf


def column_stats(
    X: Any,
    name: str = "data",
    *,
    validate: Validate | None = None,
    block_bytes: int = 2**26,
) -> ColumnStats:
    """Check an array or Rows `[N, D]`, and measure and hash it, in one pass.

    The hash depends on the values only: it is the same for an array, a memory map or a
    list of the same rows, and for any `block_bytes`. The statistics may differ in their
    last bits.

    Args:
      X: an array, data frame or tensor, or Rows.
      name: the name of the argument in errors.
      validate: a further check of each block that raises a ValueError, such as
        `Observation.validate`. A row number in its message counts from the block's
        first row; the error raised here counts from the data's.
      block_bytes: the size of the blocks that are read.

    Raises:
      ValueError: if the data are not `[N, D]`, floating point and finite, if their
        width or dtype varies, if `validate` raises, or if rows cannot be read.
    """
    block_bytes = _checks.positive_int("block_bytes", block_bytes)
    X, sha256 = as_rows(X, name), hashlib.sha256()
    first = _first_row(name, X, validate)
    blocks = _hash_blocks(_read_blocks(name, X, first, block_bytes), sha256)
    measures = (_check_and_measure(name, block, validate) for block in blocks)
    return _column_stats(
        functools.reduce(_merge, measures), first.dtype, sha256.hexdigest()
    )


def _first_row(name: str, X: Any, validate: Validate | None) -> Any:
    """Row 0 as `[1, D]`, after checks of the shape and the dtype."""
    if isinstance(X, np.ndarray) or is_in_memory(X):
        check_shape(name, X.shape)
    elif len(X) == 0:
        raise _checks.ArgumentError(name, "must be [N, D], N and D >= 1", "no rows")
    first = X[:1] if is_in_memory(X) else read(X, slice(0, 1), name)
    check_shape(name, first.shape)
    _check_dtype(name, X, validate, first.dtype)
    return first


class _Block(NamedTuple):
    """Successive rows of the data."""

    values: np.ndarray  # [n, D]
    start: int = 0  # number of the first row
    is_all: bool = True  # whether these are all rows of the data

    @property
    def location(self) -> str:
        """Such as " in rows 0 to 9", for errors; empty for all rows."""
        last = self.start + len(self.values) - 1
        return "" if self.is_all else f" in rows {self.start} to {last}"


def _read_blocks(name: str, X: Any, first: Any, block_bytes: int) -> Iterator[_Block]:
    """The blocks of the data, all of the first row's width and dtype."""
    X = np.asarray(X) if is_in_memory(X) else X
    num_rows = max(1, block_bytes // first.nbytes)
    for start in range(0, len(X), num_rows):
        values = read(X, slice(start, min(start + num_rows, len(X))), name)
        is_same_dtype = values.dtype.name == first.dtype.name  # in any byte order
        if values.shape[1:] != first.shape[1:] or not is_same_dtype:
            raise _checks.ArgumentError(
                name,
                "must have one width and one dtype, but row 0 is "
                f"{_checks.describe(first[0])} and rows from {start} on are "
                f"{_checks.describe(values)}",
                advice="convert all rows to one of them",
            )
        yield _Block(values, start, is_all=len(values) == len(X))


def _hash_blocks(blocks: Iterator[_Block], sha256: Any) -> Iterator[_Block]:
    """The same blocks; each is hashed in a thread while the caller measures it."""
    with ThreadPoolExecutor(1) as thread:
        for block in blocks:
            # Little-endian, so that the hash is the same on all machines.
            dtype = block.values.dtype.newbyteorder("<")
            values = np.ascontiguousarray(block.values, dtype)
            hashing = thread.submit(sha256.update, values.view(np.uint8).data)
            yield block
            hashing.result()


class _Measures(NamedTuple):
    low: np.ndarray  # [D]
    high: np.ndarray  # [D]
    moments: Moments


def _check_and_measure(
    name: str, block: _Block, validate: Validate | None
) -> _Measures:
    measures = _measure(block.values)
    # The minimum and maximum of a column with NaN or infinity are not finite either.
    if not (np.isfinite(measures.low).all() and np.isfinite(measures.high).all()):
        _check_finite(name, block)
    if validate is not None:
        _check_values(validate, name, block)
    return measures


_CHUNK_SIZE = 2**15  # values, so that the float64 copy stays in the processor's cache


def _chunks(values: np.ndarray) -> Iterator[np.ndarray]:
    num_rows = max(32, _CHUNK_SIZE // values.shape[1])
    starts = range(0, len(values), num_rows)
    return (values[start : start + num_rows] for start in starts)


def _measure(values: np.ndarray) -> _Measures:
    return functools.reduce(_merge, map(_measure_chunk, _chunks(values)))


def _measure_chunk(chunk: np.ndarray) -> _Measures:
    # Overflow gives infinite moments. `fit_scaling` checks those that it uses.
    with np.errstate(over="ignore", invalid="ignore"):
        # In one memory order, because the order of a sum affects its last bits.
        x = chunk.astype(np.float64, order="C")
        low, high, mean = x.min(axis=0), x.max(axis=0), x.mean(axis=0)
        x -= mean
        squares = np.einsum("nd,nd->d", x, x)
        return _Measures(low, high, Moments(len(x), mean, squares))


def _merge(a: _Measures, b: _Measures) -> _Measures:
    return _Measures(
        low=np.minimum(a.low, b.low),
        high=np.maximum(a.high, b.high),
        moments=merge(a.moments, b.moments),
    )


def _column_stats(measures: _Measures, dtype: np.dtype, sha256: str) -> ColumnStats:
    low, high, (num_rows, mean, squares) = measures
    # The mean of equal numbers is rounded, which must not make a constant column vary.
    is_constant = low == high
    mean = np.where(is_constant, low, mean)
    variance = np.where(is_constant, 0.0, squares / num_rows)
    return ColumnStats(num_rows, len(mean), dtype, sha256, low, high, mean, variance)


# ---- the geometric median ------------------------------------------------------------


def geometric_median(
    X: Any,
    name: str = "data",
    *,
    tolerance: float = 1e-6,
    max_passes: int = 1000,
    block_bytes: int = 2**26,
) -> np.ndarray:
    """The point y with the least mean distance to the rows, mean_i ||x_i - y||.

    Unlike the mean, it hardly moves with a few far rows: a usual first output bias of
    sparse autoencoders, `ae.init(key, data_mean=jaxae.data.geometric_median(X))`.

    Weiszfeld's iteration from the mean, y + R / sum_i 1 / ||x_i - y|| with the pull
    R = sum_i (x_i - y) / ||x_i - y||, in Vardi and Zhang's form: the n rows at y itself
    are left out of both sums, and the step is multiplied by 1 - n / ||R||. y is the
    median where ||R|| <= n. Steps are extrapolated from the last two (Anderson), and
    not so where that increased the mean distance.

    Args:
      X: `[N, D]`, an array, data frame or tensor, or Rows, read once a pass.
      name: the name of the argument in errors.
      tolerance: the mean distance to the result exceeds the least one by at most
        `tolerance` times itself. By convexity it does so by at most
        2 (||R|| - n) / N times itself; rows within tolerance / 4 times the least mean
        distance count as being at y.
      max_passes: over the data.
      block_bytes: the size of the blocks that are read.

    Returns:
      `[D]`, float64.

    Raises:
      ValueError: as `column_stats`, or if the tolerance is not positive or is not
        reached.

    References:
      Vardi and Zhang, The multivariate L1-median and associated data depth, 2000.
    """
    if not (_checks.is_real(tolerance) and tolerance > 0):
        raise _checks.ArgumentError("tolerance", "must be positive", repr(tolerance))
    max_passes = _checks.positive_int("max_passes", max_passes)
    y = column_stats(X, name, block_bytes=block_bytes).mean
    X = as_rows(X, name)
    first, radius, last = _first_row(name, X, None), 0.0, None
    for _ in range(max_passes):
        blocks = _read_blocks(name, X, first, block_bytes)
        pull = functools.reduce(_add, (_pull_of(b.values, y, radius) for b in blocks))
        length, num_rows = float(np.linalg.norm(pull.sum)), len(X)
        if length - pull.num_near <= tolerance / 4 * num_rows:
            return y
        if last is not None and pull.distance > last.distance:
            y, last = last.y, None
            continue
        # The mean is at most twice as far from the rows as the median is.
        radius = radius or tolerance / 8 * pull.distance / num_rows
        step = (1 - pull.num_near / length) * pull.sum / pull.weight
        last, before = _Step(y + step, step, pull.distance), last
        y = last.y if before is None else _extrapolated(before, last)
    raise _checks.ArgumentError(
        "tolerance",
        f"is not reached in {max_passes} passes over the {name}",
        repr(tolerance),
        "give a larger {tolerance} or more {max_passes}",
    )


class _Step(NamedTuple):
    y: np.ndarray  # [D] where the step leads
    step: np.ndarray  # [D]
    distance: float  # before the step, summed over the rows


def _extrapolated(before: _Step, last: _Step) -> np.ndarray:
    """The y of the line through both at which the step, as if linear, is least."""
    change = last.step - before.step
    square = float(change @ change)
    fraction = float(last.step @ change) / square if square > 0 else 0.0
    return last.y - fraction * (last.y - before.y)


class _Pull(NamedTuple):
    """Sums over rows, at a point y."""

    sum: Any  # [D] (x - y) / ||x - y|| of the rows that are not near
    weight: Any  # 1 / ||x - y|| of the same
    num_near: Any
    distance: Any  # ||x - y|| of all rows


def _add(a: _Pull, b: _Pull) -> _Pull:
    return _Pull(*(left + right for left, right in zip(a, b, strict=True)))


def _pull_of(values: np.ndarray, y: np.ndarray, radius: float) -> _Pull:
    """The sums over a block, where rows within `radius` of y are near."""

    def of_chunk(chunk):
        x = chunk.astype(np.float64) - y
        distances = np.sqrt(np.einsum("nd,nd->n", x, x))
        is_near = distances <= radius
        weights = np.where(is_near, 0, 1 / np.where(is_near, 1, distances))
        return _Pull(weights @ x, weights.sum(), is_near.sum(), distances.sum())

    return functools.reduce(_add, map(of_chunk, _chunks(values)))


def _check_dtype(name: str, X: Any, validate: Validate | None, dtype=None) -> None:
    dtype = X.dtype if dtype is None else dtype
    if "float" in dtype.name:  # by name, because NumPy has no kind for bfloat16
        return
    if dtype.kind in "biu":
        x, spelling = (X, "rows") if is_rows(X) else (np.asarray(X), "array")
        advice = f"convert it: {integer_advice(x, spelling, validate)}"
    else:
        advice = _ADVICE.get(str(dtype), _ADVICE.get(dtype.kind, _DEFAULT_ADVICE))
    raise _checks.ArgumentError(name, "must be real floating point", str(dtype), advice)


_DEFAULT_ADVICE = "give numbers, one a column"
_ADVICE = {  # by the dtype, or its kind
    "c": "give real parts only, X.real.astype('float32')",
    "|V2": "if NumPy stored bfloat16, give X.view(jax.numpy.bfloat16)",
    "V": "give one array of numbers, such as numpy.lib.recfunctions."
    "structured_to_unstructured(X)",
}


class _Conversion(NamedTuple):
    """One way to convert integers to floats: what it is for, and how to write it."""

    use: str
    array: str  # for an array
    rows: str  # for Rows
    option: str  # for the command line


def _fitted(name: str, use: str) -> _Conversion:
    fit = f"fit_scaling({name!r}, View(X))"
    rows, option = f"View(X, scaling={fit})", f"--scaling {name}"
    return _Conversion(use, f"{fit}.apply(X)", rows, option)


_CONVERSIONS = {
    "divide": _Conversion(
        "for grey levels", "X / 255", "View(X, scaling=divide(255))", "--divide-by 255"
    ),
    "cast": _Conversion(
        "for counts", "X.astype('float32')", "View(X)", "--divide-by 1"
    ),
    "standardize": _fitted("standardize", "for columns in other units"),
    "unit": _fitted("unit", "for the range [0, 1]"),
}
_SAMPLE_SIZE = 2**20  # values


def integer_advice(X: Any, spelling: str, validate: Validate | None = None) -> str:
    """How to convert integers `[N, D]` to floats that `validate` accepts, in words.

    The first rows decide. `spelling` is "array", "rows" or "option", a field of
    `_Conversion`.
    """
    num_rows = max(1, _SAMPLE_SIZE // read(X, slice(0, 1)).shape[1])
    x = read(X, slice(0, min(num_rows, len(X)))).astype(np.float64)
    names = [name for name, values in _convert(x) if _accepts(validate, values)]
    conversions = [_CONVERSIONS[name] for name in names or ["unit"]]
    if len(conversions) == 1:
        return getattr(conversions[0], spelling)
    return ", ".join(f"{getattr(c, spelling)} {c.use}" for c in conversions)


def _convert(x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(name, converted values) of each conversion that suits these values."""
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
    except Exception:  # the user's code may raise anything
        return False
    return True


def _check_finite(name: str, block: _Block) -> None:
    X = block.values
    is_bad = ~np.isfinite(X)
    if is_bad.any():
        row, column = divmod(int(is_bad.argmax()), X.shape[1])
        raise _checks.ArgumentError(
            name,
            f"must be finite, but row {block.start + row}, column {column} (from 0) "
            f"is {X[row, column]}, first of {is_bad.sum()} such "
            f"values{block.location}",
            advice="drop or fill them",
        )


def _check_values(validate: Validate, name: str, block: _Block) -> None:
    try:
        validate(block.values)
    except _checks.DataError as error:
        raise error.in_rows(name, block.start, block.location) from None
    except ValueError as error:  # of an observation of the user's own
        message = _checks.first_line(error)
        raise _checks.ArgumentError(
            name, f"is invalid{block.location}: {message}"
        ) from error
