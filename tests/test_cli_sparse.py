"""Sparse autoencoders on the command line: options, run folders and sweeps."""

import json
import sys

import jax
import numpy as np
import pandas as pd
import pytest
from judges import assert_falls

import jaxae
from jaxae import cli, schedules
from jaxae.cli import data_splits, options, reporting
from jaxae.penalties import aux_k

pytestmark = pytest.mark.usefixtures("no_step_norms")

train_module = sys.modules["jaxae.cli.train"]  # the names are also the functions'
sweep_module = sys.modules["jaxae.cli.sweep"]

X = np.random.default_rng(0).normal(size=(120, 6)).astype("f4")
SMALL = ("--data", "X.npy", "--observation", "gaussian", "--untied")
SMALL = (*SMALL, "--latent-dim", "8", "--batch-size", "20")


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A folder with data; without pictures, which take most of the time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reporting, "draw", lambda *arguments: None)
    monkeypatch.setattr(sweep_module, "_draw", lambda *arguments: [])
    np.save("X.npy", X)
    return tmp_path


def main(*arguments):
    return cli.main([str(argument) for argument in arguments])


def train(*arguments, out="run", epochs=2):
    return main("train", *SMALL, "--epochs", epochs, "--out", out, *arguments)


def read(path):
    return json.loads(path.read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_trees_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def splits():
    train, test, validation = jaxae.data.split(X, 0.2, 0.1, seed=0)
    return {"train": train, "validation": validation, "test": test}


# ---- options -------------------------------------------------------------------------


def model(**changes):
    return jaxae.Autoencoder(
        input_dim=6, latent_dim=8, **{"observation": "gaussian", **changes}
    )


def built(**changes):
    """The model, the objective, the config and the hyperparameters of options."""
    given = options.TrainOptions(latent_dim=8, observation="gaussian", **changes)
    ae = options.build_autoencoder(given, 6)
    hparams = options.build_hparams(given, 100)
    hparams.pop("learning_rate")
    objective = options.build_objective(given, ae)
    return ae, objective, options.build_config(given, ae), hparams


def test_options_of_a_topk_model_are_arguments_of_the_library():
    ae, objective, config, hparams = built(
        **{"activation": "topk(4)", "untied": True, "aux_k": 3, "dead_after": 7},
        **{"prefixes": "2,8", "cut_prefixes": True, "resample_every": 9},
        **{"unit_norm": True, "k": 2, "k_start": 4, "k_steps": 5},
    )
    assert ae == model(activation=jaxae.activations.topk(4), tied=False)
    assert objective == jaxae.Objective(
        ae,
        penalties=(aux_k(3),),
        prefixes=(2, 8),
        cut_prefixes=True,
        dead_after=7,
        schedules=(schedules.linear("k"),),
    )
    resample = jaxae.dead_latents.resample(9, ae=ae, dead_after=7)
    assert config == jaxae.TrainConfig(
        optimizer=jaxae.optimizers.build("adam", unit_norm=True), after_update=resample
    )
    # 1/32 is the coefficient of Gao et al., 2024.
    assert hparams == {"k": 2, "k_start": 4, "k_steps": 5, "aux_k": 1 / 32}


def test_options_of_a_jumprelu_model_are_arguments_of_the_library():
    ae, objective, config, hparams = built(
        **{"activation": "jumprelu(bandwidth=0.1)", "aligned": True, "l0": 0.3},
        **{"tanh_sparsity": 0.2, "tanh_sparsity_scale": 4.0, "bandwidth": 0.5},
        **{"pre_act": 0.1, "l1_decoder_norm": 0.4, "resample_every": 9},
        sparsity_warmup_steps=6,
    )
    g, parametrizations = jaxae.activations, jaxae.autoencoder.parametrizations
    expected = model(
        activation=g.jumprelu(0.1), parametrization=parametrizations.aligned
    )
    assert ae == expected
    names = {"l1_decoder_norm", "l0", "tanh_sparsity", "pre_act"}
    assert {penalty.name for penalty in objective.penalties} == names
    warmed_up = {schedule.name for schedule in objective.schedules}
    assert warmed_up == names - {"pre_act"}
    assert objective.dead_after == config.after_update.dead_after == 9
    of_warmup = {f"{n}_start": 0 for n in warmed_up} | {
        f"{n}_steps": 6 for n in warmed_up
    }
    assert hparams == {
        **{"l0": 0.3, "tanh_sparsity": 0.2, "tanh_sparsity_scale": 4.0},
        **{"bandwidth": 0.5, "pre_act": 0.1, "l1_decoder_norm": 0.4},
        **of_warmup,
    }


def test_options_of_a_gated_model_are_arguments_of_the_library():
    ae, objective, _, hparams = built(
        activation="gated", gated_l1=0.1, gated_aux=1.0, aux_k=2, aux_k_coefficient=0.5
    )
    assert ae.activation is jaxae.activations.gated
    names = {penalty.name for penalty in objective.penalties}
    assert names == {"gated_l1", "gated_aux", "aux_k"}
    assert hparams == {"gated_l1": 0.1, "gated_aux": 1.0, "aux_k": 0.5}


TOPK = ("--activation", "topk(4)")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--activation", "topkk(4)"), ["--activation must be one of", "'topk"]),
        (("--activation", "topk"), ["--activation must be written", "topk(32)"]),
        (("--activation", "topk(0)"), ["--activation topk(0): k must be", "got 0"]),
        (("--activation", "topk(9)"), ["topk(9) needs at least 9 latents"]),
        ((*TOPK, "--k", "5"), ["--k must be an integer from 1 to 4, got 5"]),
        (("--k", "2"), ["has --k, which nothing reads"]),
        (("--bandwidth", "0.1"), ["has --bandwidth, which nothing reads"]),
        ((*TOPK, "--k-start", "4"), ["lacks", "--k"]),
        (("--k-start", "4", "--k-steps", "2"), ["--k-start and --k-steps must set"]),
        ((*TOPK, "--aux-k", "9"), ["aux_k(9) needs at least 9 latents"]),
        ((*TOPK, "--aux-k", "0"), ["--aux-k must be an integer of at least 1"]),
        (("--aux-k-coefficient", "1"), ["needs --aux-k", "--aux-k 512"]),
        (
            (*TOPK, "--aux-k", "2", "--aux-k-coefficient", "-1"),
            ["--aux-k-coefficient must be at least 0", "got -1"],
        ),
        ((*TOPK, "--l0", "1"), ["l0 penalty needs", "use jumprelu()"]),
        (("--gated-l1", "1"), ["gated_l1", "use gated"]),
        (("--tanh-sparsity", "1"), ["lacks --tanh-sparsity-scale"]),
        (("--sparsity-warmup-steps", "3"), ["--sparsity-warmup-steps needs", "--l1"]),
        (("--prefixes", "2,x"), ["--prefixes must be integers", "'2,x'"]),
        (("--prefixes", "4,2"), ["--prefixes must increase", "latent_dim, 8"]),
        (("--bias-from-mean", "--bias-from-median"), ["exclude each other"]),
        (("--init-encoder", "up"), ["--init-encoder must be 'decoder' or 'random'"]),
        (("--decoder-norm", "-1"), ["--decoder-norm must be a positive number"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_bad_option_is_one_sentence_before_any_work(
    workdir, capsys, arguments, words
):
    assert train(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("jaxae: error: ")
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err
    assert not (workdir / "run").exists()


def test_initial_values_are_those_of_the_options(workdir):
    """At a learning rate of 0, where training changes nothing."""
    initial = ("--init-encoder", "random", "--decoder-norm", "0.5")
    initial = (*initial, "--bias-from-median", "--learning-rate", "0")
    assert train(*TOPK, *initial, epochs=1) == 0
    _, params = jaxae.load("run")
    norms = np.linalg.norm(params.W_dec, axis=1)
    np.testing.assert_allclose(norms, 0.5, rtol=1e-5)  # float32
    assert np.abs(params.W_enc - params.W_dec).max() > 0.01
    median = jaxae.data.geometric_median(splits()["train"])
    np.testing.assert_allclose(params.b_dec, median, rtol=1e-5, atol=1e-6)
    for given in (("--decoder-norm", "1"), ("--bias-from-median",)):
        assert train(*TOPK, "--params", "run", *given, out="other") == 2


# ---- run folders ---------------------------------------------------------------------


def test_the_usual_sparse_autoencoder_trains(workdir, capsys):
    sparse = (*TOPK, "--aux-k", "3", "--pre-bias", "--unit-norm")
    assert train(*sparse, "--dead-after", "2", "--gradient", "manual") == 0
    assert_falls([row["train/loss"] for row in lines(workdir / "run/metrics.jsonl")])
    config = read(workdir / "run/config.json")
    assert config["model"]["activation"] == "topk(4)"
    assert config["hparams"]["aux_k"] == 1 / 32
    assert config["gradient_used"] == "manual"
    assert capsys.readouterr().err.count("aux_k is 0 in these results") == 1
    _, params = jaxae.load("run")
    norms = np.linalg.norm(params.W_dec, axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)  # float32

    # What is reported is what the saved model does.
    assert main("evaluate", "run", "-o", "again.json") == 0
    assert "aux_k is 0 in these results" in capsys.readouterr().err
    results = read(workdir / "run/results.json")
    for split, metrics in read(workdir / "again.json").items():
        assert metrics == pytest.approx(results[split], rel=1e-5), split


def test_the_config_says_which_gradient_auto_is(workdir):
    given = options.TrainOptions(activation="topk(4)", latent_dim=64)
    ae = options.build_autoencoder(given, 6)
    config = options.build_config(given, ae)
    assert config.gradient == "auto"
    assert train(*TOPK, epochs=1) == 0
    saved = read(workdir / "run/config.json")
    assert saved["options"]["gradient"] == "auto"
    objective = jaxae.Objective(jaxae.load("run")[0])
    assert saved["gradient_used"] == config.gradient_of(objective) == "autodiff"


def test_a_batch_topk_run_holds_the_jumprelu_of_its_running_threshold(workdir):
    """Also for the best epoch: that of this threshold, as its monitor was measured."""
    # The steps are so large that the model gets worse.
    rate = ("--learning-rate", "0.5", "--activation", "batch_topk(3)")
    assert train(*rate, "--l1-decoder-norm", "0.001", epochs=4) == 0
    config, rows = (
        read(workdir / "run/config.json"),
        lines(workdir / "run/metrics.jsonl"),
    )
    assert config["options"]["activation"] == "batch_topk(3)"
    best = read(workdir / "run/best/config.json")["best"]
    results = read(workdir / "run/results.json")
    last = rows[-1]["validation/loss"]
    assert results["validation"]["loss"] == pytest.approx(last, rel=1e-5)

    def loss(folder):
        ae, params = jaxae.load(folder)
        assert ae.activation is jaxae.activations.jumprelu()
        assert np.all(params.activation.threshold > 0)
        objective = jaxae.Objective(ae, penalties=("l1_decoder_norm",))
        hparams = {"l1_decoder_norm": 0.001}
        return objective.evaluate(params, splits()["validation"], hparams)["loss"]

    np.testing.assert_allclose(loss("run"), last, rtol=1e-5)
    np.testing.assert_allclose(loss("run/best"), best["validation/loss"], rtol=1e-5)
    # The best model is the one of a run that ends there.
    short = ("--epochs", best["epoch"], "--l1-decoder-norm", "0.001")
    assert best["epoch"] < 4
    assert train(*rate, *short, out="short") == 0
    assert_trees_equal(jaxae.load("run/best")[1], jaxae.load("short")[1])

    assert main("encode", "run", "X.npy", "-o", "z.npy") == 0
    ae, params = jaxae.load("run")
    expected = jax.vmap(ae.encode, (None, 0))(params, X)
    np.testing.assert_allclose(np.load("z.npy"), expected, rtol=1e-5, atol=1e-6)


def test_a_batch_topk_run_resumes_and_is_started_from(workdir):
    """Training goes on with batch_topk, not with the model that the folder holds."""
    sparse = ("--activation", "batch_topk(3)", "--k", "2")
    assert train(*sparse, out="whole", epochs=2) == 0
    assert train(*sparse, out="halves", epochs=1) == 0
    assert train(*sparse, "--resume", out="halves", epochs=2) == 0
    for name in ("params.safetensors", "best/params.safetensors", "metrics.jsonl"):
        files = (workdir / out / name for out in ("whole", "halves"))
        assert len({file.read_bytes() for file in files}) == 1, name
    start = ("--data", "X.npy", "--epochs", "1", "--batch-size", "20")
    start = (*start, "--start-from", "whole", "--learning-rate", "0")
    assert main("train", *start, "--out", "next") == 0
    config = read(workdir / "next/config.json")
    assert config["options"]["activation"] == "batch_topk(3)"
    (_, before), (_, after) = jaxae.load("whole"), jaxae.load("next")
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


def test_a_falling_k_ends_as_the_k_of_the_model(workdir, capsys):
    falling = ("--k", "2", "--k-start", "4", "--k-steps", "3")
    assert train(*TOPK, *falling, "--prefixes", "3,8") == 0
    ae, params = jaxae.load("run")
    assert ae.activation is jaxae.activations.topk(2)
    assert main("evaluate", "run", "X.npy", "-o", "all.json") == 0
    objective = jaxae.Objective(ae, prefixes=(3, 8))
    expected = objective.evaluate(params, X, {})
    result = read(workdir / "all.json")["data"]
    np.testing.assert_allclose(result["loss"], expected["loss"], rtol=1e-5)

    capsys.readouterr()
    assert train(*TOPK, *falling, "--prefixes", "4,8", "--resume") == 2
    assert '--prefixes is "3,8" there and "4,8" here' in capsys.readouterr().err


# ---- the mean of the data ------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "is_noted"),
    [
        ({}, True),
        ({"pre_bias": True}, True),
        ({"pre_bias": True, "bias_from_mean": True}, False),
        ({"scaling": "center"}, False),
        ({"scaling": "standardize"}, False),
        ({"activation": "relu"}, False),
        ({"params": "run"}, False),
    ],
)
def test_a_large_mean_is_noted_where_it_makes_latents_dead(
    workdir, capsys, changes, is_noted
):
    np.save("far.npy", X + 5)
    values = {"data": "far.npy", "observation": "gaussian", "activation": "topk(4)"}
    given = options.TrainOptions(**{**values, **changes})
    ae = options.build_autoencoder(given, 6)
    rows = data_splits.load(given, ae.observation)
    train_module._note_mean(given, ae, rows)
    ratio = np.linalg.norm(rows.train.mean(0)) / np.linalg.norm(rows.train.std(0))
    err = capsys.readouterr().err
    assert (f"the mean of the data is {ratio:.3g} times their spread" in err) == (
        is_noted
    )
    assert ("--scaling center" in err) == is_noted


def test_a_mean_that_is_smaller_than_the_spread_is_not_noted(workdir, capsys):
    given = options.TrainOptions(
        data="X.npy", observation="gaussian", activation="topk(4)"
    )
    ae = options.build_autoencoder(given, 6)
    train_module._note_mean(given, ae, data_splits.load(given, ae.observation))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dead_after", ["1", "1000"])
def test_a_window_that_is_longer_than_training_is_noted(workdir, capsys, dead_after):
    assert train(*TOPK, "--aux-k", "2", "--dead-after", dead_after) == 0
    is_noted = "no latent will count as dead in " in capsys.readouterr().err
    assert is_noted == (dead_after == "1000")


# ---- sweeps --------------------------------------------------------------------------


def sweep(text, *arguments):
    with open("space.toml", "w") as file:
        file.write(text)
    small = ("--epochs", "1", "--lanes-at-once", "8", "--out", "out")
    return main("sweep", "space.toml", *SMALL, *small, *arguments)


def test_k_activations_and_aux_k_are_lanes_and_the_best_lane_has_its_own_k(
    workdir, capsys
):
    text = 'k = [1, 3]\nactivation = ["topk(4)", "batch_topk(4)"]\naux_k = [0.1, 0.2]\n'
    assert sweep(text, "--aux-k", "3", "--top", "8", "--dead-after", "2") == 0
    table = pd.read_csv(workdir / "out/table.csv", index_col="lane")
    assert len(table) == 8 and set(table["aux_k"]) == {0.1, 0.2}
    folders = [workdir / "out/best", *(workdir / f"out/top/{i}" for i in range(2, 9))]
    for folder in folders:
        config = read(folder / "config.json")
        values, ae = config["trial"]["values"], jaxae.load(folder)[0]
        if values["activation"] == "topk(4)":
            assert ae.activation is jaxae.activations.topk(values["k"])
        else:
            assert ae.activation is jaxae.activations.jumprelu()
        assert config["options"]["k"] == values["k"]
        assert config["options"]["aux_k"] == 3
        assert config["options"]["aux_k_coefficient"] == values["aux_k"]
        assert config["gradient_used"] == "manual"
    assert "aux_k is 0 in these results" in capsys.readouterr().err
    assert main("evaluate", "out/best", "-o", "again.json") == 0
    results = read(workdir / "out/best/results.json")
    for split, metrics in read(workdir / "again.json").items():
        assert metrics == pytest.approx(results[split], rel=1e-5), split


def test_bandwidth_and_l0_are_lanes(workdir):
    text = "bandwidth = [0.1, 0.5]\nl0 = { low = 0.01, high = 0.1 }\n"
    jumprelu = ("--activation", "jumprelu()", "--num-samples", "2")
    assert sweep(text, *jumprelu, "--sparsity-warmup-steps", "2") == 0
    table = pd.read_csv(workdir / "out/table.csv", index_col="lane")
    assert list(table.columns[:2]) == ["bandwidth", "l0"] and len(table) == 4
    options = read(workdir / "out/best/config.json")["options"]
    assert options["bandwidth"] in (0.1, 0.5) and 0.01 <= options["l0"] <= 0.1


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("k = [1.5]", TOPK, ["['k'] must be a list of integers"]),
        ("k = [1, 5]", TOPK, ["k must be an integer from 1 to 4, got 5"]),
        ("k = [1, 2]", (*TOPK, "--k", "2"), ["k is in", "--k is given too"]),
        ("aux_k = [0.1]", TOPK, ["needs --aux-k"]),
        (
            "aux_k = [0.1]",
            (*TOPK, "--aux-k", "2", "--aux-k-coefficient", "1"),
            ["aux_k is in", "--aux-k-coefficient is given too"],
        ),
        ('activation = ["topk(0)"]', (), ["space.toml", "k must be an integer"]),
        (
            "pre_bias = [true, false]",
            (*TOPK, "--resample-every", "5"),
            ["--resample-every needs one pre_bias", "run one sweep for each"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_axis_is_one_sentence(workdir, capsys, text, arguments, words):
    assert sweep(f"{text}\n", *arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("jaxae: error: ") and message.count("\n") == 1
    for word in words:
        assert word in message
    assert not (workdir / "out").exists()
