"""Lanes on disk: a resumed sweep gives the results of an uninterrupted one."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import types

import chex
import jax
import numpy as np
import optax
import pytest

import jaxae
from jaxae.sweeps import group_trainer, program, results, store
from jaxae.training import checkpointing

KEY = jax.random.key(0)
X = np.random.default_rng(0).uniform(size=(50, 6)).astype("f4")
OBJECTIVE = jaxae.Objective(jaxae.Autoencoder(input_dim=6, latent_dim=4))
CONFIG = jaxae.TrainConfig(num_epochs=4, batch_size=8)
SPACE = {"learning_rate": [1e-3, 1e-2, 1e38], "latent_dim": [2, 4], "seed": [0, 1]}


def sweep(out=None, space=SPACE, X=X, **changes):
    arguments = {
        "config": CONFIG,
        "key": KEY,
        "validation": X[:20],
        "lanes_at_once": 2,
        "memory_budget": 10_000,
        **changes,
    }
    return jaxae.sweep(OBJECTIVE, X, space, out=out, **arguments)


def assert_same(result, expected):
    assert result.table.equals(expected.table)
    for name, values in expected.metrics.items():
        np.testing.assert_array_equal(result.metrics[name], values)
    for lane in range(len(expected)):
        chex.assert_trees_all_equal(result.params(lane), expected.params(lane))


@pytest.fixture
def counted(monkeypatch):
    """Which lanes are trained, block by block."""
    trained = []
    train_block = group_trainer.GroupTrainer._train_block

    def counting(self, results, layout, rung, report_progress):
        trained.append(sorted(layout.lanes()))
        return train_block(self, results, layout, rung, report_progress)

    monkeypatch.setattr(group_trainer.GroupTrainer, "_train_block", counting)
    return trained


@pytest.mark.parametrize("halving", [None, jaxae.sweeps.Halving()])
def test_finished_lanes_are_not_trained_again(tmp_path, counted, halving, monkeypatch):
    uninterrupted = sweep(halving=halving)
    num_blocks = len(counted)
    assert num_blocks > 1
    write, calls = store.Store.write, []

    def dying(self, *arguments):
        if len(calls) == num_blocks // 2:
            raise KeyboardInterrupt
        calls.append(arguments)
        write(self, *arguments)

    monkeypatch.setattr(store.Store, "write", dying)
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path / "out", halving=halving)
    monkeypatch.setattr(store.Store, "write", write)
    counted.clear()
    assert_same(sweep(tmp_path / "out", halving=halving), uninterrupted)
    assert len(counted) == num_blocks - num_blocks // 2
    counted.clear()
    assert_same(sweep(tmp_path / "out", halving=halving), uninterrupted)
    assert counted == []


@pytest.mark.parametrize(
    "optimizer", ["sgd", pytest.param("adam", marks=pytest.mark.slow)]
)
def test_survivors_resume_whatever_the_state_of_the_optimizer(tmp_path, optimizer):
    """The state of sgd is a pytree without leaves."""
    config = jaxae.TrainConfig(
        num_epochs=4,
        batch_size=8,
        optimizer=jaxae.optimizers.get(optimizer),
        diagnostics=False,
    )
    arguments = {"config": config, "halving": jaxae.sweeps.Halving()}
    result = sweep(**arguments)
    best = result.best()
    run = jaxae.train(data=X, validation=X[:20], **result.trial(best))
    np.testing.assert_allclose(
        result.metrics["validation/loss"][best],
        run.metrics["validation/loss"],
        rtol=1e-5,
    )
    assert_same(sweep(tmp_path, **arguments), result)
    for path in (tmp_path / "lanes").glob("2-*"):  # of the last rung
        path.unlink()
    assert_same(sweep(tmp_path, **arguments), result)


def test_lanes_resume_if_the_optimizer_draws_from_its_own_key(tmp_path):
    def noisy(hparams):
        noise = optax.add_noise(0.1, 0.5, jax.random.key(1))
        return optax.chain(noise, optax.sgd(hparams["learning_rate"]))

    config = jaxae.TrainConfig(
        batch_size=8, optimizer=noisy, num_epochs=4, diagnostics=False
    )
    shorter = dataclasses.replace(config, num_epochs=2)
    arguments = {"lanes_at_once": 1, "space": {"learning_rate": [1e-3, 1e-2]}}
    result = sweep(config=config, **arguments)
    run = jaxae.train(data=X, validation=X[:20], **result.trial(1))
    chex.assert_trees_all_equal(result.params(1), run.params)
    sweep(tmp_path, config=shorter, **arguments)
    assert_same(sweep(tmp_path, config=config, **arguments), result)


def test_a_block_does_not_overwrite_other_lanes_between_the_same_two(tmp_path):
    folder = store.Store(tmp_path, {})
    (tmp_path / "lanes").mkdir()
    blocks = [
        results.LaneBlock(
            indices=np.array(lanes),
            params=np.zeros((3, 2)),
            state={},
            carry=np.zeros(3),
            step=step,
            num_epochs=1,
            stopped_at=np.full(3, -1),
            metrics={},
            final={},
        )
        for step, lanes in [(3, [0, 1, 5]), (5, [0, 2, 5]), (7, [0, 1, 5])]
    ]
    for block in blocks:
        folder.write(0, 0, block)
    saved = folder.read(0, 0, params=0, state={}, carry=0)
    assert [block.step for block in saved] == [5, 7]
    for block, expected in zip(saved, blocks[1:], strict=True):
        np.testing.assert_array_equal(block.indices, expected.indices)


STEP_SECONDS = 8.0


def test_a_kill_costs_about_a_minute_however_long_a_block_takes(tmp_path, monkeypatch):
    """By a clock that moves with the steps: a block takes 192 s, an epoch 48."""
    now, saved_at, run, write = [0.0], [0.0], program.run, store.Store.write
    clock = types.SimpleNamespace(
        monotonic=lambda: now[0], perf_counter=time.perf_counter
    )

    def timed(state, means, hparams, seed_of, shared, first, last, **static):
        now[0] += STEP_SECONDS * int(last - first)
        if now[0] > 140:
            raise KeyboardInterrupt
        return run(state, means, hparams, seed_of, shared, first, last, **static)

    def timed_write(*arguments):
        saved_at.append(now[0])
        write(*arguments)

    arguments = {"lanes_at_once": 12, "memory_budget": None}
    uninterrupted = sweep(**arguments)
    with monkeypatch.context() as patch:
        patch.setattr(group_trainer, "time", clock)
        patch.setattr(checkpointing, "time", clock)
        patch.setattr(program, "run", timed)
        patch.setattr(store.Store, "write", timed_write)
        with pytest.raises(KeyboardInterrupt):
            sweep(tmp_path, **arguments)
    assert max(np.diff([*saved_at, now[0]])) <= 60 + 2 * STEP_SECONDS
    assert saved_at[-1] % (6 * STEP_SECONDS) != 0  # within an epoch
    steps = []

    def counting(state, means, hparams, seed_of, shared, first, last, **static):
        steps.append(int(last - first))
        return run(state, means, hparams, seed_of, shared, first, last, **static)

    monkeypatch.setattr(program, "run", counting)
    assert_same(sweep(tmp_path, **arguments), uninterrupted)
    assert sum(steps) == 4 * 6 - saved_at[-1] / STEP_SECONDS


@pytest.mark.parametrize("halving", [None, jaxae.sweeps.Halving()])
def test_a_sweep_resumed_to_more_epochs_equals_one_with_them_from_the_start(
    tmp_path, halving
):
    longer = jaxae.TrainConfig(num_epochs=7, batch_size=8)
    sweep(tmp_path, halving=halving)
    result = sweep(tmp_path, halving=halving, config=longer)
    assert_same(result, sweep(halving=halving, config=longer))


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"space": {**SPACE, "seed": [0, 2]}}, "space.seed is"),
        ({"space": {"learning_rate": [0.1]}}, "space.learning_rate is"),
        ({"X": X + 0.001}, "data.sha256 is"),
        ({"validation": X[:21]}, "validation.shape is"),
        ({"key": jax.random.key(1)}, "key is"),
        ({"config": jaxae.TrainConfig(num_epochs=3, batch_size=8)}, "num_epochs is 4"),
        ({"halving": jaxae.sweeps.Halving()}, "halving is null there"),
        ({"hparams": {"init_scale": 2.0}}, "hparams.init_scale is null there"),
    ],
)
def test_the_folder_of_another_sweep_raises_and_names_the_field(
    tmp_path, changes, field
):
    space = {"learning_rate": [0.1], "seed": [0]}
    sweep(tmp_path, space=SPACE if "space" in changes else space)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=f"holds another sweep: {field}"):
        sweep(tmp_path, **{"space": space, **changes})
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_an_integer_is_the_same_hyperparameter_as_the_float_of_its_value(tmp_path):
    def fingerprint(hparams, rates):
        return jaxae.sweeps.prepare(
            OBJECTIVE,
            X,
            {"learning_rate": rates},
            hparams=hparams,
            key=KEY,
            config=CONFIG,
            out=tmp_path,
        ).store.fingerprint

    expected = fingerprint({"init_scale": 1.0}, [1.0, 2.0])
    assert fingerprint({"init_scale": 1}, [1, 2]) == expected
    assert fingerprint({"init_scale": 2}, [1, 2]) != expected
    assert fingerprint({"init_scale": 1}, [1, 3]) != expected


def test_a_sweep_of_another_version_raises(tmp_path, monkeypatch):
    space = {"learning_rate": [0.1]}
    sweep(tmp_path, space=space)
    monkeypatch.setattr("jaxae.training.checkpointing.__version__", "9")
    with pytest.raises(ValueError, match='another sweep: version.jaxae is .* "9" here'):
        sweep(tmp_path, space=space)


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "other"])
def test_damaged_lanes_are_trained_again(tmp_path, counted, damage):
    uninterrupted = sweep(tmp_path)
    path = sorted((tmp_path / "lanes").iterdir())[1]
    content = path.read_bytes()
    flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
    contents = {
        "truncate": content[:-9],
        "flip": flipped,
        "empty": b"",
        "other": b"{}" * 99,
    }
    path.write_bytes(contents[damage])
    counted.clear()
    with pytest.warns(RuntimeWarning, match=f"{path.name} is damaged"):
        resumed = sweep(tmp_path)
    assert len(counted) == 1
    assert_same(resumed, uninterrupted)
    assert path.read_bytes() == content


def test_a_damaged_plan_and_a_locked_folder_raise(tmp_path):
    sweep(tmp_path, space={"learning_rate": [0.1]})
    (tmp_path / "sweep.json").write_text('{"identity": 3')
    with pytest.raises(ValueError, match="is damaged"):
        sweep(tmp_path, space={"learning_rate": [0.1]})
    with (
        store.Store(tmp_path, {}).locked(),
        pytest.raises(ValueError, match="is in use"),
    ):
        sweep(tmp_path)


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        sweep(tmp_path / "file" / "out")


KILLED = """
import sys
sys.path.insert(0, {tests!r})
import test_sweep_store as t
t.sweep({out!r}, config=t.jaxae.TrainConfig(num_epochs=40, batch_size=8))
"""


def test_kill_9_loses_no_finished_lane(tmp_path, counted):
    config = jaxae.TrainConfig(num_epochs=40, batch_size=8)
    out = tmp_path / "out"
    code = KILLED.format(tests=os.path.dirname(__file__), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while not list(out.glob("lanes/*.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    num_saved = len(list(out.glob("lanes/*.safetensors")))
    assert num_saved > 0
    result = sweep(out, config=config)
    assert len(counted) == len(list(out.glob("lanes/*.safetensors"))) - num_saved
    assert_same(result, sweep(config=config))
    assert json.loads((out / "sweep.json").read_text())["groups"]
