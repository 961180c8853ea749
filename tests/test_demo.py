"""The demo writes its files, and says which model won, whichever it is."""

import contextlib
import importlib.util
import io
import json
import re
import shlex
import tomllib
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest
import sklearn.decomposition
import tyro
from sklearn.decomposition import PCA

import jaxae
from jaxae import cli

pytestmark = pytest.mark.usefixtures("no_step_norms")

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
demo = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(demo)

# Enough to have less error than PCA with 1 component, far too little for 16.
SETTINGS = {**demo.SETTINGS, "epochs": 10}
MODELS = ("relu", "sigmoid")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "demo"


@pytest.fixture(scope="module")
def outputs(out):
    """What the demo prints where PCA wins and, in the same folder, where it loses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        pca_wins = printed(out, {**SETTINGS, "seed": 2})
        patch.setattr(sklearn.decomposition, "PCA", lambda num_components: PCA(1))
        return {"pca_wins": pca_wins, "pca_loses": printed(out, SETTINGS)}


def printed(out, settings):
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        demo.main(out, settings)
    return text.getvalue()


def table(output):
    """The squared error, its ratio to PCA's and the FVU of each model in the table."""
    row = r"^│ (\w.*?) +│ +([\d.]+) │ +([\d.]+) │ +([\d.]+) │"
    rows = re.findall(row, output, re.MULTILINE)
    return {name: tuple(map(float, numbers)) for name, *numbers in rows}


def held_out_errors(folder, seed):
    """The squared error of each held-out image, from the saved model."""
    ae, params = jaxae.load(folder)
    digits = jaxae.data.digits()
    X = jaxae.data.scaled(digits.train, digits.scale)
    X = jaxae.data.split(X, 0.2, seed=seed)[1]
    X_hat = jax.vmap(ae.reconstruct, in_axes=(None, 0))(params, X)
    return X, np.sum((np.asarray(X_hat) - X) ** 2, axis=1)


def test_the_sentences_follow_the_numbers_whoever_wins(outputs):
    for output, outcome, sign in (
        (outputs["pca_wins"], "does not beat", "more"),
        (outputs["pca_loses"], "beats", "less"),
    ):
        errors = table(output)
        assert set(errors) == {*MODELS, "PCA", "PCA, clipped"}
        assert errors["PCA"][1] == 1
        for model in MODELS:
            error, ratio, _ = errors[model]
            assert (error < errors["PCA"][0]) == (outcome == "beats")
            assert ratio == pytest.approx(error / errors["PCA"][0], abs=0.01)
            sentence = re.search(rf"^{model} (.*) PCA: (\d+)% (\w+) ", output, re.M)
            assert sentence[1] == outcome and sentence[3] == sign
            assert int(sentence[2]) == pytest.approx(100 * abs(ratio - 1), abs=1)


def test_the_models_are_saved_with_the_errors_in_the_table(out, outputs):
    for model in MODELS:  # of the second demo, which replaced the first one
        error, _, fvu = table(outputs["pca_loses"])[model]
        X, errors = held_out_errors(out / model, SETTINGS["seed"])
        assert error == pytest.approx(errors.mean(), abs=1e-3)
        variance = np.sum((X - X.mean(axis=0)) ** 2)
        assert fvu == pytest.approx(errors.sum() / variance, abs=1e-3)


def test_the_count_of_images_is_of_those_with_less_error_than_pca(out, outputs):
    digits = jaxae.data.digits()
    X = jaxae.data.scaled(digits.train, digits.scale)
    X_train, X_test = jaxae.data.split(X, 0.2, seed=SETTINGS["seed"])
    pca = PCA(1).fit(X_train)
    X_hat = pca.inverse_transform(pca.transform(X_test))
    pca_errors = np.sum((X_hat - X_test) ** 2, axis=1)
    for model in MODELS:
        _, errors = held_out_errors(out / model, SETTINGS["seed"])
        sentence = rf"^{model} .* less on (\d+) of {len(X_test)}\.$"
        count = int(re.search(sentence, outputs["pca_loses"], re.M)[1])
        # One image may be as good either way, but for rounding.
        assert abs(count - np.sum(errors < pca_errors)) <= 1


@pytest.mark.parametrize("model", MODELS)
def test_evaluate_reads_the_models_and_agrees(model, out, outputs, tmp_path):
    path = tmp_path / "metrics.json"
    assert cli.main(["evaluate", str(out / model), "-o", str(path)]) == 0
    results = json.loads(path.read_text())
    assert (
        "validation" not in results
    )  # all other rows are for training, as in the demo
    metrics = results["test"]
    error, _, fvu = table(outputs["pca_loses"])[model]
    assert metrics["squared_error"] == pytest.approx(error, abs=1e-3)
    assert metrics["fvu"] == pytest.approx(fvu, abs=1e-3)


def test_the_picture_is_1600_pixels_wide(out, outputs):
    height, width, _ = matplotlib.image.imread(out / "summary.png").shape
    assert abs(width - 1600) < 10 and 1200 < height < 1800


def test_the_paths_add_up_to_the_gradient_and_a_missing_path_is_seen(out, outputs):
    ae, params = jaxae.load(out / "sigmoid")
    X, _ = held_out_errors(out / "sigmoid", SETTINGS["seed"])
    encoder, decoder, autodiff = demo.weight_gradients(ae, params, X[0])
    assert autodiff.dtype == np.float64
    assert demo.deviation(encoder, decoder, autodiff) < 1e-13
    assert demo.deviation(0 * encoder, decoder, autodiff) > 1e-3
    assert demo.deviation(encoder, 0 * decoder, autodiff) > 1e-3
    said = re.search(r"within (\S+) of its\s+largest", outputs["pca_loses"])[1]
    assert float(said) < 1e-13


def test_the_commands_to_run_next_exist(outputs):
    text = outputs["pca_loses"].split("What to run next:")[1].replace("\\\n", " ")
    commands = re.findall(r"bin/jaxae (.*)", text)
    assert [command.split()[0] for command in commands] == [
        *("evaluate", "train", "sweep", "gradcheck"),
    ]
    for verb, *arguments in map(shlex.split, commands):
        tyro.cli(
            cli.SUBCOMMANDS[verb].options, args=arguments
        )  # exits on an unknown option
    assert "make test" in text
    space = tomllib.loads((ROOT / "examples" / "space.toml").read_text())
    num_trials = len(space["learning_rate"]) * len(space["activation"])
    assert f"{num_trials * space['seed']['count']} models in one program" in text
