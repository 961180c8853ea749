"""Where an epoch's batches come from: the device, a source, or rows on the host.

Each gives an epoch in blocks, and runs any part of a block by one compiled program.
The order is the same wherever the data lie.
"""

import concurrent.futures
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae import data as data_module
from jaxae.training import epochs
from jaxae.training.config import TrainConfig
from jaxae.training.epochs import Data, Means, TrainState

_BLOCK_BYTES = 2**26  # what is read ahead at once


class Block(NamedTuple):
    """Steps first, ..., last - 1 of an epoch, ready to be run.

    Attributes:
      run: `(state, means, first, last) -> (state, means)`, any part of them.
      batch: `i -> (batch i, its rows in the data)`; the rows are None for a source.
    """

    first: int
    last: int
    run: Callable[..., tuple[TrainState, Means]]
    batch: Callable[[int], tuple[Any, np.ndarray | None]]


Feed = Callable[[TrainState, int], Iterator[Block]]


def feed(data: Data, hparams, *, objective, config: TrainConfig) -> Feed:
    """`(state, i) -> blocks` of what is left of the epoch of whose step i state is."""
    given = {"objective": objective, "config": config.program()}
    if callable(data):
        return functools.partial(_from_source, data, hparams, given)
    parts = data if isinstance(data, tuple) else (data,)
    if all(isinstance(part, jax.Array) for part in parts):
        return functools.partial(_from_device, data, hparams, given)
    return functools.partial(_from_rows, parts, isinstance(data, tuple), hparams, given)


def _from_source(source, hparams, given, state, i) -> Iterator[Block]:
    num_steps = given["config"].steps_per_epoch
    batch_at = epochs.batches(state, i, hparams, source, None, given["config"])

    def run(state, means, first, last):
        return _run_source(state, means, hparams, source, *_ints(first, last), **given)

    yield Block(i, num_steps, run, lambda j: (batch_at(j), None))


def _from_device(data, hparams, given, state, i) -> Iterator[Block]:
    config, num_rows = given["config"], epochs.num_rows(data)
    order = _order(state.key, state.step - i, num_rows)

    def run(state, means, first, last):
        first, last = _ints(first, last)
        return _run_arrays(state, means, hparams, data, order, first, last, **given)

    def batch(j):
        rows = np.asarray(order)[j * config.batch_size : (j + 1) * config.batch_size]
        return jax.tree.map(lambda leaf: leaf[rows], data), rows

    yield Block(i, num_rows // config.batch_size, run, batch)


def _from_rows(parts, is_pair, hparams, given, state, i) -> Iterator[Block]:
    size, num_rows = given["config"].batch_size, len(parts[0])
    num_steps = num_rows // size
    order = np.asarray(_order(state.key, state.step - i, num_rows))
    row_bytes = sum(part.shape[1] * np.dtype(part.dtype).itemsize for part in parts)
    length = max(1, min(num_steps, _BLOCK_BYTES // (size * row_bytes)))

    def read(first):
        rows = order[first * size : min(first + length, num_steps) * size]
        block = tuple(
            _padded(data_module.take(part, rows), length, size) for part in parts
        )
        return block if is_pair else block[0]

    def as_block(start, block):
        def run(state, means, first, last):
            start_, first, last = _ints(start, first, last)
            return _run_block(
                state, means, hparams, block, start_, first, last, **given
            )

        def batch(j):
            rows = order[j * size : (j + 1) * size]
            return jax.tree.map(lambda leaf: leaf[j - start], block), rows

        return Block(start, min(start + length, num_steps), run, batch)

    starts = range(i, num_steps, length)
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        # One block is read while the one before it is being trained on.
        ahead = reader.submit(read, i)
        for start in starts:
            block = ahead.result()
            if start != starts[-1]:
                ahead = reader.submit(read, start + length)
            yield as_block(start, block)


def _padded(rows: np.ndarray, length: int, size: int) -> jax.Array:
    """Batches `[length, size, D]`: the last block too has the shape of the others."""
    block = np.zeros((length * size, rows.shape[1]), rows.dtype)
    block[: len(rows)] = rows
    return jnp.asarray(block.reshape(length, size, -1))


def _ints(*numbers: int) -> tuple[np.int32, ...]:
    return tuple(map(np.int32, numbers))  # traced: one program for them all


# ---- the compiled programs -----------------------------------------------------------

_STATIC = ("objective", "config")
_DONATED = ("state", "means")


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames=_DONATED)
def _run_arrays(state, means, hparams, data, order, first, last, *, objective, config):
    batch_at = epochs.batches(state, first, hparams, data, order, config)
    return epochs.run_steps(
        state, means, batch_at, hparams, first, last, objective=objective, config=config
    )


@functools.partial(
    jax.jit, static_argnames=(*_STATIC, "source"), donate_argnames=_DONATED
)
def _run_source(state, means, hparams, source, first, last, *, objective, config):
    batch_at = epochs.batches(state, first, hparams, source, None, config)
    return epochs.run_steps(
        state, means, batch_at, hparams, first, last, objective=objective, config=config
    )


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames=_DONATED)
def _run_block(state, means, hparams, block, start, first, last, *, objective, config):
    def batch_at(j):
        return jax.tree.map(lambda leaf: leaf[j - start], block)

    return epochs.run_steps(
        state, means, batch_at, hparams, first, last, objective=objective, config=config
    )


def _order(key, epoch_start, num_rows: int):
    bits = _order_bits(key, epoch_start, num_rows=num_rows)
    if jax.default_backend() != "cpu":
        return _sorted_rows(bits)
    return jnp.asarray(epochs.sorted_rows_on_host(np.asarray(bits)))


_order_bits = jax.jit(epochs.order_bits, static_argnames="num_rows")
_sorted_rows = jax.jit(epochs.sorted_rows)
