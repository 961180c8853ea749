"""Data of any size: Rows, views, splits and column statistics."""

import hashlib
import os
import subprocess
import sys

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxae import data, observations

X = np.random.default_rng(0).normal(3, 2, size=(97, 5)).astype(np.float32)
INDEX = [5, 3, 3, 96, 0, 17, 5]


class Records:
    """Rows by Python int only, as grain's RandomAccessDataSource; records the calls."""

    def __init__(self, X):
        self.X, self.calls = X, []

    def __len__(self):
        return len(self.X)

    def __getitem__(self, record):
        if type(record) is not int:
            raise TypeError(f"record keys are ints, got {record!r}")
        self.calls.append(record)
        return self.X[record]


class Increasing:
    """Rows by slice or strictly increasing ints, as HDF5 datasets; counts the reads."""

    def __init__(self, X):
        self.X, self.max_rows, self.num_reads = X, 0, 0

    def __len__(self):
        return len(self.X)

    def __getitem__(self, rows):
        if not isinstance(rows, slice):
            assert rows.dtype.kind == "i" and (np.diff(rows) > 0).all()
        block = self.X[rows]
        self.max_rows = max(self.max_rows, len(block))
        self.num_reads += 1
        return block


class Zarr:
    """An array with a shape and no length, as zarr's."""

    def __init__(self, X):
        self.X, self.shape = X, X.shape

    def __getitem__(self, rows):
        return self.X[rows]


class FakeRows:
    """Rows that always give the same value, or raise it if it is an error."""

    def __init__(self, value, length=4):
        self.value, self.length = value, length

    def __len__(self):
        if isinstance(self.length, Exception):
            raise self.length
        return self.length

    def __getitem__(self, rows):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@pytest.fixture
def memmap(tmp_path):
    return memory_map(X, tmp_path / "X.npy")


def memory_map(array, path):
    np.save(path, array)
    return data.load(path, memory_budget=0).train


SOURCES = {
    "array": lambda path: X,
    "fortran": lambda path: np.asfortranarray(X),
    "strided": lambda path: np.repeat(X, 2, axis=0)[::2],
    "jax": lambda path: jnp.asarray(X),
    "memmap": lambda path: memory_map(X, path),
    "list": lambda path: list(X),
    "records": lambda path: Records(X),
    "increasing": lambda path: Increasing(X),
    "view": lambda path: data.View(X[::-1], np.arange(97)[::-1]),
    "zarr": lambda path: data.View(Zarr(X), dtype=None),
}


@pytest.fixture(params=SOURCES, name="source")
def _source(request, tmp_path):
    return SOURCES[request.param](tmp_path / "X.npy")


# Rows, and `take`.


def test_everything_that_meets_the_protocol_is_rows_but_arrays_in_memory(memmap):
    for value in (
        X,
        jnp.asarray(X),
        np.float32(1),
        "ab",
        b"ab",
        (X, X),
        {0: X},
        3,
        len,
    ):
        assert not data.is_rows(value)
    for rows in (memmap, list(X), Records(X), data.View(X), data.View(memmap)):
        assert data.is_rows(rows) and isinstance(rows, data.Rows)


def test_take_gives_rows_in_the_order_of_the_index(source):
    for index in (INDEX, np.array(INDEX, np.uint8), [4, 5, 6], [4, 6], [6, 5, 4], [9]):
        rows = data.take(source, index)
        assert type(rows) is np.ndarray and rows.dtype == np.float32
        np.testing.assert_array_equal(rows, X[np.asarray(index)])


def test_take_of_no_rows_has_the_width_and_dtype(source):
    for index in ([], np.zeros(0, int)):
        rows = data.take(source, index)
        assert rows.shape == (0, 5) and rows.dtype == np.float32


def test_take_reads_each_row_once_and_in_increasing_order():
    records, increasing = Records(X), Increasing(X)
    data.take(records, INDEX)
    assert records.calls == [0, 3, 5, 17, 96]
    data.take(increasing, INDEX)
    assert increasing.max_rows == 5 and increasing.num_reads == 1


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([-1], "rows 0 to 96, got -1 to -1; count from 0"),
        ([0, 97], "rows 0 to 96, got 0 to 97"),
        ([True] * 97, r"ints \[n\].* np.flatnonzero\(mask\)"),
        ([0.0], r"ints \[n\]"),
        (3, r"ints \[n\], got 3"),
        ([[0]], r"ints \[n\]"),
    ],
)
def test_take_rejects_an_index_that_is_not_row_numbers(index, message, source):
    with pytest.raises(ValueError, match=f"^index must .*{message}"):
        data.take(source, index)


@given(
    st.lists(st.integers(0, 96), max_size=30), st.sampled_from(["list", "increasing"])
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_take_is_fancy_indexing(index, kind):
    rows = data.take(SOURCES[kind](None), index)
    np.testing.assert_array_equal(rows, X[np.array(index, int)])


# Views.


def test_a_view_is_its_rows_scaled_and_cast(source):
    scaling = data.fit_scaling("standardize", data.column_stats(X))
    expected = scaling.apply(X[INDEX], np.float16)
    view = data.View(source, INDEX, scaling, np.float16)
    assert view.shape == (7, 5) and view.ndim == 2 and view.dtype == np.float16
    assert len(view) == 7 and data.is_rows(view)
    for rows in (slice(None), slice(2, 5), slice(5, None, -2), slice(3, 3)):
        assert view[rows].dtype == np.float16
        np.testing.assert_array_equal(view[rows], expected[rows])
    for rows in ([1, 4], [4, 1, 1], []):
        np.testing.assert_array_equal(view[rows], expected[np.array(rows, int)])
    np.testing.assert_array_equal(np.asarray(view), expected)
    np.testing.assert_array_equal(view[-1], expected[-1])
    np.testing.assert_array_equal(data.take(view, [6, 0]), expected[[6, 0]])


def test_views_of_views_select_and_scale_in_turn(source):
    inner = data.View(source, INDEX, data.divide(2), np.float64)
    outer = data.View(inner, [6, 0, 2], data.divide(5))
    np.testing.assert_array_equal(
        outer[:], ((X[INDEX].astype(float) / 2)[[6, 0, 2]]).astype("f4") / np.float32(5)
    )


def test_a_view_of_integers_gives_what_scaled_gives(tmp_path):
    images = np.arange(256, dtype=np.uint8).reshape(16, 4, 4)
    mapped = memory_map(images, tmp_path / "images.npy")
    view = data.View(mapped, scaling=data.divide(255))
    np.testing.assert_array_equal(view[:], data.scaled(images.reshape(16, 16), 255))
    assert data.View(mapped).dtype == np.float32
    assert data.View(mapped, dtype=None)[:].dtype == np.uint8


def test_a_view_reads_only_the_selected_rows():
    rows = Increasing(X)
    view = data.View(rows, scaling=data.divide(2))
    view[10:20], view[[0, 50, 90]], len(view), view.shape, repr(view)
    assert rows.max_rows == 10


def test_a_change_of_the_callers_index_does_not_change_a_view():
    index = np.array([1, 2])
    view = data.View(X, index)
    index[:] = 0
    np.testing.assert_array_equal(view[:], X[1:3])
    with pytest.raises(ValueError, match="read-only"):
        view.index[0] = 0


def test_a_view_is_frozen_hashable_and_short_to_print(memmap):
    view = data.View(memmap, [1, 2], data.divide(255))
    assert {view: 1}[view] == 1 and view != data.View(memmap, [1, 2])
    assert repr(view) == "View(float32[2, 5] of memmap, divide)"
    with pytest.raises(AttributeError):
        view.index = None


def test_a_view_converts_to_an_array():
    view = data.View(X, [1, 2])
    assert jnp.asarray(view).shape == (2, 5)
    assert np.asarray(view, np.float64).dtype == np.float64
    np.array(data.View(X))[:] = 0
    assert X.any() and [row.shape for row in view] == [(5,), (5,)]


def test_an_empty_view_is_still_a_view():
    empty = data.View(list(X), [])
    assert empty.shape == (0, 5) and empty[:].shape == (0, 5)
    scaled = data.View(empty, scaling=data.divide(2))
    assert scaled[:].shape == (0, 5) and scaled[:].dtype == np.float32


def test_overflow_in_the_dtype_of_a_view_gives_inf():
    assert data.View(np.array([[1e300]]))[:] == np.inf


BAD_VIEWS = {
    "text": (lambda: data.View([["1"]]), r"rows must hold real numbers, got <U1\[1, 1"),
    "complex": (lambda: data.View(X * 1j), "rows must hold real numbers, got complex"),
    "int": (lambda: data.View(3), "rows must be .* got a int"),
    "pair": (lambda: data.View((X, X)), "rows must be .* got a tuple"),
    "index": (lambda: data.View(X, [97]), "index must hold rows 0 to 96"),
    "mask": (lambda: data.View(X, X[:, 0] > 0), "np.flatnonzero"),
    "width": (
        lambda: data.View(
            X[:, :2], None, data.fit_scaling("unit", data.column_stats(X))
        ),
        r"5 columns, as what 'unit' was fitted to, got shape \(1, 2\)",
    ),
    "integers": (
        lambda: data.View(X, None, data.divide(2), np.int8),
        "dtype must be floating point for a scaling, got int8",
    ),
    "images": (
        lambda: data.View(X[None]),
        r"must give \[1, D\] for row 0, got float32",
    ),
    "zarr images": (lambda: data.View(Zarr(X[None])), r"must give \[1, D\] for row 0"),
}


@pytest.mark.parametrize(("make", "message"), BAD_VIEWS.values(), ids=BAD_VIEWS.keys())
def test_bad_arguments_of_a_view_raise_on_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Splits.


def test_rows_are_split_like_arrays_but_into_views(source):
    subsets = data.split(source, 0.2, 0.1, seed=3)
    for subset, expected in zip(subsets, data.split(X, 0.2, 0.1, seed=3), strict=True):
        assert isinstance(subset, data.View) == data.is_rows(source)
        assert subset.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(subset), expected)


def test_a_split_of_a_map_keeps_its_integers_and_copies_nothing(tmp_path):
    mapped = memory_map(
        np.arange(60, dtype=np.uint8).reshape(20, 3), tmp_path / "X.npy"
    )
    remainder, empty = data.split(mapped, 0)
    assert remainder.dtype == np.uint8 and remainder.rows is mapped
    assert empty.shape == (0, 3)
    assert sorted(remainder[:][:, 0]) == list(range(0, 60, 3))


# Column statistics.


@pytest.mark.parametrize("block_bytes", [1, 100, 1000, 2**26])
def test_column_stats_are_those_of_numpy_in_float64(source, block_bytes):
    stats = data.column_stats(source, block_bytes=block_bytes)
    X64 = X.astype(np.float64)
    assert (stats.num_rows, stats.num_columns, stats.dtype) == (97, 5, np.float32)
    np.testing.assert_array_equal(stats.low, X.min(0))
    np.testing.assert_array_equal(stats.high, X.max(0))
    np.testing.assert_allclose(stats.mean, X64.mean(0), rtol=1e-14)
    np.testing.assert_allclose(stats.variance, X64.var(0), rtol=1e-13)
    square_norm = (X64**2).sum(1).mean()
    assert stats.mean_square_norm == pytest.approx(square_norm, rel=1e-14)
    spread = np.linalg.norm(X.astype(np.float64).std(axis=0))
    ratio = np.linalg.norm(X.astype(np.float64).mean(axis=0)) / spread
    assert stats.mean_to_spread == pytest.approx(ratio, rel=1e-12)
    assert data.column_stats(np.ones((3, 2))).mean_to_spread == np.inf
    assert {column.dtype for column in stats[4:]} == {np.dtype(np.float64)}
    assert stats.sha256 == hashlib.sha256(X.tobytes()).hexdigest()


def test_column_stats_agree_with_scikit_learn():
    sklearn = pytest.importorskip("sklearn.preprocessing")
    stats, oracle = (
        data.column_stats(X, block_bytes=64),
        sklearn.StandardScaler().fit(X),
    )
    np.testing.assert_allclose(stats.mean, oracle.mean_, rtol=1e-6)
    np.testing.assert_allclose(stats.variance, oracle.var_, rtol=1e-6)


def test_variance_is_stable_far_from_zero():
    far = np.random.default_rng(1).normal(1e6, 1, size=(20000, 3))
    for block_bytes in (240, 2**26):
        stats = data.column_stats(far, block_bytes=block_bytes)
        np.testing.assert_allclose(stats.mean, far.mean(0), rtol=1e-14)
        np.testing.assert_allclose(stats.variance, far.var(0), rtol=1e-9)


@pytest.mark.parametrize("value", [0.1, 1e6 + 0.1, -1 / 3, 1e300])
@pytest.mark.parametrize("block_bytes", [24, 2**26])
def test_a_constant_column_has_variance_zero_and_its_value_as_mean(value, block_bytes):
    stats = data.column_stats(np.full((4999, 3), value), block_bytes=block_bytes)
    assert stats.variance.tolist() == [0] * 3 and stats.mean.tolist() == [value] * 3


def test_one_row_or_one_column_is_enough():
    one = data.column_stats(X[:1])
    np.testing.assert_array_equal(one.mean, X[0])
    assert one.num_rows == 1 and not one.variance.any()
    column = data.column_stats(X[:, :1], block_bytes=12)
    np.testing.assert_allclose(column.variance, X[:, :1].astype(float).var(0))


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8", ">f8", jnp.bfloat16])
def test_the_hash_does_not_depend_on_byte_order_or_memory_order(dtype):
    cast = X.astype(dtype)
    expected = hashlib.sha256(cast.astype(cast.dtype.newbyteorder("<")).tobytes())
    expected = expected.hexdigest()
    for same in (cast, np.asfortranarray(cast), list(cast), Records(cast)):
        assert data.column_stats(same, block_bytes=64).sha256 == expected
    assert data.column_stats(cast).dtype == np.dtype(dtype)


def test_overflowing_squares_are_infinite_without_a_warning():
    stats = data.column_stats(np.array([[1e200], [-1e200], [3.0]]))
    assert stats.variance == np.inf and stats.high == 1e200


def test_bad_values_are_located_in_the_data_and_counted_in_their_block(tmp_path):
    bad = X.copy()
    bad[50, 3], bad[50, 4], bad[96, 0] = np.nan, np.inf, -np.inf
    for source in (memory_map(bad, tmp_path / "X.npy"), bad, list(bad)):
        with pytest.raises(ValueError) as e:
            data.column_stats(source, "inputs", block_bytes=200)
        assert str(e.value) == (
            "inputs must be finite, but row 50, column 3 (from 0) is nan, first of 2 "
            "such values in rows 50 to 59; drop or fill them."
        )
        with pytest.raises(ValueError, match="row 50, .* first of 3 such values; drop"):
            data.column_stats(source, "inputs")


@pytest.mark.parametrize("X", [np.array([[np.inf]]), np.array([[-np.inf, np.nan]])])
def test_infinities_alone_are_detected(X):
    with pytest.raises(ValueError, match="row 0, column 0 .* is -?inf"):
        data.column_stats(X)


def test_errors_of_validate_name_the_row_of_the_data(tmp_path):
    inside = np.full((97, 5), 0.5)
    inside[50, 3] = inside[51, 0] = 2.0
    validate = observations.bernoulli.validate
    for source in (inside, memory_map(inside, tmp_path / "X.npy")):
        with pytest.raises(ValueError) as e:
            data.column_stats(source, "inputs", validate=validate, block_bytes=400)
        assert str(e.value) == (
            "inputs must be in [0, 1] for bernoulli, found 2.0 at row 50, column 3 and "
            "1 more in rows 50 to 59."
        )
        with pytest.raises(ValueError, match="row 50, column 3 and 1 more.$"):
            data.column_stats(source, validate=validate)
    data.column_stats(np.ones((9, 2)), validate=validate, block_bytes=16)


BAD_ROWS = {
    "nothing": (None, "must be a NumPy or JAX array, or have a length"),
    "pair": ((X, X), "got a tuple"),
    "zarr": (Zarr(X), r"no length, such as zarr's, in View\(X\)"),
    "length": (
        FakeRows(X, OSError("lost")),
        "have a length, but len raised OSError: lost",
    ),
    "negative": (FakeRows(X, -1), "have a length, but len raised"),
    "no rows": ([], r"must be \[N, D\], N and D >= 1, got no rows"),
    "scalar": (np.float64(3), "got a float64"),
    "0-d": (np.array(3.0), r"shape \(\)"),
    "example": (
        X[0],
        r"shape \(5,\); reshape one example by X\[None\], one column by X\[",
    ),
    "images": (
        X[None],
        r"\(1, 97, 5\); reshape tokens .*\(-1, 5\), images .* X.reshape\(len\(X\)",
    ),
    "no columns": (np.ones((3, 0)), r"shape \(3, 0\)"),
    "no columns of rows": ([np.ones(0)] * 3, r"shape \(1, 0\)"),
    "list of numbers": ([1.0, 2.0], r"must give \[1, D\] for row 0, got float64\[1\]"),
    "uint8": (
        np.full((9, 5), 7, "u1"),
        r"uint8; convert it: X\.astype\('float32'\) for coun",
    ),
    "uint8 rows": (
        list(np.full((9, 5), 200, "u1")),
        r"View\(X, scaling=divide\(255\)\)",
    ),
    "bool rows": (list(X > 0), r"got bool; convert it: View\(X\)"),
    "complex rows": (list(X * 1j), "got complex64; give real parts only"),
    "text rows": ([["a"]], "got <U1; give numbers, one a column"),
    "fails": (
        FakeRows(OSError("disk\nburns")),
        r"gave no row 0 \(OSError: disk\): X\[",
    ),
    "deep": (
        FakeRows(RecursionError("deep")),
        r"gave no row 0 \(RecursionError: deep\)",
    ),
    "dict": (FakeRows({"x": [1.0]}), r"must give \[1, D\] for row 0, got \{'x'"),
    "none": (FakeRows(None), r"must give \[1, D\] for row 0, got None"),
    "one for all": (
        FakeRows(X[:1]),
        r"must give \[4, D\] for rows 0 to 3, got float32\[1",
    ),
    "cube": (
        FakeRows(X[None]),
        r"must give \[1, D\] for row 0, got float32\[1, 97, 5\]",
    ),
    "ragged": ([X[0], X[0, :2]], r"gave no rows 0 to 1 \(setting an array element"),
    "dtypes": ([X[0], X[1].astype(float)], r"row 0 is float32\[5\] and rows from 0 on"),
}


@pytest.mark.parametrize(("rows", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_bad_data_are_rejected_in_one_sentence(rows, message):
    with pytest.raises(ValueError, match=f"^inputs .*{message}") as e:
        data.column_stats(rows, "inputs")
    assert "\n" not in str(e.value) and str(e.value).endswith(".")


class FailingRows:
    """Rows that raise an error for any row but the first."""

    def __init__(self, error):
        self.error, self.num_reads = error, 0

    def __len__(self):
        return 97

    def __getitem__(self, rows):
        if isinstance(rows, slice) and rows.stop == 1:
            return X[rows]
        self.num_reads += 1
        raise self.error


@pytest.mark.parametrize("num_views", [0, 1, 3])
def test_an_error_of_rows_is_reported_once_through_views_and_chained(num_views):
    rows = source = FailingRows(RuntimeError("disk gone"))
    for _ in range(num_views):
        rows = data.View(rows)
    sentence = (
        r"^inputs gave no rows 0 to 96 \(RuntimeError: disk gone\): X\[rows\] must be "
        r"\[n, D\] for a slice and for increasing row numbers\.$"
    )
    with pytest.raises(ValueError, match=sentence) as e:
        data.column_stats(rows, "inputs")
    assert e.value.__cause__ is source.error and source.num_reads == 1


def test_ragged_rows_are_reported_once_through_views():
    view = data.View([*X[:5], np.ones((2, 2))])
    with pytest.raises(ValueError, match="^inputs gave no rows 0 to 5 .setting") as e:
        data.column_stats(view, "inputs")
    assert str(e.value).count("gave no") == 1


def test_widths_that_change_between_blocks_are_rejected():
    rows = [*X, *X[:, :2]]
    with pytest.raises(ValueError, match=r"row 0 is float32\[5\] and rows from 97 on"):
        data.column_stats(rows, block_bytes=20)


def test_blocks_have_the_size_of_block_bytes():
    rows = Increasing(X)
    data.column_stats(rows, block_bytes=200)
    assert rows.max_rows == 10 and rows.num_reads == 1 + 10
    for bad in (0, -1, True):
        with pytest.raises(ValueError, match="block_bytes must be an integer"):
            data.column_stats(X, block_bytes=bad)


def test_a_file_truncated_under_its_map_is_an_error_and_not_a_crash(tmp_path):
    code = (
        "import sys, os; from jaxae import data; path = sys.argv[1]; "
        "X = data.load(path, memory_budget=0).train; view = data.View(X, [999]); "
        "os.truncate(path, 5000)\n"
        "take = lambda: data.take(X, [5])\n"
        "for read in (lambda: data.column_stats(X), lambda: view[:], take):\n"
        "    try: read()\n"
        "    except ValueError as error: print(error)"
    )
    np.save(tmp_path / "X.npy", np.ones((1000, 3)))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "X.npy")],
        capture_output=True,
        text=True,
        check=True,
    )
    sentence = (
        f"data is a map of 24128 bytes of {tmp_path / 'X.npy'}, which now has 5000: "
        "the file was truncated or replaced; load it again."
    )
    assert done.stdout.splitlines() == [sentence] * 3


def test_a_deleted_file_stays_mapped(memmap):
    os.unlink(memmap.filename)
    np.testing.assert_array_equal(data.take(memmap, INDEX), X[INDEX])
