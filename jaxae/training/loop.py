"""The training loop: segments, epochs, and how a run ends."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae import _checks
from jaxae.checkpoints import Checkpoints
from jaxae.training import batching, checks, diagnostics, epochs
from jaxae.training.checkpointing import Best, Checkpointer, RunState
from jaxae.training.config import TrainConfig
from jaxae.training.epochs import Data, TrainState


class PreparedRun(NamedTuple):
    """The arguments of `train`, checked and converted; `host.prepare` makes it."""

    objective: Any
    data: Data
    validation: Any
    hparams: dict[str, Any]
    key: Any
    config: TrainConfig
    params: Any
    callbacks: tuple[Callable, ...]
    fingerprint: dict[str, Any] | None  # of a run that is saved

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches of an epoch."""
        return epochs.num_steps(self.data, self.config)


class Run(NamedTuple):
    """The result of training.

    Attributes:
      params: the trained parameters.
      metrics: a NumPy array by name, one entry an epoch: "train/loss",
        "validation/loss", ... If training diverged, the last entry describes the steps
        of its last epoch before the failure.
      state: the `TrainState` at the end.
      status: "finished", "early_stopped" (config.patience), "stopped" (by `on_epoch`),
        "interrupted" (by a signal) or "diverged".
      stopped_at: the failing step if training diverged, else None; `state` is then the
        state before that step.
      best: epoch (counted from 1), value and parameters of the epoch with the smallest
        config.monitor, without an epoch that diverged; None if the run has no such
        metric, or it is nan in every epoch.
      reason: if it diverged, one sentence that says what was not finite.
    """

    params: Any
    metrics: dict[str, np.ndarray]
    state: TrainState
    status: str
    stopped_at: int | None
    best: Best | None = None
    reason: str | None = None


# First and last step are traced, so that one program runs any segment of an epoch.
_run_steps = jax.jit(
    epochs.run_steps,
    static_argnames=("objective", "config"),
    donate_argnames=("state", "means"),
)


def execute(
    prepared: PreparedRun,
    run_state: RunState,
    checkpoints: Checkpoints | None = None,
    on_segment: Callable[[int], None] | None = None,
) -> Run:
    """Train until the last epoch, early stopping, a callback, a signal or divergence.

    Args:
      prepared: from `prepare`.
      run_state: from `start`.
      checkpoints: from `open_checkpoints`.
      on_segment: `(step) -> None`, called after every segment of an epoch.
    """
    on_segment = on_segment or (lambda step: None)
    probe = None
    if prepared.config.diagnostics:
        probe = diagnostics.probe(prepared.data, prepared.key, prepared.hparams)
    with Checkpointer(checkpoints, prepared.config, run_state) as checkpointer:
        status = status_of(prepared, run_state)
        while status is None:
            run_state = _train_epoch(prepared, run_state, checkpointer, on_segment)
            should_stop = False
            if _is_epoch_over(prepared, run_state):
                metrics = _epoch_metrics(prepared, run_state, probe)
                run_state = _end_epoch(run_state, metrics, prepared.config)
                should_stop = _call_back(prepared, run_state)
            checkpointer.save_if_due(run_state)
            status = status_of(prepared, run_state)
            if status is None and (should_stop or checkpointer.is_interrupted):
                status = "stopped" if should_stop else "interrupted"
        checkpointer.finish(run_state)
    return _as_run(run_state, status)


def _train_epoch(
    prepared: PreparedRun, run_state: RunState, checkpointer: Checkpointer, on_segment
) -> RunState:
    """Train to the end of the epoch, or until it diverges or a signal interrupts it.

    A segment is the range of steps that one call of the compiled program runs.
    """
    data, hparams, config = prepared.data, prepared.hparams, prepared.config
    program = {"objective": prepared.objective, "config": config.program()}
    epoch_start = len(run_state.history) * prepared.steps_per_epoch
    first = int(run_state.state.step) - epoch_start
    for block in batching.blocks(data, run_state.state, first, hparams, config):
        while first < block.last:
            last = first + checkpointer.segment_length(
                epoch_start + first, at_most=block.last - first
            )
            state, means = _run_steps(
                run_state.state,
                run_state.means,
                block.batch_at,
                hparams,
                np.int32(first),
                np.int32(last),
                **program,
            )
            run_state, first = run_state._replace(state=state, means=means), last
            if int(state.stopped_at) >= 0:
                return _diverged(prepared, run_state, block, epoch_start)
            on_segment(epoch_start + last)
            if _is_epoch_over(prepared, run_state):
                return run_state  # `execute` saves it with its metrics
            checkpointer.save_if_due(run_state)
            if checkpointer.is_interrupted:
                return run_state
    return run_state


def _diverged(
    prepared: PreparedRun, run_state: RunState, block: batching.Block, epoch_start: int
) -> RunState:
    """The state at the beginning of the failing step, with the reason why it failed."""
    state = run_state.state
    i = int(state.stopped_at) - epoch_start
    rows = None
    if block.order is not None:
        size = prepared.config.batch_size
        rows = np.asarray(block.order)[i * size : (i + 1) * size]
    reason = diagnostics.explain_divergence(
        state,
        block.batch_at(i),
        rows,
        i,
        prepared.hparams,
        objective=prepared.objective,
        config=prepared.config,
    )
    # Reset the step counter: the steps after the failure changed nothing, and their
    # number depends on the length of the segment.
    state = state._replace(step=jnp.copy(state.stopped_at))
    return run_state._replace(state=state, reason=reason)


def _is_epoch_over(prepared: PreparedRun, run_state: RunState) -> bool:
    epoch_end = (len(run_state.history) + 1) * prepared.steps_per_epoch
    return run_state.reason is not None or int(run_state.state.step) == epoch_end


def _epoch_metrics(
    prepared: PreparedRun, run_state: RunState, probe: Any
) -> dict[str, float]:
    """Means over the steps of the epoch, and metrics of the model at its end.

    The model is evaluated on the validation data and on `probe`, the same rows of the
    training data after every epoch; None without config.diagnostics.
    """
    state, means = run_state.state, run_state.means
    metrics = _prefixed("train", means.read(prepared.config))
    if probe is not None:
        scores = _dataset_metrics(prepared, state, probe)
        for name in diagnostics.names_of_step(prepared.objective):
            del scores[name]  # "train/" has their means over the steps of the epoch
        metrics |= _prefixed("train", scores) | _step_norms(prepared, state, probe)
    if prepared.validation is not None:
        scores = _dataset_metrics(prepared, state, prepared.validation)
        metrics |= _prefixed("validation", scores)
    return {name: float(value) for name, value in metrics.items()}


def _dataset_metrics(prepared: PreparedRun, state: TrainState, X) -> dict[str, float]:
    return diagnostics.evaluate(
        prepared.objective, state.params, X, prepared.hparams, state.state
    )


def _step_norms(prepared: PreparedRun, state: TrainState, probe) -> dict[str, Any]:
    """The norms of a step on the first batch of the probe, always with one noise."""
    batch = jax.tree.map(lambda rows: rows[: prepared.config.batch_size], probe)
    return diagnostics.step_norms(
        state,
        batch,
        state.key,
        prepared.hparams,
        objective=prepared.objective,
        config=prepared.config,
    )


def _prefixed(split: str, metrics: dict[str, Any]) -> dict[str, Any]:
    return {f"{split}/{name}": value for name, value in metrics.items()}


def _end_epoch(
    run_state: RunState, metrics: dict[str, float], config: TrainConfig
) -> RunState:
    checks.check_monitor(config, metrics)
    history = (*run_state.history, metrics)
    value, best = metrics.get(config.monitor, math.nan), run_state.best
    is_whole = run_state.reason is None  # an epoch that diverged has fewer steps
    is_better = not math.isnan(value) and (best is None or value < best.value)
    if is_whole and is_better:
        # A copy: the state is donated to the next epoch.
        params = jax.tree.map(jnp.copy, run_state.state.params)
        best = Best(len(history), value, params)
    means = jax.tree.map(jnp.zeros_like, run_state.means)
    return run_state._replace(means=means, history=history, best=best)


def _call_back(prepared: PreparedRun, run_state: RunState) -> bool:
    """Call every callback; return whether any of them asks to stop."""
    metrics, state = run_state.history[-1], run_state.state
    answers = [callback(dict(metrics), state) for callback in prepared.callbacks]
    return any(map(_says_stop, answers))


def _says_stop(answer: Any) -> bool:
    try:
        return bool(answer)
    except Exception as error:  # for example, an array of several elements
        raise _checks.ArgumentError(
            "on_epoch",
            "must return a truth value, where None or False continues training",
            _checks.describe(answer),
        ) from error


def status_of(prepared: PreparedRun, run_state: RunState) -> str | None:
    """Return the status of a run that has ended; None if training continues."""
    if run_state.reason is not None:
        return "diverged"
    num_epochs, patience = len(run_state.history), prepared.config.patience
    best_epoch = 0 if run_state.best is None else run_state.best.epoch
    if patience is not None and num_epochs - best_epoch >= patience:
        return "early_stopped"
    return "finished" if num_epochs >= prepared.config.num_epochs else None


def _as_run(run_state: RunState, status: str) -> Run:
    history, state = run_state.history, run_state.state
    names = history[0] if history else ()
    return Run(
        params=state.params,
        metrics={name: np.array([row[name] for row in history]) for name in names},
        state=state,
        status=status,
        stopped_at=int(state.stopped_at) if status == "diverged" else None,
        best=run_state.best,
        reason=run_state.reason,
    )
