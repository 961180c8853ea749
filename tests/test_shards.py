"""Activations in shards: formats, masks, filters, and the order of an epoch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxae
from jaxae import data
from jaxae.data import shards
from jaxae.training import batches

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
    return batches._order(jax.random.key(3), epoch, num_rows, shuffle)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 40))
@settings(max_examples=20, deadline=None, derandomize=True)
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
    sizes, read = [], shards.StoredArray.read

    def counted(self, first=0, last=None):
        block = read(self, first, last)
        sizes.append(len(block))
        return block

    monkeypatch.setattr(shards.StoredArray, "read", counted)
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
