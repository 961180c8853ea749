"""`jaxae sweep`, as a user meets it."""

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
from jaxae.cli import SweepOptions, reporting, space, sweep_output

sweep_module = sys.modules["jaxae.cli.sweep"]  # the name is also the function's

LINEAR = ("--activation", "identity", "--observation", "gaussian")
LINEAR = (*LINEAR, "--optimizer", "sgd")  # which can diverge
SMALL = ("--data", "rows.npy", "--epochs", "2", "--latent-dim", "3")
SMALL = (*SMALL, "--batch-size", "20", "--lanes-at-once", "8")
RATES = "learning_rate = [0.001, 0.01, 0.1]\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", np.random.default_rng(0).uniform(size=(100, 6)))
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch):
    """Without pictures, for speed."""
    monkeypatch.setattr(reporting, "draw", lambda *arguments: None)
    monkeypatch.setattr(sweep_output, "_draw", lambda *arguments: [])


def sweep(here, text, *arguments):
    (here / "space.toml").write_text(text)
    return cli.main(["sweep", "space.toml", "--out", "out", *SMALL, *arguments])


def table(here):
    return pd.read_csv(here / "out" / "table.csv", index_col="lane")


def read(here, text):
    path = here / "space.toml"
    path.write_text(text)
    return space.read(path)


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


def test_a_sweep_leaves_a_table_the_best_lane_and_pictures(here):
    text = RATES + 'activation = ["relu", "sigmoid"]\nseed = { count = 2 }\n'
    (here / "space.toml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "jaxae.cli", "sweep", "space.toml", *SMALL],
        capture_output=True,
        text=True,
        cwd=here,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # quiet where there is no terminal
    said = done.stdout.splitlines()
    assert said[0] == "12 lanes in 2 compiled programs, 1 device"
    assert "12 lanes: 12 finished." in said
    assert said[-1] == "run folder: runs/sweep"
    out = here / "runs" / "sweep"
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
    found = pd.read_csv(out / "table.csv", index_col="lane")
    assert list(found.columns[:3]) == ["learning_rate", "activation", "seed"]
    assert len(found) == 12 and set(found["status"]) == {"finished"}
    with np.load(out / "metrics.npz", allow_pickle=False) as curves:
        assert curves["validation/loss"].shape == (12, 2)
        np.testing.assert_allclose(
            curves["validation/loss"][:, -1], found["validation/loss"], rtol=1e-6
        )
    timing = lines(out / "timing.jsonl")
    assert "12 lanes" in timing[0]["plan"]
    assert timing[-1]["lanes_done"] == 12 and timing[-1]["steps"] == 12 * 2 * 3
    assert timing[-1]["model_steps_per_second"] > 0
    for path in out.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_best_lane_is_a_run_that_train_repeats_and_evaluate_reads(here, capsys):
    text = RATES + "l1 = [0.0, 0.01]\nseed = [3, 5]\n"
    assert sweep(here, text, "--generator", "rbg") == 0
    best, found = here / "out" / "best", table(here)
    trial = json.loads((best / "config.json").read_text())["trial"]
    lane = int(found["validation/loss"].argmin())
    assert trial["lane"] == lane
    assert trial["values"] == {n: found.at[lane, n] for n in trial["values"]}
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
        config=jaxae.TrainConfig(num_epochs=2, batch_size=20),
        validation=validation,
    )
    np.testing.assert_allclose(again.params.W, params.W, rtol=1e-4, atol=1e-5)
    capsys.readouterr()
    assert cli.main(["evaluate", str(best), "-o", "found.json"]) == 0
    results = json.loads((here / "found.json").read_text())
    np.testing.assert_allclose(
        results["validation"]["loss"], found.at[lane, "validation/loss"], rtol=1e-4
    )
    assert cli.main(["plot", str(best)]) == 0
    assert "curves.png" in capsys.readouterr().out


def test_the_same_command_goes_on_and_another_is_refused(here, undrawn, capsys):
    assert sweep(here, RATES) == 0
    whole = contents(here / "out")
    kept = sorted((here / "out" / "lanes").rglob("*.safetensors"))
    assert kept
    times = [path.stat().st_mtime_ns for path in kept]
    assert sweep(here, RATES) == 0
    assert contents(here / "out") == whole
    assert [path.stat().st_mtime_ns for path in kept] == times  # not trained again
    for path in kept:
        path.unlink()
    assert sweep(here, RATES) == 0
    assert contents(here / "out") == whole
    for name, harm in DAMAGE.items():
        harm(here / "out" / name)
    assert sweep(here, RATES) == 0
    assert contents(here / "out") == whole
    os.unlink(here / "out" / "config.json")
    assert sweep(here, RATES) == 0
    assert contents(here / "out") == whole
    capsys.readouterr()

    before = contents(here / "out")
    assert sweep(here, "learning_rate = [0.001]\n") == 2
    said = capsys.readouterr().err
    assert (
        "--out out holds another sweep: space.learning_rate is" in said
        and "--overwrite" in said
    )
    assert sweep(here, RATES, "--epochs", "1") == 2
    assert "--epochs is 2 there and 1 here" in capsys.readouterr().err
    assert sweep(here, RATES, "--generator", "rbg") == 2
    assert '--generator is "threefry2x32" there and "rbg" here' in (
        capsys.readouterr().err
    )
    assert contents(here / "out") == before
    assert sweep(here, "learning_rate = [-1.0, 1e400]\n", "--overwrite") == 2
    assert contents(here / "out") == before, "what is refused changes nothing"
    assert sweep(here, RATES, "--epochs", "3") == 0  # goes on
    longer = contents(here / "out")
    assert sweep(here, RATES, "--epochs", "3", "--overwrite") == 0
    assert contents(here / "out") == longer
    assert sweep(here, "learning_rate = [0.001]\n", "--overwrite") == 0
    assert len(table(here)) == 1


def test_an_interrupt_is_tidy_and_the_same_command_makes_the_same_table(
    here, undrawn, monkeypatch, capsys
):
    text = "batch_size = [10, 20, 30]\n"
    arguments = ("--batch-size", "128")
    call = sweep_module.Reporter.__call__

    def interrupting(reporter, progress):
        reporter._interrupt.is_requested = progress.lanes_done == 1
        call(reporter, progress)

    with monkeypatch.context() as patch:
        patch.setattr(sweep_module.Reporter, "__call__", interrupting)
        assert sweep(here, text, *arguments) == 130
    assert "interrupted with 1 of 3 lanes done" in capsys.readouterr().out
    assert not (here / "out" / "table.csv").exists()
    assert sweep(here, text, *arguments) == 0
    found = contents(here / "out")
    assert sweep(here, text, *arguments, "--overwrite") == 0
    assert contents(here / "out") == found


def test_a_run_that_is_no_sweep_is_not_overwritten_unasked(here, undrawn, capsys):
    assert cli.main(["train", "--out", "out", *SMALL[:-2]]) == 0
    assert sweep(here, RATES) == 2
    assert "holds a run already that is no sweep" in capsys.readouterr().err
    assert sweep(here, RATES, "--overwrite") == 0
    assert not (here / "out" / "checkpoints").exists()
    (here / "out" / "config.json").write_text("{")
    shutil.rmtree(here / "out" / "lanes")  # which say which sweep it is, too
    assert sweep(here, RATES) == 2
    assert "--out out has a damaged config.json (" in capsys.readouterr().err


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
    here, undrawn, text, arguments
):
    if "batch_size" in text:
        given = [a for a in SMALL if a not in ("--batch-size", "20")]
    elif "latent_dim" in text:
        given = [a for a in SMALL if a not in ("--latent-dim", "3")]
    else:
        given = SMALL
    (here / "space.toml").write_text(text)
    status = cli.main(["sweep", "space.toml", "--out", "out", *given, *arguments])
    assert status == 0
    found = table(here)
    names = read(here, text).names
    assert len(found) > 1 and set(names) <= set(found.columns)
    assert cli.main(["evaluate", "out/best"]) == 0


def test_the_best_lanes_are_ranked_and_diverged_ones_are_not_among_them(
    here, undrawn, capsys
):
    text = "learning_rate = [0.001, 1e30, 0.01, 0.1]\n"
    assert sweep(here, text, "--top", "3", *LINEAR) == 0
    found = table(here)
    assert found["status"].tolist() == ["finished", "diverged", "finished", "finished"]
    assert "4 lanes: 3 finished, 1 diverged." in capsys.readouterr().out
    folders = [here / "out" / name for name in ("best", "top/2", "top/3")]
    lanes = [
        json.loads((folder / "config.json").read_text())["trial"]["lane"]
        for folder in folders
    ]
    losses = found["validation/loss"].drop(1)
    assert lanes == losses.sort_values().index.tolist()
    assert sorted(os.listdir(here / "out" / "top")) == ["2", "3"]
    assert sweep(here, text, *LINEAR) == 0
    assert not (here / "out" / "top").exists()


def test_where_every_lane_diverged_the_exit_status_says_so(here, capsys):
    text = "learning_rate = [1e30, 1e31]\n"
    assert sweep(here, text, *LINEAR) == 1
    assert "every lane diverged" in capsys.readouterr().err
    assert len(table(here)) == 2 and not (here / "out" / "best").exists()


def test_a_metric_that_only_the_end_has_can_choose(here, undrawn):
    assert sweep(here, RATES, "--metric", "train/fvu") == 0
    trial = json.loads((here / "out" / "best" / "config.json").read_text())["trial"]
    assert trial["lane"] == table(here)["train/fvu"].argmin()


# ---- the file ------------------------------------------------------------------------


def test_the_file_says_lists_ranges_seeds_and_what_goes_together(here):
    found = read(
        here,
        'l1 = [0, 0.5]\nlearning_rate = { low = 1e-3, high = 1, scale = "log" }\n'
        'seed = { count = 3 }\ncorruption = ["none", "masking"]\n'
        "[[together]]\nlatent_dim = [2, 4]\nbatch_size = [10, 20]\n",
    )
    assert found.axes == {
        "l1": [0, 0.5],
        "learning_rate": jaxae.sweeps.log_uniform(1e-3, 1),
        "seed": [0, 1, 2],
        "corruption": [None, "masking"],
        ("latent_dim", "batch_size"): [(2, 10), (4, 20)],
    }
    assert list(found.axes)[-1] == ("latent_dim", "batch_size")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lerning_rate = [0.1]", "'lerning_rate'.*did you mean 'learning_rate'"),
        ("learning_rate = 0.1", r"learning_rate as 0.1; it must be a list such as"),
        ("learning_rate = []", "it must be a list such as"),
        ('learning_rate = ["a"]', "'a' in learning_rate, whose values must be numbers"),
        ("learning_rate = [true]", "whose values must be numbers"),
        ("learning_rate = [inf]", "which must be finite"),
        (
            f"learning_rate = [{10**400}]",
            "int 1000.* in learning_rate, which must",
        ),
        (f"learning_rate = [{'9' * 5000}]", "is not TOML: Exceeds the limit"),
        (f"l1 = {{ low = 0, high = {10**400} }}", "a range needs finite low < high"),
        (f"seed = [{2**64}]", "18446744073709551616 in seed, which must be < 2..32"),
        (f"seed = {{ count = {10**30} }}", "of at least 1 and at most 1048576"),
        ("learning_rate = { low = 1 }", "a range has low, high and"),
        ("learning_rate = { low = 1, high = 2, step = 1 }", "and nothing else"),
        ('l1 = { low = 1, high = 2, scale = "cubic" }', 'scale = "linear" or "log"'),
        ("l1 = { low = 2, high = 1 }", "in l1: a range needs finite low < high"),
        ("l1 = { low = 0, high = 1 }", "--num-samples must say"),
        ("latent_dim = { low = 2, high = 4 }", "give latent_dim a list, not a range"),
        ("seed = { range = [0, 8] }", r"a list or \{ count = 8 \}"),
        ("seed = { count = 0 }", "an integer of at least 1"),
        ("latent_dim = [0]", "0 in latent_dim, which must be >= 1"),
        ("latent_dim = [2.0]", "must be integers"),
        ("tied = [1]", "true or false"),
        ("activation = ['rulu']", "did you mean 'relu'"),
        ("together = 3", r"write \[\[together\]\]"),
        ("[[together]]\nl1 = [1.0]", "at least two names"),
        ("[[together]]\nl1 = [1.0]\nlearning_rate = [1, 2]", "lists of one length"),
        ("[[together]]\nl1 = { low = 1, high = 2 }\nseed = [1]", "a list of at least"),
        ("l1 = [1]\n[[together]]\nl1 = [1]\nseed = [1]", "leave one out"),
        ("l1 = [", "is not TOML"),
        ("", "varies nothing"),
        (
            "l1 = [-1.0]\nlearning_rate = [0.1]\nmomentum = [0.9]",
            "nothing in this sweep reads",
        ),
        ("corruption_rate = [0.1]", "which nothing in this sweep reads"),
        ("l1 = [0.1, -1.0]", "error: l1 must be at least 0, got -1.0; below"),
        ("init_scale = [0]", "error: init_scale must be positive, got 0.0"),
        ("batch_size = [10, 20]", "batch_size is in space.toml, and --batch-size"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(here, capsys, text, said):
    import re

    assert sweep(here, text) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxae: error: ") and error.count("\n") == 1
    assert re.search(said, error), error
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--learning-rate", "0.5"), "learning_rate is in space.toml, and --learning"),
        (("--num-samples", "3"), "--num-samples is for ranges"),
        (("--metric", "loss"), "--metric must be one of train/loss"),
        (("--halving-factor", "3"), "need --halving-first"),
        (("--halving-first", "0"), "--halving-first must be an integer of at least 1"),
        (
            ("--halving-first", "1", "--halving-metric", "train/fvu"),
            "--halving-metric must be one of",
        ),
        (("--table", "json"), "--table must be csv or parquet"),
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
def test_bad_options_are_refused_in_one_sentence(here, capsys, arguments, said):
    assert sweep(here, RATES, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxae: error: ") and error.count("\n") == 1
    assert said in error
    assert not (here / "out").exists()


def test_a_table_in_parquet_is_the_table_in_csv(here, undrawn, capsys):
    assert sweep(here, RATES) == 0
    csv = table(here).astype({"stopped_at": "Int64"})
    assert sweep(here, (here / "space.toml").read_text(), "--table", "parquet") == 0
    parquet = pd.read_parquet(here / "out" / "table.parquet")
    assert parquet.index.name == "lane" and list(parquet.columns) == list(csv.columns)
    pd.testing.assert_frame_equal(parquet, csv, rtol=1e-12)


def test_parquet_needs_pyarrow_and_says_so_before_any_work(here, monkeypatch, capsys):
    find = sweep_module.importlib.util.find_spec
    monkeypatch.setattr(
        sweep_module.importlib.util,
        "find_spec",
        lambda name: None if name == "pyarrow" else find(name),
    )
    assert sweep(here, RATES, "--table", "parquet") == 2
    assert "pip install 'jaxae[parquet]'" in capsys.readouterr().err
    assert not (here / "out").exists()


def test_a_schedule_over_the_whole_run_needs_one_number_of_steps(here, capsys):
    (here / "space.toml").write_text("batch_size = [10, 20]\n")
    arguments = ["--data", "rows.npy", "--schedule", "cosine"]
    assert cli.main(["sweep", "space.toml", *arguments]) == 2
    assert "say --schedule-steps" in capsys.readouterr().err


def test_a_missing_file_is_told_of(here, capsys):
    assert cli.main(["sweep", "none.toml"]) == 2
    assert "none.toml does not exist" in capsys.readouterr().err


def test_help_shows_every_option(here, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "SPACE.toml" in said
    for field in dataclasses.fields(SweepOptions):
        assert field.name == "space" or f"--{field.name.replace('_', '-')} " in said
