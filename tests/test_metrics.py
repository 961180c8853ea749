import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import mean_squared_error, r2_score
from test_autoencoder import model

from jaxae import metrics

RNG = np.random.default_rng(0)
X, X_HAT = RNG.normal(size=(2, 20, 6)).astype("f4")


def test_squared_error_and_fvu_equal_scikit_learn():
    np.testing.assert_allclose(
        metrics.squared_error(X, X_HAT), 6 * mean_squared_error(X, X_HAT), rtol=1e-5
    )
    expected = 1 - r2_score(X, X_HAT, multioutput="variance_weighted")
    np.testing.assert_allclose(metrics.fvu(X, X_HAT), expected, rtol=1e-5)
    assert metrics.fvu(X, X) == 0
    mean = np.broadcast_to(X.mean(axis=0), X.shape)
    np.testing.assert_allclose(metrics.fvu(X, mean), 1, rtol=1e-6)


@pytest.mark.parametrize("metric", [metrics.squared_error, metrics.fvu])
@pytest.mark.parametrize("other", [X[:1], X[:, :1], X[0]])
def test_metrics_refuse_to_broadcast(metric, other):
    with pytest.raises(ValueError, match="whole batches of one shape"):
        metric(X, other)
    with pytest.raises(ValueError, match="whole batches of one shape"):
        metrics.l0(X[0])


def test_l0_and_dead_fraction_count():
    z = jnp.array([[0.0, 1.0, 0.0, -2.0], [0.0, 0.0, 0.0, 3.0]])
    assert metrics.l0(z) == 1.5
    assert metrics.dead_fraction(z) == 0.5


def test_bits_per_dim_of_a_fair_coin_is_1():
    ae = model()
    params = ae.init(jax.random.key(0))._replace(W=jnp.zeros((4, 6)))
    binary = np.round(RNG.uniform(size=(9, 6))).astype("f4")
    np.testing.assert_allclose(metrics.bits_per_dim(ae, params, binary), 1, rtol=1e-6)


def test_bits_per_dim_of_a_standard_normal_is_its_entropy():
    ae = model(observation="gaussian")
    params = ae.init(jax.random.key(0))._replace(W=jnp.zeros((4, 6)))
    noise = RNG.normal(size=(20_000, 6)).astype("f4")
    entropy = np.log2(2 * np.pi * np.e) / 2
    np.testing.assert_allclose(
        metrics.bits_per_dim(ae, params, noise), entropy, rtol=0.01
    )


def test_grey_levels_have_no_bits():
    ae = model()
    grey = np.array([[0, 1, 0, 1, 0, 1], [0, 0.5, 0, 1, 0, 1]], "f4")
    with pytest.raises(ValueError, match="support of bernoulli, but row 1 cannot"):
        metrics.bits_per_dim(ae, ae.init(jax.random.key(0)), grey)
