"""Training: one pure function per epoch, and the host loop around it.

`epoch` is what a sweep vmaps. It reads no clock, no global state and no random state;
the optimiser is built inside it from traced hyperparameters.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int32

from jaxae import _checks, manual, optimizers
from jaxae.data import check_array
from jaxae.objective import Objective
from jaxae.optimizers import Optimizer

Data = Any  # [N, D], a pair of such, or a pure source (key, hparams) -> batch
GRADIENTS = ("autodiff", "manual")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is fixed while training; static and hashable.

    Attributes:
      num_epochs: passes over the data.
      batch_size: examples a step; the last partial batch of an epoch is dropped.
      optimizer: `hparams -> optax.GradientTransformation`.
      gradient: "autodiff", or "manual" for the hand-derived one.
      log_every: metrics are computed at every so many steps of an epoch.
      steps_per_epoch: for data that is a source; an array has its own.

    Raises:
      ValueError: for a number below 1, an optimizer that is no function, an unknown
        gradient.
    """

    # jaxtyping leaves this constructor alone: it refuses bad fields in its own words.
    __no_type_check__ = True

    num_epochs: int = 20
    batch_size: int = 128
    optimizer: Optimizer = optimizers.adam
    gradient: str = "autodiff"
    log_every: int = 1
    steps_per_epoch: int | None = None

    def __post_init__(self):
        for name in ("num_epochs", "batch_size", "log_every", "steps_per_epoch"):
            value = getattr(self, name)
            if name != "steps_per_epoch" or value is not None:
                object.__setattr__(self, name, _checks.positive_int(name, value))
        if not callable(self.optimizer):
            raise ValueError(
                "optimizer must be a function hparams -> optax.GradientTransformation "
                f"such as jaxae.optimizers.adam, got {self.optimizer!r}."
            )
        if self.gradient not in GRADIENTS:
            raise ValueError(
                f"gradient must be 'autodiff' or 'manual', got {self.gradient!r}."
            )


class TrainState(NamedTuple):
    """Everything that a step changes, and the key that it draws from."""

    params: Any
    opt_state: Any
    state: Any  # the objective's
    key: Array  # of data order and noise; never changes
    step: Int32[Array, ""]  # steps begun
    stopped_at: Int32[Array, ""]  # the step that failed; -1 while all is finite


class Run(NamedTuple):
    """What training made.

    Attributes:
      params: the trained parameters.
      metrics: one NumPy entry an epoch: "train/loss", "validation/loss", ...
      state: the whole `TrainState` at the end.
      status: "finished", "stopped" (by `on_epoch`) or "diverged".
      stopped_at: the step from whose beginning the state is kept, if it diverged.
    """

    params: Any
    metrics: dict[str, np.ndarray]
    state: TrainState
    status: str
    stopped_at: int | None


def init_state(
    objective: Objective, hparams, key, *, config: TrainConfig, params=None
) -> TrainState:
    """The state before the first step; `params` are drawn from `key` unless given."""
    init_key, data_key = jax.random.split(key)
    if params is None:
        params = objective.ae.init(init_key)
    return TrainState(
        params=params,
        opt_state=config.optimizer(hparams).init(params),
        state=(),
        key=data_key,
        step=jnp.int32(0),
        stopped_at=jnp.int32(-1),
    )


def epoch(
    state: TrainState, hparams, data: Data, *, objective: Objective, config: TrainConfig
) -> tuple[TrainState, dict[str, Array]]:
    """One pass over the data, in an order drawn from the state's key; pure, vmappable.

    Args:
      state: from `init_state` or an epoch before.
      hparams: traced scalars by name.
      data: `[N, D]`, a pair (inputs, targets) of such, or a source
        `(key, hparams) -> batch`.
      objective: what is minimised.
      config: batch_size, optimizer, gradient, log_every and steps_per_epoch count.

    Returns:
      The new state, and each metric's mean over the steps that logged and held.
    """
    order_key, noise_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    batch_at = _batches(order_key, hparams, data, config)

    def scan_step(state, i):
        key = jax.random.fold_in(noise_key, i)
        is_logged = i % config.log_every == 0
        batch = batch_at(i)
        state, metrics, is_finite = step(
            state, batch, key, hparams, is_logged, objective=objective, config=config
        )
        return state, (metrics, is_logged & is_finite)

    steps = jnp.arange(_steps_per_epoch(data, config), dtype=jnp.int32)
    state, (metrics, counts) = jax.lax.scan(scan_step, state, steps)
    return state, {name: _mean_where(counts, m) for name, m in metrics.items()}


def step(
    state: TrainState,
    batch,
    key,
    hparams,
    is_logged: Bool[Array, ""] | bool = True,
    *,
    objective: Objective,
    config: TrainConfig,
) -> tuple[TrainState, dict[str, Array], Bool[Array, ""]]:
    """One update; undone if it makes anything non-finite, and every one after it.

    Returns:
      The new state, the metrics (0 where not logged), and whether the step held.
    """
    gradient = _manual_gradient if config.gradient == "manual" else _autodiff_gradient
    grads, metrics = gradient(
        state, batch, key, hparams, is_logged, objective=objective, config=config
    )
    optimizer = config.optimizer(hparams)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    is_running = state.stopped_at < 0
    is_finite = _all_finite((params, metrics["loss"])) & is_running
    keep = functools.partial(jnp.where, is_finite)
    new = TrainState(
        params=jax.tree.map(keep, params, state.params),
        opt_state=jax.tree.map(keep, opt_state, state.opt_state),
        state=state.state,
        key=state.key,
        step=state.step + 1,
        stopped_at=jnp.where(is_running & ~is_finite, state.step, state.stopped_at),
    )
    return new, metrics, is_finite


def train(
    objective,
    data: Data,
    *,
    hparams: Mapping[str, Any],
    key,
    config=None,
    validation=None,
    params=None,
    on_epoch: Callable[[dict[str, float], TrainState], Any] | None = None,
) -> Run:
    """Minimise an objective over the parameters of its model.

    Args:
      objective: what is minimised.
      data: `[N, D]` of floats, a pair (inputs, targets) of such, or a pure source
        `(key, hparams) -> batch` (then config.steps_per_epoch says how many).
      hparams: scalars by name, exactly those that objective, optimizer and source read.
      key: consumed here: initial parameters, data order, corruption.
      config: the fixed choices; `TrainConfig()` unless given.
      validation: like an array `data`; evaluated without corruption after each epoch.
      params: where to start; copied, never donated. Drawn in float32 unless given;
        data are cast to their dtype.
      on_epoch: `(metrics, state) -> stop`, called after each epoch; a true answer ends
        training. The state is the live one, donated to the next epoch: copy what you
        keep.

    Returns:
      A `Run`. If loss or parameters turn non-finite, training stops with a
      RuntimeWarning, and the run holds the finite state from which that step began.

    Raises:
      ValueError: for bad data (which row and column), a missing, unknown or non-finite
        hparam, a batch larger than the data, or params of another model; before any
        work.
    """
    config = TrainConfig() if config is None else config
    check_arguments(objective, key, config, params)
    dtype = jnp.float32 if params is None else jax.tree.leaves(params)[0].dtype
    data = as_data("data", data, objective, dtype, config)
    if validation is not None:
        validation = as_data("validation", validation, objective, dtype)
    check_hparams(objective, config, data, hparams, key)
    hparams = as_hparams(hparams, dtype)

    if params is not None:
        params = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
    state = init_state(objective, hparams, key, config=config, params=params)
    history, status = [], "finished"
    for _ in range(config.num_epochs):
        state, metrics = _compiled_epoch(state, hparams, data, objective, config)
        row = {f"train/{name}": value for name, value in metrics.items()}
        if validation is not None:
            scores = _evaluate(state.params, validation, hparams, objective=objective)
            row |= {f"validation/{name}": value for name, value in scores.items()}
        history.append({name: float(value) for name, value in row.items()})
        should_stop = on_epoch is not None and on_epoch(dict(history[-1]), state)
        if int(state.stopped_at) >= 0:
            status = "diverged"
            break
        if should_stop:
            status = "stopped"
            break
    return _as_run(state, history, status)


# ---- the two gradients ---------------------------------------------------------------


def _autodiff_gradient(state, batch, key, hparams, is_logged, *, objective, config):
    del is_logged, config  # the loss comes with the gradient
    value_and_grad = jax.value_and_grad(objective, has_aux=True)
    (_, aux), grads = value_and_grad(state.params, batch, key, hparams, state.state)
    return grads, aux.metrics


def _manual_gradient(state, batch, key, hparams, is_logged, *, objective, config):
    inputs, targets = objective.prepare(batch, key, hparams)
    forward = objective.forward(state.params, inputs)
    grads = manual.batch_grads(
        objective, state.params, inputs, targets, forward, hparams
    )

    def score():
        return objective.score(state.params, forward, targets, hparams)[1]

    if config.log_every == 1:
        return grads, score()
    # The hand-derived gradient needs no loss: computed only where it is logged.
    zeros = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), jax.eval_shape(score))
    return grads, jax.lax.cond(is_logged, score, lambda: zeros)


# ---- batches -------------------------------------------------------------------------


def _batches(key, hparams, data: Data, config: TrainConfig) -> Callable:
    """`i -> batch i` of an epoch."""
    if callable(data):
        return lambda i: data(jax.random.fold_in(key, i), hparams)
    num_examples = len(jax.tree.leaves(data)[0])
    order = jax.random.permutation(key, jnp.arange(num_examples, dtype=jnp.int32))

    def batch_at(i):
        rows = jax.lax.dynamic_slice_in_dim(
            order, i * config.batch_size, config.batch_size
        )
        return jax.tree.map(lambda leaf: leaf[rows], data)

    return batch_at


def _steps_per_epoch(data: Data, config: TrainConfig) -> int:
    if callable(data):
        assert config.steps_per_epoch is not None  # refused before any work
        return config.steps_per_epoch
    return len(jax.tree.leaves(data)[0]) // config.batch_size


# ---- the compiled programs -----------------------------------------------------------

_STATIC = ("objective", "config")
_epoch_of_arrays = jax.jit(epoch, static_argnames=_STATIC, donate_argnames="state")
_epoch_of_source = jax.jit(
    epoch, static_argnames=(*_STATIC, "data"), donate_argnames="state"
)


def _compiled_epoch(state, hparams, data, objective, config):
    # The number of epochs is no part of the program: any other compiles nothing new.
    config = dataclasses.replace(config, num_epochs=1)
    compiled = _epoch_of_source if callable(data) else _epoch_of_arrays
    return compiled(state, hparams, data, objective=objective, config=config)


@functools.partial(jax.jit, static_argnames="objective")
def _evaluate(params, X, hparams, *, objective):
    return objective.evaluate(params, X, hparams)


# ---- small parts ---------------------------------------------------------------------


def _all_finite(tree) -> Bool[Array, ""]:
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves))


def _mean_where(counts: Bool[Array, "T"], values) -> Array:
    total = jnp.sum(jnp.where(counts, values, 0))
    return total / jnp.sum(counts)  # 0/0, hence NaN, where no step logged and held


def _as_run(state: TrainState, history: list[dict[str, float]], status: str) -> Run:
    stopped_at = int(state.stopped_at) if status == "diverged" else None
    if stopped_at is not None:
        warnings.warn(
            f"training stopped at step {stopped_at}, where the loss or the parameters "
            "became non-finite; the run holds the state from which that step began. A "
            "smaller learning_rate would do.",
            RuntimeWarning,
            stacklevel=3,
        )
    metrics = {name: np.array([row[name] for row in history]) for name in history[0]}
    return Run(state.params, metrics, state, status, stopped_at)


# ---- refusals, before any work -------------------------------------------------------


def check_arguments(objective, key, config, params=None) -> None:
    """Refuse what is not of its type.

    Raises:
      ValueError: naming the argument.
    """
    if not isinstance(objective, Objective):
        raise ValueError(
            f"objective must be a jaxae.Objective, got {objective!r}; "
            "make one with jaxae.Objective(ae)."
        )
    if not isinstance(config, TrainConfig):
        raise ValueError(f"config must be a jaxae.TrainConfig, got {config!r}.")
    _checks.prng_key(key)
    if params is not None:
        objective.ae.check_params(params)


def as_data(
    name: str,
    data: Data,
    objective: Objective,
    dtype,
    config: TrainConfig | None = None,
) -> Data:
    """Checked arrays of that dtype; a source as it is. With config, for training.

    Raises:
      ValueError: for bad values (which row and column), shapes or sizes.
    """
    if callable(data) and config is not None:
        if config.steps_per_epoch is None:
            raise ValueError(
                "steps_per_epoch must say how many batches an epoch takes from a "
                "source, got None; set it in the TrainConfig."
            )
        return data
    pair = data if isinstance(data, tuple) else (data,)
    for part in pair:
        check_array(part, name)
        if part.shape[1] != objective.ae.input_dim:
            raise ValueError(
                f"{name} must have {objective.ae.input_dim} columns for this model, "
                f"got shape {list(part.shape)}."
            )
    num_examples = len(pair[0])
    if any(len(part) != num_examples for part in pair):
        raise ValueError(f"{name} must pair inputs and targets of equal length.")
    objective.ae.observation.validate(np.asarray(pair[-1]))
    if config is not None and config.batch_size > num_examples:
        raise ValueError(
            f"batch_size must be at most the number of examples, got "
            f"{config.batch_size} for {num_examples}."
        )
    arrays = tuple(jnp.asarray(part, dtype) for part in pair)
    return arrays if isinstance(data, tuple) else arrays[0]


def as_hparams(hparams: Mapping[str, Any], dtype) -> dict[str, Array]:
    """Scalars by name as arrays, at least float32, so that they are traced.

    Raises:
      ValueError: for what is not a finite real scalar.
    """
    dtype = jnp.promote_types(dtype, jnp.float32)
    for name, value in hparams.items():
        try:
            is_scalar = np.ndim(value) == 0 and bool(np.isfinite(float(value)))
        except (TypeError, ValueError):
            is_scalar = False
        if not is_scalar:
            raise ValueError(
                f"hparams[{name!r}] must be a finite number, got {value!r}."
            )
    return {name: jnp.asarray(value, dtype) for name, value in hparams.items()}


class _Reads(Mapping):
    """Hyperparameters that note which names are read, and lack none."""

    def __init__(self, hparams):
        self._hparams, self.names = hparams, set()

    def __getitem__(self, name):
        self.names.add(name)
        return self._hparams.get(name, 1.0)

    def get(self, name, default=None):
        """As a dict's; a name that is asked for so is optional."""
        return self[name] if name in self._hparams else default

    def __contains__(self, name):
        return name in self._hparams

    def __iter__(self):
        return iter(self._hparams)

    def __len__(self):
        return len(self._hparams)


def check_hparams(
    objective: Objective, config: TrainConfig, data: Data, hparams: Mapping, key
) -> None:
    """Refuse hyperparameters that nobody reads, or that somebody lacks.

    Raises:
      ValueError: listing the names.
    """
    reads = _Reads(hparams)
    config.optimizer(reads)
    if callable(data):
        jax.eval_shape(lambda key: data(key, reads), key)
    needed = sorted(reads.names | set(objective.hparam_names))
    missing = [name for name in needed if name not in hparams]
    unused = [name for name in hparams if name not in needed]
    if missing or unused:
        found = [f"lacks {', '.join(missing)}"] if missing else []
        found += [f"has {', '.join(unused)}, which nothing reads"] if unused else []
        raise ValueError(
            f"hparams {' and '.join(found)}; this objective and optimizer read: "
            f"{', '.join(needed) or 'none'}."
        )
