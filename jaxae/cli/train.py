"""`jaxae train`: from data and options to a run folder."""

import contextlib
import dataclasses
import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxae
from jaxae import _checks, data, loggers
from jaxae._files import expanded
from jaxae.autoencoder.files import BEST, CONFIG_FILE
from jaxae.autoencoder.parametrizations import as_dtype
from jaxae.checkpoints import OtherRunError
from jaxae.cli import config_file, data_splits, reporting, run_folder
from jaxae.cli.data_splits import Splits
from jaxae.cli.options import (
    CommandError,
    TrainOptions,
    build_autoencoder,
    build_config,
    build_evaluation,
    build_hparams,
    build_objective,
    evaluation_hparams,
    option_name,
    random_key,
    validated,
)
from jaxae.cli.reporting import Reporter, note, note_without_counts, progress
from jaxae.cli.signals import INTERRUPTED, Interrupt
from jaxae.training import Run, trainer
from jaxae.training.run import PreparedRun, advice, all_steps_skipped, status_of
from jaxae.training.train_step import INIT_SCALE, INIT_SCALES


def train(options: TrainOptions) -> int:
    """`jaxae train`: 0, or 1 if it diverged; 130 if it was interrupted."""
    options = validated(options)
    config_file.check_start(options)
    out = run_folder.check_out(options.out, options.overwrite, options.resume)
    if options.overwrite:
        start = {"params": options.params, "start_from": options.start_from}
        run_folder.check_inputs(out, data=options.data, **start)
    with jax.enable_x64(options.dtype == "float64"), Interrupt() as interrupt:
        return _train(options, out, interrupt)


def _train(options: TrainOptions, out: Path, interrupt: Interrupt) -> int:
    _log_names(options)
    splits = data_splits.load(options, jaxae.observations.get(options.observation))
    prepared = _prepare(options, splits)
    _check_repetition(options, splits, prepared)
    _note_mean(options, prepared.objective.ae, splits)
    _note_dead_after(prepared)
    interrupt.raise_if_requested()
    with run_folder.make_and_lock(out):
        # Writing begins: only whether the folder holds this run is still to check.
        if not options.resume:
            run_folder.clear(out, run_folder.RUN)
        run_folder.clear_unfinished(out)
        description = _describe(options, splits, prepared)
        folder = out / run_folder.CHECKPOINTS
        with trainer.open_checkpoints(prepared, folder) as checkpoints:
            state = _start(prepared, checkpoints, options)
            if _is_done(out, prepared, state):
                print(f"{_progress_of(prepared, state)}; nothing was done.")
                print(f"run folder: {out}")
                return 0
            interrupt.raise_if_requested()
            # They mark a finished run, so they are removed now and written last.
            for name in (run_folder.RESULTS_FILE, run_folder.SUMS_FILE):
                (out / name).unlink(missing_ok=True)
            of_step = state.state
            ae, params = prepared.objective.inference_model(
                of_step.params, prepared.hparams, of_step.state
            )
            run_folder.save_model(out, ae, params, splits.scaling, description)
            run = _execute(out, options, prepared, state, checkpoints, interrupt)
        _write(out, options, prepared, run, splits, description)
        if (sentence := all_steps_skipped(prepared, run)) is not None:
            note(sentence)
        status = _report_end(run, options)
        reporting.print_folder(out)
        return status


def _execute(
    out: Path,
    options: TrainOptions,
    prepared: PreparedRun,
    state: Any,
    checkpoints: Any,
    interrupt: Interrupt,
) -> Run:
    """Train, and write and log the metrics of each epoch when it ends."""
    config = prepared.config
    num_steps = config.num_epochs * prepared.steps_per_epoch
    bar = progress(
        "epoch",
        config.num_epochs,
        "loss {task.fields[loss]:.4g}",
        "{task.fields[rate]:,.0f} examples/s",
        loss=float("nan"),
        rate=0.0,
    )
    with contextlib.ExitStack() as stack, bar as show:
        logs = [_LOGGERS[name](out, options) for name in _log_names(options)]
        for log in logs:
            stack.enter_context(log)
        step = int(state.state.step)
        reporter = Reporter(out, config, num_steps, step, state.history, show)

        def on_epoch(metrics, state):
            reporter.on_epoch(metrics)
            return interrupt.is_requested

        prepared = prepared._replace(callbacks=(on_epoch, *logs))
        return trainer.execute(prepared, state, checkpoints, reporter.on_step)


def _write(
    out: Path,
    options: TrainOptions,
    prepared: PreparedRun,
    run: Run,
    splits: Splits,
    description,
) -> None:
    """Write the results; the model first, so that it is safe whatever happens later.

    It is the model for use on one example, as those of all commands that read it.
    """
    assert run.model is not None
    (ae, params), scaling, hparams = run.model, splits.scaling, prepared.hparams
    run_folder.save_model(out, ae, params, scaling, description)
    results: dict[str, Any] = {"status": run.status, "stopped_at": run.stopped_at}
    if run.reason is not None:
        results["reason"] = run.reason
    if run.best is not None:
        value = run.best.value if np.isfinite(run.best.value) else None
        best = {"epoch": run.best.epoch, prepared.config.monitor: value}
        of_best = {**description, "best": best}
        best_ae, best_params = prepared.objective.inference_model(
            run.best.params, hparams, run.best.state
        )
        run_folder.save_model(out / BEST, best_ae, best_params, scaling, of_best)
        results["best_epoch"] = run.best.epoch
    objective = build_evaluation(options, ae)
    note_without_counts(objective)
    of_model = evaluation_hparams(hparams)
    results |= data_splits.evaluate(objective, params, splits, of_model)
    reporting.draw(out, ae, params, run.metrics, *splits.shown)
    run_folder.write_results(out, results)
    reporting.print_results(results)


def _report_end(run: Run, options: TrainOptions) -> int:
    """Print why the run ended, if it was before the last epoch; return the status."""
    num_epochs = len(run.metrics.get("train/loss", ()))
    if run.stopped_at is not None:
        print(
            f"jaxae: error: the loss or the parameters became non-finite at step "
            f"{run.stopped_at}; the state before it is saved. {run.reason} "
            f"{advice(run.stopped_at)}",
            file=sys.stderr,
        )
        return 1
    if run.status in ("interrupted", "stopped"):
        print(
            f"interrupted after epoch {num_epochs} of {options.epochs}; the run is "
            "saved: continue it with --resume."
        )
        return INTERRUPTED
    if run.status == "early_stopped":
        reason = f"{options.monitor} was nan in every epoch"
        if run.best is not None:
            value, epoch = run.best.value, run.best.epoch
            reason = f"{options.monitor} was best, {value:.6g}, after epoch {epoch}"
        print(f"stopped after epoch {num_epochs}: {reason}.")
    return 0


# ---- --log ---------------------------------------------------------------------------


def _csv(out: Path, options: TrainOptions) -> loggers.Logger:
    return loggers.csv(out / run_folder.CSV_FILE, resume=True)


def _tensorboard(out: Path, options: TrainOptions) -> loggers.Logger:
    return loggers.tensorboard(out / run_folder.LOGGERS)


def _wandb(out: Path, options: TrainOptions) -> loggers.Logger:
    folder = out / run_folder.LOGGERS
    folder.mkdir(exist_ok=True)  # wandb does not
    return loggers.wandb(
        name=out.resolve().name,
        dir=str(folder),
        config=config_file.saved_options(options),
    )


_LOGGERS = {"csv": _csv, "tensorboard": _tensorboard, "wandb": _wandb}


def _log_names(options: TrainOptions) -> list[str]:
    """The loggers of `--log`, whose packages are installed."""
    names = [] if options.log is None else [*dict.fromkeys(options.log.split(","))]
    for name in names:
        _checks.lookup("log", _LOGGERS, name)
        if importlib.util.find_spec(name) is None:  # each has the name of its package
            raise _checks.extra(f"--log {name}", name, "loggers")
    return names


# ---- prepare -------------------------------------------------------------------------


def _prepare(options: TrainOptions, splits: Splits) -> PreparedRun:
    """The run of the options, checked by the library."""
    init_key, train_key = jax.random.split(random_key(options))
    ae = build_autoencoder(options, splits.train.shape[1])
    config = build_config(options, ae)
    if options.start_from is None and options.params is None:
        params = _drawn_params(options, ae, init_key, splits)
    else:
        params = _loaded_params(options, ae)
    hparams = build_hparams(options, len(splits.train))
    hparams.pop(INIT_SCALE, None)  # the initial parameters have it
    return trainer.prepare(
        build_objective(options, ae),
        splits.train,
        hparams=hparams,
        key=train_key,
        config=config,
        validation=splits.validation_or_none,
        params=params,
        has_checkpoints=True,
    )


def _drawn_params(
    options: TrainOptions, ae: jaxae.Autoencoder, key: jax.Array, splits: Splits
) -> Any:
    scale: Any = 1.0
    data_mean = None
    if options.bias_from_mean and options.bias_from_median:
        raise CommandError(
            "--bias-from-mean and --bias-from-median exclude each other; give one."
        )
    if options.bias_from_mean:
        data_mean = data.column_stats(splits.train).mean
    if options.bias_from_median:
        data_mean = data.geometric_median(splits.train)
    if options.init_scale is not None:
        INIT_SCALES.check(INIT_SCALE, {INIT_SCALE: options.init_scale})
        scale = np.float32(options.init_scale)
    dtype = _checks.floating_dtype(options.dtype)
    return ae.init(
        key,
        dtype=dtype,
        data_mean=data_mean,
        scale=scale,
        encoder=options.init_encoder,
        decoder_norm=options.decoder_norm,
    )


def _loaded_params(options: TrainOptions, ae: jaxae.Autoencoder) -> Any:
    """The parameters of the run that --start-from or --params names."""
    name = "params" if options.start_from is None else "start_from"
    run = getattr(options, name)
    option = option_name(name)
    place = f"{option} {run}"
    drawn = {
        "init_scale": "scales",
        "init_encoder": "chooses",
        "decoder_norm": "scales",
    }
    for given, verb in drawn.items():
        if getattr(options, given) is not None:
            raise CommandError(
                f"{option_name(given)} {verb} initial weights that are drawn, but "
                f"{option} gives trained ones; leave one of them out."
            )
    for given in ("bias_from_mean", "bias_from_median"):
        if getattr(options, given):
            raise CommandError(
                f"{option} holds the output bias that {option_name(given)} would set; "
                "leave one of them out."
            )
    other, params = run_folder.read_float64(
        place,
        lambda: jaxae.load(run),
        is_allowed=options.dtype == "float64",
        problem=f"--dtype {options.dtype} would round; give --dtype float64",
    )
    if other.input_dim != ae.input_dim:
        raise CommandError(
            f"{place} holds a model of {other.input_dim} columns, but --data "
            f"{options.data} has {ae.input_dim}."
        )
    if ae.activation.for_inference and _trained_activation(run) == options.activation:
        # The folder holds the model for use on one example; training continues with
        # the one that became it, which learns nothing in its activation.
        other = dataclasses.replace(other, activation=ae.activation)
        params = params._replace(activation=())
    if other.tied and not ae.tied:
        untied: Any = {"tied": False}
        other, params = dataclasses.replace(other, **untied), jaxae.untie(params)
    if other != ae:
        raise CommandError(
            f"{place} holds the model {other}, but the options describe {ae}."
        )
    return as_dtype(params, options.dtype)


def _trained_activation(run: str) -> str | None:
    """The activation with which a run was trained; None where a folder is no run."""
    config = run_folder.parse_json((expanded(run) / CONFIG_FILE).read_bytes())
    options = config.get("options") if isinstance(config, dict) else None
    return options.get("activation") if isinstance(options, dict) else None


def _check_repetition(
    options: TrainOptions, splits: Splits, prepared: PreparedRun
) -> None:
    """Raise if --config is of a run on other data or from other parameters.

    Where the device or a version is another, print a note.
    """
    if options.config is None:
        return
    config = config_file.read_config(expanded(options.config))
    saved, sha256 = config["options"], config_file.data_entry(config, "sha256")
    if saved.get("data") == options.data and sha256 != splits.info.sha256:
        raise CommandError(
            f"--config {options.config} was made with data whose SHA-256 is {sha256}, "
            f"but that of {splits.info.source} is {splits.info.sha256}; restore the "
            "data, or name others with --data."
        )
    for name in ("params", "start_from"):
        run, start = getattr(options, name), config.get("start_sha256")
        is_same_run = run is not None and saved.get(name) == run
        if is_same_run and start not in (None, _start_sha256(prepared)):
            raise CommandError(
                f"the parameters in {run} have changed since --config {options.config} "
                "was written; restore them, or name a different run with "
                f"{option_name(name)}."
            )
    if "trial" in config:
        note(
            f"{options.config} was written for a lane of a sweep, whose random key no "
            "option sets, so this run uses different random numbers. In Python, "
            'jaxae.train repeats the lane, with the key of its "trial".'
        )
    for name, value in config_file.environment().items():
        if config.get(name) != value:
            note(
                f"{name} was {config.get(name)!r} and is {value!r}; the results may "
                "differ in their last bits."
            )


# Above it, most of the mean squared norm of the data is that of their mean, on which
# the initial pre-activations then mostly depend.
_LARGE_MEAN = 1.0


def _note_mean(options: TrainOptions, ae: jaxae.Autoencoder, splits: Splits) -> None:
    """Print a note if the mean of the data will make latents of a sparse model dead."""
    is_centred = ae.pre_bias and (options.bias_from_mean or options.bias_from_median)
    is_drawn = options.start_from is None and options.params is None
    if not (ae.activation.is_sparse and is_drawn) or is_centred:
        return
    stats = splits.stats or data.column_stats(splits.train)
    if (ratio := stats.mean_to_spread) > _LARGE_MEAN:
        note(
            f"the mean of the data is {ratio:.3g} times their spread, so many latents "
            "may be dead from the start; centre the data with --scaling center or "
            "standardize, or give --pre-bias --bias-from-mean."
        )


def _note_dead_after(prepared: PreparedRun) -> None:
    """Print a note if training ends before a latent can count as dead."""
    dead_after = prepared.objective.dead_after
    num_steps = prepared.steps_per_epoch * prepared.config.num_epochs
    if dead_after is not None and num_steps <= dead_after:
        note(
            f"no latent will count as dead in {num_steps} steps, because --dead-after "
            f"is {dead_after}; lower it, or train longer."
        )


# ---- start or resume -----------------------------------------------------------------


def _start(prepared: PreparedRun, checkpoints: Any, options: TrainOptions) -> Any:
    """The first or the saved state of the run; print a note on a damaged checkpoint.

    The error for the checkpoints of another run names the options that differ, or the
    field of the fingerprint where no option does.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        try:
            state = trainer.start(prepared, checkpoints)
        except OtherRunError as error:
            difference = config_file.differences(expanded(options.out), options)
            difference = difference or error.difference
            start = options.start_from or options.params
            if start is not None and difference.startswith("params is "):
                difference = f"{start} had other parameters when it began"
            raise OtherRunError(f"--out {options.out}", difference) from None
    for warning in caught:
        note(str(warning.message))
    return state


def _is_done(out: Path, prepared: PreparedRun, state: Any) -> bool:
    """Whether the run is finished and its files are intact."""
    if status_of(prepared, state) not in ("finished", "early_stopped"):
        return False
    names = ", ".join(run_folder.damaged_files(out))
    if names and (reached := len(state.history)) > prepared.config.num_epochs:
        raise CommandError(
            f"--out {out} is a run of {reached} epochs with files that are missing or "
            f"not what it wrote: {names}; give --epochs {reached} to write them again."
        )
    if names and (out / run_folder.RESULTS_FILE).exists():  # else it was killed
        note(
            f"{out} has files that are missing or not what the run wrote: {names}; "
            "they are written again from the last state."
        )
    return not names


def _progress_of(prepared: PreparedRun, state: Any) -> str:
    """Whether a finished run has the epochs that are asked for, or more."""
    num_epochs, step = prepared.config.num_epochs, int(state.state.step)
    num_steps = num_epochs * prepared.steps_per_epoch
    if step <= num_steps:
        return "the run is finished"
    return (
        f"the run has taken {step} steps, more than the {num_steps} steps of "
        f"{num_epochs} epochs"
    )


# ---- config.json ---------------------------------------------------------------------


def _describe(
    options: TrainOptions, splits: Splits, prepared: PreparedRun
) -> dict[str, Any]:
    """The entries of `config.json`, besides the model."""
    start = _start_sha256(prepared)
    return {
        "options": config_file.saved_options(options),
        "hparams": {n: float(str(value)) for n, value in prepared.hparams.items()},
        "gradient_used": prepared.config.gradient_of(prepared.objective),
        "data": data_splits.describe(splits),
        **({} if start is None else {"start_sha256": start}),
        **config_file.environment(),
    }


def _start_sha256(prepared: PreparedRun) -> str | None:
    """The digest of the parameters that a run starts from; None if they are drawn."""
    assert prepared.fingerprint is not None  # for `_prepare` says has_checkpoints
    return prepared.fingerprint["params"]
