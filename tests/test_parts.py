"""Parts of the user's own whose functions do not return what they must."""

import functools
import pickle
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import batch, prelu, scaled_gaussian

import jaxae
from jaxae import activations, manual, observations
from jaxae.autoencoder import tied
from jaxae.corruptions import Corruption
from jaxae.penalties import Cotangents, Penalty
from jaxae.training import trainer

KEY, X = jax.random.key(0), batch()
DEFAULT_PENALTY = Penalty("own", lambda ae, params, p: jnp.mean(p.z), lambda *_: None)
HPARAMS = {"own": 0.1, "contractive": 0.1, "corruption_rate": 0.1}


def objective(activation="tanh", observation="gaussian", **parts):
    ae = jaxae.Autoencoder(
        input_dim=6, latent_dim=4, activation=activation, observation=observation
    )
    return jaxae.Objective(ae, **parts)


def learns(**changes):
    return objective(prelu._replace(**changes))


def observes(**changes):
    return objective(observation=scaled_gaussian._replace(**changes))


def recipe(log_prob=lambda x, mu: -x, mean=lambda eta: eta):
    return objective(observation=observations.from_log_prob(log_prob, mean, name="own"))


def penalized(cotangents=lambda *_: Cotangents(), value=DEFAULT_PENALTY.value):
    return objective(penalties=(Penalty("own", value, cotangents),))


def corrupted(apply):
    return objective(corruption=Corruption("own", apply))


def is_flat(a, z):
    return 0.5


def partly(ae, params, p):
    return Cotangents(params=params._replace(b_enc=None))


WRONG = {
    # What is learned, and the derivative by it.
    "init array": (
        lambda: learns(init=lambda H: jnp.full(H, 0.25)),
        r"activation prelu: init must return a tuple of arrays.*got float32\[4\]",
    ),
    "init nested": (
        lambda: learns(init=lambda H: ((jnp.full(H, 0.25),),)),
        "activation prelu: init must return a tuple of arrays.*0/0: float32",
    ),
    "init nothing": (
        lambda: learns(init=lambda H: ()),
        r"activation prelu: init must return a tuple of arrays.*got tuple\(\)",
    ),
    "init text": (
        lambda: observes(init=lambda D: ("zeros",)),
        "observation scaled_gaussian: init must return a tuple.*0: 'zeros'",
    ),
    "vjp_theta array": (
        lambda: learns(vjp_theta=lambda a, z, dz, slope: dz * a),
        r"prelu: vjp_theta must return tuple\(0: float32\[4\]\), got float32\[4\]",
    ),
    "vjp_theta number": (
        lambda: learns(vjp_theta=lambda a, z, dz, slope: (dz, dz)),
        r"prelu: vjp_theta must return tuple\(0: float32\[4\]\), got tuple\(0: fl.*1: ",
    ),
    "vjp_theta shape": (
        lambda: learns(vjp_theta=lambda a, z, dz, slope: (jnp.sum(dz),)),
        r"prelu: vjp_theta must return float32\[4\] as 0, got float32\[\]",
    ),
    "vjp_theta dtype": (
        lambda: learns(vjp_theta=lambda a, z, dz, slope: (dz.astype("bfloat16"),)),
        r"prelu: vjp_theta must return float32\[4\] as 0, got bfloat16\[4\]",
    ),
    "vjp_theta none": (
        lambda: learns(vjp_theta=None),
        "prelu: vjp_theta is missing, the derivative with respect to its parameters",
    ),
    "dtheta shape": (
        lambda: observes(dtheta=lambda eta, x, s: (s[:5],)),
        r"scaled_gaussian: dtheta must return float32\[6\] as 0, got float32\[5\]",
    ),
    # The lecture's own signals.
    "apply": (
        lambda: learns(apply=lambda a, slope: a.sum()),
        r"prelu: apply must return an array of floats of shape \[4\], got float32\[\]",
    ),
    "vjp": (
        lambda: learns(vjp=lambda a, z, dz, slope: None),
        r"activation prelu: vjp must return float32\[4\], got None",
    ),
    "slope": (
        lambda: objective(activations.tanh._replace(name="own", slope=is_flat)),
        r"activation own: slope must return .* of shape \[8, 4\], got 0.5",
    ),
    "curvature": (
        lambda: objective(
            activations.tanh._replace(name="own", curvature=is_flat),
            penalties=("contractive",),
        ),
        r"activation own: curvature must return .* of shape \[8, 4\], got 0.5",
    ),
    "dloss": (
        lambda: observes(dloss=lambda eta, x, s: jnp.sum(eta)),
        r"scaled_gaussian: dloss must return float32\[6\], got float32\[\]",
    ),
    "loss": (
        lambda: observes(loss=lambda eta, x, s: (eta - x) ** 2),
        r"observation scaled_gaussian: loss must return .* \[\], got float32\[6\]",
    ),
    "log_prob": (
        lambda: observes(log_prob=lambda eta, x, s: -((eta - x) ** 2)),
        r"observation scaled_gaussian: log_prob must return .* \[\], got float32\[6\]",
    ),
    "link": (
        lambda: observes(inverse_link=activations.tanh._replace(apply=jnp.argmax)),
        r"observation scaled_gaussian: inverse_link must .* \[6\], got int32\[\]",
    ),
    "mean of a recipe": (
        lambda: recipe(mean=lambda eta: eta.sum()),
        r"observation own: mean must return .* of shape \[6\], got float32\[\]",
    ),
    "log_prob of a recipe": (
        lambda: recipe(log_prob=lambda x, mu: None),
        "log_prob must return a number, or one for each of the 6 columns, got None",
    ),
    # What is added and what is changed.
    "penalty value": (
        lambda: penalized(value=lambda ae, params, p: p.z),
        r"penalty own: value must return .* \[\], got float32\[8, 4\]",
    ),
    "cotangents none": (
        lambda: penalized(lambda *_: None),
        "own: cotangents must return a jaxae.penalties.Cotangents, got None",
    ),
    "cotangents type": (
        lambda: penalized(lambda ae, params, p: {"z": p.z}),
        r"cotangents must return a jaxae.*Cotangents, got dict\(z: float32\[8, 4\]\)",
    ),
    "cotangents z": (
        lambda: penalized(lambda ae, params, p: Cotangents(z=p.z[0])),
        r"own: cotangents.z must return float32\[8, 4\], got float32\[4\]",
    ),
    "cotangents params": (
        lambda: penalized(lambda ae, params, *_: Cotangents(params={"W": params.W})),
        r"own: cotangents.params must return TiedParams\(W: .*, got dict\(W: float32",
    ),
    "cotangents leaf": (
        lambda: penalized(partly),
        r"own: cotangents.params must return float32\[4\] as b_enc, got None",
    ),
    "value hparam": (
        lambda: penalized(value=lambda ae, params, p: p.hparams["rate"] * jnp.sum(p.z)),
        r"penalty own reads the hyperparameter 'rate', which .*hparams=\('rate',\)",
    ),
    "cotangents hparam": (
        lambda: penalized(lambda ae, params, p: Cotangents(z=p.hparams["rate"] * p.z)),
        "penalty own reads the hyperparameter 'rate', which it does not declare",
    ),
    "update_state hparam": (
        lambda: objective(
            penalties=(
                DEFAULT_PENALTY._replace(
                    cotangents=lambda *_: Cotangents(),
                    init_state=lambda ae: jnp.zeros(()),
                    update_state=lambda ae, params, p: p.hparams["rate"],
                ),
            )
        ),
        "penalty own reads the hyperparameter 'rate', which it does not declare",
    ),
    "corruption shape": (
        lambda: corrupted(lambda key, x, rate: x[:5]),
        r"corruption own: apply must return float32\[6\], as x is, got float32\[5\]",
    ),
    "corruption dtype": (
        lambda: corrupted(lambda key, x, rate: x.astype("float16")),
        r"corruption own: apply must return float32\[6\], as x is, got float16\[6\]",
    ),
    "corruption none": (
        lambda: corrupted(lambda key, x, rate: None),
        r"corruption own: apply must return float32\[6\], as x is, got None",
    ),
}


WRONG_AT_THE_START = {
    "eta_of_mean": (
        lambda: observes(eta_of_mean=jnp.mean),
        r"observation scaled_gaussian: eta_of_mean must .* \[6\], got float32\[\]",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_part_is_refused_before_any_work(name, monkeypatch):
    """By name, function and leaf, though only the end of an epoch may call it."""
    build, sentence = WRONG[name]
    monkeypatch.setattr(trainer, "execute", lambda *_: pytest.fail("worked"))
    wrong = build()
    hparams = {n: HPARAMS[n] for n in wrong.hparam_names} | {"learning_rate": 0.1}
    config = jaxae.TrainConfig(num_epochs=1, batch_size=8)
    for work in (
        lambda: jaxae.train(wrong, X, hparams=hparams, key=KEY, config=config),
        lambda: jaxae.sweep(
            wrong, X, {"seed": [0]}, hparams=hparams, key=KEY, config=config
        ),
    ):
        with pytest.raises(ValueError, match=sentence) as error:
            work()
        assert "\n" not in str(error.value)


def test_a_wrong_part_is_refused_where_it_is_used():
    for name, use in {
        "init array": lambda o: o.ae.init(KEY),
        "eta_of_mean": lambda o: o.ae.init(KEY, data_mean=X.mean(axis=0)),
        "apply": lambda o: o.ae.encode(o.ae.init(KEY), X[0]),
        "link": lambda o: o.ae.reconstruct(o.ae.init(KEY), X[0]),
        "loss": lambda o: o.ae.loss(o.ae.init(KEY), X[0]),
        "log_prob": lambda o: o.ae.log_prob(o.ae.init(KEY), X[0]),
        "vjp_theta shape": lambda o: manual.backprop(o.ae, o.ae.init(KEY), X[0]),
        "dtheta shape": lambda o: manual.path_grads(o.ae, o.ae.init(KEY), X[0]),
        "corruption dtype": lambda o: o(o.ae.init(KEY), X, KEY, HPARAMS),
        "penalty value": lambda o: o.evaluate(o.ae.init(KEY), X, HPARAMS),
        "cotangents leaf": lambda o: manual.value_and_grad(o)(
            o.ae.init(KEY), X, KEY, HPARAMS
        ),
    }.items():
        build, sentence = {**WRONG, **WRONG_AT_THE_START}[name]
        with pytest.raises(ValueError, match=sentence):
            jax.eval_shape(functools.partial(use, build()))


@pytest.mark.parametrize(
    "build, sentence",
    [
        (
            lambda name: objective(penalties=(DEFAULT_PENALTY._replace(hparams=name),)),
            "penalty own: hparams must be a tuple of names, got 'rate'",
        ),
        (
            lambda name: learns(surrogate=name),
            "activation prelu: surrogate must be a tuple of names, got 'rate'",
        ),
        (
            lambda name: jaxae.Autoencoder(
                input_dim=6, latent_dim=4, parametrization=tied._replace(weights=name)
            ),
            "parametrization tied: weights must be a tuple of names, got 'rate'",
        ),
    ],
)
def test_one_name_is_not_a_tuple_of_letters(build, sentence):
    with pytest.raises(jaxae.ArgumentError, match=sentence) as error:
        build("rate")
    assert error.value.advice == "write ('rate',)"


def test_what_is_not_computed_is_not_asked_for():
    """Autodiff without diagnostics needs no hand-derived gradient."""
    config = jaxae.TrainConfig(batch_size=8, diagnostics=False)
    rates = {"learning_rate": 0.1}
    trainer.prepare(learns(vjp_theta=None), X, hparams=rates, key=KEY, config=config)


class Slopes(NamedTuple):
    left: jax.Array
    right: jax.Array


def test_what_is_learned_may_have_names():
    """A NamedTuple stays one, in the parameters and in every gradient."""
    two_slopes = activations.Activation(
        "two_slopes",
        apply=lambda a, left, right: jnp.where(a > 0, right * a, left * a),
        vjp=lambda a, z, dz, left, right: dz * jnp.where(a > 0, right, left),
        init=lambda H: Slopes(jnp.full(H, 0.25), jnp.ones(H)),
        vjp_theta=lambda a, z, dz, left, right: (
            dz * jnp.where(a > 0, 0, a),
            dz * jnp.where(a > 0, a, 0),
        ),
    )
    named = objective(two_slopes)
    params = named.ae.init(KEY)

    @jax.jit
    def gradients(params):
        _, by_hand = manual.value_and_grad(named)(params, X, KEY, {})
        return by_hand, jax.grad(named, has_aux=True)(params, X, KEY, {})[0]

    by_hand, by_autodiff = gradients(params)
    for grads in (by_hand, by_autodiff):
        assert isinstance(grads.activation, Slopes)
    for found, expected in zip(by_hand.activation, by_autodiff.activation):
        # Two derivations in float32 of sums of 8 terms of order 1.
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    names = {jax.tree_util.keystr(p, simple=True, separator="/") for p in paths}
    assert {"activation/left", "activation/right"} <= names
    params = params._replace(activation=())
    with pytest.raises(ValueError, match="params.activation must be the tuple that"):
        named.ae.loss(params, X[0])


# ---- names for parts -----------------------------------------------------------------


def test_a_name_is_the_part():
    """Everywhere where there is a catalogue, and from construction on."""
    named = objective(
        "sigmoid", "bernoulli", corruption="masking", penalties=("l1", "kl_sparsity")
    )
    built = objective(
        activations.sigmoid,
        observations.bernoulli,
        corruption=jaxae.corruptions.masking,
        penalties=(jaxae.penalties.l1, jaxae.penalties.kl_sparsity),
    )
    assert named == built and hash(named) == hash(built)
    assert named.ae.activation is activations.sigmoid
    assert named.corruption is jaxae.corruptions.masking
    assert pickle.loads(pickle.dumps(named)) == built
    assert jaxae.TrainConfig(optimizer="sgd").optimizer is jaxae.optimizers.sgd
    link = observations.gaussian_with("relu", (1.0,) * 6)
    assert link is observations.gaussian_with(activations.relu, (1.0,) * 6)
    assert objective(observation=link.name).ae.observation is link


@pytest.mark.parametrize(
    "build, sentence",
    [
        (lambda: objective("rleu"), "activation must be .*'rleu' .*mean 'relu'"),
        (
            lambda: objective(observation="gausian"),
            "observation must be one of .*'gausian'",
        ),
        (lambda: objective(corruption="mask"), "corruption must be one of .*'mask'"),
        (lambda: objective(penalties=("l2",)), "penalty must be one of .*'l2'"),
        (
            lambda: objective(penalties="l1"),
            r"a tuple of penalties, got 'l1'; write \('l1',\)",
        ),
        (
            lambda: jaxae.TrainConfig(optimizer="adamm"),
            "optimizer must be one of .*'adamm'",
        ),
        (
            lambda: observations.gaussian_with("rleu"),
            "activation must be one of .*'rleu'",
        ),
    ],
)
def test_an_unknown_name_is_refused(build, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        build()
    assert "\n" not in str(error.value)
