"""Hyperparameters that change during training."""

import pickle

import chex
import jax
import numpy as np
import pytest

import jaxae
from jaxae import activations as g
from jaxae import schedules

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(48, 6)).astype(np.float32)


def model(activation="relu", latent_dim=8):
    return jaxae.Autoencoder(
        input_dim=6,
        latent_dim=latent_dim,
        activation=activation,
        observation="gaussian",
        tied=False,
    )


def config(num_epochs, diagnostics=False):  # which take as long to compile as training
    return jaxae.TrainConfig(
        num_epochs=num_epochs, batch_size=8, diagnostics=diagnostics
    )


def train(objective, hparams, num_epochs=2, diagnostics=False, **arguments):
    return jaxae.train(
        objective,
        X,
        key=KEY,
        hparams={"learning_rate": 1e-2} | hparams,
        config=config(num_epochs, diagnostics),
        **arguments,
    )


RAMP = {"l1": 0.5, "l1_start": 0.1, "l1_steps": 4}


def test_a_linear_schedule_goes_from_its_start_to_the_value_and_stays():
    objective = jaxae.Objective(
        model(), penalties=("l1",), schedules=(schedules.linear("l1"),)
    )
    params, state = objective.ae.init(KEY), objective.init_state()
    for t in range(7):
        p = objective.forward(params, X, None, RAMP, state)
        expected = 0.1 + 0.4 * min(t / 4, 1)
        np.testing.assert_allclose(p.hparams["l1"], expected, rtol=1e-6)
        loss, aux = objective(params, X, None, RAMP, state)
        terms = aux.metrics["reconstruction"] + expected * aux.metrics["l1"]
        np.testing.assert_allclose(loss, terms, rtol=1e-6)
        state = aux.state


def test_without_steps_the_value_holds_from_the_start():
    scheduled = jaxae.Objective(
        model(), penalties=("l1",), schedules=(schedules.linear("l1"),)
    )
    plain = jaxae.Objective(model(), penalties=("l1",))
    run = train(scheduled, {**RAMP, "l1_steps": 0})
    chex.assert_trees_all_close(run.params, train(plain, {"l1": 0.5}).params, atol=1e-6)


@pytest.mark.parametrize("gradient", ["autodiff", "manual"])
def test_a_falling_k_is_an_integer_at_every_step_and_the_model_has_the_last(gradient):
    objective = jaxae.Objective(model(g.topk(6)), schedules=(schedules.linear("k"),))
    hparams = {"k": 2, "k_start": 6, "k_steps": 8}
    params, state = objective.ae.init(KEY), objective.init_state()
    for t in range(10):
        k = round(6 - 4 * min(t / 8, 1))
        p = objective.forward(params, X, None, hparams, state)
        assert int(p.hparams["k"]) == k
        assert np.max(np.sum(np.asarray(p.z) != 0, axis=1)) <= k
        state = objective(params, X, None, hparams, state)[1].state
    run = train(objective, hparams)
    assert run.model[0].activation is g.topk(2)


@pytest.mark.parametrize(
    "coefficient, target",
    [
        (0.01, 2.0),
        (0.3, 4.0),
        pytest.param(0.01, 4.0, marks=pytest.mark.slow),
        pytest.param(0.3, 2.0, marks=pytest.mark.slow),
    ],
)
def test_the_controller_steers_l0_to_its_target_from_any_coefficient(
    coefficient, target
):
    objective = jaxae.Objective(
        model(latent_dim=16),
        penalties=("l1",),
        schedules=(schedules.l0_controller("l1"),),
    )
    hparams = {"l1": coefficient, "l0_target": target, "l0_gain": 0.01}
    run = train(objective, hparams, num_epochs=200, diagnostics=True)
    l0 = np.mean(run.metrics["train/l0"][-20:])
    # The mean of an integral controller at rest is the target; batches of 8 add noise.
    assert abs(l0 - target) < 0.3 * target


def test_an_l0_far_above_the_target_does_not_wind_up_the_controller():
    """Each step adds at most 1 to the integral, and at least -1."""
    ae = model()
    objective = jaxae.Objective(
        ae, penalties=("l1",), schedules=(schedules.l0_controller("l1"),)
    )
    hparams = {"l1": 0.1, "l0_target": 1e-3, "l0_gain": 0.1}
    state = objective(ae.init(KEY), X, None, hparams, objective.init_state())[1].state
    assert state["l1_schedule"].integral == 1


def test_a_lane_is_the_single_run_and_a_resumed_run_the_uninterrupted_one(tmp_path):
    objective = jaxae.Objective(
        model(), penalties=("l1",), schedules=(schedules.l0_controller("l1"),)
    )
    hparams = {"l1": 0.1, "l0_gain": 0.1, "l0_target": 2.0}
    uninterrupted = train(objective, hparams, num_epochs=3)
    train(objective, hparams, num_epochs=1, checkpoint_dir=tmp_path)
    resumed = train(objective, hparams, num_epochs=3, checkpoint_dir=tmp_path)
    chex.assert_trees_all_equal(
        resumed.state._replace(key=0), uninterrupted.state._replace(key=0)
    )
    swept = jaxae.sweep(
        objective,
        X,
        {"l0_target": [1.0, 2.0]},
        hparams={"l1": 0.1, "l0_gain": 0.1, "learning_rate": 1e-2},
        key=KEY,
        config=config(2),
        lanes_at_once=1,
    )
    for lane in range(2):
        run = jaxae.train(data=X, **swept.trial(lane))
        chex.assert_trees_all_equal(swept.params(lane), run.params)


def test_a_scheduled_corruption_is_left_out_of_evaluation():
    objective = jaxae.Objective(
        model(), corruption="masking", schedules=(schedules.linear("corruption_rate"),)
    )
    numbers = {"_start": 0.0, "_steps": 4, "": 0.3}
    hparams = {f"corruption_rate{name}": value for name, value in numbers.items()}
    run = train(objective, hparams, validation=X[:8])
    plain = objective.for_evaluation().evaluate(run.params, X[:8], {})
    np.testing.assert_allclose(
        run.metrics["validation/loss"][-1], plain["loss"], rtol=1e-5
    )


def test_a_schedule_is_the_same_object_by_its_name_and_from_a_pickle():
    for factory in schedules.CATALOGUE.values():
        schedule = factory("l1")
        assert schedule is factory("l1")
        assert pickle.loads(pickle.dumps(schedule)) is schedule
    assert repr(schedules.linear("k")) == "linear('k')"


@pytest.mark.parametrize(
    "make, sentence",
    [
        (
            lambda: jaxae.Objective(model(), schedules=(schedules.linear("l1"),)),
            "schedules must set hyperparameters that the objective reads.*'l1'",
        ),
        (
            lambda: jaxae.Objective(
                model(),
                penalties=("l1",),
                schedules=(schedules.linear("l1"), schedules.l0_controller("l1")),
            ),
            "schedules must set different hyperparameters",
        ),
        (
            lambda: jaxae.Objective(model(), schedules=schedules.linear("l1")),
            "schedules must be a tuple of schedules",
        ),
        (
            lambda: schedules.l0_controller("k"),
            "l0_controller must set the coefficient of a penalty.*'k'",
        ),
        (
            lambda: train(
                jaxae.Objective(
                    model(),
                    penalties=("l1",),
                    schedules=(schedules.l0_controller("l1"),),
                ),
                {"l1": 0.0, "l0_target": 2.0, "l0_gain": 0.1},
            ),
            r"hparams\['l1'\] must be positive",
        ),
        (
            lambda: jaxae.Objective(model(), schedules=("linear",)),
            "schedules must be a tuple of schedules",
        ),
        (
            lambda: train(
                jaxae.Objective(
                    model(), penalties=("l1",), schedules=(schedules.linear("l1"),)
                ),
                {"l1": 0.1},
            ),
            "hparams lacks l1_start, l1_steps",
        ),
        (
            lambda: train(
                jaxae.Objective(
                    model(), penalties=("l1",), schedules=(schedules.linear("l1"),)
                ),
                {**RAMP, "l1_steps": -1},
            ),
            r"hparams\['l1_steps'\] must be at least 0",
        ),
        (
            lambda: train(
                jaxae.Objective(model(g.topk(4)), schedules=(schedules.linear("k"),)),
                {"k": 2, "k_start": 5, "k_steps": 3},
            ),
            r"hparams\['k_start'\] must be an integer from 1 to 4, got 5",
        ),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
