import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxae
from jaxae.data import sparse_features

KEY = jax.random.key(0)
OBJECTIVE = jaxae.Objective(
    jaxae.Autoencoder(
        input_dim=5,
        latent_dim=2,
        activation=jaxae.activations.identity,
        observation=jaxae.observations.gaussian,
    )
)
CONFIG = jaxae.TrainConfig(num_epochs=2, steps_per_epoch=5)


@pytest.mark.parametrize("density", [0.01, 0.3, 1.0])
def test_features_are_active_with_that_probability_independent_and_uniform(density):
    X = np.asarray(sparse_features(4, 20_000)(KEY, {"density": density}), np.float64)
    assert X.shape == (20_000, 4) and X.min() >= 0 and X.max() < 1
    is_active = X > 0

    def assert_near(frequencies, probability):
        error = 5 * np.sqrt(probability * (1 - probability) / len(X))
        np.testing.assert_allclose(frequencies, probability, atol=error + 1e-12)

    assert_near(is_active.mean(axis=0), density)
    both = (is_active[:, :, None] & is_active[:, None, :]).mean(axis=0)
    assert_near(both[~np.eye(4, dtype=bool)], density**2)
    # The quartiles of U(0, 1), and the mean of the product of two independent features.
    values = X[is_active]
    quarters = np.histogram(values, bins=4, range=(0, 1))[0] / len(values)
    np.testing.assert_allclose(quarters, 0.25, atol=5 * np.sqrt(0.19 / len(values)))
    products = (X[:, 0] * X[:, 1]).mean()
    deviation = density / 3 / np.sqrt(len(X))
    assert abs(products - density**2 / 4) < 5 * deviation


def test_one_key_and_many_densities_share_their_draws():
    source = sparse_features(6, 50)
    densities = jnp.array([0.1, 0.5, 1.0])
    batches = jax.vmap(lambda d: source(KEY, {"density": d}))(densities)
    rare, half, full = np.asarray(batches)
    for fewer, more in ((rare, half), (half, full)):
        np.testing.assert_array_equal(fewer[fewer > 0], more[fewer > 0])
        assert (fewer > 0).sum() < (more > 0).sum()
    # Drawn once for all densities: no random array has an axis of densities.
    mapped = jax.make_jaxpr(jax.vmap(lambda d: source(KEY, {"density": d})))(densities)
    drawn = [line for line in str(mapped).splitlines() if "random_bits" in line]
    assert drawn and all("shape=(50, 6)" in line for line in drawn)


def test_a_source_is_pure_and_float32_under_x64_too(x64):
    source = sparse_features(6, 50)
    X = source(KEY, {"density": np.float64(0.5)})
    np.testing.assert_array_equal(X, jax.jit(source)(KEY, {"density": 0.5}))
    assert X.dtype == jnp.float32
    with jax.enable_x64(False):
        np.testing.assert_array_equal(source(KEY, {"density": 0.5}), X)


def test_the_same_sizes_are_the_same_source():
    source = sparse_features(6, 50)
    assert sparse_features(np.int64(6), batch_size=50) is source
    assert sparse_features(50, 6) is not source
    assert pickle.loads(pickle.dumps(source)) is source
    assert repr(source) == "sparse_features(6, 50)"


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (2.5, 5), (5, True)])
def test_the_error_for_a_bad_size_names_it(sizes):
    with pytest.raises(ValueError, match=r"must be an integer of at least 1, got"):
        sparse_features(*sizes)


def test_a_lane_of_a_sweep_of_densities_is_the_run_with_that_density():
    source = sparse_features(5, 64)
    sweep = jaxae.sweep(
        OBJECTIVE,
        source,
        space={"density": [0.1, 1.0]},
        hparams={"learning_rate": 0.01},
        key=KEY,
        config=CONFIG,
    )
    for lane, density in enumerate((0.1, 1.0)):
        run = jaxae.train(data=source, **sweep.trial(lane))
        assert run.status == "finished"
        assert sweep.trial(lane)["hparams"]["density"] == np.float32(density)
        np.testing.assert_allclose(sweep.params(lane).W, run.params.W, rtol=1e-4)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5])
def test_a_density_out_of_range_raises_before_any_work(density):
    arguments = {"data": sparse_features(5, 64), "key": KEY, "config": CONFIG}
    expected = r"\['density'\] must be above 0 and at most 1 for sparse_features"
    with pytest.raises(ValueError, match=expected):
        hparams = {"density": density, "learning_rate": 0.01}
        jaxae.train(OBJECTIVE, hparams=hparams, **arguments)
    with pytest.raises(ValueError, match=expected):
        space = {"density": [0.5, density]}
        hparams = {"learning_rate": 0.01}
        jaxae.sweep(OBJECTIVE, space=space, hparams=hparams, **arguments)
    with pytest.raises(ValueError, match="lacks density"):
        jaxae.train(OBJECTIVE, hparams={"learning_rate": 0.01}, **arguments)
