"""The compiled program of a sweep: chunks of lanes, one chunk after another.

A lane is traced from the functions of a single run. Lanes have the axes `[C, S, M]`: C
chunks in sequence, S seeds at once in a chunk, and M lanes of each seed, which share
their batches. Each device runs its own chunks, without communication.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxae._keys import as_key_data, one_by_one, with_keys
from jaxae.data import BlockShuffle
from jaxae.objective import Objective
from jaxae.training import TrainConfig, diagnostics
from jaxae.training.batches import batches_of, epoch_order, fast_argsort, order_bits
from jaxae.training.train_step import (
    Means,
    TrainState,
    data_key_of,
    init_means,
    init_state,
    initial_params,
    run_steps,
)

AXIS = "lane"


class Program(NamedTuple):
    """What is compiled for the lanes of a group.

    Attributes:
      objective: as wide as the widest lane.
      config: the settings on which the program depends.
      source: the source of batches; None for rows.
      mesh: the devices, if there are several.
    """

    objective: Objective
    config: TrainConfig
    source: Callable | None
    mesh: Mesh | None


class Shared(NamedTuple):
    """What the lanes of a block share.

    Attributes:
      keys: `[U]`, the key of data order and noise of each seed.
      orders: `[U, N]`, the order of the rows in this epoch of each seed; None for a
        source.
      data: the dataset, on the device; None for a source.
      step: the steps begun before this call.
    """

    keys: Any
    orders: Any
    data: Any
    step: Any


@functools.partial(jax.jit, static_argnames="program")
def begin(
    hparams, limits, keys, seed_of, data, params, *, program: Program
) -> tuple[TrainState, Means]:
    """The states `[C, S, M]` before the first step, and means over no steps.

    The states have no key and no step, because the lanes of a seed share them; other
    random keys in them are key data, which the host can hold. `limits` `[C, S, M]` are
    the `init_limit` of each lane's own model; `seed_of` `[C, S]` are indices into the
    keys `[U]` of the seeds. `params` are the initial ones of all lanes; None draws
    them.
    """
    objective, config = program.objective, program.config

    def chunk(shared, limits, hparams, seed_of):
        keys, data, params = shared

        def lane(limit, hparams, key):
            own = params
            if own is None:
                own = initial_params(objective.ae, hparams, key, limit=limit)
            state = init_state(objective, hparams, key, config=config, params=own)
            if program.source is None:
                batch = jax.tree.map(lambda rows: rows[: config.batch_size], data)
            else:
                batch = program.source(key, hparams)
            means = init_means(state, batch, hparams, objective=objective)
            return _of_lane(state), means

        return _at_once(lane, (0, 0, None), limits, hparams, keys[seed_of])

    lanes = limits, hparams, seed_of
    return _in_sequence(chunk, (keys, data, params), lanes, program.mesh)


def _of_lane(state: TrainState) -> TrainState:
    shared: Any = None
    return as_key_data(state._replace(key=shared, step=shared))


@functools.partial(
    jax.jit, static_argnames="program", donate_argnames=("state", "means")
)
def run(
    state, means, hparams, seed_of, shared: Shared, first, last, *, program: Program
) -> tuple[TrainState, Means]:
    """Run steps first, ..., last - 1 of an epoch, of every lane `[C, S, M]`."""
    static = {"objective": program.objective, "config": program.config}

    def chunk(shared, state, means, hparams, seed_of):
        data = shared.data if program.source is None else program.source
        num_seeds, num_lanes = jax.tree.leaves(state)[0].shape[:2]
        is_vmapped = num_seeds * num_lanes > 1

        def lane(state, means, hparams, key, order):
            like = init_state(**static, hparams=hparams, key=key, params=state.params)
            state = state._replace(
                opt_state=with_keys(state.opt_state, like.opt_state),
                state=with_keys(state.state, like.state),
                key=key,
                step=shared.step,
            )
            batch_at = batches_of(
                key, shared.step - first, hparams, data, order, program.config
            )
            state, means = run_steps(
                *(state, means, batch_at, hparams, first, last),
                selects=is_vmapped,
                **static,
            )
            return _of_lane(state), means

        orders = None if shared.orders is None else shared.orders[seed_of]
        lanes = state, means, hparams, shared.keys[seed_of], orders
        return _at_once(lane, (0, 0, 0, None, None), *lanes)

    return _in_sequence(chunk, shared, (state, means, hparams, seed_of), program.mesh)


@functools.partial(jax.jit, static_argnames="program")
def evaluate_block(state, hparams, batch, *, program: Program) -> dict[str, Any]:
    """`diagnostics.evaluate_block` of a block of rows, for every lane `[C, S, M]`."""
    objective = program.objective

    def chunk(batch, state, hparams):
        def lane(state, hparams):
            own_state = with_keys(state.state, objective.init_state())
            return diagnostics.evaluate_block(
                state.params, batch, hparams, own_state, objective=objective
            )

        return _at_once(lane, (0, 0), state, hparams)

    return _in_sequence(chunk, batch, (state, hparams), program.mesh)


@jax.jit
def keys_of(key, seeds):
    """`[U]`: the keys of single runs with these seeds, fold_in(key, seed)."""
    return jax.vmap(one_by_one(jax.random.fold_in), (None, 0))(key, seeds)


def keys_and_orders(
    key, seeds, step, num_rows: int | None, shuffle: BlockShuffle | None
):
    """The keys `[U]` and orders `[U, N]` of an epoch, which begins at that step.

    The orders are None for a source, which has no rows.
    """
    if num_rows is not None and shuffle is not None:
        keys, _ = _keys_and_bits(key, seeds, step, num_rows=None)
        orders = [epoch_order(own, step, num_rows, shuffle) for own in keys]
        return keys, np.stack(orders)
    keys, bits = _keys_and_bits(key, seeds, step, num_rows=num_rows)
    return keys, None if bits is None else fast_argsort(bits)


@functools.partial(jax.jit, static_argnames="num_rows")
def _keys_and_bits(key, seeds, step, num_rows: int | None):
    keys = jax.vmap(one_by_one(data_key_of))(keys_of(key, seeds))
    if num_rows is None:
        return keys, None
    bits_of = functools.partial(order_bits, num_rows=num_rows)
    return keys, jax.vmap(one_by_one(bits_of), (0, None))(keys, step)


# ---- how lanes are mapped ------------------------------------------------------------


def _at_once(lane: Callable, in_axes: tuple, *lanes):
    """Map `lane` over the lanes `[S, M]` of a chunk; in_axes are for the M lanes."""
    num_seeds, num_lanes = jax.tree.leaves(lanes[0])[0].shape[:2]
    seed = _vmap(lane, in_axes, num_lanes)
    return _vmap(seed, (0,) * len(lanes), num_seeds)(*lanes)


def _in_sequence(chunk: Callable, shared: Any, chunks: tuple, mesh: Mesh | None):
    """Map `chunk` over the first axis of chunks, in a loop on each device."""

    def loop(shared, chunks):
        if len(jax.tree.leaves(chunks)[0]) == 1:
            axes = (None, *[0] * len(chunks))
            return _vmap(chunk, axes, 1)(shared, *chunks)
        return jax.lax.map(lambda one: chunk(shared, *one), chunks)

    if mesh is None:
        return loop(shared, chunks)
    split = jax.shard_map(
        loop, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(AXIS), check_vma=False
    )
    return split(shared, chunks)


def _vmap(function: Callable, in_axes: tuple, size: int) -> Callable:
    """`jax.vmap` over axes 0 or None of that size; no axis if the size is 1.

    Without the axis, a lane is bit-identical to a single run.
    """
    if size > 1:
        return jax.vmap(function, in_axes)

    def mapped(*arguments):
        only = [
            argument if axis is None else jax.tree.map(lambda leaf: leaf[0], argument)
            for argument, axis in zip(arguments, in_axes, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*only))

    return mapped
