"""A learned dictionary against the known one: every metric of SynthSAEBench."""

import re

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import jaxae
from jaxae import recovery
from jaxae.data import dictionaries

KEY = jax.random.key(0)
NUM_FEATURES = 16
LATENT_DIM = 16


def oracle(W_dec, features, z=None, a=None, x=None, x_hat=None):
    """Every metric, in NumPy and float64."""

    def unit(V):
        norms = np.linalg.norm(np.asarray(V, np.float64), axis=1, keepdims=True)
        return np.divide(V, norms, out=np.zeros(V.shape), where=norms > 0)

    C = unit(W_dec) @ unit(features).T
    rows, columns = linear_sum_assignment(1 - np.abs(C))
    nearest = np.abs(C).argmax(axis=1)
    metrics = {
        "mcc": np.abs(C)[rows, columns].mean(),
        "mmcs": C.max(axis=1).mean(),
        "uniqueness": len(set(nearest)) / len(C),
    }
    if z is None:
        return C, metrics
    names, per_latent = ("f1", "precision", "recall", "accuracy"), []
    for fired, active in zip((z != 0).T, (a[:, nearest] > 0).T):
        tp, fp = (fired & active).sum(), (fired & ~active).sum()
        fn, tn = (~fired & active).sum(), (~fired & ~active).sum()
        pairs = [(2 * tp, 2 * tp + fp + fn), (tp, tp + fp), (tp, tp + fn)]
        pairs.append((tp + tn, len(z)))
        per_latent.append([top / bottom if bottom else 0 for top, bottom in pairs])
    metrics |= dict(zip(names, np.mean(per_latent, axis=0)))
    x, x_hat = np.asarray(x, np.float64), np.asarray(x_hat, np.float64)
    metrics["explained_variance"] = (
        1 - ((x - x_hat) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum()
    )
    norms = np.linalg.norm(x, axis=1)
    ratios = np.linalg.norm(x_hat, axis=1)[norms > 1e-6] / norms[norms > 1e-6]
    metrics["shrinkage"] = ratios.mean()
    metrics["l0"], metrics["true_l0"] = (z != 0).sum(1).mean(), (a > 0).sum(1).mean()
    metrics["dead_fraction"] = (z == 0).all(axis=0).mean()
    return C, metrics


# ---- perfect, permuted, degraded and random dictionaries -----------------------------

# An orthonormal dictionary, so that the perfect code is known: z = relu(V x - 0.01).
ORTHONORMAL = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0]
TRUTH = dictionaries.build(
    ORTHONORMAL.astype("f4"),
    dictionaries.zipf(NUM_FEATURES, 0.4, 0.1),
    magnitudes=1.0,
    spreads=0.1,
)
AE = jaxae.Autoencoder(
    input_dim=16,
    latent_dim=LATENT_DIM,
    activation="relu",
    observation="gaussian",
    tied=True,
)


def params_of(W):
    W = jnp.asarray(W, jnp.float32)
    return jaxae.TiedParams(W, jnp.full(len(W), -0.01), jnp.zeros(W.shape[1]))


def learned(kind):
    rng, V = np.random.default_rng(1), ORTHONORMAL
    if kind == "permuted":
        return V[rng.permutation(len(V))]
    if kind == "degraded":  # noise, two latents for one feature, and a dead latent
        V = V + 0.1 * rng.normal(size=V.shape)
        V[-1], V[-2] = V[0], 0
    if kind == "random":
        V = rng.normal(size=V.shape)
    return V / np.maximum(np.linalg.norm(V, axis=1, keepdims=True), 1e-9)


@pytest.fixture(scope="module")
def batches():
    return list(TRUTH.batches(KEY, 4, 500))


@pytest.fixture(scope="module")
def scores(batches):
    return {
        kind: recovery.evaluate(AE, params_of(learned(kind)), batches, TRUTH.features)
        for kind in ("perfect", "permuted", "degraded", "random")
    }


# How far each metric is from its best value; what is better is smaller.
DISTANCES = {
    **{
        name: lambda scores, name=name: 1 - scores[name]
        for name in (
            *("mcc", "mmcs", "uniqueness", "explained_variance"),
            *("f1", "precision", "recall", "accuracy"),
        )
    },
    "shrinkage": lambda scores: abs(1 - scores["shrinkage"]),
}


@pytest.mark.parametrize("metric", DISTANCES)
def test_every_metric_ranks_perfect_permuted_degraded_and_random(scores, metric):
    """Pattern of arXiv 2605.18229: what does not rank these four is no metric."""
    distance = {kind: DISTANCES[metric](scores[kind]) for kind in scores}
    # b_enc shrinks the reconstruction a little.
    assert distance["perfect"] < 0.02
    np.testing.assert_allclose(distance["permuted"], distance["perfect"], atol=1e-5)
    assert distance["perfect"] < distance["degraded"] < distance["random"]


@pytest.mark.parametrize("kind", ["perfect", "degraded", "random"])
def test_evaluate_equals_the_oracle_however_the_data_are_split(scores, batches, kind):
    W = params_of(learned(kind)).W
    x, a = (np.concatenate(list(map(np.asarray, arrays))) for arrays in zip(*batches))
    z = jax.vmap(AE.encode, (None, 0))(params_of(W), x)
    x_hat = jax.vmap(AE.reconstruct, (None, 0))(params_of(W), x)
    _, expected = oracle(W, TRUTH.features, np.asarray(z), a, x, x_hat)
    assert scores[kind] == pytest.approx(expected, rel=2e-5)
    assert all(type(value) is float for value in scores[kind].values())
    blocks = [(x[rows], a[rows]) for rows in np.split(np.arange(2000), [7, 1007])]
    split = recovery.evaluate(AE, params_of(W), iter(blocks), TRUTH.features)
    assert split == pytest.approx(expected, rel=2e-5)


def test_a_dead_latent_predicts_nothing_and_makes_no_nan(batches):
    W = learned("perfect").copy()
    W[3] = 0
    with jax.debug_nans(True):
        actual = recovery.evaluate(AE, params_of(W), batches, TRUTH.features)
    assert actual["dead_fraction"] == 1 / 16
    assert actual["f1"] == pytest.approx(15 / 16, abs=1e-3)
    # Its nearest feature is the first one, which another latent has.
    assert actual["uniqueness"] == 15 / 16
    assert actual["mcc"] == pytest.approx(15 / 16, abs=1e-5)
    assert actual["mmcs"] == pytest.approx(15 / 16, abs=1e-5)


def of_batch(A, theta, state, training):
    del theta, state
    return jax.nn.relu(A) if training else jnp.zeros_like(A)


def test_an_activation_that_depends_on_the_batch_is_told_whether_it_trains(batches):
    relu = jaxae.activations.relu
    activation = relu._replace(
        name="relu while training",
        apply_batch=of_batch,
        vjp_batch=lambda A, Z, dZ, theta, state: jnp.where(A > 0, dZ, 0),
    )
    ae = jaxae.Autoencoder(
        input_dim=16, latent_dim=16, activation=activation, observation="gaussian"
    )
    params = params_of(learned("perfect"))
    for training in (True, False):
        actual = recovery.evaluate(
            ae, params, batches[:1], TRUTH.features, training=training
        )
        assert (actual["l0"] > 0) == training


def own_encoder(ae, params, x):
    return jax.vmap(ae.encode, (None, 0))(params, x)


def silent_encoder(ae, params, x):
    return jnp.zeros((len(x), ae.latent_dim))


def test_another_encoder_takes_the_place_of_the_models(scores, batches):
    params = params_of(learned("degraded"))
    arguments = AE, params, batches, TRUTH.features
    same = recovery.evaluate(*arguments, encode=own_encoder)
    assert same == pytest.approx(scores["degraded"], abs=1e-6)
    silent = recovery.evaluate(*arguments, encode=silent_encoder)
    assert silent["l0"] == 0 and silent["dead_fraction"] == 1


def test_an_encoder_of_wrong_shape_raises_one_sentence(batches):
    params = params_of(learned("perfect"))
    with pytest.raises(ValueError, match=r"^encode must return .* \[500, 16\]"):
        recovery.evaluate(
            AE, params, batches, TRUTH.features, encode=lambda ae, params, x: x[0]
        )


# ---- the functions one by one --------------------------------------------------------


def everything(W_dec, features, z, a, x, x_hat):
    nearest = recovery.nearest_features(W_dec, features)
    counts = recovery.count(z, a, nearest)
    return {
        "cosines": recovery.cosine_similarities(W_dec, features),
        "nearest": nearest,
        "mmcs": recovery.mmcs(W_dec, features),
        "uniqueness": recovery.uniqueness(W_dec, features),
        "counts": counts,
        "shrinkage": recovery.shrinkage(x, x_hat),
        **recovery.classification(counts)._asdict(),
    }


@hypothesis.settings(max_examples=5, deadline=None, derandomize=True)
@hypothesis.given(
    F=st.integers(1, 6),
    N=st.integers(1, 6),
    D=st.integers(2, 5),
    B=st.integers(2, 4),
    zero_row=st.booleans(),
)
def test_any_shapes_equal_the_oracle(F, N, D, B, zero_row):
    rng = np.random.default_rng([F, N, D, B])
    W_dec, features, x, x_hat = (
        rng.normal(size=(rows, D)).astype("f4") for rows in (F, N, B, B)
    )
    z, a = (np.maximum(rng.normal(size=(B, n)), 0).astype("f4") for n in (F, N))
    if zero_row:
        W_dec[0] = 0
        x[0] = 0
    C, expected = oracle(W_dec, features, z, a, x, x_hat)
    actual = jax.jit(everything)(W_dec, features, z, a, x, x_hat)
    np.testing.assert_allclose(actual["cosines"], C, atol=1e-6)
    np.testing.assert_array_equal(actual["nearest"], np.abs(C).argmax(axis=1))
    assert recovery.mcc(W_dec, features) == pytest.approx(expected["mcc"], abs=1e-6)
    for name in ("mmcs", "uniqueness", "f1", "precision", "recall", "accuracy"):
        np.testing.assert_allclose(np.mean(actual[name]), expected[name], atol=1e-6)
    np.testing.assert_allclose(actual["shrinkage"], expected["shrinkage"], rtol=1e-5)


def test_jit_changes_nothing():
    rng = np.random.default_rng(0)
    shapes = (5, 3), (4, 3), (6, 5), (6, 4), (6, 3), (6, 3)
    arrays = [np.maximum(rng.normal(size=shape), 0).astype("f4") for shape in shapes]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        everything(*arrays),
        jax.jit(everything)(*arrays),
    )


def test_shrinkage_of_zeros_alone_is_nan():
    assert np.isnan(recovery.shrinkage(np.zeros((2, 3), "f4"), np.ones((2, 3), "f4")))


def test_signs_count_for_mmcs_alone_and_mmcs_has_a_direction():
    V = np.eye(3, dtype="f4")
    assert recovery.mcc(-V, V) == recovery.mcc(V, V) == 1
    assert recovery.mmcs(V, V) == 1 and recovery.mmcs(-V, V) == 0
    assert recovery.uniqueness(-V, V) == 1
    # Two of three true features are learned: from learned to true, all match.
    assert recovery.mmcs(V[:2], V) == 1
    np.testing.assert_allclose(recovery.mmcs(V, V[:2]), 2 / 3, rtol=1e-6)


def test_the_matching_of_mcc_is_one_to_one():
    V = np.eye(2, dtype="f4")
    twice = np.array([[1, 0], [1, 1e-3]], "f4")  # both are nearest to the first
    np.testing.assert_allclose(recovery.mcc(twice, V), (1 + 1e-3) / 2, rtol=1e-4)
    # min(F, N) pairs: a third latent, or a third feature, takes part in none.
    assert recovery.mcc(np.concatenate([V, V[:1]]), V) == 1
    assert recovery.mcc(V, np.concatenate([V, V[:1]])) == 1


def test_cosines_neither_overflow_nor_vanish():
    V = np.eye(2, dtype="f4")
    for scale in (1e-30, 1e30):
        np.testing.assert_array_equal(
            recovery.cosine_similarities(np.float32(scale) * V, V), V
        )


def test_float64_stays_float64(x64):
    V = np.random.default_rng(0).normal(size=(4, 3))
    C, _ = oracle(V, V[:2])
    np.testing.assert_allclose(
        recovery.cosine_similarities(V, V[:2]), C, rtol=0, atol=1e-15
    )


@pytest.mark.parametrize(
    "function, arguments, message",
    [
        ("mmcs", (np.ones(3, "f4"), np.ones((2, 3), "f4")), "[F, D] and [N, D], got"),
        ("mcc", (np.ones((2, 3), "f4"), np.ones((2, 4), "f4")), "[2, 3] and [2, 4]."),
        ("uniqueness", (np.ones((0, 3), "f4"), np.ones((2, 3), "f4")), "got [0, 3]"),
        ("mcc", (np.ones((1, 2), int), np.ones((1, 2), "f4")), "floating dtype"),
        ("mcc", (np.full((1, 2), np.nan, "f4"), np.ones((1, 2), "f4")), "be finite."),
        ("count", (np.ones((2, 3)), np.ones((1, 4)), [0, 1, 2]), "[2, 3], [1, 4], [3]"),
        ("count", (np.ones((2, 3)), np.ones((2, 4)), [0, 1]), "[2, 3], [2, 4], [2]"),
        ("shrinkage", (np.ones((2, 3), "f4"), np.ones((1, 3), "f4")), "one shape"),
    ],
)
def test_shapes_that_do_not_fit_raise_one_sentence(function, arguments, message):
    with pytest.raises(jaxae.ArgumentError, match=re.escape(message)) as error:
        getattr(recovery, function)(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "make_batches, message",
    [
        (lambda x, a: [], "batches must hold at least one pair, got none."),
        (lambda x, a: [x], "batches must hold pairs (x, coefficients)"),
        (lambda x, a: [(x, a[:, :3])], "must have shapes [B, 16] and [B, 16], got"),
        (lambda x, a: [(x[:1], a)], "must have shapes [B, 16] and [B, 16], got"),
        (lambda x, a: [(x[:0], a[:0])], "must have shapes [B, 16] and [B, 16], got"),
    ],
)
def test_batches_that_are_none_raise_one_sentence(batches, make_batches, message):
    params = params_of(learned("perfect"))
    with pytest.raises(jaxae.ArgumentError, match=re.escape(message)):
        recovery.evaluate(AE, params, make_batches(*batches[0]), TRUTH.features)


def test_mcc_under_jit_says_where_to_call_it():
    with pytest.raises(jaxae.ArgumentError, match="call it outside jax.jit"):
        jax.jit(recovery.mcc)(jnp.eye(2), jnp.eye(2))
