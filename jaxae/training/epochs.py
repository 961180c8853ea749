"""The step and the epoch: pure, and what a sweep vmaps.

They read no clock, no global state and no random state; the optimiser is built inside
them from traced hyperparameters.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int32

from jaxae import manual
from jaxae.objective import Aux, Objective
from jaxae.training.config import TrainConfig

Data = Any  # [N, D], a pair of such, or a pure source (key, hparams) -> batch


class TrainState(NamedTuple):
    """Everything that a step changes, and the key that it draws from."""

    params: Any
    opt_state: Any
    state: Any  # the objective's
    key: Array  # of data order and noise; never changes
    step: Int32[Array, ""]  # steps begun
    stopped_at: Int32[Array, ""]  # the step that failed; -1 while all is finite


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
    grads, aux = gradient(
        state, batch, key, hparams, is_logged, objective=objective, config=config
    )
    optimizer = config.optimizer(hparams)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    is_running = state.stopped_at < 0
    is_finite = _all_finite((params, aux.metrics["loss"])) & is_running

    def keep(new, old):
        # A traced number may promote a half-precision moment; its dtype is the state's.
        return jnp.where(is_finite, new.astype(old.dtype), old)

    new = TrainState(
        params=jax.tree.map(keep, params, state.params),
        opt_state=jax.tree.map(keep, opt_state, state.opt_state),
        state=jax.tree.map(keep, aux.state, state.state),
        key=state.key,
        step=state.step + 1,
        stopped_at=jnp.where(is_running & ~is_finite, state.step, state.stopped_at),
    )
    return new, aux.metrics, is_finite


# ---- the two gradients ---------------------------------------------------------------


def _autodiff_gradient(state, batch, key, hparams, is_logged, *, objective, config):
    del is_logged, config  # the loss comes with the gradient
    value_and_grad = jax.value_and_grad(objective, has_aux=True)
    (_, aux), grads = value_and_grad(state.params, batch, key, hparams, state.state)
    return grads, aux


def _manual_gradient(state, batch, key, hparams, is_logged, *, objective, config):
    inputs, targets = objective.prepare(batch, key, hparams)
    forward = objective.forward(state.params, inputs)
    grads = manual.batch_grads(
        objective, state.params, inputs, targets, forward, hparams
    )

    def score():
        return objective.score(state.params, forward, targets, hparams)[1]

    if config.log_every == 1:
        return grads, Aux(score(), state.state)
    # The hand-derived gradient needs no loss: computed only where it is logged.
    zeros = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), jax.eval_shape(score))
    metrics = jax.lax.cond(is_logged, score, lambda: zeros)
    return grads, Aux(metrics, state.state)


# ---- batches -------------------------------------------------------------------------


def _batches(key, hparams, data: Data, config: TrainConfig) -> Callable:
    """`i -> batch i` of an epoch."""
    if callable(data):
        return lambda i: data(jax.random.fold_in(key, i), hparams)
    data = jax.tree.map(jnp.asarray, data)
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


# ---- small parts ---------------------------------------------------------------------


def _all_finite(tree) -> Bool[Array, ""]:
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves))


def _mean_where(counts: Bool[Array, "T"], values) -> Array:
    total = jnp.sum(jnp.where(counts, values, 0))
    return total / jnp.sum(counts)  # 0/0, hence NaN, where no step logged and held
