"""Why a step diverged: which leaf, which examples."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxae.objective import Objective
from jaxae.terms import example_losses
from jaxae.training import epochs
from jaxae.training.config import TrainConfig
from jaxae.training.epochs import TrainState

_MAX_ROWS = 5  # named in the reason


def explain(state: TrainState, batch, rows, i: int, hparams, *, objective, config):
    """One sentence on why step i of an epoch failed.

    Args:
      state: the state before that step; its `stopped_at` is the step's number.
      batch: the batch of that step.
      rows: the batch's rows in the data; None for a source.
    """
    key = jax.random.fold_in(epochs.noise_key_of(state.key, state.stopped_at - i), i)
    flags = _replay(
        state, batch, key, hparams, objective=objective, config=config.program()
    )
    flags = jax.tree.map(np.asarray, flags)
    return f"{_leaves(flags)} {_examples(flags['is_bad'], rows)}"


def _leaves(flags: dict[str, Any]) -> str:
    for name in ("gradient", "update"):  # the first one to fail is the cause
        leaves = _not_finite(flags[name])
        if leaves:
            return f"The {name} of {', '.join(leaves)} is not finite."
    if not flags["loss"]:
        return "The loss is not finite."
    return "A state, or the parameters after after_update, are not finite."


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
    proposal = epochs.propose(
        state, batch, key, hparams, objective=objective, config=config
    )
    losses = example_losses(objective.ae, state.params, proposal.batch)
    return {
        "gradient": jax.tree.map(_all_finite, proposal.grads),
        "update": jax.tree.map(_all_finite, proposal.params),
        "loss": jnp.isfinite(proposal.loss),
        "is_bad": ~jnp.isfinite(losses),
    }


def _all_finite(leaf):
    return jnp.all(jnp.isfinite(leaf))
