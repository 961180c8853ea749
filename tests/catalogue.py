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
    "gaussian_with": jaxae.observations.gaussian_with(
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
    """kl_sparsity is for latents in (0, 1); `row` may lack some axes."""
    is_kl = row.get("penalty") == "kl_sparsity"
    return not is_kl or row.get("activation", "sigmoid") == "sigmoid"


def covering(size):
    """Few rows in which every allowed combination of `size` parts occurs, greedily.

    Of single parts, about as many rows as the longest axis has parts: what the fast
    tests walk, so that their cost grows by part.
    """

    def combinations(row):
        return set(itertools.combinations(sorted(row.items()), size))

    parts = sorted((axis, name) for axis, names in AXES.items() for name in names)
    missing = {
        some
        for some in itertools.combinations(parts, size)
        if len(dict(some)) == size and is_allowed(dict(some))
    }
    rows = []
    while missing:
        row = dict(min(missing))
        for axis, names in AXES.items():
            if axis not in row:
                longer = filter(is_allowed, ({**row, axis: name} for name in names))
                row = max(longer, key=lambda row: len(combinations(row) & missing))
        missing -= combinations(row)
        rows.append({axis: row[axis] for axis in AXES})
    return rows


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


# ---- the lecture's own models --------------------------------------------------------

# D, H: one input, one latent, fewer and more latents than inputs.
SIZES = ((6, 4), (1, 1), (1, 8), (6, 1), (3, 7))


def lectures():
    """Few models in which every activation and observation that has a name occurs.

    (activation, observation, is_tied, D, H, seed).
    """
    names = sorted(jaxae.activations.CATALOGUE), sorted(jaxae.observations.CATALOGUE)
    ties = True, False, False, True

    def lecture(i):
        parts = (of_kind[i % len(of_kind)] for of_kind in names)
        return *parts, ties[i % len(ties)], *SIZES[i % len(SIZES)], i

    return [lecture(i) for i in range(max(len(SIZES), *map(len, names)))]


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
