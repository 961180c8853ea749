"""The batches of an epoch: from arrays on the device, a source, or rows on the host.

An epoch is read in blocks of steps. Arrays on the device and sources are one block;
rows on the host are read block by block, ahead of the training. The order of the rows
is the same in each case.
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
from jaxae.training.epochs import Data, TrainState

_BLOCK_BYTES = 2**26  # of a block that is read ahead from rows on the host


class Block(NamedTuple):
    """The batches of steps first, ..., last - 1 of an epoch.

    Attributes:
      batch_at: `step of the epoch -> batch`; a pytree.
      order: the rows of the data in the order of the epoch; None for a source.
    """

    first: int
    last: int
    batch_at: Callable[[Any], Any]
    order: Any


def blocks(
    data: Data, state: TrainState, first: int, hparams, config: TrainConfig
) -> Iterator[Block]:
    """Yield the blocks of an epoch from step `first` on, before which is `state`."""
    num_steps = epochs.num_steps(data, config)
    order = None
    if not callable(data):
        order = _order(state.key, state.step - first, epochs.num_rows(data))
        if not all(isinstance(rows, jax.Array) for rows in jax.tree.leaves(data)):
            yield from _read_ahead(data, np.asarray(order), first, config)
            return
    batch_at = epochs.batches(state, first, hparams, data, order, config)
    yield Block(first, num_steps, batch_at, order)


def _read_ahead(data, order: np.ndarray, first: int, config: TrainConfig):
    """Yield blocks; a thread reads the next one while training uses the last one."""
    num_steps = epochs.num_steps(data, config)
    length = _block_length(data, num_steps, config)
    starts = range(first, num_steps, length)
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        read = functools.partial(_read, data, order, length=length, config=config)
        ahead = reader.submit(read, first)
        for start in starts:
            block = ahead.result()
            if start != starts[-1]:
                ahead = reader.submit(read, start + length)
            batch_at = jax.tree_util.Partial(_batch_of_block, block, np.int32(start))
            yield Block(start, min(start + length, num_steps), batch_at, order)


def _block_length(data, num_steps: int, config: TrainConfig) -> int:
    """Return the number of batches of a block of `_BLOCK_BYTES`."""
    row_bytes = sum(
        rows.shape[1] * np.dtype(rows.dtype).itemsize for rows in jax.tree.leaves(data)
    )
    batch_bytes = config.batch_size * row_bytes
    return max(1, min(num_steps, _BLOCK_BYTES // batch_bytes))


def _read(data, order: np.ndarray, start: int, length: int, config: TrainConfig):
    """Read batches start, ..., start + length - 1 as one array `[length, B, D]`.

    For a pair (inputs, targets), a pair of such arrays. The last block is padded, so
    that it has the shape of the others.
    """
    size = config.batch_size
    num_batches = min(length, len(order) // size - start)
    numbers = order[start * size : (start + num_batches) * size]

    def read(rows):
        block = np.zeros((length * size, rows.shape[1]), rows.dtype)
        block[: len(numbers)] = data_module.take(rows, numbers)
        return jnp.asarray(block.reshape(length, size, -1))

    return jax.tree.map(read, data)


def _batch_of_block(block, start, j):
    return jax.tree.map(lambda batches: batches[j - start], block)


def _order(key, epoch_start, num_rows: int):
    """Return the order of the rows; on a CPU NumPy sorts many times faster than XLA."""
    bits = _order_bits(key, epoch_start, num_rows=num_rows)
    if jax.default_backend() != "cpu":
        return _sorted_rows(bits)
    return jnp.asarray(epochs.sorted_rows_on_host(np.asarray(bits)))


_order_bits = jax.jit(epochs.order_bits, static_argnames="num_rows")
_sorted_rows = jax.jit(epochs.sorted_rows)
