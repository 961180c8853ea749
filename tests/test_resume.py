"""A run that is stopped and resumed is bit-identical to an uninterrupted one."""

import dataclasses
import functools
import os
import re
import signal
import subprocess
import sys
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judges import assert_falls
from test_autoencoder import model

import jaxae
from jaxae import optimizers, training
from jaxae.training import batches, checkpointing, trainer

KEY = jax.random.key(0)
X = np.random.default_rng(0).uniform(size=(50, 6)).astype("f4")
OBJECTIVE = jaxae.Objective(model(), corruption=jaxae.corruptions.masking)
HPARAMS = {"learning_rate": 0.01, "corruption_rate": 0.2}


def config(**changes):
    return jaxae.TrainConfig(
        **{"num_epochs": 4, "batch_size": 8, "checkpoint_steps": 4, **changes}
    )


def train(checkpoint_dir=None, objective=OBJECTIVE, data=X, **changes):
    arguments = {
        **{"hparams": HPARAMS, "key": KEY, "config": config(), "validation": X[:9]},
        **{"checkpoint_dir": checkpoint_dir, **changes},
    }
    return jaxae.train(objective, data, **arguments)


def assert_same(one, other):
    chex.assert_trees_all_equal(one.params, other.params)
    chex.assert_trees_all_equal(one.state.opt_state, other.state.opt_state)
    assert one.state.step == other.state.step and one.status == other.status
    assert list(one.metrics) == list(other.metrics)
    for name, values in one.metrics.items():
        np.testing.assert_array_equal(values, other.metrics[name], err_msg=name)
    chex.assert_trees_all_equal(one.best, other.best)


@pytest.fixture(scope="module")
def uninterrupted():
    return train()


class Stop(Exception):
    """Ends training as a crash does."""


def crash_at(step, checkpoint_dir, data=X, **changes):
    """Train, and raise after the first segment that reaches that step."""
    arguments = {"hparams": HPARAMS, "key": KEY, "config": config(**changes)}
    prepared = trainer.prepare(
        OBJECTIVE, data, validation=X[:9], has_checkpoints=True, **arguments
    )

    def on_segment(at):
        if at >= step:
            raise Stop

    with trainer.open_checkpoints(prepared, checkpoint_dir) as checkpoints:
        with pytest.raises(Stop):
            trainer.execute(
                prepared, trainer.start(prepared, checkpoints), checkpoints, on_segment
            )


# ---- bit-identical -------------------------------------------------------------------


def test_saving_changes_nothing_and_a_finished_run_trains_no_more(
    tmp_path, uninterrupted, monkeypatch
):
    assert_same(train(tmp_path / "run"), uninterrupted)
    monkeypatch.setattr(trainer, "_train_epoch", lambda *_: pytest.fail("trained"))
    assert_same(train(tmp_path / "run"), uninterrupted)


CRASHES = st.lists(st.integers(1, 23), min_size=1, max_size=3), st.integers(1, 9)


@settings(max_examples=3, deadline=None)
@given(*CRASHES)
def test_a_crash_anywhere_changes_no_result(
    tmp_path_factory, uninterrupted, crashes, every
):
    assert_resumes_bit_identical(tmp_path_factory, uninterrupted, crashes, every)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(*CRASHES)
def test_many_crashes_anywhere_change_no_result(
    tmp_path_factory, uninterrupted, crashes, every
):
    assert_resumes_bit_identical(tmp_path_factory, uninterrupted, crashes, every)


def assert_resumes_bit_identical(tmp_path_factory, uninterrupted, crashes, every):
    directory = tmp_path_factory.mktemp("run")
    for step in sorted(crashes):
        crash_at(step, directory, checkpoint_steps=every)
    assert_same(train(directory, config=config(checkpoint_steps=every)), uninterrupted)


def test_a_finished_run_continues_to_more_epochs(tmp_path, uninterrupted):
    train(tmp_path, config=config(num_epochs=2))
    assert_same(train(tmp_path), uninterrupted)


def test_checkpoints_by_the_minute(tmp_path, uninterrupted):
    settings_ = config(checkpoint_steps=None, checkpoint_minutes=0.0)
    crash_at(9, tmp_path, checkpoint_steps=None, checkpoint_minutes=0.0)
    assert len(os.listdir(tmp_path)) > 0
    assert_same(train(tmp_path, config=settings_), uninterrupted)


def test_the_last_checkpoints_are_kept(tmp_path):
    train(tmp_path, config=config(keep_checkpoints=3))
    assert sorted(map(int, os.listdir(tmp_path))) == [16, 20, 24]


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient": "manual", "log_every": 3, "on_nonfinite": "skip"},
        {"optimizer": optimizers.build("adamw", schedule="cosine", accumulate=4)},
    ],
    ids=str,
)
def test_the_state_of_optimizer_and_metrics_is_saved(tmp_path, changes):
    changes = {**changes, "diagnostics": False}
    hparams = dict(HPARAMS)
    if "optimizer" in changes:
        hparams |= {"adamw_decay": 0.1, "schedule_steps": 5, "final_fraction": 0.1}
    expected = train(config=config(**changes), hparams=hparams)
    prepared = trainer.prepare(
        OBJECTIVE,
        X,
        hparams=hparams,
        key=KEY,
        config=config(**changes),
        validation=X[:9],
        has_checkpoints=True,
    )

    def on_segment(at):
        if at >= 15:
            raise Stop

    with trainer.open_checkpoints(prepared, tmp_path) as checkpoints:
        with pytest.raises(Stop):
            trainer.execute(
                prepared, trainer.start(prepared, checkpoints), checkpoints, on_segment
            )
    assert_same(train(tmp_path, config=config(**changes), hparams=hparams), expected)


# ---- the location of the data --------------------------------------------------------


class Records:
    """Rows of a user's own class."""

    def __len__(self):
        return len(X)

    def __getitem__(self, rows):
        return X[rows]


def test_the_location_of_the_data_changes_no_bit(tmp_path, uninterrupted):
    np.save(tmp_path / "X.npy", X)
    small = config(memory_budget=100)
    on_disk = np.load(tmp_path / "X.npy", mmap_mode="r")
    for data in (X, on_disk, Records()):
        assert_same(train(data=data, config=small), uninterrupted)
    assert_same(train(data=on_disk), uninterrupted)
    assert_same(train(validation=on_disk[:9], config=small), uninterrupted)


def test_blocks_of_rows_are_read_ahead_and_resumed_inside(
    tmp_path, uninterrupted, monkeypatch
):
    monkeypatch.setattr(batches, "_BLOCK_BYTES", 4 * 8 * 6 * 4)  # four batches
    settings_ = {"memory_budget": 100, "checkpoint_steps": 1}
    crash_at(5, tmp_path / "run", **settings_)
    assert_same(train(tmp_path / "run", config=config(**settings_)), uninterrupted)


def test_a_crash_changes_no_result_of_rows_that_are_shuffled_by_blocks(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for i in range(2):
        np.save(shards / f"{i}.npy", X[25 * i : 25 * (i + 1)])
    rows = jaxae.data.activations(shards, block_rows=3, buffer_rows=17)
    uninterrupted = train(data=rows)
    for step in (3, 13):  # an epoch has 6 steps, and a buffer 2
        crash_at(step, tmp_path / "run", data=rows, checkpoint_steps=1)
    assert_same(train(tmp_path / "run", data=rows), uninterrupted)
    other = jaxae.data.activations(shards, block_rows=5, buffer_rows=17)
    with pytest.raises(ValueError, match=r"block_shuffle.*\[5, 17\]"):
        train(tmp_path / "run", data=other)


def test_pairs_may_be_on_disk(tmp_path):
    np.save(tmp_path / "X.npy", X)
    on_disk = np.load(tmp_path / "X.npy", mmap_mode="r")
    pair = (X, 1 - X)
    expected = train(data=pair, validation=pair, config=config(diagnostics=False))
    run = train(
        data=(on_disk, 1 - X),
        validation=(on_disk, 1 - X),
        config=config(memory_budget=9, diagnostics=False),
    )
    assert_same(run, expected)


def test_a_row_of_nan_in_the_middle_of_a_memory_map_is_named(tmp_path):
    bad = X.copy()
    bad[31, 4] = np.nan
    np.save(tmp_path / "X.npy", bad)
    on_disk = np.load(tmp_path / "X.npy", mmap_mode="r")
    with pytest.raises(ValueError, match="data must be finite.* row 31, column 4"):
        train(data=on_disk, config=config(memory_budget=100))


# ---- another run is rejected ---------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    train(directory)
    return directory


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"hparams": {**HPARAMS, "learning_rate": 0.02}}, "hparams.learning_rate"),
        ({"key": jax.random.key(1)}, "key"),
        ({"key": jax.random.key(0, impl="rbg")}, "generator"),
        ({"data": 1 - X}, "data.sha256"),
        ({"data": X[:40]}, "data.shape"),
        ({"validation": X[:8]}, "validation.shape"),
        ({"validation": None}, "validation"),
        ({"config": config(batch_size=9)}, "config.batch_size"),
        ({"config": config(gradient="manual")}, "config.gradient"),
        ({"config": config(optimizer=optimizers.rmsprop)}, "config.optimizer"),
        ({"config": config(diagnostics=False)}, "config.diagnostics"),
        (
            {"objective": jaxae.Objective(model(H=5), corruption=OBJECTIVE.corruption)},
            "model.latent_dim",
        ),
        (
            {
                "objective": jaxae.Objective(
                    model(), corruption=jaxae.corruptions.gaussian
                )
            },
            "corruption",
        ),
        ({"params": OBJECTIVE.ae.init(KEY)}, "params"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_of_another_run_is_rejected_by_the_field(saved, changes, field):
    with pytest.raises(ValueError, match=f"holds another run: {field}.* there") as e:
        train(saved, **changes)
    assert "\n" not in str(e.value)


def test_a_fingerprint_has_the_arguments_of_a_partial_and_no_address():
    def optimizer(build, hp, *, decay):
        return build(hp["learning_rate"], decay=decay)

    def identity(build, decay):
        partial = functools.partial(optimizer, build, decay=decay)
        run = OBJECTIVE, config(optimizer=partial), {}, KEY, None, X, None
        return checkpointing.fingerprint(*run)["config"]["optimizer"]

    name = f"{optimizer.__module__}.{optimizer.__qualname__}"
    sgd, adam = (f"{f.__module__}.{f.__qualname__}" for f in (optax.sgd, optax.adam))
    assert identity(optax.sgd, 0.5) == f"{name}({sgd}, decay=0.5)"
    assert identity(optax.adam, 0.1) == f"{name}({adam}, decay=0.1)"


@dataclasses.dataclass(frozen=True)
class Source:
    scale: float
    offset: np.ndarray = dataclasses.field(hash=False)

    def __call__(self, key, hparams):
        return self.scale * jax.random.uniform(key, (8, 6)) + self.offset


def test_a_fingerprint_has_the_fields_of_a_source():
    def identity(source):
        run = OBJECTIVE, config(steps_per_epoch=2), {}, KEY, None, source, None
        return checkpointing.fingerprint(*run)["data"]

    zeros, ones = np.zeros(6), np.ones(6)
    assert identity(Source(1.0, zeros)) == identity(Source(1.0, zeros.copy()))
    assert identity(Source(1.0, zeros)) != identity(Source(0.1, zeros))
    assert identity(Source(1.0, zeros)) != identity(Source(1.0, ones))


def test_a_checkpoint_of_another_version_is_rejected(saved, monkeypatch):
    monkeypatch.setattr(checkpointing, "__version__", "9.9.9")
    versions = re.escape(f'version.jaxae is "{jaxae.__version__}" there and "9.9.9"')
    with pytest.raises(ValueError, match=versions):
        train(saved)


def test_an_optimizer_with_another_state_is_rejected(tmp_path):
    def optimizer(hp):
        return optax.sgd(hp["learning_rate"])

    train(tmp_path, config=config(optimizer=optimizer, diagnostics=False))

    def other(hp):
        return optax.adam(hp["learning_rate"])

    other.__qualname__ = optimizer.__qualname__
    with pytest.raises(ValueError, match="holds another run: state.*opt_state"):
        train(tmp_path, config=config(optimizer=other, diagnostics=False))


# ---- how a run ends ------------------------------------------------------------------


def test_patience_stops_and_the_best_epoch_is_kept(tmp_path):
    hparams = {"learning_rate": 0.5, "corruption_rate": 0.2}
    settings_ = config(num_epochs=60, patience=3)
    run = train(config=settings_, hparams=hparams)
    losses = run.metrics["validation/loss"]
    assert run.status == "early_stopped" and len(losses) < 60
    assert run.best.epoch == np.argmin(losses) + 1 == len(losses) - 3
    assert run.best.value == losses.min()
    score = OBJECTIVE.evaluate(run.best.params, X[:9], {})["loss"]
    np.testing.assert_allclose(score, losses.min(), rtol=1e-6)
    assert_same(train(tmp_path, config=settings_, hparams=hparams), run)
    assert_same(train(tmp_path, config=settings_, hparams=hparams), run)
    with pytest.raises(ValueError, match="there are no validation data"):
        train(config=settings_, validation=None)


def test_patience_stops_a_run_whose_monitor_is_nan_from_the_start():
    constant = np.full_like(X, 0.5)
    settings_ = config(num_epochs=8, patience=2, monitor="train/fvu")
    with pytest.warns(RuntimeWarning, match="all rows are equal"):
        run = train(data=constant, config=settings_)
    assert run.status == "early_stopped" and len(run.metrics["train/fvu"]) == 2
    assert run.best is None


@pytest.mark.parametrize("patience", [None, 1])
def test_an_unknown_monitor_is_rejected_before_any_work(patience):
    settings_ = config(monitor="validation/los", patience=patience)
    arguments = {"hparams": HPARAMS, "key": KEY, "validation": X[:9]}
    with pytest.raises(ValueError, match="monitor must be .*did you mean 'validation/"):
        trainer.prepare(OBJECTIVE, X, config=settings_, **arguments)


@pytest.mark.parametrize("diagnostics", [True, False])
@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
@pytest.mark.parametrize("observation", ["gaussian", "bernoulli"])
def test_the_names_of_the_metrics_are_known_before_training(
    diagnostics, on_nonfinite, observation
):
    objective = jaxae.Objective(
        model(observation=observation, tied=False), penalties=(jaxae.penalties.l1,)
    )
    settings_ = config(num_epochs=1, diagnostics=diagnostics, on_nonfinite=on_nonfinite)
    hparams = {"learning_rate": 0.01, "l1": 0.1}
    X_binary = np.round(X)
    for validation in (None, X_binary[:9]):
        run = train(
            objective=objective,
            data=X_binary,
            hparams=hparams,
            config=settings_,
            validation=validation,
        )
        names = training.diagnostics.names_of_epoch(
            objective, settings_, validation is not None
        )
        assert set(names) == set(run.metrics) and len(set(names)) == len(names)


def test_a_metric_that_the_data_do_not_have_cannot_be_monitored():
    """Grey levels have no probability under a Bernoulli: the first epoch shows it."""
    objective = jaxae.Objective(model(observation="bernoulli"))
    settings_ = config(monitor="validation/log_prob")
    with pytest.raises(ValueError, match="monitor must be .*'validation/log_prob'"):
        train(objective=objective, hparams={"learning_rate": 0.01}, config=settings_)


def test_a_run_whose_optimizer_draws_from_its_own_key_resumes(tmp_path):
    def noisy(hparams):
        noise = optax.add_noise(0.1, 0.5, KEY)
        return optax.chain(noise, optimizers.adam(hparams))

    settings_ = config(optimizer=noisy, diagnostics=False)
    expected = train(config=settings_)
    train(tmp_path, config=dataclasses.replace(settings_, num_epochs=2))
    resumed = train(tmp_path, config=settings_)
    chex.assert_trees_all_equal(resumed.params, expected.params)
    for name, values in expected.metrics.items():
        np.testing.assert_array_equal(resumed.metrics[name], values, err_msg=name)
    assert resumed.state.opt_state[0].rng_key.dtype == KEY.dtype


def test_without_validation_data_only_the_default_monitor_may_be_missing():
    run = train(config=config(num_epochs=1), validation=None)
    assert run.status == "finished" and run.best is None
    with pytest.raises(ValueError, match="monitor must be .*'validation/fvu'"):
        train(config=config(monitor="validation/fvu"), validation=None)


@pytest.mark.parametrize(
    "build, number",
    [
        ({"clip": True}, {"max_norm": 0.0}),
        ({"warmup": True}, {"warmup_steps": -1}),
        ({"schedule": "cosine"}, {"final_fraction": 1.5, "schedule_steps": 9}),
        ({}, {"corruption_rate": 10**400}),
    ],
)
def test_hparams_out_of_range_are_rejected(build, number):
    settings_ = config(optimizer=optimizers.build("adam", **build))
    name = next(iter(number))
    with pytest.raises(ValueError, match=rf"hparams\['{name}'\] must be"):
        train(config=settings_, hparams={**HPARAMS, **number})


def bad_data():
    """Row 17 overflows a squared error in float32, and is finite."""
    data = X.copy()
    data[17] = 1e25
    return data


GAUSSIAN = jaxae.Objective(model("identity", "gaussian"))


def diverge(checkpoint_dir=None, **changes):
    return train(
        checkpoint_dir,
        GAUSSIAN,
        bad_data(),
        hparams={"learning_rate": 1e-3},
        config=config(optimizer=optimizers.sgd, diagnostics=False, **changes),
        validation=None,
    )


def test_a_divergence_names_the_leaf_and_the_row(tmp_path):
    with pytest.warns(RuntimeWarning, match="The loss of row 17 of the data"):
        run = diverge()
    assert run.status == "diverged" and run.state.step == run.stopped_at
    assert "The gradient of W" in run.reason
    with pytest.warns(RuntimeWarning):
        saved = diverge(tmp_path)
    assert_same(saved, run)
    with pytest.warns(RuntimeWarning):  # it stays where it ended
        again = diverge(tmp_path)
    assert_same(again, run)
    assert again.reason == run.reason


def test_a_diverged_run_that_is_resumed_is_not_saved_again(tmp_path, monkeypatch):
    steps = []
    save = checkpointing.save

    def counted(checkpoints, run_state):
        steps.append(int(run_state.state.step))
        save(checkpoints, run_state)

    monkeypatch.setattr(checkpointing, "save", counted)
    with pytest.warns(RuntimeWarning):
        run = diverge(tmp_path)
    assert steps == [run.stopped_at]
    with pytest.warns(RuntimeWarning):
        diverge(tmp_path)
    assert steps == [run.stopped_at]


def test_a_divergence_that_no_row_caused_names_no_row():
    sgd = config(optimizer=optimizers.sgd, diagnostics=False)
    with pytest.warns(RuntimeWarning):
        run = train(
            objective=GAUSSIAN,
            hparams={"learning_rate": 3e38},
            config=sgd,
            validation=None,
        )
    assert run.stopped_at in (0, 1) and "of W" in run.reason


def test_an_epoch_that_diverges_is_reported_and_is_never_the_best():
    epochs = []

    def after_update(state, p):
        is_last = state.step == 6 + 4  # the fifth step of the second epoch
        W = jnp.where(is_last, jnp.nan, state.params.W)
        return state._replace(params=state.params._replace(W=W))

    settings_ = config(after_update=after_update, monitor="train/loss")
    with pytest.warns(RuntimeWarning, match="stopped at step 10"):
        run = train(
            config=settings_, on_epoch=lambda metrics, state: epochs.append(metrics)
        )
    losses = run.metrics["train/loss"]
    assert len(losses) == len(epochs) == 2 and losses[1] < losses[0]
    assert run.best.epoch == 1


def test_skipped_steps_are_counted():
    run = diverge(on_nonfinite="skip")
    assert run.status == "finished"
    # Row 17 is in one of six batches of eight rows of fifty, or in none.
    assert set(run.metrics["train/skipped_steps"]) <= {0.0, 1.0}
    assert run.metrics["train/skipped_steps"].sum() > 0
    assert np.isfinite(run.metrics["train/loss"]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.params))


def test_an_epoch_whose_steps_are_all_skipped_warns():
    skip = config(
        optimizer=optimizers.sgd, on_nonfinite="skip", num_epochs=2, diagnostics=False
    )
    words = "6 of the 6 steps of the last epoch were skipped.* smaller learning_rate"
    with pytest.warns(RuntimeWarning, match=words):
        run = train(hparams={"learning_rate": 1e38}, objective=GAUSSIAN, config=skip)
    assert run.status == "finished"
    assert run.metrics["train/skipped_steps"][-1] == 6


def test_accumulated_gradients_are_not_poisoned_by_a_skipped_step():
    optimizer = optimizers.build("sgd", accumulate=4)
    run = train(
        objective=GAUSSIAN,
        data=bad_data(),
        hparams={"learning_rate": 1e-3},
        config=config(optimizer=optimizer, on_nonfinite="skip", diagnostics=False),
        validation=None,
    )
    assert run.status == "finished"
    assert_falls(run.metrics["train/loss"])


def test_many_callbacks_are_each_called():
    seen = []
    run = train(
        on_epoch=[
            lambda metrics, state: seen.append(("a", int(state.step))) or True,
            lambda metrics, state: seen.append(("b", metrics["train/loss"])),
        ]
    )
    assert run.status == "stopped" and [name for name, _ in seen] == ["a", "b"]


def test_an_iterator_of_callbacks_is_read_once():
    epochs = []
    callbacks = iter([lambda metrics, state: epochs.append(int(state.step))])
    train(on_epoch=callbacks, config=config(num_epochs=2))
    assert epochs == [6, 12]
    with pytest.raises(ValueError, match="on_epoch must be a function, got ''"):
        train(on_epoch="")


def test_segments_lengthen_only_while_their_length_is_run(monkeypatch):
    times = iter(range(10**6))  # in tenths of a second
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: next(times) / 10)
    pace = checkpointing.Pace(16)
    assert [pace.num_steps(1000) for _ in range(4)] == [16, 32, 64, 128]
    assert {pace.num_steps(100) for _ in range(99)} == {100}
    assert pace.num_steps(1000) == 256  # not 2^99 times as many
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: 2.0 * next(times))
    assert [pace.num_steps(1000) for _ in range(3)] == [128, 64, 32]


# ---- signals -------------------------------------------------------------------------

INTERRUPTED = """
import signal, sys
sys.path.insert(0, {tests!r})
import test_resume as t
number = getattr(signal, sys.argv[2])
def on_epoch(metrics, state):
    if len(seen) == 1:
        signal.raise_signal(number)
    seen.append(1)
seen = []
# As in a terminal: what a shell starts in the background ignores SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.argv[3] == "handled":
    signal.signal(number, lambda *_: print("handled"))
run = t.train(sys.argv[1], on_epoch=on_epoch)
print(run.status, len(seen))
"""


def interrupted(run, number, handler="default"):
    """A process that sends itself the signal after its second epoch."""
    code = INTERRUPTED.format(tests=os.path.dirname(__file__))
    command = [sys.executable, "-c", code, str(run), number, handler]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "handler, number",
    [
        ("default", "SIGINT"),
        # The next test has a handler too, in this process.
        pytest.param("handled", "SIGTERM", marks=pytest.mark.slow),
        pytest.param("default", "SIGTERM", marks=pytest.mark.slow),
        pytest.param("handled", "SIGINT", marks=pytest.mark.slow),
    ],
)
def test_a_signal_waits_until_the_state_is_saved(
    tmp_path, uninterrupted, number, handler
):
    done = interrupted(tmp_path / "run", number, handler)
    if handler == "handled":
        assert done.stdout.split() == ["handled", "interrupted", "2"], done.stderr
    elif number == "SIGTERM":
        assert done.returncode == -signal.SIGTERM
    else:
        assert "KeyboardInterrupt" in done.stderr
    assert os.listdir(tmp_path / "run") != []
    assert_same(train(tmp_path / "run"), uninterrupted)


def test_a_handled_signal_interrupts_the_run_which_resumes(tmp_path, uninterrupted):
    numbers, epochs = [], []

    def on_epoch(metrics, state):
        epochs.append(metrics)
        if len(epochs) == 2:
            signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    try:
        run = train(tmp_path, on_epoch=on_epoch)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (numbers, run.status, len(epochs)) == ([signal.SIGTERM], "interrupted", 2)
    assert_same(train(tmp_path), uninterrupted)


@pytest.mark.parametrize("raiser", ["callback", "handler"])
def test_a_signal_is_delivered_once_if_its_handler_or_a_callback_raises(
    tmp_path, raiser
):
    numbers = []

    def handle(number, frame):
        numbers.append(number)
        if raiser == "handler":
            raise Stop

    def on_epoch(metrics, state):
        signal.raise_signal(signal.SIGTERM)
        if raiser == "callback":
            raise Stop

    before = signal.signal(signal.SIGTERM, handle)
    try:
        with pytest.raises(Stop):
            train(tmp_path, on_epoch=on_epoch)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert numbers == [signal.SIGTERM]


def test_a_run_goes_on_after_a_kill(tmp_path, uninterrupted):
    done = interrupted(tmp_path / "run", "SIGKILL")
    assert done.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path / "run") != []
    assert_same(train(tmp_path / "run"), uninterrupted)


# ---- bfloat16 products ---------------------------------------------------------------


def test_products_in_bfloat16_leave_all_else_in_float32():
    low = jaxae.Objective(model(), compute_dtype="bfloat16")
    exact = jaxae.Objective(model())
    params = low.ae.init(KEY)
    runs = {}
    for name, objective in {"low": low, "exact": exact}.items():
        runs[name] = train(
            objective=objective,
            hparams={"learning_rate": 0.01},
            config=config(diagnostics=False),
        )
        assert all(
            leaf.dtype == "float32" for leaf in jax.tree.leaves(runs[name].params)
        )
    np.testing.assert_allclose(
        runs["low"].metrics["validation/loss"],
        runs["exact"].metrics["validation/loss"],
        rtol=1e-2,
    )
    assert not np.array_equal(runs["low"].params.W, runs["exact"].params.W)
    (_, _), by_hand = jaxae.manual.value_and_grad(low)(params, X, None, {})
    by_autodiff = jax.grad(lambda p: low(p, X, None, {})[0])(params)
    chex.assert_trees_all_close(by_hand, by_autodiff, rtol=0.02, atol=5e-3)
    with pytest.raises(ValueError, match="compute_dtype must be 'bfloat16'"):
        jaxae.Objective(model(), compute_dtype="float16")


def test_the_sum_over_examples_is_in_float32():
    """In bfloat16 a sum of 4096 equal terms stops at 256 of them."""
    ae = model("identity", "gaussian", D=1, H=1, tied=False)
    low = jaxae.Objective(ae, compute_dtype="bfloat16")
    params = ae.init(KEY)
    ones = jnp.ones((4096, 1))
    for grads in (
        jax.grad(lambda p: low(p, ones, None, {})[0])(params),
        jaxae.manual.value_and_grad(low)(params, ones, None, {})[1],
    ):
        one = jax.grad(lambda p: low(p, ones[:1], None, {})[0])(params)
        for leaf, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(one)):
            np.testing.assert_allclose(leaf, expected, rtol=1e-2)


def test_precision_reports_the_error_of_bfloat16_products():
    low = jaxae.Objective(model(), compute_dtype="bfloat16")
    params = low.ae.init(KEY)
    report = jaxae.gradcheck.precision(lambda p, X: low(p, X, None, {})[0], params, X)
    exact = jaxae.gradcheck.precision(
        lambda p, X: jaxae.Objective(model())(p, X, None, {})[0], params, X
    )
    error, reference = (r.leaves["W"]["float32"].error for r in (report, exact))
    assert reference < 1e-5 < 1e-4 < error < 0.05


# ---- other devices -------------------------------------------------------------------

ON_DEVICES = """
import os, shutil, sys
os.environ["JAX_PLATFORMS"] = "cpu"
flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = flags + " --xla_force_host_platform_device_count=4"
sys.path.insert(0, {tests!r})
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import jaxae, test_resume as t
ae = jaxae.Autoencoder(input_dim=6, latent_dim=8)

def go(run, count, num_epochs):
    mesh = jax.make_mesh((count,), ("model",), devices=jax.devices()[:count],
        axis_types=(AxisType.Auto,))
    places = type(ae.init(t.KEY))(P("model"), P("model"), P())
    params = jax.tree.map(
        lambda leaf, place: jax.device_put(leaf, NamedSharding(mesh, place)),
        ae.init(t.KEY), places)
    run = jaxae.train(jaxae.Objective(ae), t.X, key=t.KEY,
        hparams={{"learning_rate": 0.01}}, params=params, checkpoint_dir=run,
        config=t.config(num_epochs=num_epochs, diagnostics=False))
    assert len(run.params.W.sharding.device_set) == count
    return jax.tree.leaves(run.params)

go("moved", 4, 2)
shutil.copytree("moved", "stayed")
# To rounding: sums split over devices differ in their last bits.
for moved, stayed in zip(go("moved", 2, 4), go("stayed", 4, 4)):
    np.testing.assert_allclose(moved, stayed, rtol=1e-4, atol=1e-5)
"""


def test_a_run_resumes_on_another_number_of_devices(tmp_path):
    code = ON_DEVICES.format(tests=os.path.dirname(__file__))
    command = [sys.executable, "-c", code]
    subprocess.run(command, check=True, timeout=300, cwd=tmp_path)


def test_a_run_that_converges_prints_nothing(tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path)
    assert capfd.readouterr() == ("", "")
