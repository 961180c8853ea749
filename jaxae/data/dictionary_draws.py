"""Draws of a `Dictionary`, without the children of features that are not active."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae import _checks

ROOT = -1  # the parent of a feature without parent


def levels(parents: np.ndarray) -> np.ndarray:
    """The number of ancestors of each feature; N where they form a cycle."""
    level, ancestors = np.zeros(len(parents), int), parents
    while (ancestors >= 0).any() and level.max() < len(parents):
        level = level + (ancestors >= 0)
        ancestors = np.where(ancestors >= 0, parents[ancestors], ROOT)
    return level


class _Tables(NamedTuple):
    """A dictionary as `_draw` reads it; index N, of no feature, never fires."""

    features: Any  # [N, D]
    bias: Any  # [D]
    thresholds: Any  # [N + 1] t
    noise: Any  # [N + 1] sqrt(1 - |F|^2)
    factor: Any  # [N + 1, R]
    magnitudes: Any  # [N + 1]
    spreads: Any  # [N + 1]
    exclusive: Any  # [N + 1]
    scaled: Any  # [N + 1]
    tops: Any  # [N_0] features without parent
    children: Any  # [N + 1, C] padded by N


class _Sizes(NamedTuple):
    """What the shapes of a draw depend on."""

    batch_size: int
    num_slots: int  # for active features without parent, in one pass
    num_levels: int
    is_exclusive: bool  # all features with children are


def draw_batch(dictionary: Any, key, batch_size: int, with_truth: bool = True):
    """x `[B, D]`, and the coefficients `[B, N]`; None unless `with_truth`."""
    _checks.prng_key(key)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in dictionary):
        raise _checks.ArgumentError(
            "dictionary",
            "must not be traced",
            advice="close over it instead of passing it to jax.jit",
        )
    parents = np.asarray(dictionary.parents)
    tops, q = np.flatnonzero(parents < 0), np.asarray(dictionary.probabilities)
    has_children = np.unique(parents[parents >= 0])
    # The mean, and room for four standard deviations of a Poisson number. More than
    # that are drawn as well, in another pass.
    mean = q[tops].sum()
    num_slots = 8 * math.ceil((mean + 4 * math.sqrt(mean) + 1) / 8)
    sizes = _Sizes(
        batch_size,
        min(len(tops), num_slots),
        int(levels(parents).max()) + 1,
        bool(np.asarray(dictionary.exclusive)[has_children].all()),
    )
    trees = tops.astype(np.int32), _children(parents)
    return _draw(key, dictionary, *trees, sizes=sizes, with_truth=with_truth)


def _tables(dictionary: Any, tops, children) -> _Tables:
    q = dictionary.probabilities
    factor = jnp.pad(dictionary.factor, ((0, 1), (0, 0)))
    one_more = functools.partial(jnp.pad, pad_width=(0, 1))
    return _Tables(
        dictionary.features,
        dictionary.bias,
        one_more(-jax.scipy.special.ndtri(q), constant_values=jnp.inf),
        jnp.sqrt(jnp.maximum(1 - jnp.sum(factor**2, axis=1), 0)),
        factor,
        one_more(dictionary.magnitudes, constant_values=1),
        one_more(dictionary.spreads),
        one_more(dictionary.exclusive),
        one_more(dictionary.scaled),
        tops,
        children,
    )


def _children(parents: np.ndarray) -> np.ndarray:
    """The children of each feature, `[N + 1, C]`, padded by N."""
    N = len(parents)
    nodes = np.argsort(parents, kind="stable")[(parents < 0).sum() :]
    owners = parents[nodes]
    places = np.arange(len(nodes)) - np.searchsorted(owners, owners)
    table = np.full((N + 1, max(places, default=0) + 1), N, np.int32)
    table[owners, places] = nodes
    return table


@functools.partial(jax.jit, static_argnames=("sizes", "with_truth"))
def _draw(key, dictionary, tops, children, *, sizes: _Sizes, with_truth: bool):
    """x, and a or None.

    Each pass takes the next `num_slots` active features without parent of every
    example, and their trees. One pass is nearly always enough; the loop makes the draw
    exact however many are active.
    """
    tables = _tables(dictionary, tops, children)
    N, D = tables.features.shape
    factor_key, top_key, pass_key = jax.random.split(key, 3)
    e = jax.random.normal(factor_key, (sizes.batch_size, tables.factor.shape[1]), "f4")
    h = jax.random.normal(top_key, (sizes.batch_size, len(tables.tops)), jnp.float32)
    common = jnp.matmul(e, tables.factor[tops].T, precision="highest")
    fires = common + h * tables.noise[tops][None] > tables.thresholds[tops][None]
    num_active = jnp.cumsum(fires, axis=1, dtype=jnp.int32)

    def draw_pass(carry):
        i, x, a = carry
        tops = _next_tops(i, num_active, tables, sizes)
        trees_key = jax.random.fold_in(pass_key, i)
        nodes, values = _draw_trees(trees_key, tables, e, tops, sizes)
        x = x + _combine(nodes, values, tables.features)
        if with_truth:
            rows = jnp.arange(sizes.batch_size)[:, None]
            a = a.at[rows, nodes].add(values, mode="drop")
        return i + 1, x, a

    x = jnp.broadcast_to(tables.bias, (sizes.batch_size, D))
    a = jnp.zeros((sizes.batch_size, N), jnp.float32) if with_truth else None
    largest = jnp.max(num_active[:, -1])
    _, x, a = jax.lax.while_loop(
        lambda carry: carry[0] * sizes.num_slots < largest, draw_pass, (0, x, a)
    )
    return x, a


def _next_tops(i, num_active, tables: _Tables, sizes: _Sizes):
    """The active features without parent from number i S on, `[B, S]`, padded by N."""
    numbers = i * sizes.num_slots + jnp.arange(1, sizes.num_slots + 1)
    places = jax.vmap(jnp.searchsorted, in_axes=(0, None))(num_active, numbers)
    return jnp.append(tables.tops, len(tables.features))[places]


def _draw_trees(key, tables: _Tables, e, nodes, sizes: _Sizes):
    """The trees of active features: nodes `[B, ...]`, and coefficients."""
    keys = jax.random.split(key, sizes.num_levels)
    n = jax.random.normal(keys[0], nodes.shape, jnp.float32)
    values = jnp.where(nodes < len(tables.features), _values(tables, nodes, n), 0)
    levels = [(nodes, values)]
    for level_key in keys[1:]:
        levels.append(_draw_children(level_key, tables, e, *levels[-1], sizes))
    all_nodes, all_values = zip(*levels, strict=True)
    return jnp.concatenate(all_nodes, axis=1), jnp.concatenate(all_values, axis=1)


def _values(tables: _Tables, nodes, n):
    return jax.nn.relu(tables.magnitudes[nodes] + tables.spreads[nodes] * n)


def _draw_children(key, tables: _Tables, e, parents, values, sizes: _Sizes):
    """The children of nodes `[B, S]`; where all are exclusive, one child of each."""
    nodes = tables.children[parents]  # [B, S, C]
    h, n, order = jax.random.normal(key, (3, *nodes.shape), jnp.float32)
    F = tables.factor[nodes]
    common = jnp.einsum("br,bscr->bsc", e, F, precision="highest")
    fires = common + h * tables.noise[nodes] > tables.thresholds[nodes]
    is_active = fires & (values > 0)[..., None]
    a = jnp.where(is_active, _values(tables, nodes, n), 0)
    # The first in a random order: each active child with the same chance.
    order = jnp.where(a > 0, order, -jnp.inf)
    chosen = jnp.argmax(order, axis=-1, keepdims=True)
    is_chosen = jnp.arange(a.shape[-1])[None, None] == chosen
    a = jnp.where(is_chosen | ~tables.exclusive[parents][..., None], a, 0)
    scale = values / tables.magnitudes[parents]
    a = a * jnp.where(tables.scaled[parents], scale, 1)[..., None]
    if sizes.is_exclusive:  # otherwise S grows by C at each level
        nodes = jnp.take_along_axis(nodes, chosen, axis=-1)
        a = jnp.take_along_axis(a, chosen, axis=-1)
    return nodes.reshape(len(nodes), -1), a.reshape(len(a), -1)


def _combine(nodes, values, features):
    """sum_s values_s v_{nodes_s}, `[B, D]`, from as many rows as are active."""
    values, places = jax.lax.top_k(values, values.shape[1])
    nodes = jnp.take_along_axis(nodes, places, axis=1)
    nodes = jnp.minimum(nodes, len(features) - 1)  # no feature: its value is 0
    num_active = jnp.max(jnp.sum(values > 0, axis=1))

    def add(s, x):
        return x + values[:, s, None] * features[nodes[:, s]]

    zeros = jnp.zeros((len(nodes), features.shape[1]), jnp.float32)
    return jax.lax.fori_loop(0, num_active, add, zeros)
