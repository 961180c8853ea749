"""Activations in shards: formats, masks, filters, and the order of an epoch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxae
from jaxae import data

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
