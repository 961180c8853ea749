import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from catalogue import prelu
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxae
from jaxae import activations, gradcheck, observations
from jaxae.observations import (
    bernoulli,
    from_distribution,
    from_log_prob,
    gaussian,
    gaussian_with,
)

ETA = jnp.array([-1.5, 0.0, 0.3, 4.0])
X = jnp.array([0.0, 1.0, 1.0, 0.0])


# ---- bernoulli -----------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    eta=st.floats(-1e4, 1e4, width=32),
    x=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1, width=32)),
)
def test_bernoulli_loss_is_within_4_ulp_of_the_larger_of_1_and_eta(eta, x):
    loss = float(bernoulli.loss(jnp.float32([eta]), jnp.float32([x])))
    eta, x = np.float64(np.float32(eta)), np.float64(np.float32(x))
    exact = np.logaddexp(0, eta) - x * eta
    ulp = np.spacing(np.float32(max(1.0, abs(eta))))
    assert abs(loss - exact) <= 4 * ulp


@settings(max_examples=200, deadline=None)
@given(eta=st.floats(-1e4, 1e4, width=32), x=st.floats(0, 1, width=32))
def test_bernoulli_gradient_is_sigm_minus_x_within_4_ulp_of_1(eta, x):
    gradient = float(bernoulli.dloss(jnp.float32([eta]), jnp.float32([x]))[0])
    eta, x = np.float64(np.float32(eta)), np.float64(np.float32(x))
    assert abs(gradient - (scipy.special.expit(eta) - x)) <= 4 * np.spacing(
        np.float32(1)
    )


def test_bernoulli_is_finite_at_extremes_and_both_gradients_are_its_derivative():
    eta, x = jnp.array([[-1e4], [-100], [100], [1e4]]), jnp.array([0, 0.5, 1])
    eta, x = map(jnp.ravel, jnp.broadcast_arrays(eta, x[None]))

    def loss_fn(eta):
        return bernoulli.loss(eta, x)

    loss, grad = jax.value_and_grad(loss_fn)(eta)
    assert np.isfinite(loss) and np.isfinite(grad).all()
    gradcheck.check(loss_fn, eta).assert_ok()
    gradcheck.check(loss_fn, eta, grad=lambda e: bernoulli.dloss(e, x)).assert_ok()


def test_bernoulli_log_prob_equals_scipy(x64):
    eta, x = ETA.astype(float), X.astype(float)
    expected = scipy.stats.bernoulli(scipy.special.expit(eta)).logpmf(x).sum()
    np.testing.assert_allclose(bernoulli.log_prob(eta, x), expected, rtol=1e-13)


def test_bernoulli_log_prob_sums_to_1_over_all_inputs(x64):
    eta = ETA.astype(float)
    corners = jnp.array(np.indices((2,) * 4).reshape(4, -1).T, float)
    log_probs = jax.vmap(bernoulli.log_prob, (None, 0))(eta, corners)
    np.testing.assert_allclose(jnp.exp(log_probs).sum(), 1, rtol=1e-13)


def test_grey_levels_have_a_loss_and_no_log_prob():
    grey = X.at[2].set(0.5)
    bernoulli.validate(np.asarray(grey)[None])
    assert np.isfinite(bernoulli.loss(ETA, grey))
    with pytest.raises(ValueError, match=r"0 or 1.*found 0.5 at column 2"):
        bernoulli.log_prob(ETA, grey)
    # For traced values, -inf: a grey level has probability 0.
    assert jax.jit(bernoulli.log_prob)(ETA, grey) == -np.inf


@pytest.mark.parametrize("bad", [-0.1, 1.5, np.nan, np.inf])
def test_bernoulli_validate_names_row_column_and_value(bad):
    data = np.zeros((5, 3))
    data[3, 2] = bad
    with pytest.raises(ValueError, match=rf"\[0, 1\].*found {bad} at row 3, column 2"):
        bernoulli.validate(data)


def test_validate_counts_the_other_bad_values():
    with pytest.raises(ValueError, match="row 0, column 0 and 5 more"):
        gaussian.validate(np.full((2, 3), np.nan))


def test_eta_of_mean_inverts_the_inverse_link():
    mean = jnp.array([0.01, 0.3, 0.99])
    for observation in (bernoulli, gaussian):
        eta = observation.eta_of_mean(mean)
        np.testing.assert_allclose(observation.mean(eta), mean, rtol=1e-5)
    assert jnp.isfinite(bernoulli.eta_of_mean(jnp.array([0.0, 1.0]))).all()


# ---- gaussian ------------------------------------------------------------------------


def test_gaussian_log_prob_equals_scipy(x64):
    eta, x = ETA.astype(float), X.astype(float)
    expected = scipy.stats.multivariate_normal(eta, np.eye(4)).logpdf(x)
    np.testing.assert_allclose(gaussian.log_prob(eta, x), expected, rtol=1e-13)


@pytest.mark.parametrize("observation", [bernoulli, gaussian], ids=repr)
def test_samples_have_the_mean(observation):
    keys = jax.random.split(jax.random.key(0), 4000)
    samples = jax.vmap(observation.sample, (0, None))(keys, ETA)
    observation.validate(samples)
    error = samples.mean(axis=0) - observation.mean(ETA)
    assert abs(error).max() < 5 / np.sqrt(4000)


# ---- gaussian_with -------------------------------------------------------------------

WEIGHTS = (1.0, 0.5, 0.1, 3.0)
# o and its slope, in NumPy.
LINKS = {
    "relu": (lambda eta: np.maximum(eta, 0), lambda eta: (eta > 0).astype(float)),
    "sigmoid": (
        scipy.special.expit,
        lambda eta: scipy.special.expit(eta) * scipy.special.expit(-eta),
    ),
    "tanh": (np.tanh, lambda eta: 1 / np.cosh(eta) ** 2),
    "softplus": (lambda eta: np.logaddexp(0, eta), scipy.special.expit),
    "identity": (lambda eta: eta, np.ones_like),
}


@pytest.mark.parametrize(
    "name, weights",
    [
        *((name, WEIGHTS) for name in activations.CATALOGUE),
        ("identity", None),
        *(
            pytest.param(name, None, marks=pytest.mark.slow)
            for name in activations.CATALOGUE
            if name != "identity"
        ),
    ],
)
def test_gaussian_with_equals_numpy(name, weights, x64):
    observation = gaussian_with(activations.get(name), weights)
    o, slope = LINKS[name]
    rng = np.random.default_rng(0)
    eta, x = 2 * rng.normal(size=(2, 4))
    w = np.ones(4) if weights is None else np.array(weights)
    x_hat = o(eta)
    expected = {
        "loss": sum(w * (x_hat - x) ** 2) / 2,
        "dloss": w * (x_hat - x) * slope(eta),
        "log_prob": scipy.stats.norm(x_hat, w**-0.5).logpdf(x).sum(),
    }
    for field, value in expected.items():
        result = getattr(observation, field)(jnp.asarray(eta), jnp.asarray(x))
        np.testing.assert_allclose(result, value, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(observation.mean(jnp.asarray(eta)), x_hat, rtol=1e-13)
    gradcheck.check(
        observation.loss, jnp.asarray(eta), jnp.asarray(x), grad=observation.dloss
    ).assert_ok()
    assert observation.derived == "hand" and observation.base_measure == "lebesgue"


def test_gaussian_with_of_identity_is_gaussian():
    plain = gaussian_with(activations.identity)
    for field in ("loss", "dloss", "log_prob"):
        result, expected = (
            getattr(plain, field)(ETA, X),
            getattr(gaussian, field)(ETA, X),
        )
        np.testing.assert_allclose(result, expected, rtol=1e-6)
    np.testing.assert_array_equal(plain.eta_of_mean(X), X)
    assert gaussian_with(activations.relu).eta_of_mean is None


def test_gaussian_with_samples_have_their_mean_and_variance():
    observation = gaussian_with(activations.relu, WEIGHTS)
    keys = jax.random.split(jax.random.key(0), 20_000)
    samples = jax.vmap(observation.sample, (0, None))(keys, ETA)
    observation.validate(samples)
    deviation = np.array(WEIGHTS) ** -0.5
    error = (samples.mean(axis=0) - observation.mean(ETA)) / deviation
    assert abs(error).max() < 5 / np.sqrt(20_000)
    np.testing.assert_allclose(samples.std(axis=0), deviation, rtol=0.03)
    with pytest.raises(
        ValueError, match="must be finite, found nan at row 0, column 1"
    ):
        observation.validate(np.array([[0.0, np.nan]]))


def test_gaussian_with_is_cached_and_found_by_its_name():
    relu = activations.relu
    for weights in (None, WEIGHTS, (1,), (0.1 + 0.2, 1e-30, 7)):
        made = gaussian_with(relu, weights)
        assert pickle.loads(pickle.dumps(made)) is made
        assert observations.get(repr(made)) is made is observations.find(made.name)
    assert repr(gaussian_with(relu)) == "gaussian_with(relu)"
    assert repr(gaussian_with(relu, (2,))) == "gaussian_with(relu, (2.0,))"
    same = [(1, 2), [1.0, 2.0], np.array([1, 2]), jnp.array([1.0, 2.0])]
    assert len({id(gaussian_with(relu, weights)) for weights in same}) == 1
    assert observations.get("gaussian_with(relu,1,2)") is gaussian_with(relu, (1, 2))


def test_files_with_the_old_name_gaussian_link_load():
    """The name of `gaussian_with` in version 0.1."""
    relu = activations.relu
    assert observations.get("gaussian_link(relu)") is gaussian_with(relu)
    assert observations.get("gaussian_link(relu, (1.0, 2.0))") is gaussian_with(
        relu, (1, 2)
    )


def test_gaussian_with_of_a_custom_link_is_not_found_by_name():
    own = activations.elementwise("own", jnp.tanh, lambda a, z: 1 - z**2)
    assert gaussian_with(own) is gaussian_with(own)
    assert observations.find("gaussian_with(own)") is None
    other = gaussian_with(own._replace(name="relu"))
    assert other is not gaussian_with(activations.relu)
    assert observations.find(other.name) is gaussian_with(activations.relu)


@pytest.mark.parametrize(
    "weights",
    [
        *((), 1.0, (1.0, 0.0), (1.0, -1.0), (np.nan,), (np.inf,), ((1.0,),), ("1",)),
        *("12", (True,), (1.0, None), ((1.0,), 2.0), (1j,)),
    ],
    ids=repr,
)
def test_gaussian_with_rejects_weights_of_another_kind(weights):
    with pytest.raises(ValueError, match="weights must be a tuple of positive finite"):
        gaussian_with(activations.relu, weights)


def test_errors_of_gaussian_with_are_one_sentence():
    for link in (b"relu", jnp.tanh, prelu, activations.relu._replace(slope=None)):
        with pytest.raises(ValueError, match="link must be an elementwise Activation"):
            gaussian_with(link)
    weighted = gaussian_with(activations.relu, (1.0, 2.0))
    for function in (weighted.loss, weighted.dloss, weighted.log_prob):
        with pytest.raises(ValueError, match="has 2 weights, but there are 4 columns"):
            function(ETA, X)
    with pytest.raises(
        ValueError, match="input_dim must be 2 for observation gaussian"
    ):
        jaxae.Autoencoder(input_dim=4, latent_dim=2, observation=weighted)
    names = "(rleu)", "(relu, (1, x))", "(relu, ())", "(relu, -1)", "(relu", "", "()"
    for name in (*(f"gaussian_with{name}" for name in names), "gaussian(relu)"):
        with pytest.raises(
            ValueError, match=r"must be one of .*gaussian_with\(\.\.\.\)"
        ):
            observations.get(name)
        assert observations.find(name) is None


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_gaussian_with_is_saved_by_name(tmp_path, weights):
    ae = jaxae.Autoencoder(
        input_dim=4,
        latent_dim=2,
        activation=activations.identity,
        observation=gaussian_with(activations.relu, weights),
        bias=False,
    )
    params = ae.init(jax.random.key(0))
    jaxae.save(tmp_path, ae, params)
    loaded, loaded_params = jaxae.load(tmp_path)
    assert loaded == ae and loaded.observation is ae.observation
    np.testing.assert_array_equal(loaded_params.W, params.W)
    own = gaussian_with(activations.relu._replace(name="own"))
    custom = dataclasses.replace(ae, observation=own)
    jaxae.save(tmp_path, custom, params)
    with pytest.raises(ValueError, match="'gaussian_with.own.', which is not one of"):
        jaxae.load(tmp_path)
    assert jaxae.load(tmp_path, observation=own)[0] == custom
    impostor = gaussian_with(activations.tanh._replace(name="relu"))
    with pytest.raises(ValueError, match="has the name of one of jaxae's"):
        jaxae.save(tmp_path, dataclasses.replace(ae, observation=impostor), params)


# ---- the recipes ---------------------------------------------------------------------


def _normal_log_density(x, mu):
    return jax.scipy.stats.multivariate_normal.logpdf(x, mu, jnp.eye(len(x)))


def _itself(eta):
    return eta


def _link_vjp(observation):
    return lambda eta, dz: observation.inverse_link.vjp(eta, observation.mean(eta), dz)


def test_the_recipe_gives_gaussian_and_its_gradient_x_hat_minus_x(x64):
    rebuilt = from_log_prob(_normal_log_density, _itself)
    eta, x = ETA.astype(float), X.astype(float)
    x_hat = rebuilt.mean(eta)
    gradcheck.check(rebuilt.loss, eta, x, grad=rebuilt.dloss).assert_ok()
    np.testing.assert_allclose(rebuilt.dloss(eta, x), x_hat - x, atol=1e-14)
    np.testing.assert_allclose(rebuilt.dloss(eta, x), gaussian.dloss(eta, x))
    np.testing.assert_allclose(rebuilt.log_prob(eta, x), gaussian.log_prob(eta, x))
    constant = rebuilt.loss(eta, x) - gaussian.loss(eta, x)
    np.testing.assert_allclose(constant, 2 * np.log(2 * np.pi))  # D / 2 log 2 pi
    assert rebuilt.derived == "autodiff" and rebuilt.name == "_normal_log_density"


def test_the_same_recipe_is_the_same_object():
    first = from_log_prob(_normal_log_density, _itself)
    assert from_log_prob(_normal_log_density, _itself) is first
    assert hash(first) == hash(from_log_prob(_normal_log_density, _itself))


def test_recipe_link_vjp_is_the_derivative(x64):
    observation = from_log_prob(_normal_log_density, jnp.tanh, name="bounded")
    eta = ETA.astype(float)
    gradcheck.check_vjp(observation.mean, eta, vjp=_link_vjp(observation)).assert_ok()


def test_the_recipe_samples_with_the_given_sampler():
    def sample(key, mu):
        return mu + jax.random.normal(key, mu.shape)

    with_sampler = from_log_prob(_normal_log_density, _itself, sample=sample)
    assert with_sampler.sample(jax.random.key(0), ETA).shape == ETA.shape
    assert from_log_prob(_normal_log_density, _itself).sample is None


def test_from_distribution_equals_the_hand_written_one():
    distributions = pytest.importorskip("numpyro.distributions")
    made = from_distribution(
        lambda eta: distributions.Bernoulli(logits=eta), base_measure="counting"
    )
    # Not at eta = 0: there numpyro 0.22 differentiates a clipped form, to -1 for -1/2.
    eta = ETA + 0.1
    np.testing.assert_allclose(made.mean(eta), bernoulli.mean(eta), rtol=1e-6)
    for name in ("loss", "dloss", "log_prob"):
        result, expected = getattr(made, name)(eta, X), getattr(bernoulli, name)(eta, X)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    gradcheck.check(made.loss, eta, X, grad=made.dloss).assert_ok()
    gradcheck.check_vjp(made.mean, eta, vjp=_link_vjp(made)).assert_ok()
    drawn = made.sample(jax.random.key(0), ETA)
    assert set(np.unique(drawn)) <= {0, 1}


def test_from_distribution_takes_mean_and_seed_as_in_distrax_and_tfp():
    class Laplace:
        def __init__(self, eta):
            self.eta = eta

        def log_prob(self, x):
            return -jnp.abs(x - self.eta) - jnp.log(2.0)

        def mean(self):
            return self.eta

        def sample(self, sample_shape=(), seed=None):
            return self.eta + jax.random.laplace(seed, self.eta.shape)

    made = from_distribution(Laplace)
    np.testing.assert_array_equal(made.mean(ETA), ETA)
    np.testing.assert_allclose(made.dloss(ETA, X), jnp.sign(ETA - X))
    gradcheck.check(made.loss, ETA, X, grad=made.dloss).assert_ok()
    assert made.sample(jax.random.key(0), ETA).shape == ETA.shape
    assert repr(made) == "Laplace"


@pytest.mark.parametrize("make", [from_log_prob, from_distribution])
def test_recipes_reject_values_that_are_no_function(make):
    with pytest.raises(ValueError, match="must be a function, got 'normal'"):
        make("normal", "mean") if make is from_log_prob else make("normal")


def test_recipes_reject_a_density_of_some_columns():
    partial = from_log_prob(lambda x, mu: -((x - mu)[:2] ** 2), _itself)
    with pytest.raises(ValueError, match=r"one for each of the 4 columns, got float32"):
        partial.loss(ETA, X)


def test_recipes_reject_an_unknown_base_measure():
    with pytest.raises(ValueError, match="'counting' or 'lebesgue', got 'integers'"):
        from_log_prob(_normal_log_density, _itself, base_measure="integers")


@pytest.mark.parametrize("name", observations.CATALOGUE)
def test_unpickling_gives_the_same_object(name):
    observation = observations.get(name)
    assert pickle.loads(pickle.dumps(observation)) is observation
    assert repr(observation) == name


def test_the_error_for_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="one of bernoulli.*did you mean 'gaussian'"):
        observations.get("gausian")
