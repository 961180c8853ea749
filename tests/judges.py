"""The derivatives written by hand, each judged by gradcheck as what it claims to be.

In float64, where a check resolves about 1e-10: call them under the fixture `x64`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from catalogue import batch

import jaxae
from jaxae import gradcheck, manual
from jaxae.activations import Activation
from jaxae.observations import Observation
from jaxae.penalties import Penalty
from jaxae.terms import Pass, add

KEY = jax.random.key(0)
# The fields of a part that hold a derivative.
DERIVATIVES = {
    Activation: ("vjp", "slope", "curvature", "vjp_theta"),
    Observation: ("dloss", "dtheta"),
    Penalty: ("cotangents",),
}


FLOAT16 = pytest.param("float16", marks=pytest.mark.float16)


def assert_falls(values):
    """By more than a hundred roundings of float32, which differ between machines."""
    assert values[-1] < (1 - 1e-5) * values[0]


def moved(tree, key=KEY):
    """With noise on every entry, so that no gradient hides behind a zero."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves)) if leaves else ()
    noise = [
        0.3 * jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves)
    ]
    return jax.tree.unflatten(treedef, [a + b for a, b in zip(leaves, noise)])


def reports_on(part, *, tied=True):
    """A report for each derivative that a part of the library holds."""
    if isinstance(part, Activation):
        yield from _reports_on_activation(part)
    elif isinstance(part, Observation):
        yield _report_on_observation(part)
        yield from _reports_on_activation(part.inverse_link)
    else:
        yield _report_on_penalty(part, tied)


def _reports_on_activation(g):
    a = jax.random.normal(KEY, (7,), jnp.float64)
    theta = () if g.init is None else moved(g.init(7))

    def vjp(at, dz):
        a, *theta = at
        z = g.apply(a, *theta)
        dtheta = g.vjp_theta(a, z, dz, *theta) if theta else ()
        return (g.vjp(a, z, dz, *theta), *dtheta)

    yield gradcheck.check_vjp(lambda at: g.apply(*at), (a, *theta), vjp=vjp)
    if (slope := g.slope) is not None:
        yield gradcheck.check_jvp(g.apply, a, jvp=_times(g, slope))
        if (curvature := g.curvature) is not None:
            yield gradcheck.check_jvp(
                lambda a: slope(a, g.apply(a)), a, jvp=_times(g, curvature)
            )


def _times(g, derivative):
    return lambda a, da: da * derivative(a, g.apply(a))


def _report_on_observation(observation):
    eta, x = 2 * jax.random.normal(KEY, (6,), jnp.float64), batch(1, 6, jnp.float64)[0]
    theta = () if observation.init is None else moved(observation.init(6))

    def grad(at):
        eta, *theta = at
        dtheta = observation.dtheta(eta, x, *theta) if theta else ()
        return (observation.dloss(eta, x, *theta), *dtheta)

    return gradcheck.check(
        lambda at: observation.loss(at[0], x, *at[1:]), (eta, *theta), grad=grad
    )


def _report_on_penalty(penalty, tied):
    """As a function of a, which z follows, and of the parameters."""
    # tanh, for l1 must meet z < 0; kl_sparsity alone is for latents in (0, 1).
    g = jaxae.activations.get("sigmoid" if penalty.name == "kl_sparsity" else "tanh")
    ae = jaxae.Autoencoder(input_dim=6, latent_dim=4, activation=g, tied=tied)
    a = jax.random.normal(KEY, (8, 4), jnp.float64)
    params = moved(ae.init(KEY, dtype=jnp.float64))
    hparams = {"kl_sparsity_target": 0.1}

    def pass_of(a):
        zeros = jnp.zeros((8, 6))
        return Pass(zeros, zeros, a, g.apply(a), zeros, hparams)

    def value(at):
        a, params = at
        return penalty.value(ae, params, pass_of(a))

    def grad(at):
        a, params = at
        d = penalty.cotangents(ae, params, pass_of(a))
        zeros = jax.tree.map(jnp.zeros_like, at)
        through_z = None if d.z is None else g.vjp(a, g.apply(a), d.z)
        return add(zeros[0], add(d.a, through_z)), add(zeros[1], d.params)

    return gradcheck.check(value, (a, params), grad=grad)


def judge_backprop(ae, params, x, target):
    gradcheck.check(
        ae.loss,
        params,
        x,
        target,
        grad=lambda params, *pair: manual.backprop(ae, params, *pair).grads,
    ).assert_ok()


def judge_paths(ae, params, x, target):
    """Each half, as the gradient of the loss by a copy of the parameters of its own."""
    gradcheck.check(
        lambda copies, *pair: ae.path_loss(*copies, *pair),
        (params, params),
        x,
        target,
        grad=lambda copies, *pair: tuple(manual.path_grads(ae, copies[0], *pair)),
    ).assert_ok()


def judge_objective(objective, params, pair, key, hparams):
    """The gradient of the mean, at inputs corrupted once: no parameter moves these."""
    clean = dataclasses.replace(objective, corruption=None)
    value_and_grad = manual.value_and_grad(clean)
    p = objective.forward(params, pair, key, hparams)
    gradcheck.check(
        clean,
        params,
        (p.inputs, p.targets),
        None,
        hparams,
        grad=lambda *arguments: value_and_grad(*arguments)[1],
        has_aux=True,
    ).assert_ok()
