import pathlib
import re
import traceback
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from judges import assert_falls
from sklearn.decomposition import PCA
from test_autoencoder import model

import jaxae
from jaxae import optimizers, penalties, training
from jaxae.autoencoder import model as autoencoder_model
from jaxae.training import batches, checks, diagnostics, train_step, trainer
from jaxae.training.checkpointing import fingerprint
from jaxae.training.config import settings

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.uniform(size=(50, 6)).astype("f4")
OBJECTIVE = jaxae.Objective(model())
HPARAMS = {"learning_rate": 0.01}


def config(**changes):
    """Without diagnostics, which take as long to compile as training itself."""
    settings = {"num_epochs": 3, "batch_size": 8, "diagnostics": False, **changes}
    return jaxae.TrainConfig(**settings)


def train(objective=OBJECTIVE, data=X, **changes):
    arguments = {"hparams": HPARAMS, "key": KEY, "config": config(), **changes}
    return jaxae.train(objective, data, **arguments)


# ---- what training is ----------------------------------------------------------------


def test_training_is_deterministic_and_reports_one_entry_an_epoch():
    settings = config(diagnostics=True)
    first, second = (train(validation=X[:9], config=settings) for _ in range(2))
    chex.assert_trees_all_equal(first.params, second.params)
    scores = {"squared_error", "fvu", "l0", "dead_fraction", "saturated_fraction"}
    leaves = {"W", "b_enc", "b_dec"}
    paths = {f"{path}/{leaf}" for path in ("encoder", "decoder") for leaf in leaves}
    assert set(first.metrics) == {
        *(f"train/{name}" for name in {"loss", "reconstruction", *scores}),
        *(f"validation/{name}" for name in {"loss", "reconstruction", *scores}),
        *(f"gradient/{name}" for name in leaves | paths),
        *(f"update_ratio/{name}" for name in leaves),
    }
    plain = train()
    assert set(plain.metrics) == {"train/loss", "train/reconstruction"}
    chex.assert_trees_all_equal(plain.params, first.params)
    assert all(values.shape == (3,) for values in first.metrics.values())
    assert isinstance(first.metrics["train/loss"], np.ndarray)
    assert first.status == "finished" and first.stopped_at is None
    assert first.state.step == 3 * (50 // 8)  # the last partial batch is dropped
    expected = OBJECTIVE.evaluate(first.params, X[:9], HPARAMS)
    np.testing.assert_allclose(
        first.metrics["validation/loss"][-1], expected["loss"], rtol=1e-6
    )


def test_an_epoch_is_the_steps_that_the_equations_say():
    """Replayed in a Python loop with optax, from the definition."""
    init_key, data_key = jax.random.split(KEY)
    params = OBJECTIVE.ae.init(init_key)
    optimizer = optax.adam(0.01)
    opt_state, losses = optimizer.init(params), []
    order_key, _ = jax.random.split(jax.random.fold_in(data_key, 0))
    order = np.argsort(jax.random.bits(order_key, (50,), np.uint32), kind="stable")
    for i in range(6):
        batch = X[order[8 * i : 8 * i + 8]]
        loss, grads = jax.value_and_grad(
            lambda p, batch=batch: jax.vmap(OBJECTIVE.ae.loss, (None, 0))(
                p, batch
            ).mean()
        )(params)
        losses.append(loss)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    run = train(config=config(num_epochs=1))
    chex.assert_trees_all_close(run.params, params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run.metrics["train/loss"][0], np.mean(losses), rtol=1e-5)


def test_each_epoch_visits_every_row_once():
    seen = []

    def spy(key, x, rate):
        jax.debug.callback(lambda x: seen.append(x), x, ordered=False)
        return x

    corruption = jaxae.corruptions.Corruption("spy", spy)
    objective = jaxae.Objective(model(), corruption=corruption)
    hparams = {**HPARAMS, "corruption_rate": 0.0}
    settings = config(num_epochs=2)
    train(objective, X[:48], hparams=hparams, config=settings)
    jax.effects_barrier()
    rows = [tuple(np.ravel(row)) for row in seen]
    assert len(rows) == 96
    assert set(rows) == {tuple(row) for row in X[:48]}


@pytest.mark.parametrize(
    "dtype, rtol, is_tied",
    [
        ("float64", 1e-9, False),
        ("float32", 2e-3, True),
        pytest.param("float64", 1e-9, True, marks=pytest.mark.slow),
        pytest.param("float32", 2e-3, False, marks=pytest.mark.slow),
    ],
)
def test_manual_and_autodiff_follow_one_trajectory_for_200_steps(
    is_tied, dtype, rtol, digits
):
    """To 1e-9 in float64; in float32 to 2e-3, rounding amplified by 200 Adam steps."""
    objective = jaxae.Objective(
        model(D=64, H=16, tied=is_tied),
        corruption=jaxae.corruptions.masking,
        penalties=(penalties.l1, penalties.contractive, penalties.weight_decay),
    )
    hparams = {
        "learning_rate": 3e-3,
        "corruption_rate": 0.2,
        "l1": 0.01,
        "contractive": 0.01,
        "weight_decay": 1e-4,
    }
    with jax.enable_x64(dtype == "float64"):
        params = objective.ae.init(KEY, dtype=dtype)
        runs = [
            train(
                objective,
                digits[:400],
                hparams=hparams,
                params=params,
                config=config(num_epochs=4, gradient=gradient),
            )
            for gradient in ("autodiff", "manual")
        ]
        assert runs[0].state.step == 200
        assert runs[0].params.b_dec.dtype == dtype
        for leaf, expected in zip(*(jax.tree.leaves(run.params) for run in runs)):
            scale = np.abs(expected).max()
            np.testing.assert_allclose(leaf, expected, rtol=0, atol=rtol * scale)
    np.testing.assert_allclose(
        runs[0].metrics["train/loss"], runs[1].metrics["train/loss"], rtol=rtol
    )


def test_a_linear_autoencoder_reaches_the_pca_subspace(digits):
    """Baldi and Hornik, 1989: the optimum projects on the leading components."""
    D, H = 10, 3
    data = digits @ np.linalg.qr(RNG.normal(size=(64, D)))[0].astype("f4")
    data = data - data.mean(axis=0)
    objective = jaxae.Objective(model("identity", "gaussian", D=D, H=H, tied=False))
    run = jaxae.train(
        objective,
        data,
        hparams={"learning_rate": 1e-2},
        key=KEY,
        config=config(num_epochs=60, batch_size=256),
    )
    fine = jaxae.train(
        objective,
        data,
        hparams={"learning_rate": 1e-3},
        key=KEY,
        params=run.params,
        config=config(num_epochs=1000, batch_size=len(data)),
    )
    pca = PCA(H).fit(data)
    decoder = np.linalg.qr(np.asarray(fine.params.W_dec).T)[0]
    cosines = np.linalg.svd(pca.components_ @ decoder, compute_uv=False)
    assert cosines.min() > 0.999
    score = float(objective.evaluate(fine.params, data, {})["squared_error"])
    best = ((pca.inverse_transform(pca.transform(data)) - data) ** 2).sum(axis=1).mean()
    assert best * (1 - 1e-4) <= score <= best * 1.01


# ---- one program ---------------------------------------------------------------------


def count_traces(monkeypatch):
    traces, checked = [], train_step._checked

    def counted(*arguments):
        traces.append(1)
        return checked(*arguments)

    monkeypatch.setattr(train_step, "_checked", counted)
    trainer._run_steps.clear_cache()
    return traces


@pytest.mark.parametrize("gradient", ["autodiff", "manual"])
def test_few_calls_lead_from_train_to_the_matrix_product(gradient, monkeypatch):
    """Each frame is one more function that a reader has to open."""
    package = str(pathlib.Path(jaxae.__file__).parent)
    product, paths = autoencoder_model.product, []

    def traced(*arguments, **keywords):
        frames = traceback.extract_stack()
        paths.append([f.name for f in frames if f.filename.startswith(package)])
        return product(*arguments, **keywords)

    monkeypatch.setattr(autoencoder_model, "product", traced)
    trainer._run_steps.clear_cache()
    train(config=config(num_epochs=1, gradient=gradient))
    path = next(path for path in paths if "one_step" in path)
    assert path[0] == "train" and path[-1] == "encoder_pre_acts"
    assert len(path) <= 10, path


def test_one_trace_for_any_hparams_key_and_number_of_epochs(monkeypatch):
    traces = count_traces(monkeypatch)
    for num_epochs, rate, seed in [(1, 0.1, 0), (4, 0.01, 1), (2, 1e-4, 2)]:
        train(
            hparams={"learning_rate": rate},
            key=jax.random.key(seed),
            config=config(num_epochs=num_epochs),
        )
    assert len(traces) == 1
    train(config=config(batch_size=9))
    train(config=config(optimizer=optimizers.sgd))
    assert len(traces) == 3


def test_few_programs_are_compiled_before_the_first_step(monkeypatch, caplog):
    """Each takes as long as thousands of steps; operations outside jit are programs.

    No other test has these sizes, so only scalars may be compiled already.
    """

    class FirstStep(Exception):
        pass

    def run_steps(*arguments, **keywords):
        raise FirstStep

    monkeypatch.setattr(trainer, "_run_steps", run_steps)
    ae = jaxae.Autoencoder(input_dim=13, latent_dim=17)
    data = np.random.default_rng(1).uniform(size=(19, 13)).astype("f4")
    with jax.log_compiles(), pytest.raises(FirstStep):
        train(jaxae.Objective(ae), data, config=config(diagnostics=True))
    programs = re.findall(r"XLA compilation of jit\((\w+)\)", caplog.text)
    # The initial state, the bits of the order, and what moves scalars to the device.
    assert {"_init_state", "order_bits"} <= set(programs) and len(programs) <= 8, (
        programs
    )


@pytest.mark.parametrize("gradient", ["autodiff", "manual"])
def test_a_loss_that_is_infinite_between_logged_steps_stops_the_run(gradient):
    """Its gradient is finite; the loss of every step is checked."""
    bernoulli = jaxae.observations.bernoulli

    def loss(eta, x):
        return bernoulli.loss(eta, x) + jnp.where(x[0] > 0.99, jnp.inf, 0.0)

    ae = jaxae.Autoencoder(
        input_dim=6,
        latent_dim=4,
        observation=bernoulli._replace(name="spiked", loss=loss),
    )
    objective, hparams = jaxae.Objective(ae), {"learning_rate": 0.1}
    settings = config(num_epochs=1, batch_size=8, gradient=gradient, log_every=6)
    state = training.init_state(objective, hparams, KEY, config=settings)
    order = np.asarray(batches.order_of(state.key, 0, 48))
    data = np.full((48, 6), 0.5, np.float32)
    data[order[-1], 0] = 1  # in the last of six steps, of which the first is logged
    with pytest.warns(RuntimeWarning, match="The loss of row .* is not finite"):
        run = jaxae.train(objective, data, hparams=hparams, key=KEY, config=settings)
    assert run.stopped_at == 5


def test_log_every_averages_the_steps_that_logged():
    runs = [
        train(config=config(gradient=gradient, log_every=4))
        for gradient in ("manual", "autodiff")
    ]
    np.testing.assert_allclose(
        runs[0].metrics["train/loss"], runs[1].metrics["train/loss"], rtol=1e-5
    )
    # Another program, which a compiler may round differently.
    every = train(config=config(log_every=1)).params
    chex.assert_trees_all_close(every, runs[1].params, rtol=1e-5, atol=1e-6)


def test_epoch_is_pure_and_vmaps():
    hparams = checks.as_hparams(HPARAMS, jnp.float32)
    state = training.init_state(OBJECTIVE, hparams, KEY, config=config())

    def epoch(state, hparams):
        return training.epoch(
            state, hparams, jnp.asarray(X), objective=OBJECTIVE, config=config()
        )

    once, metrics = jax.jit(epoch)(state, hparams)
    twice, _ = jax.jit(epoch)(state, hparams)
    chex.assert_trees_all_equal(once, twice)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), (state, hparams))
    lanes, lane_metrics = jax.jit(jax.vmap(epoch))(*stacked)
    for lane in range(2):
        chex.assert_trees_all_close(
            jax.tree.map(
                lambda leaf, lane=lane: leaf[lane], (lanes.params, lane_metrics)
            ),
            (once.params, metrics),
            rtol=1e-4,
            atol=1e-6,
        )


# ---- initial params, data, callbacks -------------------------------------------------


def test_epoch_rejects_a_batch_larger_than_the_data():
    hparams = checks.as_hparams(HPARAMS, "float32")
    state = training.init_state(OBJECTIVE, hparams, KEY, config=config())
    with pytest.raises(ValueError, match="batch_size must be .*, got 8 for 7"):
        training.epoch(state, hparams, X[:7], objective=OBJECTIVE, config=config())


def test_after_update_is_checked_in_the_dtype_of_the_params():
    params = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), OBJECTIVE.ae.init(KEY))

    def after_update(state, p):
        b_dec = jnp.ones_like(params.b_dec)
        return state._replace(params=state.params._replace(b_dec=b_dec))

    settings_ = config(after_update=after_update, num_epochs=1)
    run = train(params=params, config=settings_)
    assert run.params.b_dec.dtype == jnp.bfloat16 and (run.params.b_dec == 1).all()


def test_initial_params_are_copied_and_not_donated():
    params = OBJECTIVE.ae.init(KEY)
    before = jax.tree.map(np.array, params)
    run = train(params=params)
    chex.assert_trees_all_equal(jax.tree.map(np.array, params), before)
    more = train(params=run.params)
    assert more.metrics["train/loss"][-1] < run.metrics["train/loss"][-1]
    assert np.isfinite(run.params.W).all()  # still alive


def test_untied_params_that_share_a_buffer_train():
    params = OBJECTIVE.ae.init(KEY)
    shared = jaxae.UntiedParams(params.W, params.W, params.b_enc, params.b_dec)
    run = train(jaxae.Objective(model(tied=False)), params=shared)
    assert run.status == "finished"


def test_pairs_of_inputs_and_targets():
    run = train(data=(X, 1 - X), validation=(X, 1 - X))
    plain = train()
    assert not np.allclose(run.params.b_dec, plain.params.b_dec)
    assert_falls(run.metrics["validation/loss"])


def test_training_on_a_source():
    def source(key, hparams):
        return jax.random.uniform(key, (8, 6)) * hparams["height"]

    run = train(
        data=source,
        hparams={**HPARAMS, "height": 0.5},
        config=config(steps_per_epoch=20),
    )
    assert run.state.step == 60
    assert_falls(run.metrics["train/loss"])
    with pytest.raises(
        ValueError, match="steps_per_epoch must be set if data is a source"
    ):
        train(data=source, hparams={**HPARAMS, "height": 0.5})
    # Lists stand for arrays, also among the rows that metrics are of.
    listed = diagnostics.probe(lambda key, hparams: [[0.5] * 6, [1.0] * 6], KEY, {})
    assert listed.shape[1] == 6 and jnp.ndim(listed) == 2
    with pytest.raises(ValueError, match="lacks height"):
        train(data=source, config=config(steps_per_epoch=2))


def test_on_epoch_sees_each_epoch_and_can_stop():
    seen = []

    def on_epoch(metrics, state):
        seen.append((metrics["train/loss"], int(state.step)))
        return len(seen) == 2

    run = train(on_epoch=on_epoch)
    assert run.status == "stopped" and len(run.metrics["train/loss"]) == 2
    assert [step for _, step in seen] == [6, 12]


@pytest.mark.parametrize("array", [np.zeros(3), jnp.zeros(3)], ids=["numpy", "jax"])
def test_on_epoch_must_return_one_truth_value(array):
    with pytest.raises(ValueError, match=r"on_epoch must return .*got float\d\d\[3\]"):
        train(on_epoch=lambda metrics, state: array)
    run = train(on_epoch=lambda metrics, state: state.step >= 12)
    assert run.status == "stopped" and run.state.step == 12


@pytest.mark.parametrize("name", optimizers.CATALOGUE)
def test_every_optimizer_trains_with_traced_numbers(name):
    extra = {"momentum": {"momentum": 0.9}, "adamw": {"adamw_decay": 0.01}}
    run = train(
        hparams={"learning_rate": 0.003, **extra.get(name, {})},
        config=config(optimizer=optimizers.get(name), num_epochs=5),
    )
    assert_falls(run.metrics["train/loss"])


def test_a_custom_optimizer():
    def clipped(hp):
        return optax.chain(
            optax.clip_by_global_norm(hp["clip"]), optax.adam(hp["learning_rate"])
        )

    run = train(hparams={**HPARAMS, "clip": 1.0}, config=config(optimizer=clipped))
    assert run.status == "finished"
    with pytest.raises(ValueError, match="lacks clip"):
        train(config=config(optimizer=clipped))

    def optional(hp):
        return optax.sgd(hp["learning_rate"], momentum=hp.get("m", 0.0))

    assert train(config=config(optimizer=optional)).status == "finished"
    hparams = {**HPARAMS, "m": 0.5}
    assert train(hparams=hparams, config=config(optimizer=optional)).state.step == 18


def test_a_traced_momentum_does_not_promote_a_half_precision_state():
    run = train(
        params=OBJECTIVE.ae.init(KEY, dtype="bfloat16"),
        hparams={"learning_rate": 0.01, "momentum": 0.9},
        config=config(optimizer=optimizers.momentum),
    )
    assert run.status == "finished" and run.params.W.dtype == "bfloat16"


@pytest.mark.parametrize(
    "dtype, gradient",
    [
        pytest.param("float16", "manual", marks=pytest.mark.float16),
        ("bfloat16", "autodiff"),
        pytest.param("bfloat16", "manual", marks=pytest.mark.slow),
    ],
)
def test_low_precision_parameters_stay_in_their_dtype(dtype, gradient):
    params = OBJECTIVE.ae.init(KEY, dtype=dtype)
    run = train(
        params=params,
        hparams={"learning_rate": 0.05},
        config=config(gradient=gradient, optimizer=optimizers.sgd),
    )
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(run.params))
    assert_falls(run.metrics["train/loss"])


# ---- divergence ----------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["autodiff", "manual"])
def test_a_diverging_run_stops_at_the_finite_state_before_the_failing_step(gradient):
    objective = jaxae.Objective(model("identity", "gaussian"))
    arguments = {"hparams": {"learning_rate": 1e12}}
    settings = {"optimizer": optimizers.sgd, "gradient": gradient}
    with pytest.warns(RuntimeWarning, match="stopped at step"):
        run = train(objective, config=config(**settings), **arguments)
    assert run.status == "diverged" and len(run.metrics["train/loss"]) == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.params))
    assert 0 < run.stopped_at < 6
    assert np.isfinite(run.metrics["train/loss"]).all()  # the steps that held

    # One step at a time reaches the same state: nothing after the failure counts.
    replay = training.init_state(
        objective,
        checks.as_hparams(arguments["hparams"], "float32"),
        KEY,
        config=config(**settings),
    )
    order_key, noise_key = jax.random.split(jax.random.fold_in(replay.key, 0))
    order = np.argsort(jax.random.bits(order_key, (50,), np.uint32), kind="stable")
    for i in range(run.stopped_at + 1):
        before = replay.params
        replay, _, is_finite = training.step(
            replay,
            X[order[8 * i : 8 * i + 8]],
            jax.random.fold_in(noise_key, i),
            arguments["hparams"],
            objective=objective,
            config=config(**settings),
        )
        assert is_finite == (i < run.stopped_at)
    chex.assert_trees_all_close(run.params, before, rtol=1e-4)
    chex.assert_trees_all_equal(replay.params, before)


def test_an_epoch_after_a_failing_step_changes_nothing():
    hparams, settings = {"learning_rate": jnp.float32(0.1)}, config()
    static = {"objective": OBJECTIVE, "config": settings}
    state = training.init_state(OBJECTIVE, hparams, KEY, config=settings)
    stopped = state._replace(stopped_at=state.step)
    after, metrics = training.epoch(stopped, hparams, X, **static)
    chex.assert_trees_all_equal(
        after._replace(key=None), stopped._replace(key=None, step=after.step)
    )
    assert np.isnan(metrics["loss"])  # the mean over no steps


def test_a_run_that_converges_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train()


# ---- bad input, before any work ------------------------------------------------------


def bad(value, row=3, column=2):
    data = X.copy()
    data[row, column] = value
    return data


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"data": bad(np.nan)}, "data must be finite.*row 3, column 2"),
        ({"data": bad(-np.inf)}, "data must be finite.*row 3, column 2"),
        ({"data": bad(1.5)}, r"\[0, 1\] for bernoulli, found 1.5 at row 3, column 2"),
        ({"data": (255 * X).astype("u1")}, "floating point, got uint8.*X / 255"),
        ({"data": X.astype(complex)}, "real floating point, got complex"),
        ({"data": X[0]}, r"reshape one example by X\[None\], one column"),
        ({"data": X[:0]}, r"N and D >= 1"),
        (
            {"data": X[:, :5]},
            r"must have 6 columns for this model, got shape \[50, 5\]",
        ),
        (
            {"data": "digits"},
            r"must hold numbers, got 'digits'; read a file with jaxae.data.load",
        ),
        ({"data": [X[0], X[1, :3]]}, "data gave no rows"),
        ({"data": (X, X[1:])}, "inputs and targets of equal length"),
        ({"validation": bad(np.nan)}, "validation must be finite"),
        ({"validation": X[:0]}, "validation must be"),
        ({"config": config(batch_size=51)}, "batch_size must be at most.*51 for 50"),
        ({"hparams": {}}, "hparams lacks learning_rate; .* read: learning_rate"),
        (
            {"hparams": {"learning_rat": 0.1}},
            "lacks learning_rate and has learning_rat, which nothing reads",
        ),
        ({"hparams": {**HPARAMS, "l1": 0.1}}, "has l1, which nothing reads"),
        ({"hparams": {"learning_rate": np.nan}}, "must be a finite number, got nan"),
        ({"hparams": {"learning_rate": -0.1}}, "must be at least 0, got -0.1"),
        ({"hparams": {"learning_rate": "fast"}}, "must be a finite number, got 'fast'"),
        (
            {"hparams": {"learning_rate": [0.1]}},
            r"must be a finite number, got \[0.1\]",
        ),
        ({"hparams": {"learning_rate": True}}, "must be a finite number, got True"),
        ({"hparams": {"learning_rate": 1e200}}, "must be a finite number, got 1e"),
        ({"hparams": None}, "hparams must be a dict of numbers, got None"),
        ({"data": (X, X, X)}, "a pair .*got a tuple of 3"),
        ({"data": jaxae.data.digits()}, "for a Dataset, pass its .train"),
        ({"validation": bad(2.0)}, r"validation must be in \[0, 1\]"),
        (
            {"config": config(steps_per_epoch=3)},
            "steps_per_epoch must be None .* got 3",
        ),
        ({"config": config(optimizer=optax.adam)}, "optimizer must be a function"),
        (
            {"config": config(optimizer=lambda hp: hp["learning_rate"])},
            "must return an",
        ),
        ({"on_epoch": "x"}, "on_epoch must be a function, got 'x'"),
        (
            {"params": OBJECTIVE.ae.init(KEY)._replace(b_enc=jnp.full(4, jnp.nan))},
            "params.b_enc must be finite",
        ),
        (
            {
                "objective": jaxae.Objective(model(observation="gaussian")),
                "data": X.astype(float) * 1e300,
            },
            "data overflows float32",
        ),
        (
            {
                "objective": jaxae.Objective(
                    model(), penalties=(penalties.kl_sparsity,)
                ),
                "hparams": {**HPARAMS, "kl_sparsity": 1, "kl_sparsity_target": 0},
            },
            r"kl_sparsity_target'\] must be above 0 and below 1, got 0.0",
        ),
        ({"key": 0}, "key must be one JAX random key, got 0"),
        ({"config": 3}, "config must be a jaxae.TrainConfig, got 3"),
        ({"objective": model()}, r"make one with jaxae.Objective\(ae\)"),
        ({"params": jaxae.untie(OBJECTIVE.ae.init(KEY))}, "must be TiedParams"),
        ({"params": model(H=3).init(KEY)}, "params.W must have shape"),
    ],
)
def test_bad_input_raises_one_sentence_before_any_work(changes, sentence, monkeypatch):
    monkeypatch.setattr(trainer, "execute", lambda *_: pytest.fail("worked"))
    with pytest.raises(ValueError, match=sentence) as error:
        train(**changes)
    assert "\n" not in str(error.value)


class Unhashable:
    __hash__ = None

    def __call__(self, *arguments):
        return optax.sgd(0.1)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"num_epochs": 0}, "num_epochs must be an integer of at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be an integer of at least 1, got -1"),
        ({"log_every": 1.5}, "log_every must be an integer of at least 1, got 1.5"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be an integer"),
        ({"gradient": "magic"}, "'autodiff' or 'manual', got 'magic'"),
        ({"gradient": np.ones(2)}, "'autodiff' or 'manual', got array"),
        ({"optimizer": 3}, "optimizer must be a function.*got 3"),
        ({"optimizer": Unhashable()}, "optimizer must be hashable, got .*frozen"),
        ({"after_update": Unhashable()}, "after_update must be hashable, got .*frozen"),
    ],
)
def test_config_rejects_bad_values(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        config(**changes)


OTHER_SETTINGS = {
    "num_epochs": 7,
    "batch_size": 5,
    "optimizer": optimizers.sgd,
    "gradient": "manual",
    "log_every": 2,
    "steps_per_epoch": 9,
    "after_update": lambda state, p: state,
    "on_nonfinite": "skip",
    "diagnostics": False,
    "monitor": "train/loss",
    "patience": 3,
    "checkpoint_steps": 4,
    "checkpoint_minutes": 1.5,
    "keep_checkpoints": 6,
    "memory_budget": 1000,
}


def test_every_field_of_the_config_is_a_setting():
    """Each says whether it is compiled in, and whether the fingerprint has it."""
    assert list(settings()) == list(OTHER_SETTINGS)
    plain = jaxae.TrainConfig()
    for name, about in settings().items():
        other = jaxae.TrainConfig(**{name: OTHER_SETTINGS[name]})
        assert other != plain
        assert (other.compiled() != plain.compiled()) == about.in_program, name
        prints = [
            fingerprint(OBJECTIVE, c, {}, KEY, None, X, None) for c in (plain, other)
        ]
        assert (prints[0] == prints[1]) == about.may_change_on_resume, name
        assert not (about.in_program and about.may_change_on_resume), name
        for choice in about.choices or ():
            assert getattr(jaxae.TrainConfig(**{name: choice}), name) == choice


def test_a_setting_is_checked_under_the_name_that_the_user_knows():
    with pytest.raises(ValueError, match="^--batch-size must be an integer of at"):
        settings()["batch_size"].check("--batch-size", 0)
    assert type(jaxae.TrainConfig(batch_size=np.int64(3)).batch_size) is int


def test_unknown_optimizer_lists_the_known():
    with pytest.raises(ValueError, match="one of adam, adamw.*did you mean 'adam'"):
        optimizers.get("adm")


@pytest.mark.parametrize("num_rows", [1, 2, 7, 1000])
def test_an_order_is_a_permutation_equal_on_host_and_device(num_rows):
    bits = batches.order_bits(KEY, 3, num_rows)
    order = np.asarray(batches.order_of(KEY, 3, num_rows))
    assert sorted(order) == list(range(num_rows))
    np.testing.assert_array_equal(order, batches.fast_argsort(bits))
    # Equal bits: the rows stay in order, on host and device.
    equal = np.repeat(np.array([2**32 - 1, 0, 7], np.uint32), 5)
    on_device = batches.argsort(jnp.asarray(equal))
    on_host = batches.fast_argsort(equal)
    np.testing.assert_array_equal(on_device, on_host)
    assert list(on_host[:5]) == list(range(5, 10))


def test_orders_are_uniform():
    keys = jax.random.split(KEY, 6000)
    orders = jax.vmap(lambda key: batches.order_of(key, 0, 5))(keys)
    counts = (np.asarray(orders)[:, :, None] == np.arange(5)).sum(axis=0)
    assert np.abs(counts - 1200).max() < 5 * np.sqrt(1200 * 0.8)


@pytest.mark.parametrize("name", ["prodigy", "dog"])
def test_an_optimizer_whose_state_holds_the_params_trains(name):
    def optimizer(hparams):
        return getattr(optax.contrib, name)(hparams["learning_rate"])

    params = OBJECTIVE.ae.init(KEY)
    run = train(config=config(optimizer=optimizer), params=params)
    assert run.status == "finished"
    assert np.isfinite(params.b_dec).all()  # still there: training donates copies
