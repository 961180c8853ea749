"""Every part x every promise of the design."""

import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import (
    ACTIVATIONS,
    CORRUPTIONS,
    HPARAMS,
    OBSERVATIONS,
    PENALTIES,
    batch,
    build,
    covering_pairs,
    each_alone,
    full_product,
    hparams_of,
    prelu,
    row_id,
    scaled_gaussian,
)
from judges import DERIVATIVES, judge_objective, moved, reports_on

import jaxae

ALONE, PAIRS, ALL = list(each_alone()), covering_pairs(), list(full_product())
KEY = jax.random.key(0)


def rows(rows, slow=()):
    """A test of each of these rows, and of the slow ones where slow tests run."""
    known = {row_id(row) for row in rows}
    more = [row for row in slow if row_id(row) not in known]
    marked = [pytest.param(row, marks=pytest.mark.slow) for row in more]
    return pytest.mark.parametrize("row", [*rows, *marked], ids=row_id)


def unique(*lists):
    return list({row_id(row): row for rows in lists for row in rows}.values())


def test_covering_array_covers_every_pair_with_few_rows():
    def pairs(rows):
        return {
            (one, other) for row in rows for one in row.items() for other in row.items()
        }

    assert pairs(PAIRS) == pairs(ALL)
    assert len(PAIRS) < len(ALL) / 5


def start(objective, dtype=jnp.float32):
    return moved(objective.ae.init(KEY, dtype=dtype))


# ---- the hand gradient ---------------------------------------------------------------


def hand_gradient_is_right(row):
    objective = build(row)
    hparams = hparams_of(objective)
    params, X = start(objective, jnp.float64), batch(dtype=jnp.float64)
    arguments = (params, (X, X[::-1]), KEY, hparams)
    judge_objective(objective, *arguments)
    (by_hand, aux), grads = jaxae.manual.value_and_grad(objective)(*arguments)
    expected = jax.value_and_grad(objective, has_aux=True)(*arguments)
    assert type(grads) is type(params)
    np.testing.assert_array_equal(by_hand, expected[0][0])
    chex.assert_trees_all_equal(aux, expected[0][1])
    chex.assert_trees_all_close(grads, expected[1], rtol=1e-12, atol=1e-14)
    chex.assert_trees_all_equal_dtypes(grads, params)


@rows(unique(ALONE, PAIRS))
def test_hand_gradient_is_the_derivative_and_equals_autodiff(row, x64):
    hand_gradient_is_right(row)


@pytest.mark.slow
@rows(ALL)
def test_hand_gradient_is_the_derivative_and_equals_autodiff_full_product(row, x64):
    hand_gradient_is_right(row)


# ---- purity: jit, vmap, one trace, same key same result ------------------------------


@rows(ALONE, slow=PAIRS)
def test_jit_equals_eager_and_traces_once_for_any_hparams(row):
    objective = build(row)
    params, X = start(objective), batch()
    num_traces = []

    def counted(*arguments):
        num_traces.append(1)
        return objective(*arguments)

    traced = jax.jit(counted)
    for scale in (1.0, 0.5):
        hparams = {k: jnp.float32(scale * v) for k, v in hparams_of(objective).items()}
        eager = objective(params, X, KEY, hparams)
        again = objective(params, X, KEY, hparams)
        compiled = traced(params, X, KEY, hparams)
        chex.assert_trees_all_equal(eager, again)
        chex.assert_trees_all_close(compiled, eager, rtol=1e-5, atol=1e-6)
    assert len(num_traces) == 1


@rows([row for row in ALONE if row["corruption"] == row["penalty"] == "none"])
def test_vmap_equals_a_loop(row):
    ae = build(row).ae
    params, X = start(build(row)), batch()
    Z = jax.vmap(ae.encode, (None, 0))(params, X)
    for method, rows_in in [
        (ae.encode, X),
        (ae.encoder_pre_acts, X),
        (ae.reconstruct, X),
        (ae.decode, Z),
        (ae.decoder_pre_acts, Z),
        (ae.loss, X),
    ]:
        mapped = jax.vmap(method, (None, 0))(params, rows_in)
        looped = jnp.stack([method(params, one) for one in rows_in])
        np.testing.assert_allclose(mapped, looped, rtol=1e-5, atol=1e-6)


@rows(unique(ALONE, PAIRS))
def test_frozen_hashable_picklable_printable(row):
    objective = build(row)
    assert hash(objective) == hash(build(row)) and objective == build(row)
    assert row["activation"] in repr(objective)
    if row["observation"] != "from_log_prob":  # a user's own lambda does not pickle
        assert pickle.loads(pickle.dumps(objective)) == objective


@rows(ALONE, slow=PAIRS)
def test_training_lowers_the_loss_and_stays_finite(row):
    objective = build(row)
    hparams = {**hparams_of(objective), "learning_rate": 0.03}
    X = np.asarray(batch(40))
    config = jaxae.TrainConfig(
        num_epochs=15, batch_size=8, gradient="manual", diagnostics=False
    )
    run = jaxae.train(objective, X, hparams=hparams, key=KEY, config=config)
    assert run.status == "finished"
    assert run.metrics["train/loss"][-1] < run.metrics["train/loss"][0]
    evaluated = objective.evaluate(run.params, X, hparams)
    assert all(np.isfinite(value) for value in evaluated.values())


@rows(ALONE)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_keeps_its_dtype(row, dtype):
    objective = build(row)
    params = objective.ae.init(KEY, dtype=dtype)
    X = batch().astype(dtype)
    (_, _), grads = jaxae.manual.value_and_grad(objective)(
        params, X, KEY, hparams_of(objective)
    )
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(grads))
    assert jax.vmap(objective.ae.reconstruct, (None, 0))(params, X).dtype == dtype


def test_edge_cases_under_debug_nans():
    with jax.debug_nans(True):
        for name in ACTIVATIONS:
            objective = build({**ALONE[0], "activation": name})
            dead = objective.ae.init(KEY)._replace(b_enc=jnp.full(4, -1e4))
            for X in (jnp.zeros((3, 6)), jnp.ones((1, 6))):  # zero variance; one row
                if name != "identity":
                    jaxae.manual.value_and_grad(objective)(dead, X, None, {})
                jax.grad(objective, has_aux=True)(objective.ae.init(KEY), X, None, {})


# ---- every part of each kind ---------------------------------------------------------


PARTS = {
    **ACTIVATIONS,
    **OBSERVATIONS,
    **{name: part for name, part in PENALTIES.items() if part is not None},
    "prelu": prelu,
    "scaled_gaussian": scaled_gaussian,
}


@pytest.mark.parametrize("name", PARTS)
def test_every_derivative_of_a_part_is_one(name, x64):
    for report in reports_on(PARTS[name]):
        report.assert_ok()


@pytest.mark.parametrize("name", ["contractive", "weight_decay"])
def test_a_penalty_on_weights_has_its_derivative_untied_too(name, x64):
    for report in reports_on(PENALTIES[name], tied=False):
        report.assert_ok()


@pytest.mark.parametrize(
    "name, field",
    [
        (name, field)
        for name, part in PARTS.items()
        for field in DERIVATIVES[type(part)]
        if getattr(part, field) is not None
    ],
)
def test_no_derivative_may_be_wrong_by_a_millionth(name, field, x64):
    part = PARTS[name]
    right = getattr(part, field)

    def wrong(*arguments):  # also where the right one is zero
        return jax.tree.map(lambda d: d + 1e-6 * (d + 1), right(*arguments))

    reports = reports_on(part._replace(**{field: wrong}))
    assert not all(report.ok for report in reports)


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observation_promises(name):
    observation = OBSERVATIONS[name]
    eta, x = 2 * jax.random.normal(KEY, (6,)), batch(1, 6)[0]
    assert observation.support in ("counting", "lebesgue", "none")
    assert observation.derived in ("hand", "autodiff")
    np.testing.assert_array_equal(observation.mean(eta), observation.link.apply(eta))
    # One formula serves a batch: nothing but an extra leading axis.
    etas, xs = jnp.stack([eta, -eta]), jnp.stack([x, 1 - x])
    for function in (observation.loss, observation.dloss):
        expected = jnp.stack([function(e, one) for e, one in zip(etas, xs)])
        np.testing.assert_allclose(function(etas, xs), expected, rtol=1e-6)
    # log_prob differs from -loss by what is free of eta.
    binary = jnp.round(xs)
    free = observation.log_prob(etas, binary) + observation.loss(etas, binary)
    other = observation.log_prob(3 * etas, binary) + observation.loss(3 * etas, binary)
    np.testing.assert_allclose(free, other, atol=1e-4)


@pytest.mark.parametrize("name", jaxae.observations.CATALOGUE)
def test_canonical_link_gives_x_hat_minus_x(name, x64):
    observation = jaxae.observations.get(name)
    eta = 5 * jax.random.normal(KEY, (9,), jnp.float64)
    x = batch(1, 9, jnp.float64)[0]
    np.testing.assert_array_equal(observation.dloss(eta, x), observation.mean(eta) - x)


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "none"])
def test_corruption_is_pure_and_identity_at_rate_0(name):
    corruption, x = CORRUPTIONS[name], batch(1)[0]
    assert corruption.name == name
    np.testing.assert_array_equal(corruption(KEY, x, 0.0), x)
    noisy = corruption(KEY, x, 0.7)
    assert noisy.shape == x.shape and noisy.dtype == x.dtype and (noisy != x).any()
    np.testing.assert_array_equal(noisy, corruption(KEY, x, 0.7))


@pytest.mark.parametrize("name", [name for name in PENALTIES if name != "none"])
def test_penalty_coefficient_has_its_name_and_scales_it(name):
    objective = build({**ALONE[0], "penalty": name})
    assert name in objective.hparam_names
    params, X = start(objective), batch()
    values = []
    for coefficient in (0.0, 1.0, 3.0):
        hparams = {**HPARAMS, name: coefficient}
        loss, aux = objective(params, X, KEY, hparams)
        values.append(float(loss))
    assert aux.metrics[name] > 0
    np.testing.assert_allclose(values[1] - values[0], aux.metrics[name], rtol=1e-4)
    np.testing.assert_allclose(values[2] - values[0], 3 * aux.metrics[name], rtol=1e-4)
