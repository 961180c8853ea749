"""With tied weights, is the gradient the sum of two, and what does each half do?

Claim: with tied weights, "∇_W l is the sum of two gradients, because W is present in
the encoder and in the decoder": ∇_W l = (∇_a l) x^T + h(x) (∇_â l)^T.

Source: Hugo Larochelle, Neural networks: Autoencoder, Université de Sherbrooke,
October 2012.

    python experiments/tied_gradient.py [--quick] [--out DIR]

A. The identity, on digits, for every activation x observation x precision. The
   hand-derived gradient, the sum of its two paths and `jax.grad` of the loss are equal;
   each path is the derivative of the loss by its own copy of the parameters; and for
   the lecture's model a NumPy transcription of its equations agrees.
B. The two halves of the gradient during training with both: their norms and the angle
   between them.
C. Training with one half only: W is updated by the encoder's or the decoder's gradient
   alone, the biases by their full gradients, with the same initial parameters and the
   same order of batches, each at its best learning rate. SGD updates W by the half
   itself, Adam rescales it entry by entry.

Results (full run, on a CPU):
A. On all 1797 digits the largest error, relative to a leaf's largest entry, is 9.7e-16
   in float64, 1.3e-15 against NumPy, and 5.1e-7 (4.3 eps) in float32.
B. In 100 epochs it stays below 2.7e-15. The decoder's half had the larger norm in every
   measurement: the encoder's share of the two norms is 0.30 to 0.46 (sigmoid/bernoulli)
   and 0.27 to 0.50 (relu/gaussian). Their mean cosine changes from 0.12 to -0.18, and
   from -0.31 to 0.13, with single seeds between -0.43 and 0.60.
C. Each half alone trains, the decoder's better than the encoder's, and both together
   best. Test loss above that of a perfect reconstruction, with both, decoder only,
   encoder only: sigmoid/bernoulli 1.20, 1.30, 1.39 (SGD) and 0.91, 1.33, 1.50 (Adam);
   relu/gaussian 0.054, 0.089, 0.164 (SGD) and 0.0028, 0.0032, 0.181 (Adam).
"""

import dataclasses
import functools
import itertools
import sys
from typing import NamedTuple

import _study
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

import jaxae
from jaxae import activations, manual, observations, training

# float32: one rounding per term of the longest sum, 64 eps.
TOLERANCES = {"float32": 64 * float(np.finfo(np.float32).eps), "float64": 1e-12}
MODELS = (
    (activations.sigmoid, observations.bernoulli),  # the lecture's own
    (activations.relu, observations.gaussian),
)
LEARNING_RATES = {
    jaxae.optimizers.sgd: (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    jaxae.optimizers.adam: (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
}
# The weights of the encoder's and the decoder's gradient in the update of W_enc, and in
# that of W_dec. Copies with equal initial values and equal updates stay tied.
VARIANTS = {
    "both paths": ((1.0, 1.0), (1.0, 1.0)),
    "decoder path only": ((0.0, 1.0), (0.0, 1.0)),
    "encoder path only": ((1.0, 0.0), (1.0, 0.0)),
    "untied": ((1.0, 0.0), (0.0, 1.0)),
}
COSINE, SUM_ERROR = "cosine of the paths", "relative error of their sum"


class Settings(NamedTuple):
    """The extent of the study."""

    num_examples: int  # A: digits on which the identity is checked
    num_epochs: int  # B and C, like all fields below
    num_seeds: int
    num_models: int  # the first of MODELS
    num_optimizers: int  # C: the first of LEARNING_RATES
    latent_dim: int = 64
    batch_size: int = 64
    learning_rate: float = 0.003  # B, with Adam


FULL = Settings(1797, num_epochs=100, num_seeds=5, num_models=2, num_optimizers=2)
QUICK = Settings(128, num_epochs=15, num_seeds=2, num_models=1, num_optimizers=1)


def main(argv=None) -> int:
    args = _study.parse(argv, "tied_gradient", __doc__)
    settings = QUICK if args.quick else FULL
    digits = jaxae.data.digits()
    X = jaxae.data.scaled(digits.train, digits.scale, np.float64)
    splits = jaxae.data.split(X, 0.2, 0.2, seed=0)  # training, test, validation
    # By default accelerators round the factors of float32 matrix products.
    with jax.default_matmul_precision("highest"):
        identity = check_identity(X[: settings.num_examples], settings)
        passed = all(row["verdict"] == "ok" for row in identity)
        formats = {"worst": ".1e", "tolerance": ".1e", "verdict": ""}
        _study.print_table(identity, {"model": "", "dtype": "", **formats})
        draw_identity(identity, args.out / "identity.png")
        results = {"identity": identity}
        if passed:  # B and C need the two halves
            models = [model(*each, settings) for each in MODELS][: settings.num_models]
            runs = [measure_training(ae, splits[0], settings) for ae in models]
            along = list(itertools.chain(*runs))
            errors = [row for row in along if row["measure"] == SUM_ERROR]
            passed = all(row["highest"] <= TOLERANCES["float64"] for row in errors)
            formats = dict.fromkeys(("start", "end", "lowest", "highest"), ".3g")
            _study.print_table(along, {"study": "", "measure": "", **formats})
            draw_along(along, args.out / "along_training.png")

            optimizers = list(LEARNING_RATES)[: settings.num_optimizers]
            pairs = itertools.product(models, optimizers)
            runs = [train_by_half(*pair, splits, settings) for pair in pairs]
            halves = list(itertools.chain(*runs))
            formats = {"learning_rate": "g", "excess_loss": ".4f", "std": ".4f"}
            _study.print_table(halves, {"study": "", "W_moved_by": "", **formats})
            draw_halves(halves, args.out / "by_half.png")
            results["along_training"] = without_curves(along)
            results["training_by_half"] = without_curves(halves)
    return _study.finish(args, __doc__, settings, digits, passed, results)


def model(activation, observation, settings):
    parts = {"activation": activation, "observation": observation}
    return jaxae.Autoencoder(input_dim=64, latent_dim=settings.latent_dim, **parts)


def name_of(ae) -> str:
    return f"{ae.activation}/{ae.observation}"


def without_curves(rows) -> list[dict]:
    return [{k: value for k, value in row.items() if k != "curve"} for row in rows]


# ---- A. the identity -----------------------------------------------------------------


def check_identity(X, settings) -> list[dict]:
    catalogues = activations.CATALOGUE.values(), observations.CATALOGUE.values()
    rows = []
    for dtype in TOLERANCES:
        with jax.enable_x64(dtype == "float64"):
            for parts in itertools.product(*catalogues):
                ae = model(*parts, settings)
                errors = errors_by_library(ae, start(ae, dtype), jnp.asarray(X, dtype))
                rows.append(judge(name_of(ae), dtype, errors))
    with jax.enable_x64(True):
        ae = model(*MODELS[0], settings)
        errors = errors_by_numpy(ae, start(ae, "float64"), X)
    return [*rows, judge(f"{name_of(ae)}, NumPy", "float64", errors)]


def start(ae, dtype):
    """Initial parameters with biases that are not 0."""
    params = ae.init(jax.random.key(0), dtype=dtype)
    return params._replace(b_enc=params.b_enc + 0.1, b_dec=params.b_dec - 0.1)


@functools.partial(jax.jit, static_argnames="ae")
def errors_by_library(ae, params, X) -> dict:
    """The error of each comparison on the worst example."""

    def compare(x):
        paths = manual.path_grads(ae, params, x)
        path_sum = jax.tree.map(jnp.add, *paths)
        autodiff = jax.grad(ae.loss)(params, x)
        oracle = jax.grad(ae.path_loss, argnums=(0, 1))(params, params, x)
        by_hand = manual.backprop(ae, params, x).grads
        return {
            "backprop = jax.grad": error(by_hand, autodiff),
            "encoder + decoder = jax.grad": error(path_sum, autodiff),
            "encoder path = its oracle": error(paths.encoder, oracle[0]),
            "decoder path = its oracle": error(paths.decoder, oracle[1]),
        }

    return jax.tree.map(jnp.max, jax.vmap(compare)(X))


def errors_by_numpy(ae, params, X) -> dict:
    """The library's halves against the lecture's equations, on the worst example."""
    paths = jax.vmap(functools.partial(manual.path_grads, ae, params))(X)
    truths = [lecture(*map(np.asarray, params[:3]), x) for x in X]
    truths = jax.tree.map(lambda *leaves: np.stack(leaves), *truths)
    return {
        f"{name} path = NumPy": jnp.max(jax.vmap(error)(grads, type(grads)(*truth)))
        for name, grads, truth in zip(paths._fields, paths, truths, strict=True)
    }


def lecture(W, b, c, x):
    """The lecture's equations for sigmoid and Bernoulli, without use of the library.

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


def error(claimed, truth):
    """max |claimed - truth| / max |truth| of the worst leaf; 0 if both are 0."""

    def of_leaf(claimed, truth):
        deviation = jnp.max(jnp.abs(claimed - truth))
        return jnp.where(deviation == 0, 0, deviation / jnp.max(jnp.abs(truth)))

    return jnp.max(jnp.stack(jax.tree.leaves(jax.tree.map(of_leaf, claimed, truth))))


def judge(name, dtype, errors) -> dict:
    errors = jax.tree.map(float, errors)
    worst = np.max(list(errors.values()))  # NaN if one is NaN, which fails
    return {
        "model": name,
        "dtype": dtype,
        "max_relative_error": errors,
        "worst": worst,
        "tolerance": TOLERANCES[dtype],
        "verdict": "ok" if worst <= TOLERANCES[dtype] else "FAILS",
    }


# ---- training, for B and C -----------------------------------------------------------


def train_and_measure(measure, ae, params, hparams, key, X, settings, optimizer):
    """`measure(params)` at the start and after each epoch, stacked; a pure function.

    NaN once training has diverged.
    """
    config = jaxae.TrainConfig(
        batch_size=settings.batch_size, optimizer=optimizer, gradient="manual"
    )
    fixed = {"objective": jaxae.Objective(ae), "config": config}

    def measure_and_train(state, _):
        values = jax.tree.map(
            lambda value: jnp.where(state.stopped_at < 0, value, jnp.nan),
            measure(state.params),
        )
        return training.epoch(state, hparams, X, **fixed)[0], values

    state = training.init_state(hparams=hparams, key=key, params=params, **fixed)
    # One epoch more, because each is measured before it is trained.
    return jax.lax.scan(measure_and_train, state, length=settings.num_epochs + 1)[1]


# ---- B. the halves during training ---------------------------------------------------


def measure_training(ae, X, settings) -> list[dict]:
    """A row per measure: means over seeds at the start and end, minimum and maximum.

    A row's curve is `[num_seeds, 1 + num_epochs]`.
    """
    print(f"B. the halves during training: {name_of(ae)}", flush=True)
    hparams, adam = {"learning_rate": settings.learning_rate}, jaxae.optimizers.adam

    def run(seed):
        init_key, key = jax.random.split(jax.random.key(seed))
        params = ae.init(init_key, dtype=jnp.float64)
        measure = functools.partial(measure_halves, ae, X=X[:512])
        return train_and_measure(measure, ae, params, hparams, key, X, settings, adam)

    # float64, so that rounding does not affect the comparison of the paths.
    with jax.enable_x64(True):
        X = jnp.asarray(X)
        curves = jax.jit(jax.vmap(run))(jnp.arange(settings.num_seeds))

    rows = []
    for name, curve in jax.tree.map(np.asarray, curves).items():
        row = {"study": name_of(ae), "measure": name, "curve": curve}
        row |= {"start": curve[:, 0].mean(), "end": curve[:, -1].mean()}
        rows.append(row | {"lowest": curve.min(), "highest": curve.max()})
    return rows


def measure_halves(ae, params, X) -> dict:
    """Measures of the two halves of the gradient by W of the mean loss over X."""
    by_example = jax.vmap(functools.partial(manual.path_grads, ae, params))(X)
    paths = jax.tree.map(lambda grad: jnp.mean(grad, axis=0), by_example)
    path_sum = jax.tree.map(jnp.add, *paths)
    autodiff, _ = jax.grad(jaxae.Objective(ae), has_aux=True)(params, X, None, {})
    encoder, decoder = (jnp.linalg.norm(path.W) for path in paths)
    inner = jnp.vdot(paths.encoder.W, paths.decoder.W)
    return {
        "encoder path's share": encoder / (encoder + decoder),
        COSINE: inner / (encoder * decoder),
        SUM_ERROR: error(path_sum, autodiff),
    }


# ---- C. training with one half -------------------------------------------------------


def train_by_half(ae, optimizer, splits, settings) -> list[dict]:
    """A row per variant, at its best learning rate by the final mean validation loss.

    A row's curve, `[num_seeds, 1 + num_epochs]`, is the test loss above that of
    x_hat = x.
    """
    study = f"{name_of(ae)}, {optimizer.__name__}"
    print(f"C. training by half: {study}", flush=True)
    untied, rates = dataclasses.replace(ae, tied=False), LEARNING_RATES[optimizer]
    train, test, validation = (jnp.asarray(split, jnp.float32) for split in splits)
    mix = functools.partial(optimizer_of_mixtures, optimizer)

    def measure(params):
        return [excess_loss(untied, params, split) for split in (validation, test)]

    def run(variant, rate, seed):
        init_key, key = jax.random.split(jax.random.key(seed))
        params = jaxae.untie(ae.init(init_key))
        hparams = {"learning_rate": rate, **shares(variant)}
        return train_and_measure(
            measure, untied, params, hparams, key, train, settings, mix
        )

    for in_axes in ((None, None, 0), (None, 0, None), (0, None, None)):
        run = jax.vmap(run, in_axes)
    lanes = list(VARIANTS.values()), rates, range(settings.num_seeds)
    losses = jax.jit(run)(*map(jnp.asarray, lanes))

    rows = []  # losses are indexed by rate, seed and epoch
    for name, validation, test in zip(VARIANTS, *map(np.asarray, losses), strict=True):
        best = np.nanargmin(validation[..., -1].mean(axis=1))
        row = {"study": study, "W_moved_by": name, "learning_rate": rates[best]}
        row |= {"excess_loss": test[best, :, -1].mean(), "std": test[best, :, -1].std()}
        row |= {"rates": rates, "excess_loss_by_rate": test[..., -1].mean(axis=1)}
        rows.append(row | {"curve": test[best]})
    return rows


SHARES = (
    "W_enc_by_encoder",
    "W_enc_by_decoder",
    "W_dec_by_encoder",
    "W_dec_by_decoder",
)


def shares(variant) -> dict:
    """The hyperparameters of a variant `[2, 2]`: the weights of the mixtures."""
    return dict(zip(SHARES, jnp.ravel(jnp.asarray(variant)), strict=True))


def optimizer_of_mixtures(optimizer, hparams):
    """`optimizer` on mixtures of the two paths' gradients, see `shares`."""

    def mix(grads, params):
        del params
        to_enc_e, to_enc_d, to_dec_e, to_dec_d = (hparams[name] for name in SHARES)
        return grads._replace(
            W_enc=to_enc_e * grads.W_enc + to_enc_d * grads.W_dec,
            W_dec=to_dec_e * grads.W_enc + to_dec_d * grads.W_dec,
        )

    return optax.chain(optax.stateless(mix), optimizer(hparams))


def excess_loss(ae, params, X):
    """Mean loss above that of x_hat = x: under a Bernoulli grey levels keep theirs."""
    eta = ae.observation.eta_of_mean(jnp.clip(X, 1e-6, 1 - 1e-6))
    perfect = jnp.mean(jax.vmap(ae.observation.loss)(eta, X))
    return jaxae.Objective(ae).evaluate(params, X, {})["loss"] - perfect


# ---- plots ---------------------------------------------------------------------------

TEAL, ORANGE = "#335c67", "#e09f3e"
COLOURS = dict(zip(VARIANTS, ("#222222", "#1f77b4", "#d1495b", "#8a8a8a"), strict=True))


def draw_identity(rows, path) -> None:
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    for dtype, colour in (("float32", ORANGE), ("float64", TEAL)):
        of_dtype = [row for row in rows if row["dtype"] == dtype]
        worst = [max(row["worst"], 1e-17) for row in of_dtype]  # 0 has no logarithm
        names = [row["model"] for row in of_dtype]
        axes.plot(worst, names, "o", color=colour, label=f"{dtype}, worst of all")
        axes.axvline(np.finfo(dtype).eps, color=colour, ls=":", label="one rounding")
        axes.axvline(TOLERANCES[dtype], color=colour, ls="--", label="tolerance")
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.grid(axis="y", color="0.92")
    axes.set_xlabel("largest error relative to the leaf's largest entry")
    axes.set_title("hand-derived gradient = encoder path + decoder path = jax.grad")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _study.save(figure, path)


def draw_along(rows, path) -> None:
    figure, columns = columns_of(rows, sharey="row")
    for panels, measures in columns:
        for axes, row in zip(panels, measures, strict=False):  # all but the error
            draw_band(axes, row["curve"], TEAL)
            axes.set_ylim(-1 if row["measure"] == COSINE else 0, 1)
            axes.axhline(np.mean(axes.get_ylim()), color="0.6", linewidth=0.8)
            axes.set(title=row["study"], xlabel="epoch", ylabel=row["measure"])
    figure.suptitle("The halves of the gradient (mean, range over seeds)")
    _study.save(figure, path)


def draw_halves(rows, path) -> None:
    """Above, curves at the best learning rate; below, final loss by learning rate."""
    figure, columns = columns_of(rows, sharey="col")
    for (above, below), variants in columns:
        for row in variants:
            colour = COLOURS[row["W_moved_by"]]
            draw_band(above, row["curve"][:, 1:], colour, row["W_moved_by"], first=1)
            below.plot(row["rates"], row["excess_loss_by_rate"], "o-", color=colour)
        above.set(title=row["study"], xlabel="epoch, at the best learning rate")
        below.set(xlabel="learning rate", xscale="log")
        below.xaxis.set_major_formatter("{x:g}")
        for axes in (above, below):
            axes.set(ylabel="test loss above that of x̂ = x", yscale="log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(LogFormatter())
    figure.suptitle("Which path's gradient moves W (mean, range over seeds)")
    handles = figure.axes[0].get_lines()
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    _study.save(figure, path)


def columns_of(rows, **shared):
    """A figure with a column of two panels for each study; (panels, rows) of each."""
    groups = itertools.groupby(rows, lambda row: row["study"])
    groups = [list(group) for _, group in groups]
    figure = Figure(figsize=(1 + 4 * len(groups), 7), layout="constrained")
    panels = figure.subplots(2, len(groups), squeeze=False, **shared)
    return figure, list(zip(panels.T, groups, strict=True))


def draw_band(axes, values, colour, label=None, first=0) -> None:
    """The mean and the range over seeds."""
    epochs = np.arange(first, first + values.shape[1])
    axes.plot(epochs, values.mean(axis=0), color=colour, label=label)
    low, high = values.min(axis=0), values.max(axis=0)
    axes.fill_between(epochs, low, high, color=colour, alpha=0.2, lw=0)
    axes.margins(x=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


if __name__ == "__main__":
    sys.exit(main())
