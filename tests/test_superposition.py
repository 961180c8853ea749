"""The model of Elhage et al., Toy Models of Superposition, 2022, built with jaxae.

x_hat = relu(W^T W x + b), a squared error weighted by importance, and sparse features;
two features and one latent, so that the loss of both candidates has a closed form.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxae
from jaxae.activations import identity, relu
from jaxae.observations import gaussian_with

KEY = jax.random.key(0)


def toy(*importance):
    ae = jaxae.Autoencoder(
        input_dim=2,
        latent_dim=1,
        activation=identity,
        observation=gaussian_with(relu, importance),
        bias=False,
    )
    return jaxae.Objective(ae)


def loss_of_ignoring(density, importance):
    """x_hat = (x_1, E x_2), where E x = p/2 and E x^2 = p/3 for density p."""
    return importance[1] / 2 * (density / 3 - (density / 2) ** 2)


def loss_of_superposing(density, importance):
    """x_hat = (relu(x_1 - x_2), relu(x_2 - x_1)): the error of each is min(x_1, x_2).

    The error is 0 unless both are active; the mean of min(u, v)^2 over U(0, 1) is 1/6.
    """
    return sum(importance) / 2 * density**2 / 6


CANDIDATES = {
    "ignoring": ([1.0, 0.0], lambda density: [0, density / 2], loss_of_ignoring),
    "superposing": ([1.0, -1.0], lambda density: [0, 0], loss_of_superposing),
}


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("density", [0.1, 0.6, 1.0])
def test_the_loss_of_two_features_in_one_latent_is_its_closed_form(
    candidate, density, x64
):
    importance = (1.0, 0.4)
    W, bias, closed_form = CANDIDATES[candidate]
    objective = toy(*importance)
    params = jaxae.TiedParams(jnp.array([W]), (), jnp.array(bias(density), float))
    X = jaxae.data.sparse_features(2, 100_000)(KEY, {"density": density})
    losses = jax.vmap(objective.ae.loss, (None, 0))(params, X)
    error = 5 * losses.std() / np.sqrt(len(X))
    np.testing.assert_allclose(
        losses.mean(), closed_form(density, importance), atol=float(error)
    )


def test_training_finds_superposition_only_for_sparse_features():
    """Density is traced; each set of importances is compiled separately."""
    densities, importances = [0.05, 1.0], [(1.0, 1.0), (1.0, 0.3)]
    sweep = jaxae.sweep(
        toy(1.0, 1.0),
        jaxae.data.sparse_features(2, 256),
        {
            "observation": [gaussian_with(relu, w) for w in importances],
            "density": densities,
            "seed": range(4),
        },
        hparams={"learning_rate": 0.02},
        key=KEY,
        config=jaxae.TrainConfig(num_epochs=5, steps_per_epoch=200, diagnostics=False),
    )
    for importance in importances:
        observation = gaussian_with(relu, importance)
        for density in densities:
            X = jaxae.data.sparse_features(2, 20_000)(KEY, {"density": density})
            is_observation = sweep.table["observation"] == str(observation)
            is_density = np.isclose(sweep.table["density"], density)
            trained = []
            for lane in np.flatnonzero(is_observation & is_density):
                params = sweep.params(lane)
                loss = toy(*importance).evaluate(params, X, {})["loss"]
                trained.append((float(loss), np.asarray(params.W[0])))
            best, (first, second) = min(trained, key=lambda pair: pair[0])
            ignoring, superposing = (
                loss(density, importance) for *_, loss in CANDIDATES.values()
            )
            assert best < 1.1 * min(ignoring, superposing)
            is_superposed = first * second < -0.25
            assert is_superposed == (superposing < ignoring)
