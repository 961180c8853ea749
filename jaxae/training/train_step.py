"""The training step and the epoch: pure functions, which a sweep vmaps.

The optimizer is built inside them from traced hyperparameters.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int32

from jaxae import _checks, manual
from jaxae.autoencoder import Autoencoder
from jaxae.autoencoder.parametrizations import LATENT_FIELDS
from jaxae.objective import Objective, latent_mask
from jaxae.terms import Pass
from jaxae.training.batches import (
    Data,
    batches_of,
    noise_key_of,
    num_rows,
    num_steps,
    order_of,
)
from jaxae.training.config import TrainConfig

INIT_SCALE = "init_scale"  # may be left out
INIT_SCALES = _checks.POSITIVE


class TrainState(NamedTuple):
    """Everything that a step changes, and the key of its random numbers."""

    params: Any
    opt_state: Any
    state: Any  # the objective's, by the name of the component
    key: Array  # of data order and noise; never changes
    step: Int32[Array, ""]  # steps begun
    stopped_at: Int32[Array, ""]  # the first non-finite step; -1 if there is none


def init_state(
    objective: Objective, hparams, key, *, config: TrainConfig, params=None
) -> TrainState:
    """The state before the first step; by default `params` are drawn from `key`.

    Drawn weights are those of `objective.ae.init`, times the hyperparameter
    `init_scale` where there is one.
    """
    if params is None:
        params = initial_params(objective.ae, hparams, key)
    return TrainState(
        params=params,
        opt_state=config.optimizer(hparams).init(params),
        state=objective.init_state(),
        key=data_key_of(key),
        step=jnp.int32(0),
        stopped_at=jnp.int32(-1),
    )


def initial_params(ae: Autoencoder, hparams, key, *, limit=None) -> Any:
    """Draw the parameters of a run from its key, with 0 in the padding of a lane.

    `limit` is the `init_limit` of the lane's own model; by default that of `ae`.
    """
    limit = ae.init_limit if limit is None else limit
    init_key, _ = jax.random.split(key)
    params = ae.init(init_key, limit=limit, scale=hparams.get(INIT_SCALE, 1.0))
    mask = latent_mask(ae, hparams)
    return params if mask is None else _without_padding(params, mask)


def data_key_of(key) -> Array:
    """Return the key of data order and noise, derived from the run's key."""
    return jax.random.split(key)[1]


class Means(NamedTuple):
    """Running means of an epoch's metrics, over logged steps that were kept."""

    values: dict[str, Array]
    num_logged: Int32[Array, ""]
    num_skipped: Int32[Array, ""]

    def add(self, metrics: dict[str, Array], counts, is_skipped) -> "Means":
        """Update the means with one step's metrics if `counts` is true."""
        num_logged = self.num_logged + counts

        def updated(mean, value):
            # A running mean has a smaller rounding error than a running sum.
            return jnp.where(counts, mean + (value - mean) / num_logged, mean)

        values = jax.tree.map(updated, self.values, metrics)
        return Means(values, num_logged, self.num_skipped + is_skipped)

    def read(self, config: TrainConfig) -> dict[str, Array]:
        """The means, NaN if no step counts; and the number of skipped steps."""
        is_empty = self.num_logged == 0
        means = {n: jnp.where(is_empty, jnp.nan, v) for n, v in self.values.items()}
        if config.on_nonfinite == "skip":
            means["skipped_steps"] = self.num_skipped
        return means


def init_means(state: TrainState, batch, hparams, *, objective: Objective) -> Means:
    """Return means of 0 over no steps, with the names and dtypes of the metrics."""
    _, aux = jax.eval_shape(
        objective, state.params, batch, state.key, hparams, state.state
    )

    def zeros(metric):
        return jnp.zeros(metric.shape, jnp.promote_types(metric.dtype, jnp.float32))

    values = jax.tree.map(zeros, aux.metrics)
    return Means(values, jnp.int32(0), jnp.int32(0))


def epoch(
    state: TrainState, hparams, data: Data, *, objective: Objective, config: TrainConfig
) -> tuple[TrainState, dict[str, Array]]:
    """One pass over the data, in an order drawn from the state's key; pure, vmappable.

    Args:
      state: from `init_state` or an epoch before.
      hparams: traced scalars by name.
      data: `[N, D]`, a pair (inputs, targets) of such arrays, or a source
        `(key, hparams) -> batch`.
      objective: what is minimised.
      config: the static configuration; only the fields that the compiled program
        depends on are read.

    Returns:
      The new state, and each metric's mean over the logged steps that were not undone.
    """
    last, order = num_steps(data, config), None
    if not callable(data):
        order = order_of(state.key, state.step, num_rows(data))
    batch_at = batches_of(state.key, state.step, hparams, data, order, config)
    means = init_means(state, batch_at(0), hparams, objective=objective)
    state, means = run_steps(
        state, means, batch_at, hparams, 0, last, objective=objective, config=config
    )
    return state, means.read(config)


def run_steps(
    state: TrainState,
    means: Means,
    batch_at: Callable[[Any], Any],
    hparams,
    first,
    last,
    *,
    objective: Objective,
    config: TrainConfig,
    selects: bool = False,
) -> tuple[TrainState, Means]:
    """Run steps first, ..., last - 1 of an epoch from `state`, which is before `first`.

    A step that fails is undone in one of two ways. With `selects`, every step selects
    the new state or the old one, which writes each array twice. Otherwise the loop ends
    at the failing step, and the steps before it run again; a step of 784 x 500 with
    Adam then takes 3.2 instead of 3.4 ms on two CPU cores. Under vmap, a loop that may
    end selects anyway; there `selects` takes 0.85 of the time (100 lanes of 64 x 32).

    first and last may be traced: one program then runs any range of steps, and an
    epoch gives bit-identical results however it is divided.
    """
    static: dict[str, Any] = {"objective": objective, "config": config}
    noise_key = noise_key_of(state.key, state.step - first)

    def with_step(means, metrics, i, is_finite):
        is_logged = i % config.log_every == 0
        return means.add(metrics, is_logged & is_finite, ~is_finite)

    def one_selected_step(i, carry):
        state, means = carry
        key = jax.random.fold_in(noise_key, i)
        state, metrics, is_finite = step(state, batch_at(i), key, hparams, **static)
        return state, with_step(means, metrics, i, is_finite)

    if selects or config.on_nonfinite == "skip":
        return jax.lax.fori_loop(first, last, one_selected_step, (state, means))

    def one_step(carry):
        i, _, state, means = carry
        key = jax.random.fold_in(noise_key, i)
        update = compute_update(state, batch_at(i), key, hparams, **static)
        new, is_finite = _checked(update, state, config)
        return i + 1, is_finite, new, with_step(means, update.metrics, i, is_finite)

    def steps_until(carry):
        """Run the steps before `last` from the start, or up to one that fails."""
        _, last, *_ = carry
        i, is_finite, *end = jax.lax.while_loop(
            lambda carry: (carry[0] < last) & carry[1],
            one_step,
            (jnp.int32(first), jnp.bool(True), state, means),
        )
        return last, jnp.where(is_finite, last, i - 1), *end

    limit = jnp.where(state.stopped_at < 0, last, first)  # no step if one failed before
    _, reached, end, end_means = jax.lax.while_loop(
        lambda carry: carry[1] < carry[0],
        steps_until,
        (limit + 1, limit, state, means),
    )
    stopped_at = jnp.where(reached < limit, end.step, end.stopped_at)
    return end._replace(stopped_at=stopped_at), end_means


class Update(NamedTuple):
    """The result of a step before the check that it is finite."""

    loss: Float[Array, ""]
    metrics: dict[str, Array]
    batch: Pass  # the batch's pass through the model
    grads: Any
    updates: Any  # of the optimizer
    state: TrainState  # with the updates applied


def compute_update(
    state: TrainState, batch, key, hparams, *, objective: Objective, config: TrainConfig
) -> Update:
    """Compute the gradient on one batch and the update, without a check for NaN."""
    arguments = state.params, batch, key, hparams, state.state
    if config.gradient_of(objective) == "manual":
        loss, (aux, p) = objective.value_and_pass(*arguments, by_codes=True)
        grads = manual.batch_grads(objective, state.params, p)
    else:
        value_and_grad = jax.value_and_grad(objective.value_and_pass, has_aux=True)
        (loss, (aux, p)), grads = value_and_grad(*arguments)
    optimizer = config.optimizer(hparams)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    new = state._replace(params=params, opt_state=opt_state, state=aux.state)
    return Update(loss, aux.metrics, p, grads, updates, new)


def step(
    state: TrainState, batch, key, hparams, *, objective: Objective, config: TrainConfig
) -> tuple[TrainState, dict[str, Array], Bool[Array, ""]]:
    """Make one update; if the result is not finite, keep the old state instead.

    With config.on_nonfinite "skip", only this step is undone. With "stop", all later
    steps are undone as well.

    Returns:
      The new state, the metrics, and whether the step was kept.
    """
    update = compute_update(
        state, batch, key, hparams, objective=objective, config=config
    )
    new, is_finite = _checked(update, state, config)
    is_running = state.stopped_at < 0
    stops = is_running & ~is_finite & (config.on_nonfinite == "stop")
    new = _selected(is_finite & is_running, new, state)
    new = new._replace(stopped_at=jnp.where(stops, state.step, state.stopped_at))
    return new, update.metrics, is_finite & is_running


def _checked(
    update: Update, state: TrainState, config: TrainConfig
) -> tuple[TrainState, Bool[Array, ""]]:
    """The state after an update of `state`, and whether it and the loss are finite."""
    new = _after_update(update.state, update.batch, config)
    is_finite = all_finite((new.params, update.loss))
    # If gradients are accumulated, the optimizer's state is NaN before the parameters.
    is_finite &= ~_any_nan((new.opt_state, new.state))

    def of_old_dtype(new, old):
        # A traced hyperparameter may promote a half-precision moment.
        return jax.tree.map(lambda new, old: new.astype(old.dtype), new, old)

    new = new._replace(
        params=of_old_dtype(new.params, state.params),
        opt_state=of_old_dtype(new.opt_state, state.opt_state),
        state=of_old_dtype(new.state, state.state),
        step=state.step + 1,
    )
    return new, is_finite


def _selected(is_kept, new: TrainState, old: TrainState) -> TrainState:
    """The new state if `is_kept`, else the old one with the new count of steps."""

    def kept(new, old):
        return jax.tree.map(lambda new, old: jnp.where(is_kept, new, old), new, old)

    return new._replace(
        params=kept(new.params, old.params),
        opt_state=kept(new.opt_state, old.opt_state),
        state=kept(new.state, old.state),
    )


def _after_update(state: TrainState, p: Pass, config: TrainConfig) -> TrainState:
    """The state as config.after_update changes it: all but key, step and stopped_at."""
    if config.after_update is None:
        return state
    changed = config.after_update(state, p)
    changed = _checks.returned_state("after_update", changed, state)
    if p.mask is not None:  # padding stays 0, as a narrower model has none
        changed = changed._replace(params=_without_padding(changed.params, p.mask))
    return changed._replace(key=state.key, step=state.step, stopped_at=state.stopped_at)


def _without_padding(params: Any, mask) -> Any:
    """The params with 0 in the rows of latents that are padding."""

    def masked(leaf):
        return jnp.where(mask.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0)

    names = [n for n in LATENT_FIELDS if n in params._fields]
    return params._replace(  # b_enc may be (), which has no leaf
        **{name: jax.tree.map(masked, getattr(params, name)) for name in names}
    )


def all_finite(tree) -> Bool[Array, ""]:
    """Whether every number of a pytree is finite."""
    # The maximum is NaN where an element is: one pass, without an array of flags.
    leaves = [jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack([leaf < jnp.inf for leaf in leaves]))


def _any_nan(tree) -> Bool[Array, ""]:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    is_nan = [jnp.isnan(jnp.max(leaf, initial=-jnp.inf)) for leaf in floats]
    return jnp.any(jnp.stack(is_nan)) if is_nan else jnp.bool(False)
