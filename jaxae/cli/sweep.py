"""`jaxae sweep`: from a space and data to a table, the best lanes and pictures."""

import dataclasses
import importlib.util
import io
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxae
from jaxae import _checks, optimizers, plots
from jaxae._checks import ArgumentError
from jaxae._files import expanded, write_atomically
from jaxae.autoencoder.files import (
    BEST,
    CONFIG_FILE,
    LANES_FILE,
    PARAMS_FILE,
    is_sweep,
)
from jaxae.cli import config_file, data_splits, reporting, run_folder
from jaxae.cli.data_splits import Splits
from jaxae.cli.options import (
    CommandError,
    SweepOptions,
    TrainOptions,
    build_autoencoder,
    build_config,
    build_evaluation,
    build_hparams,
    build_objective,
    build_optimizer,
    check_counts,
    evaluation_hparams,
    random_key,
    validated,
)
from jaxae.cli.run_folder import CURVES_FILE, MAP, PARALLEL, TABLES, TOP
from jaxae.cli.signals import INTERRUPTED, Interrupt
from jaxae.cli.sweep_file import (
    AXES,
    Space,
    as_train_options,
    check_options,
    read_space,
)
from jaxae.sweeps import Halving, Plan, Progress, Sweep
from jaxae.training import diagnostics

_MIN_PRINTED = 5  # lanes, if there are so many
_MORE_METRICS = ("validation/fvu",)  # printed beside the metric


class Job(NamedTuple):
    """A sweep that is ready to run."""

    options: SweepOptions
    space: Space
    single: TrainOptions  # of a single run, with the first value of each axis
    splits: Splits
    metric: str  # by which lanes are ranked
    arguments: dict[str, Any]  # of `jaxae.sweep`


def sweep(options: SweepOptions, arguments: Sequence[str]) -> int:
    """`jaxae sweep SPACE.toml`: 0, or 1 if no lane can be ranked; 130 if interrupted.

    `arguments` are those of the command line that became the options.
    """
    _checks.lookup("table", TABLES, options.table)
    if options.table == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise _checks.extra("--table parquet", "pyarrow", "parquet")
    space = read_space(expanded(options.space))
    check_options(space, options, arguments)
    single = validated(as_train_options(options, space.first()))
    options = dataclasses.replace(options, generator=single.generator)
    out = _check_out(options, space)
    with Interrupt() as interrupt:
        job = _prepare(options, space, single)
        interrupt.raise_if_requested()
        with run_folder.make_and_lock(out):
            if options.overwrite:
                run_folder.clear(out, run_folder.RUN, run_folder.SWEEP)
            try:
                result = _run(job, out, interrupt)
            except _Interrupted as interrupted:
                print(f"interrupted with {interrupted}; the same command resumes it.")
                print(f"run folder: {out}")
                return INTERRUPTED
            return _write(job, out, result)


# ---- checks --------------------------------------------------------------------------


def _check_out(options: SweepOptions, space: Space) -> Path:
    """The folder, if a sweep may be written there."""
    out = run_folder.check_folder(options.out, run_folder.SWEEP)
    if options.overwrite:
        run_folder.check_replaceable(out)
        run_folder.check_inputs(out, data=options.data)
    elif not (_holds_sweep(out, options, space) or _is_empty(out, options.space)):
        raise CommandError(
            f"--out {out} is not empty and does not hold this sweep; choose another "
            "folder, or replace the run or sweep in it with --overwrite."
        )
    return out


def _holds_sweep(out: Path, options: SweepOptions, space: Space) -> bool:
    """Whether the folder has the lanes of a sweep, or the `config.json` of this one."""
    # `jaxae.sweep` compares the fingerprint of the lanes; config.json may be missing.
    if (out / run_folder.LANES / LANES_FILE).exists():
        return is_sweep(out) or not (out / PARAMS_FILE).exists()
    if not is_sweep(out):
        return False
    config = run_folder.parse_json((out / CONFIG_FILE).read_bytes())
    is_same_space = config.get("space") == space.text.decode()
    return is_same_space and config["sweep"] == config_file.saved_options(options)


def _is_empty(out: Path, space: str) -> bool:
    """Whether the folder is missing, or holds at most hidden files and the space."""
    names = {path.name for path in out.glob("[!.]*")}
    if (out / run_folder.SPACE_FILE).exists():
        if (out / run_folder.SPACE_FILE).samefile(expanded(space)):
            names.discard(run_folder.SPACE_FILE)
    return not names


def _prepare(options: SweepOptions, space: Space, single: TrainOptions) -> Job:
    """The arguments of `jaxae.sweep`, checked by the library."""
    splits = data_splits.load(single, jaxae.observations.get(single.observation))
    ae = build_autoencoder(single, splits.train.shape[1])
    objective = build_objective(single, ae)
    hparams = build_hparams(single, len(splits.train))
    metric, halving = _metrics(options, objective, splits, hparams)
    budget, devices = options.memory_budget, options.devices
    if devices is not None and not 1 <= devices <= jax.local_device_count():
        raise CommandError(
            f"--devices must be between 1 and {jax.local_device_count()}, the number "
            f"of local devices, got {devices}."
        )
    check_counts(options)
    arguments = {
        "objective": objective,
        "data": splits.train,
        "space": space.axes(single),
        "hparams": {n: v for n, v in hparams.items() if n not in space.columns},
        "key": random_key(options),
        "config": build_config(single, ae),
        "validation": splits.validation_or_none,
        "num_samples": options.num_samples,
        "sampler": options.sampler,
        "halving": halving,
        "lanes_at_once": options.lanes_at_once,
        "engine": options.engine,
        "devices": None if devices is None else jax.local_devices()[:devices],
        "memory_budget": None if budget is None else 2**20 * budget,
    }
    # Checks all arguments before the disk changes. For lanes in sequence nothing is
    # measured.
    task = jaxae.sweeps.prepare(**{**arguments, "lanes_at_once": 1})
    jaxae.sweeps.plan(task)
    return Job(options, space, single, splits, metric, arguments)


def _metrics(options: SweepOptions, objective, splits: Splits, hparams):
    """The metric that ranks lanes, and the halving; their names are checked."""
    # Evaluate one row, to learn the names of the metrics before training.
    params = objective.ae.init(jax.random.key(0))
    row = splits.train[:1]
    at_end = data_splits.evaluate_rows(objective, params, row, hparams)
    each_epoch = [f"train/{name}" for name in diagnostics.names_of_step(objective)]
    default = "train/loss"
    if len(splits.validation):
        each_epoch += [f"validation/{name}" for name in at_end]
        default = "validation/loss"
    known = dict.fromkeys([*each_epoch, *(f"train/{name}" for name in at_end)])
    metric = default if options.metric is None else options.metric
    _checks.lookup("metric", known, metric)
    halving_metric = options.halving_metric
    if options.halving_first is None:
        if halving_metric is not None or options.halving_factor != 2:
            raise CommandError(
                "--halving-factor and --halving-metric need --halving-first, the "
                "epochs after which only the best lanes are continued."
            )
        return metric, None
    if halving_metric is None:
        halving_metric = metric if metric in each_epoch else default
    _checks.lookup("halving_metric", dict.fromkeys(each_epoch), halving_metric)
    first, factor = options.halving_first, options.halving_factor
    return metric, Halving(first, factor, halving_metric)


# ---- training ------------------------------------------------------------------------


class _Interrupted(Exception):
    """A signal stopped the sweep; the message counts the lanes that are done."""


def _run(job: Job, out: Path, interrupt: Interrupt) -> Sweep:
    bar = reporting.progress(
        "model-steps",
        None,
        "lanes {task.fields[lanes]}",
        "{task.fields[rate]:,.0f} model-steps/s",
        lanes="",
        rate=0.0,
    )
    lanes = out / run_folder.LANES

    def on_plan(plan: Plan) -> None:
        interrupt.raise_if_requested()
        print(plan, flush=True)
        run_folder.write_json(out / CONFIG_FILE, _describe(job))
        write_atomically(out / run_folder.SPACE_FILE, job.space.text)
        run_folder.append(out / run_folder.TIMING_FILE, {"plan": str(plan)})

    with bar as show, reporting.warnings_as_notes():
        reporter = SweepReporter(out, show, interrupt)
        try:
            result = jaxae.sweep(
                **job.arguments, out=lanes, on_plan=on_plan, on_progress=reporter
            )
        except ArgumentError as error:
            if error.argument == f"out {lanes}":
                error.argument = f"--out {out}"
                error.advice = (
                    "sweep the same, replace it with --overwrite, or choose another "
                    "folder"
                )
            raise
        reporter.write()
    return result


class SweepReporter:
    """Shows how far a sweep is, and writes it to a file at most once a second."""

    def __init__(self, out: Path, show, interrupt: Interrupt):
        self._timing = out / run_folder.TIMING_FILE
        self._show, self._interrupt = show, interrupt
        self._row: dict[str, Any] = {}
        self._written_at = 0.0

    def __call__(self, progress: Progress) -> None:
        """Show the progress; raise if a signal has come."""
        rate = (progress.steps - progress.steps_kept) / max(progress.seconds, 1e-9)
        self._row = {**progress._asdict(), "model_steps_per_second": rate}
        lanes_done, num_lanes = progress.lanes_done, progress.num_lanes
        self._show(
            completed=progress.steps,
            total=progress.num_steps,
            lanes=f"{lanes_done}/{num_lanes}",
            rate=rate,
        )
        if time.monotonic() - self._written_at >= 1:
            self.write()
        if self._interrupt.is_requested:
            raise _Interrupted(f"{lanes_done} of {num_lanes} lanes done")

    def write(self) -> None:
        """Write the latest progress."""
        if self._row:
            run_folder.append(self._timing, self._row)
            self._written_at = time.monotonic()


def _describe(job: Job) -> dict[str, Any]:
    """The entries of `config.json`: all that is needed to repeat the sweep."""
    hparams = job.arguments["hparams"]
    return {
        "sweep": config_file.saved_options(job.options),
        "space": job.space.text.decode(),
        "hparams": {name: float(value) for name, value in hparams.items()},
        "metric": job.metric,
        "halving": repr(job.arguments["halving"]),
        "data": data_splits.describe(job.splits),
        **config_file.environment(),
    }


# ---- results -------------------------------------------------------------------------


def _write(job: Job, out: Path, sweep: Sweep) -> int:
    """Write and print the results of a sweep; return the exit status."""
    table, num_top = sweep.table, job.options.top
    _write_table(out, table, job.options.table)
    content, arrays = io.BytesIO(), dict[str, Any](sweep.metrics)
    np.savez(content, **arrays)
    write_atomically(out / CURVES_FILE, content.getvalue())
    pictures = _draw(out, table, job.metric)
    ranked = _ranked(sweep, job.metric)
    shutil.rmtree(out / TOP, ignore_errors=True)
    results = []
    for rank, lane in enumerate(ranked[:num_top], 1):
        path = out / BEST if rank == 1 else out / TOP / str(rank)
        results.append(_save_lane(job, sweep, lane, path))
    _print_lanes(table, ranked[: max(_MIN_PRINTED, num_top)], job.metric)
    counts = table["status"].value_counts()
    statuses = ", ".join(f"{count} {status}" for status, count in counts.items())
    print(f"{len(table)} lane{'s' * (len(table) > 1)}: {statuses}.")
    if not ranked:
        shutil.rmtree(out / BEST, ignore_errors=True)  # of another metric
        print(f"jaxae: error: {_why_unranked(sweep, job.metric)}", file=sys.stderr)
    else:
        print(f"best: lane {ranked[0]}, saved in {out / BEST}:")
        reporting.note_without_counts(job.arguments["objective"])
        reporting.print_results(results[0])
    if pictures:
        print(f"pictures: {', '.join(pictures)}")
    print(f"run folder: {out}")
    return 0 if ranked else 1


def _write_table(out: Path, table, kind: str) -> None:
    path = out / TABLES[kind]
    for other in TABLES.values():  # the table of an earlier call is out of date
        (out / other).unlink(missing_ok=True)
    if kind == "csv":
        write_atomically(path, table.to_csv().encode())
    else:
        content = io.BytesIO()
        table.to_parquet(content)
        write_atomically(path, content.getvalue())


def _ranked(sweep: Sweep, metric: str) -> list[int]:
    """Lanes by their metric, the best first; halved lanes after all others."""
    values = sweep.final[metric]
    lanes = [
        lane
        for lane in range(len(sweep))
        if sweep.status[lane] != "diverged" and np.isfinite(values[lane])
    ]
    return sorted(lanes, key=lambda i: (sweep.status[i] == "halved", values[i]))


def _why_unranked(sweep: Sweep, metric: str) -> str:
    if all(status == "diverged" for status in sweep.status):
        return (
            "every lane diverged; sweep smaller learning rates, or look at stopped_at "
            "in the table."
        )
    return (
        f"{metric} is not finite in any lane that finished; rank the lanes by another "
        "--metric."
    )


def _save_lane(job: Job, sweep: Sweep, lane: int, path: Path) -> dict[str, Any]:
    """Write one lane as a run folder, for `jaxae evaluate` and so on; its results."""
    trial, (ae, params) = sweep.trial(lane), sweep.model(lane)
    num_epochs = trial["config"].num_epochs
    metrics = {name: v[lane, :num_epochs] for name, v in sweep.metrics.items()}
    metrics = {name: v for name, v in metrics.items() if np.isfinite(v).any()}
    description = _describe_lane(job, sweep, lane)
    objective = build_evaluation(_lane_options(job, sweep, lane), ae)
    hparams = evaluation_hparams(trial["hparams"])
    results = data_splits.evaluate(objective, params, job.splits, hparams)
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    run_folder.save_model(unfinished, ae, params, job.splits.scaling, description)
    rows = [
        {"epoch": epoch + 1, **{name: float(v[epoch]) for name, v in metrics.items()}}
        for epoch in range(num_epochs)
    ]
    run_folder.write_rows(unfinished / run_folder.METRICS_FILE, rows)
    reporting.draw(unfinished, ae, params, metrics, *job.splits.shown)
    run_folder.write_json(
        unfinished / run_folder.RESULTS_FILE, {"status": "sweep", **results}
    )
    shutil.rmtree(path, ignore_errors=True)
    unfinished.rename(path)
    return results


def _describe_lane(job: Job, sweep: Sweep, lane: int) -> dict[str, Any]:
    """The entries of a lane's `config.json`, besides the model."""
    options = job.options
    trial, values = sweep.trial(lane), _values_of(job, sweep, lane)
    # The lane's key is fold_in(key(seed, impl=generator), fold_in).
    key = {"seed": options.seed, "generator": options.generator}
    return {
        "options": config_file.saved_options(_lane_options(job, sweep, lane)),
        "hparams": trial["hparams"],
        "gradient_used": trial["config"].gradient_of(trial["objective"]),
        "trial": {
            "lane": lane,
            "values": values,
            "key": {**key, "fold_in": values.get("seed", 0)},
            job.metric: float(sweep.final[job.metric][lane]),
        },
        "data": data_splits.describe(job.splits),
        **config_file.environment(),
    }


def _lane_options(job: Job, sweep: Sweep, lane: int) -> TrainOptions:
    """The options of `train` for one lane."""
    trial, values = sweep.trial(lane), _values_of(job, sweep, lane)
    changes: dict[str, Any] = {"memory_budget": TrainOptions().memory_budget}
    changes["epochs"] = trial["config"].num_epochs
    if (length := trial["hparams"].get("schedule_steps")) is not None:
        changes["schedule_steps"] = int(length)  # of all epochs, also of a halved lane
    return dataclasses.replace(as_train_options(job.options, values), **changes)


def _values_of(job: Job, sweep: Sweep, lane: int) -> dict[str, Any]:
    """The value of each axis in a lane, as the file has it."""
    values = {name: column[lane].item() for name, column in sweep.axes.items()}
    if "optimizer" in values:
        names = {
            optimizers.name_of(build_optimizer(job.single, name)): name
            for name in optimizers.CATALOGUE
        }
        values["optimizer"] = names[values["optimizer"]]
    if values.get("corruption") == "None":
        values["corruption"] = None
    return values


def _draw(out: Path, table, metric: str) -> list[str]:
    """Plot the metric against each axis, as a map of the first two, and over all."""
    columns = [name for name in table.columns if name in AXES]
    axes = [n for n in columns if n != "seed" and table[n].nunique() > 1]
    pictures = [f"by_{name}.png" for name in axes]
    for name, picture in zip(axes, pictures, strict=True):
        plots.sweep_curves(table, name, out / picture, metric)
    if len(axes) > 1:
        plots.sweep_map(table, axes[0], axes[1], out / MAP, metric)
        plots.sweep_parallel(table, out / PARALLEL, metric)
        pictures += [MAP, PARALLEL]
    return pictures


def _print_lanes(table, lanes: list[int], metric: str) -> None:
    """Print a table of the best lanes."""
    if not lanes:
        return
    axes = [n for n in table.columns if n in AXES]
    axes = [n for n in axes if table[n].nunique() > 1] or axes
    more = (name for name in _MORE_METRICS if name in table.columns)
    names = (*axes, *dict.fromkeys([metric, *more]))
    # A narrow terminal can break the line at spaces only.
    headings = [name.replace("/", " ").replace("_", " ") for name in names]
    rows = [[str(lane), *(table.at[lane, name] for name in names)] for lane in lanes]
    reporting.print_table(["lane", *headings], rows, title=f"best by {metric}")
