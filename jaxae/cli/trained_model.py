"""`jaxae encode`, `reconstruct`, `evaluate` and `plot`: uses of a trained model."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxae
from jaxae import _checks, data, metrics
from jaxae._files import atomic, expanded
from jaxae.autoencoder import Forward
from jaxae.autoencoder.files import CONFIG_FILE
from jaxae.cli import config_file, data_splits, reporting, run_folder
from jaxae.cli.options import (
    CommandError,
    EncodeOptions,
    EvaluateOptions,
    PlotOptions,
    ReconstructOptions,
    TrainOptions,
    build_evaluation,
    build_hparams,
    evaluation_hparams,
    validated,
)
from jaxae.cli.reporting import note
from jaxae.cli.run_folder import check_output
from jaxae.cli.signals import Interrupt
from jaxae.data import Scaling, load_scaling
from jaxae.data.scaling import SCALING_FILE

_BLOCK_ROWS = 4096


class Trained(NamedTuple):
    """The model of a run folder, and the options it was trained with."""

    path: Path
    options: TrainOptions
    ae: jaxae.Autoencoder
    params: Any
    scaling: Scaling

    @property
    def dtype(self) -> np.dtype:
        """That of arrays in files: NumPy has no bfloat16."""
        return np.dtype("float64" if self.options.dtype == "float64" else "float32")

    def load_rows(self, options: Any) -> Any:
        """The rows of DATA, selected and scaled as those of the run.

        `options` are those of a command that has `data`, `array` and `all_rows`.
        """
        return data_splits.load_rows(
            options.data,
            options.array,
            self.ae.input_dim,
            self.scaling,
            self.options,
            options.all_rows,
        )

    def load_splits(self) -> data_splits.Splits:
        """The run's own rows, if they have not changed."""
        # The scaling of this run's folder, also where it came from another run.
        options = dataclasses.replace(self.options, start_from=str(self.path))
        splits = data_splits.load(options, self.ae.observation)
        config = config_file.read_config(self.path / CONFIG_FILE)
        sha256 = config_file.data_entry(config, "sha256")
        if splits.info.sha256 != sha256:
            raise CommandError(
                f"{self.path} was trained on data whose SHA-256 is {sha256}, but that "
                f"of {splits.info.source} is {splits.info.sha256}; restore the "
                "original data, or give different data."
            )
        return splits


@contextlib.contextmanager
def load_trained(path: str) -> Iterator[Trained]:
    """The model of a run folder, in float64 where it was trained so."""
    folder = expanded(path)
    config = config_file.read_config(folder / CONFIG_FILE)
    options = validated(config_file.parse_options(config, folder / CONFIG_FILE))
    with jax.enable_x64(options.dtype == "float64"):
        ae, params = jaxae.load(folder)
        if not (folder / SCALING_FILE).is_file():
            raise CommandError(
                f"{path} lacks the {SCALING_FILE} of a run; give a run folder, or use "
                "the model in Python by jaxae.load."
            )
        scaling = load_scaling(folder)
        name = config_file.data_entry(config, "scaling")
        if name not in (None, scaling.name):
            raise CommandError(
                f"{path} holds the scaling {scaling.name!r}, but its {CONFIG_FILE} "
                f"says {name!r}; restore the {SCALING_FILE} of this run."
            )
        yield Trained(folder, options, ae, params, scaling)


# ---- encode and reconstruct ----------------------------------------------------------


def encode(options: EncodeOptions) -> int:
    """`jaxae encode RUN DATA -o z.npy`."""
    path = check_output(options.output, options.run, ".npy", options.data)
    with load_trained(options.run) as model:
        rows = model.load_rows(options)
        latents = outputs(model, options.data, rows, lambda forward: forward.z)
        _write(path, latents, (len(rows), model.ae.latent_dim), model.dtype)
    return 0


def reconstruct(options: ReconstructOptions) -> int:
    """`jaxae reconstruct RUN DATA -o x_hat.npy`, in the units of the data."""
    path = check_output(options.output, options.run, ".npy", options.data)
    with load_trained(options.run) as model:
        rows = model.load_rows(options)
        mean = jax.vmap(model.ae.observation.mean)
        means = outputs(model, options.data, rows, lambda forward: mean(forward.eta))
        blocks = (model.scaling.invert(block, model.dtype) for block in means)
        _write(path, blocks, (len(rows), model.ae.input_dim), model.dtype)
    return 0


def outputs(
    model: Trained, name: str, rows: Any, output: Callable[[Forward], Any]
) -> Iterator[np.ndarray]:
    """An output of the forward pass of the rows of a file, by blocks `[n, D]`.

    After the last block, a note is printed if all latents are constant on the rows.
    """
    ae = model.ae

    @jax.jit
    def evaluate_block(params, block):
        forward = jax.vmap(ae.forward, in_axes=(None, 0))(params, block)
        a, z = forward.a, forward.z
        is_saturated = False
        if ae.activation.slope is not None:
            is_saturated = metrics.is_saturated(ae, a, z).all()
        return output(forward), (z.min(axis=0), z.max(axis=0), is_saturated)

    statistics = []
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        values, of_block = jax.device_get(evaluate_block(model.params, block))
        statistics.append(of_block)
        yield values
    lows, highs, is_saturated = zip(*statistics, strict=True)
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    if not np.any(low) and not np.any(high):
        problem = "is 0"
    elif len(rows) > 1 and np.all(low == high):
        problem = "is the same"
    elif len(rows) > 1 and all(is_saturated):
        problem = "is saturated"
    else:
        return
    note(
        f"every latent {problem} on every row of {name}; check that its rows differ, "
        f"and that they have the units of the training data of {model.path}."
    )


def _write(
    path: Path, blocks: Iterator[np.ndarray], shape: tuple[int, int], dtype: np.dtype
) -> None:
    """Write an array of this shape, block by block; atomically."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    # Not through a memory map, which ends the process silently if the disk is full.
    with atomic(path) as file, Interrupt() as interrupt:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            interrupt.raise_if_requested()
            file.write(np.ascontiguousarray(block, dtype).data)
    print(f"wrote {path}: {dtype} {list(shape)}")


# ---- evaluate and plot ---------------------------------------------------------------


def evaluate(options: EvaluateOptions) -> int:
    """`jaxae evaluate RUN`, on the run's own splits or on other data."""
    with load_trained(options.run) as model:
        output = None
        if options.output is not None:
            source = model.options.data if options.data is None else options.data
            output = check_output(options.output, options.run, data=source)
        objective = build_evaluation(model.options, model.ae)
        if options.data is None:
            splits = model.load_splits()
            hparams = _hparams(model, splits.train)
            results = data_splits.evaluate(objective, model.params, splits, hparams)
        else:
            rows = model.load_rows(options)
            data.column_stats(rows, validate=model.ae.observation.validate)
            hparams = _hparams(model, rows)
            of_rows = data_splits.evaluate_rows(objective, model.params, rows, hparams)
            results = {"data": of_rows}
    if output is not None:
        run_folder.write_json(output, results)
    reporting.note_without_counts(objective)
    reporting.print_results(results)
    return 0


def _hparams(model: Trained, rows: Any) -> dict[str, Any]:
    return evaluation_hparams(build_hparams(model.options, len(rows)))


def plot(options: PlotOptions) -> int:
    """`jaxae plot RUN`: draws the pictures of a run again."""
    with load_trained(options.run) as model:
        history = read_history(model.path)
        shown = model.load_splits().shown
        reporting.draw(model.path, model.ae, model.params, history, *shown)
    reporting.print_folder(model.path)
    return 0


def read_history(run: Path) -> dict[str, np.ndarray]:
    """The metrics of a run, one an epoch, by name."""
    rows = run_folder.read_rows(run / run_folder.METRICS_FILE)
    names = [name for name in (rows[0] if rows else ()) if name != "epoch"]
    return {
        name: np.array([_number(run, row.get(name)) for row in rows]) for name in names
    }


def _number(run: Path, value: Any) -> float:
    if value is None:  # a number that was not finite
        return np.nan
    if type(value) not in (int, float) or abs(value) >= 1e300:
        raise CommandError(
            f"{run / run_folder.METRICS_FILE} must hold numbers or null by name, got "
            f"{_checks.describe(value)}; restore a copy, or resume the run with `jaxae "
            "train --resume`."
        )
    return float(value)
