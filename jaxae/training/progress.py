"""Where a run stands: all that is needed to go on as if nothing had happened."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxae.checkpoints import Checkpoints
from jaxae.training import epochs
from jaxae.training.config import TrainConfig
from jaxae.training.epochs import Means, TrainState


class Best(NamedTuple):
    """The best epoch so far, by config.monitor."""

    epoch: int  # counted from 1
    value: float
    params: Any


class Progress(NamedTuple):
    """Where a run stands, between two steps."""

    state: TrainState
    means: Means  # of the epoch that has begun
    history: tuple[dict[str, float], ...]  # a row for each epoch that has ended
    best: Best | None = None
    reason: str | None = None  # why it diverged


def begin(objective, hparams, key, config: TrainConfig, params, data) -> Progress:
    """Before the first step."""
    if params is not None:
        params = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
    state = epochs.init_state(objective, hparams, key, config=config, params=params)
    batch = _shape_of_batch(state, data, key, hparams, config)
    means = epochs.init_means(state, batch, hparams, objective=objective)
    state, means = _on_one_mesh((state, means))
    return Progress(state, means, ())


def _shape_of_batch(state: TrainState, data, key, hparams, config: TrainConfig):
    if callable(data):
        return jax.eval_shape(data, key, hparams)
    dtype = jax.tree.leaves(state.params)[0].dtype

    def shape(part):
        return jax.ShapeDtypeStruct((config.batch_size, part.shape[1]), dtype)

    return tuple(map(shape, data)) if isinstance(data, tuple) else shape(data)


def _on_one_mesh(tree: Any) -> Any:
    """Every leaf on the mesh that some are on; as it is where none are.

    A scalar that is committed to one device of them cannot be used beside the others.
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


# ---- as arrays by name, and back -----------------------------------------------------

_HISTORY, _BEST = "history", "best."


def save(checkpoints: Checkpoints, progress: Progress) -> None:
    """Save where a run stands, in the background; see `Checkpoints.save`."""
    arrays = _arrays(progress)
    if progress.history:
        rows = [list(row.values()) for row in progress.history]
        arrays[_HISTORY] = np.array(rows, np.float64)
    notes: dict[str, Any] = {
        "metrics": list(progress.history[0]) if progress.history else [],
        "reason": progress.reason,
    }
    if progress.best is not None:
        arrays |= _named(progress.best.params, _BEST)
        notes["best"] = {"epoch": progress.best.epoch, "value": progress.best.value}
    checkpoints.save(int(progress.state.step), arrays, notes)


def restore(checkpoints: Checkpoints, begun: Progress) -> Progress | None:
    """Where the run was saved last, placed as `begun` is; None if it was never.

    Raises:
      ValueError: if what was saved is damaged, or of another run.
    """
    maybe = _named(begun.state.params, _BEST)
    checkpoint = checkpoints.restore(_arrays(begun), maybe)
    if checkpoint is None:
        return None
    arrays, notes = checkpoint.arrays, checkpoint.notes
    history: tuple[dict[str, float], ...] = ()
    if notes["metrics"]:
        rows = np.asarray(arrays[_HISTORY]).tolist()
        history = tuple(dict(zip(notes["metrics"], row, strict=True)) for row in rows)
    best = None
    if "best" in notes:
        best = Best(**notes["best"], params=_like(begun.state.params, arrays, _BEST))
    found = _like(_saved(begun), arrays)
    state = found["state"]._replace(key=begun.state.key)
    return Progress(state, found["means"], history, best, notes["reason"])


def _saved(progress: Progress) -> dict[str, Any]:
    # The key is the caller's, and the same, or the fingerprint would be another.
    keyless: Any = ()
    state = progress.state._replace(key=keyless)
    return {"state": state, "means": progress.means}


def _arrays(progress: Progress) -> dict[str, Any]:
    return _named(_saved(progress))


def _named(tree: Any, prefix: str = "") -> dict[str, Any]:
    return {
        prefix + jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _like(tree: Any, arrays: dict[str, Any], prefix: str = "") -> Any:
    leaves = [arrays[name] for name in _named(tree, prefix)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)
