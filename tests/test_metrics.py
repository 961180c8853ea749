import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import prelu
from sklearn.metrics import mean_squared_error, r2_score
from test_autoencoder import model

import jaxae
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
    same = np.full_like(X, 0.1)
    assert np.isnan(metrics.fvu(same, X_HAT)) and np.isnan(metrics.fvu(same, same))


@pytest.mark.parametrize("metric", [metrics.squared_error, metrics.fvu])
@pytest.mark.parametrize("other", [X[:1], X[:, :1], X[0]])
def test_metrics_reject_shapes_that_would_broadcast(metric, other):
    with pytest.raises(ValueError, match="whole batches of one shape"):
        metric(X, other)
    with pytest.raises(ValueError, match="whole batches of one shape"):
        metrics.l0(X[0])


@pytest.mark.parametrize("convert", [np.uint8, np.int64, bool, jnp.int32, list])
def test_metrics_of_integers_and_lists_equal_those_of_floats(convert):
    binary = np.array([[1, 0], [0, 0], [1, 1]])
    digits = binary if convert is bool else 100 * binary
    x_hat = np.array([[200.0, 3.0], [50.0, 1.0], [0.25, 0.0]], np.float32)

    def converted(array):
        if convert is list:
            return array.tolist()
        return convert(array) if convert is jnp.int32 else array.astype(convert)

    x, floats = converted(digits), jnp.asarray(digits, jnp.float32)
    for metric in (metrics.squared_error, metrics.fvu):
        for one, other in [(x, x_hat), (x_hat, x), (x, x)]:
            expected = metric(*(jnp.asarray(a, jnp.float32) for a in (one, other)))
            assert metric(one, other) == expected
    for metric in (metrics.l0, metrics.dead_fraction):
        assert metric(x) == metric(floats)
    ae = model(H=2)
    actual = metrics.saturated_fraction(ae, x)
    assert actual == metrics.saturated_fraction(ae, floats)


def test_a_large_integer_does_not_wrap_around():
    large = np.array([[2**32, 0], [0, 2**32]])
    assert metrics.l0(large) == 1
    assert metrics.squared_error(large, np.zeros((2, 2))) == 2.0**64


def test_l0_and_dead_fraction_count_zeros():
    z = jnp.array([[0.0, 1.0, 0.0, -2.0], [0.0, 0.0, 0.0, 3.0]])
    assert metrics.l0(z) == 1.5
    assert metrics.dead_fraction(z) == 0.5
    np.testing.assert_array_equal(metrics.is_dead(z), [True, False, True, False])
    assert not metrics.is_dead(jnp.array([[1e-9, jnp.nan], [0.0, 0.0]])).any()


@pytest.mark.parametrize(
    "activation, flat", [("sigmoid", -4.7), ("sigmoid", 4.7), ("tanh", 3.0)]
)
def test_saturated_latents_are_flat_on_every_example(activation, flat):
    ae = model(activation, H=3)
    a = jnp.array([[flat, flat, 0.0], [-flat, 0.5, 0.0], [2 * flat, flat, 0.1]])
    np.testing.assert_allclose(metrics.saturated_fraction(ae, a), 1 / 3)


def test_sigmoid_latents_saturate_within_a_hundredth_of_0_and_1():
    ae = model(H=1)
    for z, expected in [(0.0100, 1), (0.0103, 0), (0.9897, 0), (0.99, 1)]:
        a = jnp.log(z / (1 - jnp.full((2, 1), z)))
        assert metrics.saturated_fraction(ae, a) == expected


def test_saturated_relu_latents_are_dead():
    a = jnp.asarray(RNG.normal(size=(3, 40)), "f4")
    ae = model("relu", H=40)
    expected = metrics.dead_fraction(ae.activation.apply(a))
    assert 0 < metrics.saturated_fraction(ae, a) == expected < 1
    assert metrics.saturated_fraction(model("identity", H=40), a) == 0


def test_saturated_fraction_needs_a_slope_and_a_batch():
    ae = jaxae.Autoencoder(input_dim=6, latent_dim=4, activation=prelu)
    with pytest.raises(ValueError, match="needs an activation with slope, but prelu"):
        metrics.saturated_fraction(ae, jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="whole batches of one shape"):
        metrics.saturated_fraction(model(), jnp.ones(4))


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


def test_a_model_that_diverged_has_infinite_bits():
    ae = model()
    params = ae.init(jax.random.key(0))._replace(b_dec=jnp.full(6, -3e38))
    assert metrics.bits_per_dim(ae, params, np.ones((2, 6), "f4")) == np.inf
