import builtins
import dataclasses

import chex
import jax
import numpy as np
import pytest
from test_autoencoder import model

import jaxae
from jaxae import penalties, sweeps

KEY = jax.random.key(0)
X = np.random.default_rng(0).uniform(size=(50, 6)).astype("f4")
OBJECTIVE = jaxae.Objective(model(), penalties=(penalties.l1,))
CONFIG = jaxae.TrainConfig(num_epochs=3, batch_size=8)
SPACE = {"learning_rate": [1e-3, 1e-2], "seed": range(3)}


def sweep(space=SPACE, **changes):
    arguments = {"hparams": {"l1": 0.1}, "config": CONFIG, "key": KEY, **changes}
    return jaxae.sweep(OBJECTIVE, X, space, **arguments)


def test_the_table_has_a_row_a_lane_the_last_axis_fastest():
    table = sweep().table
    assert list(table["seed"]) == [0, 1, 2, 0, 1, 2]
    np.testing.assert_allclose(table["learning_rate"], [1e-3] * 3 + [1e-2] * 3)
    assert {"train/loss", "train/reconstruction", "train/l1"} <= set(table.columns)
    assert (table["status"] == "finished").all() and table["stopped_at"].isna().all()
    assert table.index.name == "lane"


def test_every_lane_is_the_single_run_with_its_trial():
    found = sweep()
    for lane in range(len(found)):
        run = jaxae.train(data=X, **found.trial(lane))
        chex.assert_trees_all_close(
            run.params, found.params(lane), rtol=1e-4, atol=1e-5
        )
        for name, values in found.metrics.items():
            np.testing.assert_allclose(run.metrics[name], values[lane], rtol=1e-4)


def test_rows_on_disk_are_read_whole(tmp_path):
    np.save(tmp_path / "X.npy", X)
    on_disk = np.load(tmp_path / "X.npy", mmap_mode="r")
    space = {"learning_rate": [0.1, 0.01]}
    found, expected = (
        jaxae.sweep(OBJECTIVE, data, space, hparams={"l1": 0.1}, key=KEY, config=config)
        for data, config in (
            (on_disk, jaxae.TrainConfig(num_epochs=1, batch_size=8, memory_budget=9)),
            (X, jaxae.TrainConfig(num_epochs=1, batch_size=8)),
        )
    )
    chex.assert_trees_all_equal(found.params(1), expected.params(1))


def test_lanes_of_one_seed_share_their_start_and_lanes_of_others_do_not():
    still = sweep({"learning_rate": [0.0, 1e-9], "seed": [0, 7]})
    W = [np.asarray(still.params(lane).W) for lane in range(4)]
    np.testing.assert_allclose(W[0], W[2], atol=1e-6)
    np.testing.assert_allclose(W[1], W[3], atol=1e-6)
    assert not np.allclose(W[0], W[1])


def test_seed_is_0_unless_swept_whatever_the_lane():
    found = sweep({"l1": [0.1, 0.2]}, hparams={"learning_rate": 1e-3})
    for lane in range(2):
        key = found.trial(lane)["key"]
        assert (
            jax.random.key_data(key) == jax.random.key_data(jax.random.fold_in(KEY, 0))
        ).all()


def test_one_compilation_whatever_the_values():
    sweeps._epoch_of_arrays.clear_cache()
    sweep()
    sweep({"learning_rate": [0.5, 0.25], "seed": [5, 6, 9]})
    more = dataclasses.replace(CONFIG, num_epochs=5)
    assert sweep(config=more).metrics["train/loss"].shape == (6, 5)
    assert sweeps._epoch_of_arrays._cache_size() == 1


def test_a_diverging_lane_stops_alone():
    sick = sweep({"learning_rate": [1e-2, 1e38], "seed": [0]})
    table = sick.table
    assert list(table["status"]) == ["finished", "diverged"]
    assert table["stopped_at"][1] >= 0
    finite = jax.tree.map(lambda leaf: np.isfinite(leaf).all(), sick.state.params)
    assert all(jax.tree.leaves(finite))
    # The sound lane is, to the bit, that of the same program with the sick one sane.
    sane = sweep({"learning_rate": [1e-2, 1e-3], "seed": [0]})
    chex.assert_trees_all_equal(sick.params(0), sane.params(0))


def test_sweeping_a_source():
    def source(key, hparams):
        return jax.random.uniform(key, (8, 6)) * hparams["height"]

    config = jaxae.TrainConfig(num_epochs=2, steps_per_epoch=5)
    found = jaxae.sweep(
        OBJECTIVE,
        source,
        {"height": [0.2, 0.9]},
        hparams={"l1": 0.0, "learning_rate": 0.01},
        key=KEY,
        config=config,
    )
    losses = found.metrics["train/loss"]
    assert losses.shape == (2, 2) and losses[0, 0] != losses[1, 0]


@pytest.mark.parametrize(
    "space, sentence",
    [
        ({}, "space must be a dict of at least one axis"),
        ({"learning_rate": []}, r"space\['learning_rate'\] must be a list of at least"),
        ({"learning_rate": 0.1}, "must be a list"),
        ({"learning_rate": ["fast"]}, "must be a list of at least one number"),
        ({"learning_rate": [np.nan]}, "must be finite"),
        ({"seed": [0.5], "learning_rate": [0.1]}, "at least one integer"),
        ({"learning_rate": [0.1], "l1": [0.1]}, "l1 is in space and in hparams"),
        ({"latent_dim": [2, 4]}, "changes the shape of the program; run one sweep for"),
        ({"lerning_rate": [0.1]}, "lacks learning_rate and has lerning_rate"),
        ({"seed": [0, 1]}, "lacks learning_rate"),
        ({"seed": [-1], "learning_rate": [0.1]}, "between 0 and"),
        ([0.1, 0.2], "space must be a dict"),
    ],
)
def test_bad_spaces_are_refused_in_one_sentence(space, sentence):
    with pytest.raises(ValueError, match=sentence):
        sweep(space)


def test_lane_out_of_range_and_missing_pandas(monkeypatch):
    found = sweep({"learning_rate": [0.1]})
    with pytest.raises(ValueError, match="lane must be an integer below 1, got 1"):
        found.params(1)
    real_import = builtins.__import__

    def without_pandas(name, *arguments, **keywords):
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name="pandas")
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(ImportError, match=r"pip install 'jaxae\[sweep\]'"):
        _ = found.table
