"""Activations that keep the k largest pre-activations: topk, abs_topk, batch_topk.

References:
  Makhzani and Frey, k-sparse autoencoders, 2014. Gao et al., Scaling and evaluating
  sparse autoencoders, 2024 (topk). Bussmann, Leask and Nanda, BatchTopK sparse
  autoencoders, 2024.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxae import _checks
from jaxae.activations import _jumprelu
from jaxae.activations._base import SPARSE, Activation
from jaxae.sparse import Codes, dense

DECAY = 0.99  # of the running threshold of batch_topk
# Entries of a block of `largest`. On two CPU cores with 512 rows and k = 32, it takes
# 17 ms instead of 54 for 65,536 entries a row, and 8 instead of 11 for 8,192; blocks of
# 8 to 64 entries differ by less than a fifth at the first size. A power of 2.
BLOCK = 32


def topk_codes(A: Float[Array, "B H"], k: int, count=None) -> Codes:
    """relu of the k largest entries of each row; of equal ones those of lowest index.

    Args:
      A: `[B, H]`.
      k: at most H.
      count: how many of the k are kept, which may be traced; by default all.
    """
    indices = largest(A, k)
    values = jnp.take_along_axis(A, indices, axis=1)
    return Codes(_first(count, jnp.where(values <= 0, 0, values)), indices)


def abs_topk_codes(A: Float[Array, "B H"], k: int, count=None) -> Codes:
    """The k entries of each row of largest magnitude, with their signs."""
    indices = largest(jnp.abs(A), k)
    values = jnp.take_along_axis(A, indices, axis=1)
    return Codes(_first(count, values), indices)


def largest(A: Float[Array, "B H"], k: int) -> Int[Array, "B k"]:
    """The indices of the k largest entries of each row, as those of `jax.lax.top_k`.

    Long rows are divided into blocks. The k largest entries are in the k blocks of
    largest maximum, of equal ones the first: any other block is preceded by k maxima.
    """
    num_rows, H = A.shape
    if H % BLOCK or k * BLOCK > H // 2:
        return jax.lax.top_k(A, k)[1]
    blocks = A.reshape(num_rows, -1, BLOCK)
    maxima = blocks
    for _ in range(BLOCK.bit_length() - 1):
        # By halves: of a reduction, XLA would make a second array [B, H].
        maxima = jnp.maximum(*jnp.split(maxima, 2, axis=2))
    chosen = jnp.sort(jax.lax.top_k(maxima[:, :, 0], k)[1], axis=1)
    entries = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1)
    places = jax.lax.top_k(entries.reshape(num_rows, -1), k)[1]
    block = jnp.take_along_axis(chosen, places // BLOCK, axis=1)
    return block * BLOCK + places % BLOCK


def _first(count, values):
    """The values with 0 after the first `count` of each row; None keeps all."""
    if count is None:
        return values
    return jnp.where(jnp.arange(values.shape[1])[None] < count, values, 0)


# ---- topk and abs_topk ---------------------------------------------------------------


def topk(k) -> Activation:
    """z = relu of exactly the k largest pre-activations, 0 elsewhere.

    Of equal pre-activations, the ones of lowest index are kept. hparams["k"], an
    integer from 1 to k, replaces k.

    Raises:
      ValueError: for a k that is not an integer above 0.
    """
    return _per_example("topk", _checks.positive_int("k", k))


def abs_topk(k) -> Activation:
    """z = the k pre-activations of largest magnitude, with their signs, 0 elsewhere.

    Ties and hparams["k"] are as in `topk`. The l0 of such latents counts those that are
    not 0.

    Raises:
      ValueError: for a k that is not an integer above 0.
    """
    return _per_example("abs_topk", _checks.positive_int("k", k))


_CODES = {
    "topk": (topk_codes, (0.0, math.inf)),
    "abs_topk": (abs_topk_codes, (-math.inf, math.inf)),
}


@functools.cache  # the same number gives the same object
def _per_example(kind: str, k: int) -> Activation:
    return _with_count(kind, k, None)


def _with_count(kind: str, k: int, count) -> Activation:
    codes_of, output_range = _CODES[kind]
    codes = functools.partial(codes_of, k=k, count=count)
    return Activation(
        f"{kind}({k})",
        apply=functools.partial(_apply_codes, codes),
        vjp=_vjp_where_kept,
        output_range=output_range,
        is_sparse=True,
        max_active=k,
        hparams=("k",),
        with_hparams=lambda g, hparams: _with_count(kind, k, hparams["k"]),
        check_hparams=check_count,
        codes=codes,
        for_inference=functools.partial(_with_number, kind),
    )


def _with_number(kind: str, g: Activation, hparams, theta, state, latent_dim):
    """The activation of hparams["k"] as its own k."""
    del state, latent_dim
    return _per_example(kind, int(hparams.get("k", g.max_active))), theta


def _apply_codes(codes, a: Float[Array, "H"]) -> Float[Array, "H"]:
    return dense(codes(a[None]), a.shape[0])[0]


def _vjp_where_kept(a, z, dz):
    del a
    return jnp.where(z != 0, dz, 0)


def check_count(g: Activation, hparams) -> None:
    counts = _checks.Range(
        lambda k: 1 <= k <= g.max_active and k % 1 == 0,
        f"an integer from 1 to {g.max_active}",
        f"the activation is {g}",
    )
    counts.check("k", hparams)
    counts.check("k_start", hparams)  # of a schedule


# ---- batch_topk ----------------------------------------------------------------------


class BatchTopKState(NamedTuple):
    """What batch_topk carries from step to step.

    Attributes:
      threshold: the running mean of the smallest positive value that a batch keeps.
      weight: the sum of the weights of these values, 1 - decay^t after t of them, by
        which the mean is divided so that the first ones do not dominate it.
    """

    threshold: Float[Array, ""]
    weight: Float[Array, ""]


def batch_topk(k) -> Activation:
    """z = relu of the k B largest pre-activations of a batch of B, 0 elsewhere.

    Of equal pre-activations, the ones of the first examples are kept, and of an
    example's those of lowest index. In evaluation and in use, z = a where a is above a
    running threshold, the mean of the smallest positive value that each batch of
    training kept, with decay 0.99. hparams["k"], an integer from 1 to k, replaces k.

    Raises:
      ValueError: for a k that is not an integer above 0; when called on one example.
    """
    return _batch_topk(_checks.positive_int("k", k))


@functools.cache
def _batch_topk(k: int) -> Activation:
    return Activation(
        f"batch_topk({k})",
        apply=_needs_a_batch,
        vjp=_vjp_where_kept,
        output_range=(0.0, math.inf),
        apply_batch=functools.partial(_apply_batch, k, None),
        vjp_batch=_vjp_batch,
        init_state=_init_state,
        update_state=_update_state,
        is_sparse=True,
        max_active=k,
        hparams=("k",),
        with_hparams=_batch_with_count,
        check_hparams=check_count,
        for_inference=_as_jumprelu,
    )


def _needs_a_batch(a):
    raise _checks.ArgumentError(
        "activation batch_topk",
        "chooses latents over a batch, and has none of one example",
        advice="use the model that training returns: ae, params = run.model",
    )


def _batch_with_count(g: Activation, hparams) -> Activation:
    assert g.max_active is not None
    apply_batch = functools.partial(_apply_batch, g.max_active, hparams["k"])
    return g._replace(apply_batch=apply_batch)


def _apply_batch(k: int, count, A, theta, state: BatchTopKState, training: bool):
    del theta
    if not training:
        return jnp.where(A > state.threshold, A, 0)
    flat = A.reshape(1, -1)
    total = None if count is None else count * len(A)
    return dense(topk_codes(flat, k * len(A), total), flat.shape[1]).reshape(A.shape)


def _vjp_batch(A, Z, dZ, theta, state):
    del A, theta, state
    return jnp.where(Z != 0, dZ, 0)


def _init_state(latent_dim: int) -> BatchTopKState:
    del latent_dim
    return BatchTopKState(jnp.float32(0), jnp.float32(0))


def _update_state(A, Z, theta, state: BatchTopKState) -> BatchTopKState:
    del A, theta
    smallest = jnp.min(jnp.where(Z > 0, Z, jnp.inf)).astype(state.threshold.dtype)
    weight = DECAY * state.weight + (1 - DECAY)
    change = (1 - DECAY) / weight * (smallest - state.threshold)
    new = BatchTopKState(state.threshold + change, weight)
    is_kept = jnp.isfinite(smallest)  # False for a batch without a positive value
    return jax.tree.map(lambda new, old: jnp.where(is_kept, new, old), new, state)


def _as_jumprelu(g: Activation, hparams, theta, state, latent_dim: int):
    del g, hparams, theta
    threshold = jnp.full(latent_dim, state.threshold)
    return _jumprelu.jumprelu(), _jumprelu.Threshold(threshold)


SPARSE |= {"topk": topk, "abs_topk": abs_topk, "batch_topk": batch_topk}
