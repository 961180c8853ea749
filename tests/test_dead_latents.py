"""Resampling of dead latents, against the equations in NumPy."""

import functools
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxae
from jaxae import dead_latents, optimizers, training

D, H, B = 5, 8, 12
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, D)).astype(np.float32)
TARGETS = RNG.normal(size=(24, D)).astype(np.float32)
DEAD = np.isin(np.arange(H), [1, 4, 6])
NAMES = ("W", "W_enc", "W_dec", "b_enc")

model = functools.partial(
    jaxae.Autoencoder,
    input_dim=D,
    latent_dim=H,
    activation="relu",
    observation="gaussian",
    tied=False,
)
MODELS = {
    "untied": model(),
    "untied, no bias": model(bias=False),
    "untied, pre-encoder bias": model(pre_bias=True),
    "tied": model(tied=True),
    "tied, pre-encoder bias, bernoulli": model(
        tied=True, pre_bias=True, observation="bernoulli", activation="sigmoid"
    ),
}
every_model = pytest.mark.parametrize("ae", MODELS.values(), ids=MODELS.keys())

# ---- an objective that counts the steps since each latent was active -----------------

HPARAMS = {"learning_rate": 0.01}


def counting(ae):
    return jaxae.Objective(ae, dead_after=1)


def config(**settings):
    settings = {"num_epochs": 3, "batch_size": 8, "diagnostics": False} | settings
    return jaxae.TrainConfig(**settings)


def after(num_steps, ae, batch=(X[:B], X[:B]), *, optimizer="adam", dead=DEAD, key=KEY):
    """The state and the pass after `num_steps` + 1 updates; `dead` are at a count of 9.

    All of the optimizer's arrays are 1, and its counts are 7.
    """
    objective, settings = counting(ae), config(optimizer=optimizer)
    state = training.init_state(objective, HPARAMS, key, config=settings)
    b_dec = jnp.linspace(0.1, 0.5, D)
    state = state._replace(
        params=state.params._replace(b_dec=b_dec),
        opt_state=jax.tree.map(
            lambda leaf: jnp.full_like(leaf, 1 if leaf.ndim else 7), state.opt_state
        ),
        state={"steps_since_active": jnp.where(dead, 9, 2)},
        step=jnp.int32(num_steps),
    )
    p = objective.forward(state.params, batch, None, HPARAMS, objective.init_state())
    return state, p


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


# ---- one resampling ------------------------------------------------------------------


@every_model
def test_dead_latents_get_the_rows_of_the_equations_and_nothing_else_changes(ae):
    batch = X[:B], TARGETS[:B]
    state, p = after(9, ae, batch)
    resample = dead_latents.resample(every=5, ae=ae, dead_after=9, encoder_scale=0.3)
    new = jax.jit(resample)(state, p)
    old_params, params = jax.tree.map(np.asarray, (state.params, new.params))
    shift = old_params.b_dec if ae.parametrization.pre_bias else 0
    x, y = (unit(rows.astype(np.float64) - shift) for rows in batch)

    decoder, scale = ("W", 1) if ae.parametrization.tied else ("W_dec", 1)
    directions = unit(getattr(params, decoder)[DEAD])
    cosines = directions @ y.T
    example = np.argmax(cosines, axis=1)
    assert len(set(example)) == DEAD.sum()  # without replacement
    rows = {decoder: (scale, y)} | ({} if decoder == "W" else {"W_enc": (0.3, x)})
    for name, (scale, directions) in rows.items():
        old, now = getattr(old_params, name), getattr(params, name)
        mean_norm = np.linalg.norm(old[~DEAD].astype(np.float64), axis=1).mean()
        expected = scale * mean_norm * directions[example]
        np.testing.assert_allclose(now[DEAD], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(now[~DEAD], old[~DEAD])
    if ae.parametrization.bias:
        np.testing.assert_array_equal(params.b_enc, np.where(DEAD, 0, old_params.b_enc))
    chex.assert_trees_all_equal(params[-3:], old_params[-3:])

    np.testing.assert_array_equal(new.state["steps_since_active"], np.where(DEAD, 0, 2))
    chex.assert_trees_all_equal(
        new._replace(params=0, opt_state=0, state=0, key=0),
        state._replace(params=0, opt_state=0, state=0, key=0),
    )


OPTIMIZERS = {
    "adam": "adam",
    "momentum": optimizers.build(lambda hp: optax.sgd(hp["learning_rate"], 0.9)),
    "everything": optimizers.build(
        lambda hp: optax.adamw(hp["learning_rate"]), accumulate=3, unit_norm=True
    ),
    "injected": lambda hp: optax.inject_hyperparams(optax.adam)(hp["learning_rate"]),
    "noisy": lambda hp: optax.chain(
        optax.add_noise(0.01, 0.5, KEY), optax.adam(hp["learning_rate"])
    ),
    "partial": lambda hp: optax.masked(
        optax.adam(hp["learning_rate"]),
        lambda params: jax.tree.map(lambda leaf: leaf.ndim == 2, params),
    ),
    "without state": "sgd",
}


@pytest.mark.parametrize(
    "name, tied",
    [
        *((name, False) for name in OPTIMIZERS),
        ("adam", True),
        *(pytest.param(n, True, marks=pytest.mark.slow) for n in [*OPTIMIZERS][1:]),
    ],
)
def test_the_moments_of_revived_latents_are_0_and_no_other_number(name, tied):
    optimizer = OPTIMIZERS[name]
    ae = model(tied=tied)
    objective = counting(ae)
    settings = config(optimizer=optimizer)
    state, p = after(0, ae)
    opt_state = training.init_state(objective, HPARAMS, KEY, config=settings).opt_state
    opt_state = jax.tree.map(
        lambda leaf: leaf + 1 if jnp.issubdtype(leaf.dtype, jnp.number) else leaf,
        opt_state,
    )
    resample = dead_latents.resample(every=1, ae=ae, dead_after=9)
    new = resample(state._replace(opt_state=opt_state), p).opt_state
    paths = jax.tree_util.tree_leaves_with_path(opt_state)
    num_reset = 0
    for (path, old), now in zip(paths, jax.tree.leaves(new), strict=True):
        is_row = getattr(path[-1], "name", "") in NAMES
        if is_row:
            is_dead = DEAD.reshape(-1, *[1] * (old.ndim - 1))
            old, num_reset = jnp.where(is_dead, 0, old), num_reset + 1
        chex.assert_trees_all_equal(now, old)
        assert now.dtype == old.dtype
    assert (num_reset > 0) == (optimizer != "sgd")


@pytest.mark.parametrize("num_steps", range(7))
def test_it_acts_after_every_so_many_steps(num_steps):
    ae = MODELS["untied"]
    state, p = after(num_steps, ae)
    new = dead_latents.resample(every=3, ae=ae, dead_after=9)(state, p)
    is_changed = not np.array_equal(new.params.W_dec, state.params.W_dec)
    assert is_changed == (num_steps in (2, 5))
    if not is_changed:
        chex.assert_trees_all_equal(new._replace(key=0), state._replace(key=0))


def test_a_latent_is_dead_at_the_count_that_the_argument_says():
    ae = MODELS["untied"]
    state, p = after(9, ae)
    for dead_after, is_dead in ((2, DEAD | True), (9, DEAD), (10, DEAD & False)):
        resample = dead_latents.resample(every=10, ae=ae, dead_after=dead_after)
        new = resample(state, p)
        changed = (new.params.W_dec != state.params.W_dec).any(axis=1)
        np.testing.assert_array_equal(changed, is_dead)
    # By default that of `every`.
    default = dead_latents.resample(every=10, ae=ae)
    assert default == resample


def test_examples_are_drawn_in_proportion_to_the_squared_squared_error():
    ae = model(pre_bias=True)
    state, p = after(0, ae, (X[:4], X[:4]), dead=np.arange(H) == 3)
    errors = np.array([1.0, 2.0, 3.0, 0.0])
    p = p._replace(eta=p.targets.at[:, 0].add(np.sqrt(errors)))
    resample = dead_latents.resample(every=1, ae=ae, dead_after=9)

    def drawn(key):
        return resample(state._replace(key=key), p).params.W_dec[3]

    num_draws = 4000
    rows = jax.jit(jax.vmap(drawn))(jax.random.split(KEY, num_draws))
    directions = unit(X[:4] - np.asarray(state.params.b_dec))
    example = np.argmax(np.asarray(rows) @ directions.T, axis=1)
    frequencies = np.bincount(example, minlength=4) / num_draws
    expected = errors**2 / np.sum(errors**2)
    # Five standard deviations of a frequency are at most 0.04; errors ** 1 would be
    # 0.17, 0.33, 0.5.
    np.testing.assert_allclose(frequencies, expected, atol=0.04)
    assert frequencies[3] == 0


def test_each_resampling_draws_other_examples():
    ae = MODELS["untied"]
    _, p = after(0, ae)
    resample = dead_latents.resample(every=1, ae=ae, dead_after=9)
    drawn = {
        tuple(np.asarray(resample(after(i, ae)[0], p).params.W_dec[1]))
        for i in range(8)
    }
    assert len(drawn) > 2


def test_latents_beyond_the_examples_stay_dead_until_the_next_time():
    ae = MODELS["untied"]
    batch = X[:4].copy()
    batch[2] = 0  # has no direction
    state, p = after(0, ae, (batch, batch), dead=np.ones(H, bool))
    new = dead_latents.resample(every=1, ae=ae, dead_after=9)(state, p)
    np.testing.assert_array_equal(new.state["steps_since_active"], [0] * 3 + [9] * 5)
    for name in ("W_enc", "W_dec"):
        np.testing.assert_array_equal(
            getattr(new.params, name)[3:], getattr(state.params, name)[3:]
        )
    W_dec = np.asarray(new.params.W_dec[:3], np.float64)
    cosines = W_dec @ unit(X[:4]).T
    assert sorted(np.argmax(cosines, axis=1)) == [0, 1, 3]
    # None is alive, whose norms these would have.
    np.testing.assert_allclose(np.linalg.norm(W_dec, axis=1), 1, rtol=1e-6)
    norms = np.linalg.norm(new.params.W_enc[:3], axis=1)
    np.testing.assert_allclose(norms, 0.2, rtol=1e-6)


def test_a_batch_without_errors_revives_no_latent():
    ae = MODELS["untied"]
    state, p = after(0, ae)
    p = p._replace(eta=p.targets)
    new = dead_latents.resample(every=1, ae=ae, dead_after=9)(state, p)
    chex.assert_trees_all_equal(new._replace(key=0), state._replace(key=0))


def test_padding_never_revives_and_does_not_change_the_draws():
    ae = MODELS["untied"]
    state, p = after(0, ae, dead=DEAD | (np.arange(H) >= 6))
    resample = dead_latents.resample(every=1, ae=ae, dead_after=9)
    padded = resample(state, p._replace(mask=jnp.arange(H) < 6))
    changed = (padded.params.W_dec != state.params.W_dec).any(axis=1)
    np.testing.assert_array_equal(changed, DEAD & (np.arange(H) < 6))
    np.testing.assert_array_equal(
        padded.state["steps_since_active"], [2, 0, 2, 2, 0, 2, 9, 9]
    )
    whole = resample(state, p)  # more are dead, behind these
    np.testing.assert_array_equal(padded.params.W_dec[:6], whole.params.W_dec[:6])


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_parameters_keep_their_dtype(dtype):
    ae = MODELS["untied, pre-encoder bias"]
    with jax.enable_x64(dtype == "float64"):
        run = jaxae.train(
            counting(ae),
            X.astype(dtype),
            hparams=HPARAMS,
            key=KEY,
            params=dying(ae, dtype),
            config=config(after_update=dead_latents.resample(every=2, ae=ae)),
        )
        assert run.status == "finished"
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(run.params))
        assert np.asarray(run.params.b_enc > -9).all()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_under_vmap_each_state_draws_as_alone(impl):
    ae = MODELS["untied"]
    state, p = after(0, ae)
    keys = jax.random.split(jax.random.key(1, impl=impl), 3)
    resample = dead_latents.resample(every=1, ae=ae, dead_after=9)

    def rows(key):
        return resample(state._replace(key=key), p).params.W_dec

    chex.assert_trees_all_close(
        jax.vmap(rows)(keys), jnp.stack([rows(key) for key in keys]), rtol=1e-6
    )


# ---- in training ---------------------------------------------------------------------


def dying(ae, dtype="float32"):
    """Initial parameters of which every second latent never is active."""
    params = ae.init(KEY, dtype=dtype)
    is_dead = jnp.arange(H) % 2 == 0
    return params._replace(b_enc=jnp.where(is_dead, -10, params.b_enc).astype(dtype))


def dead_fraction(ae, params):
    Z = jax.vmap(ae.encode, (None, 0))(params, X)
    return np.mean(~(np.asarray(Z) != 0).any(axis=0))


@pytest.mark.parametrize(
    "tied, gradient",
    [
        (True, "autodiff"),
        (False, "manual"),
        pytest.param(True, "manual", marks=pytest.mark.slow),
        pytest.param(False, "autodiff", marks=pytest.mark.slow),
    ],
)
def test_dead_latents_revive_and_the_loss_is_lower(tied, gradient):
    ae = model(tied=tied, pre_bias=True)
    runs = [
        jaxae.train(
            counting(ae),
            X,
            hparams=HPARAMS,
            key=KEY,
            params=dying(ae),
            config=config(
                num_epochs=40,
                gradient=gradient,
                optimizer=optimizers.build("adam", unit_norm=True),
                after_update=after_update,
            ),
        )
        for after_update in (None, dead_latents.resample(every=20, ae=ae))
    ]
    fractions = [dead_fraction(ae, run.params) for run in runs]
    assert fractions[0] >= 0.5 and fractions[1] <= 0.125
    losses = [run.metrics["train/loss"][-1] for run in runs]
    assert losses[1] < 0.7 * losses[0]
    params = runs[1].params
    norms = np.linalg.norm(params.W if tied else params.W_dec, axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-6)


@pytest.mark.parametrize("tied", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_resumed_run_is_the_uninterrupted_one(tied, tmp_path):
    ae = model(tied=tied, pre_bias=True)
    resample = dead_latents.resample(every=4, ae=ae)
    arguments = {"hparams": HPARAMS, "key": KEY, "params": dying(ae)}
    objective, settings = counting(ae), {"after_update": resample}
    whole = jaxae.train(objective, X, config=config(**settings), **arguments)
    assert np.asarray(whole.params.b_enc > -9).all()  # it has resampled
    arguments["checkpoint_dir"] = tmp_path
    jaxae.train(objective, X, config=config(num_epochs=1, **settings), **arguments)
    resumed = jaxae.train(objective, X, config=config(**settings), **arguments)
    chex.assert_trees_all_equal(
        resumed.state._replace(key=0), whole.state._replace(key=0)
    )
    with pytest.raises(ValueError, match="after_update"):
        other = dead_latents.resample(every=3, ae=ae)
        jaxae.train(objective, X, config=config(after_update=other), **arguments)


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_lane_is_its_single_run(tied):
    ae = model(tied=tied)
    # By a batch of 2, some latents are not active; sgd does not follow roundings.
    settings = {"num_epochs": 1, "batch_size": 2, "optimizer": "sgd"}
    resample = dead_latents.resample(every=2, ae=ae, dead_after=1)
    swept = jaxae.sweep(
        counting(ae),
        X,
        {"latent_dim": [5, 8], "learning_rate": [0.01, 0.03]},
        hparams={n: v for n, v in HPARAMS.items() if n != "learning_rate"},
        key=KEY,
        config=config(**settings, after_update=resample),
        lanes_at_once=4,
    )
    for lane in range(4):
        trial = swept.trial(lane)
        run = jaxae.train(data=X, **trial)
        # A padded lane sums in another order: roundings of numbers of size 1.
        chex.assert_trees_all_close(swept.params(lane), run.params, atol=1e-5)
        plain = jaxae.train(data=X, **{**trial, "config": config(**settings)})
        assert np.ptp(run.params.b_dec - plain.params.b_dec) > 1e-3


# ---- records and errors --------------------------------------------------------------


def test_equal_arguments_give_an_equal_record_that_pickles_and_prints():
    ae = MODELS["untied"]
    one, two = (dead_latents.resample(every=5, ae=ae) for _ in range(2))
    assert one == two and hash(one) == hash(two)
    assert pickle.loads(pickle.dumps(one)) == one
    assert repr(one) == (
        f"Resample(every=5, ae={ae!r}, dead_after=5, encoder_scale=0.2)"
    )
    assert one != dead_latents.resample(every=5, ae=ae, encoder_scale=0.1)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"every": 0}, "every must be an integer of at least 1, got 0"),
        ({"dead_after": 1.5}, "dead_after must be an integer of at least 1, got 1.5"),
        ({"encoder_scale": 0}, "encoder_scale must be a positive number, got 0"),
        ({"encoder_scale": np.nan}, "encoder_scale must be a positive .*, got nan"),
        ({"encoder_scale": "a"}, "encoder_scale must be a positive .*, got 'a'"),
        ({"ae": None}, "ae must be a jaxae.Autoencoder, got None"),
    ],
)
def test_a_wrong_argument_is_an_error(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        dead_latents.resample(**{"every": 5, "ae": MODELS["untied"]} | arguments)


@pytest.mark.parametrize(
    "objective, optimizer, sentence",
    [
        (
            jaxae.Objective(MODELS["untied"]),
            "adam",
            r"objective must count .*; make it with Objective\(ae, dead_after=5\)",
        ),
        (
            counting(MODELS["untied"]),
            lambda hp: optax.flatten(optax.adam(hp["learning_rate"])),
            r"optimizer must have a state of scalars .* resets, got float32\[93\]; use",
        ),
        (
            counting(MODELS["untied"]),
            lambda hp: optax.adafactor(hp["learning_rate"], 1),
            r"optimizer must have .* got float32\[\d+\] for W_enc, float32\[8, 5\]",
        ),
    ],
)
def test_a_run_that_cannot_resample_is_an_error_before_any_work(
    objective, optimizer, sentence
):
    hparams = {**dict.fromkeys(objective.hparam_names, 0.0), "learning_rate": 0.1}
    resample = dead_latents.resample(every=5, ae=objective.ae)
    with pytest.raises(ValueError, match=sentence):
        jaxae.train(
            objective,
            X,
            hparams=hparams,
            key=KEY,
            config=config(optimizer=optimizer, after_update=resample),
            checkpoint_dir="never_made",
        )
