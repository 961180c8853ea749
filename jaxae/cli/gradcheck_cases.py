"""The cases of `jaxae gradcheck`: every part in the library's catalogues."""

import functools
import itertools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae import activations, corruptions, manual, observations, penalties
from jaxae.activations import Activation
from jaxae.autoencoder import Autoencoder
from jaxae.objective import STEPS_SINCE_ACTIVE, Objective
from jaxae.observations import Observation

# Small, because each entry is checked for itself.
INPUT_DIM, LATENT_DIM, NUM_ROWS = 6, 4, 8
TYINGS = {"tied": True, "untied": False}
# One example per factory, because its products are in no catalogue.
FACTORY_EXAMPLES = {
    "gaussian_with": observations.gaussian_with(
        activations.relu, (1.0, 0.9, 0.8, 0.5, 2.0, 3.0)
    )
}


class Case(NamedTuple):
    """A gradient to check: the arguments of `jaxae.gradcheck.check`."""

    fn: Callable[..., Any]
    params: Any
    args: tuple[Any, ...] = ()
    grad: Callable[..., Any] | None = None
    has_aux: bool = False
    surrogate: tuple[str, ...] = ()


def catalogue() -> dict[str, Callable[[np.random.Generator], Case]]:
    """Every case by name, a function of a generator that draws its values, none zero.

    There is a case for each activation and each observation alone, and, through the
    backward pass by hand, for all of their pairs, each penalty, each corruption and an
    encoder without bias, tied and untied. The cases of the sparse family are each
    activation, tied and untied, each penalty, and nested prefixes.
    """
    cases: dict[str, Callable[[np.random.Generator], Case]] = {}
    for name, g in activations.CATALOGUE.items():
        cases[f"activation/{name}"] = functools.partial(_activation, g)
    for name, part in {**observations.CATALOGUE, **FACTORY_EXAMPLES}.items():
        cases[f"observation/{name}"] = functools.partial(_observation, part)
    for name, objective in _objectives():
        cases[name] = functools.partial(_objective, objective)
    for name, objective, hparams in _sparse_objectives():
        cases[name] = functools.partial(_objective, objective, hparams=hparams)
    return cases


# ---- single parts --------------------------------------------------------------------

# Where it is checked, `point -> []`, and `point ->` the gradient by hand.
Derivative = tuple[Any, Callable[[Any], jax.Array], Callable[[Any], Any]]


def _activation(g: Activation, rng: np.random.Generator) -> Case:
    a, dz = _normal(rng, 7), _normal(rng, 7)
    theta = () if g.init is None else _perturbed(g.init(7), rng)

    def z(a):
        return g.apply(a, *theta)

    derivatives: dict[str, Derivative] = {
        "vjp": (a, lambda a: dz @ z(a), lambda a: g.vjp(a, z(a), dz, *theta))
    }
    if (slope := g.slope) is not None:
        derivatives["slope"] = (a, lambda a: dz @ z(a), lambda a: dz * slope(a, z(a)))
        if (curvature := g.curvature) is not None:
            derivatives["curvature"] = (
                a,
                lambda a: dz @ slope(a, z(a)),
                lambda a: dz * curvature(a, z(a)),
            )
    if (vjp_theta := g.vjp_theta) is not None:
        derivatives["vjp_theta"] = (
            theta,
            lambda theta: dz @ g.apply(a, *theta),
            lambda theta: vjp_theta(a, g.apply(a, *theta), dz, *theta),
        )
    return _sum(derivatives)


def _observation(observation: Observation, rng: np.random.Generator) -> Case:
    eta, theta = 2 * _normal(rng, INPUT_DIM), ()
    if observation.init is not None:
        theta = _perturbed(observation.init(INPUT_DIM), rng)
    [x] = _rows(observation, theta, rng, num_rows=1)
    derivatives: dict[str, Derivative] = {
        "dloss": (
            eta,
            lambda eta: observation.loss(eta, x, *theta),
            lambda eta: observation.dloss(eta, x, *theta),
        )
    }
    if (dtheta := observation.dtheta) is not None:
        derivatives["dtheta"] = (
            theta,
            lambda theta: observation.loss(eta, x, *theta),
            lambda theta: dtheta(eta, x, *theta),
        )
    return _sum(derivatives)


def _sum(derivatives: dict[str, Derivative]) -> Case:
    """The sum of the functions, which compiles once; each has a leaf of its own."""
    points, functions, claims = (
        {name: derivative[i] for name, derivative in derivatives.items()}
        for i in range(3)
    )
    return Case(
        fn=lambda params: sum(functions[name](params[name]) for name in functions),
        params=points,
        grad=lambda params: {name: claims[name](params[name]) for name in claims},
    )


# ---- objectives ----------------------------------------------------------------------


_model = functools.partial(Autoencoder, input_dim=INPUT_DIM, latent_dim=LATENT_DIM)


def _objectives() -> Iterator[tuple[str, Objective]]:
    for g, observation, (tying, tied) in itertools.product(
        activations.CATALOGUE, observations.CATALOGUE, TYINGS.items()
    ):
        ae = _model(activation=g, observation=observation, tied=tied)
        yield f"objective/{g}/{observation}/{tying}", Objective(ae)
    for name, penalty in penalties.CATALOGUE.items():
        # Tied with every activation, so that l1 meets z < 0; untied with one.
        accepted = [g for g in activations.CATALOGUE if _accepts(penalty, g)]
        for g, tying in (*((g, "tied") for g in accepted), (accepted[0], "untied")):
            ae = _model(activation=g, tied=TYINGS[tying])
            yield f"penalty/{name}/{g}/{tying}", Objective(ae, penalties=(penalty,))
    for tying, tied in TYINGS.items():
        for name, part in FACTORY_EXAMPLES.items():
            ae = _model(activation="identity", observation=part, tied=tied, bias=False)
            yield f"no_bias/{name}/{tying}", Objective(ae)
        for name, corruption in corruptions.CATALOGUE.items():
            objective = Objective(_model(tied=tied), corruption=corruption)
            yield f"corruption/{name}/{tying}", objective


def _accepts(penalty: penalties.Penalty, g: str) -> bool:
    try:
        penalty.check(_model(activation=g))
    except ValueError:
        return False
    return True


# ---- objectives of the sparse family -------------------------------------------------

# One example per name. The box of jumprelu is wide, so that pre-activations lie in it.
SPARSE_ACTIVATIONS: dict[str, Activation] = {
    "topk": activations.topk(2),
    "abs_topk": activations.abs_topk(2),
    "batch_topk": activations.batch_topk(2),
    "jumprelu": activations.jumprelu(bandwidth=2.0, threshold=0.5, scale=1.5),
    "gated": activations.gated,
}
# Each penalty with the activations whose latents it treats differently.
SPARSE_PENALTIES: dict[str, tuple[str, ...]] = {
    "l1_decoder_norm": ("abs_topk",),
    "tanh_sparsity": ("abs_topk",),
    "l0": ("jumprelu",),
    "gated_l1": ("gated",),
    "gated_aux": ("gated",),
    "aux_k": ("topk", "abs_topk"),
    "pre_act": ("jumprelu", "topk"),
}
PREFIXES = (1, 2, LATENT_DIM)


def _sparse_objectives() -> Iterator[tuple[str, Objective, dict[str, float]]]:
    def model(name, tying, **choices):
        g = SPARSE_ACTIVATIONS[name]
        tied = TYINGS[tying]
        return _model(activation=g, observation="gaussian", tied=tied, **choices)

    for name, tying in itertools.product(SPARSE_ACTIVATIONS, TYINGS):
        yield f"sparse/{name}/{tying}", Objective(model(name, tying)), {}
    yield "sparse/topk/k", Objective(model("topk", "untied")), {"k": 1.0}
    for name, kinds in SPARSE_PENALTIES.items():
        part = penalties.SPARSE[name]
        penalty = part if isinstance(part, penalties.Penalty) else part(2)
        for g, tying in itertools.product(kinds, TYINGS):
            objective = Objective(model(g, tying), penalties=(penalty,))
            yield f"sparse/{name}/{g}/{tying}", objective, {}
    for cut, is_cut in {"joint": False, "cut": True}.items():
        objective = Objective(
            model("topk", "untied", pre_bias=True),
            penalties=(penalties.aux_k(2),),
            prefixes=PREFIXES,
            cut_prefixes=is_cut,
        )
        yield f"sparse/prefixes/{cut}", objective, {}


def _with_dead_latents(objective: Objective) -> dict[str, Any]:
    """The initial state, with every other latent dead where it counts them."""
    state = objective.init_state()
    if objective.dead_after is not None:
        counts = objective.dead_after * (jnp.arange(LATENT_DIM) % 2)
        state[STEPS_SINCE_ACTIVE] = counts.astype(jnp.int32)
    return state


def _objective(
    objective: Objective,
    rng: np.random.Generator,
    hparams: Mapping[str, float] = types.MappingProxyType({}),
) -> Case:
    ae, value_and_grad = objective.ae, manual.value_and_grad(objective)
    params = _perturbed(ae.init(_key(rng)), rng)
    targets = _rows(ae.observation, params.observation, rng, NUM_ROWS)
    # Below 1, because some hyperparameters are probabilities.
    drawn = {
        name: jnp.float32(rng.uniform(0.1, 0.4)) for name in objective.hparam_names
    }
    numbers = {**drawn, **{name: jnp.float32(x) for name, x in hparams.items()}}
    batch, state = (_grey_levels(rng, NUM_ROWS), targets), _with_dead_latents(objective)
    return Case(
        fn=objective,
        params=params,
        args=(batch, _key(rng), numbers, state),
        grad=lambda *arguments: value_and_grad(*arguments)[1],
        has_aux=True,
        surrogate=objective.surrogate,
    )


# ---- values --------------------------------------------------------------------------


def _normal(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def _grey_levels(rng: np.random.Generator, num_rows: int) -> jax.Array:
    return jnp.asarray(rng.uniform(size=(num_rows, INPUT_DIM)), jnp.float32)


def _key(rng: np.random.Generator) -> jax.Array:
    return jax.random.key(int(rng.integers(2**32)))


def _perturbed(tree: Any, rng: np.random.Generator) -> Any:
    """The tree with noise on every entry, so that none is zero."""
    return jax.tree.map(lambda leaf: leaf + 0.3 * _normal(rng, *leaf.shape), tree)


def _rows(
    observation: Observation, theta: tuple, rng: np.random.Generator, num_rows: int
) -> jax.Array:
    """Grey levels if the observation accepts them, else samples from it."""
    X = _grey_levels(rng, num_rows)
    try:
        observation.validate(X)
    except ValueError:
        if (sample := observation.sample) is None:
            raise
        keys = jax.random.split(_key(rng), num_rows)
        rows = [sample(key, eta, *theta) for key, eta in zip(keys, X, strict=True)]
        return jnp.stack(rows).astype(jnp.float32)
    return X
