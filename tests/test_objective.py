import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_autoencoder import model

import jaxae
from jaxae import corruptions, gradcheck, penalties

KEY = jax.random.key(0)
X = np.random.default_rng(0).uniform(size=(9, 6)).astype("f4")
AE = model()
PARAMS = AE.init(KEY)


def value(penalty, ae=AE, params=PARAMS, **hparams):
    objective = jaxae.Objective(ae, penalties=(penalty,))
    _, aux = objective(params, X, None, {penalty.name: 1.0, **hparams})
    return float(aux.metrics[penalty.name])


def latents(ae=AE, params=PARAMS):
    return np.asarray(jax.vmap(ae.encode, (None, 0))(params, X), np.float64)


# ---- the penalties are what the design says, with no hidden factor -------------------


def test_l1_is_the_batch_mean_of_the_sum_of_absolute_latents():
    ae = model("tanh")
    found = value(penalties.l1, ae)
    expected = np.abs(latents(ae)).sum(axis=1).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_contractive_is_the_batch_mean_of_the_squared_jacobian():
    for ae in (model("tanh"), model("softplus", tied=False)):
        params = ae.init(KEY)
        jacobians = jax.vmap(jax.jacobian(ae.encode, argnums=1), (None, 0))(params, X)
        expected = (np.asarray(jacobians, np.float64) ** 2).sum(axis=(1, 2)).mean()
        found = value(penalties.contractive, ae, params)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_weight_decay_counts_W_once_when_tied_and_no_bias():
    params = PARAMS._replace(b_enc=jnp.full(4, 100.0))
    expected = (np.asarray(params.W, np.float64) ** 2).sum()
    np.testing.assert_allclose(
        value(penalties.weight_decay, AE, params), expected, rtol=1e-6
    )
    untied = value(penalties.weight_decay, model(tied=False), jaxae.untie(params))
    np.testing.assert_allclose(untied, 2 * expected, rtol=1e-6)


def test_kl_sparsity_is_the_divergence_of_mean_activities():
    rho, rho_hat = 0.1, latents().mean(axis=0)
    expected = np.sum(
        rho * np.log(rho / rho_hat) + (1 - rho) * np.log((1 - rho) / (1 - rho_hat))
    )
    found = value(penalties.kl_sparsity, kl_sparsity_target=rho)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kl_sparsity_is_finite_where_a_sigmoid_rounds_to_0_or_1(dtype):
    """Of a latent that rounds to 0 or 1 on all examples, the derivative is 0."""
    with jax.enable_x64(dtype == "float64"):
        params = AE.init(KEY, dtype=dtype)
        b_enc = jnp.asarray([1e3, -1e3, 0.5, 0.5], dtype)
        params = params._replace(W=0 * params.W, b_enc=b_enc)
        objective = jaxae.Objective(AE, penalties=(penalties.kl_sparsity,))
        hparams = {"kl_sparsity": 1.0, "kl_sparsity_target": 0.1}
        arguments = params, jnp.zeros((4, 6), dtype), None, hparams
        (_, aux), grads = jaxae.manual.value_and_grad(objective)(*arguments)
        by_autodiff, _ = jax.grad(objective, has_aux=True)(*arguments)
        jitted = jax.jit(objective)(*arguments)[1].metrics["kl_sparsity"]
    low, high = np.finfo(dtype).tiny, 1 - np.finfo(dtype).epsneg
    middle = 1 / (1 + np.exp(-0.5))
    expected = sum(
        0.1 * np.log(0.1 / rho_hat) + 0.9 * (np.log(0.9) - np.log1p(-rho_hat))
        for rho_hat in (low, high, middle, middle)
    )
    np.testing.assert_allclose(aux.metrics["kl_sparsity"], expected, rtol=1e-5)
    np.testing.assert_allclose(jitted, expected, rtol=1e-5)
    for b in grads.b_enc, by_autodiff.b_enc:
        np.testing.assert_array_equal(b[:2], 0)
    np.testing.assert_allclose(grads.b_enc, by_autodiff.b_enc, rtol=1e-5)


def test_a_zero_latent_has_slope_0_under_l1_by_hand_and_by_autodiff():
    ae = model("tanh", "gaussian")
    objective = jaxae.Objective(ae, penalties=(penalties.l1,))
    arguments = (ae.init(KEY), jnp.zeros((2, 6)), None, {"l1": 1.0})
    _, by_hand = jaxae.manual.value_and_grad(objective)(*arguments)
    by_autodiff, _ = jax.grad(objective, has_aux=True)(*arguments)
    np.testing.assert_array_equal(by_hand.b_enc, by_autodiff.b_enc)
    assert not by_hand.b_enc.any()
    report = gradcheck.check(
        objective,
        *arguments,
        grad=lambda *a: jaxae.manual.value_and_grad(objective)(*a)[1],
        has_aux=True,
    )
    report.assert_ok()
    assert report.leaves["b_enc"].verdict == "kink"


def test_the_objective_is_reconstruction_plus_coefficients_times_penalties():
    objective = jaxae.Objective(AE, penalties=(penalties.l1, penalties.weight_decay))
    loss, aux = objective(PARAMS, X, None, {"l1": 0.3, "weight_decay": 0.02})
    m = aux.metrics
    assert list(m) == ["loss", "reconstruction", "l1", "weight_decay"]
    expected = m["reconstruction"] + 0.3 * m["l1"] + 0.02 * m["weight_decay"]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert loss == m["loss"]


# ---- corruption ----------------------------------------------------------------------


def test_masking_zeroes_with_probability_rate():
    x = jnp.ones(20_000)
    found = corruptions.masking(KEY, x, 0.3)
    assert set(np.unique(found)) == {0, 1}
    np.testing.assert_allclose((found == 0).mean(), 0.3, atol=0.015)


def test_gaussian_noise_has_the_standard_deviation_rate():
    found = corruptions.gaussian(KEY, jnp.ones(20_000), 0.3) - 1
    np.testing.assert_allclose([found.mean(), found.std()], [0, 0.3], atol=0.01)


def test_salt_and_pepper_sets_to_0_or_1_evenly():
    found = corruptions.salt_and_pepper(KEY, jnp.full(20_000, 0.5), 0.4)
    shares = [(found == level).mean() for level in (0, 0.5, 1)]
    np.testing.assert_allclose(shares, [0.2, 0.6, 0.2], atol=0.015)


@pytest.mark.parametrize("name", corruptions.CATALOGUE)
def test_one_key_means_one_noise_in_every_dtype_and_under_x64(name):
    x = jnp.linspace(0.0, 1.0, 50)
    single = corruptions.get(name)(KEY, x, 0.3)
    with jax.enable_x64(True):
        double = corruptions.get(name)(KEY, x.astype(jnp.float64), 0.3)
    np.testing.assert_allclose(single, double, rtol=1e-6)


def test_each_example_has_its_own_noise_and_each_key_too():
    objective = jaxae.Objective(AE, corruption=corruptions.gaussian)
    same = jnp.tile(X[:1], (3, 1))
    first, again = (
        objective.forward(PARAMS, same, key, {"corruption_rate": 0.1}).inputs
        for key in (KEY, jax.random.key(1))
    )
    assert len({row.tobytes() for row in np.concatenate([first, again])}) == 6


def test_evaluate_is_without_corruption_and_needs_no_rate():
    objective = jaxae.Objective(
        AE, corruption=corruptions.masking, penalties=(penalties.l1,)
    )
    found = objective.evaluate(PARAMS, X, {"l1": 0.5})
    plain = jaxae.Objective(AE, penalties=(penalties.l1,))
    loss, _ = plain(PARAMS, X, None, {"l1": 0.5})
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-6)
    X_hat = np.asarray(jax.vmap(AE.reconstruct, (None, 0))(PARAMS, X))
    expected = ((X_hat - X) ** 2).sum(axis=1).mean()
    np.testing.assert_allclose(found["squared_error"], expected, rtol=1e-5)


# ---- bad input -----------------------------------------------------------------------

MASKED = jaxae.Objective(AE, corruption=corruptions.masking, penalties=(penalties.l1,))
FULL = {"l1": 0.1, "corruption_rate": 0.2}


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: MASKED(PARAMS, X, KEY, {"l1": 1}), "lacks corruption_rate, got l1;"),
        (
            lambda: MASKED(PARAMS, X, KEY, {}),
            "lacks corruption_rate, l1, got none; this",
        ),
        (lambda: MASKED(PARAMS, X, None, FULL), "key must be one JAX random key"),
        (
            lambda: MASKED(PARAMS, X[0], KEY, FULL),
            r"\[B, 6\], got \[6\]; add a leading",
        ),
        (lambda: MASKED(PARAMS, X[:0], KEY, FULL), r"\[B, 6\], got \[0, 6\]"),
        (lambda: MASKED(PARAMS, X[:, :5], KEY, FULL), r"\[B, 6\], got \[9, 5\]"),
        (lambda: MASKED(PARAMS, X.astype(int), KEY, FULL), "batch has dtype int"),
        (lambda: MASKED(PARAMS, (X, X[1:]), KEY, FULL), "9 inputs and 8 targets"),
        (lambda: MASKED(PARAMS, (X, X[:, 1:]), KEY, FULL), r"targets must have shape"),
        (lambda: MASKED(jaxae.untie(PARAMS), X, KEY, FULL), "must be TiedParams"),
        (lambda: jaxae.Objective("ae"), "ae must be a jaxae.Autoencoder, got 'ae'"),
        (
            lambda: jaxae.Objective(AE, corruption=jnp.tanh),
            "corruption must be a Corruption such as",
        ),
        (
            lambda: jaxae.Objective(AE, penalties=penalties.l1),
            r"must be a tuple of penalties, got l1; write \(l1,\)",
        ),
        (lambda: jaxae.Objective(AE, penalties=(3,)), "must be a Penalty such as"),
        (
            lambda: jaxae.Objective(AE, penalties=(penalties.l1, penalties.l1)),
            "different names, got l1, l1",
        ),
        (lambda: MASKED(PARAMS, (X, X, X), KEY, FULL), "pair .*got a tuple of 3"),
        (lambda: MASKED(PARAMS, X, KEY, None), "hparams must be a dict of numbers"),
        (
            lambda: jaxae.Objective(AE, penalties=None),
            "penalties must be a tuple of penalties, got None",
        ),
        (
            lambda: jaxae.Objective(
                AE, penalties=(penalties.l1._replace(name="loss"),)
            ),
            "must not be named loss",
        ),
        (
            lambda: jaxae.Objective(model("relu"), penalties=(penalties.kl_sparsity,)),
            "latents between 0 and 1, but those of relu",
        ),
        (lambda: penalties.get("l2"), "penalty must be one of aux_k, contr.*, got 'l2'"),
        (
            lambda: corruptions.get("noise"),
            "corruption must be one of gaussian.*, got 'noise'",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)


def test_contractive_needs_an_elementwise_activation():
    curveless = jaxae.activations.tanh._replace(name="curveless", curvature=None)
    ae = jaxae.Autoencoder(input_dim=6, latent_dim=4, activation=curveless)
    with pytest.raises(ValueError, match="contractive.*but curveless has none"):
        jaxae.Objective(ae, penalties=(penalties.contractive,))
