"""`jaxae train`: from the data to the pictures."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxae
from jaxae import _checks, data, metrics
from jaxae._files import expanded
from jaxae.checkpoints import OtherRunError
from jaxae.cli import data_splits as splits_module
from jaxae.cli import factory, pictures, run_folder
from jaxae.cli.data_splits import PARTS, Splits
from jaxae.cli.options import TrainOptions, checked, key_of
from jaxae.cli.outputs import check_folder, check_inputs
from jaxae.cli.reporting import Interrupt, Reporter, note
from jaxae.data.scaling import save_scaling
from jaxae.training import Run, diagnostics, epochs, host
from jaxae.training.host import PreparedRun

INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


def train(options: TrainOptions) -> int:
    """`jaxae train`: everything from the data to the pictures."""
    options = checked(options)
    factory.check_start(options)
    out = run_folder.check_out(options.out, options.overwrite, options.resume)
    check_folder(out)
    if options.overwrite:
        start = {"params": options.params, "start-from": options.start_from}
        check_inputs(out, data=options.data, **start)
    with jax.enable_x64(options.dtype == "float64"), Interrupt() as interrupt:
        return _train(options, out, interrupt)


def _train(options: TrainOptions, out: Path, interrupt: Interrupt) -> int:
    splits = splits_module.load(options, jaxae.observations.get(options.observation))
    job = _job(options, splits)
    _check_repeats(options, splits, job)
    interrupt.raise_if_requested()
    with run_folder.held(out):
        # Every refusal but that of another run lies behind: now the disk may change.
        if not options.resume:
            run_folder.clear(out)
        run_folder.clear_unfinished(out)
        described = _describe(options, splits, job)
        with host.open_checkpoints(job, out / run_folder.CHECKPOINTS) as checkpoints:
            progress = _start(job, checkpoints, options)
            if _is_done(out, job, progress):
                print(f"{_standing(job, progress)}; nothing was done.")
                print(f"run folder: {out}")
                return 0
            interrupt.raise_if_requested()
            # Written last, so that where they are, the folder is that of a whole run.
            for name in (run_folder.RESULTS_FILE, run_folder.SUMS_FILE):
                (out / name).unlink(missing_ok=True)
            _save(out, job.objective.ae, progress.state.params, splits, described)
            run = _execute(out, job, progress, checkpoints, interrupt)
        _write(out, job, run, splits, described)
        if (sentence := host.all_steps_skipped(job, run)) is not None:
            note(sentence)
        return _conclude(run, out, options)


def _execute(
    out: Path, job: PreparedRun, progress: Any, checkpoints: Any, interrupt: Interrupt
) -> Run:
    """Train, writing a line an epoch."""
    num_steps = job.config.num_epochs * epochs.num_steps(job.data, job.config)
    with Reporter(out, job.config, num_steps, progress.history) as reporter:

        def on_epoch(row, state):
            reporter.on_epoch(row, state)
            return interrupt.is_requested

        job = job._replace(callbacks=(on_epoch,))
        return host.execute(job, progress, checkpoints, reporter.on_part)


def _write(
    out: Path, job: PreparedRun, run: Run, splits: Splits, described: dict
) -> None:
    """All that a run leaves; the model first: whatever happens later, it is safe."""
    ae = job.objective.ae
    _save(out, ae, run.params, splits, described)
    if run.best is not None:
        value = run.best.value if np.isfinite(run.best.value) else None
        best = {"epoch": run.best.epoch, job.config.monitor: value}
        described = {**described, "best": best}
        _save(out / run_folder.BEST, ae, run.best.params, splits, described)
    results = _results(job.objective, run, splits, job.hparams)
    pictures.draw(out, ae, run.params, run.metrics, splits)
    run_folder.write_results(out, results)
    print_results(results)


def _job(options: TrainOptions, splits: Splits) -> PreparedRun:
    """What is to be done, checked."""
    init_key, train_key = jax.random.split(key_of(options))
    ae = factory.autoencoder(options, splits.train.shape[1])
    params = _params(options, ae, init_key, splits)
    return host.prepare(
        factory.objective(options, ae),
        splits.train,
        hparams=factory.hparams(options, len(splits.train)),
        key=train_key,
        config=factory.config(options),
        validation=splits.validation if len(splits.validation) else None,
        params=params,
        has_checkpoints=True,
    )


def _start(job: PreparedRun, checkpoints: Any, options: TrainOptions) -> Any:
    """Where the job stands; what was damaged is told of in a line each.

    Raises:
      OtherRunError: naming the options that differ, or, where none does, the field.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        try:
            progress = host.start(job, checkpoints)
        except OtherRunError as error:
            found = (
                run_folder.differences(expanded(options.out), options)
                or error.difference
            )
            start = options.start_from or options.params
            if start is not None and found.startswith("params is "):
                found = f"{start} had other parameters when it began"
            raise OtherRunError(f"--out {options.out}", found) from None
    for warning in caught:
        note(str(warning.message))
    return progress


def _params(options: TrainOptions, ae: jaxae.Autoencoder, key, splits: Splits) -> Any:
    if options.params is not None or options.start_from is not None:
        if options.bias_from_mean:
            option = "--params" if options.start_from is None else "--start-from"
            raise ValueError(
                f"{option} holds the output bias that --bias-from-mean would set; "
                "leave one of them out."
            )
        return factory.params_of(options, ae)
    data_mean = None
    if options.bias_from_mean:
        data_mean = data.column_stats(splits.train).mean
    return ae.init(
        key, dtype=_checks.floating_dtype(options.dtype), data_mean=data_mean
    )


def _check_repeats(options: TrainOptions, splits: Splits, job: PreparedRun) -> None:
    """Refuse to repeat a run on other data or from another start; note the rest.

    Raises:
      ValueError: naming the option.
    """
    if options.config is None:
        return
    config = run_folder.read_config(Path(options.config))
    was, now = run_folder.of_data(config, "sha256"), splits.info
    is_same_data = config["options"].get("data") == options.data
    if is_same_data and was != now.sha256:
        raise ValueError(
            f"--config {options.config} was made with data whose SHA-256 is {was}, but "
            f"that of {now.source} is {now.sha256}; restore the data, or name others "
            "with --data."
        )
    for name in ("params", "start_from"):
        run, start = getattr(options, name), config.get("start_sha256")
        is_same_run = run is not None and config["options"].get(name) == run
        if is_same_run and start not in (None, _start_sha256(job)):
            raise ValueError(
                f"--config {options.config} was made from {run} before the parameters "
                f"there changed; restore them, or name another run with "
                f"--{name.replace('_', '-')}."
            )
    if "trial" in config:
        note(
            f"{options.config} is of a lane of a sweep, and no option gives its key: "
            "this run draws other numbers. In Python, jaxae.train repeats the lane, "
            'with the key of its "trial".'
        )
    for name, value in run_folder.environment().items():
        if config.get(name) != value:
            note(
                f"{name} was {config.get(name)!r} and is {value!r}; the results may "
                "differ in their last bits."
            )


def _is_done(out: Path, job: PreparedRun, progress: Any) -> bool:
    """Whether nothing is left to do; what was damaged since is made again.

    Raises:
      ValueError: if it is damaged and of more epochs than are asked for.
    """
    if host.status_of(job, progress) not in ("finished", "early_stopped"):
        return False
    names = ", ".join(run_folder.damaged(out))
    if names and (reached := len(progress.history)) > job.config.num_epochs:
        raise ValueError(
            f"--out {out} is a run of {reached} epochs with files that are missing or "
            f"not what it wrote: {names}; say --epochs {reached} to write them again."
        )
    if names and (out / run_folder.RESULTS_FILE).exists():  # else it was killed
        note(
            f"{out} has files that are missing or not what the run wrote: {names}; "
            "they are written again from the last state."
        )
    return not names


def _standing(job: PreparedRun, progress: Any) -> str:
    """Of a run that is done: whether it did just what is asked, or more."""
    asked, reached = job.config.num_epochs, int(progress.state.step)
    num_steps = asked * epochs.num_steps(job.data, job.config)
    if reached <= num_steps:
        return "the run is finished"
    return f"the run is already past {asked} epochs, {num_steps} steps: at {reached}"


def _save(out: Path, ae: jaxae.Autoencoder, params, splits: Splits, described) -> None:
    jaxae.save(out, ae, params, run=described)
    save_scaling(out, splits.scaling)


def _describe(
    options: TrainOptions, splits: Splits, job: PreparedRun
) -> dict[str, Any]:
    """What `config.json` says beside the model."""
    start = _start_sha256(job)
    return {
        "options": run_folder.to_options(options),
        "hparams": {name: float(str(value)) for name, value in job.hparams.items()},
        "data": splits_module.describe(splits),
        **({} if start is None else {"start_sha256": start}),
        **run_folder.environment(),
    }


def _start_sha256(job: PreparedRun) -> str | None:
    """Of the parameters that a run starts from, where they are not drawn."""
    assert job.fingerprint is not None  # a run of the command line is saved
    return job.fingerprint["params"]


# ---- results -------------------------------------------------------------------------


def _results(objective, run: Run, splits: Splits, hparams) -> dict[str, Any]:
    """The metrics by split, beside PCA's squared error."""
    results: dict[str, Any] = {"status": run.status, "stopped_at": run.stopped_at}
    if run.reason is not None:
        results["reason"] = run.reason
    if run.best is not None:
        results["best_epoch"] = run.best.epoch
    return results | evaluate(objective, run.params, splits, hparams)


def evaluate(objective, params, splits: Splits, hparams) -> dict[str, Any]:
    """The metrics by split; PCA is beside them where the rows are in memory."""
    found: dict[str, Any] = {}
    pca = None
    if isinstance(splits.train, np.ndarray):
        num_components = min(objective.ae.latent_dim, *splits.train.shape)
        found["pca_components"] = num_components
        pca = _pca(splits.train, num_components)
    for name in PARTS:
        X = getattr(splits, name)
        if len(X):
            found[name] = diagnostics.evaluate(objective, params, X, hparams)
            if pca is not None:
                found[name]["pca_squared_error"] = pca(np.asarray(X))
    return found


def _pca(X: np.ndarray, num_components: int) -> Callable[[np.ndarray], float]:
    """`X -> squared error` of PCA with as many components, fitted to these rows."""
    from sklearn.decomposition import PCA

    # float64, because scikit-learn knows no bfloat16. Twice, for it has no variance of
    # one row; 0 / 0 are the shares of a variance that is none.
    model = PCA(num_components, svd_solver="covariance_eigh")
    with np.errstate(invalid="ignore"):
        rows = np.concatenate([X, X]) if len(X) == 1 else X
        model.fit(rows.astype(np.float64))

    def squared_error(X: np.ndarray) -> float:
        X = X.astype(np.float64)
        return float(
            metrics.squared_error(X, model.inverse_transform(model.transform(X)))
        )

    return squared_error


def print_results(results: dict[str, Any]) -> None:
    """A table of the splits, and what to tell of them."""
    from rich.console import Console
    from rich.table import Table

    columns = {
        "loss": "loss",
        "variance unexplained": "fvu",
        "squared error": "squared_error",
        f"of PCA({results.get('pca_components')})": "pca_squared_error",
        "bits per dim": "bits_per_dim",
    }
    parts = (*PARTS, "data")  # the last of evaluate only
    rows = {name: results[name] for name in parts if name in results}
    columns = {
        heading: name
        for heading, name in columns.items()
        if any(name in row for row in rows.values())
    }
    table = Table("split")
    for heading in columns:
        table.add_column(heading, justify="right")
    for part, row in rows.items():
        cells = (f"{row[name]:.4f}" if name in row else "" for name in columns.values())
        table.add_row(part, *cells)
    Console().print(table)
    parts_of: dict[str, list[str]] = {}
    for part, row in rows.items():
        for sentence in diagnostics.remarks(row):
            parts_of.setdefault(sentence, []).append(part)
    for sentence, found in parts_of.items():
        note(f"{', '.join(found)}: {sentence}")


def _conclude(run: Run, out: Path, options: TrainOptions) -> int:
    reached = len(run.metrics.get("train/loss", ()))
    status = 0
    if run.stopped_at is not None:
        status = 1
        print(
            f"jaxae: error: the loss or the parameters became non-finite at step "
            f"{run.stopped_at}; what was saved is the state before it. {run.reason} "
            f"{host.advice(run.stopped_at)}",
            file=sys.stderr,
        )
    elif run.status in ("interrupted", "stopped"):
        status = INTERRUPTED
        print(
            f"interrupted after epoch {reached} of {options.epochs}; it is saved: go "
            "on with --resume."
        )
    elif run.status == "early_stopped":
        assert run.best is not None
        print(
            f"stopped after epoch {reached}: {options.monitor} was best, "
            f"{run.best.value:.6g}, after epoch {run.best.epoch}."
        )
    print(f"pictures: {', '.join(pictures.drawn(out))}")
    print(f"run folder: {out}")
    return status


def with_runs(arguments: list[str]) -> TrainOptions | None:
    """The defaults that `--config FILE` and `--start-from RUN` give, if they are there.

    Raises:
      FileNotFoundError, ValueError: as `run_folder.read_config`.
    """
    options = None
    if (config := _last(arguments, "--config")) is not None:
        path = Path(config)
        values = run_folder.read_config(path)["options"]
        options = run_folder.as_options(TrainOptions, values, path)
    if (run := _last(arguments, "--start-from")) is not None:
        options = factory.with_run(options or TrainOptions(), run)
    return options


def _last(arguments: list[str], option: str) -> str | None:
    """The value of an option among the arguments; where it is repeated, the last."""
    for i, argument in reversed(list(enumerate(arguments))):
        name, _, value = argument.partition("=")
        is_option = name.replace("_", "-") == option
        if is_option and (value or i + 1 < len(arguments)):
            return value or arguments[i + 1]
    return None
