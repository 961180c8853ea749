"""What was trained, used: `jaxae encode`, `reconstruct`, `evaluate` and `plot`."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxae
from jaxae import data
from jaxae.autoencoder.files import CONFIG_FILE
from jaxae.cli import building, folder, pictures
from jaxae.cli import splits as splits_module
from jaxae.cli.options import (
    EncodeOptions,
    EvaluateOptions,
    PlotOptions,
    ReconstructOptions,
    TrainOptions,
)
from jaxae.cli.train import evaluate as evaluate_splits
from jaxae.cli.train import print_results
from jaxae.data import Scaling, load_scaling
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
    options = folder.as_options(
        TrainOptions, folder.read_config(config)["options"], config
    )
    with jax.enable_x64(options.dtype == "float64"):
        ae, params = jaxae.load(path)
        yield Trained(Path(path), options, ae, params, load_scaling(path))


def encode(options: EncodeOptions) -> int:
    """`jaxae encode RUN DATA -o z.npy`."""
    with trained(options.run) as model:
        rows = _rows(model, options.data)
        function = jax.jit(jax.vmap(model.ae.encode, in_axes=(None, 0)))
        return _write(
            options.output,
            len(rows),
            model.ae.latent_dim,
            _dtype(model),
            lambda block: np.asarray(function(model.params, block)),
            rows,
        )


def reconstruct(options: ReconstructOptions) -> int:
    """`jaxae reconstruct RUN DATA -o x_hat.npy`, in the units of the data."""
    with trained(options.run) as model:
        rows, dtype = _rows(model, options.data), _dtype(model)
        function = jax.jit(jax.vmap(model.ae.reconstruct, in_axes=(None, 0)))

        def of_block(block):
            return model.scaling.invert(function(model.params, block), dtype)

        width = model.ae.input_dim
        return _write(options.output, len(rows), width, dtype, of_block, rows)


def evaluate(options: EvaluateOptions) -> int:
    """`jaxae evaluate RUN`, on the run's own splits or on other data."""
    with trained(options.run) as model:
        objective = building.objective(model.options, model.ae)
        if options.data is None:
            splits = _splits(model)
            hparams = building.hparams(model.options, len(splits.train))
            results = evaluate_splits(objective, model.params, splits, hparams)
        else:
            rows = _rows(model, options.data)
            hparams = building.hparams(model.options, len(rows))
            data.survey(rows, validate=model.ae.observation.validate)
            found = diagnostics.evaluate(objective, model.params, rows, hparams)
            results = {"data": found}
    if options.output is not None:
        folder.write_json(Path(options.output), results)
    print_results(results)
    return 0


def plot(options: PlotOptions) -> int:
    """`jaxae plot RUN`: the pictures of a run once more."""
    with trained(options.run) as model:
        rows = folder.read_rows(model.path / folder.METRICS_FILE)
        names = [name for name in (rows[0] if rows else ()) if name != "epoch"]
        metrics = {
            name: np.array([_number(row.get(name)) for row in rows]) for name in names
        }
        pictures.draw(model.path, model.ae, model.params, metrics, _splits(model))
    print(f"pictures: {', '.join(pictures.drawn(model.path))}")
    print(f"run folder: {model.path}")
    return 0


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)  # null is what was not finite


def _splits(model: Trained) -> splits_module.Splits:
    """The run's own rows, if they are still what they were."""
    splits = splits_module.load(model.options, model.ae.observation)
    expected = folder.read_config(model.path / CONFIG_FILE).get("data")
    sha256 = expected.get("sha256") if isinstance(expected, dict) else None
    if splits.info.sha256 != sha256:
        raise ValueError(
            f"{model.path} was trained on data whose SHA-256 is {sha256}, but that of "
            f"{splits.info.source} is {splits.info.sha256}; restore them, or give "
            "other data."
        )
    return splits._replace(scaling=model.scaling)


def _rows(model: Trained, path: str) -> Any:
    rows = splits_module.load_rows(path, model.scaling, model.options)
    if rows.shape[1] != model.ae.input_dim:
        raise ValueError(
            f"{path} must have {model.ae.input_dim} columns for the model of "
            f"{model.path}, got {rows.shape[1]}."
        )
    return rows


def _dtype(model: Trained) -> Any:
    """Of what is written: NumPy's files know no bfloat16."""
    return np.float64 if model.options.dtype == "float64" else np.float32


def _write(
    output: str,
    num_rows: int,
    num_columns: int,
    dtype: Any,
    function: Callable[[Any], np.ndarray],
    rows: Any,
) -> int:
    """Write function(rows), of any size, by blocks, and whole or not at all."""
    path = Path(output)
    if path.suffix != ".npy":
        raise ValueError(f"--output must name an .npy file, got {output}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--output {output}: there is no folder {path.parent}.")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        shape = (num_rows, num_columns)
        out = np.lib.format.open_memmap(temporary, "w+", np.dtype(dtype), shape)
        for start in range(0, num_rows, _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            out[block] = function(rows[block])
        out.flush()
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    print(f"wrote {path}: {np.dtype(dtype)} [{num_rows}, {num_columns}]")
    return 0
