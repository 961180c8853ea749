"""Does a tied autoencoder reconstruct digits better than PCA with as many components?

Claim: on digits with H = 16, tied weights and Bernoulli output, identity and relu
latents reconstruct held-out images with less squared error than PCA with 16 components,
by at least 2 %; a bounded sigmoid code does not.

Source: Hugo Larochelle, Neural networks: Autoencoder, Université de Sherbrooke,
October 2012, whose model this is. PCA is scikit-learn's: of all linear reconstructions,
the one with the least squared error on the training images.

    python experiments/digits_against_pca.py [--quick] [--out DIR]

The images are split at random, several times, into training, validation and test
images. PCA is fitted to the training images. Each model is trained on them by one
compiled sweep over learning rate and seed, and its learning rate is chosen by
validation squared error. Both are compared by ||x_hat - x||^2 per test image, over 64
pixels in [0, 1]. Two rows show the source of a difference: PCA clipped to [0, 1], the
range of a Bernoulli mean, and the linear autoencoder (identity latents, Gaussian
output), whose optimum is PCA.

Results (5 splits of 1079 training, 359 validation and 359 test images, 3 seeds each,
mean and standard deviation over all): PCA 0.738 +- 0.008, clipped 0.670 +- 0.007, the
linear autoencoder 0.744 +- 0.009; sigmoid 0.924 +- 0.018, relu 0.609 +- 0.028, identity
0.556 +- 0.010. Identity and relu beat PCA on every split, clipped or not; sigmoid on
none. Clipping explains about half of the difference between PCA and relu.
"""

import sys
from typing import NamedTuple

import _study
import jax
import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

import jaxae
from jaxae import activations, observations

LATENT_DIM = 16
MODELS = {
    "linear autoencoder": (activations.identity, observations.gaussian),
    "sigmoid latents": (activations.sigmoid, observations.bernoulli),
    "relu latents": (activations.relu, observations.bernoulli),
    "identity latents": (activations.identity, observations.bernoulli),
}
MUST_BEAT_PCA = ("relu latents", "identity latents")
# A model beats PCA if its error is at most this times PCA's. The margin is twice the
# variation of PCA's error between splits, and much larger than that between machines.
MARGIN = 0.98


class Settings(NamedTuple):
    """The extent of the study."""

    num_splits: int
    num_seeds: int
    num_epochs: int
    learning_rates: tuple[float, ...]
    batch_size: int = 64


FULL = Settings(5, 3, 300, (0.001, 0.003, 0.01, 0.03, 0.1))
QUICK = Settings(1, 2, 100, (0.003, 0.01, 0.03))


def main(argv=None) -> int:
    args = _study.parse(argv, "digits_against_pca", __doc__)
    settings = QUICK if args.quick else FULL
    digits = jaxae.data.digits()
    X = jaxae.data.scaled(digits.train, digits.scale)
    splits = [run_split(X, seed, settings) for seed in range(settings.num_splits)]
    rows = judge(splits)
    wins = {row["model"]: row["beats_pca"] for row in rows}
    passed = all(wins[name] == len(splits) for name in MUST_BEAT_PCA)
    counts = {"beats_pca": "", "beats_clipped_pca": "", "splits": ""}
    _study.print_table(rows, {"model": "", "mean": ".3f", "std": ".3f", **counts})
    draw(rows, args.out / "test_squared_error.png")
    results = {
        "sigmoid_does_not_beat_pca": wins["sigmoid latents"] == 0,
        "test_squared_error": rows,
        "splits": splits,
    }
    return _study.finish(args, __doc__, settings, digits, passed, results)


# ---- one split -----------------------------------------------------------------------


def run_split(X, seed, settings) -> dict:
    """Test squared errors: one for PCA, one per seed for each model."""
    print(f"split {seed + 1} of {settings.num_splits}", flush=True)
    train, test, validation = jaxae.data.split(X, 0.2, 0.2, seed=seed)
    return pca_errors(train, test) | {
        name: train_model(model(*parts), train, validation, test, settings)
        for name, parts in MODELS.items()
    }


def pca_errors(train, test) -> dict:
    pca = PCA(LATENT_DIM).fit(train)
    reconstruction = pca.inverse_transform(pca.transform(test))
    clipped = np.clip(reconstruction, 0, 1)
    return {
        "PCA": {"by_seed": [squared_error(test, reconstruction)]},
        "PCA, clipped": {"by_seed": [squared_error(test, clipped)]},
    }


def squared_error(X, X_hat) -> float:
    return float(jaxae.metrics.squared_error(X, X_hat))


def model(activation, observation):
    return jaxae.Autoencoder(
        input_dim=64,
        latent_dim=LATENT_DIM,
        activation=activation,
        observation=observation,
        tied=True,
    )


def train_model(ae, train, validation, test, settings) -> dict:
    objective = jaxae.Objective(ae)
    sweep = jaxae.sweep(
        objective,
        train,
        {"learning_rate": settings.learning_rates, "seed": range(settings.num_seeds)},
        key=jax.random.key(0),
        config=jaxae.TrainConfig(
            num_epochs=settings.num_epochs, batch_size=settings.batch_size
        ),
    )
    evaluate = jax.jit(objective.evaluate)

    def errors(X):  # [learning rates, seeds]: seed is the fastest axis of the lanes
        lanes = map(sweep.params, range(len(sweep)))
        by_lane = [float(evaluate(lane, X, {})["squared_error"]) for lane in lanes]
        return np.reshape(by_lane, (-1, settings.num_seeds))

    validation_errors = errors(validation).mean(axis=1)
    best = int(np.argmin(validation_errors))
    return {
        "by_seed": errors(test)[best].tolist(),
        "learning_rate": settings.learning_rates[best],
        "validation_by_learning_rate": validation_errors.tolist(),
    }


# ---- all splits ----------------------------------------------------------------------


def judge(splits) -> list[dict]:
    """Mean and deviation over splits and seeds, and the number of wins against PCA."""
    runs = {name: np.array([s[name]["by_seed"] for s in splits]) for name in splits[0]}

    def wins(errors, rival):  # [splits, seeds]
        return int(np.sum(errors.mean(axis=1) < MARGIN * runs[rival].mean(axis=1)))

    return [
        {
            "model": name,
            "mean": errors.mean(),
            "std": errors.std(),
            "beats_pca": wins(errors, "PCA"),
            "beats_clipped_pca": wins(errors, "PCA, clipped"),
            "splits": len(splits),
            "runs": errors.ravel(),
        }
        for name, errors in runs.items()
    ]


def draw(rows, path) -> None:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    colours = ["#8a8a8a"] * 3 + ["#d1495b", "#1f77b4", "#335c67"]
    names = [row["model"].replace(" ", "\n") for row in rows]
    means = [row["mean"] for row in rows]
    bars = axes.bar(names, means, color=colours, width=0.65)
    axes.bar_label(bars, fmt="%.3f", label_type="center", color="white")
    for position, row in enumerate(rows):
        # Side by side, so that they do not hide each other.
        x = position + np.linspace(-0.2, 0.2, len(row["runs"]))
        label = "one run" if position == 0 else None
        axes.plot(x, row["runs"], ".", color="black", markersize=3, label=label)
    axes.axhline(means[0], color="0.3", linestyle="--", linewidth=1, label="PCA's mean")
    axes.set_ylabel("test squared error per image")
    axes.set_title(
        f"Digits, {LATENT_DIM} latents; in colour: tied weights, Bernoulli output"
    )
    axes.set_ylim(0, 1.2 * max(means))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    _study.save(figure, path)


if __name__ == "__main__":
    sys.exit(main())
