"""What `jaxae gradcheck` judges of the library: whatever its catalogues hold."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae import activations, corruptions, manual, observations, penalties
from jaxae.activations import Activation
from jaxae.autoencoder import Autoencoder
from jaxae.objective import Objective
from jaxae.observations import Observation

# Tiny: an entry is judged as well among few as among many, and compiles as fast.
INPUT_DIM, LATENT_DIM, NUM_ROWS = 6, 4, 8
TYINGS = {"tied": True, "untied": False}
# What a factory makes is in no catalogue: an example of each.
MADE = {
    "gaussian_with": observations.gaussian_with(
        activations.relu, (1.0, 0.9, 0.8, 0.5, 2.0, 3.0)
    )
}


class Case(NamedTuple):
    """A claim about a gradient: the arguments of `jaxae.gradcheck.check`."""

    fn: Callable[..., Any]
    params: Any
    args: tuple[Any, ...] = ()
    grad: Callable[..., Any] | None = None
    has_aux: bool = False
    surrogate: tuple[str, ...] = ()


class Derivative(NamedTuple):
    """One hand-written derivative: where, of what, and the claim."""

    at: Any
    value: Callable[[Any], jax.Array]
    claim: Callable[[Any], Any]


def catalogue() -> dict[str, Callable[[np.random.Generator], Case]]:
    """Every case by name; its values are drawn from the generator, none is zero.

    Each activation and each observation alone; all of their pairs, tied and untied,
    through the backward pass by hand; so, too, each penalty and each corruption, and
    the encoder without its bias.
    """
    cases: dict[str, Callable[[np.random.Generator], Case]] = {}
    for name, g in activations.CATALOGUE.items():
        cases[f"activation/{name}"] = functools.partial(_activation, g)
    for name, observation in {**observations.CATALOGUE, **MADE}.items():
        cases[f"observation/{name}"] = functools.partial(_observation, observation)
    for name, objective in _objectives():
        cases[name] = functools.partial(_objective, objective)
    return cases


# ---- parts alone ---------------------------------------------------------------------


def _activation(g: Activation, rng: np.random.Generator) -> Case:
    a, dz = _normal(rng, 7), _normal(rng, 7)
    theta = () if g.init is None else _moved(g.init(7), rng)

    def z(a):
        return g.apply(a, *theta)

    def along_dz(function):
        return lambda at: jnp.dot(dz, function(at))

    parts = {"vjp": Derivative(a, along_dz(z), lambda a: g.vjp(a, z(a), dz, *theta))}
    if (slope := g.slope) is not None:
        parts["slope"] = Derivative(a, along_dz(z), lambda a: dz * slope(a, z(a)))
        if (curvature := g.curvature) is not None:
            parts["curvature"] = Derivative(
                a,
                along_dz(lambda a: slope(a, z(a))),
                lambda a: dz * curvature(a, z(a)),
            )
    if (vjp_theta := g.vjp_theta) is not None:
        parts["vjp_theta"] = Derivative(
            theta,
            along_dz(lambda theta: g.apply(a, *theta)),
            lambda theta: vjp_theta(a, g.apply(a, *theta), dz, *theta),
        )
    return _together(parts)


def _observation(observation: Observation, rng: np.random.Generator) -> Case:
    eta = 2 * _normal(rng, INPUT_DIM)
    theta = ()
    if observation.init is not None:
        theta = _moved(observation.init(INPUT_DIM), rng)
    [x] = _rows(observation, theta, rng, num_rows=1)
    parts = {
        "dloss": Derivative(
            eta,
            lambda eta: observation.loss(eta, x, *theta),
            lambda eta: observation.dloss(eta, x, *theta),
        )
    }
    if (dtheta := observation.dtheta) is not None:
        parts["dtheta"] = Derivative(
            theta,
            lambda theta: observation.loss(eta, x, *theta),
            lambda theta: dtheta(eta, x, *theta),
        )
    return _together(parts)


def _together(parts: dict[str, Derivative]) -> Case:
    """The sum of the parts' values: one compilation, and still one verdict a part."""
    return Case(
        fn=lambda params: sum(part.value(params[name]) for name, part in parts.items()),
        params={name: part.at for name, part in parts.items()},
        grad=lambda params: {
            name: part.claim(params[name]) for name, part in parts.items()
        },
    )


# ---- whole objectives ----------------------------------------------------------------


def _objectives() -> Iterator[tuple[str, Objective]]:
    for g, observation, tying in itertools.product(
        activations.CATALOGUE, observations.CATALOGUE, TYINGS
    ):
        ae = _model(tying, g, observation)
        yield f"objective/{g}/{observation}/{tying}", Objective(ae)
    for name, penalty in penalties.CATALOGUE.items():
        # Every activation, for l1 must meet z < 0; untied once, for that is pullback's.
        bearing = [g for g in activations.CATALOGUE if _bears(g, penalty)]
        for g, tying in (*((g, "tied") for g in bearing), (bearing[0], "untied")):
            objective = Objective(_model(tying, g), penalties=(penalty,))
            yield f"penalty/{name}/{g}/{tying}", objective
    for tying in TYINGS:
        ae = _model(tying, "identity")
        for name, made in MADE.items():
            toy = dataclasses.replace(ae, observation=made, bias=False)
            yield f"no_bias/{name}/{tying}", Objective(toy)
    for (name, corruption), tying in itertools.product(
        corruptions.CATALOGUE.items(), TYINGS
    ):
        yield (
            f"corruption/{name}/{tying}",
            Objective(_model(tying), corruption=corruption),
        )


def _model(tying: str, g: str | None = None, observation: str | None = None):
    """A model of these parts; of the first in the catalogue unless named."""
    return Autoencoder(
        input_dim=INPUT_DIM,
        latent_dim=LATENT_DIM,
        activation=activations.CATALOGUE[g or next(iter(activations.CATALOGUE))],
        observation=observations.CATALOGUE[
            observation or next(iter(observations.CATALOGUE))
        ],
        tied=TYINGS[tying],
    )


def _bears(g: str, penalty: penalties.Penalty) -> bool:
    try:
        penalty.check(_model("tied", g))
    except ValueError:
        return False
    return True


def _objective(objective: Objective, rng: np.random.Generator) -> Case:
    ae, value_and_grad = objective.ae, manual.value_and_grad(objective)
    params = _moved(ae.init(_key(rng)), rng)
    targets = _rows(ae.observation, params.observation, rng, NUM_ROWS)
    # Small enough for a probability, whatever the name.
    hparams = {
        name: jnp.float32(rng.uniform(0.1, 0.4)) for name in objective.hparam_names
    }
    return Case(
        fn=objective,
        params=params,
        args=((_grey(rng, NUM_ROWS), targets), _key(rng), hparams),
        grad=lambda *arguments: value_and_grad(*arguments)[1],
        has_aux=True,
    )


# ---- values --------------------------------------------------------------------------


def _normal(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def _grey(rng: np.random.Generator, num_rows: int) -> jax.Array:
    return jnp.asarray(rng.uniform(size=(num_rows, INPUT_DIM)), jnp.float32)


def _key(rng: np.random.Generator) -> jax.Array:
    return jax.random.key(int(rng.integers(2**32)))


def _moved(tree: Any, rng: np.random.Generator) -> Any:
    """With noise on every entry, so that no gradient hides behind a zero."""
    return jax.tree.map(lambda leaf: leaf + 0.3 * _normal(rng, *leaf.shape), tree)


def _rows(
    observation: Observation, theta: tuple, rng: np.random.Generator, num_rows: int
) -> jax.Array:
    """Grey levels where the observation admits them, else rows drawn from it."""
    X = _grey(rng, num_rows)
    try:
        observation.validate(X)
    except ValueError:
        if (sample := observation.sample) is None:
            raise
        keys = jax.random.split(_key(rng), num_rows)
        drawn = [sample(key, eta, *theta) for key, eta in zip(keys, X, strict=True)]
        return jnp.stack(drawn).astype(jnp.float32)
    return X
