"""The studies run, write their results and plots, and fail if their claim fails."""

import dataclasses
import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxae
from jaxae import activations, gradcheck, manual, observations, optimizers
from jaxae.autoencoder import TiedParams

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.append(str(EXPERIMENTS))  # a study imports _study from its own folder
PLOTS = {
    "tied_gradient": {"identity.png", "along_training.png", "by_half.png"},
    "digits_against_pca": {"test_squared_error.png"},
    "precision": {"error_along_training.png"},
    "detection_power": {"detection_power.png"},
    "learning_rate_transfer": {
        "loss_by_learning_rate.png",
        "best_learning_rate.png",
    },
    "superposition": {"phase_diagrams.png", "by_importance.png", "geometry.png"},
    "synthsaebench": {"f1_by_variant.png"},
    "dictionary_recovery": {"recovery.png"},
    "scaling": {"loss.png"},
}


@pytest.mark.slow  # a quarter of a minute each, or more
@pytest.mark.parametrize("name", PLOTS)
def test_a_quick_study_confirms_its_claim_and_writes_its_files(name, tmp_path):
    result = run_study(name, tmp_path, "--quick")
    assert result["pass"] and result["quick"]
    assert "Larochelle" in result["source"] and result["claim"]
    assert result["seeds"] and {"jax", "jaxae", "numpy"} <= set(result["versions"])
    check_plots(tmp_path, PLOTS[name])
    check_numbers = {
        "tied_gradient": check_tied,
        "digits_against_pca": check_pca,
        "precision": check_precision,
        "detection_power": check_power,
        "learning_rate_transfer": check_transfer,
        "superposition": check_superposition,
        "synthsaebench": check_synthsaebench,
        "dictionary_recovery": check_recovery,
        "scaling": check_scaling,
    }
    check_numbers[name](result)


@pytest.mark.slow
def test_the_study_of_bugs_reports_the_outcomes_of_its_judges(tmp_path):
    study, root = load_study("gradient_bugs"), EXPERIMENTS / "gradient_bugs.py"
    command = [sys.executable, str(root), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["pass"] and done.returncode == 0, done.stdout + done.stderr
    assert "Larochelle" in result["source"] and "none of the right" in result["claim"]
    check_plots(tmp_path, {"detection_matrix.png"})
    rows = result["cases"]
    assert {row["kind"] for row in rows} == {"bug", "right"}
    for row in rows:
        assert {"jaxae", "check_grads", "by leaf", "chex"} <= set(row["outcomes"])
        assert row["outcomes"]["jaxae"].keys() == {"5x3"}
        # Reports of other outcomes are in the results.
        assert bool(row["failures"]) != study.is_all_right(row, "jaxae")
    missed = {row["name"] for row in rows if not study.is_all_right(row, "check_grads")}
    assert {"one entry off by 1 %", "float16"} <= missed


def test_failing_another_leaf_is_not_a_detection():
    study = load_study("gradient_bugs")
    bug, right = study.CASES["g' missing"], study.CASES["large batch"]
    assert study.outcome(bug, {"W", "b_enc"}) == "caught"
    assert study.outcome(bug, {"W"}) == "other leaves"
    assert study.outcome(bug, {"W", "b_enc", "b_dec"}) == "other leaves"
    assert study.outcome(bug, set()) == "missed"
    assert study.outcome(right, set()) == "passed"
    assert study.outcome(right, {"W"}) == "false alarm"


@pytest.mark.slow
@pytest.mark.parametrize("name", PLOTS)
def test_a_full_study_confirms_its_claim(name, tmp_path):
    result = run_study(name, tmp_path)
    assert result["pass"] and not result["quick"]


def check_tied(result):
    cases = {(row["model"], row["dtype"]) for row in result["identity"]}
    for activation in activations.CATALOGUE:
        for observation in observations.CATALOGUE:
            model = f"{activation}/{observation}"
            assert {(model, "float32"), (model, "float64")} <= cases
    assert ("sigmoid/bernoulli, NumPy", "float64") in cases
    assert all(
        row["worst"] <= 1e-12 for row in result["identity"] if row["dtype"] == "float64"
    )
    along = {row["measure"]: row for row in result["along_training"]}
    assert along["relative error of their sum"]["highest"] <= 1e-12
    cosine, share = along["cosine of the paths"], along["encoder path's share"]
    rounding = 1e-12  # parallel vectors may have a cosine a rounding above 1
    assert -1 - rounding <= cosine["lowest"] <= cosine["highest"] <= 1 + rounding
    assert 0 < share["lowest"] <= share["highest"] < 1
    halves = {row["W_moved_by"]: row for row in result["training_by_half"]}
    assert {"both paths", "decoder path only", "encoder path only"} <= set(halves)
    for row in halves.values():
        assert 0 < row["excess_loss"] < np.inf and row["learning_rate"] in row["rates"]


def check_pca(result):
    mean = {row["model"]: row["mean"] for row in result["test_squared_error"]}
    assert mean["identity latents"] < 0.98 * mean["PCA"]  # the study's own margin
    assert mean["relu latents"] < 0.98 * mean["PCA"]
    assert result["sigmoid_does_not_beat_pca"]


def check_precision(result):
    rows = {(row["model"], row["precision"]): row for row in result["along_training"]}
    assert len(rows) == 4 * 4
    for (model, dtype), row in rows.items():
        assert np.shape(row["error"]) == (2, len(result["settings"]["epochs"]))
        assert np.min(row["error"]) > 0 and np.max(row["cosine"]) <= 1 + 1e-12
        if dtype.startswith("float32"):
            bfloat16 = np.array(rows[model, "bfloat16"]["error"])
            assert np.all(row["error"] < bfloat16 / 100)
    assert result["error_grows"]["bfloat16"] == "4 of 4"


def check_power(result):
    rows = {(row["model"], row["error"]): row["judges"] for row in result["power"]}
    errors = {"one entry", "largest entry", "one row", "whole leaf"}
    assert set(rows) == {(m, e) for m in ("5x3", "64x32") for e in errors}
    for judges in rows.values():
        for situation in ("claim", "rule"):
            (least,) = judges[situation]["by_seed"]
            assert 0 < least["eps"] < 1e-3 and least["resolution"] < 1e-5
        assert (
            judges["check_grads"]["eps"] is None or judges["check_grads"]["eps"] > 1e-3
        )
    entry = rows["64x32", "one entry"]  # small relative to the norm of the leaf
    assert entry["rule"]["eps"] > 4 * entry["claim"]["eps"]
    assert entry["claim"]["num_located"] == 1
    for cost in result["cost"]:
        assert cost["evaluations"]["fn"] > 100 and cost["per_value_and_grad"] > 0


def check_transfer(result):
    rows = {
        (row["optimizer"], row["observation"]): row for row in result["by_optimizer"]
    }
    observed = ("bernoulli", "gaussian")
    assert set(rows) == {(o, x) for o in ("adam", "sgd") for x in observed}
    num_widths, num_seeds = len(result["settings"]["widths"]), len(result["seeds"])
    for row in rows.values():
        rates = row["learning_rates"]
        assert np.shape(row["loss"]) == (num_widths, len(rates))
        assert np.shape(row["best_rate_by_seed"]) == (num_widths, num_seeds)
        for best in (row["best_rate"], *np.transpose(row["best_rate_by_seed"])):
            assert rates[0] < min(best) and max(best) < rates[-1]
    for observation in observed:
        adam = rows["adam", observation]
        assert np.max(adam["slope_by_seed"]) < -0.2
        assert np.mean(adam["cost_of_transfer_by_seed"][-1]) > 0.1
    # The highest rates blow up a Gaussian's loss: null, and not a number.
    assert None in np.ravel(rows["sgd", "gaussian"]["loss"])


def check_superposition(result):
    for name, phase in result["phases"].items():
        assert phase["num_lanes"] == 4 * 5 * 5
        assert set(np.ravel(phase["theory"])) == set(np.ravel(phase["trained"]))
        # In between lie better solutions, but not much better ones.
        assert 0.9 < np.min(phase["loss_by_theory"]), name
    of_relu = [row for row in result["by_importance"] if row["model"] == "relu"]
    assert of_relu[0]["represented"] == 5 < of_relu[-1]["represented"]
    for row in result["geometry"]:
        assert len(row["dimensionality"]) == row["represented"] <= 400


def check_synthsaebench(result):
    rows = {row["variant"]: row for row in result["metrics"]}
    assert {"BatchTopK", "Matryoshka", "Matryoshka, leave one out"} <= set(rows)
    for row in rows.values():
        for name, values in row["by_seed"].items():
            assert np.shape(values) == (len(result["seeds"]),)
            np.testing.assert_allclose(row["mean"][name], np.mean(values), rtol=1e-12)
    l0 = result["sizes"]["l0"]
    assert np.allclose(rows["BatchTopK"]["by_seed"]["l0"], l0, rtol=1e-6)
    assert max(rows["Matryoshka, leave one out"]["by_seed"]["l0"]) < l0
    assert rows["Matryoshka"]["published_at_full_size"][0] == 0.8793
    assert rows["Matryoshka, refined"]["published_at_full_size"] is None


def check_recovery(result):
    cells = {(row["ratio"], row["l1"]): row for row in result["by_l1"]}
    assert set(cells) == {(ratio, l1) for ratio in (1, 2) for l1 in (0.01, 0.1, 1.0)}
    for row in cells.values():
        # Between what random directions have, 0.4, and equal ones.
        assert 0.3 < np.min(row["MMCS of features"]) < 1
        assert len(row["l0"]) == len(result["seeds"])
    fvu = [[np.mean(cells[r, l1]["fvu"]) for l1 in (0.01, 0.1, 1.0)] for r in (1, 2)]
    assert np.all(np.diff(fvu) > 0)  # the penalty costs reconstruction
    assert [row["ratio"] for row in result["top_k"]] == [1, 2]
    assert np.max([row["l0"] for row in result["top_k"]]) <= 3


def check_scaling(result):
    settings = result["settings"]
    shape = [len(settings[name]) for name in ("latent_dims", "ks")]
    losses = np.array(result["loss"])
    assert losses.shape == (*shape, len(result["seeds"]))
    assert np.all((losses > 0) & (losses < 1))
    assert set(result["fits"]) == {"none", "scattered", "largest"}
    for fit in result["fits"].values():
        assert np.shape(fit["is_held_out"]) == tuple(shape)
        assert 0 < fit["rms error"] <= fit["largest error"]


def test_copies_updated_by_both_paths_train_as_tied_weights():
    study = load_study("tied_gradient")
    settings = study.QUICK._replace(latent_dim=5, num_epochs=2, batch_size=8)
    ae = study.model(activations.sigmoid, observations.bernoulli, settings)
    init_key, key = jax.random.split(jax.random.key(0))
    X = jax.random.uniform(jax.random.key(1), (32, ae.input_dim))
    hparams = {"learning_rate": 0.1}

    def train(ae, params, hparams, optimizer):
        return study.train_and_measure(
            lambda params: params, ae, params, hparams, key, X, settings, optimizer
        )

    tied = ae.init(init_key)
    expected = train(ae, tied, hparams, optimizers.sgd)
    mixed = functools.partial(study.optimizer_of_mixtures, optimizers.sgd)
    hparams = hparams | study.shares(study.VARIANTS["both paths"])
    untied = dataclasses.replace(ae, tied=False)
    trained = train(untied, jaxae.untie(tied), hparams, mixed)
    assert np.ptp(np.asarray(expected.W), axis=0).max() > 0.01  # it does train
    np.testing.assert_array_equal(trained.W_enc, trained.W_dec)
    np.testing.assert_allclose(trained.W_enc, expected.W, atol=1e-6)


# ---- a study must be able to fail ----------------------------------------------------


def forget_the_decoder(monkeypatch, study):
    def pullback(objective, params, untied_grads):
        del objective, params
        return TiedParams(untied_grads.W_enc, *untied_grads[2:])

    monkeypatch.setattr(manual, "_pullback", pullback)


def swap_the_paths(monkeypatch, study):  # without changing their sum
    path_grads = manual.path_grads

    def swapped(*args):
        return manual.Paths(*reversed(path_grads(*args)))

    monkeypatch.setattr(manual, "path_grads", swapped)


def double_the_oracle(monkeypatch, study):
    lecture = study.lecture

    def doubled(*args):
        encoder, decoder = lecture(*args)
        return [2 * leaf for leaf in encoder], decoder

    monkeypatch.setattr(study, "lecture", doubled)


@pytest.mark.parametrize(
    "break_it, failing",
    [
        (forget_the_decoder, "encoder + decoder = jax.grad"),
        (swap_the_paths, "encoder path = its oracle"),
        (double_the_oracle, "encoder path = NumPy"),
    ],
)
def test_a_broken_gradient_fails_the_identity(
    break_it, failing, monkeypatch, tmp_path, capsys
):
    study = load_study("tied_gradient")
    monkeypatch.setattr(activations, "CATALOGUE", {"sigmoid": activations.sigmoid})
    monkeypatch.setattr(observations, "CATALOGUE", {"gaussian": observations.gaussian})
    monkeypatch.setattr(study, "QUICK", study.QUICK._replace(num_examples=8))
    break_it(monkeypatch, study)
    assert study.main(["--quick", "--out", str(tmp_path)]) == 1
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["pass"] is False
    assert "along_training" not in result
    failed = {
        comparison
        for row in result["identity"]
        for comparison, error in row["max_relative_error"].items()
        if row["verdict"] == "FAILS" and is_wrong(error)
    }
    assert failing in failed
    assert "FAILS" in capsys.readouterr().out


def is_wrong(error):
    return error is None or error > 1e-3  # null is infinite: the true value is 0


@pytest.mark.parametrize("error", [0.8, 0.7 * (1 - 1e-6)])  # beaten, equal but rounded
def test_a_study_that_loses_to_pca_fails(error, monkeypatch, tmp_path, capsys):
    study = load_study("digits_against_pca")
    errors = {"PCA": 0.7, "PCA, clipped": 0.6} | dict.fromkeys(study.MODELS, 0.5)
    errors["relu latents"] = error
    split = {name: {"by_seed": [error]} for name, error in errors.items()}
    monkeypatch.setattr(study, "run_split", lambda X, seed, settings: split)
    assert study.main(["--quick", "--out", str(tmp_path)]) == 1
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["pass"] is False and result["sigmoid_does_not_beat_pca"] is False
    assert "FAIL" in capsys.readouterr().out


def test_a_gradient_that_changes_sign_in_float32_fails_the_claim(
    monkeypatch, tmp_path, capsys
):
    study, precision = load_study("precision"), gradcheck.precision

    def turned(fn, params, batch, grad):
        def claim(params, batch):
            sign = -1 if batch.dtype == "float32" else 1
            return jax.tree.map(lambda leaf: sign * leaf, grad(params, batch))

        return precision(fn, params, batch, grad=claim)

    monkeypatch.setattr(gradcheck, "precision", turned)
    quick = study.QUICK._replace(epochs=(0, 1), num_seeds=1, num_activations=1)
    monkeypatch.setattr(study, "QUICK", quick)
    assert study.main(["--quick", "--out", str(tmp_path)]) == 1
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["pass"] is False and not any(result["holds"].values())
    assert "FAIL" in capsys.readouterr().out


def test_an_error_that_moves_by_its_rounding_does_not_grow():
    study = load_study("precision")
    rows = [
        {"precision": mode, "error": np.array([[1.0, end]])}
        for mode in study.UNIT_ROUNDOFFS
        for end in (1 + 1e-6, 2.0)
    ]
    assert set(study.count_growing(rows).values()) == {"1 of 2"}


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_the_losses_of_the_candidates_are_those_by_quadrature(density):
    study = load_study("superposition").toy
    importance, p = (1.0, 0.7, 0.3), density
    unit, nothing = np.eye(2), np.zeros((2, 1))

    def loss(W, b):
        return study.expected_loss(W, b, importance, p)

    ignoring = loss(np.hstack([unit, nothing]), np.array([0, 0, p / 2]))
    sharing = loss(np.array([[1.0, 0, 0], [0, 1, -1]]), np.zeros(3))
    np.testing.assert_allclose(ignoring, study.loss_of_ignoring(0.3, p), rtol=1e-10)
    np.testing.assert_allclose(sharing, study.loss_of_sharing(0.7, 0.3, p), rtol=3e-3)
    candidates = study.candidates(importance, p)
    np.testing.assert_allclose(candidates["not represented"], ignoring, rtol=1e-10)
    np.testing.assert_allclose(candidates["superposed"], sharing, rtol=3e-3)
    others = study.loss_of_ignoring(0.7, p), study.loss_of_sharing(1.0, 0.7, p)
    assert candidates["own dimension"] == min(others)
    angles = 2 * np.pi * np.arange(3) / 3 + 0.4
    W = np.stack([np.cos(angles), np.sin(angles)])  # a triangle
    np.testing.assert_allclose(study.dimensionality(W), 2 / 3)
    assert list(study.kinds(np.hstack([W[:, :1], nothing]))) == [
        "own dimension",
        "not represented",
    ]
    assert set(study.kinds(W)) == {"superposed"}
    np.testing.assert_allclose(study.dimensions_per_feature(W), 2 / 3)


def valley(study, place):
    """Losses least at 2^place(width), of every optimizer and observation."""

    def train_width(width, train, validation, settings):
        del train, validation

        def losses(optimizer):  # [rates, seeds]
            away = np.log2(study.RATES[optimizer]) - place(width)
            return np.exp(away**2 / 10)[:, None].repeat(settings.num_seeds, 1)

        names = map(str, study.FLOORS)
        return {(o, x): losses(o) for x in names for o in settings.optimizers}

    return train_width


@pytest.mark.parametrize(
    "place, failing",
    [
        (  # it transfers, but for a slope that may be a fit's rounding
            lambda width: -6.2 - 1e-9 * np.log2(width),
            {
                "Adam's best rate falls",
                "faster than the others'",
                "it does not transfer",
            },
        ),
        (  # the best leaves the grid
            lambda width: 8.0 - 2 * np.log2(width),
            {
                "every best rate is inside the grid",
                "Adam's best rate falls",
                "faster than the others'",
            },
        ),
    ],
)
def test_rates_that_transfer_or_leave_the_grid_fail_the_claim(
    place, failing, monkeypatch, tmp_path, capsys
):
    study = load_study("learning_rate_transfer")
    monkeypatch.setattr(study, "train_width", valley(study, place))
    assert study.main(["--quick", "--out", str(tmp_path)]) == 1
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["pass"] is False
    assert {name for name, holds in result["holds"].items() if not holds} == failing
    assert "FAIL" in capsys.readouterr().out


def test_the_best_rate_is_the_vertex_and_not_an_end_of_the_grid():
    study = load_study("learning_rate_transfer")
    rates = study.RATES["adam"]
    away = np.log2(rates) + 6.2
    assert study.best_rate(rates, np.exp(away**2)) == pytest.approx(2**-6.2)
    assert np.isnan(study.best_rate(rates, rates))
    diverged = np.where(away < 0.5, np.exp(away**2), np.inf)
    assert study.best_rate(rates, diverged) == 2.0**-6


def spoil_class(results):
    results["phases"]["n=2, m=1"]["trained"][0][0] = "superposed"


def spoil_loss(results):
    results["phases"]["n=2, m=1"]["loss_by_theory"][1][1] = 1.05


def spoil_dense(results):
    results["importance"][0]["kinds"][2] = "superposed"


def spoil_order(results):
    results["importance"][1]["represented"] = 13


def one_fewer(results):
    results["importance"][1]["represented"] = 12


def spoil_linear(results):
    results["importance"][-1]["represented"] = 6


def spoil_pairs(results):
    results["geometry"][3]["D*"] = 0.6


@pytest.mark.parametrize(
    "spoil, failing",
    [
        (None, set()),
        (one_fewer, set()),
        (spoil_class, {"n=2, m=1: as the best candidate"}),
        (spoil_loss, {"n=2, m=1: as good as the best candidate"}),
        (spoil_dense, {"dense: the 5 most important"}),
        (spoil_order, {"lower density: more features, over two per dimension"}),
        (spoil_linear, {"linear: 5 always"}),
        (spoil_pairs, {"D* stays near 0.5"}),
    ],
)
def test_each_statement_of_the_claim_on_superposition_can_fail(spoil, failing):
    study = load_study("superposition")
    own, shared, none = "own dimension", "superposed", "not represented"
    phase = {
        "num_lanes": 4,
        "theory": [[own, none], [shared, own]],
        "trained": [[own, none], [shared, shared]],  # the last cell is not decided
        "is_decided": [[True, True], [True, False]],
        "loss_by_theory": [[1.0, 0.99], [1.01, 0.95]],
    }
    kinds = np.array([own] * 5 + [none] * 15, dtype="<U20")
    rows = [("relu", 5), ("relu", 8), ("relu", 11), ("linear", 5), ("linear", 5)]
    results = {
        "phases": {"n=2, m=1": phase},
        "importance": [
            {"model": model, "represented": count, "kinds": kinds.copy()}
            for model, count in rows
        ],
        "geometry": [{"D*": value} for value in (1.0, 0.99, 0.51, 0.46, 0.3)],
    }
    if spoil is not None:
        spoil(results)
    holds = study.judge(**results)
    assert {name for name, is_true in holds.items() if not is_true} == failing


def lose_features(row):
    row["MMCS of features"] = np.array([0.8, 0.9])


def set_dead_fraction(row):
    row["dead fraction"] = np.array([0.1, 0.1])


def raise_to_best(row):
    row["MMCS of features"][1] = 0.95


@pytest.mark.parametrize(
    "spoil, place, failing",
    [
        (None, None, set()),
        (lose_features, ("by_l1", 1), {"the best coefficient recovers the features"}),
        (raise_to_best, ("by_l1", 5), {"the ends of the grid do not"}),
        (raise_to_best, ("by_l1", 0), {"the ends of the grid do not"}),
        (set_dead_fraction, ("by_l1", 4), {"more latents, more dead"}),
        (lose_features, ("top_k", 1), {"top-k recovers the features"}),
        (lose_features, ("top_k", 0), set()),  # no claim for as many as features
    ],
)
def test_each_statement_of_the_claim_on_recovery_can_fail(spoil, place, failing):
    study = load_study("dictionary_recovery")

    def row(ratio, mmcs, dead):
        measures = {"MMCS of features": mmcs, "dead fraction": dead}
        return {"ratio": ratio} | {n: np.array([v, v]) for n, v in measures.items()}

    results = {
        "by_l1": [
            row(ratio, mmcs, dead)
            for ratio, dead in ((1, 0.1), (2, 0.3))
            for mmcs in (0.6, 0.98, 0.5)
        ],
        "top_k": [row(1, 0.97, 0.1), row(2, 0.97, 0.3)],
    }
    if spoil is not None:
        name, index = place
        spoil(results[name][index])
    holds = study.judge(**results)
    assert {name for name, is_true in holds.items() if not is_true} == failing


def test_the_fit_finds_the_law_that_made_the_losses():
    study = load_study("scaling")
    grid = study.log_grid(study.FULL)
    # A floor well below the rest at small n, and above it at large n.
    alpha, beta_k, beta_n, gamma, zeta, eta = -0.5, 0.1, -0.3, -0.1, -2.0, -0.3
    n, k = (np.exp(values) for values in grid)
    loss = np.exp(alpha) * k**beta_k * n**beta_n * np.exp(gamma * grid[0] * grid[1])
    loss += np.exp(zeta) * k**eta
    for is_held_out in study.held_out(study.FULL).values():
        fit = study.fit_and_predict(grid, np.log(loss), is_held_out)
        # Many parameters give almost the same losses, and the fit stops among them.
        assert fit["largest error"] < 0.01 and fit["r2"] > 0.999


def test_cells_that_are_held_out_are_not_fitted():
    study = load_study("scaling")
    grid = study.log_grid(study.QUICK)
    log_loss = -0.3 * grid[0] - 0.2 * grid[1]
    is_held_out = study.held_out(study.QUICK)["scattered"]
    spoiled = log_loss + 5 * is_held_out
    fit = study.fit_and_predict(grid, spoiled, is_held_out)
    assert fit["r2"] > 0.999 and fit["rms error"] == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize(
    "place, value, failing",
    [
        (None, None, set()),
        (("losses", (1, 0)), 1.0, {"the loss falls with n"}),
        (("losses", (1, 1)), 0.75, {"the loss falls with k"}),
        (("none", "r2"), 0.9, {"the law explains the losses"}),
        (("scattered", "largest error"), 0.2, {"scattered cells are predicted"}),
        (("largest", "largest error"), 0.2, {"the largest n is predicted"}),
    ],
)
def test_each_statement_of_the_claim_on_scaling_can_fail(place, value, failing):
    study = load_study("scaling")
    losses = np.array([[[0.9], [0.8]], [[0.7], [0.6]]])
    names = ("none", "scattered", "largest")
    fits = {name: {"r2": 0.99, "largest error": 0.01} for name in names}
    if place is not None:
        where, index = place
        (losses if where == "losses" else fits[where])[index] = value
    holds = study.judge(losses, fits)
    assert {name for name, is_true in holds.items() if not is_true} == failing


def miss_small_errors(report):
    """The report without errors below 100 times the resolution."""
    leaf = report.leaves["W"]
    if leaf.error > 100 * leaf.resolution:
        return report
    passed = dataclasses.replace(leaf, verdict="correct", ok=True)
    return dataclasses.replace(report, leaves=report.leaves | {"W": passed})


def fail_b_enc(report):
    leaf = dataclasses.replace(report.leaves["b_enc"], verdict="wrong", ok=False)
    return dataclasses.replace(report, leaves=report.leaves | {"b_enc": leaf})


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil, failing",
    [
        (miss_small_errors, {"detected from 3 resolutions"}),
        (fail_b_enc, {"no other leaf fails", "right gradients pass"}),
    ],
)
def test_a_check_that_misses_errors_or_fails_other_leaves_fails_the_claim(
    spoil, failing, monkeypatch, tmp_path, capsys
):
    study, check = load_study("detection_power"), gradcheck.check
    cache = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(gradcheck, "check", lambda *a, **kw: spoil(check(*a, **kw)))
    quick = study.QUICK._replace(cases=((study.SMALL, "float32", 1),))
    monkeypatch.setattr(study, "QUICK", quick)
    monkeypatch.setattr(study, "count_evaluations", lambda _: [{"leaves": 0}])
    monkeypatch.setattr(study, "PEERS", {})
    assert study.main(["--quick", "--out", str(tmp_path)]) == 1
    result = json.loads((tmp_path / "result.json").read_text())
    assert failing <= {name for name, holds in result["holds"].items() if not holds}
    assert "FAIL" in capsys.readouterr().out
    assert jax.config.jax_compilation_cache_dir == cache  # as it was


@pytest.mark.parametrize("name", PLOTS)
def test_an_output_folder_that_is_a_file_is_an_error(name, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("content")
    with pytest.raises(SystemExit) as e:
        load_study(name).main(["--out", str(file)])
    assert e.value.code == 2
    assert "--out must be a folder" in capsys.readouterr().err
    assert file.read_text() == "content"


# ---- helpers -------------------------------------------------------------------------


def run_study(name, folder, *options) -> dict:
    command = [sys.executable, str(EXPERIMENTS / f"{name}.py"), *options]
    done = subprocess.run(
        [*command, "--out", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "result.json").read_text())


def check_plots(folder, expected):
    assert {path.name for path in folder.glob("*.png")} == expected
    for name in expected:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob(".*"))  # no temporary file remains


def load_study(name):
    """A new module each time, so that nothing compiled earlier is used."""
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    return study
