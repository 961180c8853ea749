"""Tied weights: the gradient is the sum of two. Is it, and what does each half do?

Claim: with tied weights, W* = W^T, "∇_W l is the sum of two gradients, because W is
present in the encoder and in the decoder": ∇_W l = (∇_a l) x^T + h(x) (∇_â l)^T.

Source: Hugo Larochelle, Neural networks: Autoencoder, Université de Sherbrooke,
October 2012.

    python experiments/tied_gradient.py [--quick] [--out DIR]

A. The identity, on digits, for every activation x observation x precision: the
   hand-derived gradient, the sum of its two paths and `jax.grad` of the loss are one;
   each path by itself is the derivative of the loss in its own copy of the parameters;
   and for the lecture's own model a NumPy transcription of its equations agrees.
B. The two halves along training: their lengths, the angle between them, their sum.
C. Training with one half only: W follows the encoder's or the decoder's gradient alone,
   the biases theirs in full; from the same start, in the same order.

Found (full run, on a CPU):
A. On all 1797 digits the largest error, relative to a leaf's largest entry, is 9.7e-16
   in float64, 1.2e-15 against NumPy, and 5.7e-7 (4.8 eps) in float32.
B. Along 100 epochs it stays below 1.5e-15. The decoder's half was the longer one
   whenever looked at: the encoder's share of the two lengths is 0.30 to 0.46
   (sigmoid/bernoulli) and 0.27 to 0.50 (relu/gaussian). On average they are nearly
   orthogonal: their cosine goes from 0.12 to -0.18, and from -0.31 to 0.13, with single
   seeds between -0.43 and 0.60.
C. Each half alone trains, the decoder's better than the encoder's, and both together
   better still. Test loss, sigmoid/bernoulli, at the learning rate best for both: SGD
   14.90 with both, 15.04 decoder only, 15.28 encoder only; Adam 14.60, 15.01, 15.18 (a
   perfect reconstruction has 13.66). With SGD half of that is speed: at its own best
   learning rate the decoder's half reaches 14.95, the encoder's 15.09. With Adam on
   relu/gaussian the decoder's half is as good as both (0.0033 and 0.0029), the
   encoder's poor: 0.17 at best.
"""

import argparse
import functools
import io
import json
import os
import platform
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

import jaxae
from jaxae import activations, manual, observations, optimizers

CLAIM = "With tied weights, grad_W l = (d_a) x^T + z (d_eta)^T: encoder + decoder path."
SOURCE = (
    "Hugo Larochelle, Neural networks: Autoencoder, Université de Sherbrooke, "
    "October 2012: with tied weights, ∇_W l is the sum of two gradients, because W is "
    "present in the encoder and in the decoder."
)
INPUT_DIM = 64
# float32: one rounding for each term of the longest sum, 64 eps.
TOLERANCES = {
    "float32": INPUT_DIM * float(np.finfo(np.float32).eps),
    "float64": 1e-12,
}
MODELS = (
    (activations.sigmoid, observations.bernoulli),  # the lecture's own
    (activations.relu, observations.gaussian),
)
# Which paths move W: (encoder, decoder).
VARIANTS = {
    "both paths": (1.0, 1.0),
    "decoder path only": (0.0, 1.0),
    "encoder path only": (1.0, 0.0),
}
LEARNING_RATES = {
    optimizers.sgd: (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    optimizers.adam: (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
}


class Settings(NamedTuple):
    """How much of it to do."""

    num_examples: int  # A: digits on which the identity is checked
    num_epochs: int  # B and C
    num_seeds: int  # B and C
    num_models: int  # B and C: the first so many of MODELS
    num_optimizers: int  # C: likewise of LEARNING_RATES
    latent_dim: int = 64
    batch_size: int = 64
    learning_rate: float = 0.003  # B, with Adam


FULL = Settings(
    num_examples=1797, num_epochs=100, num_seeds=5, num_models=2, num_optimizers=2
)
QUICK = Settings(
    num_examples=128, num_epochs=15, num_seeds=2, num_models=1, num_optimizers=1
)


def main(argv=None) -> int:
    args = parse(argv)
    settings = QUICK if args.quick else FULL
    digits = jaxae.data.digits()
    X = jaxae.data.scaled(digits.train, digits.scale, np.float64)

    # Accelerators round float32 products further unless told not to.
    with jax.default_matmul_precision("highest"):
        identity = check_identity(X[: settings.num_examples], settings)
        passed = all(row["ok"] for row in identity)
        result = describe(args, settings, digits) | {"identity": identity}
        print_identity(identity)
        write(args.out / "identity.png", draw_identity(identity))
        if passed:  # otherwise there are no two halves to speak of
            along = follow_training(X, settings)
            passed = all(run["identity_ok"] for run in along)
            halves = train_by_half(X, settings)
            print_training(along, halves)
            result["along_training"] = [without_curves(run) for run in along]
            result["training_by_half"] = [without_curves(study) for study in halves]
            write(args.out / "curves.json", to_json(along + halves))
            write(args.out / "along_training.png", draw_along(along))
            for studies in by_model(halves).values():
                name = f"by_half_{studies[0]['model'].replace('/', '_')}.png"
                write(args.out / name, draw_halves(studies))
    result["pass"] = passed
    write(args.out / "result.json", to_json(result, indent=2))
    print(f"{'PASS' if passed else 'FAIL'}: {args.out / 'result.json'}")
    return 0 if passed else 1


# ---- A. the identity -----------------------------------------------------------------


def check_identity(X, settings) -> list[dict]:
    rows = []
    for dtype, tolerance in TOLERANCES.items():
        with jax.enable_x64(dtype == "float64"):
            for ae in every_model(settings.latent_dim):
                errors = worst_errors(ae, start(ae, dtype), jnp.asarray(X, dtype))
                rows.append(judge(name_of(ae), dtype, errors, tolerance))
    with jax.enable_x64(True):
        ae = model(activations.sigmoid, observations.bernoulli, settings.latent_dim)
        errors = errors_against_numpy(ae, start(ae, "float64"), X)
    rows.append(judge(f"{name_of(ae)}, NumPy", "float64", errors, 1e-12))
    return rows


def every_model(latent_dim):
    for activation in activations.CATALOGUE.values():
        for observation in observations.CATALOGUE.values():
            yield model(activation, observation, latent_dim)


def model(activation, observation, latent_dim, tied=True):
    return jaxae.Autoencoder(
        input_dim=INPUT_DIM,
        latent_dim=latent_dim,
        activation=activation,
        observation=observation,
        tied=tied,
    )


def name_of(ae) -> str:
    return f"{ae.activation}/{ae.observation}"


def start(ae, dtype):
    """Initial parameters with biases that are not 0: a point with nothing special."""
    weight_key, *bias_keys = jax.random.split(jax.random.key(0), 3)
    params = ae.init(weight_key, dtype=dtype)
    b_enc, b_dec = (
        0.1 * jax.random.normal(key, bias.shape, jnp.float32).astype(dtype)
        for key, bias in zip(bias_keys, (params.b_enc, params.b_dec), strict=True)
    )
    return params._replace(b_enc=b_enc, b_dec=b_dec)


@functools.partial(jax.jit, static_argnames="ae")
def worst_errors(ae, params, X):
    """Relative errors, by comparison and leaf, of the worst example."""

    def errors(x):
        by_hand = manual.backprop(ae, params, x).grads
        paths = manual.path_grads(ae, params, x)
        whole = jax.grad(ae.loss)(params, x)
        oracle = jax.grad(ae.path_loss, argnums=(0, 1))(params, params, x)
        both = jax.tree.map(jnp.add, paths.encoder, paths.decoder)
        return {
            "backprop = jax.grad": relative_errors(by_hand, whole),
            "encoder + decoder = jax.grad": relative_errors(both, whole),
            "encoder path = its oracle": relative_errors(paths.encoder, oracle[0]),
            "decoder path = its oracle": relative_errors(paths.decoder, oracle[1]),
        }

    by_example = jax.vmap(errors)(X)
    return jax.tree.map(lambda error: jnp.max(error, axis=0), by_example)


def relative_errors(claimed, truth) -> dict:
    """max |claimed - truth| / max |truth| of each leaf; 0 where both are 0."""

    def relative_error(claimed, truth):
        error = jnp.max(jnp.abs(claimed - truth))
        return jnp.where(error == 0, 0, error / jnp.max(jnp.abs(truth)))

    return {
        name: relative_error(getattr(claimed, name), getattr(truth, name))
        for name in ("W", "b_enc", "b_dec")
    }


def errors_against_numpy(ae, params, X) -> dict:
    """The library's halves against the lecture's lines, of the worst example."""
    arrays = [np.asarray(leaf) for leaf in (params.W, params.b_enc, params.b_dec)]
    truths = [lecture(*arrays, x) for x in X]
    encoder, decoder = (
        jaxae.TiedParams(*map(np.stack, zip(*path, strict=True)))
        for path in zip(*truths, strict=True)
    )

    @jax.vmap
    def errors(x, encoder, decoder):
        paths = manual.path_grads(ae, params, x)
        return {
            "encoder path = NumPy": relative_errors(paths.encoder, encoder),
            "decoder path = NumPy": relative_errors(paths.decoder, decoder),
        }

    by_example = jax.jit(errors)(X, encoder, decoder)
    return jax.tree.map(lambda error: jnp.max(error, axis=0), by_example)


def lecture(W, b, c, x):
    """The lecture's equations for sigmoid and Bernoulli, with nothing of ours in them.

    Returns the encoder's and the decoder's terms of (∇_W, ∇_b, ∇_c).
    """
    h = 1 / (1 + np.exp(-(b + W @ x)))
    x_hat = 1 / (1 + np.exp(-(c + W.T @ h)))
    d_c = x_hat - x
    d_h = W @ d_c
    d_a = d_h * (h * (1 - h))
    encoder = np.outer(d_a, x), d_a, np.zeros_like(c)
    decoder = np.outer(h, d_c), np.zeros_like(b), d_c
    return encoder, decoder


def judge(name, dtype, errors, tolerance) -> dict:
    errors = jax.tree.map(float, errors)
    worst = np.max(jax.tree.leaves(errors))  # a NaN stays one, and fails
    return {
        "model": name,
        "dtype": dtype,
        "max_relative_error": errors,
        "worst": float(worst),
        "tolerance": tolerance,
        "ok": bool(worst <= tolerance),
    }


# ---- B. the halves along training ----------------------------------------------------


def follow_training(X, settings) -> list[dict]:
    # float64: what is measured is the two paths, not what rounding adds to them.
    with jax.enable_x64(True):
        return [
            follow_model(model(*parts, settings.latent_dim), X, settings)
            for parts in MODELS[: settings.num_models]
        ]


def follow_model(ae, X, settings) -> dict:
    print(f"B. the halves along training: {name_of(ae)}")
    train, _, _ = split(X)
    runs = [follow_run(ae, train, seed, settings) for seed in range(settings.num_seeds)]
    curves = {  # [seeds, 1 + epochs], the start first
        name: np.array([[at_epoch[name] for at_epoch in run] for run in runs])
        for name in runs[0][0]
    }
    worst = float(np.max(curves.pop("relative_error")))
    return {
        "model": name_of(ae),
        "identity_worst": worst,
        "identity_ok": worst <= TOLERANCES["float64"],
        **{name: course(values) for name, values in curves.items()},
        "curves": curves,
    }


def course(values) -> dict:
    """Means over seeds at the start and the end, and the extremes of all."""
    return {
        "start": values[:, 0].mean(),
        "end": values[:, -1].mean(),
        "lowest": values.min(),
        "highest": values.max(),
    }


def follow_run(ae, train, seed, settings) -> list[dict]:
    init_key, train_key = jax.random.split(jax.random.key(seed))
    fixed_batch = jnp.asarray(train[:512])
    params = ae.init(init_key, dtype=jnp.float64)
    history = []

    def look(params):
        history.append(jax.tree.map(float, measure(ae, params, fixed_batch)))

    look(params)
    jaxae.train(
        jaxae.Objective(ae),
        train,
        hparams={"learning_rate": settings.learning_rate},
        key=train_key,
        config=jaxae.TrainConfig(
            num_epochs=settings.num_epochs, batch_size=settings.batch_size
        ),
        params=params,
        on_epoch=lambda metrics, state: look(state.params),
    )
    return history


@functools.partial(jax.jit, static_argnames="ae")
def measure(ae, params, X):
    """The two halves of the gradient of the batch's mean loss in W."""
    path_grads = functools.partial(manual.path_grads, ae, params)
    paths = jax.tree.map(lambda g: jnp.mean(g, axis=0), jax.vmap(path_grads)(X))
    both = jax.tree.map(jnp.add, paths.encoder, paths.decoder)
    errors = relative_errors(both, jax.grad(mean_loss)(params, ae, X))
    norms = {name: jnp.linalg.norm(path.W) for name, path in paths._asdict().items()}
    total = norms["encoder"] + norms["decoder"]
    inner = jnp.vdot(paths.encoder.W, paths.decoder.W)
    return {
        "encoder_norm": norms["encoder"],
        "decoder_norm": norms["decoder"],
        "encoder_share": norms["encoder"] / total,
        "decoder_share": norms["decoder"] / total,
        "sum_over_lengths": jnp.linalg.norm(both.W) / total,
        "cosine": inner / (norms["encoder"] * norms["decoder"]),
        "relative_error": jnp.max(jnp.stack(list(errors.values()))),
    }


def mean_loss(params, ae, X):
    return jnp.mean(jax.vmap(ae.loss, in_axes=(None, 0))(params, X))


# ---- C. training with one half -------------------------------------------------------


class Lane(NamedTuple):
    """One training, as numbers that can be vmapped."""

    learning_rate: jax.Array
    encoder: jax.Array  # how much of the encoder path's gradient moves the weights
    decoder: jax.Array
    seed: jax.Array


def train_by_half(X, settings) -> list[dict]:
    return [
        compare_halves(parts, optimizer, X.astype(np.float32), settings)
        for parts in MODELS[: settings.num_models]
        for optimizer in list(LEARNING_RATES)[: settings.num_optimizers]
    ]


def compare_halves(parts, optimizer, X, settings) -> dict:
    tied = model(*parts, settings.latent_dim)
    untied = model(*parts, settings.latent_dim, tied=False)
    print(f"C. training with one half: {name_of(tied)}, {optimizer.__name__}")
    losses = {  # of each variant: validation and test, [rates, seeds, epochs]
        **train_lanes(tied, optimizer, VARIANTS, X, settings),
        **train_lanes(untied, optimizer, {"untied": (1.0, 1.0)}, X, settings),
    }
    common = best_rate(losses["both paths"][0])
    rates = LEARNING_RATES[optimizer]
    return {
        "model": name_of(tied),
        "optimizer": optimizer.__name__,
        "learning_rates": rates,
        "common_learning_rate": rates[common],  # the best for both paths
        "perfect_test_loss": perfect_loss(tied, split(X)[2]),
        "variants": {
            name: summary(validation, test, common, rates)
            for name, (validation, test) in losses.items()
        },
        "curves": {
            name: {"by_epoch": test[common], "by_learning_rate": test[:, :, -1]}
            for name, (_, test) in losses.items()
        },
    }


def perfect_loss(ae, X) -> float:
    """The loss of x_hat = x: under a Bernoulli, grey levels keep their entropy."""
    if ae.observation is not observations.bernoulli:
        return 0.0
    x = np.clip(X.astype(np.float64), 1e-12, 1 - 1e-12)
    entropies = -(x * np.log(x) + (1 - x) * np.log1p(-x))
    return float(entropies.sum(axis=1).mean())


def best_rate(validation) -> int:
    """The learning rate with the lowest mean validation loss at the end."""
    final = validation[:, :, -1].mean(axis=1)
    return int(np.argmin(np.where(np.isfinite(final), final, np.inf)))


def summary(validation, test, common, rates) -> dict:
    own = best_rate(validation)
    return {
        "test_loss": spread(test[common, :, -1]),
        "own_learning_rate": rates[own],
        "test_loss_at_own_learning_rate": spread(test[own, :, -1]),
    }


def by_model(studies) -> dict:
    names = dict.fromkeys(study["model"] for study in studies)
    return {name: [s for s in studies if s["model"] == name] for name in names}


def spread(values) -> dict:
    return {
        name: float(getattr(np, name)(values)) for name in ("mean", "std", "min", "max")
    }


def train_lanes(ae, optimizer, variants, X, settings) -> dict:
    """Every variant x learning rate x seed at once, one vmapped program."""
    train, validation, test = map(jnp.asarray, split(X))
    rates, seeds = LEARNING_RATES[optimizer], range(settings.num_seeds)
    lanes = [
        Lane(rate, *moves, seed)
        for moves in variants.values()
        for rate in rates
        for seed in seeds
    ]
    run = functools.partial(train_lane, ae=ae, optimizer=optimizer, settings=settings)
    program = jax.jit(jax.vmap(run, in_axes=(0, None)))
    stacked = Lane(*(jnp.asarray(values) for values in zip(*lanes, strict=True)))
    losses = program(stacked, (train, validation, test))
    shape = (len(variants), len(rates), len(seeds), settings.num_epochs)
    by_part = [np.asarray(loss, np.float64).reshape(shape) for loss in losses]
    return dict(zip(variants, zip(*by_part, strict=True), strict=True))


def train_lane(lane, parts, *, ae, optimizer, settings):
    """Validation and test loss after each epoch, `[num_epochs]` each."""
    train, validation, test = parts
    init_key, order_key = jax.random.split(jax.random.key(lane.seed))
    params = initial_params(ae, init_key)
    update = optimizer({"learning_rate": lane.learning_rate})

    def step(carry, rows):
        params, opt_state = carry
        grads = lane_grads(ae, params, train[rows], lane)
        updates, opt_state = update.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    def epoch(carry, key):
        batches = shuffled_batches(key, len(train), settings.batch_size)
        carry, _ = jax.lax.scan(step, carry, batches)
        return carry, [mean_loss(carry[0], ae, part) for part in (validation, test)]

    keys = jax.random.split(order_key, settings.num_epochs)
    _, losses = jax.lax.scan(epoch, (params, update.init(params)), keys)
    return losses


def initial_params(ae, key):
    """The tied start, for the untied model too."""
    tied = model(ae.activation, ae.observation, ae.latent_dim)
    return tied.init(key) if ae.tied else jaxae.untie(tied.init(key))


def lane_grads(ae, params, batch, lane):
    """Both paths for the biases; for the weights as much of each as the lane says."""

    def loss(encoder_params, decoder_params):
        path_loss = jax.vmap(ae.path_loss, in_axes=(None, None, 0))
        return jnp.mean(path_loss(encoder_params, decoder_params, batch))

    encoder, decoder = jax.grad(loss, argnums=(0, 1))(params, params)
    weights = {
        name: lane.encoder * getattr(encoder, name)
        + lane.decoder * getattr(decoder, name)
        for name in ae.parametrization.weights
    }
    return jax.tree.map(jnp.add, encoder, decoder)._replace(**weights)


def shuffled_batches(key, num_examples, batch_size):
    num_steps = num_examples // batch_size
    order = jax.random.permutation(key, num_examples)
    return order[: num_steps * batch_size].reshape(num_steps, batch_size)


def split(X):
    train, test, validation = jaxae.data.split(X, 0.2, 0.2, seed=0)
    return train, validation, test


# ---- what is seen --------------------------------------------------------------------

COLOURS = {
    "both paths": "#222222",
    "decoder path only": "#1f77b4",
    "encoder path only": "#d1495b",
    "untied": "#8a8a8a",
}
ENCODER, DECODER = COLOURS["encoder path only"], COLOURS["decoder path only"]


def print_identity(rows) -> None:
    print(f"\n{'model':28}{'dtype':9}{'worst relative error':>22}{'tolerance':>11}")
    for row in rows:
        verdict = "ok" if row["ok"] else "FAILS"
        print(
            f"{row['model']:28}{row['dtype']:9}{row['worst']:>22.1e}"
            f"{row['tolerance']:>11.1e}  {verdict}"
        )
    print(flush=True)


def print_training(along, halves) -> None:
    print(f"\n{'along training':28}{'':9}{'encoder share':>15}{'cosine':>9}")
    for run in along:
        for when in ("start", "end", "lowest", "highest"):
            share, cosine = run["encoder_share"][when], run["cosine"][when]
            print(f"{run['model']:28}{when:9}{share:>15.3f}{cosine:>9.3f}")
    header = f"\n{'test loss':28}{'variant':20}{'rate':>7}{'loss':>9}{'std':>8}"
    print(f"{header}{'own rate':>10}{'loss':>9}")
    for study in halves:
        for name, variant in study["variants"].items():
            at_common, at_own = (
                variant[key] for key in ("test_loss", "test_loss_at_own_learning_rate")
            )
            print(
                f"{study['model'] + ' ' + study['optimizer']:28}{name:20}"
                f"{study['common_learning_rate']:>7}{at_common['mean']:>9.4f}"
                f"{at_common['std']:>8.4f}{variant['own_learning_rate']:>10}"
                f"{at_own['mean']:>9.4f}"
            )
    print()


def draw_identity(rows) -> bytes:
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row["model"] for row in rows))
    styles = {"float32": ("#e09f3e", "o"), "float64": ("#335c67", "s")}
    for dtype, (colour, marker) in styles.items():
        of_dtype = [row for row in rows if row["dtype"] == dtype]
        axes.plot(
            [max(row["worst"], 1e-17) for row in of_dtype],  # 0 has no logarithm
            [names.index(row["model"]) for row in of_dtype],
            marker=marker,
            linestyle="none",
            color=colour,
            label=f"{dtype}, worst of all digits, leaves and comparisons",
        )
        axes.axvline(TOLERANCES[dtype], color=colour, linestyle="--", linewidth=1)
        axes.axvline(np.finfo(dtype).eps, color=colour, linestyle=":", linewidth=1)
    axes.plot([], [], color="0.4", linestyle=":", label="one rounding (eps)")
    axes.plot([], [], color="0.4", linestyle="--", label="tolerance")
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", color="0.92")
    axes.set_xlabel("largest error relative to the leaf's largest entry")
    axes.set_title("hand-derived gradient = encoder path + decoder path = jax.grad")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return png(figure)


def draw_along(along) -> bytes:
    figure = Figure(figsize=(1 + 4 * len(along), 6), layout="constrained")
    figure.get_layout_engine().set(wspace=0.08)
    panels = figure.subplots(2, len(along), sharex=True, sharey="row", squeeze=False)
    lengths = {
        "encoder_share": ("encoder path", ENCODER),
        "decoder_share": ("decoder path", DECODER),
        "sum_over_lengths": ("their sum", COLOURS["both paths"]),
    }
    for (above, below), run in zip(panels.T, along, strict=True):
        for name, (label, colour) in lengths.items():
            draw_band(above, run["curves"][name], colour, label)
        draw_band(below, run["curves"]["cosine"], "#335c67", "cosine")
        above.set_title(f"tied {run['model']}")
        above.set_ylim(0, 1)
        below.axhline(0, color="0.6", linewidth=0.8)
        below.set_ylim(-1, 1)
        below.set_xlabel("epoch (mean, range over seeds)")
        below.margins(x=0)
        below.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    panels[0, 0].set_ylabel("length / (sum of the two lengths)")
    panels[1, 0].set_ylabel("cosine between the two paths")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return png(figure)


def draw_band(axes, values, colour, label, start=0) -> None:
    """Mean over seeds, and from the lowest to the highest seed."""
    epochs = np.arange(start, start + values.shape[1])
    axes.plot(epochs, values.mean(axis=0), color=colour, label=label)
    axes.fill_between(
        epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, lw=0
    )


def draw_halves(studies) -> bytes:
    """A row an optimiser: curves at the common learning rate; the end at every rate."""
    figure = Figure(figsize=(9, 3.4 * len(studies)), layout="constrained")
    panels = figure.subplots(len(studies), 2, squeeze=False)
    for (left, right), study in zip(panels, studies, strict=True):
        rate, optimizer = study["common_learning_rate"], study["optimizer"]
        for name, losses in study["curves"].items():
            excess = losses["by_epoch"] - study["perfect_test_loss"]
            draw_band(left, excess, COLOURS[name], name, start=1)
            excess = losses["by_learning_rate"] - study["perfect_test_loss"]
            right.plot(
                study["learning_rates"], excess.mean(axis=1), "o-", color=COLOURS[name]
            )
        left.set_title(f"{optimizer}, learning rate {rate}", fontsize=10)
        left.set(xlabel="epoch", ylabel="test loss above that of x̂ = x")
        left.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        right.set_title(f"{optimizer}, at the end, by learning rate", fontsize=10)
        right.set(xlabel="learning rate", xscale="log")
        right.xaxis.set_major_formatter("{x:g}")
        for axes in (left, right):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(LogFormatter())
            axes.grid(axis="y", color="0.9")
        right.axvline(rate, color="0.8", linewidth=1, zorder=0)
    figure.suptitle(
        f"{studies[0]['model']}: which path's gradient moves W (mean, range over seeds)"
    )
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return png(figure)


def png(figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


# ---- the run -------------------------------------------------------------------------


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/tied_gradient"),
        help="folder for result.json and pictures (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out must be a folder that can be written: {error}.")
    return args


def describe(args, settings, digits) -> dict:
    return {
        "claim": CLAIM,
        "source": SOURCE,
        "quick": args.quick,
        "settings": settings._asdict(),
        "seeds": list(range(settings.num_seeds)),
        "data": {"name": digits.name, "sha256": digits.sha256},
        "device": jax.devices()[0].device_kind,
        "versions": {
            "python": platform.python_version(),
            **{m.__name__: m.__version__ for m in (jaxae, jax, jaxlib, optax, np)},
        },
    }


def without_curves(study: dict) -> dict:
    return {name: value for name, value in study.items() if name != "curves"}


def to_json(value, indent=None) -> bytes:
    """JSON has neither NaN nor infinity: they become null."""

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items()}
        if isinstance(value, list | tuple | np.ndarray):
            return [plain(part) for part in value]
        if isinstance(value, float):  # NumPy's float64 too
            return float(value) if np.isfinite(value) else None
        return value

    return (json.dumps(plain(value), indent=indent, allow_nan=False) + "\n").encode()


def write(path: Path, content: bytes) -> None:
    """Beside its place, then moved into it: a reader never sees half a file."""
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


if __name__ == "__main__":
    sys.exit(main())
