"""Checks and conversions of the arguments of `train`, before any work.

Each raises an `ArgumentError` that names the argument.
"""

import collections
import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxae import (
    _checks,
    activations,
    corruptions,
    manual,
    observations,
    optimizers,
    penalties,
)
from jaxae import data as data_module
from jaxae._checks import ArgumentError
from jaxae.data import check_array
from jaxae.objective import Objective, check_is_pair
from jaxae.training import diagnostics, train_step
from jaxae.training.batches import Data, map_pair, num_steps
from jaxae.training.config import TrainConfig
from jaxae.training.train_step import INIT_SCALE, INIT_SCALES


def check_arguments(objective, key, config, params=None) -> None:
    """Check types, and that params are of this model and finite."""
    if not isinstance(objective, Objective):
        raise ArgumentError(
            "objective",
            "must be a jaxae.Objective",
            repr(objective),
            "make one with jaxae.Objective(ae)",
        )
    if not isinstance(config, TrainConfig):
        raise ArgumentError("config", "must be a jaxae.TrainConfig", repr(config))
    _checks.prng_key(key)
    if params is not None:
        objective.ae.check_params(params)
        advice = "start from ae.init(key) or a sound checkpoint"
        _checks.finite("params", params, advice)


def as_data(
    name: str, data: Data, objective: Objective, dtype, config: TrainConfig
) -> Data:
    """Check the training data: a source, or rows, which `as_rows` converts."""
    if not callable(data):
        if config.steps_per_epoch is not None:
            raise ArgumentError(
                "steps_per_epoch",
                "must be None if data is an array",
                str(config.steps_per_epoch),
                "an epoch has len(data) // batch_size steps",
            )
        data = as_rows(name, data, objective, dtype, config.memory_budget)
    num_steps(data, config)  # raises if the data have none
    return data


def as_rows(name: str, data: Any, objective: Objective, dtype, budget: int) -> Any:
    """Check rows `[N, D]`, or a pair (inputs, targets), and cast them to `dtype`.

    Returns arrays on the device if they fit the budget in bytes, else Views.
    """
    if isinstance(data, tuple) and len(data) != 2:
        raise ArgumentError(
            name,
            "must be an array [N, D] or a pair (inputs, targets)",
            f"a {type(data).__name__} of {len(data)}",
            "for a Dataset, pass its .train",
        )
    data = map_pair(functools.partial(_checks.as_array, name), data)
    check_is_pair(objective.ae, name, data)
    arrays = data if isinstance(data, tuple) else (data,)
    inputs, targets = arrays[0], arrays[-1]
    ae = objective.ae
    if inputs is not targets or ae.input_dim != ae.output_dim:
        check_rows(name, inputs, ae.input_dim, None)
    check_rows(name, targets, ae.output_dim, ae.observation.validate)
    if len(inputs) != len(targets):
        raise ArgumentError(name, "must pair inputs and targets of equal length")
    fits = _num_bytes(arrays, dtype) <= budget
    return map_pair(lambda array: _placed(name, array, dtype, fits), data)


def check_rows(name: str, rows: Any, width: int, validate) -> None:
    """Check rows `[N, width]` in memory or on disk: finite, and as `validate` asks."""
    if hasattr(rows, "dtype") and not data_module.is_rows(rows):
        check_array(rows, name, validate=validate)
        shape = rows.shape
    else:
        shape = data_module.column_stats(rows, name, validate=validate)[:2]
    if shape[1] != width:
        problem = f"must have {width} columns for this model"
        raise ArgumentError(name, problem, f"shape {list(shape)}")


def _num_bytes(arrays: tuple, dtype) -> float | int:
    """Return the size in `dtype`; infinite for user-defined Rows, always streamed."""
    for rows in arrays:
        if data_module.is_rows(rows) and not isinstance(rows, np.memmap):
            return math.inf
    return sum(math.prod(rows.shape) for rows in arrays) * jnp.dtype(dtype).itemsize


def _placed(name: str, rows: Any, dtype, fits: bool) -> Any:
    placed: Any
    with np.errstate(over="ignore"):  # an overflow raises below
        if fits:
            extremes = np.asarray(rows).astype(dtype, copy=False)
            placed = jnp.array(extremes)  # a copy, since the caller may change the rows
        else:
            placed = data_module.View(rows, dtype=dtype)
            # A cast is monotonic, so an overflow occurs at the minimum or maximum.
            stats = data_module.column_stats(rows, name)
            extremes = np.stack([stats.low, stats.high]).astype(dtype)
    if not np.isfinite(extremes).all():
        problem = f"overflows {jnp.dtype(dtype)}, the parameters' dtype"
        raise ArgumentError(name, problem, advice="scale it")
    return placed


def as_callbacks(on_epoch) -> tuple[Callable, ...]:
    """Return the callbacks of `train`, which takes None, one or several."""
    if on_epoch is None:
        return ()
    is_many = isinstance(on_epoch, Iterable) and not isinstance(on_epoch, str)
    callbacks = tuple(on_epoch) if is_many and not callable(on_epoch) else (on_epoch,)
    if not all(map(callable, callbacks)):
        raise ArgumentError("on_epoch", "must be a function", repr(on_epoch))
    return callbacks


def check_patience(config: TrainConfig, validation) -> None:
    """Reject early stopping by a validation metric without validation data."""
    is_validation = config.monitor.startswith("validation/")
    if config.patience is not None and is_validation and validation is None:
        raise ArgumentError(
            "patience",
            f"waits for {config.monitor}, but there are no validation data",
            advice="give {validation}, or set {monitor}='train/loss'",
        )


def check_monitor(config: TrainConfig, metrics: Collection[str]) -> None:
    """Reject a monitor that is not among the names of the run's metrics.

    The default monitor may be missing, because it needs validation data.
    """
    is_default = config.monitor == TrainConfig().monitor and config.patience is None
    if config.monitor not in metrics and not is_default:
        raise ArgumentError(
            "monitor",
            "must be a metric of the run",
            f"{config.monitor!r}{_checks.closest(config.monitor, metrics)}",
            f"known: {', '.join(metrics)}",
        )


def check_updates(config: TrainConfig, data: Data) -> None:
    """Reject an optimizer that accumulates more gradients than the run has steps."""
    accumulate = getattr(config.optimizer, "accumulate", 1)
    total = config.num_epochs * num_steps(data, config)
    if accumulate > total:
        raise ArgumentError(
            "accumulate",
            f"must be at most the {total} steps of the run",
            str(accumulate),
            "otherwise no update is made: use more epochs or smaller batches",
        )


def as_hparams(hparams, dtype) -> dict[str, Array]:
    """The hyperparameters as arrays of at least float32, so that they are traced."""
    _checks.hparams(hparams)
    dtype = jnp.promote_types(dtype, jnp.float32)
    for name, value in hparams.items():
        if not _is_finite(value, dtype):
            argument = f"hparams[{name!r}]"
            raise ArgumentError(argument, "must be a finite number", repr(value))
    return {name: jnp.asarray(value, dtype) for name, value in hparams.items()}


def _is_finite(value: Any, dtype) -> bool:
    try:
        with np.errstate(over="ignore"):
            return bool(np.isfinite(np.asarray(float(value)).astype(dtype)))
    except OverflowError:  # a huge integer
        return False


class _RecordedReads(collections.UserDict):
    """Hyperparameters that record which names are read; a missing one reads as 1."""

    def __init__(self, hparams):
        super().__init__(hparams)
        self.names = set()

    def __getitem__(self, name):
        self.names.add(name)
        return self.data.get(name, 1.0)

    def get(self, name, default=None):
        """Like `dict.get`; a hyperparameter that is read by it is optional."""
        return self[name] if name in self.data else default


def check_hparams(
    objective: Objective,
    config: TrainConfig,
    data: Data,
    hparams: Mapping,
    key,
    params=None,
) -> None:
    """Reject hyperparameters that nothing reads, that are missing or out of range."""
    hparams = jax.device_get(hparams)  # their checks on the device would be compiled
    needed = names_read(objective, config, data, hparams, key)
    missing = [name for name in needed if name not in hparams]
    optional = list(objective.optional_hparam_names)
    optional += [] if params is not None else [INIT_SCALE]
    unused = [name for name in hparams if name not in (*needed, *optional)]
    faults = [f"lacks {_checks.argument_list(missing)}"] if missing else []
    if unused:
        faults += [f"has {_checks.argument_list(unused)}, which nothing reads"]
    if faults:
        read = _checks.argument_list(needed) or "none"
        advice = f"this objective and optimizer read: {read}"
        raise ArgumentError("hparams", " and ".join(faults), advice=advice)
    check_hparam_ranges(objective, config, data, hparams)
    if config.after_update is not None:
        _check_after_update(objective, config, hparams, key, params)


def check_hparam_ranges(
    objective, config: TrainConfig, data: Data, hparams: Mapping
) -> None:
    """Reject hyperparameters that are out of range."""
    objective.check_hparams(hparams)
    optimizers.check_hparams(config.optimizer, hparams)
    INIT_SCALES.check(INIT_SCALE, hparams)
    if hasattr(data, "check_hparams"):
        data.check_hparams(hparams)


def names_read(objective, config, data: Data, hparams: Mapping, key) -> list[str]:
    """The hyperparameters that objective, optimizer and source read."""
    names = _names_read_by_optimizer(config, hparams) | set(objective.hparam_names)
    names |= {name for name in objective.optional_hparam_names if name in hparams}
    if callable(data):
        names |= _names_read_by_source(objective, data, hparams, key)
    return sorted(names)


def _names_read_by_optimizer(config: TrainConfig, hparams: Mapping) -> set[str]:
    reads = _RecordedReads(hparams)
    try:
        optimizer = config.optimizer(reads)
    except Exception as error:
        raise ArgumentError(
            "config.optimizer",
            "must be a function hparams -> transformation, such as lambda hp: "
            f"optax.adam(hp['learning_rate']), but it failed: {error}",
        ) from error
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        problem = "must return an optax.GradientTransformation"
        raise ArgumentError("config.optimizer", problem, repr(optimizer))
    return reads.names


def _names_read_by_source(objective: Objective, source, hparams, key) -> set[str]:
    """Trace one batch, whose shape and dtype are checked as well."""
    names = set()

    def batch(key, hparams):
        reads = _RecordedReads(hparams)
        pair = objective.as_pair(source(key, reads))
        names.update(reads.names)
        return pair

    try:
        jax.eval_shape(batch, key, dict(hparams))
    except Exception as error:
        raise ArgumentError(
            "data",
            "must be an array, or a pure source (key, hparams) -> batch whose "
            "shapes do not depend on a hyperparameter",
            advice=f"{optimizers.name_of(source)} failed: {_checks.first_line(error)}",
        ) from error
    return names


def trace_custom_components(objective: Objective, key, config: TrainConfig) -> None:
    """Reject custom parts whose functions return a wrong shape, dtype or type.

    The objective, the metrics of an epoch and, where training uses it, the hand-derived
    gradient are traced; nothing is computed.
    """
    ae = objective.ae
    known = [
        activations.find(ae.activation.name) is ae.activation,
        observations.find(ae.observation.name) is ae.observation,
        objective.corruption in (None, *corruptions.CATALOGUE.values()),
        all(penalties.find(repr(p)) == p for p in objective.penalties),
        ae.parametrization.is_composed,
    ]
    if all(known):
        return

    def work(key, batch, hparams):
        params = ae.init(key)
        state = objective.init_state()
        objective(params, batch, key, hparams, state)
        diagnostics.evaluate_block(params, batch, hparams, state, objective=objective)
        if config.gradient_of(objective) == "manual" or config.diagnostics:
            manual.value_and_grad(objective)(params, batch, key, hparams, state)

    number = jax.ShapeDtypeStruct((), jnp.float32)
    hparams = dict.fromkeys(objective.hparam_names, number)
    jax.eval_shape(work, key, _batch(objective, config, jnp.float32), hparams)


def _batch(objective: Objective, config: TrainConfig, dtype) -> Any:
    widths = objective.ae.input_dim, objective.ae.output_dim
    return tuple(jax.ShapeDtypeStruct((config.batch_size, n), dtype) for n in widths)


def _check_after_update(
    objective: Objective, config: TrainConfig, hparams, key, params
):
    """Trace one step; the checks inside it raise specific errors."""
    dtype = jnp.float32 if params is None else jax.tree.leaves(params)[0].dtype

    def work(key, batch, hparams, params):
        state = train_step.init_state(
            objective, hparams, key, config=config, params=params
        )
        return train_step.step(
            state, batch, key, hparams, objective=objective, config=config
        )

    try:
        batch = _batch(objective, config, dtype)
        jax.eval_shape(work, key, batch, dict(hparams), params)
    except ValueError:
        raise
    except Exception as error:
        raise ArgumentError(
            "after_update",
            "must be a pure function (state, p) -> state, but it failed: "
            f"{_checks.first_line(error)}",
        ) from error
