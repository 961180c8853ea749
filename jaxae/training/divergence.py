"""What made a step non-finite: which leaf, which examples."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxae.objective import Objective
from jaxae.training import epochs
from jaxae.training.config import TrainConfig
from jaxae.training.epochs import TrainState

_MAX_ROWS = 5  # of those to blame, so many are named


def explain(state: TrainState, batch, rows, i: int, hparams, *, objective, config):
    """One sentence on why step i of an epoch failed, which `state` is the one before.

    Args:
      state: its `stopped_at` says which step of the run failed.
      batch: what that step was given.
      rows: where the batch lies in the data; None where that is nowhere.
    """
    key = jax.random.fold_in(epochs.noise_key_of(state.key, state.stopped_at - i), i)
    found = _replay(
        state, batch, key, hparams, objective=objective, config=config.program()
    )
    found = jax.tree.map(np.asarray, found)
    return f"{_leaves(found)} {_examples(found['is_bad'], rows)}"


def _leaves(found: dict[str, Any]) -> str:
    for name in ("gradient", "update"):  # the first of them to fail is to blame
        leaves = _not_finite(found[name])
        if leaves:
            return f"The {name} of {', '.join(leaves)} is not finite."
    return "The loss is not finite."


def _not_finite(flags: Any) -> list[str]:
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, is_finite in jax.tree_util.tree_leaves_with_path(flags)
        if not is_finite
    ]


def _examples(is_bad: np.ndarray, rows: np.ndarray | None) -> str:
    if not is_bad.any():
        return "The loss of each example is finite."
    places = np.flatnonzero(is_bad)
    places = np.sort(places if rows is None else rows[places])
    named = ", ".join(map(str, places[:_MAX_ROWS]))
    more = f" and {len(places) - _MAX_ROWS} more" if len(places) > _MAX_ROWS else ""
    where = "of the batch" if rows is None else "of the data"
    kind = "row" if len(places) == 1 else "rows"
    return f"The loss of {kind} {named}{more} {where} is not finite."


@functools.partial(jax.jit, static_argnames=("objective", "config"))
def _replay(
    state, batch, key, hparams, *, objective: Objective, config: TrainConfig
) -> dict[str, Any]:
    grads, _ = epochs.gradient(
        state, batch, key, hparams, objective=objective, config=config
    )
    updates, _ = config.optimizer(hparams).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    inputs, targets = objective.prepare(batch, key, hparams)
    forward = objective.forward(state.params, inputs, hparams)
    losses = objective.example_losses(state.params, forward, targets)
    return {
        "gradient": jax.tree.map(_all_finite, grads),
        "update": jax.tree.map(_all_finite, params),
        "is_bad": ~jnp.isfinite(losses),
    }


def _all_finite(leaf):
    return jnp.all(jnp.isfinite(leaf))
