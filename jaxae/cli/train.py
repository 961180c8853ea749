"""`jaxae train`: from the data to the pictures."""

import dataclasses
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxae
from jaxae import _checks, data, metrics, plots
from jaxae.cli import folder
from jaxae.cli.options import TrainOptions, checked_seed
from jaxae.cli.reporting import Interrupt, Reporter
from jaxae.observations import Observation
from jaxae.training import Run
from jaxae.training.host import advice

# No float16: Adam's eps underflows in it, and its sums of squares overflow.
DTYPES = ("bfloat16", "float32", "float64")
INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


class Splits(NamedTuple):
    """The rows of a run, in the model's dtype."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    info: data.Dataset


def train(options: TrainOptions) -> int:
    """`jaxae train`: everything from the data to the pictures."""
    if options.dtype not in DTYPES:
        raise ValueError(
            f"--dtype must be one of {', '.join(DTYPES)}, got {options.dtype!r}."
        )
    out = folder.check_out(options.out, options.overwrite)
    with jax.enable_x64(options.dtype == "float64"), Interrupt() as interrupt:
        return _train(options, out, interrupt)


def _train(options: TrainOptions, out: Path, interrupt: Interrupt) -> int:
    key = jax.random.key(checked_seed(options.seed))
    observation = jaxae.observations.get(options.observation)
    splits = _load(options, observation)
    objective, hparams = _objective(options, input_dim=splits.train.shape[1])
    config = jaxae.TrainConfig(
        num_epochs=options.epochs,
        batch_size=options.batch_size,
        optimizer=jaxae.optimizers.get(options.optimizer),
        gradient=options.gradient,
    )
    init_key, train_key = jax.random.split(key)
    params = objective.ae.init(
        init_key,
        dtype=_checks.floating_dtype(options.dtype),
        data_mean=splits.train.mean(axis=0, dtype=np.float64)
        if options.bias_from_mean
        else None,
    )
    interrupt.raise_if_requested()
    reporter = Reporter(out, options.epochs, len(splits.train))

    def on_epoch(row, state):
        reporter.on_epoch(row)
        return interrupt.is_requested

    with reporter, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # _conclude says it
        run = jaxae.train(
            objective,
            splits.train,
            hparams=hparams,
            key=train_key,
            config=config,
            validation=splits.validation if len(splits.validation) else None,
            params=params,
            on_epoch=on_epoch,
        )
    # The model first: whatever happens to a picture, it is safe.
    described = _describe(options, splits, hparams)
    jaxae.save(out, objective.ae, run.params, run=described)
    results = _results(objective, run, splits, hparams)
    folder.write_json(out / folder.RESULTS_FILE, results)
    _draw(out, objective.ae, run, splits)
    _print_results(results)
    return _conclude(run, out, options)


def _load(options: TrainOptions, observation: Observation) -> Splits:
    dtype = _checks.floating_dtype(options.dtype)
    found = data.load(options.data, root=options.data_root, array=options.array)
    scale = found.scale if options.divide_by is None else options.divide_by
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"--divide-by must be a positive number, got {scale}.")
    if found.train.dtype.kind in "biu" and options.divide_by is None and scale == 1:
        raise ValueError(
            f"--data {options.data} holds {found.train.dtype}; say what divides it to "
            "floats, e.g. --divide-by 255 (or 1)."
        )
    # On the whole file, so that a bad value is named by its row there.
    whole = data.scaled(found.train, scale)
    data.check_array(whole, "data")
    observation.validate(whole)
    if found.test is not None:
        rest, validation = data.split(
            found.train, options.validation_fraction, seed=options.seed
        )
        test = found.test
    else:
        rest, test, validation = data.split(
            found.train,
            options.test_fraction,
            options.validation_fraction,
            seed=options.seed,
        )
    return Splits(
        train=data.scaled(rest, scale, dtype),
        validation=data.scaled(validation, scale, dtype),
        test=data.scaled(test, scale, dtype),
        info=found,
    )


def _objective(options: TrainOptions, input_dim: int):
    ae = jaxae.Autoencoder(
        input_dim=input_dim,
        latent_dim=options.latent_dim,
        activation=jaxae.activations.get(options.activation),
        observation=jaxae.observations.get(options.observation),
        tied=not options.untied,
    )
    given = {
        name: getattr(options, name)
        for name in _HPARAMS
        if getattr(options, name) is not None
    }
    corruption = None
    if options.corruption is not None:
        corruption = jaxae.corruptions.get(options.corruption)
    objective = jaxae.Objective(
        ae,
        corruption=corruption,
        penalties=tuple(
            penalty
            for name, penalty in jaxae.penalties.CATALOGUE.items()
            if name in given
        ),
    )
    return objective, given


_HPARAMS = (
    "learning_rate",
    "momentum",
    "adamw_decay",
    "corruption_rate",
    "kl_sparsity_target",
    *jaxae.penalties.CATALOGUE,
)


def _results(objective, run: Run, splits: Splits, hparams) -> dict[str, Any]:
    """Loss and squared error by split, beside PCA's squared error."""
    evaluate = jax.jit(objective.evaluate)
    reconstruct = jax.jit(jax.vmap(objective.ae.reconstruct, in_axes=(None, 0)))
    results: dict[str, Any] = {"status": run.status, "stopped_at": run.stopped_at}
    num_components = min(objective.ae.latent_dim, *splits.train.shape)
    results["pca_components"] = num_components
    pca = _pca(splits.train, num_components)
    for name in ("train", "validation", "test"):
        X = getattr(splits, name)
        if len(X):
            scores = evaluate(run.params, X, hparams)
            scores = {metric: float(value) for metric, value in scores.items()}
            scores["fvu"] = float(metrics.fvu(X, reconstruct(run.params, X)))
            results[name] = {**scores, "pca_squared_error": pca(X)}
    return results


def _pca(X: np.ndarray, num_components: int) -> Callable[[np.ndarray], float]:
    """`X -> squared error` of PCA with as many components, fitted to these rows."""
    from sklearn.decomposition import PCA

    # float64, because scikit-learn knows no bfloat16.
    model = PCA(num_components, svd_solver="covariance_eigh")
    model.fit(X.astype(np.float64))

    def squared_error(X: np.ndarray) -> float:
        X = X.astype(np.float64)
        return float(
            metrics.squared_error(X, model.inverse_transform(model.transform(X)))
        )

    return squared_error


def _describe(options: TrainOptions, splits: Splits, hparams) -> dict[str, Any]:
    """What `config.json` says beside the model."""
    info = splits.info
    return {
        "options": dataclasses.asdict(options),
        "hparams": hparams,
        "data": {
            "name": info.name,
            "source": info.source,
            "licence": info.licence,
            "sha256": info.sha256,
            "num_train": len(splits.train),
            "num_validation": len(splits.validation),
            "num_test": len(splits.test),
        },
        **folder.environment(),
    }


def _draw(out: Path, ae: jaxae.Autoencoder, run: Run, splits: Splits) -> None:
    shape = splits.info.image_shape or plots.square_shape(ae.input_dim)
    untied = jax.tree.map(_drawable, ae.parametrization.expand(run.params))
    plots.filters(untied.W_enc, out / folder.FILTERS, shape)
    if not ae.tied:
        plots.filters(untied.W_dec, out / folder.DECODER_FILTERS, shape)
    examples = (splits.test if len(splits.test) else splits.train)[:12]
    reconstruct = jax.vmap(ae.reconstruct, in_axes=(None, 0))
    X_hat = reconstruct(run.params, jnp.asarray(examples))
    plots.reconstructions(
        _drawable(examples), _drawable(X_hat), out / folder.RECONSTRUCTIONS, shape
    )
    plots.curves(run.metrics, out / folder.CURVES)


def _drawable(array) -> np.ndarray:
    return np.asarray(array).astype(np.float64)  # matplotlib knows no bfloat16


def _print_results(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("split", title=None)
    pca = f"of PCA({results['pca_components']})"
    for heading in ("loss", "variance unexplained", "squared error", pca):
        table.add_column(heading, justify="right")
    for name in ("train", "validation", "test"):
        if name in results:
            row = results[name]
            names = ("loss", "fvu", "squared_error", "pca_squared_error")
            table.add_row(name, *(f"{row[column]:.4f}" for column in names))
    Console().print(table)


def _conclude(run: Run, out: Path, options: TrainOptions) -> int:
    reached = len(run.metrics["train/loss"])
    status = 0
    if run.stopped_at is not None:
        status = 1
        print(
            f"jaxae: error: the loss or the parameters became non-finite at step "
            f"{run.stopped_at}; what was saved is the state before it. "
            f"{advice(run.stopped_at)}",
            file=sys.stderr,
        )
    elif run.status == "stopped":
        status = INTERRUPTED
        print(f"interrupted after epoch {reached} of {options.epochs}; it is saved.")
    pictures = [name for name in folder.PICTURES if (out / name).exists()]
    print(f"pictures: {', '.join(pictures)}")
    print(f"run folder: {out}")
    return status
