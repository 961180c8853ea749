"""`jaxae sweep`, from its files and options to its folder."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest
from test_checkpoints import flip, truncate

import jaxae
from jaxae import cli
from jaxae.cli import SweepOptions, config_file, reporting, sweep_file
from jaxae.cli.options import build_hparams

sweep_module = sys.modules["jaxae.cli.sweep"]  # the name is also the function's

LINEAR = ("--activation", "identity", "--observation", "gaussian")
LINEAR = (*LINEAR, "--optimizer", "sgd")  # which can diverge
SMALL = ("--data", "rows.npy", "--epochs", "2", "--latent-dim", "3")
SMALL = (*SMALL, "--batch-size", "20", "--lanes-at-once", "8")
RATES = "learning_rate = [0.001, 0.01, 0.1]\n"


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", np.random.default_rng(0).uniform(size=(100, 6)))
    return tmp_path


@pytest.fixture
def no_pictures(monkeypatch):
    """Without pictures, for speed."""
    monkeypatch.setattr(reporting, "draw", lambda *arguments: None)
    monkeypatch.setattr(sweep_module, "_draw", lambda *arguments: [])


def sweep(workdir, text, *arguments):
    (workdir / "space.toml").write_text(text)
    small = [*SMALL]
    for option in ("--latent-dim", "--batch-size"):  # may be in the file instead
        if option.removeprefix("--").replace("-", "_") in text:
            i = small.index(option)
            del small[i : i + 2]
    return cli.main(["sweep", "space.toml", "--out", "out", *small, *arguments])


def table(workdir):
    return pd.read_csv(workdir / "out" / "table.csv", index_col="lane")


def read(workdir, text):
    path = workdir / "space.toml"
    path.write_text(text)
    return sweep_file.read_space(path)


DAMAGE = {
    **{"config.json": truncate, "space.toml": os.unlink, "table.csv": flip},
    **{"metrics.npz": truncate, "best/params.safetensors": flip},
    **{"best/config.json": os.unlink, "best/results.json": truncate},
}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "timing.jsonl"
    }


# ---- the main job --------------------------------------------------------------------


def test_a_sweep_leaves_a_table_the_best_lane_and_pictures(workdir):
    text = RATES + 'activation = ["relu", "sigmoid"]\nseed = { count = 2 }\n'
    (workdir / "space.toml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "jaxae.cli", "sweep", "space.toml", *SMALL],
        capture_output=True,
        text=True,
        cwd=workdir,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # quiet where there is no terminal
    message = done.stdout.splitlines()
    assert message[0] == "12 lanes in 2 compiled programs, 1 device"
    assert "12 lanes: 12 finished." in message
    assert message[-1] == "run folder: runs/sweep"
    out = workdir / "runs" / "sweep"
    assert sorted(os.listdir(out)) == sorted(
        [
            *("best", "by_activation.png", "by_learning_rate.png", "config.json"),
            *("lanes", "map.png", "metrics.npz", "parallel.png", "space.toml"),
            *("table.csv", "timing.jsonl"),
        ]
    )
    assert (out / "space.toml").read_text() == text
    config = json.loads((out / "config.json").read_text())
    assert config["space"] == text and config["sweep"]["epochs"] == 2
    assert len(config["data"]["sha256"]) == 64 and "jax" in config["versions"]
    result = pd.read_csv(out / "table.csv", index_col="lane")
    assert list(result.columns[:3]) == ["learning_rate", "activation", "seed"]
    assert len(result) == 12 and set(result["status"]) == {"finished"}
    with np.load(out / "metrics.npz", allow_pickle=False) as curves:
        assert curves["validation/loss"].shape == (12, 2)
        np.testing.assert_allclose(
            curves["validation/loss"][:, -1], result["validation/loss"], rtol=1e-6
        )
    timing = lines(out / "timing.jsonl")
    assert "12 lanes" in timing[0]["plan"]
    assert timing[-1]["lanes_done"] == 12 and timing[-1]["steps"] == 12 * 2 * 3
    assert timing[-1]["model_steps_per_second"] > 0
    for path in out.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_best_lane_is_a_run_that_train_repeats_and_evaluate_reads(
    workdir, monkeypatch, capsys
):
    # Without the pictures of the sweep, for speed; `plot` draws those of the lane.
    monkeypatch.setattr(sweep_module, "_draw", lambda *arguments: [])
    text = RATES + "l1 = [0.0, 0.01]\nseed = [3, 5]\n"
    assert sweep(workdir, text, "--generator", "rbg") == 0
    best, result = workdir / "out" / "best", table(workdir)
    trial = json.loads((best / "config.json").read_text())["trial"]
    lane = int(result["validation/loss"].argmin())
    assert trial["lane"] == lane
    assert trial["values"] == {n: result.at[lane, n] for n in trial["values"]}
    assert trial["key"] == {
        "seed": 0,
        "generator": "rbg",
        "fold_in": trial["values"]["seed"],
    }

    ae, params = jaxae.load(best)
    rows = np.load("rows.npy").astype(np.float32)
    train, _, validation = jaxae.data.split(rows, 0.2, 0.1, seed=0)
    key = jax.random.key(0, impl=trial["key"]["generator"])
    key = jax.random.fold_in(key, trial["key"]["fold_in"])
    again = jaxae.train(
        jaxae.Objective(ae, penalties=(jaxae.penalties.l1,)),
        train,
        hparams={n: trial["values"][n] for n in ("learning_rate", "l1")},
        key=key,
        config=jaxae.TrainConfig(num_epochs=2, batch_size=20, diagnostics=False),
        validation=validation,
    )
    np.testing.assert_allclose(again.params.W, params.W, rtol=1e-4, atol=1e-5)
    capsys.readouterr()
    assert cli.main(["evaluate", str(best), "-o", "found.json"]) == 0
    results = json.loads((workdir / "found.json").read_text())
    np.testing.assert_allclose(
        results["validation"]["loss"], result.at[lane, "validation/loss"], rtol=1e-4
    )
    assert cli.main(["plot", str(best)]) == 0
    assert "curves.png" in capsys.readouterr().out


def test_train_takes_the_hyperparameters_of_a_lane_from_its_config(
    workdir, no_pictures
):
    """Also of a lane that halving stopped, whose schedule has more epochs than it."""
    text = "init_scale = [0.5, 2.0]\n"
    arguments = ("--schedule", "cosine", "--halving-first", "1", "--top", "2")
    assert sweep(workdir, text, *arguments) == 0
    epochs = []
    for folder in ("best", "top/2"):
        path = workdir / "out" / folder / "config.json"
        options = config_file.defaults(["--config", str(path)])
        hparams = build_hparams(options, num_examples=72)
        expected = json.loads(path.read_text())["hparams"]
        assert {"init_scale", "schedule_steps"} < set(hparams) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(hparams[name], value, rtol=1e-6)
        epochs.append(options.epochs)
    assert epochs == [2, 1]


def test_the_same_command_resumes_and_another_is_rejected(workdir, no_pictures, capsys):
    assert sweep(workdir, RATES) == 0
    complete = contents(workdir / "out")
    saved = sorted((workdir / "out" / "lanes").rglob("*.safetensors"))
    assert saved
    times = [path.stat().st_mtime_ns for path in saved]
    assert sweep(workdir, RATES) == 0
    assert contents(workdir / "out") == complete
    assert [path.stat().st_mtime_ns for path in saved] == times  # not trained again
    for path in saved:
        path.unlink()
    assert sweep(workdir, RATES) == 0
    assert contents(workdir / "out") == complete
    for name, harm in DAMAGE.items():
        harm(workdir / "out" / name)
    assert sweep(workdir, RATES) == 0
    assert contents(workdir / "out") == complete
    os.unlink(workdir / "out" / "config.json")
    assert sweep(workdir, RATES) == 0
    assert contents(workdir / "out") == complete
    capsys.readouterr()

    before = contents(workdir / "out")
    assert sweep(workdir, "learning_rate = [0.001]\n") == 2
    message = capsys.readouterr().err
    assert (
        "--out out holds another sweep: space.learning_rate is" in message
        and "--overwrite" in message
    )
    assert sweep(workdir, RATES, "--epochs", "1") == 2
    assert "--epochs is 2 there and 1 here" in capsys.readouterr().err
    assert sweep(workdir, RATES, "--generator", "rbg") == 2
    assert '--generator is "threefry2x32" there and "rbg" here' in (
        capsys.readouterr().err
    )
    assert contents(workdir / "out") == before
    assert sweep(workdir, "learning_rate = [-1.0, 1e400]\n", "--overwrite") == 2
    assert contents(workdir / "out") == before, "what is refused changes nothing"
    assert sweep(workdir, RATES, "--epochs", "3") == 0  # resumes
    longer = contents(workdir / "out")
    assert sweep(workdir, RATES, "--epochs", "3", "--overwrite") == 0
    assert contents(workdir / "out") == longer
    assert sweep(workdir, "learning_rate = [0.001]\n", "--overwrite") == 0
    assert len(table(workdir)) == 1


def test_an_interrupt_is_tidy_and_the_same_command_makes_the_same_table(
    workdir, no_pictures, monkeypatch, capsys
):
    text = "batch_size = [10, 20, 30]\n"
    call = sweep_module.SweepReporter.__call__

    def interrupting(reporter, progress):
        reporter._interrupt.is_requested = progress.lanes_done == 1
        call(reporter, progress)

    with monkeypatch.context() as patch:
        patch.setattr(sweep_module.SweepReporter, "__call__", interrupting)
        assert sweep(workdir, text) == 130
    assert "interrupted with 1 of 3 lanes done" in capsys.readouterr().out
    assert not (workdir / "out" / "table.csv").exists()
    assert sweep(workdir, text) == 0
    result = contents(workdir / "out")
    assert sweep(workdir, text, "--overwrite") == 0
    assert contents(workdir / "out") == result


def test_damaged_lanes_are_noted_also_where_the_sweep_is_interrupted(
    workdir, no_pictures, monkeypatch, capsys
):
    assert sweep(workdir, "l1 = [0.1]\n") == 0
    (path,) = (workdir / "out" / "lanes" / "lanes").iterdir()
    truncate(path)
    call = sweep_module.SweepReporter.__call__

    def interrupting(reporter, progress):
        reporter._interrupt.is_requested = True
        call(reporter, progress)

    monkeypatch.setattr(sweep_module.SweepReporter, "__call__", interrupting)
    capsys.readouterr()
    assert sweep(workdir, "l1 = [0.1]\n") == 130
    assert f"{path.name} is damaged" in capsys.readouterr().err


def test_a_run_that_is_no_sweep_is_not_overwritten_unasked(
    workdir, no_pictures, capsys
):
    assert cli.main(["train", "--out", "out", *SMALL[:-2]]) == 0
    assert sweep(workdir, RATES) == 2
    assert "does not hold this sweep" in capsys.readouterr().err
    assert sweep(workdir, RATES, "--overwrite") == 0
    assert not (workdir / "out" / "checkpoints").exists()
    (workdir / "out" / "config.json").write_text("{")
    shutil.rmtree(workdir / "out" / "lanes")  # which have its fingerprint too
    assert sweep(workdir, RATES) == 2
    assert "does not hold this sweep" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["notes.txt", "space.toml", "top/mine", "lanes/mine", "config.json"]
)
def test_a_folder_of_other_files_is_left_as_it_is(workdir, capsys, name):
    path = workdir / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"sweep": {}, "space": ""}')
    (workdir / "out" / "table.csv").write_text("mine")
    before = contents(workdir / "out")
    assert sweep(workdir, RATES) == 2
    error = capsys.readouterr().err
    assert "--out out is not empty and does not hold this sweep" in error
    assert error.count("\n") == 1 and contents(workdir / "out") == before


def test_results_without_lanes_are_those_of_the_same_sweep_only(
    workdir, no_pictures, capsys
):
    assert sweep(workdir, RATES) == 0
    complete = contents(workdir / "out")
    shutil.rmtree(workdir / "out" / "lanes")
    before = contents(workdir / "out")
    for text, options in ((RATES, ("--epochs", "1")), ("l1 = [0.1]\n", ())):
        assert sweep(workdir, text, *options) == 2
        assert "does not hold this sweep" in capsys.readouterr().err
    assert contents(workdir / "out") == before
    assert sweep(workdir, RATES) == 0
    assert contents(workdir / "out") == complete


def test_the_space_may_be_in_the_folder_that_is_written(workdir, no_pictures):
    (workdir / "out").mkdir()
    (workdir / "out" / "space.toml").write_text("l1 = [0.1]\n")
    command = ("sweep", "out/space.toml", "--out", "out", *SMALL)
    assert cli.main([*command]) == 0
    assert cli.main([*command]) == 0


# ---- options -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (
            'optimizer = ["sgd", "adam"]\nmax_norm = [0.5, 1.0]\n',
            ("--schedule", "cosine", "--warmup-steps", "2"),
        ),
        pytest.param(
            'corruption = ["none", "masking"]\ncorruption_rate = [0.3]\n',
            (),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "[[together]]\ntied = [true, false]\nbias = [false, true]\n",
            (),
            marks=pytest.mark.slow,
        ),
        ("latent_dim = [2, 5]\ninit_scale = [0.5, 1.0]\n", ("--devices", "1")),
        pytest.param(
            "[[together]]\nlearning_rate = [0.1, 0.2]\nbatch_size = [10, 20]\n",
            (),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "kl_sparsity = [0.1]\nkl_sparsity_target = [0.05, 0.1]\n",
            ("--validation-fraction", "0"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            'observation = ["gaussian", "bernoulli"]\n',
            ("--metric", "validation/fvu"),
            marks=pytest.mark.slow,
        ),
        (
            'learning_rate = { low = 1e-3, high = 1, scale = "log" }\n'
            "l1 = { low = 0, high = 1 }\n",
            ("--num-samples", "4", "--halving-first", "1", "--sampler", "random"),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_whatever_varies_trains_and_its_best_lane_is_a_run(
    workdir, no_pictures, text, arguments
):
    assert sweep(workdir, text, *arguments) == 0
    result = table(workdir)
    names = read(workdir, text).columns
    assert len(result) > 1 and set(names) <= set(result.columns)
    assert cli.main(["evaluate", "out/best"]) == 0


def test_a_range_of_a_number_of_steps_has_integers_only(workdir, no_pictures):
    text = "warmup_steps = { low = 1, high = 4 }\n"
    text += 'schedule_steps = { low = 4, high = 9, scale = "log" }\n'
    options = ("--num-samples", "3", "--sampler", "random", "--schedule", "linear")
    assert sweep(workdir, text, *options) == 0
    steps = table(workdir)[["warmup_steps", "schedule_steps"]]
    assert (steps == steps.round()).all(axis=None)
    assert cli.main(["evaluate", "out/best"]) == 0


def test_the_best_lanes_are_ranked_and_diverged_ones_are_not_among_them(
    workdir, no_pictures, capsys
):
    text = "learning_rate = [0.001, 1e30, 0.01, 0.1]\n"
    assert sweep(workdir, text, "--top", "3", *LINEAR) == 0
    result = table(workdir)
    assert result["status"].tolist() == ["finished", "diverged", "finished", "finished"]
    assert "4 lanes: 3 finished, 1 diverged." in capsys.readouterr().out
    folders = [workdir / "out" / name for name in ("best", "top/2", "top/3")]
    lanes = [
        json.loads((folder / "config.json").read_text())["trial"]["lane"]
        for folder in folders
    ]
    losses = result["validation/loss"].drop(1)
    assert lanes == losses.sort_values().index.tolist()
    assert sorted(os.listdir(workdir / "out" / "top")) == ["2", "3"]
    assert sweep(workdir, text, *LINEAR) == 0
    assert not (workdir / "out" / "top").exists()


def test_where_every_lane_diverged_the_exit_status_says_so(workdir, capsys):
    text = "learning_rate = [1e30, 1e31]\n"
    assert sweep(workdir, text, *LINEAR) == 1
    assert "every lane diverged" in capsys.readouterr().err
    assert len(table(workdir)) == 2 and not (workdir / "out" / "best").exists()


def test_where_no_lane_can_be_ranked_no_older_best_lane_is_left(
    workdir, no_pictures, monkeypatch, capsys
):
    assert sweep(workdir, RATES) == 0
    final = jaxae.sweeps.Sweep.final.fget

    def without_fvu(result):
        return {**final(result), "train/fvu": np.full(3, np.nan)}

    monkeypatch.setattr(jaxae.sweeps.Sweep, "final", property(without_fvu))
    assert sweep(workdir, RATES, "--metric", "train/fvu") == 1
    error = capsys.readouterr().err
    assert "train/fvu is not finite in any lane that finished" in error
    assert "diverged" not in error
    assert not (workdir / "out" / "best").exists()
    assert sweep(workdir, RATES) == 0
    assert (workdir / "out" / "best").exists()


def test_a_metric_that_only_the_end_has_can_choose(workdir, no_pictures):
    assert sweep(workdir, RATES, "--metric", "train/fvu") == 0
    trial = json.loads((workdir / "out" / "best" / "config.json").read_text())["trial"]
    assert trial["lane"] == table(workdir)["train/fvu"].argmin()


# ---- the file ------------------------------------------------------------------------


def test_the_file_says_lists_ranges_seeds_and_what_goes_together(workdir):
    space = read(
        workdir,
        'l1 = [0, 0.5]\nlearning_rate = { low = 1e-3, high = 1, scale = "log" }\n'
        'seed = { count = 3 }\ncorruption = ["none", "masking"]\n'
        "[[together]]\nlatent_dim = [2, 4]\nbatch_size = [10, 20]\n",
    )
    assert space.axes() == {
        "l1": [0, 0.5],
        "learning_rate": jaxae.sweeps.log_uniform(1e-3, 1),
        "seed": range(3),
        "corruption": [None, "masking"],
        ("latent_dim", "batch_size"): [(2, 10), (4, 20)],
    }
    assert list(space.axes())[-1] == ("latent_dim", "batch_size")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate = [0.1]", "'lerning_rate'.*did you mean 'learning_rate'"),
        (
            "learning_rate = 0.1",
            r"toml\['learning_rate'\] must be a list such as.*got 0.1",
        ),
        (
            "learning_rate = []",
            r"toml\['learning_rate'\] must be a list of at least one",
        ),
        ('learning_rate = ["a"]', r"a list of at least one number, got \['a'\]"),
        ("learning_rate = [true]", "a list of at least one number"),
        ("learning_rate = [inf]", "must be finite"),
        (
            f"learning_rate = [{10**400}]",
            "must be finite, got list .1000",
        ),
        (f"learning_rate = [{'9' * 5000}]", "is not TOML: Exceeds the limit"),
        (f"l1 = {{ low = 0, high = {10**400} }}", "a range needs finite low < high"),
        (f"seed = [{2**64}]", "between 0 and 2..32 - 1, got .18446744073709551616"),
        (f"seed = {{ count = {10**30} }}", "has more values than the 1,048,576 lanes"),
        ("learning_rate = { low = 1 }", "must have low, high and an optional"),
        ("learning_rate = { low = 1, high = 2, step = 1 }", "and nothing else"),
        ('l1 = { low = 1, high = 2, scale = "cubic" }', "scale = 'linear' or 'log'"),
        (
            "l1 = { low = 2, high = 1 }",
            r"toml\['l1'\]: a range needs finite low < high",
        ),
        ("l1 = { low = 0, high = 1 }", "--num-samples must say"),
        (
            "latent_dim = { low = 2, high = 4 }",
            r"\['latent_dim'\] must be a list, not a range",
        ),
        ("seed = { range = [0, 8] }", r"a list or \{ count = 8 \}"),
        ("seed = { count = 0 }", "an integer of at least 1"),
        ("warmup_steps = [2.5]", "must be a list of integers, got .2.5."),
        ("latent_dim = [0]", "must lie between 1 and 2..31 - 1, got .0."),
        ("latent_dim = [2.0]", "a list of at least one integer"),
        ("tied = [1]", "must be True or False"),
        ("activation = ['rulu']", "did you mean 'relu'"),
        ("together = 3", r"write \[\[together\]\]"),
        ("[[together]]\nl1 = [1.0]", "at least two names"),
        ("[[together]]\nl1 = [1.0]\nlearning_rate = [1, 2]", "lists of one length"),
        ("[[together]]\nl1 = { low = 1, high = 2 }\nseed = [1]", "lists of one length"),
        ("l1 = [1]\n[[together]]\nl1 = [1]\nseed = [1]", "leave one out"),
        ("l1 = [", "is not TOML"),
        ("", "has no axis"),
        (
            "l1 = [-1.0]\nlearning_rate = [0.1]\nmomentum = [0.9]",
            "nothing in this sweep reads",
        ),
        ("corruption_rate = [0.1]", "which nothing in this sweep reads"),
        ("l1 = [0.1, -1.0]", "error: l1 must be at least 0, got -1.0; below"),
        ("init_scale = [0]", "error: init_scale must be positive, got 0.0"),
    ],
)
def test_a_bad_file_is_rejected_in_one_sentence(workdir, capsys, text, message):
    import re

    assert sweep(workdir, text) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxae: error: ") and error.count("\n") == 1
    assert re.search(message, error), error
    assert not (workdir / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--learning-rate", "0.5"), "learning_rate is in space.toml, and --learning"),
        (("--learning-rate=1e-3",), "learning_rate is in space.toml, and --learning"),
        (("--learning_rate", "1e-3"), "learning_rate is in space.toml, and --learning"),
        (("--num-samples", "3"), "--num-samples is for ranges"),
        (("--metric", "loss"), "--metric must be one of train/"),
        (("--halving-factor", "3"), "need --halving-first"),
        (("--halving-first", "0"), "--halving-first must be an integer of at least 1"),
        (
            ("--halving-first", "1", "--halving-metric", "train/fvu"),
            "--halving-metric must be one of",
        ),
        (("--table", "json"), "--table must be one of csv, parquet"),
        (("--devices", "99"), "--devices must be between 1 and"),
        (("--top", "0"), "--top must be an integer of at least 1"),
        (("--lanes-at-once", "0"), "--lanes-at-once must be an integer of at least 1"),
        (("--num-samples", "9" * 30), "--num-samples must be less than 2**31"),
        (("--top", "9" * 30), "--top must be less than 2**31"),
        (("--memory-budget", "0"), "--memory-budget must be an integer of at least 1"),
        (("--engine", "slurm"), "--engine must be None or 'ray'"),
        (("--sampler", "grid"), "--sampler must be 'sobol' or 'random'"),
        (("--generator", "mt19937"), "--generator must be one that JAX knows, such as"),
        (("--data", "none.npy"), "There is no file none.npy"),
        (("--out", ""), "--out must name a folder"),
        (("--out", "rows.npy"), "rows.npy is a file"),
        (("--momentum", "0.9"), "momentum, which nothing in this sweep reads"),
        (("--l1", "-1"), "error: l1 must be at least 0, got -1.0; below"),
        (("--epochs", "0"), "--epochs must be an integer of at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_options_are_rejected_in_one_sentence(workdir, capsys, arguments, message):
    assert sweep(workdir, RATES, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxae: error: ") and error.count("\n") == 1
    assert message in error
    assert not (workdir / "out").exists()


def test_a_table_in_parquet_is_the_table_in_csv(workdir, no_pictures, capsys):
    assert sweep(workdir, RATES) == 0
    csv = table(workdir).astype({"stopped_at": "Int64"})
    assert (
        sweep(workdir, (workdir / "space.toml").read_text(), "--table", "parquet") == 0
    )
    parquet = pd.read_parquet(workdir / "out" / "table.parquet")
    assert parquet.index.name == "lane" and list(parquet.columns) == list(csv.columns)
    pd.testing.assert_frame_equal(parquet, csv, rtol=1e-12)


def test_parquet_needs_pyarrow_and_says_so_before_any_work(
    workdir, monkeypatch, capsys
):
    find = sweep_module.importlib.util.find_spec
    monkeypatch.setattr(
        sweep_module.importlib.util,
        "find_spec",
        lambda name: None if name == "pyarrow" else find(name),
    )
    assert sweep(workdir, RATES, "--table", "parquet") == 2
    assert "pip install 'jaxae[parquet]'" in capsys.readouterr().err
    assert not (workdir / "out").exists()


@pytest.mark.parametrize("name", ["batch_size", "warmup_steps"])
def test_a_schedule_whose_length_varies_needs_schedule_steps(workdir, name):
    def check(text, **changes):
        options = SweepOptions(space="space.toml", **changes)
        sweep_file.check_options(read(workdir, text), options)

    axis = f"{name} = [10, 20]\n"
    with pytest.raises(ValueError, match=f"{name} in space.toml; give --schedule-st"):
        check(axis, schedule="cosine")
    check(axis, schedule="constant")
    check(axis, schedule="cosine", schedule_steps=30)
    check(f"[[together]]\n{axis}schedule_steps = [30, 20]\n", schedule="cosine")


def test_a_missing_file_is_reported(workdir, capsys):
    assert cli.main(["sweep", "none.toml"]) == 2
    assert "none.toml does not exist" in capsys.readouterr().err


def test_help_shows_every_option(workdir, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", "--help"])
    message = capsys.readouterr().out
    assert ended.value.code == 0 and "SPACE.toml" in message
    for field in dataclasses.fields(SweepOptions):
        assert field.name == "space" or f"--{field.name.replace('_', '-')} " in message
