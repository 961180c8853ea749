"""Schedules, clipping and accumulation, against optax with fixed numbers."""

import functools
import itertools
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_autoencoder import model
from test_training import HPARAMS, KEY, OBJECTIVE, X, config, train

import jaxae
from jaxae import optimizers

RATE, STEPS, FINAL, WARMUP = 0.03, 120, 0.1, 30
NUMBERS = {
    "learning_rate": RATE,
    "momentum": 0.9,
    "adamw_decay": 0.05,
    "schedule_steps": STEPS,
    "final_fraction": FINAL,
    "warmup_steps": WARMUP,
    "max_norm": 0.3,
}
OPTAX = {
    "adam": optax.adam,
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "adamw": functools.partial(optax.adamw, weight_decay=0.05),
    "rmsprop": optax.rmsprop,
}
OPTAX_SCHEDULES = {
    "constant": optax.constant_schedule(RATE),
    "linear": optax.linear_schedule(RATE, FINAL * RATE, STEPS),
    "cosine": optax.cosine_decay_schedule(RATE, STEPS, FINAL),
    "exponential": optax.exponential_decay(RATE, STEPS, FINAL),
}
PARAMS = {"W": jnp.linspace(-1.0, 2.0, 6).reshape(2, 3), "b": jnp.ones(3)}


def traced(hparams=NUMBERS, dtype=jnp.float32):
    return {name: jnp.asarray(value, dtype) for name, value in hparams.items()}


def follow(optimizer, hparams, *, params=PARAMS, num_steps=200, num_repeats=1):
    """Parameters at every step on a quadratic loss with the same noise each time."""

    def step(carry, i):
        params, state = carry
        noise = jnp.sin(i // num_repeats + 1.0)
        grads = jax.tree.map(lambda p: (0.5 * p + noise).astype(p.dtype), params)
        updates, state = optimizer(hparams).update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    start = (params, optimizer(hparams).init(params))
    (_, state), path = jax.lax.scan(step, start, jnp.arange(num_steps))
    return path, state


followed = jax.jit(follow, static_argnums=0, static_argnames=("num_steps",))


def fixed(transformation):
    return lambda hparams: transformation


# ---- schedules -----------------------------------------------------------------------


def each(names, schedules):
    """Each name and each schedule in turn; all pairs of them by --slow."""
    names, schedules = list(names), list(schedules)
    in_turn = {
        (names[i % len(names)], schedules[i % len(schedules)])
        for i in range(max(len(names), len(schedules)))
    }
    return [
        pytest.param(*pair, marks=[pytest.mark.slow] * (pair not in in_turn))
        for pair in itertools.product(names, schedules)
    ]


@pytest.mark.parametrize(
    "name, schedule", each(optimizers.CATALOGUE, optimizers.SCHEDULES)
)
def test_a_schedule_is_that_of_optax_for_every_optimizer(name, schedule):
    result, _ = followed(optimizers.build(name, schedule=schedule), traced())
    expected, _ = follow(fixed(OPTAX[name](OPTAX_SCHEDULES[schedule])), {})
    chex.assert_trees_all_close(result, expected, rtol=2e-5, atol=2e-6)
    assert not np.allclose(result["W"][0], result["W"][-1])


def test_every_optimizer_and_schedule_of_the_catalogue_is_tested():
    assert set(OPTAX) == set(optimizers.CATALOGUE)
    assert set(OPTAX_SCHEDULES) == set(optimizers.SCHEDULES)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_warmup_and_cosine_are_those_of_optax(name):
    schedule = optax.warmup_cosine_decay_schedule(
        0, RATE, WARMUP, WARMUP + STEPS, FINAL * RATE
    )
    built = optimizers.build(name, schedule="cosine", warmup=True)
    result, _ = followed(built, traced())
    expected, _ = follow(fixed(OPTAX[name](schedule)), {})
    chex.assert_trees_all_close(result, expected, rtol=2e-5, atol=2e-6)


def factors(schedule, *, warmup=True, **numbers):
    """The factors of the first updates, which are those of sgd on a gradient of -1."""
    built = optimizers.build("sgd", schedule=schedule, warmup=warmup)
    transformation = built({**NUMBERS, "learning_rate": 1.0, **numbers})
    state, updates = transformation.init(jnp.float32(0)), []
    for _ in range(6):
        update, state = transformation.update(jnp.float32(-1), state)
        updates.append(float(update))
    return updates


def test_schedules_at_a_few_counts():
    numbers = {"schedule_steps": 4, "final_fraction": 0.5, "warmup_steps": 0}
    expected = [1, 0.875, 0.75, 0.625, 0.5, 0.5]
    np.testing.assert_allclose(factors("linear", **numbers), expected)
    expected = 0.75 + 0.25 * np.cos(np.pi / 4 * np.array([0, 1, 2, 3, 4, 4]))
    np.testing.assert_allclose(factors("cosine", **numbers), expected, rtol=1e-6)
    expected = 0.5 ** (np.arange(6) / 4)
    np.testing.assert_allclose(factors("exponential", **numbers), expected, rtol=1e-6)


def test_warmup_is_linear_and_the_schedule_starts_after_it():
    numbers = {"schedule_steps": 2, "final_fraction": 0.0, "warmup_steps": 2}
    assert factors("linear", **numbers) == [0, 0.5, 1, 0.5, 0, 0]
    assert factors("constant", **numbers) == [0, 0.5, 1, 1, 1, 1]


@pytest.mark.parametrize("schedule", optimizers.SCHEDULES)
def test_no_warmup_steps_are_no_warmup(schedule):
    expected = factors(schedule, warmup=False)
    np.testing.assert_allclose(factors(schedule, warmup_steps=0), expected, rtol=1e-6)
    np.testing.assert_array_less(-1, factors(schedule, schedule_steps=0))  # no NaN


# ---- clipping and accumulation -------------------------------------------------------


def test_clipping_is_that_of_optax():
    result, _ = followed(optimizers.build("momentum", clip=True), traced())
    chain = optax.chain(optax.clip_by_global_norm(0.3), OPTAX["momentum"](RATE))
    expected, _ = follow(fixed(chain), {})
    chex.assert_trees_all_close(result, expected, rtol=2e-5, atol=2e-6)
    unclipped, _ = followed(optimizers.momentum, traced())
    assert not np.allclose(result["W"], unclipped["W"])


@pytest.mark.parametrize("name", optimizers.CATALOGUE)
def test_accumulation_is_that_of_optax(name):
    result, _ = followed(optimizers.build(name, accumulate=4), traced())
    steps = optax.MultiSteps(OPTAX[name](RATE), 4).gradient_transformation()
    expected, _ = follow(fixed(steps), {})
    chex.assert_trees_all_close(result, expected, rtol=2e-5, atol=2e-6)


def test_the_count_is_of_updates_and_clipping_acts_on_the_average():
    """Three steps with one gradient are one update with that gradient."""
    keywords = {"schedule": "cosine", "warmup": True, "clip": True}
    once, state = followed(optimizers.build("adam", **keywords), traced())
    built = optimizers.build("adam", **keywords, accumulate=3)
    thrice, accumulated = jax.jit(
        lambda: follow(built, traced(), num_steps=600, num_repeats=3)
    )()
    every_third = jax.tree.map(lambda leaf: leaf[2::3], thrice)
    chex.assert_trees_all_close(every_third, once, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(accumulated.inner, state, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(thrice["W"][0], PARAMS["W"])


@pytest.mark.parametrize("gradient", ["autodiff", "manual"])
def test_small_batches_accumulated_are_a_big_batch(gradient):
    """In one epoch, where the order of the rows is the same."""
    runs = [
        train(
            data=X[:48],
            config=config(
                num_epochs=1,
                batch_size=24 // accumulate,
                gradient=gradient,
                optimizer=optimizers.build("sgd", accumulate=accumulate),
            ),
        )
        for accumulate in (1, 3)
    ]
    big, small = (run.params for run in runs)
    chex.assert_trees_all_close(small, big, rtol=1e-5, atol=1e-7)
    assert not np.allclose(small.W, OBJECTIVE.ae.init(jax.random.split(KEY)[0]).W)


# ---- decoder rows of norm 1 ----------------------------------------------------------

ROWS = np.array([[0.6, 0.8, 0.0], [0.0, -1.0, 2.0], [0.0, 0.0, 0.0]])
UNIT = {**NUMBERS, "learning_rate": 0.5, "schedule_steps": 4, "max_norm": 0.7}


def untied_params(W_dec, dtype=jnp.float32):
    W_dec = jnp.asarray(W_dec, dtype)
    W_enc, bias = jnp.ones_like(W_dec), jnp.ones(3, dtype)
    return jaxae.UntiedParams(W_enc, W_dec, bias, bias)


def grads_of(params, i):
    """Gradients with a component along each row, of which the third is 0."""
    noise = jax.tree.map(lambda leaf: jnp.sin(leaf + i).astype(leaf.dtype), params)
    return noise._replace(W_dec=noise.W_dec + 3 * params.W_dec)


def unit_steps(built, params, num_steps, numbers=UNIT):
    @jax.jit
    def step(carry, i):
        params, state = carry
        transformation = built(traced(numbers))
        updates, state = transformation.update(grads_of(params, i), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params.W_dec

    start = (params, built(traced(numbers)).init(params))
    return jax.lax.scan(step, start, jnp.arange(num_steps, dtype=jnp.float32))


def unit_rows(W):
    norms = np.linalg.norm(W, axis=1, keepdims=True)
    return np.divide(W, norms, out=np.zeros_like(W), where=norms > 0)


def test_unit_norm_projects_then_clips_and_normalises_last():
    """Against the equations in float64: sgd with a cosine schedule."""
    built = optimizers.build("sgd", schedule="cosine", clip=True, unit_norm=True)
    _, path = unit_steps(built, untied_params(ROWS), 6)
    others, W = [np.ones((3, 3)), np.ones(3), np.ones(3)], ROWS.copy()
    for i in range(6):
        grad = np.sin(W + i) + 3 * W
        u = unit_rows(W)
        grads = [grad - np.sum(grad * u, axis=1, keepdims=True) * u]
        grads += [np.sin(leaf + i) for leaf in others]
        factor = min(1, 0.7 / np.sqrt(sum(np.sum(g**2) for g in grads)))
        t = min(i / 4, 1)
        rate = 0.5 * factor * (FINAL + (1 - FINAL) * (1 + np.cos(np.pi * t)) / 2)
        others = [x - rate * g for x, g in zip(others, grads[1:], strict=True)]
        W = np.where(W.any(axis=1, keepdims=True), unit_rows(W - rate * grads[0]), 0)
        # Six steps of roundings of numbers of size 1.
        np.testing.assert_allclose(path[i], W, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "momentum", "adamw"])
def test_rows_have_norm_1_after_a_thousand_steps_and_rows_of_0_stay_0(name):
    built = optimizers.build(name, warmup=True, clip=True, unit_norm=True)
    _, path = unit_steps(built, untied_params(ROWS), 1000)
    norms = np.linalg.norm(np.asarray(path, np.float64), axis=-1)
    # A component below 1 is rounded three times, by at most 2^-24 each.
    np.testing.assert_allclose(norms[:, :2], 1, atol=8 * 2**-24)
    assert not np.asarray(path)[:, 2].any()
    assert np.ptp(path[:, 0], axis=0).max() > 0.1  # and the rows do turn


@pytest.mark.parametrize("accumulate", [1, 2])
def test_bfloat16_rows_have_norm_1_to_their_rounding(accumulate):
    built = optimizers.build("adam", unit_norm=True, accumulate=accumulate)
    _, path = unit_steps(built, untied_params(ROWS, jnp.bfloat16), 50)
    assert path.dtype == jnp.bfloat16
    norms = np.linalg.norm(np.asarray(path[1:], np.float64), axis=-1)
    np.testing.assert_allclose(norms[:, :2], 1, atol=2**-8)


def test_the_moments_know_nothing_of_the_gradient_along_a_row():
    params = untied_params(ROWS[:2])
    transformation = optimizers.build("adam", unit_norm=True)(traced())
    grads = jax.tree.map(jnp.zeros_like, params)._replace(W_dec=5 * params.W_dec)
    updates, state = transformation.update(grads, transformation.init(params), params)
    (mu,) = (s.mu for s in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(s))
    np.testing.assert_allclose(mu.W_dec, 0, atol=1e-6)  # 0.1 times 10 roundings of 1
    # Adam divides what is left of the rounding by itself; the rows only get norm 1.
    new = np.asarray(optax.apply_updates(params, updates).W_dec)
    np.testing.assert_allclose(np.linalg.norm(new, axis=1), 1, rtol=1e-6)


def is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)


def test_rows_stay_between_accumulated_updates():
    built = optimizers.build("adam", unit_norm=True, accumulate=3)
    _, path = unit_steps(built, untied_params(ROWS), 9)
    path = np.asarray(path)
    for i in range(9):
        before = path[i - 1] if i else np.float32(ROWS)
        assert (path[i] == before).all() == (i % 3 != 2)


@pytest.mark.parametrize("size", [1e-30, 1e30, np.nan])
def test_after_an_update_of_any_size_rows_have_norm_1_and_nan_is_not_hidden(size):
    params = untied_params(ROWS[:2])
    transformation = optimizers.build("sgd", unit_norm=True)({"learning_rate": 1.0})
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, size), params)
    state = transformation.init(params)
    updates, _ = transformation.update(grads, state, params)
    W_dec = np.asarray(optax.apply_updates(params, updates).W_dec)
    expected = np.nan if np.isnan(size) else 1
    np.testing.assert_allclose(np.linalg.norm(W_dec, axis=1), expected, rtol=1e-6)


def test_unit_norm_needs_decoder_weights():
    transformation = optimizers.build("adam", unit_norm=True)(NUMBERS)
    with pytest.raises(ValueError, match="unit_norm must be False .*, got dict.b: flo"):
        transformation.init({"b": jnp.ones(3)})
    params = untied_params(ROWS)
    with pytest.raises(ValueError, match="neither a field W_dec nor W, got NoneType"):
        transformation.update(params, transformation.init(params))


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_trains_with_unit_norm_by_hand_and_by_autodiff(tied):
    objective = jaxae.Objective(model(tied=tied))
    # sgd, since adam would follow the rounding errors of gradients that are 0.
    built = optimizers.build("sgd", unit_norm=True)
    runs = [
        train(objective, config=config(optimizer=built, gradient=gradient))
        for gradient in ("autodiff", "manual")
    ]
    chex.assert_trees_all_close(runs[0].params, runs[1].params, rtol=1e-4, atol=1e-5)
    W = decoder_of(runs[0].params)
    np.testing.assert_allclose(np.linalg.norm(W, axis=1), 1, rtol=1e-6)


def decoder_of(params):
    return np.asarray(params.W_dec if "W_dec" in params._fields else params.W)


@pytest.mark.parametrize("tied", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_lane_with_unit_norm_is_its_single_run(tied):
    settings = {"clip": True, "unit_norm": True, "accumulate": 2}
    sweep = jaxae.sweep(
        jaxae.Objective(model(tied=tied)),
        X,
        {"latent_dim": [2, 4], "learning_rate": [0.01, 0.1]},
        hparams={"max_norm": 1.0},
        key=KEY,
        config=config(optimizer=optimizers.build("sgd", **settings)),
    )
    for lane in range(4):
        run = jaxae.train(data=X, **sweep.trial(lane))
        # A padded lane sums in another order: roundings of numbers of size 1.
        chex.assert_trees_all_close(sweep.params(lane), run.params, atol=1e-5)
        W = decoder_of(sweep.params(lane))
        np.testing.assert_allclose(np.linalg.norm(W, axis=1), 1, rtol=1e-6)


# ---- traced numbers, lanes, dtypes ---------------------------------------------------

EVERYTHING = {"schedule": "cosine", "warmup": True, "clip": True, "accumulate": 2}


@pytest.mark.parametrize(
    "name, schedule", each(optimizers.CATALOGUE, optimizers.SCHEDULES)
)
def test_lanes_of_a_vmap_are_single_runs(name, schedule):
    built = optimizers.build(name, **{**EVERYTHING, "schedule": schedule})
    lanes = {
        key: jnp.stack([value, 0.7 * value, 0.4 * value])
        for key, value in traced().items()
    }
    run = functools.partial(follow, built, num_steps=40)
    result, _ = jax.jit(jax.vmap(run))(lanes)
    for i in range(3):
        expected, _ = followed(built, {k: v[i] for k, v in lanes.items()}, num_steps=40)
        lane = jax.tree.map(lambda leaf, i=i: leaf[i], result)
        chex.assert_trees_all_close(lane, expected, rtol=1e-4, atol=1e-5)


def test_training_traces_once_for_any_hyperparameters():
    calls, counts = [], []

    def counted(hparams):
        calls.append(isinstance(hparams["learning_rate"], jax.core.Tracer))
        return optax.adam(hparams["learning_rate"])

    for scale in (1, 2, 3):
        built = optimizers.build(counted, **EVERYTHING)  # anew, and the same object
        hparams = {
            "learning_rate": 0.01 * scale,
            "schedule_steps": 10 * scale,
            "final_fraction": 0.1 * scale,
            "warmup_steps": scale - 1,
            "max_norm": scale,
        }
        run = train(hparams=hparams, config=config(optimizer=built))
        assert run.status == "finished"
        counts.append(sum(calls))
    assert counts[0] >= 1 and counts == counts[:1] * 3


def test_a_sweep_of_a_built_optimizer():
    """Lane by lane what training repeats."""
    sweep = jaxae.sweep(
        OBJECTIVE,
        X,
        {"learning_rate": [0.01, 0.1], "warmup_steps": [0, 2], "max_norm": [0.1, 1.0]},
        hparams={"schedule_steps": 9, "final_fraction": 0.1},
        key=KEY,
        config=config(optimizer=optimizers.build("adam", **EVERYTHING)),
    )
    assert len(sweep) == 8
    for lane in (0, 7):
        run = jaxae.train(data=X, **sweep.trial(lane))
        chex.assert_trees_all_close(
            sweep.params(lane), run.params, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    "name, dtype", each(optimizers.CATALOGUE, ["bfloat16", "float64"])
)
def test_parameters_keep_their_dtype(name, dtype):
    built = optimizers.build(name, **EVERYTHING)
    needed = set(HPARAMS) | {"schedule_steps", "final_fraction", "warmup_steps"}
    needed |= {"momentum": {"momentum"}, "adamw": {"adamw_decay"}}.get(name, set())
    hparams = {key: NUMBERS[key] for key in needed | {"max_norm"}}
    with jax.enable_x64(dtype == "float64"):
        run = train(
            params=OBJECTIVE.ae.init(KEY, dtype=dtype),
            hparams=hparams,
            config=config(optimizer=built),
        )
        assert run.status == "finished"
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(run.params))
        wide = jnp.promote_types(dtype, "float32")
        assert run.state.opt_state.mean.W.dtype == wide


# ---- hyperparameters, and what is read of them ---------------------------------------

READS = {
    "schedule": ({"schedule": "linear"}, ["final_fraction", "schedule_steps"]),
    "warmup": ({"warmup": True}, ["warmup_steps"]),
    "clip": ({"clip": True}, ["max_norm"]),
    "own": ({"schedule": lambda count, hp: hp["custom"] / (1 + count)}, ["custom"]),
}


@pytest.mark.parametrize("key, accumulate", each(READS, [1, 2]))
def test_training_knows_which_hyperparameters_are_read(key, accumulate):
    keywords, names = READS[key]
    built = optimizers.build("adam", **keywords, accumulate=accumulate)
    with pytest.raises(ValueError, match=f"lacks {', '.join(names)}; "):
        train(config=config(optimizer=built))
    numbers = {**NUMBERS, "custom": 0.5}
    hparams = {**HPARAMS, **{name: numbers[name] for name in names}}
    assert train(hparams=hparams, config=config(optimizer=built)).status == "finished"
    with pytest.raises(ValueError, match=f"has {', '.join(names)}, which nothing"):
        train(hparams={**HPARAMS, **{name: numbers[name] for name in names}})


@pytest.mark.parametrize("accumulate", [18, 19])
def test_a_run_too_short_for_one_update_raises(accumulate):
    settings = config(optimizer=optimizers.build("adam", accumulate=accumulate))
    if accumulate == 18:  # three epochs of six steps
        before = OBJECTIVE.ae.init(KEY)
        assert (train(config=settings, params=before).params.W != before.W).any()
        return
    with pytest.raises(ValueError, match="accumulate must be at most the 18 .* got 19"):
        train(config=settings)


# ---- names and identity --------------------------------------------------------------


FLAGS = "warmup", "clip", "unit_norm"


def custom_optimizer(hparams):
    return optax.lion(hparams["learning_rate"])


def halving(count, hparams):
    return 0.5 ** (count / hparams["half_life"])


@pytest.mark.parametrize(
    "keywords, name",
    [
        ({}, "adam"),
        ({"schedule": "constant"}, "adam"),
        ({"schedule": "cosine"}, "adam+cosine"),
        (EVERYTHING, "adam+cosine+warmup+clip+accumulate(2)"),
        ({"unit_norm": True}, "adam+unit_norm"),
        (
            {**EVERYTHING, "unit_norm": True},
            "adam+cosine+warmup+clip+accumulate(2)+unit_norm",
        ),
        ({"optimizer": custom_optimizer, "clip": True}, "custom_optimizer+clip"),
        (
            {"optimizer": custom_optimizer, "schedule": halving},
            "custom_optimizer+halving",
        ),
    ],
)
def test_the_same_arguments_give_the_same_object(keywords, name):
    keywords = {"optimizer": "adam", **keywords}
    built = optimizers.build(**keywords)
    by_function = {
        "optimizer": optimizers.CATALOGUE.get(
            keywords["optimizer"], keywords["optimizer"]
        ),
        "schedule": optimizers.SCHEDULES.get(
            keywords.get("schedule"), keywords.get("schedule")
        ),
    }
    assert optimizers.build(**{**keywords, **by_function}) is built
    flags = {f: np.bool_(keywords[f]) for f in FLAGS if f in keywords}
    assert optimizers.build(**{**keywords, **flags}) is built
    assert pickle.loads(pickle.dumps(built)) is built
    assert optimizers.name_of(built) == built.__name__ == name
    assert config(optimizer=built) == config(optimizer=optimizers.build(**keywords))
    assert hash(built) == hash(optimizers.build(**keywords))


def test_build_without_additions_is_the_optimizer_itself():
    assert optimizers.build("sgd") is optimizers.sgd
    assert optimizers.build(custom_optimizer, schedule="constant") is custom_optimizer
    assert repr(optimizers.build("sgd", warmup=True)) == "sgd+warmup"
    anonymous = functools.partial(custom_optimizer)
    assert optimizers.name_of(anonymous) == repr(anonymous)


@pytest.mark.parametrize(
    "keywords, sentence",
    [
        (
            {"optimizer": "adm"},
            "must be one of .*, got 'adm' .did you mean 'adam'",
        ),
        (
            {"schedule": "cosin"},
            "must be one of .*'cosin' .did you mean 'cosine'",
        ),
        ({"accumulate": 0}, "accumulate must be an integer of at least 1, got 0"),
        ({"accumulate": 1.5}, "accumulate must be an integer of at least 1, got 1.5"),
        ({"clip": 1.0}, r"clip must be True or False, got 1.0.*hparams\['max_norm'\]"),
        ({"warmup": 10}, r"warmup must be True or .*hparams\['warmup_steps'\]"),
        ({"unit_norm": 1}, r"unit_norm must be True or False, got 1\.$"),
    ],
)
def test_errors_say_what_would_do(keywords, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        optimizers.build(**{"optimizer": "adam", **keywords})
    assert "\n" not in str(error.value)


def test_a_model_trains_with_all_additions(digits):
    built = optimizers.build("adamw", schedule="cosine", warmup=True, clip=True)
    numbers = {**NUMBERS, "schedule_steps": 60, "warmup_steps": 10, "max_norm": 5.0}
    run = train(
        jaxae.Objective(model(D=64, H=16)),
        digits[:512],
        hparams={k: v for k, v in numbers.items() if k != "momentum"},
        config=config(num_epochs=10, batch_size=64, optimizer=built),
    )
    assert run.metrics["train/loss"][-1] < 0.9 * run.metrics["train/loss"][0]
