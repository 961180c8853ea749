"""The host's loop: epochs, validation, callbacks, and how a run ends."""

import dataclasses
import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae.training import refusals
from jaxae.training.config import TrainConfig
from jaxae.training.epochs import Data, TrainState, epoch, init_state


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


def train(
    objective,
    data: Data,
    *,
    hparams,
    key,
    config=None,
    validation=None,
    params=None,
    on_epoch=None,
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
    refusals.check_arguments(objective, key, config, params)
    if on_epoch is not None and not callable(on_epoch):
        raise ValueError(f"on_epoch must be a function, got {on_epoch!r}.")
    dtype = jnp.float32 if params is None else jax.tree.leaves(params)[0].dtype
    data = refusals.as_data("data", data, objective, dtype, config)
    if validation is not None:
        validation = refusals.as_data("validation", validation, objective, dtype)
    hparams = refusals.as_hparams(hparams, dtype)
    refusals.check_hparams(objective, config, data, hparams, key)

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


def advice(stopped_at: int) -> str:
    """What would do after a divergence at that step."""
    if stopped_at == 0:
        return "Already the first step failed: look at data, hparams and start."
    return "Try a smaller learning_rate."


def _as_run(state: TrainState, history: list[dict[str, float]], status: str) -> Run:
    stopped_at = int(state.stopped_at) if status == "diverged" else None
    if stopped_at is not None:
        warnings.warn(
            f"training stopped at step {stopped_at}, where the loss or the parameters "
            "became non-finite; the run holds the state from which that step began. "
            f"{advice(stopped_at)}",
            RuntimeWarning,
            stacklevel=3,
        )
    metrics = {name: np.array([row[name] for row in history]) for name in history[0]}
    return Run(state.params, metrics, state, status, stopped_at)
