"""`jaxae report`: one HTML page of a run or a sweep."""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import jaxae
from jaxae import _checks
from jaxae._files import expanded
from jaxae.autoencoder.files import BEST, CONFIG_FILE, is_sweep
from jaxae.cli import config_file, run_folder
from jaxae.cli.options import (
    CommandError,
    ReportOptions,
    SweepOptions,
    TrainOptions,
    option_name,
)
from jaxae.cli.run_folder import CURVES_FILE, PAGE, SPACE_FILE, TABLES
from jaxae.cli.trained_model import Trained, load_trained, read_history


def report(options: ReportOptions) -> int:
    """`jaxae report RUN_OR_SWEEP`."""
    folder = expanded(options.run)
    path = _output(options, folder)
    write = _write_sweep if is_sweep(folder) else _write_run
    write(options, folder, path)
    print(f"wrote {path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


def _output(options: ReportOptions, folder: Path) -> Path:
    """The file to write, which may be the page of the same folder."""
    page = folder / PAGE
    if options.output is None or expanded(options.output) == page:
        return page
    return run_folder.check_output(options.output, options.run, ".html", options.data)


# ---- a run ---------------------------------------------------------------------------


def _write_run(options: ReportOptions, folder: Path, path: Path) -> None:
    latents = None if options.latents is None else _parse_latents(options.latents)
    with load_trained(options.run) as model:
        tokens = None
        if options.tokens is not None:
            tokens = jaxae.tokens.load(options.tokens, options.vocabulary)
        elif options.vocabulary is not None:
            raise CommandError("--vocabulary needs --tokens, the ids that it explains.")
        held_out = image_shape = None
        if options.data is None:
            splits = model.load_splits()
            X, (held_out, image_shape) = splits.all_rows, splits.shown
        else:
            X = model.load_rows(options)
        config = config_file.read_config(folder / CONFIG_FILE)
        jaxae.report.write_run(
            model.ae,
            model.params,
            X,
            path,
            metrics=read_history(folder),
            results=_results(folder),
            held_out=held_out,
            tokens=tokens,
            image_shape=image_shape,
            latents=latents,
            max_latents=options.max_latents,
            context=options.context,
            max_rows=options.max_rows,
            title=f"Run {folder.resolve().name}",
            about=_about_run(model, config, folder, options),
            command=_train_command(model, config),
        )


def _train_command(model: Trained, config: dict[str, Any]) -> str | None:
    """The command that repeats a run; None for a lane, whose key no option sets."""
    if "trial" in config:
        return None
    return _command(["jaxae", "train"], model.options, TrainOptions())


def _parse_latents(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise CommandError(
            f"--latents must be integers such as 3,17,40, got {text!r}."
        ) from None


def _results(folder: Path) -> dict[str, Any]:
    """The metrics of each split, from `results.json`; empty where there is none."""
    results = _read_json(folder / run_folder.RESULTS_FILE)
    return {name: row for name, row in results.items() if isinstance(row, dict)}


def _read_json(path: Path) -> dict[str, Any]:
    content = run_folder.parse_json(path.read_bytes()) if path.is_file() else None
    return content if isinstance(content, dict) else {}


def _about_run(
    model: Trained, config: dict[str, Any], folder: Path, options: ReportOptions
) -> dict[str, Any]:
    ae, chosen = model.ae, model.options
    results = _read_json(folder / run_folder.RESULTS_FILE)
    weights = "tied" if ae.tied else "untied"
    facts = {
        "model": f"{ae.input_dim} inputs, {ae.latent_dim} latents, {weights} weights, "
        f"activation {chosen.activation}, observation {chosen.observation}",
        **_about_data(config),
        "latents measured on": options.data or "the data of the run",
        "training": f"{chosen.epochs} epochs in batches of {chosen.batch_size}, "
        f"{chosen.optimizer} with learning rate {chosen.learning_rate:g}, "
        f"seed {chosen.seed}",
        "status": results.get("status", "unfinished"),
    }
    if "best_epoch" in results:
        facts["best epoch"] = f"{results['best_epoch']}, by {chosen.monitor}"
    if isinstance(trial := config.get("trial"), dict):
        values = trial.get("values")
        axes = values.items() if isinstance(values, dict) else ()
        facts["lane"] = ", ".join(
            [str(trial.get("lane")), *(f"{n} {v}" for n, v in axes)]
        )
    return facts | _versions(config)


def _about_data(config: dict[str, Any]) -> dict[str, str]:
    data = config.get("data")
    if not isinstance(data, dict):
        return {}
    splits = [f"{data.get(f'num_{s}')} {s}" for s in ("train", "validation", "test")]
    scaling = f"scaling {data.get('scaling')}"
    return {"data": f"{data.get('name')}: {', '.join(splits)} rows, {scaling}"}


def _versions(config: dict[str, Any]) -> dict[str, str]:
    versions = config.get("versions")
    if not isinstance(versions, dict):
        return {}
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    return {"versions": f"{names}; {config.get('device')}"}


def _command(words: list[str], options: Any, defaults: Any) -> str:
    """The command of these words, and of the options that are not at their defaults."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value == getattr(defaults, field.name) or field.name in _NOT_SHOWN:
            continue
        words.append(option_name(field.name))
        if value is not True:
            words.append(str(value))
    return shlex.join(words)


_NOT_SHOWN = ("config", "out", "overwrite", "resume", "generator", "space")


# ---- a sweep -------------------------------------------------------------------------


def _write_sweep(options: ReportOptions, folder: Path, path: Path) -> None:
    given = ("data", "array", "tokens", "vocabulary", "latents")
    for name in given:
        if getattr(options, name) is not None:
            what = "DATA" if name == "data" else option_name(name)
            raise CommandError(
                f"{what} is for the report of a run, and {folder} is a sweep; give the "
                f"folder of its best lane, {folder / BEST}."
            )
    config = _read_json(folder / CONFIG_FILE)
    curves_file = folder / CURVES_FILE
    curves: Mapping[str, Any] = {}
    if curves_file.is_file():
        with _checks.reading(curves_file, "run the same `jaxae sweep` again"):
            with np.load(curves_file, allow_pickle=False) as arrays:
                curves = {name: arrays[name] for name in arrays.files}
    about = {**_about_data(config), "space": config.get("space"), **_versions(config)}
    jaxae.report.write_sweep(
        _read_table(folder),
        path,
        metric=config.get("metric"),
        curves=curves,
        title=f"Sweep {folder.resolve().name}",
        about={name: fact for name, fact in about.items() if fact is not None},
        command=_sweep_command(config),
    )


def _read_table(folder: Path) -> Any:
    """The table of a sweep, of either format."""
    try:
        import pandas as pd
    except ImportError as error:
        raise _checks.extra("The report of a sweep", "pandas", "sweep") from error
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet}
    for kind, name in TABLES.items():
        if (folder / name).is_file():
            with _checks.reading(folder / name, "run the same `jaxae sweep` again"):
                return read[kind](folder / name)
    raise FileNotFoundError(
        f"{folder} has no table of its lanes yet: run the same `jaxae sweep` to finish "
        "it."
    )


def _sweep_command(config: dict[str, Any]) -> str | None:
    saved = config.get("sweep")
    names = {field.name for field in dataclasses.fields(SweepOptions)}
    if not isinstance(saved, dict) or not saved.keys() <= names:
        return None
    options = SweepOptions(**{"space": SPACE_FILE, **saved})
    words = ["jaxae", "sweep", str(options.space)]
    return _command(words, options, SweepOptions(space=options.space))
