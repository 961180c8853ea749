"""Trained models are used, repeated and resumed on the command line."""

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest
from judges import assert_falls

import jaxae
from jaxae import cli
from jaxae.cli import config_file, data_splits, reporting, run_folder, trained_model

pytestmark = pytest.mark.usefixtures("no_step_norms")

X = np.random.default_rng(0).uniform(size=(60, 6)).astype("f4")
BIG = np.random.default_rng(1).uniform(size=(50_000, 6)).astype("f4")  # over 1 MiB
SMALL = ("--data", "X.npy", "--latent-dim", "4", "--batch-size", "8")
SAVED = ("--checkpoint-steps", "2")


def main(*arguments):
    return cli.main([str(argument) for argument in arguments])


def train(out, *options, epochs=3):
    """On 42 rows: five steps an epoch."""
    return main("train", *SMALL, "--epochs", epochs, "--out", out, *options)


def make_home(home):
    """A folder with data and runs: "run" with its pictures, "unit" with a scaling."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        bad = BIG.copy()
        bad[31_415, 4] = np.nan
        for name, rows in {"X": X, "big": BIG, "nan": bad, "narrow": X[:, :5]}.items():
            np.save(f"{name}.npy", rows)
        np.savez("two.npz", a=X, b=X[:5])
        os.mkdir("folder.npy")
        os.symlink("X.npy", "link.npy")
        assert train("run", *SAVED) == 0
        patch.setattr(reporting, "draw", lambda *arguments: None)
        assert train("unit", "--scaling", "unit", "--memory-budget", "1") == 0
    return home


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture
def workdir(home, monkeypatch):
    """The working folder; without pictures, which take most of the time."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(reporting, "draw", lambda *arguments: None)
    return home


def contents_of(out):
    """The files of a run folder by name, without times and random names."""
    result = {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
        and path.name != "timing.jsonl"
        # Files of checkpoints have random names; their digest is compared below.
        and "checkpoints" not in path.parts
        and path.suffix != ".png"
    }
    last = max(int(p.name) for p in (out / "checkpoints").iterdir() if p.name.isdigit())
    about = json.loads((out / f"checkpoints/{last}/about/metadata").read_text())
    return {**result, "states": (last, about["arrays_sha256"])}


def bytes_of(out):
    return {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_rejected(capsys, *words):
    """One sentence on stderr, nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("jaxae: error: "), captured.err
    assert captured.err.count("\n") == 1, captured.err
    for word in words:
        assert word in captured.err


# ---- encode, reconstruct -------------------------------------------------------------


@pytest.mark.parametrize("name", ["X", "big"])
def test_encode_writes_the_latents_of_the_scaled_rows_in_order(workdir, name, tmp_path):
    """In memory, and by blocks from a memory map beyond the budget."""
    assert main("encode", "unit", f"{name}.npy", "-o", tmp_path / "z.npy") == 0
    ae, params = jaxae.load("unit")
    rows = jaxae.data.load_scaling("unit").apply(np.load(f"{name}.npy"))
    expected = jax.vmap(ae.encode, in_axes=(None, 0))(params, rows)
    result = np.load(tmp_path / "z.npy")
    assert result.dtype == np.float32 and result.shape == (len(rows), 4)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    assert os.listdir(tmp_path) == ["z.npy"]


def test_reconstruct_speaks_in_the_units_of_the_data(workdir, tmp_path):
    np.save("wide.npy", 100 * X + 7)
    out = ("--scaling", "standardize", "--observation", "gaussian")
    out += ("--activation", "identity", "--learning-rate", "0.02")
    options = ("train", *SMALL, *out, "--data", "wide.npy", "--latent-dim", "6")
    assert main(*options, "--epochs", "60", "--out", tmp_path / "run") == 0
    assert main("reconstruct", tmp_path / "run", "wide.npy", "-o", "x_hat.npy") == 0
    wide, x_hat = np.load("wide.npy"), np.load("x_hat.npy")
    assert np.abs(x_hat - wide).mean() < 0.2 * np.abs(wide - wide.mean(0)).mean()


def test_latents_that_say_nothing_about_the_rows_are_noted(workdir, tmp_path, capsys):
    """By encode and by reconstruct, in a line on stderr."""
    cases = {
        "like": X,
        "large": 1e6 * X,
        "same": np.tile(X[:1], (5000, 1)),
        "one": X[:1],
    }
    message = {"large": "is saturated", "same": "is the same"}
    for name, rows in cases.items():
        np.save(tmp_path / "new.npy", rows)
        for verb in ("encode", "reconstruct"):
            out = ("-o", tmp_path / "out.npy")
            assert main(verb, "run", tmp_path / "new.npy", *out) == 0
            err = capsys.readouterr().err
            if name in message:
                assert err == (
                    f"jaxae: note: every latent {message[name]} on every row of "
                    f"{tmp_path}/new.npy; check that its rows differ, and that they "
                    "have the units of the training data of run.\n"
                )
            else:
                assert err == ""


def test_latents_that_are_all_dead_are_noted(workdir, tmp_path, capsys):
    ae = jaxae.Autoencoder(input_dim=6, latent_dim=4, activation=jaxae.activations.relu)
    params = ae.init(jax.random.key(0))
    params = params._replace(b_enc=params.b_enc - 9)
    path = workdir / "run"
    model = trained_model.Trained(path, None, ae, params, jaxae.data.divide(1))
    for num_rows in (1, 60):
        rows = X[:num_rows]
        [z] = trained_model.outputs(model, "new.npy", rows, lambda forward: forward.z)
        assert not z.any()
        assert "every latent is 0 on every row of new.npy" in capsys.readouterr().err


def test_a_table_is_followed_by_what_to_tell_of_it(capsys):
    sound = {"loss": 1.0, "squared_error": 1.0, "fvu": 0.5, "dead_fraction": 0.5}
    dead = {**sound, "dead_fraction": 1.0}
    reporting.print_results({"train": sound, "test": sound, "pca_components": 3})
    assert capsys.readouterr().err == ""
    reporting.print_results({"train": dead, "validation": {**dead, "fvu": np.nan}})
    result = capsys.readouterr().err.splitlines()
    assert len(result) == 2
    assert result[0].startswith("jaxae: note: train, validation: all latents are dead")
    assert result[1].startswith("jaxae: note: validation: all rows are equal, so their")


def test_a_large_number_in_a_table_is_not_cut(capsys):
    result = {"loss": 1551979212345.6, "squared_error": 0.000123456, "fvu": 1.5}
    reporting.print_results({"data": result, "pca_components": 3})
    printed = capsys.readouterr().out
    assert "1.552e+12" in printed and "0.0001235" in printed


def test_the_best_epoch_is_used_where_it_is_named(workdir, tmp_path):
    assert main("encode", "run/best", "X.npy", "-o", tmp_path / "z.npy") == 0
    ae, params = jaxae.load("run/best")
    expected = jax.vmap(ae.encode, in_axes=(None, 0))(params, X)
    np.testing.assert_allclose(np.load(tmp_path / "z.npy"), expected, rtol=1e-5)
    best = json.loads((workdir / "run/best/config.json").read_text())["best"]
    losses = [row["validation/loss"] for row in lines(workdir / "run/metrics.jsonl")]
    assert best["epoch"] == int(np.argmin(losses)) + 1
    assert best["validation/loss"] == min(losses)


def test_float64_stays_float64(workdir, tmp_path):
    assert train(tmp_path / "run", "--dtype", "float64", epochs=1) == 0
    np.save(tmp_path / "X64.npy", X.astype("f8") + 1e-12)
    z = tmp_path / "z.npy"
    assert main("encode", tmp_path / "run", tmp_path / "X64.npy", "-o", z) == 0
    with jax.enable_x64(True):
        ae, params = jaxae.load(tmp_path / "run")
        rows = np.load(tmp_path / "X64.npy")
        expected = np.asarray(jax.vmap(ae.encode, (None, 0))(params, rows))
    assert np.load(z).dtype == np.float64
    np.testing.assert_allclose(np.load(z), expected, rtol=1e-13)


def test_an_array_of_several_is_the_runs_or_the_one_that_is_named(workdir, tmp_path):
    run, z = tmp_path / "run", tmp_path / "z.npy"
    assert train(run, "--data", "two.npz", "--array", "a", epochs=1) == 0
    for arguments, num_rows in (((), 60), (("--array", "b"), 5)):
        assert main("encode", run, "two.npz", "-o", z, *arguments) == 0
        assert len(np.load(z)) == num_rows


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("encode", "run", "narrow.npy", "-o", "z.npy"), ["narrow.npy", "6", "got 5"]),
        (("encode", "unit", "narrow.npy", "-o", "z.npy"), ["narrow.npy", "6", "got 5"]),
        (("encode", "none", "X.npy", "-o", "z.npy"), ["none/config.json", "not exist"]),
        (("encode", "run", "none.npy", "-o", "z.npy"), ["none.npy"]),
        (("encode", "run", "X.npy", "-o", "none/z.npy"), ["--output", "folder none"]),
        (("encode", "run", "X.npy", "-o", "z.txt"), ["--output", ".npy", "z.txt"]),
        (("reconstruct", "run", "X.npy", "-o", "folder.npy"), ["--output", "a folder"]),
        (("encode", "run", "two.npz", "-o", "z.npy"), ["a, b", "--array"]),
        (
            ("encode", "run", "two.npz", "-o", "z.npy", "--array", "x"),
            ["a, b", "'x'", "--array"],
        ),
        (("encode", "run", "folder.npy", "-o", "z.npy"), ["files at folder.npy:"]),
        (("encode", "run", "X.npy", "-o", "X.npy"), ["--output", "the data itself"]),
        (("reconstruct", "run", "X.npy", "-o", "./X.npy"), ["the data itself"]),
        (("encode", "run", "X.npy", "-o", "link.npy"), ["link.npy", "the data itself"]),
        (("evaluate", "run", "X.npy", "-o", "X.npy"), ["--output", "the data itself"]),
        (("encode", "unit", "nan.npy", "-o", "z.npy"), ["row 31415, column 4", "nan"]),
        (("encode", "run", "nan.npy", "-o", "z.npy"), ["row 31415, column 4", "nan"]),
        (("evaluate", "unit", "nan.npy"), ["row 31415, column 4"]),
        (("evaluate", "run", "narrow.npy"), ["narrow.npy", "6 columns"]),
        (("evaluate", "run", "-o", "none/e.json"), ["--output", "folder none"]),
        (("evaluate", "run", "-o", "folder.npy"), ["--output", "a folder"]),
        (("plot", "none"), ["none/config.json"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_invalid_inputs_are_rejected_and_nothing_is_written(
    workdir, capsys, arguments, words
):
    before = bytes_of(workdir)
    assert main(*arguments) == 2
    assert_rejected(capsys, *words)
    assert bytes_of(workdir) == before


def test_a_scaling_that_is_damaged_or_of_another_run_is_rejected(
    workdir, tmp_path, capsys
):
    run, z = tmp_path / "run", tmp_path / "z.npy"
    shutil.copytree("unit", run, ignore=shutil.ignore_patterns("checkpoints"))
    path = run / "scaling.safetensors"
    complete = path.read_bytes()
    path.write_bytes(complete[:-1] + bytes([complete[-1] ^ 1]))
    for verb in ("encode", "reconstruct"):
        assert main(verb, run, "X.npy", "-o", z) == 2
        assert_rejected(capsys, str(path), "not those that were saved")
    shutil.copy("run/scaling.safetensors", path)
    assert main("encode", run, "X.npy", "-o", z) == 2
    assert_rejected(capsys, "the scaling 'divide'", "says 'unit'", "restore")
    path.unlink()
    assert main("encode", run, "X.npy", "-o", z) == 2
    assert_rejected(capsys, "lacks the scaling.safetensors of a run; give a run folder")
    path.write_bytes(complete)
    assert main("encode", run, "X.npy", "-o", z) == 0


# ---- evaluate, plot ------------------------------------------------------------------


def test_evaluate_repeats_the_results_of_the_run(workdir, tmp_path):
    assert main("evaluate", "run", "-o", tmp_path / "found.json") == 0
    result = json.loads((tmp_path / "found.json").read_text())
    results = json.loads((workdir / "run/results.json").read_text())
    assert {"train", "validation", "test"} < set(result)
    assert result == {name: results[name] for name in result}
    assert set(results) - set(result) == {"status", "stopped_at", "best_epoch"}


def test_evaluate_measures_other_data_as_the_library_does(workdir, tmp_path):
    assert main("evaluate", "unit", "big.npy", "-o", tmp_path / "found.json") == 0
    result = json.loads((tmp_path / "found.json").read_text())["data"]
    ae, params = jaxae.load("unit")
    rows = jaxae.data.load_scaling("unit").apply(BIG)
    expected = jaxae.Objective(ae).evaluate(params, rows, {})
    np.testing.assert_allclose(result["loss"], expected["loss"], rtol=1e-5)


def test_plot_draws_the_same_bytes_again(home, monkeypatch, tmp_path):
    monkeypatch.chdir(home)
    shutil.copytree("run", tmp_path / "run")
    names = [path.name for path in (tmp_path / "run").glob("*.png")]
    assert len(names) == 4
    for name in names:
        os.unlink(tmp_path / "run" / name)
    assert main("plot", tmp_path / "run") == 0
    assert bytes_of(tmp_path / "run").keys() == {
        tmp_path / "run" / path.relative_to(home / "run")
        for path in bytes_of(home / "run")
    }
    for name in names:
        assert (tmp_path / "run" / name).read_bytes() == (
            home / "run" / name
        ).read_bytes(), name


def test_data_that_changed_since_the_run_are_rejected(workdir, tmp_path, capsys):
    run, changed = tmp_path / "run", X.copy()
    changed[0, 0] = 0.5
    np.save(tmp_path / "mine.npy", X)
    assert train(run, "--data", tmp_path / "mine.npy", epochs=1) == 0
    np.save(tmp_path / "mine.npy", changed)
    before = bytes_of(tmp_path)
    capsys.readouterr()
    for arguments in (
        ("evaluate", run),
        ("plot", run),
        ("train", "--config", run / "config.json", "--out", tmp_path / "new"),
    ):
        assert main(*arguments) == 2
        assert_rejected(capsys, "SHA-256", "mine.npy")
    assert train(run, "--data", tmp_path / "mine.npy", "--resume") == 2
    assert_rejected(capsys, "data.sha256")
    assert bytes_of(tmp_path) == before


# ---- repeat --------------------------------------------------------------------------

FULL = (
    *("--corruption", "masking", "--corruption-rate", "0.2", "--l1", "0.001"),
    *("--schedule", "cosine", "--warmup-steps", "2", "--max-norm", "1"),
    *("--accumulate", "2", "--scaling", "unit", "--compute-dtype", "bfloat16"),
    *("--patience", "9", "--bias-from-mean", "--untied", "--seed", "3"),
)


def test_a_config_repeats_its_run_bit_identically(workdir, tmp_path):
    assert train(tmp_path / "one", *FULL) == 0
    config = tmp_path / "one/config.json"
    assert main("train", "--config", config, "--out", tmp_path / "two") == 0
    assert contents_of(tmp_path / "one") == contents_of(tmp_path / "two")


def test_options_override_a_config(workdir, tmp_path):
    repeat = ("train", "--config", "run/config.json", "--seed", "1")
    assert main(*repeat, "--out", tmp_path / "one") == 0
    assert train(tmp_path / "two", *SAVED, "--seed", "1") == 0
    assert contents_of(tmp_path / "one") == contents_of(tmp_path / "two")
    assert contents_of(tmp_path / "one") != contents_of(workdir / "run")


def test_the_last_of_two_configs_is_used(workdir, tmp_path):
    configs = ("--config", "unit/config.json", "--config=run/config.json")
    assert main("train", *configs, "--out", tmp_path / "new") == 0
    assert contents_of(tmp_path / "new") == contents_of(workdir / "run")


@pytest.mark.parametrize("option", ["--config", "--start-from"])
def test_an_empty_name_is_rejected(workdir, tmp_path, capsys, option):
    for arguments in ((f"{option}=", "--seed", "1"), (option, "")):
        assert main("train", *arguments, "--out", tmp_path / "new") == 2
        assert_rejected(capsys, f"{option} must name a file or folder, got ''")


def test_another_machine_is_noted_and_is_no_obstacle(workdir, tmp_path, capsys):
    config = json.loads((workdir / "run/config.json").read_text())
    config["device"], config["versions"] = "abacus", "\n"
    (tmp_path / "config.json").write_text(json.dumps(config))
    repeat = ("train", "--config", tmp_path / "config.json", "--out", tmp_path / "new")
    assert main(*repeat) == 0
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 2 and all(line.startswith("jaxae: note: ") for line in notes)
    assert "device was 'abacus' and is" in notes[1]


# ---- start from ----------------------------------------------------------------------


def test_a_run_starts_from_the_parameters_of_another(workdir, tmp_path):
    """A tiny learning rate keeps them; tied ones may be continued untied."""
    still = ("--learning-rate", "1e-30")
    assert train(tmp_path / "tied", "--params", "run", *still, epochs=1) == 0
    assert train(tmp_path / "untied", "--params", "run", "--untied", *still) == 0
    _, expected = jaxae.load("run")
    _, tied = jaxae.load(tmp_path / "tied")
    _, untied = jaxae.load(tmp_path / "untied")
    np.testing.assert_array_equal(tied.W, expected.W)
    np.testing.assert_array_equal(untied.W_dec, expected.W)


def test_parameters_that_do_not_fit_are_rejected(workdir, tmp_path, capsys):
    assert train(tmp_path / "f64", "--dtype", "float64", epochs=1) == 0
    capsys.readouterr()
    for options, words in (
        (("--params", "none"), ["none/config.json"]),
        (("--params", "run", "--latent-dim", "5"), ["--params run", "latent_dim=5"]),
        (("--params", "run", "--bias-from-mean"), ["--params", "--bias-from-mean"]),
        (("--params", tmp_path / "f64"), ["float64", "--dtype float64"]),
        (
            ("--params", "run", "--data", "narrow.npy"),
            ["--params run", "6 columns", "narrow.npy has 5"],
        ),
    ):
        assert train(tmp_path / "new", *options) == 2
        assert_rejected(capsys, *words)
    assert not (tmp_path / "new").exists()


STILL = ("--batch-size", "8", "--epochs", "1", "--learning-rate", "1e-30")


@pytest.fixture(scope="module")
def first(home):
    """A run of an untied model on standardized rows; shifted.npy holds other rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr(reporting, "draw", lambda *arguments: None)
        np.save("shifted.npy", 3 * X + 1)
        model = ("--untied", "--no-bias", "--activation", "relu")
        model += ("--observation", "gaussian", "--scaling", "standardize")
        assert train("first", *model, epochs=1) == 0
    return home / "first"


def test_a_run_starts_from_another_with_its_model_and_scaling(
    first, workdir, tmp_path, capsys
):
    """A tiny learning rate keeps the parameters, whatever the rows are."""
    shutil.copytree(first, tmp_path / "first")
    start = ("train", *STILL, "--data", "shifted.npy", "--start-from")
    assert main(*start, tmp_path / "first", "--out", tmp_path / "second") == 0
    ae, params = jaxae.load(tmp_path / "first")
    result, started = jaxae.load(tmp_path / "second")
    assert result == ae and not ae.tied and not ae.bias
    for leaf, expected in zip(jax.tree.leaves(started), jax.tree.leaves(params)):
        np.testing.assert_array_equal(leaf, expected)
    scalings = [tmp_path / run / "scaling.safetensors" for run in ("first", "second")]
    assert scalings[0].read_bytes() == scalings[1].read_bytes()
    # Repeating needs no further options, and using the result not the first run.
    repeat = ("train", "--config", tmp_path / "second/config.json", "--out")
    assert main(*repeat, tmp_path / "third") == 0
    assert contents_of(tmp_path / "third") == contents_of(tmp_path / "second")
    # With other parameters it is not the same run, neither repeated nor resumed.
    jaxae.save(tmp_path / "other", ae, jax.tree.map(np.negative, params))
    other = (tmp_path / "other/params.safetensors").read_bytes()
    (tmp_path / "first/params.safetensors").write_bytes(other)
    capsys.readouterr()
    assert main(*repeat, tmp_path / "fourth") == 2
    assert_rejected(
        capsys, "the parameters in", "have changed since --config", "--start-from"
    )
    resumed = (*start, tmp_path / "first", "--resume")
    assert main(*resumed, "--out", tmp_path / "second") == 2
    assert_rejected(capsys, f"{tmp_path / 'first'} had other parameters when it began")
    assert (
        main(*start, tmp_path / "first", "--out", tmp_path / "first", "--overwrite")
        == 2
    )
    assert_rejected(capsys, "which --start-from reads")
    shutil.rmtree(tmp_path / "first")
    assert main("evaluate", tmp_path / "third", "-o", tmp_path / "found.json") == 0
    results = json.loads((tmp_path / "third/results.json").read_text())
    assert json.loads((tmp_path / "found.json").read_text())["test"] == results["test"]


def test_options_that_disagree_with_the_run_to_start_from_are_rejected(
    first, workdir, tmp_path, capsys
):
    capsys.readouterr()
    for options, words in (
        (("--latent-dim", "5"), [f"--start-from {first}", "--latent-dim is 4", "is 5"]),
        (("--activation", "tanh"), ['--activation is "relu"', 'it is "tanh" here']),
        (("--scaling", "unit"), ['--scaling is "standardize"', "leave --scaling out"]),
        (("--divide-by", "2"), ["--divide-by is not given, but it is 2.0 here"]),
        (("--params", "run"), ["--start-from and --params exclude each other"]),
        (("--bias-from-mean",), ["--start-from holds the output bias"]),
        (("--data", "narrow.npy"), ["6 columns", "(60, 5)"]),
        (("--start-from", "none"), ["none/config.json does not exist"]),
    ):
        start = ("train", *STILL, "--data", "shifted.npy", "--start-from", first)
        assert main(*start, "--out", tmp_path / "new", *options) == 2
        assert_rejected(capsys, *words)
    assert not (tmp_path / "new").exists()


# ---- the folder of a sweep -----------------------------------------------------------


def test_the_folder_of_a_sweep_says_where_its_best_model_is(workdir, tmp_path, capsys):
    swept, out = tmp_path / "swept", tmp_path / "out"
    swept.mkdir()
    (swept / "config.json").write_text(json.dumps({"sweep": {"epochs": 2}}))
    calls = [
        ("evaluate", swept),
        ("encode", swept, "X.npy", "-o", tmp_path / "z.npy"),
        ("reconstruct", swept, "X.npy", "-o", tmp_path / "z.npy"),
        ("plot", swept),
        ("train", *SMALL, "--out", out, "--params", swept),
        ("train", *SMALL, "--out", out, "--start-from", swept),
        ("train", "--out", out, "--config", swept / "config.json"),
    ]
    assert main(*calls[0]) == 2
    assert_rejected(capsys, f"{swept} is the folder of a sweep", "no best model yet")
    shutil.copytree("run", swept / "best")
    for call in calls:
        assert main(*call) == 2
        assert_rejected(capsys, f"its best model is in {swept / 'best'}.")
    with pytest.raises(ValueError, match=r"best model is in .*swept.best\.$"):
        jaxae.load(swept)
    for option in ("--overwrite", "--resume"):  # a run beside it would break it
        assert main("train", *SMALL, "--out", swept, option) == 2
        assert_rejected(capsys, f"--out {swept} is the folder of a sweep")
    assert main("evaluate", swept / "best") == 0
    assert os.listdir(tmp_path) == ["swept"]


def test_the_lanes_of_a_sweep_are_no_model(tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(ValueError, match=r"not of a model; .*sweep.params\(lane\)"):
        jaxae.load(tmp_path)


# ---- resume --------------------------------------------------------------------------


def test_resume_starts_what_is_not_there(workdir, tmp_path):
    assert train(tmp_path / "new", *SAVED, "--resume") == 0
    assert contents_of(tmp_path / "new") == contents_of(workdir / "run")


def test_resume_leaves_what_is_done_as_it_is(workdir, capsys):
    before = bytes_of(workdir / "run")
    assert train("run", *SAVED, "--resume") == 0
    assert "nothing was done" in capsys.readouterr().out
    assert bytes_of(workdir / "run") == before


def test_resume_of_a_run_that_is_past_the_epochs_asked_says_so(workdir, capsys):
    before = bytes_of(workdir / "run")
    assert train("run", *SAVED, "--resume", epochs=2) == 0
    printed = capsys.readouterr().out
    assert (
        "the run has taken 15 steps, more than the 10 steps of 2 epochs; nothing"
        in printed
    )
    assert bytes_of(workdir / "run") == before


def test_more_epochs_go_on_bit_identically_to_a_longer_run(workdir, tmp_path):
    shutil.copytree("run", tmp_path / "run")
    assert train(tmp_path / "run", *SAVED, "--resume", epochs=5) == 0
    assert train(tmp_path / "whole", *SAVED, epochs=5) == 0
    assert contents_of(tmp_path / "run") == contents_of(tmp_path / "whole")
    assert [row["epoch"] for row in lines(tmp_path / "run/timing.jsonl")] == [
        *range(1, 6)
    ]


@pytest.mark.parametrize(
    "options, field",
    [
        (("--learning-rate", "0.5"), "--learning-rate is 0.001 there and 0.5 here"),
        (("--batch-size", "4"), "--batch-size is 8 there and 4 here"),
        (("--latent-dim", "5"), "--latent-dim is 4 there and 5 here"),
        (("--l1", "1"), "--l1 is not given there and 1.0 here"),
        (("--compute-dtype", "bfloat16"), "--compute-dtype is not given there"),
        (("--max-norm", "1"), "--max-norm is not given there and 1.0 here"),
        (("--seed", "1", "--patience", "9"), ": --seed is 0 there and 1 here;"),
        (("--validation-fraction", "0.2"), "--validation-fraction is 0.1 there"),
        (("--scaling", "unit"), '--scaling is not given there and "unit" here'),
        (("--untied",), "--untied is false there and true here"),
        (("--monitor", "train/loss"), '--monitor is "validation/loss" there and "tr'),
        (("--seed", "1", "--untied"), "--untied is false there and true here, --seed"),
        (("--params", "run"), '--params is not given there and "run" here'),
        (("--overwrite",), "--overwrite and --resume exclude each other"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_resume_rejects_another_run_by_the_field(workdir, capsys, options, field):
    before = bytes_of(workdir / "run")
    assert train("run", *SAVED, "--resume", *options) == 2
    folder = "" if "--overwrite" in options else "--out run holds another run: "
    assert_rejected(capsys, folder, field)
    assert bytes_of(workdir / "run") == before


def test_where_no_option_tells_two_runs_apart_the_field_does(workdir, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree("run", run)
    (run / "config.json").write_text("{}")
    assert train(run, *SAVED, "--resume", "--seed", "1") == 2
    assert_rejected(capsys, f"--out {run} holds another run: key is [")


def test_resume_does_not_start_over_where_the_states_are_gone(
    workdir, tmp_path, capsys
):
    shutil.copytree("run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    before = bytes_of(tmp_path)
    assert train(tmp_path / "run", *SAVED, "--resume", epochs=5) == 2
    assert_rejected(capsys, "--resume needs the checkpoints", "--overwrite")
    assert bytes_of(tmp_path) == before


# ---- training's options --------------------------------------------------------------


def test_init_scale_scales_the_weights_that_are_drawn(workdir, tmp_path):
    still = ("--learning-rate", "0")
    assert train(tmp_path / "plain", *still, epochs=1) == 0
    assert train(tmp_path / "half", *still, "--init-scale", "0.5", epochs=1) == 0
    _, params = jaxae.load(tmp_path / "plain")
    _, scaled = jaxae.load(tmp_path / "half")
    np.testing.assert_allclose(scaled.W, 0.5 * params.W, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        ("--schedule", "linear", "--final-fraction", "0"),
        ("--schedule", "exponential", "--schedule-steps", "4", "--max-norm", "0.1"),
        pytest.param(
            ("--warmup-steps", "3", "--accumulate", "3"), marks=pytest.mark.slow
        ),
        (
            "--scaling",
            "center",
            "--activation",
            "identity",
            "--observation",
            "gaussian",
        ),
        pytest.param(
            ("--compute-dtype", "bfloat16", "--gradient", "manual"),
            marks=pytest.mark.slow,
        ),
        ("--on-nonfinite", "skip", "--monitor", "train/loss", "--patience", "1"),
    ],
    ids=" ".join,
)
def test_every_new_option_trains(workdir, tmp_path, options):
    assert train(tmp_path / "run", *options, epochs=4) == 0
    rows = lines(tmp_path / "run/metrics.jsonl")
    assert_falls([row["train/loss"] for row in rows])


def test_patience_ends_a_run_and_resume_takes_it_as_done(workdir, tmp_path, capsys):
    options = ("--patience", "2", "--learning-rate", "5", "--resume")
    assert train(tmp_path / "run", *options, epochs=50) == 0
    printed = capsys.readouterr().out
    rows = lines(tmp_path / "run/metrics.jsonl")
    best = json.loads((tmp_path / "run/results.json").read_text())["best_epoch"]
    assert len(rows) == best + 2 < 50
    assert f"stopped after epoch {len(rows)}" in printed
    before = bytes_of(tmp_path)
    assert train(tmp_path / "run", *options, epochs=50) == 0
    assert bytes_of(tmp_path) == before


def test_patience_ends_a_run_whose_monitor_is_nan(workdir, tmp_path, capsys):
    np.save(tmp_path / "constant.npy", np.full_like(X, 0.5))
    options = ("--data", tmp_path / "constant.npy", "--monitor", "train/fvu")
    assert train(tmp_path / "run", *options, "--patience", "2", epochs=9) == 0
    printed = capsys.readouterr().out
    assert "stopped after epoch 2: train/fvu was nan in every epoch." in printed


@pytest.mark.parametrize(
    "options, words",
    [
        (("--max-norm", "0"), ["--max-norm", "positive"]),
        (("--warmup-steps", "-1"), ["--warmup-steps", "-1"]),
        (("--init-scale", "0"), ["--init-scale must be positive"]),
        (("--init-scale", "2", "--params", "run"), ["--init-scale", "--params"]),
        (("--schedule", "linear", "--final-fraction", "2"), ["--final-fraction", "2"]),
        (("--final-fraction", "0.5"), ["--final-fraction", "nothing reads"]),
        (("--schedule-steps", "5"), ["--schedule-steps", "nothing reads"]),
        (("--accumulate", "0", "--schedule", "linear"), ["--accumulate", "got 0"]),
        (("--accumulate", "16"), ["--accumulate must", "15 steps", "got 16"]),
        (("--batch-size", "0", "--schedule", "linear"), ["--batch-size", "got 0"]),
        (("--epochs", "9" * 400), ["--epochs", "2**31"]),
        (("--latent-dim", "9" * 30), ["--latent-dim", "2**31"]),
        (("--schedule", "step"), ["--schedule must be one of", "cosine"]),
        (("--scaling", "unti"), ["--scaling must be one of", "did you mean 'unit'"]),
        (("--scaling", "unit", "--divide-by", "2"), ["--scaling", "--divide-by"]),
        (("--compute-dtype", "float16"), ["--compute-dtype", "bfloat16"]),
        (
            ("--patience", "1", "--validation-fraction", "0"),
            ["--patience", "--monitor='train/loss'"],
        ),
        (("--data", "nan.npy"), ["row 31415, column 4"]),
        (
            ("--data", "nan.npy", "--memory-budget", "1", "--scaling", "unit"),
            ["row 31415, column 4"],
        ),
        (("--memory-budget", "0"), ["--memory-budget", "got 0"]),
        (("--l1", "-1"), ["--l1 must be at least 0, got -1.0", "no minimum"]),
        (("--optimizer", "momentum", "--momentum", "1.5"), ["--momentum must", "1.5"]),
        (("--optimizer", "adamw", "--adamw-decay", "-1"), ["--adamw-decay must"]),
        (
            ("--schedule", "exponential", "--final-fraction", "0"),
            ["--final-fraction must be above 0"],
        ),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_invalid_options_are_rejected(workdir, tmp_path, capsys, options, words):
    assert train(tmp_path / "new", *options) == 2
    assert_rejected(capsys, *words)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("patience", [(), ("--patience", "1")], ids=len)
def test_an_unknown_metric_is_rejected(workdir, tmp_path, capsys, patience):
    options = (*patience, "--monitor", "validation/los")
    assert train(tmp_path / "new", *options, epochs=50) == 2
    assert_rejected(capsys, "--monitor must", "did you mean 'validation/loss'")


def test_a_path_is_reported_as_it_was_given(workdir, monkeypatch, tmp_path, capsys):
    """Also if a folder has the name of an option."""
    monkeypatch.chdir(tmp_path)
    os.makedirs("runs/batch_size/best")
    assert main("train", "--out", "runs/batch_size") == 2
    assert_rejected(capsys, "--out runs/batch_size holds a run already")


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(
    workdir, monkeypatch, capsys
):
    """A shell replaces it only at the beginning of a word, so not in --config=~/..."""
    monkeypatch.setenv("HOME", str(workdir))
    config = config_file.defaults(["--config=~/run/config.json"])
    assert config == config_file.defaults(["--config", "run/config.json"])
    start = config_file.defaults(["--start-from=~/unit"])
    assert start.start_from == "~/unit" and start.scaling == "unit"
    config_file.check_start(start)
    options = dataclasses.replace(start, data="~/X.npy")
    observation = jaxae.observations.get(start.observation)
    assert data_splits.load(options, observation).scaling.name == "unit"
    assert run_folder.check_output("~/z.npy", "run", ".npy") == workdir / "z.npy"
    with pytest.raises(ValueError, match="would replace"):
        run_folder.check_output("~/run/params.safetensors", "~/run")
    with trained_model.load_trained("~/run") as model:
        assert model.path == workdir / "run"
    assert main("sweep", "~/none.toml") == 2
    assert_rejected(capsys, f"{workdir}/none.toml does not exist")


# ---- small and empty -----------------------------------------------------------------

EXTREMES = {
    "one example": (X[:1], ("--batch-size", "1", "--test-fraction", "0"), True),
    "one column": (X[:, :1], ("--latent-dim", "1"), False),
    "constant columns": (np.full((60, 3), 0.5), ("--scaling", "unit"), False),
    "constant columns, standardized": (
        np.full((60, 3), 0.5),
        ("--scaling", "standardize", "--observation", "gaussian"),
        True,
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name == "constant columns"))
        for name in EXTREMES
    ],
)
def test_the_smallest_data_are_trained_on_and_used(workdir, tmp_path, capsys, name):
    rows, options, is_without_validation = EXTREMES[name]
    np.save(tmp_path / "rows.npy", rows)
    if is_without_validation:
        options += ("--validation-fraction", "0")
    run, data = tmp_path / "run", tmp_path / "rows.npy"
    assert train(run, "--data", data, *options, epochs=2) == 0
    assert (run / "best").exists() != is_without_validation
    results = json.loads((run / "results.json").read_text())
    assert results["status"] == "finished" and results["train"]["loss"] is not None
    assert ("validation" in results) != is_without_validation
    for row in lines(run / "metrics.jsonl"):
        assert row["train/loss"] is not None
    assert main("evaluate", run) == 0
    assert main("encode", run, data, "-o", tmp_path / "z.npy") == 0
    assert np.isfinite(np.load(tmp_path / "z.npy")).all()
    assert main("plot", run) == 0
    notes = capsys.readouterr().err.splitlines()
    assert all(line.startswith("jaxae: note: ") for line in notes)
    is_constant = name != "one column"
    assert any("all rows are equal" in n for n in notes) == is_constant
    assert any("every latent is the same" in n for n in notes) == (
        len(rows) > 1 and is_constant
    )
