"""Metrics of a dataset, norms of a training step, and the cause of a divergence."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxae import _checks, manual, metrics
from jaxae import data as data_module
from jaxae._checks import ArgumentError
from jaxae._moments import Moments, merge
from jaxae.objective import Objective
from jaxae.terms import Pass, example_losses
from jaxae.training import train_step
from jaxae.training.batches import map_pair, noise_key_of, num_rows
from jaxae.training.config import TrainConfig

# ---- metrics of a dataset ------------------------------------------------------------


def evaluate(
    objective: Objective,
    params,
    X,
    hparams,
    state: Any = (),
    *,
    block_rows: int = 16384,
) -> dict[str, float]:
    """Compute the metrics of a dataset of any size, block by block, without corruption.

    "loss", "reconstruction", each penalty and "squared_error": as `objective.evaluate`
        without its compute_dtype, but means over the blocks, weighted by their rows.
        These differ from the values on all rows at once for a penalty that is not a
        mean over examples (kl_sparsity).
    "fvu": sum ||x_hat - x||^2 / sum ||x - mean(x)||^2 over all rows; nan if all rows
        are equal.
    "log_prob", "bits_per_dim": the mean of log p(x | x_hat) in nats, and in bits per
        column. Present only if the observation is a likelihood and every row lies in
        its support: absent for grey levels under a Bernoulli.
    "l0": the mean number of latents that are not 0, also with the penalty of that name.
    "dead_fraction": fraction of latents that are 0 on every row (`metrics.is_dead`).
    "saturated_fraction": fraction of latents that are flat on every row
        (`metrics.saturated_fraction`). Only for an activation with a slope.

    The rows of a block are summed in float32, or in float64 for a float64 model; blocks
    are summed in float64 on the host. Values are not checked: `train` does that.

    X is an array `[N, D]`, an object that returns rows for a slice, such as a memory
    map, or a pair (inputs, targets) of these. At most two shapes are compiled, that of
    a full block and that of the last one.
    """

    def of_batch(batch):
        return evaluate_block(params, batch, hparams, state, objective=objective)

    sums = sum_blocks(of_batch, X, _checks.positive_int("block_rows", block_rows))
    metrics = as_metrics(objective, sums)
    return {name: float(value) for name, value in metrics.items()}


def remarks(metrics: Mapping[str, float]) -> list[str]:
    """Warnings about the metrics of a dataset, one sentence each."""
    sentences = []
    if math.isnan(metrics.get("fvu", 0)) and math.isfinite(metrics["squared_error"]):
        sentences.append("all rows are equal, so their variance is 0 and fvu is nan.")
    if metrics.get("dead_fraction") == 1:
        sentences.append(
            "all latents are dead (0 on every row), so all reconstructions are equal. "
            "Try a smaller learning_rate, weaker penalties or another scaling."
        )
    return sentences


class Sums(NamedTuple):
    """Statistics of rows, in float64 on the host, for one model or several under vmap.

    Attributes:
      moments: of the targets.
      totals: means over the rows, times the number of rows, by name.
      flags: what holds on every row: `[H]` or scalars, by name.
    """

    moments: Moments
    totals: dict[str, Any]
    flags: dict[str, Any]


def sum_blocks(evaluate_batch: Callable[[Any], dict], X, block_rows: int) -> Sums:
    """Sum what `evaluate_batch`, an `evaluate_block` of one or more models, returns."""
    X = map_pair(functools.partial(_checks.as_array, "X"), X)
    lengths = [len(rows) for rows in (X if isinstance(X, tuple) else (X,))]
    if lengths[0] == 0 or lengths[0] != lengths[-1]:
        raise ArgumentError(
            "X",
            "must have rows, and as many targets as inputs",
            f"{' and '.join(map(str, lengths))} rows",
        )

    def sums_at(start):
        block = slice(start, start + block_rows)
        batch = map_pair(lambda rows: jnp.asarray(rows[block]), X)
        evaluated = jax.device_get(evaluate_batch(batch))
        moments = _moments_of(jax.tree.leaves(batch)[-1])
        totals = {
            name: moments.num_rows * np.asarray(mean, np.float64)
            for name, mean in evaluated["means"].items()
        }
        return Sums(moments, totals, evaluated["flags"])

    return functools.reduce(_merge, map(sums_at, range(0, lengths[0], block_rows)))


def _merge(left: Sums, right: Sums) -> Sums:
    return Sums(
        merge(left.moments, right.moments),
        jax.tree.map(np.add, left.totals, right.totals),
        jax.tree.map(np.logical_and, left.flags, right.flags),
    )


def _moments_of(targets) -> Moments:
    first, means, squares = (
        np.asarray(part, np.float64)
        for part in jax.device_get(_float32_moments(targets))
    )
    return Moments(len(targets), first + means.sum(axis=0), squares)


@jax.jit
def _float32_moments(X: Float[Array, "B D"]):
    """Return row 0, the mean minus row 0 and its rounding error, and sums of squares.

    The squares are (x - mean)^2. Deviations are taken from row 0, so that they are
    exactly 0 for a constant column.
    """
    X = _widened(X)
    from_first = X - X[:1]
    mean = jnp.mean(from_first, axis=0, keepdims=True)
    residual = from_first - mean  # its mean is the rounding error of the mean
    means = jnp.concatenate([mean, jnp.mean(residual, axis=0, keepdims=True)])
    return X[0], means, jnp.sum(residual**2, axis=0)


_WIDENED = ("targets", "a", "z", "eta", "etas")  # of a pass, before its sums


@functools.partial(jax.jit, static_argnames="objective")
def evaluate_block(
    params, batch, hparams, state: Any = (), *, objective: Objective
) -> dict[str, Any]:
    """Return "means" over the rows of a block, and "flags": what holds on every row."""
    clean = objective.for_evaluation()
    p = clean.forward(params, batch, None, hparams, state, training=False)
    # The model computes in its own precision; its results are summed in float32.
    params = _widened(params)
    p = p._replace(**{n: _widened(getattr(p, n)) for n in _WIDENED})
    means = {**clean.evaluate_pass(params, p), "l0": metrics.l0(p.z)}
    flags = {
        "is_latent": jnp.ones(p.z.shape[1:], bool) if p.mask is None else p.mask,
        "is_dead": metrics.is_dead(p.z),
    }
    if clean.ae.activation.slope is not None:
        is_saturated = metrics.is_saturated(clean.ae, p.a, p.z)
        flags["is_saturated"] = is_saturated.all(axis=0)
    if clean.ae.observation.base_measure != "none":
        log_probs, is_in_support = _log_probs(clean, params, p)
        means["log_prob"] = jnp.mean(log_probs)
        flags["is_in_support"] = is_in_support.all()
    return {"means": means, "flags": flags}


def _widened(tree):
    """The arrays of a pytree in float32, or in a wider dtype of their own."""

    def widened(leaf):
        return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))

    return jax.tree.map(widened, tree)


def _log_probs(objective: Objective, params, p: Pass):
    """Return log p of each row, and whether the row is in the likelihood's support."""
    observation = objective.ae.observation

    def of_row(eta, target):
        log_prob = observation.checked_log_prob(eta, target, params.observation)
        loss = observation.checked_loss(eta, target, params.observation)
        return log_prob, ~metrics.is_outside_support(log_prob, loss)

    return jax.vmap(of_row)(p.eta, p.targets)


def names_of_step(objective: Objective) -> tuple[str, ...]:
    """The metrics of every step of training."""
    return "loss", *(term.name for term in objective.terms)


def names_of_epoch(
    objective: Objective, config: TrainConfig, has_validation: bool
) -> list[str]:
    """The metrics of an epoch of `train`; log_prob and bits_per_dim may be absent."""
    ae = objective.ae
    of_model = [*names_of_step(objective), "squared_error", "fvu"]
    if ae.observation.base_measure != "none":
        of_model += ["log_prob", "bits_per_dim"]
    of_model += ["dead_fraction"] if "l0" in of_model else ["l0", "dead_fraction"]
    if ae.activation.slope is not None:
        of_model.append("saturated_fraction")
    of_train = of_model if config.diagnostics else names_of_step(objective)
    names = [f"train/{name}" for name in of_train]
    if config.on_nonfinite == "skip":
        names.append("train/skipped_steps")
    if config.diagnostics:
        params = jax.eval_shape(ae.init, jax.random.key(0))
        leaves = [name for name, _ in _checks.named(params)]
        names += [f"{norm}/{leaf}" for norm in _NORMS for leaf in leaves]
    if has_validation:
        names += [f"validation/{name}" for name in of_model]
    return names


def as_metrics(objective: Objective, sums: Sums) -> dict[str, Any]:
    """Return the metrics of all rows: numbers, or arrays if several models are vmapped.

    `log_prob` is nan for a model with a row outside the support, and absent if every
    model has one.
    """
    flags, num_rows = sums.flags, sums.moments.num_rows
    means = {name: total / num_rows for name, total in sums.totals.items()}
    values = {n: means[n] for n in (*names_of_step(objective), "squared_error")}
    variance = sums.moments.squares.sum() or math.nan
    values["fvu"] = sums.totals["squared_error"] / variance
    if np.any(flags.get("is_in_support", False)):
        log_prob = np.where(flags["is_in_support"], means["log_prob"], math.nan)
        values["log_prob"] = log_prob
        values["bits_per_dim"] = metrics.bits_of_nats(log_prob, objective.ae.output_dim)
    values["l0"] = means["l0"]
    num_latents = flags["is_latent"].sum(axis=-1)
    for name in ("dead", "saturated"):
        if f"is_{name}" in flags:
            num_flagged = (flags[f"is_{name}"] & flags["is_latent"]).sum(axis=-1)
            values[f"{name}_fraction"] = num_flagged / num_latents
    return values


# ---- the same rows after every epoch -------------------------------------------------

PROBE_ROWS = 10_000  # at most; of training data in memory
_PROBE_BATCHES = 8  # of a source
_PROBE_KEY = 2**32 - 1  # folded into the run's key


def probe(data: Any, key, hparams) -> Any:
    """At most `PROBE_ROWS` rows spread evenly over the training data, on the device."""
    if callable(data):
        return _draw_probe(key, hparams, source=data)
    size = num_rows(data)
    step = math.ceil(size / PROBE_ROWS)

    def take(rows):
        if isinstance(rows, jax.Array):
            return rows if step == 1 else rows[::step]
        return jnp.asarray(data_module.take(rows, np.arange(0, size, step)))

    return jax.tree.map(take, data)


@functools.partial(jax.jit, static_argnames="source")
def _draw_probe(key, hparams, *, source) -> Any:
    # Not split(key), whose first two keys draw the parameters and the training data.
    keys = jax.random.split(jax.random.fold_in(key, _PROBE_KEY), _PROBE_BATCHES)
    batches = [source(key, hparams) for key in keys]

    def concatenate(*arrays):  # each an array, or a list that stands for one
        return jnp.concatenate(list(map(jnp.asarray, arrays)))

    return jax.tree.map(concatenate, *batches, is_leaf=lambda a: isinstance(a, list))


# ---- norms of a step -----------------------------------------------------------------

_NORMS = "gradient", "gradient/encoder", "gradient/decoder", "update_ratio"


def step_norms(
    state, batch, key, hparams, *, objective: Objective, config: TrainConfig
) -> dict[str, Float[Array, ""]]:
    """Return norms of the gradient and of the update of a step from `state`.

    For every leaf of the params, such as W:

    "gradient/W": ||dJ/dW||, of the gradient that training uses.
    "gradient/encoder/W", "gradient/decoder/W": the norms of the parts by path
        (`manual.batch_path_grads`), without direct gradients of penalties on the
        parameters, such as weight decay; 0 if the leaf is not on that path.
    "update_ratio/W": ||update|| / max(||W||, ||update||), of the update that the
        optimizer would make. It is 1 if W is smaller than the update, such as a bias
        that is still 0, and 0 if both norms are 0.
    """
    trees = _step_norms(
        state, batch, key, hparams, objective=objective, config=config.compiled()
    )
    return {
        f"{prefix}/{name}": norm
        for prefix, tree in trees.items()
        for name, norm in _checks.named(tree)
    }


@functools.partial(jax.jit, static_argnames=("objective", "config"))
def _step_norms(state, batch, key, hparams, *, objective, config) -> dict[str, Any]:
    update = train_step.compute_update(
        state, batch, key, hparams, objective=objective, config=config
    )
    paths = manual.batch_path_grads(objective, state.params, update.batch)
    norms = [
        jax.tree.map(_norm, update.grads),
        jax.tree.map(_norm, paths.encoder),
        jax.tree.map(_norm, paths.decoder),
        jax.tree.map(_ratio, update.updates, state.params),
    ]
    return dict(zip(_NORMS, norms, strict=True))


def _norm(leaf) -> Float[Array, ""]:
    return jnp.linalg.norm(_widened(leaf).ravel())


def _ratio(update, leaf) -> Float[Array, ""]:
    update = _norm(update)
    larger = jnp.maximum(update, _norm(leaf))
    return update / jnp.where(larger == 0, 1, larger)


# ---- the cause of a divergence -------------------------------------------------------

_MAX_ROWS = 5  # named in the sentence


def explain_divergence(
    state, batch, order, i: int, hparams, *, objective: Objective, config: TrainConfig
) -> str:
    """Say what was not finite in step i of an epoch, by computing that step again.

    `state` is the one before that step, and `state.stopped_at` the step's number in the
    run; `order` is that of the rows in the epoch, None for a source.
    """
    key = jax.random.fold_in(noise_key_of(state.key, state.stopped_at - i), i)
    config = config.compiled()
    is_finite = jax.device_get(
        _is_finite(state, batch, key, hparams, objective=objective, config=config)
    )
    cause = "A state, or the parameters after after_update, are not finite."
    if not is_finite["loss"]:
        cause = "The loss is not finite."
    for name in ("update", "gradient"):  # a gradient that is not finite comes first
        leaves = [leaf for leaf, is_ok in _checks.named(is_finite[name]) if not is_ok]
        if leaves:
            cause = f"The {name} of {', '.join(leaves)} is not finite."
    first_row = i * config.batch_size
    rows = None if order is None else np.asarray(order)[first_row:]
    return f"{cause} {_failing_rows(~is_finite['losses'], rows)}"


def _failing_rows(is_bad: np.ndarray, rows: np.ndarray | None) -> str:
    if not is_bad.any():
        return "The loss of each example is finite."
    places = np.flatnonzero(is_bad)
    places = np.sort(places if rows is None else rows[places])
    listed = ", ".join(map(str, places[:_MAX_ROWS]))
    more = f" and {len(places) - _MAX_ROWS} more" if len(places) > _MAX_ROWS else ""
    where = "of the batch" if rows is None else "of the data"
    kind = "row" if len(places) == 1 else "rows"
    return f"The loss of {kind} {listed}{more} {where} is not finite."


@functools.partial(jax.jit, static_argnames=("objective", "config"))
def _is_finite(state, batch, key, hparams, *, objective, config) -> dict[str, Any]:
    update = train_step.compute_update(
        state, batch, key, hparams, objective=objective, config=config
    )
    losses = example_losses(objective.ae, state.params, update.batch)
    return {
        "gradient": jax.tree.map(train_step.all_finite, update.grads),
        "update": jax.tree.map(train_step.all_finite, update.state.params),
        "loss": jnp.isfinite(update.loss),
        "losses": jnp.isfinite(losses),
    }
