"""Data with known truth: what fires, how often and together, and SynthSAEBench."""

import itertools
import json
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import scipy.stats

import jaxae
from jaxae.data import dictionaries, load_synthsaebench, synthsaebench

KEY = jax.random.key(0)
TREES = {"num_roots": 4, "num_children": 3, "depth": 2}


def assert_frequencies(is_event, probabilities, standard_errors=5):
    """Up to a few hundred frequencies: 5 standard errors are passed once in 10^4."""
    p = np.asarray(probabilities, np.float64)
    error = standard_errors * np.sqrt(p * (1 - p) / len(is_event))
    np.testing.assert_array_less(np.abs(is_event.mean(axis=0) - p), error + 1e-12)


def firing_rates(dictionary):
    """P(a_i > 0) without correlations, for trees with exclusive children.

    A child that is active alone stays; one of k stays with probability 1/k. With c_j
    the chance of sibling j, E 1/(1 + number of active siblings) is the integral over t
    in [0, 1] of prod_j (1 - c_j + c_j t), a polynomial: exact by Gauss's rule.
    """
    q, m, s = (np.asarray(dictionary[i], np.float64) for i in (2, 3, 4))
    # relu(m + s n) is 0 with probability Phi(-m / s).
    chance = q * scipy.stats.norm.cdf(
        np.divide(m, s, np.full_like(m, np.inf), where=s > 0)
    )
    nodes, weights = np.polynomial.legendre.leggauss(5)
    t, weights = (nodes + 1) / 2, weights / 2
    rates, parents = chance.copy(), dictionary.parents
    for i in np.flatnonzero(parents >= 0):  # parents come first
        siblings = chance[np.setdiff1d(np.flatnonzero(parents == parents[i]), i)]
        products = np.prod(1 - siblings[:, None] + siblings[:, None] * t, axis=0)
        rates[i] *= rates[parents[i]] * (weights @ products)
    return rates


def dense_oracle(rng, dictionary, size):
    """Coefficients by the definition: all features first, then level by level."""
    q, m, s, F = (np.asarray(dictionary[i], np.float64) for i in range(2, 6))
    e, h, n = (rng.normal(size=(size, k)) for k in (F.shape[1], len(q), len(q)))
    g = e @ F.T + h * np.sqrt(1 - (F**2).sum(axis=1))
    a = np.where(g > scipy.stats.norm.isf(q), np.maximum(m + s * n, 0), 0)
    parents = dictionary.parents
    for i in range(len(q)):  # parents come first
        children = np.flatnonzero(parents == i)
        if len(children) and dictionary.exclusive[i]:
            order = np.where(a[:, children] > 0, rng.random((size, len(children))), -1)
            stays = np.arange(len(children)) == order.argmax(axis=1)[:, None]
            a[:, children] *= stays
        scale = a[:, [i]] / m[i] if dictionary.scaled[i] else a[:, [i]] > 0
        a[:, children] *= scale
    return a


def small(**changes):
    """SynthSAEBench's generator at N = 256 and D = 32, without very rare features."""
    sizes = {"num_features": 256, "input_dim": 32, "lowest": 0.02, **TREES}
    return synthsaebench(KEY, **{**sizes, "decorrelation_steps": 0, **changes})


@pytest.fixture(scope="module")
def correlated():
    return small()


@pytest.fixture(scope="module")
def sample(correlated):
    """8,000 examples and their coefficients, in float64."""
    x, a = correlated.draw(jax.random.key(1), 8_000)
    return np.asarray(x, np.float64), np.asarray(a, np.float64)


# ---- draws ---------------------------------------------------------------------------


def test_firing_rates_equal_the_closed_form():
    independent = small()._replace(factor=jnp.zeros((256, 25)))
    _, a = independent.draw(KEY, 8_000)
    assert_frequencies(np.asarray(a) > 0, firing_rates(independent))


def test_draws_equal_the_dense_definition(correlated, sample):
    """Rates, means and second moments, with the oracle's standard errors."""
    expected = dense_oracle(np.random.default_rng(0), correlated, 8_000)
    for power in (0, 1, 2):
        ours, theirs = (np.where(a > 0, a**power, 0) for a in (sample[1], expected))
        error = 5 * np.sqrt(2 * theirs.var(axis=0) / len(theirs))
        difference = np.abs(ours.mean(axis=0) - theirs.mean(axis=0))
        np.testing.assert_array_less(difference, error)


def test_x_is_the_bias_and_the_sum_of_the_active_features(correlated, sample):
    x, a = sample
    assert x.shape == (8_000, 32) and a.shape == (8_000, 256) and a.min() == 0
    expected = np.asarray(correlated.bias) + a @ np.asarray(correlated.features)
    np.testing.assert_allclose(x, expected, atol=2e-5)


def test_a_child_is_active_only_below_its_parent_and_without_siblings(
    correlated, sample
):
    is_active, parents = sample[1] > 0, correlated.parents
    children = np.flatnonzero(parents >= 0)
    assert len(children) == 12 + 36
    assert not (is_active[:, children] & ~is_active[:, parents[children]]).any()
    for parent in np.unique(parents[children]):
        siblings = is_active[:, parents == parent]
        assert siblings.sum(axis=1).max() == 1


@pytest.mark.parametrize("is_mixed", [False, True])
def test_without_exclusion_and_scaling_siblings_are_independent_below_a_parent(
    is_mixed,
):
    """A tree of 1 + 3 + 9 features, some of them with other rules than the others."""
    exclusive = np.zeros(13, bool)
    exclusive[1] = is_mixed  # of the children 4, 5 and 6 at most one is active
    dictionary = dictionaries.build(
        np.eye(13, dtype="f4"),
        0.5,
        magnitudes=2.0,
        spreads=0.25,
        parents=dictionaries.forest(13, 1, 3, 2),
        exclusive=exclusive,
        scaled=exclusive,
    )
    _, a = dictionary.draw(KEY, 10_000)
    a = np.asarray(a, np.float64)
    is_active = a > 0
    rates = 0.5 ** np.array([1, 2, 2, 2, *[3] * 9])
    if is_mixed:  # 1, or 1/2 or 1/3 of them, stays: E 1/(1 + Binomial(2, 1/2)) = 7/12
        rates[4:7] *= 7 / 12
    assert_frequencies(is_active, rates)
    both = is_active[:, 4] & is_active[:, 5]
    assert_frequencies(both, 0 if is_mixed else 1 / 16)
    assert_frequencies(is_active[:, 7] & is_active[:, 8], 1 / 16)
    # Scaled children are narrower or wider with their parent's coefficient.
    ratios = a[is_active[:, 4], 4] / a[is_active[:, 4], 1]
    error = 5 * np.std(ratios) / np.sqrt(len(ratios))
    expected = 1 if is_mixed else 2 * scipy.stats.norm.expect(lambda n: 1 / (2 + n / 4))
    assert abs(ratios.mean() - expected) < error


def test_children_are_scaled_by_the_coefficient_of_their_parent():
    parents = np.array([-1, 0, 1])
    dictionary = dictionaries.build(
        np.eye(3, dtype="f4"),
        1.0,
        magnitudes=[4, 3, 2],
        spreads=[0.5, 0, 0],
        parents=parents,
    )
    _, a = dictionary.draw(KEY, 100)
    assert np.std(a[:, 0]) > 0.3
    np.testing.assert_allclose(a[:, 1], 3 * a[:, 0] / 4, rtol=1e-6)
    np.testing.assert_allclose(a[:, 2], 2 * a[:, 0] / 4, rtol=1e-6)


def test_correlated_pairs_fire_as_bivariate_normal_integrals_say():
    """Of free features, of a parent and its child, and of children of one parent."""
    q = np.array([0.3, 0.2, 0.5, 0.4, 0.3, 1.0, 0.3, 0.5])
    F = 0.8 * np.random.default_rng(0).normal(size=(8, 2)) / np.sqrt(2)
    F /= np.maximum(1, np.linalg.norm(F, axis=1, keepdims=True) / 0.95)
    parents = np.array([-1, -1, -1, -1, 3, -1, 5, 5])
    dictionary = dictionaries.build(
        np.eye(8, dtype="f4"),
        q,
        factor=F.astype("f4"),
        parents=parents,
        exclusive=False,
    )
    _, a = dictionary.draw(KEY, 40_000)
    is_active, t = np.asarray(a) > 0, scipy.stats.norm.isf(q)
    largest = 0
    for i, j in [(0, 1), (0, 2), (1, 2), (2, 3), (3, 4), (0, 6), (6, 7)]:
        correlation = F[i] @ F[j]
        largest = max(largest, abs(correlation))
        pair = scipy.stats.multivariate_normal(
            [0, 0], [[1, correlation], [correlation, 1]]
        )
        assert_frequencies(is_active[:, i] & is_active[:, j], pair.cdf([-t[i], -t[j]]))
    assert largest > 0.5


def test_more_active_features_than_a_pass_takes_are_drawn_as_well():
    """One factor makes all 64 roots fire together, 2 % of the time; a pass takes 8."""
    N = 64
    dictionary = dictionaries.build(
        np.random.default_rng(0).normal(size=(2 * N, 5)).astype("f4"),
        np.repeat([0.02, 1.0], N),
        factor=np.sqrt(np.full((2 * N, 1), 0.99, "f4")),
        parents=np.concatenate([np.full(N, -1), np.arange(N)]),
        spreads=0.1,
    )
    x, a = dictionary.draw(KEY, 5_000)
    is_active = np.asarray(a) > 0
    assert is_active[:, :N].sum(axis=1).max() == N
    np.testing.assert_array_equal(is_active[:, :N], is_active[:, N:])
    # The 64 rates have nearly one and the same error, so 5 standard errors are many.
    assert_frequencies(is_active[:, :N], np.full(N, 0.02))
    np.testing.assert_allclose(x, a @ dictionary.features, atol=1e-4)
    # Each example on its own: another batch size draws other examples, as many as it.
    assert dictionary.draw(KEY, 1)[1].shape == (1, 2 * N)


def test_a_key_determines_a_batch_and_jit_changes_nothing():
    dictionary = small(depth=1)

    def draw(key):
        return dictionary.draw(key, 64)

    x, a = draw(KEY)
    assert x.dtype == a.dtype == jnp.float32
    np.testing.assert_array_equal(draw(KEY)[1], a)
    assert not np.array_equal(draw(jax.random.key(1))[1], a)
    jitted = jax.jit(draw)(KEY)
    np.testing.assert_allclose(jitted[0], x, atol=1e-6)
    np.testing.assert_allclose(jitted[1], a, rtol=1e-6)
    np.testing.assert_allclose(dictionary.source(64)(KEY, {}), x, atol=1e-6)
    batches = list(dictionary.batches(KEY, 2, 64))
    np.testing.assert_array_equal(batches[1][0], draw(jax.random.fold_in(KEY, 1))[0])
    with jax.enable_x64(True):
        np.testing.assert_array_equal(draw(KEY)[0], x)


def test_no_array_has_the_size_of_a_batch_of_dictionaries(correlated):
    """x is a sum of the active rows, and a source makes no coefficients at all."""
    B, N, D = 64, 256, 32
    text = str(jax.make_jaxpr(correlated.source(B))(KEY, {}))
    shapes = re.findall(r"f32\[([\d,]+)\]", text)
    sizes = [np.prod(list(map(int, shape.split(",")))) for shape in shapes]
    assert max(sizes) < B * N * D / 4
    assert f"f32[{B},{N}]" not in text  # nor all coefficients, nor all g


# ---- sources -------------------------------------------------------------------------


def test_equal_dictionaries_give_equal_sources(correlated):
    source = correlated.source(8)
    same = pickle.loads(pickle.dumps(source))
    assert same == source == small().source(np.int64(8))
    assert hash(same) == hash(source)
    assert source != correlated.source(9)
    assert source != correlated._replace(bias=correlated.bias + 1).source(8)
    assert re.fullmatch(r"dictionary\(256, 32, 8, sha256=\w{12}\)", repr(source))


def test_an_autoencoder_trains_on_a_source(correlated):
    ae = jaxae.Autoencoder(
        input_dim=32, latent_dim=16, activation="relu", observation="gaussian"
    )
    run = jaxae.train(
        jaxae.Objective(ae),
        correlated.source(64),
        hparams={"learning_rate": 1e-2},
        key=KEY,
        config=jaxae.TrainConfig(num_epochs=2, steps_per_epoch=20, diagnostics=False),
    )
    assert run.status == "finished"
    assert run.metrics["train/loss"][1] < run.metrics["train/loss"][0]


# ---- what a dictionary is built from -------------------------------------------------


def test_zipf_falls_from_the_highest_to_the_lowest():
    p = dictionaries.zipf(16_384, 0.4, 5e-4)
    assert p[0] == 0.4 and p[-1] == 5e-4 and (np.diff(p) < 0).all()
    assert p.sum() == pytest.approx(59.14, abs=0.005)  # as in SynthSAEBench
    np.testing.assert_allclose(
        dictionaries.zipf(4, 0.6, exponent=1), [0.6, 0.3, 0.2, 0.15]
    )
    np.testing.assert_array_equal(dictionaries.zipf(1, 0.4, 0.1), [0.4])


def test_a_forest_is_filled_level_by_level():
    np.testing.assert_array_equal(
        dictionaries.forest(11, 2, 2, 2), [-1, -1, 0, 0, 1, 1, 2, 2, 3, 3, 4]
    )
    np.testing.assert_array_equal(dictionaries.forest(4, 3, 10, 99), [-1, -1, -1, 0])
    np.testing.assert_array_equal(
        dictionaries.forest(8, 2, 2, 1), [-1, -1, 0, 0, 1, 1, -1, -1]
    )


def test_rates_of_the_full_hierarchy_are_those_of_synthsaebench():
    """L0 and rates over base rates by level, of independent draws (section 3 there)."""
    p = dictionaries.zipf(16_384, 0.4, 5e-4)
    parents = dictionaries.forest(16_384, 128, 4, 3)
    q = dictionaries.compensated(p, parents)
    assert q.max() == pytest.approx(0.915, abs=5e-4)
    # Every node has 4 children or none, so the children of all are one array.
    rates, nodes, weights = q.copy(), *np.polynomial.legendre.leggauss(5)
    t, bounds = (nodes + 1) / 2, [0, 128, 640, 2688, 10_880, 16_384]
    for first, last in itertools.pairwise(bounds[1:-1]):
        c = q[first:last].reshape(-1, 4, 1)
        factors = 1 - c + c * t
        others = factors.prod(axis=1, keepdims=True) / factors
        stays = (others @ weights / 2).reshape(-1)
        rates[first:last] *= stays * rates[parents[first:last]]
    levels = [slice(*pair) for pair in itertools.pairwise(bounds)]
    l0 = [rates[level].sum() for level in levels]
    np.testing.assert_allclose(l0, [8.20, 7.32, 7.32, 7.13, 4.52], atol=0.006)
    ratios = [(rates[level] / p[level]).mean() for level in levels]
    np.testing.assert_allclose(ratios, [1, 0.71, 0.44, 0.34, 1], atol=0.006)


def test_compensation_ignores_siblings_that_do_not_exclude_each_other():
    p, parents = [0.5, 0.2, 0.1], [-1, 0, 0]
    np.testing.assert_allclose(
        dictionaries.compensated(p, parents), [0.5, 0.4 * 1.2, 0.2 * 1.4]
    )
    alone = dictionaries.compensated(p, parents, exclusive=False)
    np.testing.assert_allclose(alone, [0.5, 0.4, 0.2])


def test_decorrelated_features_are_unit_vectors_further_apart():
    V = np.asarray(dictionaries.random_features(KEY, 64, 16))
    apart = np.asarray(dictionaries.decorrelated(V))
    np.testing.assert_allclose(np.linalg.norm(V, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(apart, axis=1), 1, rtol=1e-6)

    def pairs(V):
        return ((V @ V.T)[~np.eye(len(V), dtype=bool)] ** 2).sum()

    # At least as far apart as 64 vectors in 16 dimensions can be: N^2 / D - N.
    assert 64**2 / 16 - 64 <= pairs(apart) < 0.97 * pairs(V)
    # 100 steps of Adam move no number by more than about its learning rate each.
    assert np.abs(apart - V).max() < 0.05
    np.testing.assert_allclose(dictionaries.decorrelated(V, num_steps=0), V, rtol=1e-6)


def test_the_loss_of_decorrelation_is_that_of_all_pairs(x64):
    V = np.random.default_rng(0).normal(size=(7, 3))
    G = V @ V.T
    norms = np.diag(G)
    expected = (G**2).sum() - (norms**2).sum() + 7 * ((norms - 1) ** 2).sum()
    np.testing.assert_allclose(dictionaries._crowding(V), expected, rtol=1e-12)


def test_correlations_have_the_scale_and_rows_are_shrunk():
    F = np.asarray(dictionaries.correlation_factor(KEY, 400, 25), np.float64)
    np.testing.assert_allclose(F.std(), 0.1, rtol=0.03)  # 5 / sqrt(2 * 10,000)
    off_diagonal = (F @ F.T)[~np.eye(400, dtype=bool)]
    np.testing.assert_allclose(off_diagonal.std(), 0.05, rtol=0.05)
    large = dictionaries.correlation_factor(KEY, 400, 25, 0.3)
    assert np.sum(np.square(large), axis=1).max() < 0.9901


def test_the_parts_of_synthsaebench(correlated):
    s = np.asarray(correlated.spreads, np.float64)
    expected = scipy.stats.foldnorm(1, scale=0.5)  # |N(0.5, 0.5^2)|
    assert scipy.stats.kstest(s, expected.cdf).pvalue > 0.01
    np.testing.assert_allclose(correlated.magnitudes[jnp.array([0, -1])], [5, 4])
    np.testing.assert_allclose(np.linalg.norm(correlated.bias), 0.5, rtol=1e-6)
    assert correlated.factor.shape == (256, 25)
    assert correlated.exclusive.all() and correlated.scaled.all()


@pytest.mark.slow  # 16,384 features
def test_the_full_generator_has_the_published_l0():
    """34.5 in all and 25.2 in the first 4,096; about 34 and 25 in its documentation.

    One example has a standard deviation of 12, so the mean of 4,096 one of 0.18.
    """
    dictionary = synthsaebench(KEY, input_dim=8, decorrelation_steps=0)
    l0 = [(a > 0).astype(int) for _, a in dictionary.batches(KEY, 4, 1024)]
    l0 = np.concatenate(l0)
    assert l0.sum(axis=1).mean() == pytest.approx(34.5, abs=0.9)
    assert l0[:, :4096].sum(axis=1).mean() == pytest.approx(25.2, abs=0.9)


# ---- SynthSAEBench's files -----------------------------------------------------------


def write(folder, dictionary, **config):
    """A model in the layout of SAELens."""
    N, D = dictionary.features.shape
    config = {
        "num_features": N,
        "hidden_dim": D,
        "mean_firing_magnitudes": {"start": 5, "end": 4, "generator_name": "linear"},
        "std_firing_magnitudes": {
            **{"mean": 0.5, "std": 0.5, "min_value": None, "max_value": None},
            **{"seed": None, "generator_name": "folded_normal"},
        },
        **config,
    }
    (folder / "synthetic_model_config.json").write_text(json.dumps(config))
    F = np.asarray(dictionary.factor)
    arrays = {
        "feature_vectors": dictionary.features,
        "bias": dictionary.bias,
        "firing_probabilities": dictionary.probabilities,
        "correlation_factor": F,
        "correlation_diag": 1 - (F**2).sum(axis=1),
    }
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    safetensors.numpy.save_file(arrays, folder / "synthetic_model.safetensors")

    def node(i):
        return {
            "feature_index": int(i),
            "feature_id": None,
            "mutually_exclusive_children": bool(dictionary.exclusive[i]),
            "scale_children_by_parent": bool(dictionary.scaled[i]),
            "children": [node(j) for j in np.flatnonzero(dictionary.parents == i)],
        }

    has_children = np.unique(dictionary.parents[dictionary.parents >= 0])
    roots = [node(i) for i in has_children if dictionary.parents[i] < 0]
    (folder / "hierarchy.json").write_text(json.dumps({"roots": roots}))


def test_a_model_is_read_from_its_files_but_for_the_spreads(correlated, tmp_path):
    write(tmp_path, correlated)
    loaded = load_synthsaebench(tmp_path, KEY)
    in_trees = correlated._replace(
        exclusive=np.arange(256) < 52, scaled=np.arange(256) < 52
    )
    for name in set(loaded._fields) - {"spreads"}:
        np.testing.assert_allclose(getattr(loaded, name), getattr(in_trees, name))
    assert not np.allclose(loaded.spreads, correlated.spreads)
    assert scipy.stats.kstest(loaded.spreads, correlated.spreads).pvalue > 0.01
    again = load_synthsaebench(str(tmp_path), KEY)
    np.testing.assert_array_equal(again.spreads, loaded.spreads)
    x, a = loaded.draw(KEY, 8_000)  # compiled for `sample`
    assert np.isfinite(x).all() and (a[:, 16:52] > 0).any()


def test_a_model_without_trees_and_with_plain_numbers_is_read(correlated, tmp_path):
    constant = {"value": 0.25, "generator_name": "constant"}
    write(
        tmp_path, correlated, mean_firing_magnitudes=3, std_firing_magnitudes=constant
    )
    (tmp_path / "hierarchy.json").unlink()
    loaded = load_synthsaebench(tmp_path, KEY)
    assert (loaded.parents == -1).all()
    assert (loaded.magnitudes == 3).all() and (loaded.spreads == 0.25).all()


def test_files_that_are_missing_or_disagree_raise_one_sentence(correlated, tmp_path):
    with pytest.raises(ValueError, match=r"Cannot read .*synthetic_model_config.json"):
        load_synthsaebench(tmp_path, KEY)
    write(tmp_path, correlated, std_firing_magnitudes={"generator_name": "exponential"})
    with pytest.raises(jaxae.ArgumentError, match="must be a number, constant, linear"):
        load_synthsaebench(tmp_path, KEY)
    write(tmp_path, correlated)
    twice = {"roots": [{"feature_index": 3}, {"feature_index": 3}]}
    (tmp_path / "hierarchy.json").write_text(json.dumps(twice))
    with pytest.raises(ValueError, match="hierarchy.json: feature_index 3 is out of"):
        load_synthsaebench(tmp_path, KEY)
    (tmp_path / "hierarchy.json").write_text("{}")
    with pytest.raises(ValueError, match="Cannot read .*hierarchy.json: KeyError"):
        load_synthsaebench(tmp_path, KEY)
    (tmp_path / "synthetic_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="Cannot read .*synthetic_model.safetensors"):
        load_synthsaebench(tmp_path, KEY)


# ---- errors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"features": np.ones(3, "f4")}, "features must have shape [N, D]"),
        ({"features": np.full((3, 2), np.inf, "f4")}, "features must be finite."),
        ({"features": np.ones((3, 2), int)}, "real floating dtype is needed"),
        ({"probabilities": 1.5}, "probabilities must be in [0, 1], got 1.5."),
        ({"probabilities": [0.1, 0.2]}, "must be one number, or have shape [3]"),
        ({"probabilities": "often"}, "must be one number, or have shape [3]"),
        ({"bias": np.nan}, "bias must be finite, got nan."),
        ({"bias": np.ones(3)}, "bias must be one number, or have shape [2]"),
        ({"magnitudes": 0}, "magnitudes must be positive, got 0.0."),
        ({"spreads": [0, -1, 0]}, "spreads must be at least 0, got -1.0."),
        ({"factor": np.ones((2, 1), "f4")}, "factor must have shape [3, R]"),
        ({"factor": 2 * np.ones((3, 1), "f4")}, "rows of norm at most 1"),
        ({"parents": [-1, 0]}, "parents must be integers of shape [3]"),
        ({"parents": [-1.0, 0, 0]}, "parents must be integers of shape [3]"),
        ({"parents": [-1, 0, 3]}, "parents must be from -1 to 2, got 3."),
        ({"parents": [-1, 2, 1]}, "must form trees, but a feature is its own ancestor"),
        ({"exclusive": 0.5}, "exclusive must be True or False, got 0.5."),
    ],
)
def test_an_array_that_does_not_fit_raises_one_sentence(changes, message):
    arguments = {"features": np.ones((3, 2), "f4"), "probabilities": 0.5, **changes}
    with pytest.raises(jaxae.ArgumentError, match=re.escape(message)):
        dictionaries.build(**arguments)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda d: d.draw(KEY, 0), "batch_size must be an integer of at least 1"),
        (lambda d: d.draw(3, 1), "key must be one JAX random key"),
        (lambda d: d.source(2.5), "batch_size must be an integer of at least 1"),
        (lambda d: next(d.batches(KEY, 0, 1)), "num_batches must be an integer"),
        (
            lambda d: jax.jit(lambda d: d.draw(KEY, 1))(d),
            "dictionary must not be traced; close over it instead",
        ),
        (lambda d: dictionaries.zipf(3, 0.1, 0.2), "0 <= lowest <= highest <= 1"),
        (lambda d: dictionaries.forest(3, 1, 0, 1), "num_children must be an integer"),
        (
            lambda d: dictionaries.compensated([0, 0.1], [-1, 0]),
            "above 0 for a feature with children",
        ),
        (lambda d: dictionaries.random_features(KEY, 0, 3), "num_features must be"),
        (lambda d: dictionaries.correlation_factor(KEY, 3, 0), "rank must be"),
        (
            lambda d: dictionaries.decorrelated(np.ones((2, 2), "f4"), num_steps=-1),
            "num_steps must be",
        ),
        (lambda d: dictionaries.decorrelated(np.ones(2, "f4")), "shape [N, D]"),
    ],
)
def test_an_argument_out_of_range_raises_one_sentence(call, message, correlated):
    with pytest.raises(jaxae.ArgumentError, match=re.escape(message)):
        call(correlated)
