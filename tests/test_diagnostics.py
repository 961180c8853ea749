"""A model on a whole data set, and a step to come, against NumPy and scikit-learn."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import HPARAMS, prelu, scaled_gaussian
from sklearn.metrics import r2_score
from test_autoencoder import model

import jaxae
from jaxae import manual, metrics, optimizers, penalties
from jaxae.training import diagnostics, train_step

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.uniform(size=(500, 6)).astype("f4")
BINARY = np.round(X)
OBJECTIVE = jaxae.Objective(model(), penalties=(penalties.l1, penalties.contractive))


def start(objective, seed=0, **choices):
    params = objective.ae.init(jax.random.key(seed), **choices)
    return params._replace(b_enc=params.b_enc + 0.3, b_dec=params.b_dec - 0.2)


def evaluate(objective=OBJECTIVE, data=X, params=None, **choices):
    params = start(objective) if params is None else params
    return diagnostics.evaluate(objective, params, data, HPARAMS, **choices)


def passed(ae, params, inputs):
    """a, z, eta of every row, in NumPy's float64."""
    untied = [np.asarray(leaf, "f8") for leaf in jaxae.untie(params)[:4]]
    W_enc, W_dec, b_enc, b_dec = untied
    a = np.asarray(inputs, "f8") @ W_enc.T + b_enc
    g = {"sigmoid": lambda a: 1 / (1 + np.exp(-a)), "relu": lambda a: a * (a > 0)}
    z = g[ae.activation.name](a)
    return a, z, z @ W_dec + b_dec


# ---- a whole data set ----------------------------------------------------------------


@pytest.mark.parametrize("observation", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_every_metric_is_its_definition_in_float64(activation, observation):
    objective = jaxae.Objective(model(activation, observation))
    params = start(objective)
    params = params._replace(b_enc=jnp.array([0.0, 0.3, -9.0, 9.0]))
    found = evaluate(objective, BINARY, params, block_rows=64)
    a, z, eta = passed(objective.ae, params, BINARY)
    x_hat = 1 / (1 + np.exp(-eta)) if observation == "bernoulli" else eta
    squared_error = ((x_hat - BINARY) ** 2).sum(axis=1).mean()
    if observation == "bernoulli":
        log_prob = np.log(np.where(BINARY == 1, x_hat, 1 - x_hat)).sum(axis=1).mean()
        loss = -log_prob
    else:
        loss = squared_error / 2
        log_prob = -loss - 3 * np.log(2 * np.pi)
    slope = {"sigmoid": z * (1 - z), "relu": a > 0}[activation]
    expected = {
        "loss": loss,
        "reconstruction": loss,
        "squared_error": squared_error,
        "fvu": 1 - r2_score(BINARY, x_hat, multioutput="variance_weighted"),
        "log_prob": log_prob,
        "bits_per_dim": -log_prob / 6 / np.log(2),
        "l0": (z != 0).sum(axis=1).mean(),
        "dead_fraction": (z == 0).all(axis=0).mean(),
        "saturated_fraction": (abs(slope) < 0.01).all(axis=0).mean(),
    }
    assert list(found) == list(expected)
    assert all(type(value) is float for value in found.values())
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    assert 0 < found["saturated_fraction"] < 1


def test_one_block_is_what_the_objective_evaluates():
    params = start(OBJECTIVE)
    found = evaluate(params=params)
    for name, value in OBJECTIVE.evaluate(params, X, HPARAMS).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(
        found["fvu"],
        metrics.fvu(X, jax.vmap(OBJECTIVE.ae.reconstruct, (None, 0))(params, X)),
        rtol=1e-5,
    )


@pytest.mark.parametrize("block_rows", [1, 7, 100, 499])
@pytest.mark.parametrize("order", ["drawn", "sorted"])
def test_the_size_of_blocks_does_not_matter(block_rows, order):
    data = X + np.array([0, 1, 10, -100, 0, 0], "f4")  # means far from 0
    if order == "sorted":  # blocks of different means
        data = data[np.argsort(data[:, 0])]
    objective = jaxae.Objective(
        model("relu", "gaussian"), penalties=OBJECTIVE.penalties
    )
    whole = evaluate(objective, data)
    found = evaluate(objective, data, block_rows=block_rows)
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


def test_a_penalty_on_the_batch_is_its_mean_over_blocks_by_rows():
    objective = jaxae.Objective(model(), penalties=(penalties.kl_sparsity,))
    params = start(objective)
    found = evaluate(objective, X, params, block_rows=200)["kl_sparsity"]
    parts = [X[:200], X[200:400], X[400:]]
    values = [objective.evaluate(params, x, HPARAMS)["kl_sparsity"] for x in parts]
    np.testing.assert_allclose(found, np.average(values, weights=[200, 200, 100]), 1e-6)


def test_latents_are_dead_or_saturated_on_the_whole_set_or_not_at_all():
    """Each latent wakes for a few rows of one block."""
    objective = jaxae.Objective(model("relu", "gaussian"))
    params = start(objective)._replace(
        W=jnp.eye(4, 6), b_enc=jnp.full(4, -0.5), b_dec=jnp.zeros(6)
    )
    data = np.zeros((40, 6), "f4")
    data[[3, 15, 25], [0, 1, 2]] = 1.0
    found = evaluate(objective, data, params, block_rows=10)
    assert found["dead_fraction"] == found["saturated_fraction"] == 0.25
    np.testing.assert_allclose(found["l0"], 3 / 40, rtol=1e-6)


def test_corruption_is_left_out_and_needs_no_number():
    noisy = jaxae.Objective(
        OBJECTIVE.ae,
        corruption=jaxae.corruptions.masking,
        penalties=OBJECTIVE.penalties,
    )
    hparams = {name: HPARAMS[name] for name in ("l1", "contractive")}
    params = start(noisy)
    assert diagnostics.evaluate(noisy, params, X, hparams) == evaluate(params=params)


def test_pairs_score_the_targets():
    targets = 1 - X[:, ::-1]
    found = evaluate(data=(X, targets), block_rows=99)
    _, _, eta = passed(OBJECTIVE.ae, start(OBJECTIVE), X)
    x_hat = 1 / (1 + np.exp(-eta))
    expected = 1 - r2_score(targets, x_hat, multioutput="variance_weighted")
    np.testing.assert_allclose(found["fvu"], expected, rtol=1e-5)
    score = OBJECTIVE.evaluate(start(OBJECTIVE), (X, targets), HPARAMS)["loss"]
    np.testing.assert_allclose(found["loss"], score, rtol=1e-6)


def test_no_rows_and_unequal_pairs_are_rejected():
    with pytest.raises(ValueError, match="X must have rows.*, got 0 rows"):
        evaluate(data=X[:0])
    with pytest.raises(ValueError, match="as many targets as .*, got 10 and 15 rows"):
        evaluate(data=(X[:10], X[:15]), block_rows=10)


class Rows:
    """Has a length and gives rows for a slice, and nothing else."""

    def __init__(self, rows):
        self._rows, self.slices = rows, []

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        self.slices.append((rows.start, rows.stop))
        return self._rows[rows]


def test_rows_are_taken_by_slices_from_whatever_has_them(tmp_path):
    np.save(tmp_path / "x.npy", X)
    rows = Rows(X)
    expected = evaluate(block_rows=200)
    for data in (jnp.asarray(X), np.load(tmp_path / "x.npy", mmap_mode="r"), rows):
        assert evaluate(data=data, block_rows=200) == expected
    assert evaluate(data=(rows, Rows(X)), block_rows=200) == expected
    assert rows.slices[:3] == [(0, 200), (200, 400), (400, 600)]


def test_two_shapes_are_compiled_at_most_for_any_numbers():
    traces = []

    def loss(eta, x):
        traces.append(1)
        return jaxae.observations.bernoulli.loss(eta, x)

    counted = jaxae.observations.bernoulli._replace(
        name="counted", loss=loss, base_measure="none"
    )
    ae = jaxae.Autoencoder(input_dim=6, latent_dim=4, observation=counted)
    objective = jaxae.Objective(ae, penalties=(penalties.l1,))
    for seed, weight in [(0, 0.1), (1, 0.2)]:
        params = start(objective, seed)
        found = diagnostics.evaluate(objective, params, X, {"l1": weight}, block_rows=8)
    assert len(traces) == 2  # 62 blocks of 8 rows, and one of 4; four without a cache
    assert "log_prob" not in found and "bits_per_dim" not in found


def test_bits_only_where_every_row_can_occur():
    assert {"log_prob", "bits_per_dim"} <= evaluate(data=BINARY).keys()
    one_grey = BINARY.copy()
    one_grey[123, 4] = 0.5
    found = evaluate(data=one_grey, block_rows=50)
    assert not {"log_prob", "bits_per_dim"} & found.keys()
    assert math.isfinite(found["loss"])
    params = start(OBJECTIVE)
    np.testing.assert_allclose(
        evaluate(data=BINARY, params=params)["bits_per_dim"],
        metrics.bits_per_dim(OBJECTIVE.ae, params, BINARY),
        rtol=1e-6,
    )


def test_a_model_that_diverged_keeps_its_keys():
    objective = jaxae.Objective(model("identity", "gaussian"))
    params = start(objective)._replace(b_dec=jnp.full(6, 1e30))
    found = evaluate(objective, params=params)
    assert found["bits_per_dim"] == found["loss"] == math.inf


def test_what_is_learned_beside_weights_is_used():
    ae = jaxae.Autoencoder(
        input_dim=6, latent_dim=4, activation=prelu, observation=scaled_gaussian
    )
    objective = jaxae.Objective(ae)
    params = start(objective)._replace(observation=(jnp.full(6, -0.5),))
    found = evaluate(objective, params=params, block_rows=90)
    log_probs = jax.vmap(ae.log_prob, (None, 0))(params, X)
    np.testing.assert_allclose(found["log_prob"], log_probs.mean(), rtol=1e-5)
    assert "saturated_fraction" not in found  # prelu has no slope


@pytest.mark.parametrize("data", [X[:1], np.full((30, 6), 0.1, "f4")])
def test_no_variance_no_fraction_of_it(data):
    found = evaluate(data=data, block_rows=7)
    assert math.isnan(found.pop("fvu"))
    assert all(math.isfinite(value) for value in found.values())


def test_constant_columns_have_no_variance():
    data = X.copy()
    data[:, 2:] = 0.1
    found = evaluate(data=data, block_rows=77)
    x_hat = jax.vmap(OBJECTIVE.ae.reconstruct, (None, 0))(start(OBJECTIVE), data)
    variance = data[:, :2].astype("f8").var(axis=0).sum()
    residual = ((np.asarray(x_hat, "f8") - data) ** 2).sum(axis=1).mean()
    np.testing.assert_allclose(found["fvu"], residual / variance, rtol=1e-5)


def test_one_column():
    objective = jaxae.Objective(model("sigmoid", "gaussian", D=1, H=3))
    data = X[:, :1]
    _, _, eta = passed(objective.ae, start(objective), data)
    expected = 1 - r2_score(data, eta)
    found = evaluate(objective, data, block_rows=60)
    np.testing.assert_allclose(found["fvu"], expected, rtol=1e-5)


def test_half_precision_is_summed_in_float32():
    params = start(OBJECTIVE, dtype=jnp.bfloat16)
    data = np.tile(X, (20, 1))
    half = evaluate(data=data.astype(jnp.bfloat16), params=params)
    full = evaluate(
        data=data, params=jax.tree.map(lambda leaf: leaf.astype("f4"), params)
    )
    for name, value in full.items():
        np.testing.assert_allclose(half[name], value, rtol=5e-3, err_msg=name)
    again = evaluate(data=data.astype(jnp.bfloat16), params=params, block_rows=333)
    for name, value in half.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-6, err_msg=name)


def test_float64_inside_x64(x64):
    params = start(OBJECTIVE, dtype=jnp.float64)
    data = X.astype("f8") + 1e-9
    found = evaluate(data=data, params=params, block_rows=77)
    _, _, eta = passed(OBJECTIVE.ae, params, data)
    expected = 1 - r2_score(
        data, 1 / (1 + np.exp(-eta)), multioutput="variance_weighted"
    )
    np.testing.assert_allclose(found["fvu"], expected, rtol=1e-12)
    loss = (np.logaddexp(0, eta) - data * eta).sum(axis=1).mean()
    np.testing.assert_allclose(found["reconstruction"], loss, rtol=1e-12)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="block_rows must be an integer of at least 1"):
        evaluate(block_rows=0)
    with pytest.raises(ValueError, match=r"must have shape \[B, 6\]"):
        evaluate(data=X[:, :5])
    with pytest.raises(ValueError, match="hparams lacks l1, contractive"):
        diagnostics.evaluate(OBJECTIVE, start(OBJECTIVE), X, {})


def test_dead_latents_and_rows_that_are_all_the_same_are_told_of_at_the_end():
    config = jaxae.TrainConfig(num_epochs=1, batch_size=100)
    objective = jaxae.Objective(model("relu"))
    params = start(objective)
    dead = params._replace(b_enc=params.b_enc - 99)
    same = np.tile(X[:1], (len(X), 1))
    cases = {
        ("train data: all latents are dead",): (dead, X, None),
        (
            "train data: all rows are equal",
            "validation data: all rows are equal",
        ): (params, same, same),
    }
    hparams = {"learning_rate": 1e-3}
    for words, (params, rows, validation) in cases.items():
        with pytest.warns(RuntimeWarning) as caught:
            run = jaxae.train(
                objective,
                rows,
                hparams=hparams,
                key=KEY,
                config=config,
                params=params,
                validation=validation,
            )
        for word, warning in zip(words, caught, strict=True):
            sentence = str(warning.message)
            assert sentence.startswith(word) and "\n" not in sentence
        is_same = validation is not None
        assert math.isnan(run.metrics["train/fvu"][-1]) == is_same
        assert (run.metrics["train/dead_fraction"][-1] == 1) != is_same


# ---- a step --------------------------------------------------------------------------


def a_state(objective, optimizer, params=None, hparams=HPARAMS):
    params = start(objective) if params is None else params
    config = jaxae.TrainConfig(optimizer=optimizer)
    return train_step.init_state(objective, hparams, KEY, config=config, params=params)


def norms(objective, optimizer, state, batch, key, hparams):
    config = jaxae.TrainConfig(optimizer=optimizer)
    return diagnostics.step_norms(
        state, batch, key, hparams, objective=objective, config=config
    )


STEP_HPARAMS = {**HPARAMS, "learning_rate": 0.05}


@pytest.mark.parametrize("is_tied", [True, False])
def test_norms_are_those_of_the_step_that_training_makes(is_tied):
    objective = jaxae.Objective(
        model(tied=is_tied),
        corruption=jaxae.corruptions.masking,
        penalties=(penalties.l1, penalties.weight_decay),
    )
    state = a_state(objective, optimizers.adam, hparams=STEP_HPARAMS)
    found = norms(objective, optimizers.adam, state, X[:8], KEY, STEP_HPARAMS)
    params = state.params
    grads = jax.grad(objective, has_aux=True)(params, X[:8], KEY, STEP_HPARAMS)[0]
    updates, _ = optax.adam(0.05).update(grads, state.opt_state, params)
    p = objective.forward(params, X[:8], KEY, STEP_HPARAMS)
    paths = manual.batch_path_grads(objective, params, p)
    expected = {}
    for leaf in params._fields[:-2]:
        norm = np.linalg.norm(getattr(params, leaf))
        expected |= {
            f"gradient/{leaf}": np.linalg.norm(getattr(grads, leaf)),
            f"gradient/encoder/{leaf}": np.linalg.norm(getattr(paths.encoder, leaf)),
            f"gradient/decoder/{leaf}": np.linalg.norm(getattr(paths.decoder, leaf)),
            f"update_ratio/{leaf}": np.linalg.norm(getattr(updates, leaf)) / norm,
        }
    assert found.keys() == expected.keys()
    assert next(iter(found)) == f"gradient/{params._fields[0]}"  # the params' order
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-7)
    assert all(value.shape == () for value in found.values())


def test_paths_of_a_tied_step_add_up_as_vectors_do():
    found = norms(
        OBJECTIVE,
        optimizers.sgd,
        a_state(OBJECTIVE, optimizers.sgd, hparams=STEP_HPARAMS),
        X[:8],
        KEY,
        STEP_HPARAMS | {"contractive": 0.0},
    )
    encoder, decoder = found["gradient/encoder/W"], found["gradient/decoder/W"]
    assert abs(encoder - decoder) < found["gradient/W"] < encoder + decoder
    assert found["gradient/encoder/b_dec"] == found["gradient/decoder/b_enc"] == 0
    np.testing.assert_allclose(found["gradient/b_enc"], found["gradient/encoder/b_enc"])


def test_the_ratio_of_fresh_biases_is_1_and_of_nothing_0():
    objective = jaxae.Objective(model("relu", "gaussian"))
    params = objective.ae.init(KEY)  # whose biases are 0
    params = params._replace(W=jnp.zeros_like(params.W))  # no z: no gradient but b_dec
    with jax.debug_nans(True):
        found = norms(
            objective,
            optimizers.sgd,
            a_state(objective, optimizers.sgd, params, STEP_HPARAMS),
            X[:8],
            KEY,
            STEP_HPARAMS,
        )
    assert found["update_ratio/b_dec"] == 1
    assert found["update_ratio/W"] == found["update_ratio/b_enc"] == 0


def test_a_step_of_what_was_built_learned_and_is_of_half_precision():
    ae = jaxae.Autoencoder(
        input_dim=6, latent_dim=4, activation=prelu, observation=scaled_gaussian
    )
    objective, hparams = jaxae.Objective(ae), {"learning_rate": 0.1, "max_norm": 1.0}
    optimizer = optimizers.build("adam", clip=True)
    params = start(objective, dtype=jnp.bfloat16)
    state = a_state(objective, optimizer, params, hparams)
    batch = jnp.asarray(X[:8], jnp.bfloat16)
    found = norms(objective, optimizer, state, batch, None, hparams)
    assert {"gradient/activation/0", "update_ratio/observation/0"} <= found.keys()
    assert {value.dtype.name for value in found.values()} == {"float32"}
    assert np.isfinite(list(found.values())).all()


def test_a_step_is_traced_once_for_any_numbers():
    traces = []

    def optimizer(hparams):
        traces.append(1)
        return optax.sgd(hparams["learning_rate"])

    state = a_state(OBJECTIVE, optimizers.sgd, hparams=STEP_HPARAMS)
    for rate in (0.1, 0.2):
        hparams = {**STEP_HPARAMS, "learning_rate": rate}
        norms(OBJECTIVE, optimizer, state, X[:8], KEY, hparams)
    assert len(traces) == 1
