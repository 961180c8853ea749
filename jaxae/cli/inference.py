"""What was trained, used: `jaxae encode`, `reconstruct`, `evaluate` and `plot`."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxae
from jaxae import _checks, data, metrics
from jaxae._files import atomic
from jaxae.autoencoder import Forward
from jaxae.autoencoder.files import CONFIG_FILE
from jaxae.cli import data_splits as splits_module
from jaxae.cli import factory, pictures, run_folder
from jaxae.cli.options import (
    EncodeOptions,
    EvaluateOptions,
    PlotOptions,
    ReconstructOptions,
    TrainOptions,
    checked,
)
from jaxae.cli.outputs import check_output
from jaxae.cli.reporting import Interrupt, note
from jaxae.cli.train import evaluate as evaluate_splits
from jaxae.cli.train import print_results
from jaxae.data import Scaling, load_scaling
from jaxae.data.scaling import SCALING_FILE
from jaxae.training import diagnostics

_BLOCK_ROWS = 4096


class Trained(NamedTuple):
    """What a run folder holds of the model."""

    path: Path
    options: TrainOptions
    ae: jaxae.Autoencoder
    params: Any
    scaling: Scaling


@contextlib.contextmanager
def trained(path: str) -> Iterator[Trained]:
    """The model of a run folder, in float64 where it was trained so.

    Raises:
      FileNotFoundError, ValueError: for a folder that holds no whole run.
    """
    config = Path(path) / CONFIG_FILE
    described = run_folder.read_config(config)
    options = checked(run_folder.as_options(TrainOptions, described["options"], config))
    with jax.enable_x64(options.dtype == "float64"):
        ae, params = jaxae.load(path)
        scaling = load_scaling(path)
        if (said := run_folder.of_data(described, "scaling")) not in (
            None,
            scaling.name,
        ):
            raise ValueError(
                f"{path} holds the scaling {scaling.name!r}, but its {CONFIG_FILE} "
                f"says {said!r}; restore the {SCALING_FILE} of this run."
            )
        yield Trained(Path(path), options, ae, params, scaling)


def encode(options: EncodeOptions) -> int:
    """`jaxae encode RUN DATA -o z.npy`."""
    path = check_output(options.output, options.run, ".npy", options.data)
    with trained(options.run) as model:
        rows, width = _rows(model, options.data, options.array), model.ae.latent_dim
        latents = _Latents(model, lambda forward: forward.z)
        _write(path, len(rows), width, _dtype(model), latents, rows)
        latents.remark(options.data, len(rows))
    return 0


def reconstruct(options: ReconstructOptions) -> int:
    """`jaxae reconstruct RUN DATA -o x_hat.npy`, in the units of the data."""
    path = check_output(options.output, options.run, ".npy", options.data)
    with trained(options.run) as model:
        rows, dtype = _rows(model, options.data, options.array), _dtype(model)
        mean = jax.vmap(model.ae.observation.mean)
        latents = _Latents(model, lambda forward: mean(forward.eta))

        def of_block(block):
            return model.scaling.invert(latents(block), dtype)

        _write(path, len(rows), model.ae.input_dim, dtype, of_block, rows)
        latents.remark(options.data, len(rows))
    return 0


class _Latents:
    """`output` of the forward pass of each block `[n, D]`.

    Also records the range and the saturation of the latents over all blocks.
    """

    def __init__(self, model: Trained, output: Callable[[Forward], Any]):
        self._model = model
        self._low, self._high, self._is_flat = np.inf, -np.inf, True

        @jax.jit
        def look(params, block):
            ae = model.ae
            forward = jax.vmap(ae.forward, in_axes=(None, 0))(params, block)
            a, z = forward.a, forward.z
            is_flat = False
            if ae.activation.slope is not None:
                is_flat = metrics.is_saturated(ae, a, z).all()
            return output(forward), z.min(axis=0), z.max(axis=0), is_flat

        self._look = look

    def __call__(self, block) -> np.ndarray:
        found, low, high, is_flat = jax.device_get(
            self._look(self._model.params, block)
        )
        self._low = np.minimum(self._low, low)
        self._high = np.maximum(self._high, high)
        self._is_flat = self._is_flat and bool(is_flat)
        return found

    def remark(self, name: str, num_rows: int) -> None:
        """Print a note if all latents are constant on the rows of that file."""
        if not np.any(self._low) and not np.any(self._high):
            found = "is 0"
        elif num_rows > 1 and np.all(self._low == self._high):
            found = "is the same"
        elif num_rows > 1 and self._is_flat:
            found = "is saturated"
        else:
            return
        note(
            f"every latent {found} on every row of {name}; check that its rows differ, "
            f"and that their units are those of the rows {self._model.path} was "
            "trained on."
        )


def evaluate(options: EvaluateOptions) -> int:
    """`jaxae evaluate RUN`, on the run's own splits or on other data."""
    output = None
    with trained(options.run) as model:
        if options.output is not None:
            source = model.options.data if options.data is None else options.data
            output = check_output(options.output, options.run, data=source)
        objective = factory.objective(model.options, model.ae)
        if options.data is None:
            splits = _splits(model)
            hparams = factory.hparams(model.options, len(splits.train))
            results = evaluate_splits(objective, model.params, splits, hparams)
        else:
            rows = _rows(model, options.data, options.array)
            hparams = factory.hparams(model.options, len(rows))
            data.column_stats(rows, validate=model.ae.observation.validate)
            found = diagnostics.evaluate(objective, model.params, rows, hparams)
            results = {"data": found}
    if output is not None:
        run_folder.write_json(output, results)
    print_results(results)
    return 0


def plot(options: PlotOptions) -> int:
    """`jaxae plot RUN`: the pictures of a run once more."""
    with trained(options.run) as model:
        rows = run_folder.read_rows(model.path / run_folder.METRICS_FILE)
        names = [name for name in (rows[0] if rows else ()) if name != "epoch"]
        history = {
            name: np.array([_number(model.path, row.get(name)) for row in rows])
            for name in names
        }
        pictures.draw(model.path, model.ae, model.params, history, _splits(model))
    print(f"pictures: {', '.join(pictures.drawn(model.path))}")
    print(f"run folder: {model.path}")
    return 0


def _number(run: Path, value: Any) -> float:
    if value is None:  # what was not finite
        return np.nan
    if type(value) not in (int, float) or abs(value) >= 1e300:
        raise ValueError(
            f"{run / run_folder.METRICS_FILE} must hold numbers or null by name, "
            f"got {_checks.describe(value)}; restore a copy, or go on with "
            "`jaxae train --resume`."
        )
    return float(value)


def _splits(model: Trained) -> splits_module.Splits:
    """The run's own rows, if they are still what they were."""
    # Scaled as this run's rows were, also where that was taken from another run.
    options = dataclasses.replace(model.options, start_from=str(model.path))
    splits = splits_module.load(options, model.ae.observation)
    config = run_folder.read_config(model.path / CONFIG_FILE)
    sha256 = run_folder.of_data(config, "sha256")
    if splits.info.sha256 != sha256:
        raise ValueError(
            f"{model.path} was trained on data whose SHA-256 is {sha256}, but that of "
            f"{splits.info.source} is {splits.info.sha256}; restore them, or give "
            "other data."
        )
    return splits


def _rows(model: Trained, path: str, array: str | None) -> Any:
    return splits_module.load_rows(
        path, array, model.ae.input_dim, model.scaling, model.options
    )


def _dtype(model: Trained) -> Any:
    """Of what is written: NumPy's files know no bfloat16."""
    return np.float64 if model.options.dtype == "float64" else np.float32


def _write(
    path: Path,
    num_rows: int,
    num_columns: int,
    dtype: Any,
    function: Callable[[Any], np.ndarray],
    rows: Any,
) -> None:
    """Write function(rows), of any size, by blocks, and whole or not at all."""
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": (num_rows, num_columns),
    }
    # No memory map: on a full disk that would end the process, without a word.
    with atomic(path) as file, Interrupt() as interrupt:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, num_rows, _BLOCK_ROWS):
            interrupt.raise_if_requested()
            block = function(rows[start : start + _BLOCK_ROWS])
            file.write(np.ascontiguousarray(block, dtype).data)
    print(f"wrote {path}: {np.dtype(dtype)} [{num_rows}, {num_columns}]")
