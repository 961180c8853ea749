"""The data of a run: loaded, checked, split at random by the seed, scaled."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxae import _checks, data
from jaxae._files import expanded
from jaxae.cli.options import TrainOptions
from jaxae.cli.reporting import note
from jaxae.data import Dataset, Scaling, View
from jaxae.data.statistics import integer_advice
from jaxae.observations import Observation


class Splits(NamedTuple):
    """The rows of a run in the model's dtype: arrays, or Views of rows on disk."""

    train: Any
    validation: Any
    test: Any
    scaling: Scaling
    info: Dataset


def load(options: TrainOptions, observation: Observation) -> Splits:
    """The data of a run, checked; the scaling is fitted to the training rows only.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: for data that cannot be trained on, naming the row in the file.
    """
    dtype = _checks.floating_dtype(options.dtype)
    dataset = _load(options.data, options.array, options)
    seed, fractions = options.seed, [options.validation_fraction]
    if dataset.test is None:
        fractions.insert(0, options.test_fraction)
    train, *held_out = data.split(dataset.train, *fractions, seed=seed)
    test = held_out[0] if dataset.test is None else dataset.test
    scaling = _scaling(options, dataset, train, observation)
    # All rows of the file at once, so that an error names the row in the file.
    rows = scaled(dataset.train, scaling, np.float32)
    if data.is_rows(rows):
        data.column_stats(rows, validate=observation.validate)
    else:
        data.check_array(rows)
        observation.validate(rows)
    return Splits(
        train=scaled(train, scaling, dtype),
        validation=scaled(held_out[-1], scaling, dtype),
        test=scaled(test, scaling, dtype),
        scaling=scaling,
        info=dataset,
    )


def load_rows(
    path: str,
    array: str | None,
    num_columns: int,
    scaling: Scaling,
    options: TrainOptions,
) -> Any:
    """Load all rows of a user's file, with the scaling of the run.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: for another width, and for a value that is not finite.
    """
    if array is None and Path(path).suffix.lower() == ".npz":
        array = options.array
    rows = _load(path, array, options).train
    if rows.shape[1] != num_columns:
        raise ValueError(
            f"{path} must have {num_columns} columns for the model of this run, got "
            f"{rows.shape[1]}."
        )
    if scaling.clip:
        _check_finite(rows)
    rows = scaled(rows, scaling, _checks.floating_dtype(options.dtype))
    _check_finite(rows)
    return rows


def _load(path: str, array: str | None, options: TrainOptions) -> Dataset:
    """Load a dataset or file; print a note if each of its rows is a user's image."""
    dataset = data.load(
        path,
        root=options.data_root,
        array=array,
        memory_budget=2**20 * options.memory_budget,
    )
    if dataset.licence == "yours" and dataset.image_shape is not None:
        height, width = dataset.image_shape
        note(
            f"{path} holds [{len(dataset.train)}, {height}, {width}], and each row is "
            f"an image of {height} x {width}; if these are tokens [N, T, D], store "
            f"X.reshape(-1, {width})."
        )
    return dataset


def scaled(rows: Any, scaling: Scaling, dtype: Any) -> Any:
    """The scaled rows: an array for an array, a View for rows on disk."""
    if data.is_rows(rows):
        return View(rows, scaling=scaling, dtype=dtype)
    return scaling.apply(rows, dtype)


def _scaling(
    options: TrainOptions, dataset: Dataset, train: Any, observation: Observation
) -> Scaling:
    if options.start_from is not None:
        scaling = data.load_scaling(expanded(options.start_from))
        if scaling.clip:
            _check_finite(dataset.train)
        return scaling
    if options.scaling is not None:
        if options.divide_by is not None:
            raise ValueError(
                "--scaling and --divide-by cannot be combined; leave one of them out."
            )
        _checks.lookup("scaling", data.SCALINGS, options.scaling)
        _check_finite(dataset.train)
        # In float64, because the stored values may be integers.
        return data.fit_scaling(
            options.scaling, data.column_stats(View(train, dtype=np.float64))
        )
    divisor = dataset.scale if options.divide_by is None else options.divide_by
    if not (np.isfinite(divisor) and divisor > 0):
        raise ValueError(f"--divide-by must be a positive number, got {divisor}.")
    is_integer = dataset.train.dtype.kind in "biu"
    if is_integer and options.divide_by is None and divisor == 1:
        advice = integer_advice(dataset.train, "option", observation.validate)
        raise ValueError(
            f"--data {options.data} holds {dataset.train.dtype}, but training needs "
            f"floats; give {advice}."
        )
    return data.divide(divisor)


def _check_finite(rows: Any) -> None:
    """Raise for a value that is not finite; clipping would hide an infinity."""
    if rows.dtype.kind in "biu":
        return
    if data.is_rows(rows):
        data.column_stats(rows)
    else:
        data.check_array(rows)


def describe(splits: Splits) -> dict[str, Any]:
    """The entry "data" of `config.json`."""
    info = splits.info
    is_file = Path(info.source).is_file()
    return {
        "name": info.name,
        "source": str(Path(info.source).absolute()) if is_file else info.source,
        "licence": info.licence,
        "sha256": info.sha256,
        "num_train": len(splits.train),
        "num_validation": len(splits.validation),
        "num_test": len(splits.test),
        "scaling": splits.scaling.name,
    }
