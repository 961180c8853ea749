"""The parts that the contract tests walk, and how they are combined.

A new part of the library is in a catalogue of the library and hence here.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import jaxae

ACTIVATIONS = jaxae.activations.CATALOGUE
OBSERVATIONS = {
    **jaxae.observations.CATALOGUE,
    "gaussian_link": jaxae.observations.gaussian_link(
        jaxae.activations.relu, (1.0, 0.9, 0.5, 2.0, 3.0, 0.1)
    ),
    "from_log_prob": jaxae.observations.from_log_prob(
        lambda x, mu: jnp.sum(-jnp.log(2.0) - jnp.abs(x - mu)), lambda eta: eta
    ),
}
CORRUPTIONS = {"none": None, **jaxae.corruptions.CATALOGUE}
PENALTIES = {"none": None, **jaxae.penalties.CATALOGUE}
AXES = {
    "activation": ACTIVATIONS,
    "observation": OBSERVATIONS,
    "tied": {"tied": True, "untied": False},
    "bias": {"bias": True, "no_bias": False},
    "corruption": CORRUPTIONS,
    "penalty": PENALTIES,
}
HPARAMS = {
    "corruption_rate": 0.3,
    "l1": 0.2,
    "kl_sparsity": 0.3,
    "kl_sparsity_target": 0.1,
    "contractive": 0.4,
    "weight_decay": 0.05,
}


def is_allowed(row):
    """kl_sparsity is for latents in (0, 1)."""
    return row["penalty"] != "kl_sparsity" or row["activation"] == "sigmoid"


def full_product():
    for values in itertools.product(*AXES.values()):
        row = dict(zip(AXES, values, strict=True))
        if is_allowed(row):
            yield row


def covering_pairs():
    """Few rows in which every allowed pair of parts occurs, chosen greedily."""
    rows = list(full_product())
    missing = set().union(*map(_pairs, rows))
    chosen = []
    while missing:
        best = max(rows, key=lambda row: len(_pairs(row) & missing))
        chosen.append(best)
        missing -= _pairs(best)
    return chosen


def each_alone():
    """Every part once, beside the lecture's own."""
    base = {
        "activation": "sigmoid",
        "observation": "bernoulli",
        "tied": "tied",
        "bias": "bias",
        "corruption": "none",
        "penalty": "none",
    }
    for axis, parts in AXES.items():
        for name in parts:
            row = {**base, axis: name}
            if is_allowed(row):
                yield row


def _pairs(row):
    return set(itertools.combinations(sorted(row.items()), 2))


def row_id(row):
    return "-".join(row.values())


def build(row, *, input_dim=6, latent_dim=4):
    """The objective that a row names."""
    ae = jaxae.Autoencoder(
        input_dim=input_dim,
        latent_dim=latent_dim,
        activation=ACTIVATIONS[row["activation"]],
        observation=OBSERVATIONS[row["observation"]],
        tied=AXES["tied"][row["tied"]],
        bias=AXES["bias"][row["bias"]],
    )
    penalty = PENALTIES[row["penalty"]]
    return jaxae.Objective(
        ae,
        corruption=CORRUPTIONS[row["corruption"]],
        penalties=() if penalty is None else (penalty,),
    )


def hparams_of(objective):
    return {name: HPARAMS[name] for name in objective.hparam_names}


def batch(num_rows=8, input_dim=6, dtype=jnp.float32, seed=3):
    """Rows in [0, 1]: in the domain of every observation's loss."""
    return jax.random.uniform(jax.random.key(seed), (num_rows, input_dim), dtype)


# ---- parts that learn, of which the library has none yet -----------------------------


def _leaky(a, slope):
    return jnp.where(a > 0, a, slope * a)


prelu = jaxae.activations.Activation(
    "prelu",
    apply=_leaky,
    vjp=lambda a, z, dz, slope: dz * jnp.where(a > 0, 1, slope),
    init=lambda latent_dim: (jnp.full(latent_dim, 0.25),),
    vjp_theta=lambda a, z, dz, slope: (dz * jnp.where(a > 0, 0, a),),
)
scaled_gaussian = jaxae.observations.gaussian._replace(
    name="scaled_gaussian",
    loss=lambda eta, x, s: jnp.sum((eta - x) ** 2 * jnp.exp(-2 * s) / 2 + s, axis=-1),
    dloss=lambda eta, x, s: (eta - x) * jnp.exp(-2 * s),
    log_prob=lambda eta, x, s: (
        -jnp.sum(
            (eta - x) ** 2 * jnp.exp(-2 * s) / 2 + s + np.log(2 * np.pi) / 2, axis=-1
        )
    ),
    init=lambda input_dim: (jnp.zeros(input_dim),),
    dtheta=lambda eta, x, s: (1 - (eta - x) ** 2 * jnp.exp(-2 * s),),
)
