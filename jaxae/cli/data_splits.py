"""The data of a run, split by the seed and scaled; and the metrics of each split."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxae import _checks, data, metrics
from jaxae._files import expanded
from jaxae.cli.options import CommandError, TrainOptions
from jaxae.cli.reporting import note
from jaxae.data import Dataset, Scaling, View, stored
from jaxae.data.files import SUFFIXES, load_shards, may_have_names, table_paths
from jaxae.data.statistics import ColumnStats, integer_advice
from jaxae.data.stored_activations import is_of_shards
from jaxae.objective import Objective
from jaxae.observations import Observation
from jaxae.training import diagnostics


class Splits(NamedTuple):
    """The rows of a run in the model's dtype: arrays, or Views of rows on disk."""

    train: Any
    validation: Any
    test: Any
    scaling: Scaling
    info: Dataset
    stats: ColumnStats | None = None  # of all rows scaled, where they are on disk

    @property
    def validation_or_none(self) -> Any:
        """The validation rows as `jaxae.train` takes them."""
        return self.validation if len(self.validation) else None

    @property
    def all_rows(self) -> Any:
        """All rows of the file, scaled, in the order of the file."""
        return _scaled(self.info.train, self.scaling, self.train.dtype)

    @property
    def shown(self) -> tuple[Any, Any]:
        """The rows that pictures show, and the shape of an image in a row, if known."""
        return self.test if len(self.test) else self.train, self.info.image_shape


def load(options: TrainOptions, observation: Observation) -> Splits:
    """The data of a run, checked; the scaling is fitted to the training rows only."""
    dtype = _checks.floating_dtype(options.dtype)
    dataset = _load_selected(options) or _load(options.data, options.array, options)
    fractions = [options.validation_fraction]
    if dataset.test is None:
        fractions.insert(0, options.test_fraction)
    train, *held_out = data.split(dataset.train, *fractions, seed=options.seed)
    test = held_out[0] if dataset.test is None else dataset.test
    scaling = _scaling(options, dataset, train, observation)
    # All rows of the file at once, so that an error names the row in the file.
    rows = _scaled(dataset.train, scaling, np.float32)
    stats = None
    if data.is_rows(rows):
        stats = data.column_stats(rows, validate=observation.validate)
    else:
        data.check_array(rows)
        observation.validate(rows)
    return Splits(
        train=_scaled(train, scaling, dtype),
        validation=_scaled(held_out[-1], scaling, dtype),
        test=_scaled(test, scaling, dtype),
        scaling=scaling,
        info=dataset,
        stats=stats,
    )


def load_rows(
    path: str,
    array: str | None,
    num_columns: int,
    scaling: Scaling,
    options: TrainOptions,
    all_rows: bool = False,
) -> Any:
    """The rows of a user's file, selected and scaled as in the run of the options.

    With `all_rows`, no row is left out by `drop_first` and `max_row_norm` of the run.
    """
    if array is None and may_have_names(Path(path)):
        array = options.array
    selection = {} if all_rows else _selection(options)
    # One file of a folder is one of activations: [N, T, D] are tokens, not images.
    is_one_of_folder = Path(path).suffix.lower() in stored.SUFFIXES
    if _is_of_activations(path) or (is_one_of_folder and _has_activations(options)):
        rows = _load_as_in_run(path, array, selection)
    elif selection:
        raise CommandError(
            "The run selects activations by --drop-first or --max-row-norm, but "
            f"{path} holds no activations; give --all-rows to use all of its rows."
        )
    else:
        rows = _load(path, array, options).train
    if rows.shape[1] != num_columns:
        raise CommandError(
            f"{path} must have {num_columns} columns for the model of this run, got "
            f"{rows.shape[1]}."
        )
    if scaling.clip:
        _check_finite(rows)
    rows = _scaled(rows, scaling, _checks.floating_dtype(options.dtype))
    _check_finite(rows)
    return rows


def _load_as_in_run(path: str, array: str | None, selection: dict[str, Any]) -> Any:
    """The activations that the options of a run select."""
    try:
        return load_shards(expanded(path), array, **selection).train
    except _checks.ArgumentError as error:
        if error.argument == "drop_first":  # a run's option, which no command changes
            error.advice = "give --all-rows to use all rows"
        raise


def _is_of_activations(path: str) -> bool:
    """Whether this is a folder or a pattern of activations, and not of tables."""
    if path in data.NAMES or not is_of_shards(expanded(path)):
        return False
    return not table_paths(expanded(path))


def _has_activations(options: TrainOptions) -> bool:
    """Whether the run's data are a folder or a pattern, which may be elsewhere now."""
    path = options.data
    is_other = path in data.NAMES or expanded(path).suffix.lower() in SUFFIXES
    is_other |= bool(table_paths(expanded(path)))
    return _is_of_activations(path) or not is_other


def _load_selected(options: TrainOptions) -> Dataset | None:
    """The activations that options select; None without such options."""
    selection = _selection(options)
    if not selection:
        return None
    if not _is_of_activations(options.data):
        raise CommandError(
            "--drop-first and --max-row-norm need --data to be a folder or a pattern "
            f"of activations, got {options.data}."
        )
    return load_shards(expanded(options.data), options.array, **selection)


def _selection(options: TrainOptions) -> dict[str, Any]:
    """The arguments of `data.activations` by which options leave out rows."""
    max_norm = options.max_row_norm
    if max_norm is not None:
        _checks.number("max_row_norm", max_norm, _checks.POSITIVE)
    selection = {"drop_first": options.drop_first, "max_norm": max_norm}
    return {name: value for name, value in selection.items() if value}


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


def _scaled(rows: Any, scaling: Scaling, dtype: Any) -> Any:
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
            raise CommandError(
                "--scaling and --divide-by cannot be combined; leave one of them out."
            )
        _checks.lookup("scaling", data.SCALINGS, options.scaling)
        _check_finite(dataset.train)
        # In float64, because the stored values may be integers.
        stats = data.column_stats(View(train, dtype=np.float64))
        return data.fit_scaling(options.scaling, stats)
    divisor = dataset.scale if options.divide_by is None else options.divide_by
    if not (np.isfinite(divisor) and divisor > 0):
        raise CommandError(f"--divide-by must be a positive number, got {divisor}.")
    is_integer = dataset.train.dtype.kind in "biu"
    if is_integer and options.divide_by is None and divisor == 1:
        advice = integer_advice(dataset.train, "option", observation.validate)
        raise CommandError(
            f"--data {options.data} holds {dataset.train.dtype}, but training needs "
            f"floats; give {advice}."
        )
    return data.divide(divisor)


def _check_finite(rows: Any) -> None:
    """Raise for a value that is not finite; clipping would hide an infinity."""
    if rows.dtype.kind not in "biu":
        (data.column_stats if data.is_rows(rows) else data.check_array)(rows)


def describe(splits: Splits) -> dict[str, Any]:
    """The entry "data" of `config.json`."""
    info = splits.info
    is_file = info.licence == "yours"
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


# ---- metrics -------------------------------------------------------------------------


def evaluate(
    objective: Objective, params: Any, splits: Splits, hparams: Any
) -> dict[str, Any]:
    """The metrics of each split; beside them those of PCA, for rows in memory.

    `objective` is that of a trained model, whose state training does not leave behind.
    """
    results: dict[str, Any] = {}
    pca = None
    if isinstance(splits.train, np.ndarray):
        num_components = min(objective.ae.latent_dim, *splits.train.shape)
        results["pca_components"] = num_components
        pca = _pca(splits.train, num_components)
    for name in ("train", "validation", "test"):
        X = getattr(splits, name)
        if len(X):
            results[name] = evaluate_rows(objective, params, X, hparams)
            if pca is not None:
                results[name]["pca_squared_error"] = pca(np.asarray(X))
    return results


def evaluate_rows(objective: Objective, params: Any, X: Any, hparams: Any) -> dict:
    """The metrics of rows, with the objective's initial state: no latent is dead."""
    state = objective.init_state()
    return diagnostics.evaluate(objective, params, X, hparams, state)


def _pca(X: np.ndarray, num_components: int) -> Callable[[np.ndarray], float]:
    """`X -> squared error` of PCA with as many components, fitted to these rows."""
    from sklearn.decomposition import PCA

    # float64, because scikit-learn has no bfloat16. A single row is fitted twice, for
    # PCA needs two; the shares of a variance of 0 are 0 / 0.
    model = PCA(num_components, svd_solver="covariance_eigh")
    with np.errstate(invalid="ignore"):
        rows = np.concatenate([X, X]) if len(X) == 1 else X
        model.fit(rows.astype(np.float64))

    def squared_error(X: np.ndarray) -> float:
        X = X.astype(np.float64)
        X_hat = model.inverse_transform(model.transform(X))
        return float(metrics.squared_error(X, X_hat))

    return squared_error
