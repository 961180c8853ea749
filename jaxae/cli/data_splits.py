"""The rows of a run: loaded, checked, split by seed, scaled."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxae import _checks, data
from jaxae.cli.options import TrainOptions
from jaxae.cli.reporting import note
from jaxae.data import Dataset, Scaling, View
from jaxae.data.statistics import integer_advice
from jaxae.observations import Observation

PARTS = ("train", "validation", "test")


class Splits(NamedTuple):
    """The rows of a run in the model's dtype: arrays, or Views of what is on disk."""

    train: Any
    validation: Any
    test: Any
    scaling: Scaling
    info: Dataset


def load(options: TrainOptions, observation: Observation) -> Splits:
    """The data of a run, checked; the scaling is fitted to the training rows only.

    Raises:
      ValueError, FileNotFoundError: for data that cannot be trained on, by their row.
    """
    dtype = _checks.floating_dtype(options.dtype)
    found = _stored(options.data, options.array, options)
    train, validation, test = _parts(found, options)
    scaling = _scaling(options, found, train, observation)
    _check(found.train, scaling, observation)
    return Splits(
        train=scaled(train, scaling, dtype),
        validation=scaled(validation, scaling, dtype),
        test=scaled(test, scaling, dtype),
        scaling=scaling,
        info=found,
    )


def load_rows(
    path: str,
    array: str | None,
    num_columns: int,
    scaling: Scaling,
    options: TrainOptions,
) -> Any:
    """All rows of a file of the user's, scaled as those of the run were.

    Raises:
      ValueError, FileNotFoundError: for another width, and what is not finite.
    """
    if array is None and Path(path).suffix.lower() == ".npz":
        array = options.array
    rows = _stored(path, array, options).train
    if rows.shape[1] != num_columns:
        raise ValueError(
            f"{path} must have {num_columns} columns for the model of this run, got "
            f"{rows.shape[1]}."
        )
    if rows.dtype.kind == "f" and scaling.clip:  # which would hide an infinity
        _refuse_not_finite(rows)
    found = scaled(rows, scaling, _checks.floating_dtype(options.dtype))
    _refuse_not_finite(found)
    return found


def _stored(path: str, array: str | None, options: TrainOptions) -> Dataset:
    """What a name or a file holds; images are said to be taken as such."""
    budget = _checks.positive_int("memory_budget", options.memory_budget)
    found = data.load(
        path, root=options.data_root, array=array, memory_budget=2**20 * budget
    )
    if found.licence == "yours" and found.image_shape is not None:
        height, width = found.image_shape
        note(
            f"{path} holds [{len(found.train)}, {height}, {width}], and each row is an "
            f"image of {height} x {width}; if these are tokens [N, T, D], store "
            f"X.reshape(-1, {width})."
        )
    return found


def scaled(rows: Any, scaling: Scaling, dtype: Any) -> Any:
    """Scaled rows: of an array an array, of rows on disk a View that scales."""
    if data.is_rows(rows):
        return View(rows, scaling=scaling, dtype=dtype)
    return scaling.apply(rows, dtype)


def _parts(found: Dataset, options: TrainOptions) -> tuple[Any, Any, Any]:
    """train, validation, test, as stored."""
    if found.test is not None:
        fractions = (options.validation_fraction,)
        train, validation = data.split(found.train, *fractions, seed=options.seed)
        return train, validation, found.test
    train, test, validation = data.split(
        found.train,
        options.test_fraction,
        options.validation_fraction,
        seed=options.seed,
    )
    return train, validation, test


def _scaling(
    options: TrainOptions, found: Dataset, train: Any, observation: Observation
) -> Scaling:
    if options.start_from is not None:
        scaling = data.load_scaling(options.start_from)
        if found.train.dtype.kind == "f" and scaling.clip:  # hides an infinity
            _refuse_not_finite(found.train)
        return scaling
    if options.scaling is not None:
        if options.divide_by is not None:
            raise ValueError(
                "--scaling fits what --divide-by says by hand; leave one of them out."
            )
        _checks.lookup("scaling", data.SCALINGS, options.scaling)
        if found.train.dtype.kind == "f":  # by the row of the file, not of the split
            _refuse_not_finite(found.train)
        # As float64, for the stored values may be integers.
        return data.fit_scaling(
            options.scaling, data.column_stats(View(train, dtype=np.float64))
        )
    divisor = found.scale if options.divide_by is None else options.divide_by
    if not (np.isfinite(divisor) and divisor > 0):
        raise ValueError(f"--divide-by must be a positive number, got {divisor}.")
    is_integer = found.train.dtype.kind in "biu"
    if is_integer and options.divide_by is None and divisor == 1:
        advice = integer_advice(found.train, "option", observation.validate)
        raise ValueError(
            f"--data {options.data} holds {found.train.dtype}, which training takes as "
            f"floats: give {advice}."
        )
    return data.divide(divisor)


def _refuse_not_finite(rows: Any) -> None:
    if data.is_rows(rows):
        data.column_stats(rows)
    else:
        data.check_array(rows)


def _check(rows: Any, scaling: Scaling, observation: Observation) -> None:
    """The whole file, so that a bad value is named by its row there."""
    whole = scaled(rows, scaling, np.float32)
    if data.is_rows(whole):
        data.column_stats(whole, validate=observation.validate)
    else:
        data.check_array(whole)
        observation.validate(whole)


def describe(splits: Splits) -> dict[str, Any]:
    """What `config.json` says of the data."""
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
