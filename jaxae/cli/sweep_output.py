"""The files of a sweep: its table, its curves, its best lanes as runs, pictures."""

import dataclasses
import io
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxae import optimizers, plots
from jaxae._files import write_atomically
from jaxae.autoencoder.files import BEST
from jaxae.cli import config_file, data_splits, reporting, run_folder
from jaxae.cli.data_splits import Splits
from jaxae.cli.options import SweepOptions, TrainOptions, build_optimizer
from jaxae.cli.run_folder import CURVES_FILE, MAP, PARALLEL, TABLES, TOP
from jaxae.cli.space import AXES, Space, as_train_options
from jaxae.sweeps import Sweep

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


def write(job: Job, out: Path, sweep: Sweep) -> int:
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
        print(
            "jaxae: error: every lane diverged; sweep smaller learning rates, or look "
            "at stopped_at in the table.",
            file=sys.stderr,
        )
    else:
        print(f"best: lane {ranked[0]}, saved in {out / BEST}:")
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


def _save_lane(job: Job, sweep: Sweep, lane: int, path: Path) -> dict[str, Any]:
    """Write one lane as a run folder, for `jaxae evaluate` and so on; its results."""
    trial, params = sweep.trial(lane), sweep.params(lane)
    objective, hparams = trial["objective"], trial["hparams"]
    num_epochs = trial["config"].num_epochs
    metrics = {name: v[lane, :num_epochs] for name, v in sweep.metrics.items()}
    metrics = {name: v for name, v in metrics.items() if np.isfinite(v).any()}
    results = data_splits.evaluate(objective, params, job.splits, hparams)
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    description = _describe_lane(job, sweep, lane)
    run_folder.save_model(
        unfinished, objective.ae, params, job.splits.scaling, description
    )
    rows = [
        {"epoch": epoch + 1, **{name: float(v[epoch]) for name, v in metrics.items()}}
        for epoch in range(num_epochs)
    ]
    run_folder.write_rows(unfinished / run_folder.METRICS_FILE, rows)
    reporting.draw(unfinished, objective.ae, params, metrics, *job.splits.shown)
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
    changes: dict[str, Any] = {"memory_budget": TrainOptions().memory_budget}
    changes["epochs"] = trial["config"].num_epochs
    if (length := trial["hparams"].get("schedule_steps")) is not None:
        changes["schedule_steps"] = int(length)  # of all epochs, also of a halved lane
    single = dataclasses.replace(as_train_options(options, values), **changes)
    # The lane's key is fold_in(key(seed, impl=generator), fold_in).
    key = {"seed": options.seed, "generator": options.generator}
    return {
        "options": config_file.to_options(single),
        "hparams": trial["hparams"],
        "trial": {
            "lane": lane,
            "values": values,
            "key": {**key, "fold_in": values.get("seed", 0)},
            job.metric: float(sweep.final[job.metric][lane]),
        },
        "data": data_splits.describe(job.splits),
        **config_file.environment(),
    }


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
