"""The function `train` and its three phases, which the command line calls separately.

`prepare` checks the arguments, `start` returns the initial or the restored state, and
`execute` runs the training loop.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxae import _checks
from jaxae.checkpoints import Checkpoints
from jaxae.training import checkpointing, checks, diagnostics, epochs
from jaxae.training.checkpointing import RunState, fingerprint
from jaxae.training.config import TrainConfig
from jaxae.training.epochs import Data
from jaxae.training.loop import PreparedRun, Run, execute, status_of

__all__ = [
    "PreparedRun",
    "Run",
    "advice",
    "all_steps_skipped",
    "execute",
    "open_checkpoints",
    "prepare",
    "start",
    "status_of",
    "train",
]


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
      objective: the `Objective` to minimise.
      data: training data, one of:
        - a float array, data frame or torch tensor of shape [N, D];
        - an object with `__len__` and `__getitem__` of rows, such as a memory map
          (`jaxae.data.Rows`);
        - a pair (inputs, targets) of these;
        - a source, which is a pure function `(key, hparams) -> batch`; it needs
          config.steps_per_epoch.
      hparams: a dict from name to scalar. It must contain exactly the hyperparameters
        that the objective, the optimizer and the source read.
      key: a JAX random key. The initial parameters, the data order and the corruption
        noise are derived from it; do not reuse it.
      config: the static configuration; `TrainConfig()` by default.
      validation: evaluation data in the same formats as `data`, except a source. They
        are evaluated without corruption after every epoch.
      params: initial parameters; they are copied, and the data are cast to their dtype.
        By default they are drawn in float32, and the weights are multiplied by
        hparams["init_scale"] if it is given.
      on_epoch: a callback `(metrics, state) -> stop`, or a list of callbacks, called
        after every epoch, also after one that diverged. Training stops if any callback
        returns a true value. The next epoch donates the buffers of `state`, so copy the
        arrays that you keep.
      checkpoint_dir: a folder for the checkpoints of this run. If it holds a
        checkpoint, training resumes from it, with results bit-identical to those of an
        uninterrupted run. While training, SIGINT and SIGTERM wait until the state is
        saved.

    Returns:
      A `Run`. If the loss or the parameters become non-finite, training stops with a
      RuntimeWarning, and `Run.state` is the finite state before the failing step. Other
      RuntimeWarnings report that every step of the last epoch was skipped, that all
      rows are equal, or that all latents are dead.

    Raises:
      ValueError: before any work, for bad data (which row and column), a missing,
        unknown or non-finite hyperparameter, a batch larger than the data, params of
        another model, or a checkpoint_dir that is in use or holds another run (which
        field differs).
      OSError: if a checkpoint cannot be saved.
    """
    if checkpoint_dir is not None:
        checkpoint_dir = _checks.folder("checkpoint_dir", checkpoint_dir)
    prepared = prepare(
        objective,
        data,
        hparams=hparams,
        key=key,
        config=config,
        validation=validation,
        params=params,
        on_epoch=on_epoch,
        has_checkpoints=checkpoint_dir is not None,
    )
    with open_checkpoints(prepared, checkpoint_dir) as checkpoints:
        run = execute(prepared, start(prepared, checkpoints), checkpoints)
    for sentence in warnings_of(prepared, run):
        warnings.warn(sentence, RuntimeWarning, stacklevel=2)
    return run


# ---- warnings ------------------------------------------------------------------------


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
    return {
        name.removeprefix(f"{split}/"): float(values[-1])
        for name, values in run.metrics.items()
        if name.startswith(f"{split}/")
    }


# ---- prepare: every check ------------------------------------------------------------


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
    has_checkpoints=False,
) -> PreparedRun:
    """Check every argument of `train`; nothing is written and nothing trained.

    Raises:
      ValueError: as `train`.
    """
    config = TrainConfig() if config is None else config
    checks.check_arguments(objective, key, config, params)
    callbacks = checks.as_callbacks(on_epoch)
    checks.check_patience(config, validation)
    checks.check_parts(objective, key, config)
    dtype = jnp.float32 if params is None else jax.tree.leaves(params)[0].dtype
    rows = checks.as_data("data", data, objective, dtype, config)
    checks.check_updates(config, rows)
    validation_rows = None
    if validation is not None:
        validation_rows = checks.as_rows(
            "validation", validation, objective, dtype, config.memory_budget
        )
    hparams = checks.as_hparams(hparams, dtype)
    checks.check_hparams(objective, config, rows, hparams, key, params)
    run_fingerprint = None
    if has_checkpoints:
        run_fingerprint = fingerprint(
            objective, config, hparams, key, params, data, validation
        )
    return PreparedRun(
        objective=objective,
        data=rows,
        validation=validation_rows,
        hparams=hparams,
        key=key,
        config=config,
        params=params,
        callbacks=callbacks,
        fingerprint=run_fingerprint,
    )


# ---- start: the initial state, or the saved one --------------------------------------


@contextlib.contextmanager
def open_checkpoints(
    prepared: PreparedRun, directory: str | os.PathLike[str] | None
) -> Iterator[Checkpoints | None]:
    """Open and lock the checkpoints of a run; yield None without a folder."""
    if directory is None:
        yield None
        return
    assert prepared.fingerprint is not None  # prepare(has_checkpoints=True)
    keep = prepared.config.keep_checkpoints
    with Checkpoints(directory, prepared.fingerprint, keep=keep) as checkpoints:
        yield checkpoints


def start(prepared: PreparedRun, checkpoints: Checkpoints | None) -> RunState:
    """Return the state of the last checkpoint, or the initial state without one.

    Raises:
      ValueError: if every checkpoint is damaged, or they are another run's.
    """
    initial = _initial_state(prepared)
    saved = None if checkpoints is None else checkpointing.restore(checkpoints, initial)
    return initial if saved is None else saved


def _initial_state(prepared: PreparedRun) -> RunState:
    objective, hparams, params = prepared.objective, prepared.hparams, prepared.params
    if params is not None:  # a copy, because training donates its state
        params = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
    state = epochs.init_state(
        objective, hparams, prepared.key, config=prepared.config, params=params
    )
    batch = _shape_of_batch(prepared, jax.tree.leaves(state.params)[0].dtype)
    means = epochs.init_means(state, batch, hparams, objective=objective)
    state, means = _on_one_mesh((state, means))
    return RunState(state, means, ())


def _shape_of_batch(prepared: PreparedRun, dtype) -> Any:
    if callable(prepared.data):
        return jax.eval_shape(prepared.data, prepared.key, prepared.hparams)
    size = prepared.config.batch_size
    return jax.tree.map(
        lambda rows: jax.ShapeDtypeStruct((size, rows.shape[1]), dtype), prepared.data
    )


def _on_one_mesh(tree: Any) -> Any:
    """Replicate the other leaves over the mesh of the params, if they have one.

    JAX allows no scalar that is committed to one device beside sharded params.
    """
    meshes = [
        leaf.sharding.mesh
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf.sharding, NamedSharding)
    ]
    if not meshes:
        return tree
    everywhere = NamedSharding(meshes[0], PartitionSpec())

    def place(leaf):
        is_placed = isinstance(leaf.sharding, NamedSharding)
        return leaf if is_placed else jax.device_put(leaf, everywhere)

    return jax.tree.map(place, tree)
