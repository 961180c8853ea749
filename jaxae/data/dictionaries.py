"""Dictionaries of known features, and sparse data of which they are the truth.

x = b + sum_i a_i v_i, where few coefficients a_i are not 0. A `Dictionary` holds the
features v_i and the distribution of the coefficients: independent, correlated by a
Gaussian copula, or in trees. `jaxae.data.synthsaebench` makes one as in SynthSAEBench.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxae import _checks
from jaxae.autoencoder.files import digest
from jaxae.data.dictionary_draws import ROOT, draw_batch, levels


class Dictionary(NamedTuple):
    """Known features and the distribution of their coefficients; made by `build`.

    One example is drawn in these steps, with e ~ N(0, I_R) and h, n ~ N(0, I_N):

        g_i = <e, F_i> + h_i sqrt(1 - |F_i|^2)      feature i fires if g_i > t_i, where
        t_i = Phi^-1(1 - q_i)                       P(g_i > t_i) = q_i
        a_i = relu(m_i + s_i n_i) if i fires, else 0

    then, from the roots down, for each feature i that has children:

        if a_i = 0, the children of i become 0
        if exclusive_i, all active children but one, chosen uniformly, become 0
        if scaled_i, the children of i are multiplied by a_i / m_i

    Attributes:
      features: v, `[N, D]`.
      bias: b, `[D]`.
      probabilities: q, `[N]`: a feature without parent is active with probability q_i
        (if s_i is 0), a child less often.
      magnitudes: m, `[N]`, above 0.
      spreads: s, `[N]`.
      factor: F, `[N, R]`, of the correlations F F^T of g; R = 0: independent.
      parents: `[N]`, the index of the parent, -1 for none. In NumPy, as the two below.
      exclusive: `[N]`, whether at most one child of i is active.
      scaled: `[N]`, whether children of i are scaled by its coefficient.
    """

    features: Any
    bias: Any
    probabilities: Any
    magnitudes: Any
    spreads: Any
    factor: Any
    parents: Any
    exclusive: Any
    scaled: Any

    def draw(self, key, batch_size) -> tuple[Float[Array, "B D"], Float[Array, "B N"]]:
        """Draw a batch x `[B, D]`, and its true coefficients a `[B, N]`.

        Children are drawn only of parents that are active. This is exact, because
        given e all g_i are independent, and it needs a fraction of the random numbers.
        x is a sum of the active features only.

        Args:
          key: a random key, used up here.
          batch_size: B.

        Raises:
          ValueError: if the key is not one, B is below 1, or the dictionary is traced:
            close over it instead of passing it to `jax.jit`.
        """
        return draw_batch(self, key, _checks.positive_int("batch_size", batch_size))

    def batches(
        self, key, num_batches, batch_size
    ) -> Iterator[tuple[Float[Array, "B D"], Float[Array, "B N"]]]:
        """Yield `draw(jax.random.fold_in(key, i), batch_size)` for i < num_batches.

        Raises:
          ValueError: as for `draw`, or if num_batches is below 1.
        """
        for i in range(_checks.positive_int("num_batches", num_batches)):
            yield self.draw(jax.random.fold_in(key, i), batch_size)

    def source(self, batch_size) -> Callable[..., Float[Array, "B D"]]:
        """The source `(key, hparams) -> x [B, D]` for `jaxae.train`.

        It reads no hyperparameter. Sources of equal dictionaries are equal. The
        dictionary is compiled into the training step as a constant.

        Raises:
          ValueError: if the batch size is below 1.
        """
        return _Source(self, _checks.positive_int("batch_size", batch_size))


@dataclass(frozen=True, repr=False, eq=False)
class _Source:
    """A record instead of a closure, so that it has a repr and can be pickled."""

    dictionary: Dictionary
    batch_size: int

    def __call__(self, key, hparams: Mapping[str, Any]) -> Float[Array, "B D"]:
        del hparams
        return draw_batch(self.dictionary, key, self.batch_size, with_truth=False)[0]

    @functools.cached_property
    def name(self) -> str:
        """With a hash of the values: a run resumes only on the same dictionary."""
        arrays = self.dictionary._asdict()
        sha256 = digest({name: np.asarray(array) for name, array in arrays.items()})
        N, D = self.dictionary.features.shape
        return f"dictionary({N}, {D}, {self.batch_size}, sha256={sha256[:12]})"

    def __repr__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Source) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


def build(
    features,
    probabilities,
    *,
    bias: Any = 0.0,
    magnitudes: Any = 1.0,
    spreads: Any = 0.0,
    factor: Any = None,
    parents: Any = None,
    exclusive: Any = True,
    scaled: Any = True,
) -> Dictionary:
    """Build a `Dictionary` from its arrays; one number stands for N equal ones.

    Without `factor` and `parents` all features are independent.

    Args:
      features: `[N, D]`, such as `random_features(key, N, D)`.
      probabilities: `[N]` in [0, 1], such as `zipf(N, 0.4)`; for children
        `compensated(...)`.
      bias: `[D]`.
      magnitudes: `[N]`, above 0.
      spreads: `[N]`, at least 0.
      factor: `[N, R]` with rows of norm at most 1, such as
        `correlation_factor(key, N, 25, 0.1)`.
      parents: `[N]` integers, such as `forest(N, 128, 4, 3)`.
      exclusive, scaled: `[N]` bools; they matter for features with children.

    Raises:
      ValueError: if an array has the wrong shape or values out of range, or a feature
        is its own ancestor.

    Example:
      features = dictionaries.random_features(key, 64, 16)
      dictionary = dictionaries.build(features, dictionaries.zipf(64, 0.4))
      x, coefficients = dictionary.draw(key, 256)
    """
    features = _checks.floating("features", features)
    if features.ndim != 2 or not features.size:
        raise _checks.ArgumentError(
            "features", "must have shape [N, D]", _checks.describe(features)
        )
    if not jnp.isfinite(features).all():
        raise _checks.ArgumentError("features", "must be finite")
    N, D = features.shape

    def column(name, value, size, is_valid, words):
        return _column(name, value, size, is_valid, words).astype(np.float32)

    return Dictionary(
        features=features.astype(jnp.float32),
        bias=jnp.asarray(column("bias", bias, D, np.isfinite, "finite")),
        probabilities=jnp.asarray(
            column("probabilities", probabilities, N, _in_unit_interval, "in [0, 1]")
        ),
        magnitudes=jnp.asarray(
            column("magnitudes", magnitudes, N, lambda m: m > 0, "positive")
        ),
        spreads=jnp.asarray(
            column("spreads", spreads, N, lambda s: s >= 0, "at least 0")
        ),
        factor=jnp.asarray(_factor(factor, N)),
        parents=_parents(parents, N),
        exclusive=_column("exclusive", exclusive, N, _is_bool, "True or False") > 0,
        scaled=_column("scaled", scaled, N, _is_bool, "True or False") > 0,
    )


def _in_unit_interval(values):
    return (values >= 0) & (values <= 1)


def _is_bool(values):
    return (values == 0) | (values == 1)


def _column(name: str, value: Any, size: int, is_valid: Callable, words: str):
    """`value` in float64 `[size]`, with finite values that `is_valid` accepts."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        array = None
    if array is None or array.shape not in ((), (size,)):
        raise _checks.ArgumentError(
            name, f"must be one number, or have shape [{size}]", _checks.describe(value)
        )
    invalid = array[~(np.isfinite(array) & is_valid(array))]
    if invalid.size:
        raise _checks.ArgumentError(name, f"must be {words}", str(invalid[0]))
    return np.broadcast_to(array, (size,))


def _factor(factor: Any, N: int) -> np.ndarray:
    if factor is None:
        return np.zeros((N, 0), np.float32)
    array = np.asarray(_checks.floating("factor", factor), np.float32)
    if array.ndim != 2 or len(array) != N:
        raise _checks.ArgumentError(
            "factor", f"must have shape [{N}, R]", _checks.describe(factor)
        )
    largest = np.max(np.sum(array**2, axis=1), initial=0)
    if not largest <= 1 + 1e-6:
        raise _checks.ArgumentError(
            "factor",
            "must have rows of norm at most 1, since g has variance 1",
            f"squared norm {largest}",
        )
    return array


def _parents(parents: Any, N: int) -> np.ndarray:
    """`parents` in int32, after a check that they form trees."""
    if parents is None:
        return np.full(N, ROOT, np.int32)
    array = np.asarray(parents)
    if array.shape != (N,) or array.dtype.kind not in "iu":
        raise _checks.ArgumentError(
            "parents", f"must be integers of shape [{N}]", _checks.describe(parents)
        )
    outside = array[(array < ROOT) | (array >= N)]
    if outside.size:
        raise _checks.ArgumentError(
            "parents", f"must be from -1 to {N - 1}", str(outside[0])
        )
    if levels(array).max() >= N:
        raise _checks.ArgumentError(
            "parents", "must form trees, but a feature is its own ancestor"
        )
    return array.astype(np.int32)


# ---- what a dictionary is built from -------------------------------------------------


def random_features(key, num_features, input_dim) -> Float[Array, "N D"]:
    """Directions drawn uniformly from the unit sphere, `[N, D]`.

    Raises:
      ValueError: if a size is below 1 or the key is not one.
    """
    _checks.prng_key(key)
    shape = (
        _checks.positive_int("num_features", num_features),
        _checks.positive_int("input_dim", input_dim),
    )
    return _unit_rows(jax.random.normal(key, shape, jnp.float32))


def decorrelated(features, *, num_steps=100, learning_rate=3e-4) -> Float[Array, "N D"]:
    """Features moved apart by Adam, then normalised.

    The loss is sum_{i != j} <v_i, v_j>^2 + N sum_i (|v_i|^2 - 1)^2. Its first term is
    |V^T V|^2 - sum_i |v_i|^4, so a step costs N D^2 and not N^2 D.

    Args:
      features: `[N, D]`.
      num_steps: how many steps; 0 only normalises.
      learning_rate: Adam's.

    Raises:
      ValueError: if features is not a matrix of floats, or num_steps is below 0.

    References:
      SynthSAEBench, 2026, https://arxiv.org/abs/2602.14687: the defaults.
    """
    features = _checks.floating("features", features)
    if features.ndim != 2:
        raise _checks.ArgumentError(
            "features", "must have shape [N, D]", _checks.describe(features)
        )
    if num_steps != 0:
        num_steps = _checks.positive_int("num_steps", num_steps)
    return _decorrelated(features, learning_rate, num_steps)


def _crowding(V) -> Float[Array, ""]:
    """The loss of `decorrelated`."""
    norms = jnp.sum(V**2, axis=1)
    gram = jnp.matmul(V.T, V, precision="highest")
    pairs = jnp.sum(gram**2) - jnp.sum(norms**2)
    return pairs + len(V) * jnp.sum((norms - 1) ** 2)


@jax.jit
def _decorrelated(V, learning_rate, num_steps):
    adam = optax.adam(learning_rate)

    def step(_, carry):
        V, opt_state = carry
        updates, opt_state = adam.update(jax.grad(_crowding)(V), opt_state)
        return optax.apply_updates(V, updates), opt_state

    V, _ = jax.lax.fori_loop(0, num_steps, step, (V, adam.init(V)))
    return _unit_rows(V)


def _unit_rows(V):
    return V / jnp.linalg.norm(V, axis=-1, keepdims=True)


def zipf(
    num_features, highest, lowest: Any = None, *, exponent=0.5
) -> Float[np.ndarray, "N"]:
    """Probabilities that fall like a power of the rank, `[N]`.

        p_i = highest r_i,  r_i = (i + 1)^-exponent,  i = 0, ..., N - 1

    With `lowest`, shifted, so that the last one is exactly that:

        p_i = lowest + (highest - lowest) (r_i - r_{N-1}) / (r_0 - r_{N-1})

    Args:
      num_features: N.
      highest: p_0.
      lowest: p_{N-1}; None for no shift.
      exponent: how fast they fall.

    Raises:
      ValueError: if N is below 1, or 0 <= lowest <= highest <= 1 does not hold.
    """
    N = _checks.positive_int("num_features", num_features)
    if not 0 <= (0 if lowest is None else lowest) <= highest <= 1:
        raise _checks.ArgumentError(
            "zipf",
            "needs 0 <= lowest <= highest <= 1",
            f"lowest {lowest} and highest {highest}",
        )
    rank = np.arange(1, N + 1, dtype=np.float64) ** -exponent
    if lowest is None or N == 1 or exponent == 0:
        return highest * rank
    return lowest + (highest - lowest) * (rank - rank[-1]) / (rank[0] - rank[-1])


def correlation_factor(key, num_features, rank, scale=0.1) -> Float[Array, "N R"]:
    """A random factor F `[N, R]` for correlations F F^T, F_ir ~ N(0, scale^2).

    A row of squared norm above 0.99 is shrunk to 0.99, because g has variance 1.

    Raises:
      ValueError: if a size is below 1 or the key is not one.
    """
    _checks.prng_key(key)
    shape = (
        _checks.positive_int("num_features", num_features),
        _checks.positive_int("rank", rank),
    )
    F = scale * jax.random.normal(key, shape, jnp.float32)
    norms = jnp.sum(F**2, axis=1, keepdims=True)
    return jnp.where(norms > 0.99, F * jnp.sqrt(0.99 / norms), F)


def forest(num_features, num_roots, num_children, depth) -> np.ndarray:
    """Parents `[N]` of trees that are filled level by level, in the order of features.

    Features 0, ..., num_roots - 1 are roots. Each feature above the lowest level has
    num_children children: the next features in order. Those that are left over, if any,
    belong to no tree; the trees are incomplete if there are too few.

    Args:
      num_features: N.
      num_roots: the number of trees.
      num_children: of each feature above the lowest level.
      depth: the number of levels below the roots.

    Raises:
      ValueError: if a number is below 1.
    """
    N = _checks.positive_int("num_features", num_features)
    size = _checks.positive_int("num_roots", num_roots)
    num_children = _checks.positive_int("num_children", num_children)
    parents, start = np.full(N, ROOT, np.int32), 0
    for _ in range(_checks.positive_int("depth", depth)):
        if start + size >= N:
            break
        children = np.arange(min(size * num_children, N - start - size))
        parents[start + size + children] = start + children // num_children
        start, size = start + size, size * num_children
    return parents


def compensated(probabilities, parents, *, exclusive: Any = True) -> np.ndarray:
    """Sampling probabilities q `[N]` that make up, roughly, for what a hierarchy drops.

        q_i = min(1, p_i c_i),  c_i = (1 + sum_{siblings j} p_j / p_par) / p_par

    where par is the parent of i. c_i is 1 without parent. Siblings count only below an
    exclusive parent. A child still fires less often than p_i where siblings fire, too.

    Args:
      probabilities: p, `[N]`: how often each feature is meant to fire, above 0 for a
        feature with children.
      parents: `[N]`, as for `build`.
      exclusive: `[N]` bools, or one.

    Raises:
      ValueError: if an array has the wrong shape or values out of range.

    References:
      SynthSAEBench, 2026, https://arxiv.org/abs/2602.14687.
    """
    N = np.size(parents)
    parents = _parents(parents, N)
    p = _column("probabilities", probabilities, N, _in_unit_interval, "in [0, 1]")
    exclusive = _column("exclusive", exclusive, N, _is_bool, "True or False") > 0
    child = parents >= 0
    par = parents[child]
    if (p[par] == 0).any():
        raise _checks.ArgumentError(
            "probabilities", "must be above 0 for a feature with children"
        )
    of_children = np.bincount(par, p[child], minlength=N)
    siblings = np.where(exclusive[par], of_children[par] - p[child], 0)
    q = p.copy()
    q[child] = np.minimum(1, p[child] / p[par] * (1 + siblings / p[par]))
    return q
