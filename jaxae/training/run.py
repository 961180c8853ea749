"""A run of training: its arguments, its state, its result and its warnings."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxae.autoencoder import Autoencoder
from jaxae.training import diagnostics
from jaxae.training.batches import Data, num_steps
from jaxae.training.config import TrainConfig
from jaxae.training.train_step import Means, TrainState


class PreparedRun(NamedTuple):
    """The arguments of `train`, as `prepare` checks and converts them."""

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
        return num_steps(self.data, self.config)


class Best(NamedTuple):
    """The best epoch so far, by config.monitor."""

    epoch: int  # counted from 1
    value: float
    params: Any
    state: Any = ()  # the objective's, such as the threshold of batch_topk


class RunState(NamedTuple):
    """Everything that a run needs to continue after a step."""

    state: TrainState
    means: Means  # over the steps so far of the epoch in progress
    history: tuple[dict[str, float], ...]  # the metrics of each epoch that has ended
    best: Best | None = None
    reason: str | None = None  # why the run diverged


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
      best: epoch (counted from 1), value, parameters and the objective's state of the
        epoch with the smallest config.monitor, without an epoch that diverged; None if
        the run has no such metric, or it is nan in every epoch.
      reason: if it diverged, one sentence that says what was not finite.
      model: the model and its params for use on one example: the objective's model as
        trained, or where its activation depends on the batch or on a hyperparameter,
        one that does not (`Objective.inference_model`).
    """

    params: Any
    metrics: dict[str, np.ndarray]
    state: TrainState
    status: str
    stopped_at: int | None
    best: Best | None = None
    reason: str | None = None
    model: tuple[Autoencoder, Any] | None = None


def status_of(prepared: PreparedRun, run_state: RunState) -> str | None:
    """Return the status of a run that has ended; None if training continues."""
    if run_state.reason is not None:
        return "diverged"
    num_epochs, patience = len(run_state.history), prepared.config.patience
    best_epoch = 0 if run_state.best is None else run_state.best.epoch
    if patience is not None and num_epochs - best_epoch >= patience:
        return "early_stopped"
    return "finished" if num_epochs >= prepared.config.num_epochs else None


def warnings_of(prepared: PreparedRun, run: Run) -> list[str]:
    """Return the warnings of a run that has ended, one sentence each."""
    if run.stopped_at is not None:  # other warnings would follow from it
        return [
            f"training stopped at step {run.stopped_at}, where the loss or the "
            "parameters became non-finite; the run holds the state from which that "
            f"step began. {run.reason} {advice(run.stopped_at)}"
        ]
    skipped = all_steps_skipped(prepared, run)
    sentences = [] if skipped is None else [skipped]
    for split in ("train", "validation"):
        remarks = diagnostics.remarks(_last_metrics(run, split))
        sentences += [f"{split} data: {remark}" for remark in remarks]
    return sentences


def advice(stopped_at: int) -> str:
    """Return what to try after a run that diverged at that step."""
    if stopped_at == 0:
        return "The very first step failed: check data, hparams and initial params."
    return "Try a smaller learning_rate."


def all_steps_skipped(prepared: PreparedRun, run: Run) -> str | None:
    """A warning, if every step of the last epoch was skipped."""
    skipped = run.metrics.get("train/skipped_steps", np.zeros(1))[-1]
    num_steps = prepared.steps_per_epoch
    if skipped < num_steps:
        return None
    return (
        f"{num_steps} of the {num_steps} steps of the last epoch were skipped, because "
        "each made the loss or the parameters non-finite; the epoch changed nothing. "
        "Check the data, and try a smaller learning_rate."
    )


def _last_metrics(run: Run, split: str) -> dict[str, float]:
    names = [name for name in run.metrics if name.startswith(f"{split}/")]
    return {n.removeprefix(f"{split}/"): float(run.metrics[n][-1]) for n in names}
