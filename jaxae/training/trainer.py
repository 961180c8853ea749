"""`train` and its phases: `prepare` the arguments, `start` or resume, `execute`."""

import contextlib
import functools
import math
import os
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxae._checks import ArgumentError, describe, folder
from jaxae.checkpoints import Checkpoints
from jaxae.training import batches, checkpointing, checks, diagnostics, train_step
from jaxae.training.batches import Block, Data
from jaxae.training.checkpointing import Checkpointer
from jaxae.training.config import TrainConfig
from jaxae.training.run import Best, PreparedRun, Run, RunState, status_of, warnings_of
from jaxae.training.train_step import Means


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
        another model, an unknown config.monitor, or a checkpoint_dir that is in use or
        holds another run (which field differs). After the first epoch, for a monitor of
        log-probabilities if the data lie outside the likelihood's support.
      OSError: if a checkpoint cannot be saved.
    """
    if checkpoint_dir is not None:
        checkpoint_dir = folder("checkpoint_dir", checkpoint_dir)
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
    """Check every argument of `train`; nothing is written and nothing trained."""
    config = TrainConfig() if config is None else config
    checks.check_arguments(objective, key, config, params)
    callbacks = checks.as_callbacks(on_epoch)
    checks.check_patience(config, validation)
    checks.trace_custom_components(objective, key, config)
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
    has_validation = validation is not None
    names = diagnostics.names_of_epoch(objective, config, has_validation)
    checks.check_monitor(config, names)
    run_fingerprint = None
    if has_checkpoints:
        run_fingerprint = checkpointing.fingerprint(
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


def open_checkpoints(
    prepared: PreparedRun, directory: str | os.PathLike[str] | None
) -> contextlib.AbstractContextManager[Checkpoints | None]:
    """Open and lock the checkpoints of a run; None without a folder."""
    if directory is None:
        return contextlib.nullcontext()
    assert prepared.fingerprint is not None  # prepare(has_checkpoints=True)
    keep = prepared.config.keep_checkpoints
    return Checkpoints(directory, prepared.fingerprint, keep=keep)


def start(prepared: PreparedRun, checkpoints: Checkpoints | None) -> RunState:
    """Return the state of the last checkpoint, or the initial state without one."""
    initial = _initial_state(prepared)
    saved = None if checkpoints is None else checkpointing.restore(checkpoints, initial)
    return initial if saved is None else saved


def _initial_state(prepared: PreparedRun) -> RunState:
    objective, data, hparams = prepared.objective, prepared.data, prepared.hparams
    key, config, params = prepared.key, prepared.config, prepared.params
    is_sharded = any(isinstance(s, NamedSharding) for s in _shardings(params))
    init_state = _init_state if is_sharded else _compiled_init_state
    state = init_state(objective, hparams, key, config=config.compiled(), params=params)
    batch = batches.batch_shape(data, key, hparams, config)
    means = train_step.init_means(state, batch, hparams, objective=objective)
    state, means = _on_one_mesh((state, means))
    return RunState(state, means, history=())


def _init_state(objective, hparams, key, *, config, params) -> train_step.TrainState:
    """The initial state in arrays of its own.

    Training donates its state: neither the arrays of the caller, nor an array twice,
    such as the params that the state of optax.contrib.prodigy holds too.
    """
    state = train_step.init_state(objective, hparams, key, config=config, params=params)
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)


# One program instead of one for each shape. Of sharded params, the optimizer's state
# would not be sharded.
_compiled_init_state = jax.jit(_init_state, static_argnames=("objective", "config"))


def _shardings(tree: Any) -> list:
    leaves = jax.tree.leaves(tree)
    return [leaf.sharding for leaf in leaves if isinstance(leaf, jax.Array)]


def _on_one_mesh(tree: Any) -> Any:
    """Replicate the other leaves over the mesh of the params, if they have one.

    JAX allows no scalar that is committed to one device beside sharded params.
    """
    named = [s for s in _shardings(tree) if isinstance(s, NamedSharding)]
    if not named:
        return tree
    everywhere = NamedSharding(named[0].mesh, PartitionSpec())
    return jax.tree.map(
        lambda leaf: (
            leaf if leaf.sharding in named else jax.device_put(leaf, everywhere)
        ),
        tree,
    )


# ---- execute: the loop over segments and epochs --------------------------------------

# First and last step are traced, so that one program runs any segment of an epoch.
_run_steps = jax.jit(
    train_step.run_steps,
    static_argnames=("objective", "config"),
    donate_argnames=("state", "means"),
)
# One dispatch for all metrics: eagerly, each would cost as much as a small step.
_read_means = jax.jit(Means.read, static_argnums=1)
_zeros_like = jax.jit(functools.partial(jax.tree.map, jnp.zeros_like))


def execute(
    prepared: PreparedRun,
    run_state: RunState,
    checkpoints: Checkpoints | None = None,
    on_segment: Callable[[int], None] | None = None,
) -> Run:
    """Train until the last epoch, early stopping, a callback, a signal or divergence.

    `on_segment(step)` is called after every segment of an epoch.
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
    return _as_run(prepared, run_state, status)


def _train_epoch(
    prepared: PreparedRun, run_state: RunState, checkpointer: Checkpointer, on_segment
) -> RunState:
    """Train to the end of the epoch, or until it diverges or a signal interrupts it.

    A segment is the range of steps that one call of the compiled program runs.
    """
    data, hparams, config = prepared.data, prepared.hparams, prepared.config
    program = {"objective": prepared.objective, "config": config.compiled()}
    epoch_start = len(run_state.history) * prepared.steps_per_epoch
    first = int(run_state.state.step) - epoch_start
    for block in batches.blocks(
        data, run_state.state.key, epoch_start, first, hparams, config
    ):
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
    prepared: PreparedRun, run_state: RunState, block: Block, epoch_start: int
) -> RunState:
    """The state at the beginning of the failing step, with the reason why it failed."""
    state = run_state.state
    i = int(state.stopped_at) - epoch_start
    reason = diagnostics.explain_divergence(
        state,
        block.batch_at(i),
        block.order,
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
    objective, hparams, config = prepared.objective, prepared.hparams, prepared.config
    state = run_state.state

    def evaluate(X):
        return diagnostics.evaluate(objective, state.params, X, hparams, state.state)

    metrics = _prefixed("train", _read_means(run_state.means, config.compiled()))
    if probe is not None:
        scores = evaluate(probe)
        for name in diagnostics.names_of_step(objective):
            del scores[name]  # "train/" has their means over the steps of the epoch
        batch = jax.tree.map(lambda rows: rows[: config.batch_size], probe)
        norms = diagnostics.step_norms(  # with the same noise after every epoch
            state, batch, state.key, hparams, objective=objective, config=config
        )
        metrics |= _prefixed("train", scores) | norms
    if prepared.validation is not None:
        metrics |= _prefixed("validation", evaluate(prepared.validation))
    return {name: float(value) for name, value in metrics.items()}


def _prefixed(split: str, metrics: dict[str, Any]) -> dict[str, Any]:
    return {f"{split}/{name}": value for name, value in metrics.items()}


def _end_epoch(
    run_state: RunState, metrics: dict[str, float], config: TrainConfig
) -> RunState:
    checks.check_monitor(config, metrics)  # log_prob is absent for some data
    history = (*run_state.history, metrics)
    value, best = metrics.get(config.monitor, math.nan), run_state.best
    is_complete = run_state.reason is None
    is_better = not math.isnan(value) and (best is None or value < best.value)
    if is_complete and is_better:
        # A copy: the state is donated to the next epoch.
        state = run_state.state
        copies = jax.tree.map(jnp.copy, (state.params, state.state))
        best = Best(len(history), value, *copies)
    means = _zeros_like(run_state.means)
    return run_state._replace(means=means, history=history, best=best)


def _call_back(prepared: PreparedRun, run_state: RunState) -> bool:
    """Call every callback; return whether any of them asks to stop."""
    metrics, state = run_state.history[-1], run_state.state
    answers = [callback(dict(metrics), state) for callback in prepared.callbacks]
    return any(map(_as_bool, answers))


def _as_bool(answer: Any) -> bool:
    try:
        return bool(answer)
    except Exception as error:  # for example, an array of several elements
        problem = "must return a truth value, where None or False continues training"
        raise ArgumentError("on_epoch", problem, describe(answer)) from error


def _as_run(prepared: PreparedRun, run_state: RunState, status: str) -> Run:
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
        model=prepared.objective.inference_model(
            state.params, prepared.hparams, state.state
        ),
    )
