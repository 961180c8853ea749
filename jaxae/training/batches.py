"""The batches of an epoch: from arrays on the device, a source, or rows on the host.

The order of the rows does not depend on where they are. An epoch is read in blocks of
steps: one block for a source or for arrays on the device; rows on the host are read
block by block, ahead of the training.
"""

import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, UInt32

from jaxae import data as data_module
from jaxae._checks import ArgumentError
from jaxae.data.rows import BlockShuffle, block_shuffle_of
from jaxae.training.config import TrainConfig

Data = Any  # [N, D], a pair of such arrays, or a pure source (key, hparams) -> batch


def map_pair(function: Callable[[Any], Any], data: Any) -> Any:
    """`function` of an array, or of each array of a pair (inputs, targets)."""
    return tuple(map(function, data)) if isinstance(data, tuple) else function(data)


def num_rows(data: Any) -> int:
    """The number of rows of an array, of Rows, or of a pair of these."""
    return len(data[0] if isinstance(data, tuple) else data)


def num_steps(data: Data, config: TrainConfig) -> int:
    """The number of steps of an epoch, at least 1."""
    if callable(data):
        if config.steps_per_epoch is None:
            problem = "must be set if data is a source"
            advice = "use TrainConfig(steps_per_epoch=...)"
            raise ArgumentError("steps_per_epoch", problem, "None", advice)
        return config.steps_per_epoch
    if config.batch_size > num_rows(data):
        problem = "must be at most the number of examples"
        sizes = f"{config.batch_size} for {num_rows(data)}"
        raise ArgumentError("batch_size", problem, sizes)
    return num_rows(data) // config.batch_size


def batch_shape(data: Data, key, hparams, config: TrainConfig) -> Any:
    """The shape and dtype of a batch, or of both arrays of a pair."""
    if callable(data):
        return jax.eval_shape(data, key, hparams)
    return jax.tree.map(
        lambda rows: jax.ShapeDtypeStruct(
            (config.batch_size, rows.shape[1]), rows.dtype
        ),
        data,
    )


# ---- random order and noise ----------------------------------------------------------


def _epoch_keys(key, epoch_start) -> Array:
    """Return (order_key, noise_key) of the epoch that begins at step `epoch_start`."""
    return jax.random.split(jax.random.fold_in(key, epoch_start))


def noise_key_of(key, epoch_start) -> Array:
    """Return the noise key of an epoch; its step i draws from fold_in(key, i)."""
    return _epoch_keys(key, epoch_start)[1]


def order_of(key, epoch_start, num_rows: int) -> Int32[Array, "N"]:
    """Return the order of the rows in the epoch that begins at `epoch_start`."""
    return argsort(order_bits(key, epoch_start, num_rows))


def order_bits(key, epoch_start, num_rows: int) -> UInt32[Array, "N"]:
    """Return random bits, one a row; their argsort is the order of the epoch."""
    order_key, _ = _epoch_keys(key, epoch_start)
    return jax.random.bits(order_key, (num_rows,), jnp.uint32)


def argsort(bits: UInt32[Array, "*lanes N"]) -> Int32[Array, "*lanes N"]:
    """Return the permutation that sorts the bits; equal ones stay in row order."""
    return jnp.argsort(bits, stable=True).astype(jnp.int32)


def fast_argsort(bits) -> Any:
    """`argsort` outside jit: on a CPU by NumPy, many times faster than XLA."""
    return _argsort(bits) if jax.default_backend() != "cpu" else _argsort_on_host(bits)


def _argsort_on_host(bits) -> np.ndarray:
    rows = np.arange(bits.shape[-1], dtype=np.uint64)
    pairs = (np.asarray(bits).astype(np.uint64) << np.uint64(32)) | rows
    pairs.sort(axis=-1)
    return (pairs & np.uint64(2**32 - 1)).astype(np.int32)


def epoch_order(key, epoch_start, num_rows: int, shuffle: BlockShuffle | None) -> Any:
    """The order of an epoch, outside jit; `shuffle` is the `shuffle_of` the data."""
    if shuffle is None:
        return fast_argsort(_order_bits(key, epoch_start, num_rows=num_rows))
    block_rows = min(shuffle.block_rows, num_rows)
    num_blocks = math.ceil(num_rows / block_rows)
    bits = _order_bits(key, epoch_start, num_rows=num_blocks + num_rows)
    of_blocks, of_rows = np.split(np.asarray(bits), [num_blocks])
    starts = _argsort_on_host(of_blocks)[:, None] * block_rows
    order = (starts + np.arange(block_rows, dtype=np.int32)).ravel()
    order = order[order < num_rows]  # the last block may be shorter
    for start in range(0, num_rows, shuffle.buffer_rows):
        buffer = slice(start, start + shuffle.buffer_rows)
        order[buffer] = order[buffer][_argsort_on_host(of_rows[buffer])]
    return order


_argsort = jax.jit(argsort)
_order_bits = jax.jit(order_bits, static_argnames="num_rows")


# ---- from arrays on the device, or from a source -------------------------------------


def batches_of(
    key, epoch_start, hparams, data: Data, order, config: TrainConfig
) -> Callable[[Any], Any]:
    """Return the function `j -> batch j` of the epoch that begins at `epoch_start`.

    The function is a pytree, so that a compiled program can take it as an argument.
    """
    if callable(data):
        order_key, _ = _epoch_keys(key, epoch_start)
        draw = functools.partial(_batch_of_source, data)
        return jax.tree_util.Partial(draw, order_key, hparams)
    return _RowBatches(jax.tree.map(jnp.asarray, data), order, config.batch_size)


def _batch_of_source(source, order_key, hparams, j):
    return source(jax.random.fold_in(order_key, j), hparams)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _RowBatches:
    """`j -> batch j`, the rows of the data at a slice of their order."""

    data: Any
    order: Int32[Array, "N"]
    # Static: a program slices without work on the host before each epoch.
    batch_size: int = dataclasses.field(metadata={"static": True})

    def __call__(self, j):
        start = j * self.batch_size
        rows = jax.lax.dynamic_slice_in_dim(self.order, start, self.batch_size)
        return jax.tree.map(lambda leaf: leaf[rows], self.data)


# ---- in blocks -----------------------------------------------------------------------

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
    data: Data, key, epoch_start: int, first: int, hparams, config: TrainConfig
) -> Iterator[Block]:
    """Yield the blocks of the epoch that begins at `epoch_start`, from step `first`."""
    order = None
    if not callable(data):
        shuffle = shuffle_of(data, config)
        order = jnp.asarray(epoch_order(key, epoch_start, num_rows(data), shuffle))
        if not all(isinstance(rows, jax.Array) for rows in jax.tree.leaves(data)):
            yield from _read_ahead(data, np.asarray(order), shuffle, first, config)
            return
    batch_at = batches_of(key, epoch_start, hparams, data, order, config)
    yield Block(first, num_steps(data, config), batch_at, order)


def shuffle_of(data, config: TrainConfig) -> BlockShuffle | None:
    """How rows on the host are shuffled, with a buffer of whole batches."""
    arrays = data if isinstance(data, tuple) else (data,)
    shuffles = map(block_shuffle_of, arrays)
    shuffle = next(filter(None, shuffles), None)  # one for both arrays of a pair
    if shuffle is None:
        return None
    num_batches = max(1, shuffle.buffer_rows // config.batch_size)
    return shuffle._replace(buffer_rows=num_batches * config.batch_size)


def _read_ahead(
    data,
    order: np.ndarray,
    shuffle: BlockShuffle | None,
    first: int,
    config: TrainConfig,
):
    """Yield blocks; a thread reads the next one while training uses this one."""
    arrays, end = jax.tree.leaves(data), num_steps(data, config)
    row_bytes = sum(rows.shape[1] * np.dtype(rows.dtype).itemsize for rows in arrays)
    block_rows = _BLOCK_BYTES // row_bytes if shuffle is None else shuffle.buffer_rows
    length = max(1, min(end, block_rows // config.batch_size))
    # From the beginning of a buffer, so that a resumed run reads whole buffers too.
    starts = range(first - first % length, end, length)
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        read = functools.partial(_read, data, order, length=length, config=config)
        ahead = reader.submit(read, starts[0])
        for start in starts:
            block = ahead.result()
            if start != starts[-1]:
                ahead = reader.submit(read, start + length)
            batch_at = jax.tree_util.Partial(_batch_of_block, block, np.int32(start))
            last = min(start + length, end)
            yield Block(max(first, start), last, batch_at, order)


def _read(data, order: np.ndarray, start: int, length: int, config: TrainConfig):
    """Read batches start, ..., start + length - 1 as one array `[length, B, D]`.

    For a pair (inputs, targets), a pair of such arrays. The last block is padded, so
    that it has the shape of the others.
    """
    size = config.batch_size
    num_batches = min(length, len(order) // size - start)
    numbers = order[start * size : (start + num_batches) * size]

    def read(rows):
        block = data_module.take(rows, numbers)
        if num_batches < length:
            padding = np.zeros((length * size - len(block), rows.shape[1]), rows.dtype)
            block = np.concatenate([block, padding])
        return jnp.asarray(block.reshape(length, size, -1))

    return jax.tree.map(read, data)


def _batch_of_block(block, start, j):
    return jax.tree.map(lambda batches: batches[j - start], block)
