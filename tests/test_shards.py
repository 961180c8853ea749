"""Activations in shards: formats, masks, filters, and the order of an epoch."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxae
from jaxae import data
from jaxae.data import shards, stored
from jaxae.training import batches

pytestmark = pytest.mark.usefixtures("no_step_norms")

X = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)


def save_npy(path, array, mask=None):
    np.save(path.with_suffix(".npy"), array)
    if mask is not None:
        np.save(path.with_suffix(".mask.npy"), mask)


def save_npz(path, array, mask=None):
    np.savez(
        path.with_suffix(".npz"), x=array, **({} if mask is None else {"mask": mask})
    )


def save_safetensors(path, array, mask=None):
    arrays = {"x": array, **({} if mask is None else {"mask": mask})}
    safetensors.numpy.save_file(arrays, path.with_suffix(".safetensors"))


SAVE = {"npy": save_npy, "npz": save_npz, "safetensors": save_safetensors}


@pytest.fixture(params=SAVE, name="save")
def _save(request):
    return SAVE[request.param]


@pytest.mark.parametrize("dtype", ["float16", jnp.bfloat16, "float32", "float64"])
def test_rows_of_all_shards_in_natural_order_and_float32(save, dtype, tmp_path):
    expected = X.astype(dtype)
    for i, rows in ((10, slice(16, 24)), (2, slice(8, 16)), (1, slice(0, 8))):
        save(tmp_path / f"part_{i}", expected[rows])
    view = data.activations(tmp_path)
    assert view.shape == (24, 5) and view.dtype == np.float32
    np.testing.assert_array_equal(view[:], expected.astype(np.float32))
    np.testing.assert_array_equal(view[6:10], expected[6:10].astype(np.float32))
    numbers = np.array([0, 7, 8, 20, 23])
    np.testing.assert_array_equal(view[numbers], expected[numbers].astype(np.float32))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_rows_of_any_shards_are_those_of_the_whole_array(sizes, draw):
    numbers = np.arange(sum(sizes), dtype=np.float32)
    whole = np.stack([numbers, -numbers], axis=1)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_CHUNK_BYTES", draw.draw(st.integers(1, 40)))
        patch.setattr(shards, "_GAP_BYTES", draw.draw(st.integers(0, 40)))
        for i, part in enumerate(np.split(whole, np.cumsum(sizes)[:-1])):
            np.save(Path(folder, f"{i}.npy"), part)
        rows = data.activations(folder)
        index = sorted(draw.draw(st.sets(st.integers(0, len(whole) - 1))))
        np.testing.assert_array_equal(rows[index], whole[index])
        start, stop = draw.draw(st.integers(0, 45)), draw.draw(st.integers(0, 45))
        np.testing.assert_array_equal(rows[start:stop], whole[start:stop])


def test_masks_and_first_positions_leave_rows_out(save, tmp_path):
    tokens = X.reshape(2, 3, 4, 5)
    mask = np.random.default_rng(1).random((2, 3, 4)) < 0.7
    for i in range(2):
        save(tmp_path / f"{i}", tokens[i], mask[i])
    np.testing.assert_array_equal(data.activations(tmp_path)[:], tokens[mask])
    is_kept = mask & (np.cumsum(mask, axis=-1) > 1)
    view = data.activations(tmp_path, drop_first=1)
    np.testing.assert_array_equal(view[:], tokens[is_kept])


def test_rows_of_large_norm_are_left_out(save, tmp_path):
    far = X.copy()
    far[[3, 17]] *= 100
    save(tmp_path / "x", far)
    view = data.activations(tmp_path, max_norm=10)
    np.testing.assert_array_equal(view[:], np.delete(X, [3, 17], axis=0))


# ---- the order of an epoch -----------------------------------------------------------


def epoch_order(num_rows, block_rows, buffer_rows, epoch=0):
    shuffle = data.BlockShuffle(block_rows, buffer_rows)
    return batches.epoch_order(jax.random.key(3), epoch, num_rows, shuffle)


@given(  # few shapes, because each is compiled
    st.sampled_from([1, 7, 60]), st.sampled_from([1, 4, 25]), st.integers(1, 40)
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_an_epoch_has_every_row_once_and_buffers_of_whole_blocks(
    num_rows, block_rows, buffer_rows
):
    order = epoch_order(num_rows, block_rows, buffer_rows)
    np.testing.assert_array_equal(np.sort(order), np.arange(num_rows))
    np.testing.assert_array_equal(order, epoch_order(num_rows, block_rows, buffer_rows))
    for start in range(0, num_rows, buffer_rows):
        rows = np.sort(order[start : start + buffer_rows])
        runs = 1 + (np.diff(rows) > 1).sum()
        # The last block is shorter, and the blocks at both ends are cut.
        assert runs <= len(rows) // block_rows + 3


def test_each_epoch_has_another_order_in_which_blocks_and_rows_are_shuffled():
    order, other = epoch_order(1000, 10, 200), epoch_order(1000, 10, 200, epoch=5)
    assert (order != other).mean() > 0.9
    # Over many epochs, each row is equally often in each fifth of an epoch, and in each
    # fifth of its buffer: 400 orders, and 6 standard deviations of a binomial count.
    places = np.array([np.argsort(epoch_order(50, 5, 25, e)) for e in range(400)])
    for fifth in (places // 10, places % 25 // 5):
        counts = np.array([(fifth == i).sum(axis=0) for i in range(5)])
        assert np.abs(counts - 80).max() < 6 * np.sqrt(400 * 0.2 * 0.8)


def epoch_batches(rows, batch_size=8, first=0):
    config = jaxae.TrainConfig(batch_size=batch_size)
    for block in batches.blocks(rows, jax.random.key(0), 0, first, {}, config):
        yield from (block.batch_at(i) for i in range(block.first, block.last))


@pytest.fixture
def reads(monkeypatch):
    """The sizes of the reads of shards, in rows."""
    sizes, read = [], stored.StoredArray.read

    def counted(self, first=0, last=None):
        block = read(self, first, last)
        sizes.append(len(block))
        return block

    monkeypatch.setattr(stored.StoredArray, "read", counted)
    monkeypatch.setattr(shards, "_GAP_BYTES", 10 * 8)  # 10 rows of `numbered`
    return sizes


def numbered(folder, num_rows=800, num_shards=4):
    """Shards whose rows hold their own number."""
    numbers = np.arange(num_rows, dtype=np.float32)
    for i, part in enumerate(np.split(np.stack([numbers, -numbers], 1), num_shards)):
        np.save(folder / f"{i}.npy", part)
    return numbers


def test_an_epoch_reads_each_row_once_in_blocks(reads, tmp_path):
    numbers = numbered(tmp_path)
    rows = data.activations(tmp_path, block_rows=50, buffer_rows=200)
    reads.clear()
    read = np.concatenate(list(epoch_batches(rows)))
    np.testing.assert_array_equal(np.sort(read[:, 0]), numbers)
    # 16 blocks in 4 buffers, where neighbours are read at once.
    assert sum(reads) == 800 and 4 < len(reads) <= 16


def test_a_resumed_epoch_reads_whole_buffers(reads, tmp_path):
    numbered(tmp_path)
    rows = data.activations(tmp_path, block_rows=50, buffer_rows=200)
    whole = list(epoch_batches(rows))
    reads.clear()
    rest = list(epoch_batches(rows, first=30))  # in the second buffer of 25 batches
    np.testing.assert_array_equal(rest, whole[30:])
    assert sum(reads) == 600


def test_splits_and_scaled_views_are_read_in_blocks(reads, tmp_path):
    numbers = numbered(tmp_path)
    rows = data.activations(tmp_path, block_rows=50, buffer_rows=200)
    train, test = data.split(rows, 0.2, seed=0)
    for view in (train, test):
        assert view.block_shuffle == rows.block_shuffle == (50, 200)
    both = np.concatenate([train[:], test[:]])[:, 0]
    np.testing.assert_array_equal(np.sort(both), numbers)
    expected = np.sort(train[:][:, 0]) / 2
    scaled = data.View(train, scaling=data.divide(2))
    reads.clear()
    read = np.concatenate(list(epoch_batches(scaled)))
    np.testing.assert_array_equal(np.sort(read[:, 0]), expected)
    # A block of 50 of the 640 rows is about 62 of the shards, perhaps in two of them.
    assert sum(reads) <= 850 and len(reads) <= 2 * 13 + 2 * 4
    assert data.View(rows, np.array([3, 1])).block_shuffle is None


def test_pairs_are_shuffled_alike(tmp_path):
    numbered(tmp_path)
    rows = data.activations(tmp_path, block_rows=50, buffer_rows=200)
    array = rows[:] * 2
    for pair in ((rows, array), (array, rows)):
        for first, second in epoch_batches(pair):
            ratio = 2 if pair[0] is rows else 0.5
            np.testing.assert_array_equal(first * ratio, second)


def test_training_on_shards(save, tmp_path):
    save(tmp_path / "x", X.astype(np.float16))
    rows = data.activations(tmp_path, block_rows=4, buffer_rows=8)
    ae = jaxae.Autoencoder(input_dim=5, latent_dim=2, observation="gaussian")
    run = jaxae.train(
        jaxae.Objective(ae),
        rows,
        hparams={"learning_rate": 1e-2},
        key=jax.random.key(0),
        config=jaxae.TrainConfig(num_epochs=2, batch_size=4),
    )
    assert np.isfinite(run.metrics["train/loss"]).all()


# ---- what is rejected ----------------------------------------------------------------


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.save(path, content)


F16, TOKENS = X.astype("f2"), X.reshape(2, 3, 4, 5)[0]
BAD_FOLDERS = {
    "empty": ({}, {}, "There are no .npy, .npz, .safetensors files at"),
    "other files": ({"notes__txt": b"x"}, {}, "There are no .npy, .npz"),
    "widths": (
        {"a__npy": X, "b__npy": X[:, :3]},
        {},
        r"one width and one dtype, but .*a\.npy is float32\[24, 5\] and .*b\.npy is",
    ),
    "dtypes": ({"a__npy": X, "b__npy": F16}, {}, "one width and one dtype"),
    "integers": ({"a__npy": X.astype(int)}, {}, r"floating point.*a\.npy is int64; st"),
    "vector": ({"a__npy": X[0]}, {}, r"\[N, D\] or \[N, T, D\], but .*a\.npy has \(5,"),
    "four axes": ({"a__npy": X[None, None]}, {}, r"has \(1, 1, 24, 5\)"),
    "no rows": ({"a__npy": X[:0]}, {}, r"has \(0, 5\)"),
    "fortran": ({"a__npy": np.asfortranarray(X)}, {}, "Fortran order: store"),
    "truncated": ({"a__npy": b"\x93NUMPY\1\0"}, {}, r"Cannot read .*a\.npy: "),
    "no npy": ({"a__npy": b"x" * 99}, {}, r"Cannot read .*a\.npy: .*; store"),
    "no safetensors": ({"a__safetensors": b"x" * 99}, {}, "Cannot read .*safetensors"),
    "mask of another shape": (
        {"a__npy": TOKENS, "a__mask__npy": np.ones((3, 5), bool)},
        {},
        r"mask of .*a\.npy must have shape \(3, 4\), got \(3, 5\)",
    ),
    "mask of numbers": (
        {"a__npy": TOKENS, "a__mask__npy": np.full((3, 4), 2)},
        {},
        r"mask of .*a\.npy must be booleans, or 0 and 1",
    ),
    "mask without an array": (
        {"a__npy": TOKENS, "b__mask__npy": np.ones((3, 4), bool)},
        {},
        r"source has the mask .*b\.mask\.npy, but no file b\.npy beside it; name",
    ),
    "mask of nothing": (
        {"a__npy": TOKENS, "a__mask__npy": np.zeros((3, 4), bool)},
        {},
        "must have rows that are not left out",
    ),
    "positions": (
        {"a__npy": X},
        {"drop_first": 1},
        r"drop_first needs files of \[N, T, D\], but .*a\.npy is \[24, 5\]",
    ),
    "all positions": ({"a__npy": TOKENS}, {"drop_first": 4}, "rows that are not left"),
    "negative": (
        {"a__npy": TOKENS},
        {"drop_first": -1},
        "drop_first must be .* at least 0",
    ),
    "no norm": ({"a__npy": X}, {"max_norm": 0}, "max_norm must be finite and positive"),
    "small norm": ({"a__npy": X}, {"max_norm": 1e-6}, "rows that are not left out"),
    "no block": ({"a__npy": X}, {"block_rows": 0}, "block_rows must be an integer"),
    "no buffer": ({"a__npy": X}, {"buffer_rows": 0}, "buffer_rows must be an integer"),
}


@pytest.mark.parametrize(
    ("files", "options", "message"), BAD_FOLDERS.values(), ids=BAD_FOLDERS.keys()
)
def test_bad_shards_are_rejected_in_one_sentence(files, options, message, tmp_path):
    write(tmp_path / "acts", **files)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as e:
        data.activations(tmp_path / "acts", **options)
    assert "\n" not in str(e.value) and str(e.value).endswith(".")


def test_shards_of_several_arrays_need_a_name(tmp_path):
    arrays = {"layer_3": X, "layer_6": 2 * X}
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"^array must name one array of .*layer_3, "):
        data.activations(tmp_path)
    view = data.activations(tmp_path, array="layer_6")
    np.testing.assert_array_equal(view[:], 2 * X)


def test_other_arrays_beside_the_named_one_may_be_anything(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, prompts=np.array(["a", "b"]), ids=np.arange(9))
    np.testing.assert_array_equal(data.activations(tmp_path, array="x")[:], X)
    with pytest.raises(ValueError, match=r"Cannot read .*a\.npz: its dtype is <U1"):
        data.activations(tmp_path, array="prompts")


def test_compressed_shards_are_rejected(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=X)
    with pytest.raises(ValueError, match=r"a\.npz: it is compressed.* by np.savez"):
        data.activations(tmp_path)


def test_a_pattern_or_a_file_selects_shards(tmp_path):
    write(tmp_path, layer3_0__npy=X, layer3_1__npy=X, layer6_0__npy=2 * X)
    assert len(data.activations(tmp_path / "layer3_*.npy")) == 48
    view = data.activations(str(tmp_path / "layer6_0.npy"))
    np.testing.assert_array_equal(view[:], 2 * X)
    for missing in ("layer9_*.npy", "layer9_0.npy"):
        with pytest.raises(FileNotFoundError, match="There are no .* at .*layer9_"):
            data.activations(tmp_path / missing)
    with pytest.raises(ValueError, match="must be one folder, pattern or file, su"):
        data.activations("")
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"must have files \.npy, .*a\.txt"):
        data.activations(tmp_path / "a.txt")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named_by_shard_and_row(value, tmp_path):
    bad = X.copy()
    bad[17, 3] = value
    write(tmp_path, part_1__npy=X, part_2__npy=bad)
    view = data.activations(tmp_path)
    message = rf"row 17, column 3 \(from 0\) of .*part_2\.npy is {value}; drop or fill"
    with pytest.raises(ValueError, match=f"^inputs must be finite .*{message}"):
        data.column_stats(view, "inputs")
    with pytest.raises(ValueError, match=message):
        data.activations(tmp_path, max_norm=5)


def test_rows_that_a_mask_leaves_out_may_be_nan(tmp_path):
    padded, mask = TOKENS.copy(), np.ones((3, 4), bool)
    padded[0, 0], padded[2, 3], mask[0, 0], mask[2, 3] = np.nan, np.inf, False, False
    write(tmp_path, a__npy=padded, a__mask__npy=mask)
    view = data.activations(tmp_path, max_norm=100)
    np.testing.assert_array_equal(view[:], TOKENS[mask])
    assert data.column_stats(view).num_rows == 10


def test_a_truncated_or_missing_shard_is_an_error_and_not_a_crash(tmp_path):
    write(tmp_path, a__npy=X)
    view = data.activations(tmp_path)
    with (tmp_path / "a.npy").open("r+b") as file:
        file.truncate(300)
    with pytest.raises(ValueError, match=r"a\.npy, which was truncated or replaced"):
        view[:]
    (tmp_path / "a.npy").unlink()
    with pytest.raises(ValueError, match=r"gave no rows 0 to 23 \(FileNotFoundError"):
        view[:]


def test_overflow_of_float64_in_float32_is_an_error(tmp_path):
    write(tmp_path, a__npy=np.array([[1.0], [1e300]]))
    with pytest.raises(ValueError, match="finite in float32, but row 1, column 0"):
        data.activations(tmp_path)[:]
