"""The pure functions of the study experiments/synthsaebench.py, and its results."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxae
import jaxae.terms
from jaxae import activations, optimizers, training

sys.path.append(str(Path(__file__).parents[1] / "experiments"))
import synthsaebench as study

pytestmark = pytest.mark.usefixtures("no_step_norms")

D, H, K, B = 6, 8, 2, 5
SETTINGS = study.QUICK._replace(
    scale=1 / 128, num_seeds=1, samples=8 * 64, batch_size=64, num_evaluation=1024
)
# Sums of about 10 products of numbers near 1, in float32; on any processor.
TOLERANCE = 1e-5
STEP = jax.jit(training.step, static_argnames=("objective", "config"))


def model():
    ae = jaxae.Autoencoder(
        input_dim=D,
        latent_dim=H,
        activation=activations.batch_topk(K),
        observation="gaussian",
        parametrization=study.rescaled,
    )
    rng = np.random.default_rng(0)
    params = ae.init(jax.random.key(0), encoder="random")
    drawn = {
        name: jnp.asarray(rng.normal(size=getattr(params, name).shape), jnp.float32)
        for name in ("W_enc", "W_dec", "b_enc", "b_dec")
    }
    X = jnp.asarray(rng.normal(size=(B, D)), jnp.float32)
    return ae, params._replace(**drawn), X


def largest(A):
    """The K B largest of a batch, where positive, in NumPy."""
    smallest = np.sort(A.ravel())[-K * B]
    return np.where((smallest <= A) & (A > 0), A, 0)


def parts(params):
    """W_enc, W_dec and b_enc of unit decoder rows, and b_dec, in float64."""
    leaves = {n: np.asarray(getattr(params, n), float) for n in params._fields[:4]}
    norms = np.linalg.norm(leaves["W_dec"], axis=1)
    return (
        norms[:, None] * leaves["W_enc"],
        leaves["W_dec"] / norms[:, None],
        norms * leaves["b_enc"],
        leaves["b_dec"],
    )


# ---- encoders ------------------------------------------------------------------------


def test_latents_are_selected_by_what_they_add_to_the_reconstruction():
    ae, params, X = model()
    W_enc, W_dec, b_enc, b_dec = parts(params)
    Z = largest((np.asarray(X, float) - b_dec) @ W_enc.T + b_enc)
    assert (Z > 0).sum() == K * B
    np.testing.assert_allclose(study.encode(ae, params, X), Z, atol=TOLERANCE)
    x_hat = jax.vmap(ae.decode, (None, 0))(params, jnp.asarray(Z, jnp.float32))
    np.testing.assert_allclose(x_hat, Z @ W_dec + b_dec, atol=TOLERANCE)


def test_refinement_adds_the_encoded_residual_to_the_pre_activations():
    ae, params, X = model()
    W_enc, W_dec, b_enc, b_dec = parts(params)
    x = np.asarray(X, float)
    A = (x - b_dec) @ W_enc.T + b_enc
    residuals = x - (largest(A) @ W_dec + b_dec)
    Z = largest(A + 0.3 * residuals @ W_enc.T)
    assert np.abs(Z - largest(A)).max() > 0.1
    np.testing.assert_allclose(study.refined(ae, params, X), Z, atol=TOLERANCE)


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.5, 100.0])
def test_leave_one_out_drops_what_the_rest_does_not_need(threshold):
    ae, params, X = model()
    Z = study.encode(ae, params, X)
    _, W_dec, _, b_dec = parts(params)
    expected = np.zeros((B, H))
    for b in range(B):
        for j in np.flatnonzero(Z[b]):
            others = np.delete(np.arange(H), j)  # reconstruct without latent j
            z = np.asarray(Z[b], float)
            residual = np.asarray(X[b], float) - b_dec - z[others] @ W_dec[others]
            if residual @ W_dec[j] >= threshold:
                expected[b, j] = z[j]
    actual = study.left_one_out(ae, params, X, Z, threshold)
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE)
    num_left = np.count_nonzero(actual)
    assert (num_left == 0) if threshold == 100 else (0 < num_left <= K * B)


# ---- latents by frequency ------------------------------------------------------------


def trained(num_steps, order=None):
    """The state after some steps without prefixes; reordered after the third."""
    ae, params, X = model()
    objective = jaxae.Objective(ae, penalties=(study.firing_frequency,), dead_after=100)
    hparams = {"learning_rate": 0.01, "firing_frequency": 0.0, "max_norm": 1.0}
    config = jaxae.TrainConfig(optimizer=optimizers.build("adam", clip=True))
    state = training.init_state(
        objective, hparams, jax.random.key(1), config=config, params=params
    )
    choices = {"objective": objective, "config": config}
    for i in range(num_steps):
        state, _, _ = STEP(state, X, jax.random.key(2), hparams, **choices)
        if order is not None and i == 2:
            state = study.reordered(state, order)
    return ae, state, X


def test_reordered_latents_are_the_same_function_and_learn_the_same():
    order = jnp.asarray(np.random.default_rng(1).permutation(H))
    for num_steps in (3, 6):  # just after the change, and some updates later
        ae, state, X = trained(num_steps)
        _, changed, _ = trained(num_steps, order)
        expected = study.encode(ae, state.params, X)[:, order]
        actual = study.encode(ae, changed.params, X)
        np.testing.assert_allclose(actual, expected, atol=TOLERANCE)
        for moments in ("mu", "nu"):
            adam, moved = (
                getattr(s.opt_state[1][0], moments) for s in (state, changed)
            )
            np.testing.assert_allclose(moved.W_dec, adam.W_dec[order], atol=TOLERANCE)
        for name in ("firing_frequency", "steps_since_active"):
            np.testing.assert_allclose(
                changed.state[name], state.state[name][order], atol=TOLERANCE
            )


def test_the_latents_that_fire_most_come_first_when_it_is_time():
    _, state, _ = trained(3)
    frequency = state.state["firing_frequency"]
    assert np.ptp(frequency) > 0
    state = state._replace(step=jnp.int32(8))
    early = study.Reorder(10)(state, None)
    np.testing.assert_array_equal(early.params.W_dec, state.params.W_dec)
    due = study.Reorder(10)(state._replace(step=jnp.int32(9)), None)
    falling = np.sort(frequency)[::-1]
    np.testing.assert_array_equal(due.state["firing_frequency"], falling)


def test_the_running_frequency_is_a_mean_of_decay_99_percent():
    _, state, _ = trained(0)
    ae, after, X = trained(1)
    fired = np.mean(np.asarray(study.encode(ae, state.params, X)) > 0, axis=0)
    np.testing.assert_allclose(
        after.state["firing_frequency"], 0.01 * fired, atol=TOLERANCE
    )


# ---- the published controller --------------------------------------------------------


def controlled(l0s, rate=0.1, ramp_steps=3, target=2.0):
    """The coefficients by the equations of the controller, in NumPy."""
    mean, slope, multiplier, values = l0s[0], 0.0, 1.0, []
    for t, l0 in enumerate(l0s):
        values.append(5 * multiplier * (t / ramp_steps if t < ramp_steps else 1))
        change = 0.01 * (l0 - mean)
        mean, slope = mean + change, 0.95 * slope + 0.05 * change
        error = mean - target
        u = rate * np.tanh(10 * abs(error) / target)
        u *= 0.01 if np.sign(error) * np.sign(slope) < 0 else 1
        if t >= ramp_steps:
            multiplier = np.clip(multiplier * (1 + np.sign(error) * u), 0.01, 100)
    return values


@pytest.mark.parametrize(
    "l0s", [[4] * 8, [1] * 8, [4, 4, 4, 3, 2, 1, 0, 0], [0, 4] * 4]
)
def test_the_controller_follows_its_equations(l0s):
    schedule = study.controller("l1")
    hparams = {"l1": 5, "l0_target": 2.0, "controller_rate": 0.1, "ramp_steps": 3}
    state, values = schedule.init_state(), []
    for l0 in l0s:
        values.append(schedule.value(hparams, state))
        Z = jnp.broadcast_to(jnp.where(jnp.arange(H) < l0, 1.0, 0.0), (B, H))
        p = jaxae.terms.Pass(*(Z,) * 5, hparams=hparams)
        state = schedule.update_state(hparams, state, p)
    np.testing.assert_allclose(values, controlled(l0s), rtol=TOLERANCE)
    assert np.ptp(values[3:]) > 0


# ---- the study -----------------------------------------------------------------------


def test_the_interval_is_that_of_students_t():
    # 2.776 is the 97.5 % quantile of four degrees of freedom, from any table.
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    expected = 2.776 * np.sqrt(2.5 / 5)
    np.testing.assert_allclose(study.half_width(values), expected, rtol=1e-3)
    assert np.isnan(study.half_width(values[:1]))


def test_one_seed_against_the_claim_fails_it():
    better, worse = study.CLAIMED[0]

    def rows(*of_better):
        pairs = ((better, of_better), (worse, (0.5, 0.5)))
        return [
            {"variant": name, "by_seed": {"f1": np.array(f1)}} for name, f1 in pairs
        ]

    assert set(study.judge(rows(0.6, 0.6)).values()) == {True}
    assert set(study.judge(rows(0.9, 0.505)).values()) == {False}


def test_sizes_shrink_as_documented():
    problem = study.problem_of(study.FULL._replace(scale=1 / 64))
    assert problem.dictionary.features.shape == (256, 96)
    assert problem.latent_dim == 64 and problem.l0 == 3
    assert (np.asarray(problem.dictionary.parents) == -1).sum() > 2


def test_at_full_size_the_models_are_the_published_ones():
    dictionary = SimpleNamespace(features=np.zeros((16_384, 768)))
    problem = study.Problem(dictionary, latent_dim=4096, l0=25, norm_scale=0.9)
    models = {n: study.model_of(n, problem, study.PAPER) for n in study.VARIANTS}
    falling = models["Matryoshka, falling k, by frequency"]
    assert falling.objective.prefixes == (128, 512, 2048, 4096)
    assert falling.objective.penalties[0] == jaxae.penalties.aux_k(384)
    assert falling.hparams["k_start"] == 60 and falling.hparams["k"] == 25
    assert falling.hparams["k_steps"] == 195_312
    # Ours is half the loss of SAELens, and the mean over four prefixes.
    assert models["BatchTopK"].hparams["max_norm"] == 1 / 2
    assert falling.hparams["max_norm"] == 1 / 8
    assert study.PAPER.samples // study.PAPER.batch_size == 195_312


@pytest.mark.parametrize(
    "name",  # of the others, each is a part of one of these
    ["L1", "JumpReLU", "matching pursuit", "Matryoshka, falling k, by frequency"],
)
def test_a_variant_trains_and_a_second_run_reads_its_result(
    name, tmp_path, monkeypatch
):
    problem = study.problem_of(SETTINGS)
    first = study.cell(name, problem, SETTINGS, 0, tmp_path)
    num_encoders = len(study.ENCODERS) if name.startswith("Matryoshka") else 1
    assert len(first) == num_encoders
    for metrics in first.values():
        assert np.isfinite(list(metrics.values())).all()
    if name.startswith("Matryoshka"):
        np.testing.assert_allclose(first[""]["l0"], problem.l0, rtol=1e-6)
    monkeypatch.setattr(study, "train", None)
    assert study.cell(name, problem, SETTINGS, 0, tmp_path) == first
    with pytest.raises(TypeError):  # other settings train again
        other = SETTINGS._replace(learning_rate=1e-4)
        study.cell(name, problem, other, 0, tmp_path)
    (path,) = tmp_path.glob("cells/*/metrics.json")
    assert json.loads(path.read_text())["about"]["variant"] == name


def test_samples_that_do_not_fit_are_drawn_in_each_step(tmp_path, monkeypatch):
    problem = study.problem_of(SETTINGS)
    l1 = study.model_of("L1", problem, SETTINGS)
    monkeypatch.setattr(study, "ROWS_BYTES", 0)
    monkeypatch.setattr(study, "draw_rows", None)
    run = study.train(l1, problem, SETTINGS, 0, tmp_path)
    assert run.state.step == SETTINGS.samples // SETTINGS.batch_size


def test_k_falls_to_the_one_of_evaluation():
    problem = study.problem_of(SETTINGS)
    trained_model = study.model_of("Matryoshka, falling k", problem, SETTINGS)
    (schedule,) = trained_model.objective.schedules
    values = [float(schedule.value(trained_model.hparams, t)) for t in (0, 8)]
    assert values == [round(60 / 25 * problem.l0), problem.l0]
    assert (
        dataclasses.replace(
            trained_model.objective.ae, activation=activations.batch_topk(problem.l0)
        )
        == study.model_of("Matryoshka", problem, SETTINGS).objective.ae
    )
