"""Initial values: copies, norms and scales of weights; the geometric median."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from catalogue import batch, prelu
from hypothesis import given, settings
from hypothesis import strategies as st
from judges import FLOAT16

import jaxae
from jaxae import data
from jaxae.activations import Activation
from jaxae.autoencoder import aligned

KEY = jax.random.key(0)
D, H = 6, 4


class SparseActivation(Activation):
    """An activation whose record says that it is sparse."""

    is_sparse = True


sparse = SparseActivation(*jaxae.activations.relu)._replace(name="sparse")


def model(activation="relu", **choices):
    return jaxae.Autoencoder(
        input_dim=D,
        latent_dim=H,
        activation=activation,
        observation="gaussian",
        **{"tied": False, **choices},
    )


def norms(W):
    return np.linalg.norm(np.asarray(W, np.float64), axis=1)


# ---- the encoder and the norms -------------------------------------------------------


def test_the_encoder_can_start_as_the_decoder():
    params = model().init(KEY, encoder="decoder")
    np.testing.assert_array_equal(params.W_enc, params.W_dec)
    apart = model().init(KEY, encoder="random")
    assert not np.isclose(apart.W_enc, apart.W_dec).any()
    np.testing.assert_array_equal(apart.W_dec, params.W_dec)


@pytest.mark.parametrize("encoder", ["decoder", "random"])
def test_decoder_rows_can_start_at_a_norm(encoder):
    ae = model()
    params = ae.init(KEY, encoder=encoder, decoder_norm=0.1)
    # Of float32, whose rows have six entries.
    np.testing.assert_allclose(norms(params.W_dec), 0.1, rtol=1e-6)
    drawn = ae.init(KEY)
    np.testing.assert_allclose(
        params.W_dec, 0.1 * drawn.W_dec / norms(drawn.W_dec)[:, None], rtol=1e-5
    )
    expected = params.W_dec if encoder == "decoder" else drawn.W_enc
    np.testing.assert_array_equal(params.W_enc, expected)


def test_tied_rows_can_start_at_a_norm():
    params = model(tied=True).init(KEY, decoder_norm=2.0)
    np.testing.assert_allclose(norms(params.W), 2, rtol=1e-6)
    drawn = model(tied=True).init(KEY).W
    np.testing.assert_allclose(params.W, 2 * drawn / norms(drawn)[:, None], rtol=1e-5)


def drawn_as_documented(ae, key):
    """W_enc and W_dec: each row from a key of its own, uniform in [-r, r]."""

    def draw(key, width):
        keys = [jax.random.fold_in(key, i) for i in range(H)]
        rows = [
            jax.random.uniform(key, (width,), jnp.float32, -1.0, 1.0) for key in keys
        ]
        return np.float32(ae.init_limit) * np.stack(rows)

    encoder_key, decoder_key = jax.random.split(key)
    return draw(encoder_key, D), draw(decoder_key, D)


@pytest.mark.parametrize("name", sorted(jaxae.activations.CATALOGUE))
def test_activations_that_are_not_sparse_start_as_drawn(name):
    assert not jaxae.activations.CATALOGUE[name].is_sparse
    W_enc, W_dec = drawn_as_documented(model(name), KEY)
    params = model(name).init(KEY)
    np.testing.assert_array_equal(params.W_enc, W_enc)
    np.testing.assert_array_equal(params.W_dec, W_dec)
    np.testing.assert_array_equal(model(name, tied=True).init(KEY).W, W_enc)


def test_a_sparse_activation_starts_with_unit_decoder_rows_and_a_copy():
    params = model(sparse).init(KEY)
    chex.assert_trees_all_equal(
        params, model().init(KEY, encoder="decoder", decoder_norm=1.0)
    )
    np.testing.assert_allclose(norms(params.W_dec), 1, rtol=1e-6)
    tied = model(sparse, tied=True).init(KEY)
    np.testing.assert_allclose(norms(tied.W), 1, rtol=1e-6)
    apart = model(sparse).init(KEY, encoder="random")
    assert not np.isclose(apart.W_enc, apart.W_dec).any()
    transcoder = model(sparse, output_dim=3).init(KEY)
    assert transcoder.W_enc.shape == (H, D) and transcoder.W_dec.shape == (H, 3)
    np.testing.assert_allclose(norms(transcoder.W_dec), 1, rtol=1e-6)


def test_aligned_weights_of_unit_norm_start_as_their_own_encoder():
    ae = model(sparse, tied=None, parametrization=aligned)
    params = ae.init(KEY)
    expanded = ae.expand(params)
    np.testing.assert_allclose(expanded.W_enc, params.W_dec, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "is_tied, width",
    [
        (True, 6),
        (True, 37),
        (False, 768),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in ((True, 768), (False, 6))
        ),
        pytest.param(False, 37, marks=pytest.mark.slow),
    ],
)
def test_jit_vmap_and_eager_start_from_the_same_bits(width, is_tied):
    ae = jaxae.Autoencoder(
        input_dim=width,
        latent_dim=5,
        activation=sparse,
        observation="gaussian",
        tied=is_tied,
    )
    keys = jax.random.split(KEY, 3)
    scale = jnp.float32(0.7)

    def init(key, scale):
        return ae.init(key, scale=scale)

    together = jax.jit(jax.vmap(init, (0, None)))(keys, scale)
    for i, key in enumerate(keys):
        eager = init(key, scale)
        chex.assert_trees_all_equal(jax.jit(init)(key, scale), eager)
        chex.assert_trees_all_equal(
            jax.tree.map(lambda leaf, i=i: leaf[i], together), eager
        )


# ---- scale and limit -----------------------------------------------------------------


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("activation", ["relu", sparse], ids=str)
def test_scale_multiplies_all_that_is_drawn(activation, is_tied):
    ae = model(activation, tied=is_tied)
    once, twice = ae.init(KEY), ae.init(KEY, scale=2.0)
    for name in ae.parametrization.weights:
        doubled = 2 * getattr(once, name)
        np.testing.assert_array_equal(getattr(twice, name), doubled)


def test_init_scale_of_a_run_and_of_a_lane_is_that_scale():
    hparams = {"learning_rate": 0.0, "init_scale": 0.5}
    config = jaxae.TrainConfig(num_epochs=1, batch_size=4, diagnostics=False)
    for ae in (model(sparse), model()):
        objective, X = jaxae.Objective(ae), batch(4, D)
        run = jaxae.train(objective, X, hparams=hparams, key=KEY, config=config)
        init_key, _ = jax.random.split(KEY)
        expected = ae.init(init_key, scale=0.5)
        chex.assert_trees_all_close(run.params, expected, rtol=1e-6)
        sweep = jaxae.sweep(
            objective,
            X,
            {"init_scale": [0.5, 2.0]},
            hparams={"learning_rate": 0.0},
            key=KEY,
            config=config,
        )
        for lane, factor in enumerate((1, 4)):
            scaled = jax.tree.map(lambda leaf, f=factor: f * leaf, sweep.params(0))
            found = sweep.params(lane)
            chex.assert_trees_all_close(found, scaled, rtol=1e-6)
        run = jaxae.train(data=X, **sweep.trial(1))
        chex.assert_trees_all_close(sweep.params(1), run.params, rtol=1e-6)


def test_the_limit_is_of_rows_as_drawn_alone():
    ae = model()
    W = ae.init(KEY, limit=0.5).W_enc
    np.testing.assert_allclose(W, 0.5 / ae.init_limit * ae.init(KEY).W_enc, rtol=1e-6)
    normed = [ae.init(KEY, limit=r, decoder_norm=1.0).W_dec for r in (0.5, 3.0)]
    np.testing.assert_array_equal(*normed)
    transcoder = model(output_dim=2)
    limit = np.sqrt(6 / ((D + 2) / 2 + H))
    np.testing.assert_allclose(transcoder.init_limit, limit, rtol=1e-12)


@pytest.mark.parametrize(
    "choices, arguments, sentence",
    [
        ({}, {"encoder": "copy"}, "encoder must be 'decoder' or 'random', got 'copy'"),
        ({"tied": True}, {"encoder": "random"}, "must be 'decoder' with tied weights"),
        ({"output_dim": 3}, {"encoder": "decoder"}, "output_dim=3"),
        ({}, {"decoder_norm": 0.0}, "decoder_norm must be a positive number"),
        ({}, {"decoder_norm": "1"}, "decoder_norm must be a positive number"),
        ({}, {"decoder_norm": float("nan")}, "decoder_norm must be a positive number"),
        ({}, {"scale": -1.0}, "scale must be a positive number"),
        ({}, {"scale": 0}, "scale must be a positive number"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(choices, arguments, sentence):
    with pytest.raises(jaxae.ArgumentError, match=sentence):
        model(**choices).init(KEY, **arguments)


# ---- dtype ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FLOAT16, "bfloat16", "float32"])
def test_what_an_activation_learns_stays_at_least_float32(dtype, tmp_path):
    ae = model(prelu)
    params = ae.init(KEY, dtype=dtype)
    assert {leaf.dtype.name for leaf in params.activation} == {"float32"}
    assert {leaf.dtype.name for leaf in params[:4]} == {dtype}
    objective, X = jaxae.Objective(ae), batch(8, D)
    run = jaxae.train(
        objective,
        X,
        hparams={"learning_rate": 0.01},
        key=KEY,
        config=jaxae.TrainConfig(
            num_epochs=1,
            batch_size=4,
            gradient="manual",
            optimizer=lambda hp: optax.sgd(hp["learning_rate"]),
        ),
        params=params,
    )
    chex.assert_trees_all_equal_dtypes(run.params, params)
    jaxae.save(tmp_path, ae, run.params)
    _, loaded = jaxae.load(tmp_path, activation=prelu)
    chex.assert_trees_all_equal(loaded, run.params)


def test_what_an_activation_learns_is_float64_where_the_rest_is(x64):
    params = model(prelu).init(KEY, dtype=jnp.float64)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float64"}


# ---- the geometric median ------------------------------------------------------------


def mean_distance(y, X):
    return np.linalg.norm(np.asarray(X, np.float64) - y, axis=1).mean()


def least_mean_distance(X):
    """By scipy, from the mean and from every row, and at the rows themselves."""
    X = np.asarray(X, np.float64)
    minimize = functools.partial(
        scipy.optimize.minimize,
        mean_distance,
        args=(X,),
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-13},
    )
    return min(minimize(X.mean(axis=0)).fun, *(mean_distance(x, X) for x in X))


@settings(max_examples=15, deadline=None)
@given(
    st.integers(2, 12),  # N
    st.integers(1, 3),  # D
    st.sampled_from([0, 2]),  # decimals: few are different, so that rows coincide
    st.integers(0, 2**31 - 1),
)
def test_the_geometric_median_has_the_least_mean_distance(N, width, decimals, seed):
    X = np.random.default_rng(seed).normal(size=(N, width)).round(decimals)
    found, least = mean_distance(data.geometric_median(X), X), least_mean_distance(X)
    # The tolerance promised, and what scipy leaves.
    assert found <= least * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize("N", [1, 3, 11, 101])
def test_of_an_odd_number_of_numbers_it_is_the_median(N):
    X = np.random.default_rng(N).normal(size=(N, 1))
    found = data.geometric_median(X, tolerance=1e-9)
    np.testing.assert_allclose(found, np.median(X, axis=0), atol=1e-8)


@pytest.mark.parametrize(
    "X, expected",
    [
        ([[0, 0], [1, 0], [0, 1], [1, 1]], [0.5, 0.5]),  # symmetric
        ([[-1, 0], [1, 0], [0, 2], [0, -2], [0, 0]], [0, 0]),  # the mean is a row
        ([[2, 3]] * 5, [2, 3]),
        ([[0, 0], [0, 0], [0, 0], [4, 1], [9, 7]], [0, 0]),  # most rows are one
        # The mean, where the iteration starts, is a row that is not the median.
        ([[0], [0], [0], [1], [4]], [0]),
        # Fermat's point of a triangle of a vertex angle of 120 degrees and more.
        ([[0, 0], [1, 0.1], [-1, 0.1]], [0, 0]),
        # Of an equilateral triangle, its centre.
        ([[0, 0], [1, 0], [0.5, np.sqrt(0.75)]], [0.5, np.sqrt(0.75) / 3]),
    ],
)
def test_closed_forms_of_the_geometric_median(X, expected):
    X = np.array(X, float)
    found = data.geometric_median(X, tolerance=1e-9)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_the_geometric_median_hardly_moves_with_a_far_row():
    X = np.random.default_rng(0).normal(size=(200, 5)).astype("f4")
    far = np.concatenate([X, np.full((1, 5), 1e6, "f4")])
    clean, moved = data.geometric_median(X), data.geometric_median(far)
    assert np.linalg.norm(moved - clean) < 0.05
    assert np.linalg.norm(far.mean(axis=0) - X.mean(axis=0)) > 1000


@pytest.mark.parametrize("block_bytes", [1, 100, 2**20])
def test_the_geometric_median_of_rows_is_that_of_the_array(block_bytes, tmp_path):
    X = np.random.default_rng(1).normal(size=(50, 4)).astype("f4")
    np.save(tmp_path / "x.npy", X)
    expected = data.geometric_median(X)
    for rows in (np.load(tmp_path / "x.npy", mmap_mode="r"), list(X), jnp.asarray(X)):
        found = data.geometric_median(rows, block_bytes=block_bytes)
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_output_bias_can_start_at_the_geometric_median():
    X = batch(20, D)
    median = data.geometric_median(X)
    params = model(sparse, pre_bias=True).init(KEY, data_mean=median)
    np.testing.assert_allclose(params.b_dec, median, rtol=1e-6)


@pytest.mark.parametrize(
    "X, arguments, sentence",
    [
        (np.ones((0, 3)), {}, r"data must be \[N, D\]"),
        (np.array([[1.0, np.nan]]), {}, "data must be finite"),
        (np.ones((3, 3), int), {}, "must be real floating point"),
        (np.ones((3, 3)), {"tolerance": 0.0}, "tolerance must be positive"),
        (np.ones((3, 3)), {"max_passes": 0}, "max_passes must be an integer"),
        (np.ones((3, 3)), {"block_bytes": 0}, "block_bytes must be an integer"),
        (np.eye(4)[:, :3], {"tolerance": 1e-12, "max_passes": 2}, "in 2 passes over"),
    ],
)
def test_bad_data_and_tolerances_are_refused_in_one_sentence(X, arguments, sentence):
    with pytest.raises(jaxae.ArgumentError, match=sentence):
        data.geometric_median(X, **arguments)


def test_encoder_and_decoder_may_be_donated_together():
    params = jaxae.Autoencoder(
        input_dim=3, latent_dim=4, activation="topk(2)", tied=False
    ).init(jax.random.key(0))
    np.testing.assert_array_equal(params.W_enc, params.W_dec)
    jax.jit(lambda tree: jax.tree.map(jnp.negative, tree), donate_argnums=0)(params)
