"""The compiled program of a sweep: chunks of lanes, one chunk after another.

A lane is traced from the functions of a single run, in `training.train_step`. Lanes are
`[C, S, M]`, as in a `Layout`: C chunks in sequence, in each chunk S seeds at once, and
M lanes of each seed, which see the same batches. Each of several devices runs chunks of
its own, without communication.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxae._keys import one_by_one
from jaxae.objective import latent_mask
from jaxae.training import batches, diagnostics, train_step
from jaxae.training.train_step import Means, TrainState


class LaneState(NamedTuple):
    """A `TrainState` without the key and the step, which lanes of one seed share."""

    params: Any
    opt_state: Any
    state: Any
    stopped_at: Any


def to_train_state(state: LaneState, key, step) -> TrainState:
    """The `TrainState` of a lane, with the shared key and step."""
    return TrainState(
        params=state.params,
        opt_state=state.opt_state,
        state=state.state,
        key=key,
        step=step,
        stopped_at=state.stopped_at,
    )


def to_lane_state(state: TrainState) -> LaneState:
    """A `TrainState` without the shared key and step."""
    return LaneState(state.params, state.opt_state, state.state, state.stopped_at)


class Shared(NamedTuple):
    """What the lanes of a block share.

    Attributes:
      keys: `[U]`, the key of data order and noise of each seed.
      orders: `[U, N]`, the order of the rows in this epoch for each seed; None for a
        source.
      data: the dataset, on the device; None for a source.
      step: the steps begun before this call.
    """

    keys: Any
    orders: Any
    data: Any
    step: Any


AXIS = "lane"
_STATIC = ("objective", "config", "mesh")


@functools.partial(jax.jit, static_argnames=_STATIC)
def begin(hparams, limits, keys, seed_of, *, objective, config, mesh=None) -> LaneState:
    """The states `[C, S, M]` before the first step.

    Args:
      hparams: `[C, S, M]` by name.
      limits: `[C, S, M]`, the `init_limit` of each lane's own model.
      keys: `[U]`, the key of each seed.
      seed_of: `[C, S]`, indices into keys.
      objective: as wide as the widest lane.
      config: only the optimizer is used.
      mesh: the devices, if there are several.
    """

    def lane(limit, hparams, key):
        params = _draw(objective.ae, hparams, limit, key)
        state = train_step.init_state(
            objective, hparams, key, config=config, params=params
        )
        return to_lane_state(state)

    def chunk(keys, of_chunk):
        limits, hparams, seed_of = of_chunk
        return _at_once(lane, (0, 0, None), (limits, hparams, keys[seed_of]))

    return _in_sequence(chunk, keys, (limits, hparams, seed_of), mesh)


def _draw(ae, hparams, limit, key):
    """The params that the lane's own model draws, with zeros in the padding."""
    scale = hparams.get(train_step.INIT_SCALE, 1.0)
    params = ae.init(jax.random.split(key)[0], limit=limit * scale)
    is_latent = latent_mask(ae, hparams)
    if is_latent is None:
        return params
    weights = {
        name: jnp.where(is_latent[:, None], getattr(params, name), 0)
        for name in ae.parametrization.weights
    }
    return params._replace(**weights)


@functools.partial(
    jax.jit,
    static_argnames=(*_STATIC, "source"),
    donate_argnames=("state", "means"),
)
def run(
    state: LaneState,
    means: Means,
    hparams,
    seed_of,
    shared: Shared,
    first,
    last,
    *,
    objective,
    config,
    source: Callable | None = None,
    mesh=None,
) -> tuple[LaneState, Means]:
    """Run steps first, ..., last - 1 of an epoch, of every lane `[C, S, M]`."""
    axes = (LaneState(0, 0, 0, 0), 0, 0, None, None)

    def chunk(shared, of_chunk):
        state, means, hparams, seed_of = of_chunk
        data = source if shared.data is None else shared.data

        def lane(state, means, hparams, key, order):
            state = to_train_state(state, key, shared.step)
            batch_at = batches.batches_of(
                key, shared.step - first, hparams, data, order, config
            )
            state, means = train_step.run_steps(
                state,
                means,
                batch_at,
                hparams,
                first,
                last,
                objective=objective,
                config=config,
            )
            return to_lane_state(state), means

        orders = None if shared.orders is None else shared.orders[seed_of]
        arguments = state, means, hparams, shared.keys[seed_of], orders
        return _at_once(lane, axes, arguments)

    return _in_sequence(chunk, shared, (state, means, hparams, seed_of), mesh)


@functools.partial(jax.jit, static_argnames=("objective", "mesh"))
def evaluate_block(
    state: LaneState, hparams, batch, *, objective, mesh=None
) -> dict[str, Any]:
    """`diagnostics.evaluate_block` of a block of rows, for every lane `[C, S, M]`."""

    def lane(state, hparams, batch):
        return diagnostics.evaluate_block(
            state.params, batch, hparams, state.state, objective=objective
        )

    def chunk(batch, of_chunk):
        return _at_once(functools.partial(lane, batch=batch), (0, 0), of_chunk)

    return _in_sequence(chunk, batch, (state, hparams), mesh)


@jax.jit
def keys_of(key, seeds):
    """`[U]`: the keys of single runs with these seeds, fold_in(key, seed)."""
    return jax.vmap(one_by_one(jax.random.fold_in), (None, 0))(key, seeds)


def keys_and_orders(key, seeds, step, num_rows: int | None):
    """The keys `[U]` and orders `[U, N]` of an epoch, which begins at that step.

    The orders are None for a source, which has no rows.
    """
    keys, bits = _keys_and_bits(key, seeds, step, num_rows=num_rows)
    return keys, None if bits is None else batches.fast_argsort(bits)


@functools.partial(jax.jit, static_argnames="num_rows")
def _keys_and_bits(key, seeds, step, num_rows: int | None):
    keys = jax.vmap(one_by_one(train_step.data_key_of))(keys_of(key, seeds))
    if num_rows is None:
        return keys, None
    order_bits = functools.partial(batches.order_bits, num_rows=num_rows)
    return keys, jax.vmap(one_by_one(order_bits), (0, None))(keys, step)


# ---- how lanes are mapped ------------------------------------------------------------


def _at_once(lane: Callable, in_axes: tuple, arguments: tuple):
    """Map `lane` over the lanes `[S, M]` of a chunk; in_axes are for the M lanes."""
    num_seeds, num_lanes = jax.tree.leaves(arguments[0])[0].shape[:2]
    is_shared = [axis is None for axis in in_axes]
    if num_lanes > 1:
        of_seed = jax.vmap(lane, in_axes)
    else:  # without an axis of length 1, a lane is bit-identical to a single run
        of_seed = _without_axis(lane, is_shared)
    if num_seeds > 1:
        return jax.vmap(of_seed)(*arguments)
    return _without_axis(of_seed, [False] * len(arguments))(*arguments)


def _without_axis(function: Callable, is_shared: list[bool]) -> Callable:
    """The function for arguments whose first axis, unless shared, has length 1."""

    def called(*arguments):
        squeezed = [
            argument if shared else jax.tree.map(lambda leaf: leaf[0], argument)
            for argument, shared in zip(arguments, is_shared, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*squeezed))

    return called


def _in_sequence(chunk: Callable, shared: Any, chunks: Any, mesh: Mesh | None):
    """Map `chunk` over the first axis of chunks, in a loop on each device."""

    def loop(shared, chunks):
        if len(jax.tree.leaves(chunks)[0]) == 1:
            only = jax.tree.map(lambda leaf: leaf[0], chunks)
            results = chunk(shared, only)
            return jax.tree.map(lambda leaf: leaf[None], results)
        return jax.lax.map(functools.partial(chunk, shared), chunks)

    if mesh is None:
        return loop(shared, chunks)
    split = jax.shard_map(
        loop, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(AXIS), check_vma=False
    )
    return split(shared, chunks)
