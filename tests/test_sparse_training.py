"""What training achieves with the sparse family, on data with known features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxae
from jaxae import activations as g
from jaxae import penalties, recovery

KEY = jax.random.key(0)


def dictionary(num_features, dim, seed=0):
    V = np.random.default_rng(seed).normal(size=(num_features, dim))
    return V / np.linalg.norm(V, axis=1, keepdims=True)


def rows(V, num_rows, num_active, seed=1):
    """Sums of few rows of V, each with a magnitude near 1."""
    rng = np.random.default_rng(seed)
    fires = rng.random((num_rows, len(V))) < num_active / len(V)
    magnitudes = 1 + 0.3 * rng.normal(size=fires.shape)
    return (fires * magnitudes @ V).astype(np.float32)


def model(X, latent_dim, activation):
    return jaxae.Autoencoder(
        input_dim=X.shape[1],
        latent_dim=latent_dim,
        activation=activation,
        observation="gaussian",
        tied=False,
    )


def config(num_epochs, diagnostics=False):
    return jaxae.TrainConfig(
        num_epochs=num_epochs, batch_size=128, diagnostics=diagnostics
    )


def assert_falls_by_a_factor_of_4(l0):
    """Each of the coefficients, which are a factor of 2 apart, gives fewer latents."""
    assert len(l0) >= 8 and np.all(np.diff(l0) < 0), l0
    assert l0[0] > 4 * l0[-1], l0


COEFFICIENTS = np.geomspace(0.002, 0.3, 8)


def jumprelu_objective(X, scale, **choices):
    activation = g.jumprelu(bandwidth=0.1, threshold=0.05, scale=scale)
    return jaxae.Objective(model(X, 48, activation), penalties=("l0",), **choices)


@pytest.mark.parametrize(
    ("scale", "compute_dtype"),
    [(1e-2, None), (1.0, "bfloat16"), pytest.param(1e2, None, marks=pytest.mark.slow)],
    ids=str,
)
def test_the_l0_penalty_moves_l0_at_any_scale_of_the_data(scale, compute_dtype):
    """With a logarithmic threshold under Adam it did not (SAELens#494, #718)."""
    X = scale * rows(dictionary(32, 16), 1024, 3)
    swept = jaxae.sweep(
        jumprelu_objective(X, scale, compute_dtype=compute_dtype),
        X,
        {"l0": [float(scale**2 * c) for c in COEFFICIENTS]},
        hparams={"learning_rate": 3e-3},
        key=KEY,
        config=config(30),
        lanes_at_once=8,
    )
    assert_falls_by_a_factor_of_4(swept.metrics["train/l0"][:, -1])


@pytest.mark.parametrize(
    "scale", [1.0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1e-2, 1e2))]
)
def test_the_l0_penalty_moves_l0_of_bfloat16_parameters(scale):
    """A threshold in bfloat16 hardly moved (SAELens#728)."""
    X = scale * rows(dictionary(32, 16), 1024, 3)
    objective = jumprelu_objective(X, scale)
    l0 = []
    for coefficient in COEFFICIENTS:
        run = jaxae.train(
            objective,
            X,
            hparams={"l0": scale**2 * coefficient, "learning_rate": 3e-3},
            key=KEY,
            config=config(30),
            params=objective.ae.init(KEY, dtype=jnp.bfloat16),
        )
        l0.append(run.metrics["train/l0"][-1])
    assert_falls_by_a_factor_of_4(np.array(l0))


def test_aux_k_at_least_halves_the_dead_latents_of_data_with_a_large_mean():
    """As the mean over five seeds."""
    direction = np.random.default_rng(2).normal(size=16)
    X = rows(dictionary(64, 16), 1024, 4) + 0.75 * direction.astype(np.float32)
    objective = jaxae.Objective(
        model(X, 64, g.topk(4)), penalties=(penalties.aux_k(16),), dead_after=16
    )
    swept = jaxae.sweep(
        objective,
        X,
        {"aux_k": [0.0, 1.0], "seed": range(5)},
        hparams={"learning_rate": 3e-3},
        key=KEY,
        config=config(40, diagnostics=True),
        lanes_at_once=10,
    )
    without, with_aux_k = swept.final["train/dead_fraction"].reshape(2, 5).mean(axis=1)
    assert without > 0.1
    assert with_aux_k <= without / 2


def test_topk_finds_the_features_of_the_data():
    V = dictionary(48, 24)
    X = rows(V, 4096, 3)
    ae = model(X, 48, g.topk(3))
    run = jaxae.train(
        jaxae.Objective(ae),
        X,
        hparams={"learning_rate": 3e-3},
        key=KEY,
        config=config(30),
    )
    assert recovery.mmcs(run.params.W_dec, V) >= 0.95
    assert recovery.mmcs(V, run.params.W_dec) >= 0.95
