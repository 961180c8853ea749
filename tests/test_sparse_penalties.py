"""The penalties of the sparse family: their equations, and what they leave alone."""

import dataclasses
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxae
from jaxae import activations, manual, metrics, penalties
from jaxae.objective import STEPS_SINCE_ACTIVE
from jaxae.sparse import Codes, dense
from jaxae.terms import Pass
from jaxae.training import checkpointing, diagnostics

D, H, B = 3, 6, 5
DEAD = np.array([False, True, True, False, False, True])
SIZES = (2, 3, H)  # the dead latents are in each of the three levels
# Threshold, scale and width at which some pre-activations lie in the box, some outside.
JUMP = activations.jumprelu(bandwidth=0.8, threshold=0.3, scale=1.5)
SCALE, WIDTH = 1.5, 1.5 * 0.8
C = 0.7  # tanh_sparsity_scale


def model(activation, **choices):
    choices = {"observation": "gaussian", "tied": False, **choices}
    return jaxae.Autoencoder(
        input_dim=D, latent_dim=H, activation=activation, **choices
    )


def moved(params):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + 0.4 * rng.normal(size=leaf.shape), params)


def case(
    penalty, activation, *, is_dead=DEAD, hparams=None, model_choices=None, **more
):
    """An objective of one penalty, and its arguments in float64."""
    objective = jaxae.Objective(
        model(activation, **(model_choices or {})), penalties=(penalty,), **more
    )
    params = moved(objective.ae.init(jax.random.key(0), dtype=jnp.float64))
    X = jnp.asarray(np.random.default_rng(2).normal(size=(B, D)))
    numbers = {penalty.name: 1.3, "tanh_sparsity_scale": C, **(hparams or {})}
    state = objective.init_state()
    if STEPS_SINCE_ACTIVE in state:
        counts = objective.dead_after * np.asarray(is_dead, np.int32)
        state[STEPS_SINCE_ACTIVE] = jnp.asarray(counts, jnp.int32)
    return objective, params, X, numbers, state


def pass_and_cotangents(objective, params, X, hparams, state):
    [penalty] = objective.penalties
    p = objective.forward(params, X, None, hparams, state)
    return p, penalty.checked_cotangents(objective.ae, params, p)


def term(objective, X, hparams, state):
    """The penalty as a function of the parameters, for autodiff."""
    [penalty] = objective.penalties

    def of_params(params):
        p = objective.forward(params, X, None, hparams, state)
        return penalty.checked_value(objective.ae, params, p)

    return of_params


# ---- the equations, in NumPy ---------------------------------------------------------
# Each returns the value, and the partial derivatives that are not 0.


def relu(x):
    return np.maximum(x, 0)


def l1_decoder_norm(p, params):
    W = params.W_dec
    n = np.linalg.norm(W, axis=1)
    d_W = np.abs(p.z).mean(axis=0)[:, None] * W / n[:, None]
    return (np.abs(p.z) * n).sum(1).mean(), {"z": np.sign(p.z) * n / B, "W_dec": d_W}


def tanh_sparsity(p, params):
    W = params.W_dec
    n = np.linalg.norm(W, axis=1)
    t = np.tanh(C * np.abs(p.z) * n)
    d_W = (C * (1 - t**2) * np.abs(p.z)).mean(axis=0)[:, None] * W / n[:, None]
    d_z = C * (1 - t**2) * n * np.sign(p.z) / B
    return t.sum(1).mean(), {"z": d_z, "W_dec": d_W}


def thresholds(params):
    return SCALE * relu(params.activation.threshold)


def l0(p, params):
    theta = thresholds(params)
    in_box = np.abs(p.a - theta) < WIDTH / 2
    assert 0 < in_box.sum() < in_box.size
    d = -SCALE * in_box.mean(axis=0) / WIDTH
    return (p.a > theta).sum(1).mean(), {"threshold": d}


def gated_l1(p, params):
    return relu(p.a).sum(1).mean(), {"a": (p.a > 0) / B}


def gated_aux(p, params):
    residual = relu(p.a) @ params.W_dec + params.b_dec - p.targets
    d_a = (p.a > 0) * (residual @ params.W_dec.T) / B
    return (residual**2).sum(1).mean() / 2, {"a": d_a}


def pre_act(p, params):
    W = params.W_dec
    n, theta = np.linalg.norm(W, axis=1), thresholds(params)
    below = relu(theta - p.a) * DEAD
    d_a = np.where(below > 0, -n, 0) / B
    d_W = below.mean(axis=0)[:, None] * W / n[:, None]
    d_threshold = -SCALE * (params.activation.threshold > 0) * d_a.sum(axis=0)
    expected = {"a": d_a, "W_dec": d_W, "threshold": d_threshold}
    return (below * n).sum(1).mean(), expected


def aux_k(p, params, *, k=2, sizes=(H,), is_cut=False, is_signed=False):
    """Example by example, and by prefix."""
    value, d_a, d_W = 0.0, np.zeros((B, H)), np.zeros((H, D))
    for b in range(B):
        dead = np.flatnonzero(DEAD)
        key = np.abs(p.a[b, dead]) if is_signed else p.a[b, dead]
        chosen = dead[np.argsort(-key)[:k]]
        z = {j: p.a[b, j] for j in chosen if is_signed or p.a[b, j] > 0}
        for m, end in enumerate(sizes):
            start = 0 if m == 0 or not is_cut else sizes[m - 1]
            e_hat = sum((z[j] * params.W_dec[j] for j in z if j < end), np.zeros(D))
            left = p.targets[b] - p.etas[b, m] - e_hat
            value += (left**2).sum() / 2 / (B * len(sizes))
            for j in z:
                if start <= j < end:
                    d_a[b, j] -= left @ params.W_dec[j] / (B * len(sizes))
                    d_W[j] -= left * z[j] / (B * len(sizes))
    return value, {"a": d_a, "W_dec": d_W}


EQUATIONS = [
    (penalties.l1_decoder_norm, activations.abs_topk(3), l1_decoder_norm),
    (penalties.tanh_sparsity, activations.abs_topk(3), tanh_sparsity),
    (penalties.l0, JUMP, l0),
    (penalties.gated_l1, activations.gated, gated_l1),
    (penalties.gated_aux, activations.gated, gated_aux),
    (penalties.pre_act, JUMP, pre_act),
    (penalties.aux_k(2), activations.topk(3), aux_k),
]


def assert_is_the_equation(expected, objective, params, X, hparams, state):
    """Value and cotangents, in untied parameters."""
    [penalty] = objective.penalties
    p, found = pass_and_cotangents(objective, params, X, hparams, state)
    value, derivatives = expected(p._replace(**_as_numpy(p)), _as_numpy(params))
    assert value != 0
    result = penalty.checked_value(objective.ae, params, p)
    # A few hundred roundings of float64.
    np.testing.assert_allclose(result, value, rtol=1e-12)
    d_a = dense(found.a, H) if isinstance(found.a, Codes) else found.a
    d_params = found.params or jax.tree.map(jnp.zeros_like, params)
    leaves = {"a": d_a, "z": found.z, "eta": found.eta, "etas": found.etas}
    leaves |= {"W_enc": d_params.W_enc, "W_dec": d_params.W_dec}
    leaves |= {"b_enc": d_params.b_enc, "b_dec": d_params.b_dec}
    leaves |= getattr(d_params.activation, "_asdict", dict)()
    for name, leaf in leaves.items():
        zero_or = derivatives.get(name, np.zeros(np.shape(0 if leaf is None else leaf)))
        leaf = 0 if leaf is None else leaf
        np.testing.assert_allclose(leaf, zero_or, rtol=1e-12, atol=1e-14, err_msg=name)
    assert {*derivatives} <= {*leaves}


def _as_numpy(tree):
    if isinstance(tree, Pass):
        names = ("a", "z", "eta", "etas", "targets")
        return {name: np.asarray(getattr(tree, name)) for name in names}
    return jax.tree.map(np.asarray, tree)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "penalty, g, expected", EQUATIONS, ids=[str(row[0]) for row in EQUATIONS]
)
def test_value_and_partial_derivatives_are_the_equations(penalty, g, expected):
    assert_is_the_equation(expected, *case(penalty, g))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("is_cut", [False, True])
def test_aux_k_explains_the_residual_of_each_prefix_by_its_own_dead_latents(is_cut):
    arguments = case(
        penalties.aux_k(3), activations.topk(3), prefixes=SIZES, cut_prefixes=is_cut
    )

    def expected(p, params):
        return aux_k(p, params, k=3, sizes=SIZES, is_cut=is_cut)

    assert_is_the_equation(expected, *arguments)


@pytest.mark.usefixtures("x64")
def test_aux_k_of_latents_below_0_takes_the_largest_magnitudes_with_their_signs():
    arguments = case(penalties.aux_k(2), activations.abs_topk(3))
    assert_is_the_equation(
        lambda p, params: aux_k(p, params, is_signed=True), *arguments
    )


@pytest.mark.usefixtures("x64")
def test_pre_act_without_a_threshold_is_of_negative_pre_activations():
    arguments = case(penalties.pre_act, activations.topk(3))

    def expected(p, params):
        zeros = JUMP.init(H)._replace(threshold=np.zeros(H))
        value, derivatives = pre_act(p, params._replace(activation=zeros))
        return value, {name: derivatives[name] for name in ("a", "W_dec")}

    assert_is_the_equation(expected, *arguments)


@pytest.mark.usefixtures("x64")
def test_a_row_of_zeros_in_the_decoder_has_gradient_0():
    for penalty in (penalties.l1_decoder_norm, penalties.tanh_sparsity):
        objective, params, *arguments = case(penalty, activations.topk(3))
        params = params._replace(W_dec=params.W_dec.at[:2].set(0))
        grads = jax.grad(term(objective, *arguments))(params)
        _, found = pass_and_cotangents(objective, params, *arguments)
        for d_W_dec in (grads.W_dec, found.params.W_dec):
            assert jnp.all(d_W_dec[:2] == 0) and jnp.all(jnp.isfinite(d_W_dec))


# ---- by hand as by autodiff, through the whole objective -----------------------------

SHARED = {"tied": True, "pre_bias": True}  # the encoder has all of the decoder's arrays
WHOLE = [
    *((penalty, g, SHARED, {}) for penalty, g, _ in EQUATIONS),
    (penalties.aux_k(2), activations.batch_topk(2), {}, {}),
    (penalties.aux_k(3), activations.topk(3), {}, {"prefixes": SIZES}),
    *(
        (penalty, g, SHARED, {"prefixes": SIZES, "cut_prefixes": True})
        for penalty, g, _ in EQUATIONS[-3:]
    ),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("penalty, g, choices, more", WHOLE, ids=str)
def test_the_gradient_by_hand_is_that_of_autodiff(penalty, g, choices, more):
    objective, params, X, hparams, state = case(
        penalty, g, model_choices=choices, **more
    )

    @jax.jit
    def gradients(params):
        arguments = params, X, None, hparams, state
        by_autodiff = jax.value_and_grad(objective, has_aux=True)(*arguments)
        return by_autodiff, manual.value_and_grad(objective)(*arguments)

    ((loss, _), expected), ((same_loss, _), found) = gradients(params)
    np.testing.assert_allclose(same_loss, loss, rtol=1e-12)
    for leaf, expected_leaf in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(leaf, expected_leaf, rtol=1e-12, atol=1e-12)


# ---- what a penalty does not train ---------------------------------------------------


def assert_only(grads, *names):
    """The leaves of these names have a gradient, and the others are exactly 0."""
    for field, leaves in grads._asdict().items():
        is_trained = any(np.any(leaf != 0) for leaf in jax.tree.leaves(leaves))
        assert is_trained == (field in names), field


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "penalty, g, trained",
    [
        (penalties.l0, JUMP, ("activation",)),
        (penalties.gated_l1, activations.gated, ("W_enc", "b_enc")),
        (penalties.gated_aux, activations.gated, ("W_enc", "b_enc")),
        (penalties.aux_k(2), activations.topk(3), ("W_enc", "W_dec", "b_enc")),
    ],
    ids=str,
)
def test_a_penalty_trains_its_leaves_alone(penalty, g, trained):
    objective, params, *arguments = case(penalty, g)
    assert_only(jax.grad(term(objective, *arguments))(params), *trained)


@pytest.mark.usefixtures("x64")
def test_aux_k_leaves_alive_latents_alone():
    objective, params, *arguments = case(penalties.aux_k(H), activations.topk(3))
    grads = jax.grad(term(objective, *arguments))(params)
    _, found = pass_and_cotangents(objective, params, *arguments)
    for leaf in (grads.W_enc, grads.W_dec, grads.b_enc[:, None], found.params.W_dec):
        assert not np.any(leaf[~DEAD]) and np.any(leaf[DEAD])
    assert not np.any(dense(found.a, H)[:, ~DEAD])


@pytest.mark.usefixtures("x64")
def test_aux_k_counts_the_bias_once():
    """Where no dead latent is positive, what is left is the residual."""
    objective, params, X, *more = case(penalties.aux_k(2), activations.topk(3))
    b_enc = jnp.where(jnp.asarray(DEAD), -100.0, params.b_enc)
    params = params._replace(b_enc=b_enc, b_dec=params.b_dec + 10)
    x_hat = jax.vmap(objective.ae.reconstruct, (None, 0))(params, X)
    expected = metrics.squared_error(X, x_hat) / 2
    found = term(objective, X, *more)(params)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_aux_k_does_all_its_work_in_a_branch_that_needs_a_dead_latent():
    objective, params, *arguments = case(penalties.aux_k(2), activations.topk(3))
    [penalty] = objective.penalties
    p, _ = pass_and_cotangents(objective, params, *arguments)
    for part in (penalty.value, penalty.cotangents):
        jaxpr = jax.make_jaxpr(functools.partial(part, objective.ae, params))(p)
        names = {equation.primitive.name for equation in jaxpr.eqns}
        assert "cond" in names and not names & {"top_k", "dot_general", "scan"}


@pytest.mark.usefixtures("x64")
def test_aux_k_is_0_while_no_latent_is_dead():
    objective, params, *arguments = case(
        penalties.aux_k(2), activations.topk(3), is_dead=np.zeros(H, bool)
    )
    value, grads = jax.value_and_grad(term(objective, *arguments))(params)
    _, found = pass_and_cotangents(objective, params, *arguments)
    for leaf in (value, *jax.tree.leaves((grads, found.params, found.a.values))):
        assert not np.any(leaf)


@pytest.mark.usefixtures("x64")
def test_padding_has_no_part_in_the_penalties():
    """The value and gradient of a model of 4 latents, of which 2 more are padding."""
    for penalty in (penalties.l0, penalties.pre_act, penalties.aux_k(2)):
        wide, params, X, hparams, state = case(
            penalty, JUMP, hparams={"latent_dim": 4}, is_dead=np.ones(H, bool)
        )
        narrow = dataclasses.replace(
            wide, ae=jaxae.Autoencoder(**{**_choices(wide.ae), "latent_dim": 4})
        )
        params = jax.tree.map(
            lambda leaf: leaf if leaf.shape == (D,) else leaf.at[4:].set(0), params
        )
        few = jax.tree.map(lambda x: x if x.shape == (D,) else x[:4], params)
        few_state = jax.tree.map(lambda count: count[:4], state)
        found = jax.value_and_grad(term(wide, X, hparams, state))(params)
        hparams = {name: hparams[name] for name in hparams if name != "latent_dim"}
        expected = jax.value_and_grad(term(narrow, X, hparams, few_state))(few)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
        _, by_hand = pass_and_cotangents(
            wide, params, X, {**hparams, "latent_dim": 4}, state
        )
        d_threshold = by_hand.params.activation.threshold
        for leaf in (found[1].activation.threshold, d_threshold):
            assert not np.any(leaf[4:])


@pytest.mark.usefixtures("x64")
def test_padding_does_not_count_as_dead():
    is_padding = np.arange(H) >= 4
    objective, params, *arguments = case(
        penalties.aux_k(2), JUMP, hparams={"latent_dim": 4}, is_dead=is_padding
    )
    assert term(objective, *arguments)(params) == 0


def _choices(ae):
    names = ("input_dim", "latent_dim", "activation", "observation", "tied")
    return {name: getattr(ae, name) for name in names}


# ---- l0: a bandwidth that is swept, and the metric of its name -----------------------


@pytest.mark.usefixtures("x64")
def test_l0_uses_the_bandwidth_of_the_hparams():
    objective, params, *arguments = case(penalties.l0, JUMP)
    other, _, X, hparams, state = case(
        penalties.l0,
        activations.jumprelu(bandwidth=5.0, threshold=0.3, scale=1.5),
        hparams={"bandwidth": 0.8},
    )
    expected = jax.grad(term(objective, *arguments))(params)
    found = jax.grad(term(other, X, hparams, state))(params)
    by_hand = pass_and_cotangents(other, params, X, hparams, state)[1].params
    for grads in (found, by_hand):
        np.testing.assert_array_equal(
            grads.activation.threshold, expected.activation.threshold
        )


@pytest.mark.usefixtures("x64")
def test_the_metric_l0_is_the_penalty_l0_and_is_listed_once():
    objective, params, X, hparams, state = case(penalties.l0, JUMP)
    found = diagnostics.evaluate(objective, params, X, hparams, state)
    Z = jax.vmap(objective.ae.encode, (None, 0))(params, X)
    value = term(objective, X, hparams, state)(params)
    # The metric counts in float32.
    np.testing.assert_allclose([found["l0"], value], np.count_nonzero(Z) / B, rtol=1e-6)
    names = diagnostics.names_of_epoch(objective, jaxae.TrainConfig(), True)
    assert len(names) == len({*names}) and "validation/l0" in names


# ---- names, pickles, files -----------------------------------------------------------


def test_a_factory_gives_the_same_penalty_for_the_same_number():
    penalty = penalties.aux_k(7)
    assert penalties.aux_k(7) is penalties.aux_k(k=7) is penalty
    assert penalties.get("aux_k(7)") is penalties.find("aux_k( k=7 )") is penalty
    assert penalty != penalties.aux_k(8) and len({penalty, penalties.aux_k(7)}) == 1
    assert repr(penalty) == "aux_k(7)" and penalty.name == "aux_k"
    assert pickle.loads(pickle.dumps(penalty)) is penalty


def test_penalties_are_found_by_name_and_survive_pickling():
    for name, part in {**penalties.CATALOGUE, **penalties.SPARSE}.items():
        assert part is getattr(penalties, name)
        if isinstance(part, penalties.Penalty):
            assert penalties.get(name) is penalties.find(name) is part
            assert pickle.loads(pickle.dumps(part)) == part
    changed = penalties.aux_k(7)._replace(needs_dead=False)
    assert not pickle.loads(pickle.dumps(changed)).needs_dead


def test_an_objective_takes_the_name_and_counts_the_steps():
    objective = jaxae.Objective(model("topk(3)"), penalties=("aux_k(2)",))
    assert objective.penalties == (penalties.aux_k(2),)
    assert objective.hparam_names == ("aux_k",) and objective.dead_after == 1000
    assert objective.surrogate == ("W_enc", "W_dec", "b_enc", "b_dec")


def test_a_resumed_run_must_have_the_same_k():
    def of(k):
        objective = jaxae.Objective(model("topk(3)"), penalties=(penalties.aux_k(k),))
        arguments = jaxae.TrainConfig(), {}, jax.random.key(0), None, np.zeros((2, D))
        return checkpointing.fingerprint(objective, *arguments, None)

    assert of(2) != of(3)


def sentence(make):
    with pytest.raises(jaxae.ArgumentError) as error:
        make()
    return str(error.value)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: jaxae.Objective(model("topk(3)"), penalties=("l0",)),
            "the l0 penalty needs an activation with gate and gate_vjp, but topk(3) "
            "has none; use jumprelu().",
        ),
        (
            lambda: jaxae.Objective(model("relu"), penalties=("gated_l1",)),
            "the gated_l1 penalty trains the gate of the activation gated, but the "
            "activation is relu; use gated.",
        ),
        (
            lambda: jaxae.Objective(model("relu"), penalties=("gated_aux",)),
            "the gated_aux penalty trains the gate of the activation gated, but the "
            "activation is relu; use gated.",
        ),
        (
            lambda: jaxae.Objective(model("topk(3)"), penalties=("aux_k(7)",)),
            "the penalty aux_k(7) needs at least 7 latents, got latent_dim 6.",
        ),
        (
            lambda: jaxae.Objective(
                model("topk(3)", observation="bernoulli"), penalties=("aux_k(2)",)
            ),
            "the penalty aux_k(2) explains the residual x - eta, but the mean of the "
            "observation bernoulli is sigmoid(eta); use gaussian.",
        ),
        (
            lambda: penalties.aux_k(0),
            "k must be an integer of at least 1, got 0.",
        ),
        (
            lambda: penalties.get("aux_k"),
            "penalty must be written as a function of numbers, such as aux_k(32), got "
            "'aux_k'.",
        ),
        (
            lambda: jaxae.Objective(
                model("relu"), penalties=("tanh_sparsity",)
            ).check_hparams({"tanh_sparsity": 1.0, "tanh_sparsity_scale": 0.0}),
            "hparams['tanh_sparsity_scale'] must be positive, got 0.0.",
        ),
        (
            lambda: jaxae.Objective(
                model("topk(3)"), penalties=(penalties.aux_k(1), penalties.aux_k(2))
            ),
            "penalties must have different names, got aux_k, aux_k.",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, message):
    assert sentence(make) == message
