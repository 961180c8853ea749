"""The host's loop: epochs, validation, checkpoints, callbacks, and how a run ends."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae import _checks
from jaxae.checkpoints import Checkpoints
from jaxae.training import batching, checks, diagnostics, divergence, epochs
from jaxae.training import progress as progress_module
from jaxae.training.checkpointing import Checkpointer
from jaxae.training.config import TrainConfig
from jaxae.training.epochs import Data, TrainState
from jaxae.training.evaluation import Evaluator
from jaxae.training.fingerprint import fingerprint
from jaxae.training.progress import Best, Progress


class Run(NamedTuple):
    """What training made.

    Attributes:
      params: the trained parameters.
      metrics: one NumPy entry an epoch: "train/loss", "validation/loss", ...
      state: the whole `TrainState` at the end.
      status: "finished", "early_stopped" (config.patience), "stopped" (by `on_epoch`),
        "interrupted" or "diverged".
      stopped_at: the step from whose beginning the state is kept, if it diverged.
      best: the epoch, value and parameters of the best config.monitor; None where
        there is no such metric.
      reason: one sentence on what was not finite, if it diverged.
    """

    params: Any
    metrics: dict[str, np.ndarray]
    state: TrainState
    status: str
    stopped_at: int | None
    best: Best | None = None
    reason: str | None = None


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
    checkpoint_dir=None,
) -> Run:
    """Minimise an objective over the parameters of its model.

    Args:
      objective: what is minimised.
      data: `[N, D]` of floats, an array, data frame or torch tensor; a pair (inputs,
        targets) of such; or a pure source `(key, hparams) -> batch` (then
        config.steps_per_epoch says how many). Instead of an array, anything with
        `__len__` and `__getitem__` of rows, such as a memory map; see
        `jaxae.data.Rows`.
      hparams: scalars by name, exactly those that objective, optimizer and source read.
      key: consumed here: initial parameters, data order, corruption.
      config: the fixed choices; `TrainConfig()` unless given.
      validation: like `data`, but no source; evaluated without corruption after each
        epoch.
      params: where to start; copied, never donated. Drawn in float32 unless given,
        the weights times hparams["init_scale"] if that is there; data are cast to
        their dtype.
      on_epoch: `(metrics, state) -> stop`, or a list of such, called after each epoch;
        a true answer ends training. The state is the live one, donated to the next
        epoch: copy what you keep.
      checkpoint_dir: a folder of this run's own, where its state is saved as the config
        says and at the end. If it holds a state, training goes on from there, and makes
        to the bit what it would have made without a stop. SIGINT and SIGTERM are then
        held back until the state is saved.

    Returns:
      A `Run`. If loss or parameters turn non-finite, training stops with a
      RuntimeWarning, and the run holds the finite state from which that step began.
      Where such steps are skipped, a last epoch that was nothing else warns as well,
      and so do data whose rows are all the same, and latents that are all dead.

    Raises:
      ValueError: for bad data (which row and column), a missing, unknown or non-finite
        hparam, a batch larger than the data, params of another model, or a
        checkpoint_dir that holds another run (which field) or is in use; before any
        work.
      OSError: if a state cannot be saved.
    """
    if checkpoint_dir is not None:
        checkpoint_dir = _checks.folder("checkpoint_dir", checkpoint_dir)
    job = prepare(
        objective,
        data,
        hparams=hparams,
        key=key,
        config=config,
        validation=validation,
        params=params,
        on_epoch=on_epoch,
        is_saved=checkpoint_dir is not None,
    )
    with open_checkpoints(job, checkpoint_dir) as checkpoints:
        run = execute(job, start(job, checkpoints), checkpoints)
    if run.stopped_at is not None:
        warnings.warn(
            f"training stopped at step {run.stopped_at}, where the loss or the "
            "parameters became non-finite; the run holds the state from which that "
            f"step began. {run.reason} {advice(run.stopped_at)}",
            RuntimeWarning,
            stacklevel=2,
        )
    if (sentence := all_steps_skipped(job, run)) is not None:
        warnings.warn(sentence, RuntimeWarning, stacklevel=2)
    # A run that diverged has been warned of, and its latents are what that left.
    for part in ("train", "validation") if run.stopped_at is None else ():
        for sentence in diagnostics.remarks(_last(run, part)):
            warnings.warn(f"{part} data: {sentence}", RuntimeWarning, stacklevel=2)
    return run


def _last(run: Run, part: str) -> dict[str, float]:
    """What was looked at when the last epoch ended."""
    return {
        name.removeprefix(f"{part}/"): float(values[-1])
        for name, values in run.metrics.items()
        if name.startswith(f"{part}/")
    }


def all_steps_skipped(job: "Job", run: Run) -> str | None:
    """What to tell of a run whose last epoch undid each of its steps, else None."""
    skipped = run.metrics.get("train/skipped_steps", np.zeros(1))[-1]
    num_steps = epochs.num_steps(job.data, job.config)
    if skipped < num_steps:
        return None
    return (
        f"{num_steps} of the {num_steps} steps of the last epoch were skipped, for the "
        "loss or the parameters became non-finite at each, so nothing was learned in "
        "it. Try a smaller learning_rate, and look at the data."
    )


def advice(stopped_at: int) -> str:
    """What would do after a divergence at that step."""
    if stopped_at == 0:
        return "Already the first step failed: look at data, hparams and start."
    return "Try a smaller learning_rate."


# ---- a job, checked ------------------------------------------------------------------


class Job(NamedTuple):
    """What `train` was asked for, after every refusal."""

    objective: Any
    data: Data
    validation: Any
    hparams: dict[str, Any]
    key: Any
    config: TrainConfig
    params: Any
    callbacks: tuple[Callable, ...]
    fingerprint: dict[str, Any] | None  # where the run is saved


def prepare(
    objective,
    data,
    *,
    hparams,
    key,
    config=None,
    validation=None,
    params=None,
    on_epoch=None,
    is_saved=False,
) -> Job:
    """Check everything that `train` was given; nothing is written and nothing trained.

    Raises:
      ValueError: as `train`.
    """
    config = TrainConfig() if config is None else config
    checks.check_arguments(objective, key, config, params)
    callbacks = _as_callbacks(on_epoch)
    checks.check_patience(config, validation)
    checks.check_parts(objective, key, config)
    dtype = jnp.float32 if params is None else jax.tree.leaves(params)[0].dtype
    given = data, validation
    data = checks.as_data("data", data, objective, dtype, config)
    checks.check_updates(config, data)
    if validation is not None:
        validation = checks.as_rows(
            "validation", validation, objective, dtype, config.memory_budget
        )
    hparams = checks.as_hparams(hparams, dtype)
    checks.check_hparams(objective, config, data, hparams, key, params)
    identity = None
    if is_saved:
        identity = fingerprint(objective, config, hparams, key, params, *given)
    return Job(
        objective, data, validation, hparams, key, config, params, callbacks, identity
    )


def _as_callbacks(on_epoch) -> tuple[Callable, ...]:
    is_many = isinstance(on_epoch, Iterable) and not callable(on_epoch)
    callbacks = () if on_epoch is None else on_epoch if is_many else (on_epoch,)
    for callback in callbacks:
        if isinstance(on_epoch, str) or not callable(callback):
            raise ValueError(f"on_epoch must be a function, got {on_epoch!r}.")
    return tuple(callbacks)


@contextlib.contextmanager
def open_checkpoints(job: Job, directory: str | os.PathLike[str] | None):
    """The folder that a job is saved to, held while it runs; None without one."""
    if directory is None:
        yield None
        return
    assert job.fingerprint is not None  # prepare(is_saved=True)
    keep = job.config.keep_checkpoints
    with Checkpoints(directory, job.fingerprint, keep=keep) as checkpoints:
        yield checkpoints


def start(job: Job, checkpoints: Checkpoints | None) -> Progress:
    """Where the job stands: at its beginning, or where it was saved last.

    Raises:
      ValueError: if what was saved is damaged, or another run's.
    """
    begun = progress_module.begin(
        job.objective, job.hparams, job.key, job.config, job.params, job.data
    )
    found = None if checkpoints is None else progress_module.restore(checkpoints, begun)
    return begun if found is None else found


# ---- the loop ------------------------------------------------------------------------


def execute(
    job: Job,
    progress: Progress,
    checkpoints: Checkpoints | None = None,
    on_part: Callable[[int], None] | None = None,
) -> Run:
    """Train from where the job stands to its end, or until something ends it.

    Args:
      job: from `prepare`.
      progress: from `start`.
      checkpoints: from `open_checkpoints`.
      on_part: `(step) -> None`, called after each part of an epoch.
    """
    look, on_part = Evaluator(job), on_part or (lambda step: None)
    feed = batching.feed(
        job.data, job.hparams, objective=job.objective, config=job.config
    )
    with Checkpointer(checkpoints, job.config, progress) as saver:
        status = status_of(job, progress)
        while status is None:
            progress = _rest_of_epoch(job, feed, progress, saver, on_part)
            should_stop = False
            if _is_epoch_over(job, progress):
                progress = look.end_epoch(progress)
                should_stop = _call_back(job, progress)
            saver.save_if_due(progress)
            status = status_of(job, progress)
            if status is None and (should_stop or saver.is_interrupted):
                status = "stopped" if should_stop else "interrupted"
        saver.finish(progress)
    return _as_run(progress, status)


def _rest_of_epoch(job: Job, feed, progress: Progress, saver: Checkpointer, on_part):
    """Up to the epoch's end, to where it diverges, or to where a signal waits."""
    start = _epoch_start(job, progress)
    i = int(progress.state.step) - start
    for block in feed(progress.state, i):
        while i < block.last:
            last = min(block.last, i + saver.num_steps(start + i))
            state, means = block.run(progress.state, progress.means, i, last)
            progress, i = progress._replace(state=state, means=means), last
            if int(state.stopped_at) >= 0:
                return _diverged(job, progress, block, start)
            on_part(start + i)
            if not _is_epoch_over(job, progress):
                saver.save_if_due(progress)
                if saver.is_interrupted:
                    return progress
    return progress


def _diverged(
    job: Job, progress: Progress, block: batching.Block, start: int
) -> Progress:
    """Back at the failing step's beginning, with the reason why it failed."""
    state = progress.state
    i = int(state.stopped_at) - start
    batch, rows = block.batch(i)
    reason = divergence.explain(
        state, batch, rows, i, job.hparams, objective=job.objective, config=job.config
    )
    # However many steps ran in vain after it, the run ends in the same state.
    state = state._replace(step=jnp.copy(state.stopped_at))
    return progress._replace(state=state, reason=reason)


def _epoch_start(job: Job, progress: Progress) -> int:
    return len(progress.history) * epochs.num_steps(job.data, job.config)


def _is_epoch_over(job: Job, progress: Progress) -> bool:
    end = _epoch_start(job, progress) + epochs.num_steps(job.data, job.config)
    return progress.reason is not None or int(progress.state.step) == end


def _call_back(job: Job, progress: Progress) -> bool:
    """Whether any callback wants to stop; each is called."""
    row = progress.history[-1]
    answers = [callback(dict(row), progress.state) for callback in job.callbacks]
    return any(map(_says_stop, answers))


def _says_stop(answer: Any) -> bool:
    try:
        return bool(answer)
    except Exception as error:  # as of an array of many
        raise ValueError(
            "on_epoch must return whether to stop, and None or False to go on, got "
            f"{_checks.describe(answer)}."
        ) from error


def status_of(job: Job, progress: Progress) -> str | None:
    """Why there is nothing left to do; None while there is."""
    if progress.reason is not None:
        return "diverged"
    patience, best = job.config.patience, progress.best
    if patience is not None and best is not None:
        if len(progress.history) - best.epoch >= patience:
            return "early_stopped"
    return "finished" if len(progress.history) >= job.config.num_epochs else None


def _as_run(progress: Progress, status: str) -> Run:
    history, state = progress.history, progress.state
    names = history[0] if history else ()
    return Run(
        params=state.params,
        metrics={name: np.array([row[name] for row in history]) for name in names},
        state=state,
        status=status,
        stopped_at=int(state.stopped_at) if status == "diverged" else None,
        best=progress.best,
        reason=progress.reason,
    )
