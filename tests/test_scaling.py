"""Scalings: fitted, applied, inverted, saved and loaded."""

import contextlib
import functools
import json
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings

from jaxae import data

X = np.random.default_rng(0).normal([0, 3, -5, 1e4], [1, 0.1, 20, 3], (200, 4))
X = X.astype(np.float32)
STATS = data.column_stats(X)
SCALINGS = {name: data.fit_scaling(name, STATS) for name in data.SCALINGS}
SCALINGS["divide"] = data.divide(255)


@pytest.fixture(params=SCALINGS)
def scaling(request):
    return SCALINGS[request.param]


# The values of each scaling.


def test_none_leaves_values_and_only_casts():
    none = SCALINGS["none"]
    np.testing.assert_array_equal(none.apply(X), X)
    assert none.apply(X) is not X and none.apply(X.astype(int)).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, jnp.bfloat16])
@pytest.mark.parametrize("number", [255, 16.0, 0.1, 1e-3])
@pytest.mark.parametrize("kind", ["u1", "f4", ">f8"])
def test_divide_is_bit_identical_to_scaled(dtype, number, kind):
    stored = np.abs(X[:50] / 100).astype(kind)
    scaled = data.divide(number).apply(stored, dtype)
    expected = data.scaled(stored, number, dtype)
    with np.errstate(over="ignore"):
        divided = stored.astype(dtype) / np.asarray(number, dtype)
    assert scaled.dtype == expected.dtype == np.dtype(dtype)
    assert scaled.tobytes() == expected.tobytes() == divided.tobytes()


def test_unit_is_the_min_max_scaler_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.preprocessing")
    scaled = SCALINGS["unit"].apply(X, np.float64)
    oracle = sklearn.MinMaxScaler().fit_transform(X.astype(float))
    np.testing.assert_allclose(scaled, oracle, rtol=1e-12, atol=1e-12)
    for dtype in (np.float16, np.float32, np.float64, jnp.bfloat16):
        scaled = SCALINGS["unit"].apply(X, dtype)
        assert (scaled.min(0) == 0).all() and (scaled.max(0) == 1).all()


@pytest.mark.parametrize("name", ["none", "unit", "standardize", "center"])
def test_a_scaling_is_fitted_to_data_or_to_their_statistics(name):
    for source in (X, jnp.asarray(X), list(X), data.View(X)):
        fitted = data.fit_scaling(name, source)
        for field in ("shift", "scale", "clip"):
            expected = getattr(SCALINGS[name], field)
            np.testing.assert_array_equal(getattr(fitted, field), expected)
    with pytest.raises(ValueError, match="data must be real floating point, got uint8"):
        data.fit_scaling(name, X.astype("u1"))
    with pytest.raises(ValueError, match="data must be a NumPy or JAX array, or have"):
        data.fit_scaling(name, None)


def test_unit_clips_values_outside_the_range_of_the_statistics():
    beyond = np.stack([STATS.low - 1, STATS.high + 1])
    np.testing.assert_array_equal(SCALINGS["unit"].apply(beyond), [[0] * 4, [1] * 4])


def test_standardize_is_the_standard_scaler_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.preprocessing")
    scaled = SCALINGS["standardize"].apply(X, np.float64)
    oracle = sklearn.StandardScaler().fit_transform(X.astype(float))
    np.testing.assert_allclose(scaled, oracle, rtol=1e-9, atol=1e-12)


def test_center_keeps_relative_scales_and_gives_mean_square_norm_d():
    scaled = SCALINGS["center"].apply(X, np.float64)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-12)
    assert (scaled**2).sum(1).mean() == pytest.approx(4, rel=1e-12)
    ratios = scaled.std(0) / X.astype(float).std(0)
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-9)
    assert SCALINGS["center"].scale.shape == ()


@pytest.mark.parametrize("name", ["unit", "standardize", "center"])
@pytest.mark.parametrize("value", [0.1, -1e6, 0.0])
def test_constant_columns_become_zero(name, value):
    constant = np.full((30, 2), value)
    scaling = data.fit_scaling(name, data.column_stats(constant))
    np.testing.assert_array_equal(scaling.apply(constant), 0)
    np.testing.assert_array_equal(scaling.invert(np.zeros((30, 2))), constant)
    mixed = np.column_stack([constant[:, 0], np.arange(30)])
    scaling = data.fit_scaling(name, data.column_stats(mixed))
    assert not scaling.apply(mixed)[:, 0].any() and scaling.apply(mixed)[:, 1].any()


def test_one_example_or_one_column_can_be_scaled(scaling):
    assert np.isfinite(scaling.apply(X[0])).all() and scaling.apply(X[0]).shape == (4,)
    for small in (X[:1], X[:, :1]):
        fitted = {
            n: data.fit_scaling(n, data.column_stats(small)) for n in data.SCALINGS
        }
        for one in fitted.values():
            assert np.isfinite(one.apply(small)).all()


def test_values_far_from_zero_keep_their_digits_in_float32():
    far = np.random.default_rng(0).normal(1e6, 1, (500, 2))
    standardize = data.fit_scaling("standardize", data.column_stats(far))
    oracle = (far - far.mean(0)) / far.std(0)
    np.testing.assert_allclose(standardize.apply(far), oracle, atol=1e-6)


# Properties of all scalings.


def test_invert_undoes_apply_where_nothing_was_clipped(scaling):
    X64 = X.astype(float)
    inverted = scaling.invert(scaling.apply(X64, np.float64))
    np.testing.assert_allclose(inverted, X64, rtol=1e-9)
    assert scaling.invert(scaling.apply(X), np.float32).dtype == np.float32
    assert scaling.invert(jnp.zeros((2, 4))).dtype == np.float64


@given(st.lists(st.integers(0, 199), min_size=1, max_size=40), st.sampled_from("fd"))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_a_scaled_row_is_bit_identical_in_any_block_and_order(index, kind):
    for scaling in SCALINGS.values():
        expected = scaling.apply(X, kind)[index]
        for source in (X[index], np.asfortranarray(X[index]), list(X[index])):
            assert scaling.apply(source, kind).tobytes() == expected.tobytes()


def test_the_input_is_unchanged_and_the_output_is_a_new_array(scaling):
    before = X.copy()
    scaled = scaling.apply(X)
    scaled[:] = 7
    np.testing.assert_array_equal(X, before)


def test_jax_arrays_and_memory_maps_give_bit_identical_results(scaling, tmp_path):
    np.save(tmp_path / "X.npy", X)
    mapped = data.load(tmp_path / "X.npy", memory_budget=0).train
    expected = scaling.apply(X)
    for source in (jnp.asarray(X), mapped):
        scaled = scaling.apply(source)
        assert type(scaled) is np.ndarray and scaled.tobytes() == expected.tobytes()


def test_other_widths_are_rejected(scaling):
    for call in (scaling.apply, scaling.invert):
        if scaling.shift.ndim:
            with pytest.raises(ValueError, match=r"4 columns.* got shape \(200, 1\)"):
                call(X[:, :1])
            with pytest.raises(ValueError, match=r"4 columns.* got shape \(\)"):
                call(1.0)


def test_the_width_of_a_scale_without_a_shift_is_checked_too():
    custom = data.Scaling("custom", np.array(0.0), np.arange(1.0, 5))
    np.testing.assert_array_equal(custom.apply(X), X / np.arange(1, 5, dtype="f4"))
    with pytest.raises(ValueError, match="4 columns, as what 'custom'"):
        custom.apply(X[:, :2])


@pytest.mark.parametrize(
    "values",
    [X.astype(str), X * 1j, X.astype(object), X.astype("S9")],
    ids=lambda values: values.dtype.kind,
)
def test_values_that_are_not_real_numbers_are_rejected(scaling, values):
    for call in (scaling.apply, scaling.invert):
        with pytest.raises(ValueError, match="must hold real numbers, got .*200, 4"):
            call(values)


def test_the_repr_of_a_scaling_has_its_numbers():
    assert repr(data.divide(255)) == "Scaling('divide', shift 0.0, scale 255.0)"
    assert repr(SCALINGS["standardize"]).startswith("Scaling('standardize', shift ")


# Errors.


def test_unknown_names_list_the_known_ones():
    with pytest.raises(
        ValueError, match="scaling must be one of .* standardize.* got 'units' .*'unit'"
    ):
        data.fit_scaling("units", STATS)


@pytest.mark.parametrize("number", [0, -255, float("nan"), float("inf")])
def test_divisors_that_are_not_positive_and_finite_are_rejected(number):
    with pytest.raises(ValueError, match="scaling 'divide' must have a finite shift"):
        data.divide(number)


@pytest.mark.parametrize("name", ["unit", "standardize", "center"])
def test_ranges_that_overflow_are_rejected(name):
    stats = data.column_stats(np.array([[1.7e308, 0.0], [-1.7e308, 1.0]]))
    with pytest.raises(ValueError, match=f"scaling {name!r} must have a finite"):
        data.fit_scaling(name, stats)
    data.fit_scaling("none", stats)


# Files.


def test_a_loaded_scaling_is_bit_identical_to_the_saved_one(scaling, tmp_path):
    data.save_scaling(tmp_path / "new" / "folder", scaling)
    loaded = data.load_scaling(str(tmp_path / "new" / "folder"))
    assert (loaded.name, loaded.clip) == (scaling.name, scaling.clip)
    for array, expected in (
        (loaded.shift, scaling.shift),
        (loaded.scale, scaling.scale),
    ):
        assert array.dtype == np.float64 and array.shape == expected.shape
        assert array.tobytes() == expected.tobytes()
    assert loaded.apply(X).tobytes() == scaling.apply(X).tobytes()
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [
        "scaling.safetensors"
    ]


def test_a_save_replaces_the_file_and_a_failed_save_leaves_it_unchanged(tmp_path):
    data.save_scaling(tmp_path, data.divide(2))
    data.save_scaling(tmp_path, data.divide(3))
    with pytest.raises(ValueError, match="finite"):
        data.save_scaling(tmp_path, data.divide(3)._replace(scale=np.array(0.0)))
    assert data.load_scaling(tmp_path).scale == 3


def test_a_scaling_is_saved_and_loaded_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    data.save_scaling("~/scalings", data.divide(2))
    assert (tmp_path / "scalings" / "scaling.safetensors").is_file()
    assert data.load_scaling("~/scalings") == data.divide(2)


def test_strided_arrays_are_saved_by_value(tmp_path):
    shift = np.arange(8.0)[::2]
    data.save_scaling(tmp_path, data.Scaling("custom", shift, shift + 1))
    np.testing.assert_array_equal(data.load_scaling(tmp_path).shift, shift)


def test_the_error_for_a_missing_scaling_says_what_writes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist; save_scaling\("):
        data.load_scaling(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="must be a folder"):
        data.save_scaling(tmp_path / "file", data.divide(2))


def content(shift=0.0, scale=2.0, kind='{"name": "divide", "clip": false}', **more):
    tensors = {"shift": np.array(shift), "scale": np.array(scale), **more}
    metadata = None if kind is None else {"scaling": kind}
    return safetensors.numpy.save(tensors, metadata=metadata)


DAMAGED = {
    "empty": b"",
    "text": b"shift,scale\n0,1\n",
    "truncated": content()[:-1],
    "trailing": content() + b"0",
    "no kind": content(kind=None),
    "kind is no JSON": content(kind="{"),
    "kind is deep": content(kind="[" * 10**5),
    "kind is a list": content(kind="[]"),
    "kind lacks clip": content(kind='{"name": "divide"}'),
    "kind of another type": content(kind='{"name": 3, "clip": false}'),
    "clip of another type": content(kind='{"name": "unit", "clip": 1}'),
    "third tensor": content(third=np.zeros(2)),
    "float32": content(shift=np.float32(0)),
    "no columns": content(shift=np.zeros(0), scale=np.ones(0)),
    "widths": content(shift=np.zeros(2), scale=np.ones(3)),
    "scales without shifts": content(scale=np.ones(3)),
    "matrix": content(shift=np.zeros((2, 2)), scale=np.ones((2, 2))),
    "nan shift": content(shift=np.nan),
    "infinite scale": content(scale=np.inf),
    "zero scale": content(shift=np.zeros(2), scale=np.array([1.0, 0.0])),
    "negative scale": content(scale=-1.0),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_scalings_are_one_sentence(name, tmp_path):
    path = tmp_path / "scaling.safetensors"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(ValueError, match=f"^Cannot read {path}: ") as e:
        data.load_scaling(tmp_path)
    assert "\n" not in str(e.value) and str(e.value).endswith("again.")


def test_the_metadata_are_readable_by_any_reader_of_safetensors(tmp_path):
    data.save_scaling(tmp_path, SCALINGS["unit"])
    with safetensors.safe_open(tmp_path / "scaling.safetensors", "numpy") as file:
        kind = json.loads(file.metadata()["scaling"])
    assert set(kind) == {"name", "clip", "sha256"}
    assert (kind["name"], kind["clip"]) == ("unit", True)


def test_a_flipped_bit_never_changes_the_numbers(tmp_path):
    scaling = SCALINGS["standardize"]
    data.save_scaling(tmp_path, scaling)
    path = tmp_path / "scaling.safetensors"
    contents = path.read_bytes()
    tensors = len(contents) - 8 * 8  # where the shift and the scale of 4 columns begin
    for place in range(len(contents)):
        for bit in (0, 3) if place < tensors else range(8):
            flipped = bytearray(contents)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                loaded = data.load_scaling(tmp_path)
            except ValueError as error:
                assert str(error).startswith(f"Cannot read {path}: ")
            else:
                assert place < tensors, (place, bit)
                assert loaded.apply(X).tobytes() == scaling.apply(X).tobytes()


def test_a_scaling_saved_without_a_checksum_is_loaded(tmp_path):
    (tmp_path / "scaling.safetensors").write_bytes(content(scale=3.0))
    assert data.load_scaling(tmp_path).scale == 3


@functools.cache
def scratch():
    return tempfile.TemporaryDirectory()  # one for all examples of hypothesis


def load_bytes(contents):
    (Path(scratch().name) / "scaling.safetensors").write_bytes(contents)
    with contextlib.suppress(ValueError):
        loaded = data.load_scaling(scratch().name)
        assert np.isfinite(loaded.shift).all() and (loaded.scale > 0).all()
        assert loaded.shift.shape in ((), loaded.scale.shape, (2,))


VALID = [content(), content([1.0, 2], [3.0, 4]), content([1.0, 2], 3.0)]


@given(st.binary(max_size=100), st.sampled_from([b"", VALID[0][:8], VALID[1][:60]]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_arbitrary_bytes_load_or_raise_value_error(contents, prefix):
    load_bytes(prefix + contents)


@given(st.data(), st.sampled_from(VALID))
@settings(max_examples=250, deadline=None, derandomize=True)
def test_mutated_scalings_load_or_raise_value_error(draws, valid):
    contents = bytearray(valid)
    for _ in range(draws.draw(st.integers(1, 3))):
        start = draws.draw(st.integers(0, len(contents)))
        length = draws.draw(st.sampled_from([0, 1, 1, 1, 4]))
        contents[start : start + length] = draws.draw(st.binary(max_size=3))
    load_bytes(bytes(contents))


@given(st.integers(0, len(VALID[1]) - 1), st.integers(0, 7))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_flipped_bits_load_or_raise_value_error(place, bit):
    contents = bytearray(VALID[1])
    contents[place] ^= 1 << bit
    load_bytes(bytes(contents))


@given(st.integers(0, len(VALID[1]) - 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_truncated_scalings_raise_value_error(length):
    with pytest.raises(ValueError):
        (Path(scratch().name) / "scaling.safetensors").write_bytes(VALID[1][:length])
        data.load_scaling(scratch().name)
