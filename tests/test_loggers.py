"""Loggers: what they write is what training reported, also after a resumed run."""

import copy
import csv as std_csv
import json
import os
import pickle
import sys
import types

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import jaxae
from jaxae import cli, loggers
from jaxae._checks import ArgumentError
from jaxae.cli import reporting, run_folder

X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)


def train(num_epochs, on_epoch, **arguments):
    ae = jaxae.Autoencoder(input_dim=3, latent_dim=2, observation="gaussian")
    config = jaxae.TrainConfig(num_epochs=num_epochs, batch_size=5, diagnostics=False)
    return jaxae.train(
        jaxae.Objective(ae),
        X,
        hparams={"learning_rate": 1e-2},
        key=jax.random.key(0),
        config=config,
        on_epoch=on_epoch,
        **arguments,
    )


def state_at(step):
    return types.SimpleNamespace(step=np.int32(step))


def read_csv(path):
    """By column, as floats."""
    with path.open(newline="") as file:
        rows = list(std_csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def read_events(directory):
    """(step, value) by tag, as TensorBoard shows them."""
    events = EventAccumulator(str(directory)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


class Recorder:
    """Anything with `.log(dict, step=)`, such as a run of trackio."""

    def __init__(self):
        self.rows, self.is_finished = [], False

    def log(self, metrics, step=None):
        self.rows.append((step, metrics))

    def finish(self):
        self.is_finished = True


# ---- what is written -----------------------------------------------------------------


def test_every_logger_logs_the_metrics_of_the_run(tmp_path):
    recorder = Recorder()
    run = train(
        3,
        [
            loggers.csv(tmp_path / "new" / "a.csv"),
            loggers.tensorboard(tmp_path / "new" / "events"),
            loggers.log_to(recorder),
        ],
    )
    steps = [4, 8, 12]
    table = read_csv(tmp_path / "new" / "a.csv")
    events = read_events(tmp_path / "new" / "events")
    assert list(table) == ["step", *run.metrics]
    assert table.pop("step") == steps
    assert [step for step, _ in recorder.rows] == steps
    for name, values in run.metrics.items():
        assert table[name] == list(values)
        assert [metrics[name] for _, metrics in recorder.rows] == list(values)
        assert events[name] == list(zip(steps, values.astype(np.float32)))


@given(
    rows=st.lists(st.tuples(st.floats(), st.floats(width=32)), min_size=1, max_size=5)
)
@settings(max_examples=20, deadline=None)
def test_any_number_is_read_back(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("run")
    log = loggers.csv(folder / "a.csv"), loggers.tensorboard(folder)
    for step, (x, y) in enumerate(rows):
        for logger in log:
            logger({"x": x if logger is log[0] else y, "y": y}, state_at(step))
    np.testing.assert_array_equal(read_csv(folder / "a.csv")["x"], [x for x, _ in rows])
    events = read_events(folder)["y"]
    np.testing.assert_array_equal([value for _, value in events], [y for _, y in rows])


def test_a_resumed_run_repeats_no_epoch(tmp_path):
    """A killed process may have logged more epochs than its checkpoint holds."""

    def log(resume):
        return [
            loggers.csv(tmp_path / "a.csv", resume=resume),
            loggers.tensorboard(tmp_path / "events"),
        ]

    folder = tmp_path / "checkpoints"
    train(2, log(resume=True), checkpoint_dir=folder)
    for logger in log(resume=True):  # of epochs that were lost
        logger({"train/loss": 7.0, "train/reconstruction": 7.0}, state_at(12))
        logger({"train/loss": 7.0, "train/reconstruction": 7.0}, state_at(16))
    run = train(4, log(resume=True), checkpoint_dir=folder)
    table, events = read_csv(tmp_path / "a.csv"), read_events(tmp_path / "events")
    assert table["step"] == [4, 8, 12, 16]
    assert table["train/loss"] == list(run.metrics["train/loss"])
    assert [step for step, _ in events["train/loss"]] == [4, 8, 12, 16]
    assert 7.0 not in [value for _, value in events["train/loss"]]


def test_files_are_complete_after_each_epoch(tmp_path):
    """Nothing is buffered, so a killed process loses no epoch."""
    log = loggers.csv(tmp_path / "a.csv"), loggers.tensorboard(tmp_path)
    for step in (1, 2):
        for logger in log:
            logger({"x": 1.0}, state_at(step))
        assert read_csv(tmp_path / "a.csv")["step"][-1] == step
        assert read_events(tmp_path)["x"][-1] == (step, 1.0)


def test_a_logger_can_be_copied_as_scikit_learn_copies_it(tmp_path):
    log = loggers.csv(tmp_path / "a.csv")
    for again in (copy.deepcopy(log), pickle.loads(pickle.dumps(log))):
        again({"x": 1.0}, state_at(1))
    assert read_csv(tmp_path / "a.csv")["step"] == [1]


# ---- Weights & Biases ----------------------------------------------------------------


@pytest.fixture
def wandb(monkeypatch):
    """wandb itself is too large for the tests: a module with `init` alone."""
    runs = []

    def init(**settings):
        runs.append((settings, Recorder()))
        return runs[-1][1]

    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace()
    module.init, module.runs = init, runs
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_starts_a_run_and_finishes_it(wandb):
    with loggers.wandb(project="p", mode="offline") as log:
        train(2, log)
        [(settings, run)] = wandb.runs
        assert settings == {"project": "p", "mode": "offline"}
        assert [step for step, _ in run.rows] == [4, 8]
        assert not run.is_finished
    assert run.is_finished


def test_wandb_that_cannot_start_says_so_in_a_sentence(wandb, monkeypatch):
    def init():
        raise RuntimeError("No API key configured.\nmore")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(
        ValueError, match=r"^wandb.init failed: RuntimeError: No API ke"
    ):
        loggers.wandb()


def test_a_target_is_finished_after_an_interrupt_too():
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt), loggers.log_to(recorder):
        raise KeyboardInterrupt
    assert recorder.is_finished
    with loggers.log_to(types.SimpleNamespace(log=print)):
        pass  # a target without `finish`


def test_a_logger_never_stops_training():
    recorder = Recorder()
    recorder.log = lambda metrics, step: True
    assert train(2, loggers.log_to(recorder)).status == "finished"


# ---- errors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: loggers.csv(folder), "path must be a file, but"),
        (lambda folder: loggers.csv(""), "path must be a path, got ''."),
        (lambda folder: loggers.csv(3), "path must be a path, got 3."),
        (lambda folder: loggers.csv(folder / "old"), "exists; choose another, or"),
        (lambda folder: loggers.tensorboard(folder / "old"), "must be a folder, but"),
        (lambda folder: loggers.tensorboard(None), "directory must be a path, got Non"),
        (lambda folder: loggers.log_to(print), "target must have a method log(metrics"),
    ],
)
def test_bad_argument_is_named(tmp_path, make, words):
    (tmp_path / "old").write_text("a file")
    with pytest.raises(ArgumentError) as caught:
        make(tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("step,y\n1,2\n", "with the columns step, x, got step, y; log to another file"),
        ("", "with the columns step, x, got none; log to another file"),
        ("step,x\na,2\n", "is damaged (invalid literal for int()"),
        ("step,x\n,\n", "is damaged (invalid literal for int()"),
        ("\x00\xff", "with the columns step, x"),
    ],
)
def test_a_file_of_another_kind_is_left_as_it_is(tmp_path, content, words):
    path = tmp_path / "a.csv"
    path.write_text(content)
    before = path.read_bytes()
    with pytest.raises(ArgumentError) as caught:
        loggers.csv(path, resume=True)({"x": 1.0}, state_at(3))
    assert words in str(caught.value)
    assert path.read_bytes() == before


def test_a_missing_package_names_the_extra(monkeypatch, tmp_path):
    for package in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, package, None)
    for make in (loggers.wandb, lambda: loggers.tensorboard(tmp_path / "events")):
        with pytest.raises(ImportError, match=r"pip install 'jaxae\[loggers\]'"):
            make()
    assert not os.listdir(tmp_path)


# ---- jaxae train --log ---------------------------------------------------------------


@pytest.fixture
def command(tmp_path, monkeypatch):
    """`jaxae train` on small data, without pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reporting, "draw", lambda *arguments: None)
    np.save("X.npy", X)
    options = "--data X.npy --observation gaussian --latent-dim 2 --batch-size 5"
    fixed = [*options.split(), "--no-diagnostics", "--out", "run"]

    def run(*arguments):
        return cli.main(["train", *fixed, *arguments])

    return run


def test_the_command_logs_each_epoch_once(command, tmp_path, wandb):
    log = ("--log", "csv,tensorboard,wandb")
    assert command("--epochs", "1") == 0
    assert command("--epochs", "3", "--resume", *log) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["validation/loss"] for line in lines[1:]]
    assert read_csv(tmp_path / "run" / "metrics.csv")["validation/loss"] == losses
    events = read_events(tmp_path / "run" / "loggers")["validation/loss"]
    assert [value for _, value in events] == list(np.float32(losses))
    [(settings, run)] = wandb.runs
    assert settings["name"] == "run" and settings["config"]["latent_dim"] == 2
    assert [metrics["validation/loss"] for _, metrics in run.rows] == losses
    assert run.is_finished
    # What --overwrite removes.
    run_folder.clear(tmp_path / "run", run_folder.RUN)
    assert os.listdir(tmp_path / "run") == ["README.md"]  # the next run replaces it


def test_the_command_refuses_a_logger_before_any_work(command, monkeypatch, capsys):
    assert command("--log", "csv,mlflow") == 2
    assert "--log must be one of csv, tensorboard, wandb, got 'mlflow'" in (
        capsys.readouterr().err
    )
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert command("--log", "csv,wandb") == 2
    error = capsys.readouterr().err
    assert "--log wandb needs the package 'wandb', which is not installed" in error
    assert "pip install 'jaxae[loggers]'" in error
    assert not os.path.exists("run")


def test_overwrite_removes_no_folder_of_loggers_of_another_program(command, capsys):
    os.makedirs("run/loggers")
    assert command("--overwrite") == 2
    assert "has a folder loggers that no run wrote" in capsys.readouterr().err
    assert os.path.isdir("run/loggers")


@pytest.mark.parametrize("row", ["1", "1,2,3"])
def test_a_row_of_another_length_is_named_as_damage(row, tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(f"step,loss\n{row}\n")
    with pytest.raises(ValueError, match="is damaged .a row does not have 2 columns"):
        jaxae.loggers.csv(path, resume=True).target.log({"loss": 1.0}, step=2)
