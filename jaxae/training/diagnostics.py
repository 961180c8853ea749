"""The metrics of a dataset, and the norms of a training step."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxae import _checks, manual, metrics
from jaxae._moments import Moments, merge
from jaxae.objective import Objective
from jaxae.terms import Pass
from jaxae.training import epochs
from jaxae.training.config import TrainConfig

# ---- a dataset -----------------------------------------------------------------------


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

    "loss", "reconstruction", each penalty and "squared_error": means over the blocks,
        weighted by their rows, of the values of `objective.evaluate` without its
        compute_dtype. For a penalty that is not a mean over examples (kl_sparsity)
        they differ from the values on all rows at once.
    "fvu": sum ||x_hat - x||^2 / sum ||x - mean(x)||^2 over all rows; nan if all rows
        are equal.
    "log_prob", "bits_per_dim": the mean of log p(x | x_hat) in nats, and in bits per
        column. Present only if the observation is a likelihood and every row lies in
        its support: absent for grey levels under a Bernoulli.
    "l0": the mean number of latents that are not 0.
    "dead_fraction": fraction of latents that are 0 on every row (`metrics.is_dead`).
    "saturated_fraction": fraction of latents that are flat on every row
        (`metrics.saturated_fraction`). Only for an activation with a slope.

    The rows of a block are summed in float32, or in float64 for a float64 model; blocks
    are summed in float64 on the host. Values are not checked: `train` does that.

    Args:
      objective: what is minimised.
      params: the model's parameters.
      X: an array `[N, D]`, an object with a length that returns rows for a slice, such
        as a memory map, or a pair (inputs, targets) of these.
      hparams: a dict of scalars with at least the hyperparameters of the penalties.
      state: the objective's state.
      block_rows: number of rows of a block. At most two shapes are compiled, that of a
        full block and that of the last one.

    Raises:
      ValueError: as `objective.evaluate`, and for no rows or a pair of unequal lengths.
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
    """Statistics of rows, in float64 on the host; leading axes are vmapped models."""

    moments: Moments  # of the targets
    totals: dict[str, Any]  # means over the rows, times their number
    is_latent: Bool[np.ndarray, "*lanes H"]  # not padding
    is_dead: Bool[np.ndarray, "*lanes H"]
    is_saturated: Bool[np.ndarray, "*lanes H"] | None  # None without a slope
    is_outside: Any  # whether a row lies outside the likelihood's support


def sum_blocks(evaluate_batch: Callable[[Any], dict], X, block_rows: int) -> Sums:
    """Compute the statistics of all rows of X, block by block.

    Args:
      evaluate_batch: a function of a batch that returns the dict of `evaluate_block`,
        of one model or, along leading axes, of several.
      X: rows `[N, D]`, or a pair (inputs, targets).
      block_rows: number of rows of a block.
    """
    is_pair = isinstance(X, tuple)
    parts = tuple(_checks.as_array("X", part) for part in (X if is_pair else (X,)))
    num_rows = len(parts[0])
    if num_rows == 0 or num_rows != len(parts[-1]):
        lengths = " and ".join(str(len(part)) for part in parts)
        raise _checks.ArgumentError(
            "X", "must have rows, and as many targets as inputs", f"{lengths} rows"
        )

    def sums_at(start):
        block = tuple(jnp.asarray(part[start : start + block_rows]) for part in parts)
        evaluated = evaluate_batch(block if is_pair else block[0])
        return _as_sums(jax.device_get(evaluated), _moments_of(block[-1]))

    return functools.reduce(_merge, map(sums_at, range(0, num_rows, block_rows)))


def _as_sums(evaluated: dict[str, Any], moments: Moments) -> Sums:
    means = evaluated.pop("means")
    totals = {
        name: moments.num_rows * np.asarray(mean, np.float64)
        for name, mean in means.items()
    }
    return Sums(moments, totals, **evaluated)


def _moments_of(targets) -> Moments:
    first, means, squares = (
        np.asarray(part, np.float64)
        for part in jax.device_get(_float32_moments(targets))
    )
    return Moments(len(targets), first + means.sum(axis=0), squares)


@functools.partial(jax.jit, static_argnames="objective")
def evaluate_block(
    params, batch, hparams, state: Any = (), *, objective: Objective
) -> dict[str, Any]:
    """The means of a block of rows, and flags of its latents."""
    # As at inference: without corruption and without compute_dtype.
    clean = dataclasses.replace(objective, corruption=None, compute_dtype=None)
    p = clean.forward(params, batch, None, hparams, state, training=False)
    # The model computes in its own precision; its results are summed in float32.
    params = _widened(params)
    p = p._replace(**{n: _widened(getattr(p, n)) for n in ("targets", "a", "z", "eta")})
    _, means = clean.score(params, p)
    x_hat = jax.vmap(clean.ae.observation.mean)(p.eta)
    means |= {"squared_error": metrics.squared_error(p.targets, x_hat)}
    means |= {"l0": metrics.l0(p.z)}
    log_probs, is_outside = _log_probs(clean, params, p)
    if log_probs is not None:
        means["log_prob"] = jnp.mean(log_probs)
    is_saturated = None
    if clean.ae.activation.slope is not None:
        is_saturated = metrics.is_saturated(clean.ae, p.a, p.z).all(axis=0)
    return {
        "means": means,
        "is_latent": jnp.ones(p.z.shape[1:], bool) if p.mask is None else p.mask,
        "is_dead": metrics.is_dead(p.z),
        "is_saturated": is_saturated,
        "is_outside": is_outside,
    }


def _widened(tree):
    def widened(leaf):
        return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))

    return jax.tree.map(widened, tree)


def _log_probs(objective: Objective, params, p: Pass):
    """log p of each row of a likelihood, and whether a row is outside its support."""
    observation = objective.ae.observation
    if observation.base_measure == "none":
        return None, False

    def of_row(eta, target):
        log_prob = observation.checked_log_prob(eta, target, params.observation)
        loss = observation.checked_loss(eta, target, params.observation)
        # If the loss is infinite as well, the model diverged; the row may be valid.
        return log_prob, jnp.isneginf(log_prob) & jnp.isfinite(loss)

    log_probs, is_outside = jax.vmap(of_row)(p.eta, p.targets)
    return log_probs, jnp.any(is_outside)


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


def _merge(left: Sums, right: Sums) -> Sums:
    is_saturated = left.is_saturated
    if is_saturated is not None:
        is_saturated = is_saturated & right.is_saturated
    return Sums(
        moments=merge(left.moments, right.moments),
        totals={
            name: total + right.totals[name] for name, total in left.totals.items()
        },
        is_latent=left.is_latent,
        is_dead=left.is_dead & right.is_dead,
        is_saturated=is_saturated,
        is_outside=left.is_outside | right.is_outside,
    )


def names_of_step(objective: Objective) -> tuple[str, ...]:
    """The metrics of every step of training."""
    return "loss", *(term.name for term in objective.terms)


def as_metrics(objective: Objective, sums: Sums) -> dict[str, Any]:
    """Return the metrics of all rows: numbers, or arrays if several models are vmapped.

    `log_prob` is nan for a model with a row outside the support. There is no such entry
    if this holds for all models.
    """
    num_rows = sums.moments.num_rows
    means = {name: total / num_rows for name, total in sums.totals.items()}
    variance = sums.moments.squares.sum() or math.nan
    names = (*names_of_step(objective), "squared_error")
    values = {name: means[name] for name in names}
    values["fvu"] = sums.totals["squared_error"] / variance
    if "log_prob" in means and not np.all(sums.is_outside):
        log_prob = np.where(sums.is_outside, math.nan, means["log_prob"])
        values["log_prob"] = log_prob
        values["bits_per_dim"] = metrics.bits_of_nats(log_prob, objective.ae.input_dim)
    values |= {"l0": means["l0"], "dead_fraction": _fraction(sums.is_dead, sums)}
    if sums.is_saturated is not None:
        values["saturated_fraction"] = _fraction(sums.is_saturated, sums)
    return values


def _fraction(is_flagged, sums: Sums):
    """Return the fraction of the latents that are flagged, without padding."""
    num_flagged = (is_flagged & sums.is_latent).sum(axis=-1)
    return num_flagged / sums.is_latent.sum(axis=-1)


# ---- a step --------------------------------------------------------------------------


def of_step(
    state, batch, key, hparams, *, objective: Objective, config: TrainConfig
) -> dict[str, Float[Array, ""]]:
    """Return norms of the gradient and of the update at the next step.

    For every leaf of the params, such as W:

    "gradient/W": ||dJ/dW||, of the gradient that training uses.
    "gradient/encoder/W", "gradient/decoder/W": the norms of the parts by path
        (`manual.batch_path_grads`), without direct gradients of penalties on the
        parameters, such as weight decay; 0 if the leaf is not on that path.
    "update_ratio/W": ||update|| / max(||W||, ||update||), of the update that the
        optimizer would make. It is 1 if W is smaller than the update, such as a bias
        that is still 0, and 0 if both norms are 0.

    Args:
      state: a `TrainState`.
      batch: `[B, D]`, or a pair (inputs, targets) of such arrays.
      key: consumed by the corruption.
      hparams: scalars by name.
      objective: what is minimised.
      config: the static configuration; its gradient and optimizer are used.

    Raises:
      ValueError: as a call of the objective.
    """
    gradient, paths, ratios = _norms_of_step(
        state, batch, key, hparams, objective=objective, config=config.program()
    )
    return {
        **_by_leaf("gradient", gradient),
        **_by_leaf("gradient/encoder", paths.encoder),
        **_by_leaf("gradient/decoder", paths.decoder),
        **_by_leaf("update_ratio", ratios),
    }


@functools.partial(jax.jit, static_argnames=("objective", "config"))
def _norms_of_step(state, batch, key, hparams, *, objective, config):
    proposal = epochs.propose(
        state, batch, key, hparams, objective=objective, config=config
    )
    paths = manual.batch_path_grads(objective, state.params, proposal.batch)
    ratios = jax.tree.map(_ratio, proposal.updates, state.params)
    return jax.tree.map(_norm, proposal.grads), jax.tree.map(_norm, paths), ratios


def _norm(leaf) -> Float[Array, ""]:
    return jnp.linalg.norm(_widened(leaf).ravel())


def _ratio(update, leaf) -> Float[Array, ""]:
    update = _norm(update)
    larger = jnp.maximum(update, _norm(leaf))
    return update / jnp.where(larger == 0, 1, larger)


def _by_leaf(prefix: str, tree) -> dict[str, Array]:
    return {
        f"{prefix}/{jax.tree_util.keystr(path, simple=True, separator='/')}": leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
