"""Every part x every promise of the design."""

import itertools
import math
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import (
    ACTIVATIONS,
    AXES,
    CORRUPTIONS,
    HPARAMS,
    OBSERVATIONS,
    PENALTIES,
    batch,
    build,
    covering,
    hparams_of,
    is_allowed,
    prelu,
    row_id,
    scaled_gaussian,
)
from judges import (
    DERIVATIVES,
    assert_falls,
    judge_objective,
    moved,
    reports_on,
)

import jaxae

KEY = jax.random.key(0)
LECTURE = {
    "activation": "sigmoid",
    "observation": "bernoulli",
    "tied": "tied",
    "bias": "bias",
    "corruption": "none",
    "penalty": "none",
}
# Every part, fast; every pair and every three parts of different kinds, slow.
FAST, *SLOW = ({row_id(row): row for row in covering(size)} for size in (1, 2, 3))


def rows(*slow):
    """A test of each row in which a part occurs first; of the slow ones by --slow."""
    more = {
        name: row for rows in slow for name, row in rows.items() if name not in FAST
    }
    marked = [pytest.param(row, marks=pytest.mark.slow) for row in more.values()]
    return pytest.mark.parametrize("row", [*FAST.values(), *marked], ids=row_id)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_covering_array_covers_with_few_rows(size):
    """At most twice as many as the longest axes alone would need."""
    found = covering(size)
    assert all(map(is_allowed, found)) and len(set(map(row_id, found))) == len(found)
    for axes in itertools.combinations(AXES, size):
        for names in itertools.product(*(AXES[axis] for axis in axes)):
            some = dict(zip(axes, names))
            is_covered = any(row.items() >= some.items() for row in found)
            assert is_covered == is_allowed(some)
    lengths = sorted(map(len, AXES.values()))[-size:]
    assert len(found) <= 2 * math.prod(lengths)


def start(objective, dtype=jnp.float32):
    return moved(objective.ae.init(KEY, dtype=dtype))


# ---- the hand gradient ---------------------------------------------------------------


@rows(*SLOW)
def test_hand_gradient_is_the_derivative_and_equals_autodiff(row, x64):
    objective = build(row)
    hparams = hparams_of(objective)
    params, X = start(objective, jnp.float64), batch(dtype=jnp.float64)
    arguments = (params, (X, X[::-1]), KEY, hparams)
    judge_objective(objective, *arguments)
    by_hand, grads = jax.jit(jaxae.manual.value_and_grad(objective))(*arguments)
    expected = jax.jit(jax.value_and_grad(objective, has_aux=True))(*arguments)
    assert type(grads) is type(params)
    # Programs of their own, which a compiler may round differently.
    chex.assert_trees_all_close(by_hand, expected[0], rtol=1e-13)
    chex.assert_trees_all_close(grads, expected[1], rtol=1e-12, atol=1e-14)
    chex.assert_trees_all_equal_dtypes(grads, params)


# ---- purity: jit, vmap, one trace, same key same result ------------------------------


@rows(SLOW[0])
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


@rows()
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


@rows(SLOW[0])
def test_frozen_hashable_picklable_printable(row):
    objective = build(row)
    assert hash(objective) == hash(build(row)) and objective == build(row)
    assert row["activation"] in repr(objective)
    if row["observation"] != "from_log_prob":  # a user's own lambda does not pickle
        assert pickle.loads(pickle.dumps(objective)) == objective


@rows(SLOW[0])
def test_training_lowers_the_loss_and_stays_finite(row):
    objective = build(row)
    hparams = {**hparams_of(objective), "learning_rate": 0.03}
    X = np.asarray(batch(40))
    config = jaxae.TrainConfig(
        num_epochs=15, batch_size=8, gradient="manual", diagnostics=False
    )
    run = jaxae.train(objective, X, hparams=hparams, key=KEY, config=config)
    assert run.status == "finished"
    assert_falls(run.metrics["train/loss"])
    evaluated = jax.jit(objective.evaluate)(run.params, X, hparams)
    assert all(np.isfinite(value) for value in evaluated.values())


@rows(SLOW[0])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_keeps_its_dtype(row, dtype):
    objective = build(row)
    value_and_grad = jaxae.manual.value_and_grad(objective)

    def computed(X):
        params, X = objective.ae.init(KEY, dtype=dtype), X.astype(dtype)
        grads = value_and_grad(params, X, KEY, hparams_of(objective))[1]
        return grads, jax.vmap(objective.ae.reconstruct, (None, 0))(params, X)

    dtypes = {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(computed, batch()))}
    assert dtypes == {jnp.dtype(dtype)}


def test_edge_cases_under_debug_nans():
    with jax.debug_nans(True):
        for name in ACTIVATIONS:
            objective = build({**LECTURE, "activation": name})
            dead = objective.ae.init(KEY)._replace(b_enc=jnp.full(4, -1e4))
            for X in (jnp.zeros((1, 6)), jnp.ones((1, 6))):  # one row; zero variance
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


HELD = [
    (name, field)
    for name, part in PARTS.items()
    for field in DERIVATIVES[type(part)]
    if getattr(part, field) is not None
]
FIRST = {field: (name, field) for name, field in reversed(HELD)}  # of each kind


@pytest.mark.parametrize(
    "name, field",
    [
        pytest.param(*held, marks=() if held in FIRST.values() else pytest.mark.slow)
        for held in HELD
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
    assert observation.base_measure in ("counting", "lebesgue", "none")
    assert observation.derived in ("hand", "autodiff")
    np.testing.assert_array_equal(
        observation.mean(eta), observation.inverse_link.apply(eta)
    )
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
    objective = build({**LECTURE, "penalty": name})
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
