"""Features: what the latents of a trained model respond to, over data of any size.

A latent is active on a row if it is not 0 there, as in `metrics.l0`. Its strength is
|z|, so that the strongest rows of a latent with negative values count too.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxae import _checks
from jaxae._checks import ArgumentError
from jaxae.autoencoder import Autoencoder
from jaxae.data import rows as data_rows
from jaxae.recovery import cosine_similarities

_BLOCK_ENTRIES = 2**24  # latents of a block of rows, on the device at once
_MAX_BLOCK_ROWS = 4096
_SAMPLE_SEED = 0


class Examples(NamedTuple):
    """Rows of the data and the latent's value on each.

    Attributes:
      rows: `[H, n]`, row numbers; -1 where a latent has fewer than n active rows.
      values: `[H, n]`, the latent on these rows; 0 where there is no row.
    """

    rows: np.ndarray
    values: np.ndarray


class Features(NamedTuple):
    """The latents of a model on the N rows of a dataset.

    Attributes:
      num_rows: N.
      density: `[H]`, the fraction of rows on which a latent is active.
      mean: `[H]`, the mean of |z| over the active rows; 0 for a dead latent.
      max: `[H]`, the largest |z|.
      top: the rows with the largest |z|, the largest first; of equal ones the first.
      sample: rows drawn uniformly from the active ones, without replacement; the
        largest |z| first.
      counts: `[H, num_bins]`, the histogram of |z| over the active rows, in bins of
        equal width from 0 to `limit`.
      limit: `[H]`, the smallest power of two above `max`; 0 for a dead latent.
      decoder_norm: `[H]`, the norms of the rows of W_dec.
      nearest: `[H, n]`, the latents whose rows of W_dec have the largest cosine with
        that of a latent, the nearest first.
      cosines: `[H, n]`, these cosines.
    """

    num_rows: int
    density: np.ndarray
    mean: np.ndarray
    max: np.ndarray
    top: Examples
    sample: Examples
    counts: np.ndarray
    limit: np.ndarray
    decoder_norm: np.ndarray
    nearest: np.ndarray
    cosines: np.ndarray

    @property
    def is_dead(self) -> np.ndarray:
        """`[H]`: whether a latent is 0 on every row, as in `metrics.is_dead`."""
        return self.density == 0


def measure(
    ae: Autoencoder,
    params: Any,
    X: Any,
    *,
    num_top: int = 20,
    num_samples: int = 100,
    num_bins: int = 64,
    num_nearest: int = 5,
) -> Features:
    """Measure all latents in one pass over the data, in bounded memory.

    The results do not depend on the size of the blocks that are read, but for the
    rounding of `mean`.

    Args:
      ae: a model for use on one example, such as that of `run.model`.
      params: its parameters.
      X: `[N, D]`, an array or Rows, scaled as in training.
      num_top: strongest rows of each latent.
      num_samples: rows drawn from the active ones of each latent.
      num_bins: of each latent's histogram.
      num_nearest: other latents that are nearest to each latent.

    Raises:
      ValueError: if the activation depends on the batch, X does not fit the model, a
        number is not a positive integer, or a latent is not finite.
    """
    numbers = {"num_top": num_top, "num_samples": num_samples, "num_bins": num_bins}
    numbers["num_nearest"] = num_nearest
    for name, number in numbers.items():
        _checks.positive_int(name, number)
    W_dec = ae.expand(params).W_dec
    X = check_data(ae, X)
    block_rows = _block_rows(ae)
    random = np.random.default_rng(_SAMPLE_SEED)
    state = _init_state(ae.latent_dim, num_top, num_samples, num_bins)
    num_active = np.zeros(ae.latent_dim, np.int64)
    total = np.zeros(ae.latent_dim)
    for start in range(0, len(X), block_rows):
        block = data_rows.read(X, slice(start, min(start + block_rows, len(X))), "X")
        priorities = random.random(len(block), np.float32)
        state, of_block = _update(params, state, block, start, priorities, ae=ae)
        of_block = jax.device_get(of_block)
        if not np.isfinite(of_block.total).all():
            latent = int(np.flatnonzero(~np.isfinite(of_block.total))[0])
            place = f"rows {start} to {start + len(block) - 1}"
            raise ArgumentError(
                "X", f"must give finite latents, but latent {latent} is not in {place}"
            )
        num_active += of_block.num_active
        total += of_block.total
    top, sample, strongest, exponent, counts = jax.device_get(state)
    W_dec = jnp.asarray(W_dec, jnp.float32)
    nearest, cosines = _nearest(W_dec, min(num_nearest, ae.latent_dim - 1))
    return Features(
        num_rows=len(X),
        density=num_active / len(X),
        mean=total / np.maximum(num_active, 1),
        max=strongest,
        top=Examples(top.rows, top.values),
        sample=_sorted(Examples(sample.rows, sample.values)),
        counts=counts,
        limit=np.where(num_active > 0, np.ldexp(1.0, exponent), 0.0),
        decoder_norm=np.linalg.norm(np.asarray(W_dec, np.float64), axis=1),
        nearest=nearest,
        cosines=cosines,
    )


def values_in(
    ae: Autoencoder, params: Any, X: Any, latents: Any, windows: Sequence[slice]
) -> list[np.ndarray]:
    """The values of one latent on the rows of each window.

    Args:
      ae: the model.
      params: its parameters.
      X: `[N, D]`, an array or Rows.
      latents: `[n]`, the latent of each window.
      windows: n slices of rows, with a start and a stop.
    """
    if not windows:
        return []
    X, sizes = check_data(ae, X), [window.stop - window.start for window in windows]
    latents = np.repeat(np.asarray(latents), sizes)
    rows = np.concatenate([np.arange(w.start, w.stop) for w in windows])
    unique, inverse = np.unique(rows, return_inverse=True)
    values, block_rows = np.zeros(len(rows), np.float32), _block_rows(ae)
    for start in range(0, len(unique), block_rows):
        block = data_rows.take(X, unique[start : start + block_rows])
        is_here = (inverse >= start) & (inverse < start + block_rows)
        Z = np.asarray(_encode(params, block, ae=ae))
        values[is_here] = Z[inverse[is_here] - start, latents[is_here]]
    return np.split(values, np.cumsum(sizes)[:-1])


def quantiles(examples: Examples, latent: int, num_bins: int, per_bin: int):
    """Rows of one latent from bins of equally many of its examples, the largest first.

    Args:
      examples: sorted by |z|, such as `Features.sample`.
      latent: the latent.
      num_bins: quantile bins.
      per_bin: examples from each bin, evenly spaced by rank.

    Returns:
      The row numbers of each bin; fewer where the latent has fewer active rows.
    """
    rows = examples.rows[latent]
    bins = np.array_split(rows[rows >= 0], num_bins)
    picks = (np.linspace(0, len(b) - 1, min(per_bin, len(b))) for b in bins)
    return [b[pick.astype(int)] for b, pick in zip(bins, picks, strict=True)]


def log_density_histogram(density: np.ndarray, num_bins: int = 40):
    """The histogram of log10 of the densities that are not 0: counts and edges."""
    alive = density[density > 0]
    lowest = np.log10(alive.min()) if alive.size else -1.0
    return np.histogram(np.log10(alive), num_bins, (min(lowest, -0.1), 0.0))


def check_data(ae: Autoencoder, X: Any, name: str = "X") -> Any:
    """X as an array or Rows whose rows fit the model."""
    X = data_rows.as_rows(X, name)
    width = data_rows.read(X, slice(0, 1), name).shape[1] if len(X) else None
    if width != ae.input_dim:
        raise ArgumentError(
            name,
            f"must be [N, {ae.input_dim}] for this model, N >= 1",
            "no rows" if width is None else f"{width} columns",
        )
    return X


# ---- the pass ------------------------------------------------------------------------


class _Kept(NamedTuple):
    """The n rows of each latent with the largest keys."""

    keys: Float[Array, "H n"]  # -inf where there is no row
    rows: Int[Array, "H n"]
    values: Float[Array, "H n"]


class _State(NamedTuple):
    top: _Kept  # by |z|
    sample: _Kept  # by a random number of each row
    strongest: Float[Array, "H"]
    exponent: Int[Array, "H"]  # the bins reach from 0 to 2^exponent
    counts: Int[Array, "H bins"]


class _OfBlock(NamedTuple):
    """Sums over the rows of a block; the host adds them up in float64."""

    num_active: Int[Array, "H"]
    total: Float[Array, "H"]  # of |z|


_SMALLEST_EXPONENT = -125


def _init_state(H: int, num_top: int, num_samples: int, num_bins: int) -> _State:
    return _State(
        top=_none_kept(H, num_top),
        sample=_none_kept(H, num_samples),
        strongest=jnp.zeros(H),
        exponent=jnp.full(H, _SMALLEST_EXPONENT),
        counts=jnp.zeros((H, num_bins), jnp.int32),
    )


def _none_kept(H: int, n: int) -> _Kept:
    keys, rows = jnp.full((H, n), -jnp.inf), jnp.full((H, n), -1)
    return _Kept(keys, rows, jnp.zeros((H, n)))


@functools.partial(jax.jit, static_argnames="ae")
def _encode(params, X, *, ae: Autoencoder) -> Float[Array, "B H"]:
    return jax.vmap(ae.encode, in_axes=(None, 0))(params, X).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames="ae")
def _update(params, state: _State, block, start, priorities, *, ae: Autoencoder):
    """The state after the rows of a block, and the sums of the block."""
    Z = _encode(params, block, ae=ae).T  # [H, B]
    strength, is_active = jnp.abs(Z), Z != 0
    rows = jnp.broadcast_to(start + jnp.arange(Z.shape[1]), Z.shape)
    priorities = jnp.broadcast_to(priorities, Z.shape)
    strongest = jnp.maximum(state.strongest, jnp.max(strength, axis=1))
    # strongest < 2^exponent. With a larger exponent, pairs of bins become one.
    exponent = jnp.maximum(jnp.frexp(strongest)[1], _SMALLEST_EXPONENT)
    counts = _merge_bins(state.counts, exponent - state.exponent)
    bins = jnp.ldexp(strength, -exponent[:, None]) * counts.shape[1]
    latents = jnp.arange(len(Z))[:, None]
    counts = counts.at[latents, bins.astype(int)].add(is_active.astype(jnp.int32))
    state = _State(
        top=_keep(state.top, jnp.where(is_active, strength, -jnp.inf), rows, Z),
        sample=_keep(state.sample, jnp.where(is_active, priorities, -jnp.inf), rows, Z),
        strongest=strongest,
        exponent=exponent,
        counts=counts,
    )
    return state, _OfBlock(jnp.sum(is_active, axis=1), jnp.sum(strength, axis=1))


def _merge_bins(counts, doublings):
    """The counts in bins 2^doublings as wide."""
    latents, bins = jnp.indices(counts.shape)
    # A shift by 32 or more is undefined; 31 already moves each bin to the first one.
    merged = bins >> jnp.minimum(doublings, 31)[:, None]
    return jnp.zeros_like(counts).at[latents, merged].add(counts)


def _keep(kept: _Kept, keys, rows, values) -> _Kept:
    """The rows with the largest keys among those kept and new ones.

    Of equal keys the first row stays, since top_k takes the first.
    """
    candidates = [
        jnp.concatenate(pair, axis=1)
        for pair in zip(kept, (keys, rows, values), strict=True)
    ]
    keys, index = jax.lax.top_k(candidates[0], kept.keys.shape[1])
    rows, values = (jnp.take_along_axis(c, index, axis=1) for c in candidates[1:])
    is_row = keys > -jnp.inf
    return _Kept(keys, jnp.where(is_row, rows, -1), jnp.where(is_row, values, 0))


def _block_rows(ae: Autoencoder) -> int:
    return max(1, min(_MAX_BLOCK_ROWS, _BLOCK_ENTRIES // ae.latent_dim))


def _sorted(examples: Examples) -> Examples:
    """By |z|, the largest first; missing rows, whose value is 0, last."""
    order = np.lexsort((examples.rows, -np.abs(examples.values)), axis=1)
    return Examples(*(np.take_along_axis(array, order, axis=1) for array in examples))


# ---- nearest latents -----------------------------------------------------------------


def _nearest(W_dec, num_nearest: int) -> tuple[np.ndarray, np.ndarray]:
    """The other latents with the largest cosines, and the cosines, `[H, n]`."""
    size = max(1, _BLOCK_ENTRIES // len(W_dec))  # not all pairs at once
    blocks = [
        jax.device_get(
            _nearest_of(W_dec, W_dec[start : start + size], start, num_nearest)
        )
        for start in range(0, len(W_dec), size)
    ]
    cosines, nearest = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return nearest, cosines


@functools.partial(jax.jit, static_argnames="num_nearest")
def _nearest_of(W_dec, rows, start, num_nearest: int):
    cosines = cosine_similarities(rows, W_dec)
    own = jnp.arange(len(rows))
    return jax.lax.top_k(cosines.at[own, start + own].set(-jnp.inf), num_nearest)
