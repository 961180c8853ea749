"""The sparse family: activations, prefixes, and the gradient by codes."""

import dataclasses
import itertools
import pickle

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxae
from jaxae import activations as g
from jaxae import gradcheck, manual, sparse

D, H, B = 5, 8, 9
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, D))


def model(activation, **choices):
    choices = {"tied": False, "observation": "gaussian"} | choices
    return jaxae.Autoencoder(
        input_dim=D, latent_dim=H, activation=activation, **choices
    )


def params_of(ae, dtype=jnp.float64):
    params = ae.init(KEY, dtype=dtype)
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))

    def perturbed(leaf):
        return leaf + 0.1 * jax.random.normal(next(keys), leaf.shape, leaf.dtype)

    return jax.tree.map(perturbed, params)


# ---- topk and abs_topk ---------------------------------------------------------------


def numpy_topk(a, k):
    """relu of the k largest; the first ones of equal values, by a stable sort."""
    kept = np.argsort(-np.asarray(a), kind="stable")[:k]
    z = np.zeros(a.shape, a.dtype)
    z[kept] = np.maximum(a[kept], 0)
    return z


# Few different values, so that there are ties, and rows without a positive one.
few_examples = hypothesis.settings(max_examples=30, deadline=None)
rows = st.lists(
    st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0]), min_size=H, max_size=H
)


@few_examples
@hypothesis.given(a=rows, k=st.integers(1, H))
def test_topk_keeps_the_k_largest_the_first_of_equal_ones(a, k):
    a = jnp.asarray(a, jnp.float32)
    np.testing.assert_array_equal(g.topk(k).apply(a), numpy_topk(a, k))


@few_examples
@hypothesis.given(a=rows, k=st.integers(1, H))
def test_abs_topk_keeps_the_largest_magnitudes_with_their_signs(a, k):
    a = jnp.asarray(a, jnp.float32)
    kept = np.argsort(-np.abs(np.asarray(a)), kind="stable")[:k]
    z = np.zeros(a.shape, a.dtype)
    z[kept] = np.asarray(a)[kept]
    np.testing.assert_array_equal(g.abs_topk(k).apply(a), z)


@pytest.mark.parametrize("num_latents", [512, 500])  # in blocks, and not
def test_topk_of_long_rows_keeps_the_first_of_equal_ones(num_latents):
    # Some equal values are the largest of their blocks, and others are not.
    A = RNG.integers(-60, 60, size=(50, num_latents)).astype(np.float32)
    Z = jax.vmap(g.topk(5).apply)(jnp.asarray(A))
    np.testing.assert_array_equal(Z, [numpy_topk(a, 5) for a in A])


def test_topk_of_all_latents_is_relu():
    A = jnp.asarray(RNG.normal(size=(B, H)), jnp.float32)
    Z = jax.vmap(g.topk(H).apply)(A)
    np.testing.assert_array_equal(Z, g.relu.apply(A))


@pytest.mark.parametrize("factory", [g.topk, g.abs_topk, g.batch_topk])
def test_k_as_a_hyperparameter_is_the_activation_of_that_k(factory):
    A = jnp.asarray(RNG.normal(size=(B, H)), jnp.float32)
    wide, narrow = factory(6).at({"k": jnp.float32(2)}), factory(2)
    state = () if narrow.init_state is None else narrow.init_state(H)
    latents = [h.checked_apply_batch(A, (), state, True) for h in (wide, narrow)]
    np.testing.assert_array_equal(*latents)


# ---- batch_topk ----------------------------------------------------------------------


def test_batch_topk_keeps_the_k_b_largest_of_the_batch():
    A = RNG.normal(size=(B, H)).astype(np.float32)
    part = g.batch_topk(2)
    Z = part.checked_apply_batch(jnp.asarray(A), (), part.init_state(H), True)
    expected = numpy_topk(A.ravel(), 2 * B).reshape(A.shape)
    np.testing.assert_array_equal(Z, expected)


def test_the_threshold_of_batch_topk_is_a_running_mean_of_the_smallest_kept_value():
    part = g.batch_topk(1)
    state, kept = part.init_state(H), []
    for step in range(4):
        A = jnp.asarray(RNG.normal(size=(B, H)) + step, jnp.float32)
        Z = part.checked_apply_batch(A, (), state, True)
        kept.append(np.min(np.asarray(Z)[np.asarray(Z) > 0]))
        weights = 0.99 ** np.arange(step, -1, -1)
        state = part.checked_state(A, Z, (), state)
        expected = np.average(kept, weights=weights)
        np.testing.assert_allclose(state.threshold, expected, rtol=1e-5)
    nothing = part.checked_state(A, jnp.zeros_like(A), (), state)
    chex.assert_trees_all_equal(nothing, state)


def train(objective, X=X, num_epochs=3, **arguments):
    # Without diagnostics, which take as long to compile as training itself.
    settings = {"diagnostics": False} | arguments.pop("settings", {})
    config = jaxae.TrainConfig(num_epochs=num_epochs, batch_size=4, **settings)
    hparams = {"learning_rate": 1e-2} | arguments.pop("hparams", {})
    return jaxae.train(
        objective, X, key=KEY, config=config, hparams=hparams, **arguments
    )


def test_the_model_of_a_run_with_batch_topk_is_a_jumprelu_at_its_threshold(tmp_path):
    objective = jaxae.Objective(model(g.batch_topk(2)))
    run = train(objective, validation=X)
    ae, params = run.model
    threshold = run.state.state["activation"].threshold
    assert threshold > 0
    np.testing.assert_array_equal(params.activation.threshold, np.full(H, threshold))
    Z = objective.forward(
        run.params,
        jnp.asarray(X, jnp.float32),
        None,
        {},
        run.state.state,
        training=False,
    ).z
    encode = jax.vmap(ae.encode, (None, 0))
    np.testing.assert_allclose(
        encode(params, X.astype(np.float32)), Z, rtol=1e-5, atol=1e-6
    )
    jaxae.save(tmp_path, *run.model)
    loaded, loaded_params = jaxae.load(tmp_path)
    assert loaded == ae
    chex.assert_trees_all_equal(loaded_params, params)


def test_batch_topk_refuses_one_example():
    ae = model(g.batch_topk(2))
    with pytest.raises(ValueError, match=r"chooses latents over a batch.*run\.model"):
        ae.encode(ae.init(KEY), X[0].astype(np.float32))


# ---- matching pursuit ----------------------------------------------------------------


def numpy_matching_pursuit(x, W_enc, W_dec, b_enc, k):
    z, residual = np.zeros(len(W_enc)), x.copy()
    for _ in range(k):
        a = W_enc @ residual + b_enc
        j = np.argmax(a)
        c = max(a[j], 0)
        z[j] += c
        residual -= c * W_dec[j]
    return z


@pytest.mark.parametrize("k", [1, 3, H])
def test_matching_pursuit_explains_what_the_steps_before_left(k, x64):
    ae = model(g.matching_pursuit(k))
    params = params_of(ae)
    untied = [np.asarray(getattr(params, n)) for n in ("W_enc", "W_dec", "b_enc")]
    Z = [numpy_matching_pursuit(x, *untied, k) for x in X]
    encoded = jax.vmap(ae.encode, (None, 0))(params, X)
    np.testing.assert_allclose(encoded, Z, rtol=1e-10, atol=1e-12)


def test_with_orthonormal_rows_matching_pursuit_is_topk(x64):
    W = np.linalg.qr(RNG.normal(size=(D, D)))[0]
    params = jaxae.TiedParams(*map(jnp.asarray, (W, np.zeros(D), np.zeros(D))))
    codes = [
        jax.vmap(
            jaxae.Autoencoder(
                input_dim=D, latent_dim=D, activation=part, observation="gaussian"
            ).encode,
            (None, 0),
        )(params, X)
        for part in (g.matching_pursuit(3), g.topk(3))
    ]
    np.testing.assert_allclose(*codes, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tied", [pytest.param(True, marks=pytest.mark.slow), False])
def test_the_paths_of_matching_pursuit_are_derivatives_of_the_path_loss(tied, x64):
    """The encoder reads W_dec too."""
    ae = model(g.matching_pursuit(3), tied=tied, pre_bias=True)
    params = params_of(ae)
    paths = manual.path_grads(ae, params, X[0])
    expected = jax.grad(ae.path_loss, (0, 1))(params, params, X[0])
    chex.assert_trees_all_close(tuple(paths), expected, rtol=1e-10, atol=1e-12)


# ---- jumprelu ------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_jumprelu_has_the_straight_through_estimators_of_the_paper(scale, x64):
    part = g.jumprelu(bandwidth=0.5, threshold=0.3, scale=scale)
    a = scale * RNG.normal(size=H)
    dz = RNG.normal(size=H)
    t = np.array([0.3, 0.2, 0.0, -0.1, 0.5, 0.3, 0.3, 0.3])
    theta, eps = scale * np.maximum(t, 0), 0.5 * scale
    box = (np.abs(a - theta) < eps / 2) / eps
    z, pullback = jax.vjp(part.apply, a, t)
    np.testing.assert_array_equal(z, np.where(a > theta, a, 0))
    d_a, d_t = pullback(jnp.asarray(dz))
    np.testing.assert_allclose(d_a, np.where(a > theta, dz, 0), rtol=1e-12)
    np.testing.assert_allclose(d_t, -scale * theta * box * dz, rtol=1e-12)
    is_open, pullback = jax.vjp(part.gate, a, t)
    np.testing.assert_array_equal(is_open, a > theta)
    d_a, d_t = pullback(jnp.asarray(dz))
    np.testing.assert_array_equal(d_a, np.zeros(H))
    np.testing.assert_allclose(d_t, -scale * box * dz, rtol=1e-12)
    by_hand = part.gate_vjp(a, dz, t)
    chex.assert_trees_all_close(by_hand, (d_a, g.Threshold(d_t)), rtol=1e-12)


def test_the_threshold_of_a_bfloat16_model_is_float32():
    params = model(g.jumprelu()).init(KEY, dtype=jnp.bfloat16)
    assert params.activation.threshold.dtype == jnp.float32
    assert params.W_enc.dtype == jnp.bfloat16


# ---- gradients -----------------------------------------------------------------------

PARTS = {
    "topk": g.topk(3),
    "topk of all": g.topk(H),
    "abs_topk": g.abs_topk(2),
    "batch_topk": g.batch_topk(2),
    "jumprelu": g.jumprelu(bandwidth=0.5, threshold=0.3),
    "matching_pursuit": g.matching_pursuit(3),
    "gated": g.gated,
}
every_part = pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
PREFIXES = {"": {}, "prefixes": {"prefixes": (2, 5, H)}}
PREFIXES["cut"] = {**PREFIXES["prefixes"], "cut_prefixes": True}
every_prefix = pytest.mark.parametrize(
    "prefixes", PREFIXES.values(), ids=PREFIXES.keys()
)
CASES = list(itertools.product(PARTS, PREFIXES, (True, False)))
# Each part in turn with each pair of the others.
IN_TURN = set(zip(PARTS, itertools.cycle(PREFIXES), itertools.cycle((True, False))))


@pytest.mark.parametrize(
    "part, prefixes, tied",
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (case not in IN_TURN))
        for case in CASES
    ],
)
def test_by_hand_and_by_autodiff_the_gradient_is_equal(part, prefixes, tied, x64):
    part, prefixes = PARTS[part], PREFIXES[prefixes]
    ae = model(part, tied=tied, pre_bias=True)
    # l1 has a gradient by all latents; without it the gradient is by codes.
    for penalties, hparams in (((), {"k": 2.0}), (("l1",), {"l1": 0.1})):
        objective = jaxae.Objective(ae, penalties=penalties, dead_after=3, **prefixes)
        arguments = params_of(ae), X, None, hparams, objective.init_state()
        expected = jax.value_and_grad(objective, has_aux=True)(*arguments)
        by_hand = manual.value_and_grad(objective)(*arguments)
        chex.assert_trees_all_close(by_hand, expected, rtol=1e-12, atol=1e-12)
        # In float64, the latents that fewer than k positive values leave at 0 included.


# Gradcheck calls autodiff right, with which the gradient of the others agrees above.
@pytest.mark.parametrize(
    "part",
    [
        pytest.param(
            part,
            id=name,
            marks=[pytest.mark.slow]
            * (name in ("topk of all", "abs_topk", "batch_topk")),
        )
        for name, part in PARTS.items()
    ],
)
def test_gradcheck_judges_the_parts(part, x64):
    objective = jaxae.Objective(model(part))
    report = gradcheck.check(
        objective,
        params_of(objective.ae),
        X,
        None,
        {},
        objective.init_state(),
        grad=lambda *arguments: manual.value_and_grad(objective)(*arguments)[1],
        surrogate=objective.surrogate,
        has_aux=True,
    )
    report.assert_ok()
    assert objective.surrogate == (
        ("activation/threshold",) if part is PARTS["jumprelu"] else ()
    )


def test_a_latent_that_is_chosen_and_not_positive_gets_no_gradient(x64):
    """sparsify's fused encoder passes a gradient through it."""
    ae = model(g.topk(H))
    params = params_of(ae)._replace(b_enc=jnp.full(H, -100.0))
    objective = jaxae.Objective(ae)
    _, grads = manual.value_and_grad(objective)(params, X, None, {})
    assert not np.any(grads.W_enc) and not np.any(grads.b_enc)
    assert np.any(grads.b_dec)


@every_prefix
def test_the_loss_of_prefixes_is_the_mean_of_the_losses_of_decoding_them(prefixes, x64):
    ae = model(g.topk(3))
    params = params_of(ae)
    loss, _ = jaxae.Objective(ae, **prefixes)(params, X, None, {})
    Z = np.asarray(jax.vmap(ae.encode, (None, 0))(params, X))
    W_dec, b_dec = np.asarray(params.W_dec), np.asarray(params.b_dec)
    losses = [
        0.5 * np.sum((Z[:, :m] @ W_dec[:m] + b_dec - X) ** 2, axis=1)
        for m in prefixes.get("prefixes", (H,))
    ]
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-12)


def test_a_cut_between_prefixes_trains_each_level_by_its_own_prefix(x64):
    """The gradient of a level is that of the loss of its prefix alone."""
    ae, ends = model(g.topk(3)), (2, 5, H)
    params = params_of(ae)
    cut = jaxae.Objective(ae, prefixes=ends, cut_prefixes=True)
    grads = manual.value_and_grad(cut)(params, X, None, {})[1].W_dec
    Z = np.asarray(jax.vmap(ae.encode, (None, 0))(params, X))
    W_dec, b_dec = np.asarray(params.W_dec), np.asarray(params.b_dec)
    for start, end in zip((0, *ends), ends):
        residual = Z[:, :end] @ W_dec[:end] + b_dec - X
        expected = Z[:, start:end].T @ residual / (B * len(ends))
        np.testing.assert_allclose(grads[start:end], expected, rtol=1e-12)


# ---- codes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "num_rows, sizes",
    [
        (1, (H,)),
        (16, (2, 5, H)),
        (37, (H,)),
        (37, (2, 5, H)),
        pytest.param(1, (2, 5, H), marks=pytest.mark.slow),
        pytest.param(16, (H,), marks=pytest.mark.slow),
    ],
)
def test_functions_of_codes_equal_those_of_dense_latents(sizes, num_rows, x64):
    codes = sparse.Codes(
        jnp.asarray(RNG.normal(size=(num_rows, 3))),
        jnp.asarray(RNG.integers(0, H, size=(num_rows, 3))),  # some of them equal
    )
    W = jnp.asarray(RNG.normal(size=(H, D)))
    V = jnp.asarray(RNG.normal(size=(num_rows, len(sizes), D)))
    Z = np.asarray(sparse.dense(codes, H))
    bounds = list(zip((0, *sizes), sizes))
    decoded = np.stack([Z[:, a:b] @ W[a:b] for a, b in bounds], axis=1)
    close = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(sparse.decode(codes, W, sizes), decoded, **close)
    projected = np.concatenate(
        [V[:, m] @ W[a:b].T for m, (a, b) in enumerate(bounds)], axis=1
    )
    np.testing.assert_allclose(
        sparse.project(V, W, codes.indices, sizes),
        np.take_along_axis(projected, np.asarray(codes.indices), axis=1),
        **close,
    )
    outer = np.concatenate([Z[:, a:b].T @ V[:, m] for m, (a, b) in enumerate(bounds)])
    np.testing.assert_allclose(sparse.sum_of_outer(codes, V, W, sizes), outer, **close)
    np.testing.assert_allclose(sparse.sum_of_rows(codes, H), Z.sum(axis=0), **close)


def test_the_gradient_by_codes_makes_no_array_of_batch_by_latents():
    """Beyond the pre-activations: none but theirs, which the compiler removes.

    Counted in the compiled program: an elementwise use of dense latents would make one.
    """
    wide = jaxae.Autoencoder(
        input_dim=4,
        latent_dim=512,
        activation=g.topk(2),
        observation="gaussian",
        tied=False,
    )
    objective = jaxae.Objective(wide)
    batch = jnp.zeros((32, 4))
    gradient = jax.jit(lambda *a: manual.value_and_grad(objective)(*a)[1])
    compiled = gradient.lower(wide.init(KEY), batch, None, {}).compile()
    # Peak temporary memory, against a dense pre-activation array of 32 x 512 floats.
    dense_size = 32 * 512 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * dense_size


# ---- state, training, sweeps ---------------------------------------------------------


@every_part
def test_training_by_hand_and_by_autodiff_agree(part):
    objective = jaxae.Objective(model(part), prefixes=(3, H), dead_after=2)
    by_hand, by_autodiff = (
        train(objective, settings={"gradient": gradient, "optimizer": "sgd"})
        for gradient in ("manual", "autodiff")
    )
    chex.assert_trees_all_close(
        by_hand.params, by_autodiff.params, rtol=1e-4, atol=1e-5
    )
    chex.assert_trees_all_equal(
        by_hand.state.state["steps_since_active"],
        by_autodiff.state.state["steps_since_active"],
    )


def test_the_steps_since_a_latent_was_active_are_counted():
    ae = model("relu")
    objective = jaxae.Objective(ae, dead_after=2)
    params = ae.init(KEY)
    params = params._replace(b_enc=params.b_enc.at[3].set(-100.0))
    state = objective.init_state()
    for step in range(4):
        p = objective.forward(params, X.astype(np.float32), None, {}, state)
        assert bool(p.is_dead[3]) == (step >= 2)
        _, aux = objective(params, X.astype(np.float32), None, {}, state)
        state = aux.state
    assert state["steps_since_active"][3] == 4
    assert np.all(np.delete(np.asarray(state["steps_since_active"]), 3) == 0)


@pytest.mark.parametrize(
    "part",
    [g.topk(4), pytest.param(g.abs_topk(4), marks=pytest.mark.slow), g.batch_topk(4)],
)
def test_a_lane_of_k_is_the_single_run_and_the_run_of_that_activation(part):
    objective = jaxae.Objective(model(part), dead_after=2)
    config = jaxae.TrainConfig(num_epochs=2, batch_size=3, diagnostics=False)
    swept = jaxae.sweep(
        objective,
        X,
        {"k": [1, 2, 4]},
        hparams={"learning_rate": 1e-2},
        key=KEY,
        config=config,
        validation=X,
        lanes_at_once=1,
    )
    kind = part.name.partition("(")[0]
    for lane, k in enumerate((1, 2, 4)):
        run = jaxae.train(data=X, validation=X, **swept.trial(lane))
        chex.assert_trees_all_equal(swept.params(lane), run.params)
        chex.assert_trees_all_equal(swept.model(lane), run.model)
        own = jaxae.Objective(model(getattr(g, kind)(k)), dead_after=2)
        alone = jaxae.train(
            own,
            X,
            hparams={"learning_rate": 1e-2},
            config=config,
            key=jax.random.fold_in(KEY, 0),
        )
        chex.assert_trees_all_close(run.params, alone.params, rtol=1e-5, atol=1e-6)
        assert run.model[0] == alone.model[0]


@pytest.mark.parametrize("part", [g.topk(2), g.matching_pursuit(2)])
def test_lanes_of_k_at_once_are_the_single_runs_without_a_bias(part):
    """With a bias they are not: at k = 1 its gradient is a rounding error."""
    ae = jaxae.Autoencoder(
        input_dim=8,
        latent_dim=12,
        activation=part,
        observation="gaussian",
        tied=True,
        bias=False,
    )
    data = np.random.default_rng(0).normal(size=(256, 8)).astype(np.float32)
    swept = jaxae.sweep(
        jaxae.Objective(ae),
        data,
        {"k": [1, 2]},
        hparams={"learning_rate": 1e-2},
        key=KEY,
        # Few steps: where two latents are almost equal, rounding chooses.
        config=jaxae.TrainConfig(num_epochs=1, batch_size=32, diagnostics=False),
        lanes_at_once=2,
    )
    for lane in range(2):
        run = jaxae.train(data=data, **swept.trial(lane))
        chex.assert_trees_all_close(swept.params(lane), run.params, atol=1e-5)


@pytest.mark.parametrize("part", [g.topk(2), g.batch_topk(2)])
def test_a_lane_that_is_narrower_is_the_single_run(part):
    swept = jaxae.sweep(
        jaxae.Objective(model(part), dead_after=2),
        X,
        {"latent_dim": [3, H]},
        hparams={"learning_rate": 1e-2},
        key=KEY,
        config=jaxae.TrainConfig(num_epochs=2, batch_size=3, diagnostics=False),
    )
    for lane in range(2):
        run = jaxae.train(data=X, **swept.trial(lane))
        # A padded lane sums in another order.
        chex.assert_trees_all_close(swept.params(lane), run.params, atol=1e-6)


def test_a_resumed_run_of_batch_topk_with_aux_k_is_the_uninterrupted_one(tmp_path):
    objective = jaxae.Objective(
        model(g.batch_topk(2)),
        penalties=(jaxae.penalties.aux_k(3),),
        prefixes=(3, H),
        dead_after=1,
    )
    hparams = {"aux_k": 0.5}
    uninterrupted = train(objective, hparams=hparams)
    train(objective, hparams=hparams, num_epochs=1, checkpoint_dir=tmp_path)
    resumed = train(objective, hparams=hparams, checkpoint_dir=tmp_path)
    chex.assert_trees_all_equal(
        resumed.state._replace(key=0), uninterrupted.state._replace(key=0)
    )
    # AuxK had dead latents to train.
    assert uninterrupted.metrics["train/aux_k"].max() > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"prefixes": (2, H)},
        {"prefixes": (3, H), "cut_prefixes": True},
        {"prefixes": (3, H), "dead_after": 4},
        {"prefixes": (3, H), "schedules": (jaxae.schedules.linear("k"),)},
    ],
    ids=str,
)
def test_a_run_is_not_resumed_with_another_objective(changes, tmp_path):
    hparams = {"k": 2, "k_start": 2, "k_steps": 0}
    names = ("k",) if "schedules" not in changes else tuple(hparams)
    ae = model(g.topk(2))
    objective = jaxae.Objective(ae, prefixes=(3, H), dead_after=2)
    train(objective, hparams={"k": 2}, num_epochs=2, checkpoint_dir=tmp_path)
    other = jaxae.Objective(ae, **{"dead_after": 2} | changes)
    with pytest.raises(ValueError, match=next(reversed(changes))):
        train(
            other,
            hparams={name: hparams[name] for name in names},
            checkpoint_dir=tmp_path,
        )


def test_auto_takes_the_gradient_by_codes_where_latents_are_many():
    config = jaxae.TrainConfig()
    wide = jaxae.Autoencoder(input_dim=D, latent_dim=64, activation=g.topk(4))
    assert config.gradient == "auto"
    assert config.gradient_of(jaxae.Objective(wide)) == "manual"
    many = jaxae.Autoencoder(input_dim=D, latent_dim=8192, activation=g.topk(257))
    assert config.gradient_of(jaxae.Objective(many)) == "autodiff"
    for part in (g.topk(5), "relu", g.batch_topk(2)):
        ae = jaxae.Autoencoder(input_dim=D, latent_dim=64, activation=part)
        assert config.gradient_of(jaxae.Objective(ae)) == "autodiff"
        with_aux_k = jaxae.Objective(
            dataclasses.replace(ae, observation="gaussian"), penalties=("aux_k(2)",)
        )
        assert config.gradient_of(with_aux_k) == "manual"
    chosen = jaxae.TrainConfig(gradient="autodiff")
    assert chosen.gradient_of(jaxae.Objective(wide)) == "autodiff"


# ---- names and bad input -------------------------------------------------------------


@pytest.mark.parametrize(
    "part",
    [
        *(g.topk(3), g.abs_topk(3), g.batch_topk(3), g.matching_pursuit(3)),
        *(g.gated, g.jumprelu(), g.jumprelu(0.1)),
    ],
    ids=str,
)
def test_a_name_and_a_pickle_give_the_same_object(part):
    assert g.get(part.name) is part
    assert pickle.loads(pickle.dumps(part)) is part
    ae = model(part)
    assert pickle.loads(pickle.dumps(ae)) == ae


def test_equal_numbers_give_the_same_object():
    assert g.topk(3) is g.topk(np.int64(3)) is g.get("topk(k=3)")
    assert g.jumprelu(bandwidth=1e-3) is g.jumprelu() is g.get("jumprelu()")


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: g.topk(0), "k must be .*got 0"),
        (lambda: g.topk(2.5), "k must be .*got 2.5"),
        (
            lambda: g.get("topk"),
            r"written as a function of numbers, such as topk\(32\)",
        ),
        (lambda: g.get("topk(x)"), r"such as topk\(32\), got 'topk\(x\)'"),
        (lambda: g.get("topk(-1)"), "k must be"),
        (lambda: g.get("gated(3)"), "activation must be|must be written"),
        (lambda: g.jumprelu(bandwidth=0), "bandwidth must be finite and positive"),
        (
            lambda: g.jumprelu(threshold=np.nan),
            "threshold must be finite and at least 0",
        ),
        (
            lambda: model(g.matching_pursuit(2), output_dim=D + 1),
            r"output_dim must be input_dim, 5, for activation matching_pursuit\(2\)",
        ),
        (lambda: model(g.topk(H + 1)), r"topk\(9\) needs at least 9 latents.*8"),
        (
            lambda: jaxae.Objective(model(g.topk(2)), prefixes=(2, 4)),
            "prefixes must increase and end at latent_dim, 8",
        ),
        (
            lambda: jaxae.Objective(model(g.topk(2)), prefixes=(4, 4, H)),
            "must increase",
        ),
        (
            lambda: jaxae.Objective(model(g.topk(2)), prefixes=(0, H)),
            "prefixes must be",
        ),
        (lambda: jaxae.Objective(model(g.topk(2)), prefixes="2,8"), "prefixes must be"),
        (lambda: jaxae.Objective(model(g.topk(2)), cut_prefixes=1), "True or False"),
        (
            lambda: jaxae.Objective(model(g.topk(2)), cut_prefixes=True),
            "cut_prefixes must be False without prefixes",
        ),
        (lambda: jaxae.Objective(model(g.topk(2)), dead_after=0), "dead_after must be"),
        (
            lambda: train(jaxae.Objective(model(g.topk(2))), hparams={"k": 3}),
            r"hparams\['k'\] must be an integer from 1 to 2, got 3",
        ),
        (
            lambda: train(jaxae.Objective(model(g.topk(2))), hparams={"k": 1.5}),
            "an integer from 1 to 2, got 1.5",
        ),
        (
            lambda: train(jaxae.Objective(model("relu")), hparams={"k": 1}),
            "has k, which nothing reads",
        ),
        (
            lambda: jaxae.Objective(model("relu"), dead_after=2)(
                model("relu").init(KEY), X.astype(np.float32), None, {}
            ),
            r"state lacks steps_since_active.*init_state\(\)",
        ),
        (
            lambda: jaxae.sweep(
                jaxae.Objective(model(g.jumprelu())),
                X,
                {"latent_dim": [3, H]},
                hparams={"learning_rate": 1e-2},
                key=KEY,
            ),
            r"space\['latent_dim'\] needs an activation without parameters.*jumprelu",
        ),
        (
            lambda: jaxae.sweep(
                jaxae.Objective(model(g.topk(4))),
                X,
                {"latent_dim": [3, H]},
                hparams={"learning_rate": 1e-2},
                key=KEY,
            ),
            r"topk\(4\) needs at least 4 latents.*3",
        ),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
