"""`jaxae sweep`: from a space and data to a table, the best model and pictures."""

import dataclasses
import importlib.util
import json
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import jax

import jaxae
from jaxae import _checks
from jaxae._files import expanded, write_atomically
from jaxae.autoencoder.files import CONFIG_FILE, LANES_FILE
from jaxae.cli import data_splits as splits_module
from jaxae.cli import factory, reporting, run_folder, sweep_output
from jaxae.cli import space as space_module
from jaxae.cli.data_splits import Splits
from jaxae.cli.options import (
    SweepOptions,
    TrainOptions,
    check_counts,
    checked,
    key_of,
)
from jaxae.cli.outputs import check_folder, check_inputs
from jaxae.cli.reporting import Interrupt, note
from jaxae.cli.space import Space
from jaxae.cli.sweep_output import Job
from jaxae.cli.train import INTERRUPTED
from jaxae.sweeps import Halving, Plan, Progress, Sweep
from jaxae.training import diagnostics


def sweep(options: SweepOptions) -> int:
    """`jaxae sweep SPACE.toml`: everything from the data to the pictures."""
    _check_table(options)
    space = space_module.read(Path(options.space))
    space_module.check_options(space, options)
    one = checked(space_module.as_train(options, space.first()))
    options = dataclasses.replace(options, generator=one.generator)
    out = _check_out(options)
    check_folder(out)
    if options.overwrite:
        check_inputs(out, data=options.data)
    with Interrupt() as interrupt:
        job = _job(options, space, one)
        _rehearse(job)
        interrupt.raise_if_requested()
        with run_folder.held(out):
            if options.overwrite:
                _clear(out)
            try:
                swept = _run(options, job, out, interrupt)
            except _Stopped as stopped:
                print(f"interrupted with {stopped}; the same command goes on.")
                print(f"run folder: {out}")
                return INTERRUPTED
            return sweep_output.conclude(options, job, out, swept)


# ---- before --------------------------------------------------------------------------


def _check_table(options: SweepOptions) -> None:
    if options.table not in run_folder.TABLES:
        raise ValueError(
            f"--table must be {' or '.join(run_folder.TABLES)}, got {options.table!r}."
        )
    if options.table == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ImportError(
            "--table parquet needs the package 'pyarrow', which is not installed; run: "
            "pip install 'jaxae[parquet]', or leave --table out."
        )


def _check_out(options: SweepOptions) -> Path:
    """The folder, if a sweep may be written there."""
    if not options.out:
        raise ValueError("--out must name a folder, got ''.")
    out = expanded(options.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, but {out} is a file.")
    names = (CONFIG_FILE, run_folder.TIMING_FILE, *sweep_output.FILES)
    for name in (name for name in names if (out / name).is_dir()):
        raise ValueError(
            f"--out {out} has a folder where the file {name} belongs; move it away, or "
            "choose another folder."
        )
    if run_folder.holds_run(out) and not options.overwrite:
        found = _other_run(out)
        if found is not None:
            raise ValueError(
                f"--out {out} {found}; choose another folder, or replace it with "
                "--overwrite."
            )
    return out


def _other_run(out: Path) -> str | None:
    """What a folder holds that is not known to be a sweep."""
    config = out / CONFIG_FILE
    try:
        is_sweep = "sweep" in json.loads(config.read_bytes())
    except (ValueError, TypeError, OSError) as error:
        # Its lanes say which sweep it is, too, and config.json is then written again.
        if (out / run_folder.LANES / LANES_FILE).exists():
            is_sweep = not (out / run_folder.PARAMS_FILE).exists()
        elif config.exists():
            return f"has a damaged {CONFIG_FILE} ({_checks.first_line(error)})"
        else:
            is_sweep = False
    return None if is_sweep else "holds a run already that is no sweep"


def _clear(out: Path) -> None:
    """Without the files of a sweep or run before."""
    run_folder.clear(out)
    for name in sweep_output.FILES:
        if name != run_folder.SPACE_FILE:  # it may be the one that was read
            (out / name).unlink(missing_ok=True)
    for name in (run_folder.LANES, run_folder.TOP):
        shutil.rmtree(out / name, ignore_errors=True)


def _job(options: SweepOptions, space: Space, one: TrainOptions) -> Job:
    splits = splits_module.load(one, jaxae.observations.get(one.observation))
    ae = factory.autoencoder(one, splits.train.shape[1])
    objective = factory.objective(one, ae)
    hparams = factory.hparams(one, len(splits.train))
    validation = splits.validation if len(splits.validation) else None
    metric, halving = _metrics(options, objective, splits, hparams)
    budget, devices = options.memory_budget, options.devices
    if devices is not None and not 1 <= devices <= jax.local_device_count():
        raise ValueError(
            f"--devices must be between 1 and {jax.local_device_count()}, the number "
            f"of this machine, got {devices}."
        )
    check_counts(options, ("lanes_at_once", "memory_budget", "top", "num_samples"))
    return Job(
        space=space,
        options=one,
        splits=splits,
        metric=metric,
        arguments={
            "objective": objective,
            "data": splits.train,
            "space": space_module.completed(space, one),
            "hparams": {n: v for n, v in hparams.items() if n not in space.names},
            "key": key_of(options),
            "config": factory.config(one),
            "validation": validation,
            "num_samples": options.num_samples,
            "sampler": options.sampler,
            "halving": halving,
            "lanes_at_once": options.lanes_at_once,
            "engine": options.engine,
            "devices": None if devices is None else jax.local_devices()[:devices],
            "memory_budget": None if budget is None else 2**20 * budget,
        },
    )


def _metrics(options: SweepOptions, objective, splits: Splits, hparams):
    """By which lanes are better, and how they are halved; both names are looked up."""
    # One row tells what there will be, before hours of training do.
    params = objective.ae.init(jax.random.key(0))
    seen = diagnostics.evaluate(objective, params, splits.train[:1], hparams)
    means = diagnostics.names_of_step(objective)
    each_epoch = [f"train/{name}" for name in means]
    if len(splits.validation):
        each_epoch += [f"validation/{name}" for name in seen]
    known = [*each_epoch, *(f"train/{n}" for n in seen if n not in means)]
    default = "validation/loss" if len(splits.validation) else "train/loss"
    metric = default if options.metric is None else options.metric
    _check_metric("--metric", metric, known)
    if options.halving_first is None:
        if options.halving_metric is not None or options.halving_factor != 2:
            raise ValueError(
                "--halving-factor and --halving-metric need --halving-first, the "
                "epochs after which the best lanes go on alone."
            )
        return metric, None
    by = options.halving_metric
    if by is None:
        by = metric if metric in each_epoch else default
    _check_metric("--halving-metric", by, each_epoch)
    try:
        halving = Halving(options.halving_first, options.halving_factor, by)
    except ValueError as error:
        raise ValueError(f"--halving-{error}") from None
    return metric, halving


def _check_metric(option: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise ValueError(f"{option} must be one of {', '.join(known)}, got {name!r}.")


class _Rehearsed(Exception):
    """All that the library refuses lies behind."""


def _rehearse(job: Job) -> None:
    """Let the library refuse what it will, before anything on disk changes."""

    def stop(plan: Plan) -> None:
        raise _Rehearsed

    try:
        # With lanes_at_once nothing is measured, and so nothing compiled.
        jaxae.sweep(**{**job.arguments, "lanes_at_once": 1}, on_plan=stop)
    except _Rehearsed:
        pass


# ---- while it goes -------------------------------------------------------------------


class _Stopped(Exception):
    """By Ctrl-C, with so many lanes done."""


def _run(options: SweepOptions, job: Job, out: Path, interrupt: Interrupt) -> Sweep:
    bar = reporting.progress(
        "model-steps",
        None,
        "lanes {task.fields[lanes]}",
        "{task.fields[rate]:,.0f} model-steps/s",
        lanes="",
        rate=0.0,
    )
    with bar as show, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        reporter = _Reporter(out, show, interrupt)

        def on_plan(plan: Plan) -> None:
            interrupt.raise_if_requested()
            print(plan, flush=True)
            run_folder.write_json(out / CONFIG_FILE, _describe(options, job))
            write_atomically(out / run_folder.SPACE_FILE, job.space.text)
            run_folder.append(out / run_folder.TIMING_FILE, {"plan": str(plan)})

        try:
            swept = jaxae.sweep(
                **job.arguments,
                out=out / run_folder.LANES,
                on_plan=on_plan,
                on_progress=reporter,
            )
        except ValueError as error:  # of the folder alone: the rest was rehearsed
            said = str(error).replace(f"out {out / run_folder.LANES}", f"--out {out}")
            raise ValueError(said) from None
        reporter.end()
    for warning in caught:
        note(str(warning.message))
    return swept


class _Reporter:
    """Shows how far a sweep is, and writes a line of it at most each second."""

    def __init__(self, out: Path, show, interrupt: Interrupt):
        self._out, self._show, self._interrupt = out, show, interrupt
        self._last: Progress | None = None
        self._written = 0.0  # when

    def __call__(self, progress: Progress) -> None:
        self._last = progress
        lanes = f"{progress.lanes_done}/{progress.num_lanes}"
        self._show(
            completed=progress.steps,
            total=progress.num_steps,
            lanes=lanes,
            rate=self._rate(),
        )
        if time.monotonic() - self._written >= 1:
            self.end()
        if self._interrupt.is_requested:
            raise _Stopped(f"{progress.lanes_done} of {progress.num_lanes} lanes done")

    def _rate(self) -> float:
        assert self._last is not None
        trained = self._last.steps - self._last.steps_kept
        return trained / max(self._last.seconds, 1e-9)

    def end(self) -> None:
        """Write where it stands."""
        if self._last is not None:
            row = {**self._last._asdict(), "model_steps_per_second": self._rate()}
            run_folder.append(self._out / run_folder.TIMING_FILE, row)
            self._written = time.monotonic()


def _describe(options: SweepOptions, job: Job) -> dict[str, Any]:
    """What `config.json` says: all that a repetition needs."""
    given = run_folder.to_options(options)
    shared = {name: float(v) for name, v in job.arguments["hparams"].items()}
    return {
        "sweep": given,
        "space": job.space.text.decode(),
        "hparams": shared,
        "metric": job.metric,
        "halving": repr(job.arguments["halving"]),
        "data": splits_module.describe(job.splits),
        **run_folder.environment(),
    }
