"""What a sweep leaves: its table, its curves, the best lanes as runs, pictures."""

import io
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxae import plots
from jaxae._files import write_atomically
from jaxae.autoencoder import save
from jaxae.cli import data_splits as splits_module
from jaxae.cli import pictures, run_folder
from jaxae.cli import space as space_module
from jaxae.cli.data_splits import Splits
from jaxae.cli.options import SweepOptions, TrainOptions
from jaxae.cli.run_folder import (
    CURVES_FILE,
    MAP,
    PARALLEL,
    SPACE_FILE,
    TABLES,
    TOP,
)
from jaxae.cli.space import Space
from jaxae.cli.train import evaluate, print_results
from jaxae.data.scaling import save_scaling
from jaxae.sweeps import Sweep

PICTURES = (*(f"by_{name}.png" for name in space_module.NAMES), MAP, PARALLEL)
FILES = (SPACE_FILE, CURVES_FILE, *TABLES.values(), *PICTURES)
_SHOWN, _BESIDE = 5, ("validation/fvu",)  # lanes, at least; metrics beside the one


class Job(NamedTuple):
    """What is to be done, checked.

    Attributes:
      space: what varies.
      options: of a single run, with a value of each that varies.
      splits: the rows.
      metric: by which lanes are better.
      arguments: of `jaxae.sweep`.
    """

    space: Space
    options: TrainOptions
    splits: Splits
    metric: str
    arguments: dict[str, Any]


def conclude(options: SweepOptions, job: Job, out: Path, swept: Sweep) -> int:
    """Write all of it and say so; return the exit status."""
    table = swept.table
    _write_table(options, out, table)
    curves, arrays = io.BytesIO(), dict[str, Any](swept.metrics)
    np.savez(curves, **arrays)
    write_atomically(out / CURVES_FILE, curves.getvalue())
    drawn = _draw(out, table, job.metric)
    ranked = _ranked(swept, job.metric)
    shutil.rmtree(out / TOP, ignore_errors=True)
    results: dict[str, Any] = {}
    for rank, lane in enumerate(ranked[: options.top], 1):
        path = out / run_folder.BEST if rank == 1 else out / TOP / str(rank)
        found = _save_lane(options, job, swept, lane, path)
        results = results or found
    _print_lanes(table, ranked[: max(_SHOWN, options.top)], job.metric)
    counts = table["status"].value_counts()
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    print(f"{len(table)} lane{'s' * (len(table) > 1)}: {said}.")
    if not ranked:
        print(
            "jaxae: error: every lane diverged; sweep smaller learning rates, or look "
            "at stopped_at in the table.",
            file=sys.stderr,
        )
    else:
        print(f"best: lane {ranked[0]}, saved in {out / run_folder.BEST}:")
        print_results(results)
    if drawn:
        print(f"pictures: {', '.join(drawn)}")
    print(f"run folder: {out}")
    return 0 if ranked else 1


def _write_table(options: SweepOptions, out: Path, table) -> None:
    path = out / TABLES[options.table]
    for other in TABLES.values():  # of another call: it would not be kept up to date
        (out / other).unlink(missing_ok=True)
    if options.table == "csv":
        write_atomically(path, table.to_csv().encode())
    else:
        content = io.BytesIO()
        table.to_parquet(content)
        write_atomically(path, content.getvalue())


def _ranked(swept: Sweep, metric: str) -> list[int]:
    """Lanes by their metric, the best first; halved ones behind those that went on."""
    values = swept.final[metric]
    lanes = [
        lane
        for lane in range(len(swept))
        if swept.status[lane] != "diverged" and np.isfinite(values[lane])
    ]
    return sorted(lanes, key=lambda i: (swept.status[i] == "halved", values[i]))


def _save_lane(
    options: SweepOptions, job: Job, swept: Sweep, lane: int, path: Path
) -> dict[str, Any]:
    """One lane as a run folder, which `jaxae evaluate` and the like read."""
    trial, params = swept.trial(lane), swept.params(lane)
    values = space_module.values_of(swept.axes, lane, job.options)
    num_epochs = trial["config"].num_epochs
    one = space_module.as_train(options, values)
    objective, hparams = trial["objective"], trial["hparams"]
    metrics = {name: v[lane, :num_epochs] for name, v in swept.metrics.items()}
    metrics = {name: v for name, v in metrics.items() if np.isfinite(v).any()}
    given = run_folder.to_options(one) | {"epochs": num_epochs, "memory_budget": 1024}
    described = {
        "options": given,
        "hparams": hparams,
        "trial": {
            "lane": lane,
            "values": values,
            # The lane's key is fold_in(key(seed, impl=generator), fold_in).
            "key": {
                "seed": options.seed,
                "generator": options.generator,
                "fold_in": values.get("seed", 0),
            },
            job.metric: float(swept.final[job.metric][lane]),
        },
        "data": splits_module.describe(job.splits),
        **run_folder.environment(),
    }
    results = evaluate(objective, params, job.splits, hparams)
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save(unfinished, objective.ae, params, run=described)
    save_scaling(unfinished, job.splits.scaling)
    rows = [
        {"epoch": epoch + 1, **{name: float(v[epoch]) for name, v in metrics.items()}}
        for epoch in range(num_epochs)
    ]
    run_folder.write_rows(unfinished / run_folder.METRICS_FILE, rows)
    pictures.draw(unfinished, objective.ae, params, metrics, job.splits)
    run_folder.write_json(
        unfinished / run_folder.RESULTS_FILE, {"status": "sweep", **results}
    )
    shutil.rmtree(path, ignore_errors=True)
    unfinished.rename(path)
    return results


def _draw(out: Path, table, metric: str) -> list[str]:
    """Against each axis, over the first two, and over all."""
    columns = [name for name in table.columns if name in space_module.NAMES]
    axes = [n for n in columns if n != "seed" and table[n].nunique() > 1]
    drawn = [f"by_{name}.png" for name in axes]
    for name in axes:
        plots.sweep_curves(table, name, out / f"by_{name}.png", metric)
    if len(axes) > 1:
        plots.sweep_map(table, axes[0], axes[1], out / MAP, metric)
        plots.sweep_parallel(table, out / PARALLEL, metric)
        drawn += [MAP, PARALLEL]
    return drawn


def _print_lanes(table, lanes: list[int], metric: str) -> None:
    """The best lanes, best first."""
    from rich.console import Console
    from rich.table import Table

    axes = [n for n in table.columns if n in space_module.NAMES]
    axes = [n for n in axes if table[n].nunique() > 1] or axes
    shown = dict.fromkeys([metric, *(n for n in _BESIDE if n in table.columns)])
    found = Table("lane", title=f"best by {metric}", title_justify="left")
    for name in (*axes, *shown):
        # Spaces, for a narrow terminal to break the line at.
        heading = name.replace("/", " ").replace("_", " ")
        found.add_column(heading, justify="right", overflow="fold")
    for lane in lanes:
        values = [table.at[lane, name] for name in (*axes, *shown)]
        found.add_row(str(lane), *(_cell(value) for value in values))
    if lanes:
        console = Console()
        if not console.is_terminal:  # a file is as wide as need be
            console = Console(width=200)
        console.print(found)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
