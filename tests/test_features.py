"""Features are measured in one pass: against NumPy on all latents at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxae
from jaxae import features

H = 6


def passing(activation="relu", dtype=jnp.float32, **choices):
    """A model whose pre-activations are its inputs, H of them."""
    ae = jaxae.Autoencoder(
        input_dim=H, latent_dim=H, activation=activation, observation="gaussian"
    )
    params = ae.init(jax.random.key(0))
    params = params._replace(W=jnp.eye(H, dtype=dtype), b_enc=jnp.zeros(H, dtype))
    return ae, params._replace(b_dec=jnp.zeros(H, dtype))


def draws(num_rows, seed=0):
    """Values with ties, of very different sizes by column; column 0 is never active."""
    random = np.random.default_rng(seed)
    X = np.round(random.normal(size=(num_rows, H)), 1) * 10.0 ** np.arange(-2, 4)
    X[:, 0] = -1
    return X.astype(np.float32)


def strongest_rows(z, n):
    """The oracle: a stable sort of |z|, without rows where z is 0."""
    order = np.argsort(-np.abs(z), kind="stable")[:n]
    order = order[z[order] != 0]
    return np.pad(order, (0, n - len(order)), constant_values=-1)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(features, "_MAX_BLOCK_ROWS", 20)


# Blocks of one size, which compile once; the next test has others.
@given(seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
@pytest.mark.parametrize("activation", ["relu", "abs_topk(2)"])
def test_the_pass_equals_numpy(activation, seed):
    ae, params = passing(activation)
    X = draws(60, seed)
    Z = np.asarray(jax.vmap(ae.encode, (None, 0))(params, X))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "_MAX_BLOCK_ROWS", 20)
        found = features.measure(ae, params, X, num_top=7, num_samples=5, num_bins=8)
    is_active, strength = Z != 0, np.abs(Z)
    np.testing.assert_array_equal(found.density, is_active.mean(axis=0))
    np.testing.assert_array_equal(found.max, strength.max(axis=0))
    means = strength.sum(axis=0) / np.maximum(is_active.sum(axis=0), 1)
    np.testing.assert_allclose(found.mean, means, rtol=1e-5)  # sums of 60 float32
    np.testing.assert_array_equal(found.is_dead, jaxae.metrics.is_dead(Z))
    for j in range(H):
        rows = strongest_rows(Z[:, j], 7)
        np.testing.assert_array_equal(found.top.rows[j], rows)
        expected = np.where(rows >= 0, Z[rows, j], 0)
        np.testing.assert_array_equal(found.top.values[j], expected)
        limit = found.limit[j]
        assert is_active[:, j].any() == (limit > 0)
        if limit:
            assert limit / 2 <= strength[:, j].max() < limit == 2 ** np.log2(limit)
            edges = np.linspace(0, limit, 9)
            counts, _ = np.histogram(strength[is_active[:, j], j], edges)
            np.testing.assert_array_equal(found.counts[j], counts)
        rows, values = found.sample.rows[j], found.sample.values[j]
        assert (rows >= 0).sum() == min(5, is_active[:, j].sum())
        assert len({*rows[rows >= 0]}) == (rows >= 0).sum()
        np.testing.assert_array_equal(values, np.where(rows >= 0, Z[rows, j], 0))
        assert np.all(np.diff(np.abs(values)) <= 0)


def test_sampled_rows_are_spread_over_the_data_and_do_not_depend_on_blocks(monkeypatch):
    ae, params = passing("sigmoid")  # active on every row
    X = draws(4000, seed=3)
    found = features.measure(ae, params, X, num_samples=400)
    # A mean of 400 uniform numbers below 4000 has the standard deviation 58.
    rows = found.sample.rows[1]
    assert abs(rows.mean() - 2000) < 4 * 58 and abs(rows.std() - 1155) < 4 * 58
    monkeypatch.setattr(features, "_MAX_BLOCK_ROWS", 777)
    again = features.measure(ae, params, X, num_samples=400)
    np.testing.assert_array_equal(found.sample.rows, again.sample.rows)


def test_rows_on_disk_are_read_by_blocks(tmp_path, small_blocks):
    ae, params = passing()
    X = draws(50)
    np.save(tmp_path / "X.npy", X)
    from_disk = features.measure(ae, params, np.load(tmp_path / "X.npy", "r"))
    for a, b in zip(from_disk, features.measure(ae, params, X)):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_values_in_windows_are_those_of_the_latents(small_blocks):
    ae, params = passing("tanh")
    X = draws(30)
    Z = np.asarray(jax.vmap(ae.encode, (None, 0))(params, X))
    windows = [slice(20, 30), slice(3, 4), slice(0, 12), slice(2, 9)]
    latents = [4, 1, 1, 5]
    values = features.values_in(ae, params, X, latents, windows)
    for found, j, window in zip(values, latents, windows, strict=True):
        np.testing.assert_allclose(found, Z[window, j], rtol=1e-6)
    assert features.values_in(ae, params, X, [], []) == []


def test_nearest_latents_have_the_largest_cosines():
    ae = jaxae.Autoencoder(input_dim=5, latent_dim=40, tied=False)
    params = ae.init(jax.random.key(1))
    W = np.array(params.W_dec)
    W[7] = 0  # without a direction
    found = features.measure(
        ae, params._replace(W_dec=jnp.asarray(W)), np.zeros((2, 5), "f4"), num_nearest=4
    )
    norms = np.linalg.norm(W, axis=1)
    cosines = W @ W.T / np.maximum(np.outer(norms, norms), 1e-30)
    np.fill_diagonal(cosines, -2)
    expected = np.argsort(-cosines, axis=1)[:, :4]
    np.testing.assert_allclose(found.decoder_norm, norms, rtol=1e-6)
    others = np.arange(40) != 7  # whose cosines are all equal
    np.testing.assert_array_equal(found.nearest[others], expected[others])
    largest = np.take_along_axis(cosines, expected, axis=1)
    np.testing.assert_allclose(found.cosines, largest, atol=1e-6)
    np.testing.assert_array_equal(found.cosines[7], 0)


def test_a_model_of_one_latent_has_no_nearest_ones():
    ae = jaxae.Autoencoder(input_dim=3, latent_dim=1)
    found = features.measure(ae, ae.init(jax.random.key(0)), np.zeros((2, 3), "f4"))
    assert found.nearest.shape == found.cosines.shape == (1, 0)


def test_half_precision_parameters_and_x64_are_measured(x64):
    ae, params = passing(dtype=jnp.bfloat16)
    found = features.measure(ae, params, draws(20))
    assert found.max[5] > 0 and found.top.rows.shape == (H, 20)


def test_quantiles_split_the_sample_into_equal_parts():
    rows = np.array([[9, 4, 7, 1, 0, 2, 3, 8, -1, -1], [5, *[-1] * 9]])
    examples = features.Examples(rows, np.where(rows >= 0, 10.0 - np.arange(10), 0))
    bins = features.quantiles(examples, 0, 4, 2)
    assert [b.tolist() for b in bins] == [[9, 4], [7, 1], [0, 2], [3, 8]]
    assert [len(b) for b in features.quantiles(examples, 1, 4, 2)] == [1, 0, 0, 0]
    assert features.quantiles(examples, 0, 2, 3)[0].tolist() == [9, 4, 1]


def test_the_histogram_of_densities_leaves_out_dead_latents():
    counts, edges = features.log_density_histogram(np.array([0, 1e-3, 1e-3, 0.5, 1]))
    assert counts.sum() == 4 and counts[0] == 2
    assert edges[0] == pytest.approx(-3) and edges[-1] == 0
    counts, edges = features.log_density_histogram(np.zeros(3))
    assert counts.sum() == 0 and np.all(np.diff(edges) > 0)
    assert features.log_density_histogram(np.ones(3))[0].sum() == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"X": np.zeros((0, H), "f4")}, "X must be [N, 6]"),
        ({"X": np.zeros((4, 5), "f4")}, "got 5 columns"),
        ({"X": np.zeros(4, "f4")}, "X must"),
        ({"X": "rows.npy"}, "X must"),
        ({"X": np.full((4, H), np.inf, "f4")}, "latent 0 is not in rows 0 to 3"),
        ({"X": np.full((4, H), np.nan, "f4")}, "must give finite latents"),
        ({"num_top": 0}, "num_top must be"),
        ({"num_samples": -1}, "num_samples must be"),
        ({"num_bins": -3}, "num_bins must be"),
        ({"num_nearest": 0}, "num_nearest must be"),
        ({"params": ()}, "params must be TiedParams"),
    ],
)
def test_bad_arguments_are_named(change, words):
    ae, params = passing()
    arguments = {"params": params, "X": draws(4), **change}
    with pytest.raises(ValueError) as error:
        features.measure(ae, **arguments)
    assert words in str(error.value) and str(error.value).count("\n") == 0


def test_a_model_that_depends_on_the_batch_is_refused():
    ae, params = passing("batch_topk(2)")
    with pytest.raises(ValueError, match="batch_topk"):
        features.measure(ae, params, draws(4))
