"""Every hook of the records, by a part that needs it.

A term of the targets, one that carries a count, an activation that depends on the
batch, a straight-through one, a bilinear parametrization, a change after each update:
each trains by hand as by autodiff, is a lane of a sweep, resumes and passes gradcheck.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxae
from jaxae import gradcheck, manual
from jaxae.activations import Activation
from jaxae.autoencoder import Parametrization, UntiedParams
from jaxae.penalties import Cotangents, Penalty

D, H = 5, 4
KEY = jax.random.key(0)
X = np.random.default_rng(0).uniform(size=(24, D)).astype(np.float32)

# ---- a term that needs the targets, through eta --------------------------------------

alignment = Penalty(
    "alignment",
    lambda ae, params, p: jnp.mean(jnp.sum(p.eta * p.targets, axis=-1)),
    lambda ae, params, p: Cotangents(eta=p.targets / len(p.targets)),
)

# ---- a term that carries a count: idle latents cost less -----------------------------


def _idle_weights(p):
    return 1 / (1.0 + p.state["idle"][None])


idle = Penalty(
    "idle",
    lambda ae, params, p: jnp.mean(jnp.sum(_idle_weights(p) * p.z**2, axis=-1)),
    lambda ae, params, p: Cotangents(z=2 * _idle_weights(p) * p.z / len(p.z)),
    init_state=lambda ae: np.zeros(ae.latent_dim, np.int32),
    update_state=lambda ae, params, p: jnp.where(
        (p.z > 0).any(axis=0), 0, p.state["idle"] + 1
    ),
)

# ---- an activation that depends on the batch -----------------------------------------
# z = tanh(a - mean_b a) in training; the running mean takes its place in use.


def _centred(A, theta, state, training):
    return jnp.tanh(A - (A.mean(axis=0, keepdims=True) if training else state[None]))


def _centred_vjp(A, Z, dZ, theta, state):
    dA = dZ * (1 - Z**2)
    return dA - dA.mean(axis=0, keepdims=True)


def _needs_a_batch(a):
    raise ValueError("the centred activation needs a batch.")


centred = Activation(
    "centred",
    apply=_needs_a_batch,
    vjp=None,
    apply_batch=_centred,
    vjp_batch=_centred_vjp,
    init_state=lambda latent_dim: jnp.zeros(latent_dim),
    update_state=lambda A, Z, theta, state: 0.9 * state + 0.1 * A.mean(axis=0),
)

# ---- a straight-through activation: z = a where a > threshold ------------------------
# The threshold has no derivative; a box of width WIDTH stands for the step's.

WIDTH = 0.5


class Threshold(NamedTuple):
    threshold: jax.Array


def _box(a, threshold):
    return (jnp.abs(a - threshold) < WIDTH / 2) / WIDTH


def _gate(a, threshold):
    estimate = -a * _box(a, threshold) * threshold
    return jnp.where(a > threshold, a, 0) + estimate - jax.lax.stop_gradient(estimate)


def _gate_apply(a, threshold):
    return _gate(jax.lax.stop_gradient(a), threshold) + jnp.where(
        a > threshold, a - jax.lax.stop_gradient(a), 0
    )


gate = Activation(
    "gate",
    apply=_gate_apply,
    vjp=lambda a, z, dz, threshold: jnp.where(a > threshold, dz, 0),
    init=lambda latent_dim: Threshold(jnp.full(latent_dim, 0.05)),
    vjp_theta=lambda a, z, dz, threshold: Threshold(-dz * a * _box(a, threshold)),
    surrogate=("threshold",),
)

# ---- a bilinear parametrization: W_dec = scale W_enc ---------------------------------


class ScaledParams(NamedTuple):
    W: jax.Array
    scale: jax.Array
    b_enc: jax.Array
    b_dec: jax.Array
    activation: tuple = ()
    observation: tuple = ()


def _expand(params):
    scaled = params.scale[:, None] * params.W
    return UntiedParams(params.W, scaled, *params[2:])


def _pullback(params, grads):
    return ScaledParams(
        grads.W_enc + params.scale[:, None] * grads.W_dec,
        jnp.sum(grads.W_dec * params.W, axis=1),
        *grads[2:],
    )


scaled = Parametrization(
    "scaled",
    ScaledParams,
    expand=_expand,
    pullback=_pullback,
    from_untied=lambda untied: ScaledParams(
        untied.W_enc, jnp.ones(len(untied.W_enc)), *untied[2:]
    ),
    weights=("W",),
)

# ---- a change after each update ------------------------------------------------------


def unit_rows(state, p):
    W = state.params.W
    W = W / jnp.linalg.norm(W, axis=1, keepdims=True)
    return state._replace(params=state.params._replace(W=W))


# --------------------------------------------------------------------------------------

model = functools.partial(
    jaxae.Autoencoder, input_dim=D, latent_dim=H, observation="gaussian"
)
OBJECTIVES = {
    "batch, count, targets, scale": jaxae.Objective(
        model(activation=centred, parametrization=scaled), penalties=(alignment, idle)
    ),
    "straight-through, pre-encoder bias": jaxae.Objective(
        model(activation=gate, pre_bias=True), penalties=(idle,)
    ),
}
every_objective = pytest.mark.parametrize(
    "objective", OBJECTIVES.values(), ids=OBJECTIVES.keys()
)


def hparams_of(objective):
    return {name: 0.1 for name in (*objective.hparam_names, "learning_rate")}


def config(**settings):
    # sgd, since adam would follow the rounding errors of gradients that are 0.
    settings = {"num_epochs": 3, "batch_size": 8, "optimizer": "sgd"} | settings
    settings = {"after_update": unit_rows, "diagnostics": False} | settings
    return jaxae.TrainConfig(**settings)


def train(objective, **arguments):
    arguments = {"config": config(), "hparams": hparams_of(objective)} | arguments
    return jaxae.train(objective, X, key=KEY, validation=X[:9], **arguments)


@every_objective
def test_by_hand_and_by_autodiff_it_trains_alike(objective):
    run, by_hand = train(objective), train(objective, config=config(gradient="manual"))
    chex.assert_trees_all_close(run.params, by_hand.params, rtol=1e-4, atol=1e-5)
    assert run.metrics["train/loss"][-1] < run.metrics["train/loss"][0]
    W = np.asarray(run.params.W)
    np.testing.assert_allclose(np.linalg.norm(W, axis=1), 1, rtol=1e-5)
    # What the parts carry has moved.
    start = objective.init_state()
    assert start.keys() == run.state.state.keys()
    if "activation" in start:
        assert np.asarray(run.state.state["activation"]).any()


@every_objective
def test_a_lane_is_the_single_run(objective):
    swept = jaxae.sweep(
        objective,
        X,
        {"learning_rate": [0.1, 0.03]},
        hparams={"alignment": 0.1, "idle": 0.2}
        if len(objective.penalties) == 2
        else {"idle": 0.2},
        key=KEY,
        config=config(),
        validation=X[:9],
        lanes_at_once=1,
    )
    for lane in range(2):
        run = jaxae.train(data=X, validation=X[:9], **swept.trial(lane))
        chex.assert_trees_all_equal(swept.params(lane), run.params)
        for name, values in run.metrics.items():
            if name.startswith(("train/loss", "validation/")):
                np.testing.assert_array_equal(swept.metrics[name][lane], values)


@every_objective
def test_a_resumed_run_is_the_uninterrupted_one(objective, tmp_path):
    whole = train(objective)
    train(objective, config=config(num_epochs=1), checkpoint_dir=tmp_path)
    resumed = train(objective, checkpoint_dir=tmp_path)
    chex.assert_trees_all_equal(
        resumed.state._replace(key=0), whole.state._replace(key=0)
    )


@every_objective
def test_gradcheck_judges_the_objective(objective, x64):
    hparams = hparams_of(objective)
    params = objective.ae.init(KEY, dtype=jnp.float64)
    state = objective.init_state()
    names = [f"activation/{name}" for name in objective.ae.activation.surrogate]
    report = gradcheck.check(
        objective,
        params,
        X[:6].astype(np.float64),
        None,
        hparams,
        state,
        grad=lambda *arguments: manual.value_and_grad(objective)(*arguments)[1],
        surrogate=names,
        has_aux=True,
    )
    report.assert_ok()
    assert {report.leaves[name].verdict for name in names} <= {"surrogate"}


def test_both_paths_of_a_bilinear_parametrization_are_derivatives(x64):
    ae = model(activation="tanh", parametrization=scaled, pre_bias=True)
    params = jax.tree.map(lambda leaf: leaf + 0.1, ae.init(KEY, dtype=jnp.float64))
    x, target = jnp.asarray(X[:2], jnp.float64)
    paths = manual.path_grads(ae, params, x, target)
    expected = jax.grad(ae.path_loss, (0, 1))(params, params, x, target)
    chex.assert_trees_all_close(tuple(paths), expected, rtol=1e-12, atol=1e-12)
    assert np.asarray(paths.encoder.b_dec).any()  # through W_enc b_dec


def test_a_pre_encoder_bias_is_subtracted_from_the_input():
    plain, ae = model(tied=False), model(tied=False, pre_bias=True)
    params = jax.tree.map(lambda leaf: leaf + 0.1, ae.init(KEY))
    z = plain.encode(params, X[0] - params.b_dec)
    np.testing.assert_allclose(ae.encode(params, X[0]), z, rtol=1e-5)


def test_in_use_the_state_takes_the_place_of_the_batch():
    objective = OBJECTIVES["batch, count, targets, scale"]
    run = train(objective)
    hparams, state = hparams_of(objective), run.state.state
    metrics = objective.evaluate(run.params, X[:9], hparams, state)
    np.testing.assert_allclose(
        metrics["loss"], run.metrics["validation/loss"][-1], rtol=1e-6
    )
    alone = objective.evaluate(run.params, X[:1], hparams, state)
    Z = objective.forward(run.params, X[:1], None, hparams, state, training=False).z
    assert np.isfinite(alone["loss"]) and np.asarray(Z).any()
    with pytest.raises(ValueError, match="needs a batch"):
        objective.ae.encode(run.params, X[0])


def test_a_missing_state_is_an_error():
    objective = OBJECTIVES["batch, count, targets, scale"]
    params = objective.ae.init(KEY)
    with pytest.raises(ValueError, match=r"state lacks idle, activation.*init_state"):
        objective(params, X, None, hparams_of(objective))


@pytest.mark.parametrize(
    "after_update, sentence",
    [
        (3, "after_update must be None or a function"),
        (lambda state, p: None, "after_update must return TrainState"),
        (lambda state, p: p.wrong, "after_update must be a pure function.*wrong"),
    ],
)
def test_a_wrong_after_update_is_an_error_before_any_work(after_update, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(
            OBJECTIVES["straight-through, pre-encoder bias"],
            config=config(after_update=after_update),
            checkpoint_dir="never_made",
        )


def test_a_state_of_another_dtype_is_an_error_before_any_work():
    grown = idle._replace(update_state=lambda ae, params, p: p.state["idle"] + 0.5)
    objective = jaxae.Objective(model(activation="tanh"), penalties=(grown,))
    with pytest.raises(
        ValueError, match="penalty idle: update_state must return int32"
    ):
        train(objective)


def test_terms_draw_other_numbers_than_the_corruption():
    objective = jaxae.Objective(model(activation="tanh"), corruption="gaussian")
    p = objective.forward(
        objective.ae.init(KEY), np.zeros_like(X), KEY, {"corruption_rate": 1.0}
    )
    own_noise = jax.random.normal(p.key, (D,))
    assert not np.isclose(np.asarray(p.inputs), np.asarray(own_noise)).any()


@pytest.mark.parametrize(
    "penalty, sentence",
    [
        (idle._replace(update_state=None), "idle must have both init_state and update"),
        (idle._replace(init_state=None), "idle must have both init_state and update"),
        (alignment._replace(name="latent_dim"), "not be named latent_dim"),
        (alignment._replace(name="gradient/W"), "must be an identifier"),
        (alignment._replace(name=3), "must be an identifier such as 'l1', got 3"),
    ],
)
def test_a_penalty_that_cannot_work_is_an_error(penalty, sentence):
    with pytest.raises(ValueError, match=sentence):
        jaxae.Objective(model(activation="tanh"), penalties=(penalty,))


def test_a_change_that_is_not_finite_is_named(recwarn):
    def spoil(state, p):
        return state._replace(params=jax.tree.map(lambda w: w * jnp.nan, state.params))

    run = train(
        OBJECTIVES["straight-through, pre-encoder bias"],
        config=config(after_update=spoil),
    )
    assert run.stopped_at == 0 and "after after_update, are not finite" in run.reason


def test_a_parametrization_of_your_own_is_saved_by_name(tmp_path):
    ae = model(activation="tanh", parametrization=scaled)
    params = ae.init(KEY)
    jaxae.save(tmp_path, ae, params)
    loaded, loaded_params = jaxae.load(tmp_path, parametrization=scaled)
    assert loaded == ae and repr(ae).endswith("parametrization=scaled)")
    chex.assert_trees_all_equal(loaded_params, params)
    with pytest.raises(ValueError, match=r"parametrization 'scaled'.*load\(DIR, param"):
        jaxae.load(tmp_path)
    with pytest.raises(ValueError, match="tied must be False for .* scaled"):
        model(parametrization=scaled, tied=True)


@pytest.mark.parametrize("choices", [{"pre_bias": True}, {"bias": False}, {}])
@pytest.mark.parametrize("is_own", [True, False])
def test_saved_choices_of_the_parametrization_are_loaded(tmp_path, choices, is_own):
    base = {"parametrization": scaled} if is_own else {}
    ae = model(activation="tanh", **base, **choices)
    params = ae.init(KEY)
    jaxae.save(tmp_path, ae, params)
    loaded, loaded_params = jaxae.load(tmp_path, **base)
    assert loaded == ae and repr(loaded) == repr(ae)
    assert all(f"{name}={choice}" in repr(ae) for name, choice in choices.items())
    chex.assert_trees_all_equal(loaded_params, params)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"expand": lambda params: params}, "scaled: expand must return UntiedParams"),
        (
            {"expand": lambda p: _expand(p)._replace(W_dec=p.W.T)},
            r"expand, as W_dec, must return .* \[4, 5\], got float32\[5, 4\]",
        ),
        (
            {"pullback": lambda p, g: _pullback(p, g)._replace(scale=g.W_enc)},
            r"pullback must return float32\[4\] as scale, got float32\[4, 5\]",
        ),
        (
            {"pullback": lambda params, g: g._asdict()},
            "pullback must return ScaledParams",
        ),
    ],
)
def test_a_wrong_parametrization_is_an_error_before_any_work(change, sentence):
    ae = model(activation="tanh", parametrization=scaled._replace(**change))
    with pytest.raises(ValueError, match=sentence):
        train(jaxae.Objective(ae), config=config(diagnostics=True))


def test_after_update_leaves_the_padding_of_a_narrower_lane_at_0():
    swept = jaxae.sweep(
        jaxae.Objective(model(activation="tanh")),
        X,
        {"latent_dim": [2, 4]},
        hparams={"learning_rate": 0.1},
        key=KEY,
        config=config(),
    )
    for lane in range(2):
        run = jaxae.train(data=X, **swept.trial(lane))
        # A padded lane sums in another order: roundings of numbers of size 1.
        chex.assert_trees_all_close(swept.params(lane), run.params, atol=1e-6)


def test_a_pre_encoder_bias_is_saved(tmp_path):
    ae = model(pre_bias=True, bias=False)
    jaxae.save(tmp_path, ae, ae.init(KEY))
    assert jaxae.load(tmp_path)[0] == ae
