"""Recovery: how well a learned dictionary matches the known one that made the data.

W_dec `[F, D]` has the learned features as rows, `features` `[N, D]` the true ones; F
may be above or below N. Only directions count. A row of zeros has cosine 0 to all.
`evaluate` computes every metric of SynthSAEBench for a model
(2026, https://arxiv.org/abs/2602.14687); the other functions are these metrics alone.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxae import _checks
from jaxae._moments import Moments, merge
from jaxae.autoencoder import Autoencoder
from jaxae.objective import Objective

_SMALLEST_NORM = 1e-6  # of an example that counts for shrinkage, as in SynthSAEBench


# ---- directions ----------------------------------------------------------------------


def cosine_similarities(W_dec, features) -> Float[Array, "F N"]:
    """C_ji = <w_j, v_i> / (|w_j| |v_i|), `[F, N]`; 0 for a row of zeros.

    Args:
      W_dec: `[F, D]`, learned features.
      features: `[N, D]`, true features.

    Raises:
      ValueError: if they are not matrices of floats with equally many columns.
    """
    W_dec, features = _as_matrices(W_dec, features)
    return jnp.matmul(_unit_rows(W_dec), _unit_rows(features).T, precision="highest")


def mmcs(W_dec, features) -> Float[Array, ""]:
    """Mean max cosine similarity, mean_j max_i C_ji: from learned to true features.

    Signed: an opposite direction does not match. Each learned feature looks for its
    nearest true one, and true ones without match cost nothing; for the mean over true
    features, swap the arguments.

    Args:
      W_dec: `[F, D]`, learned features.
      features: `[N, D]`, true features.

    Raises:
      ValueError: as for `cosine_similarities`.

    References:
      Sharkey, Braun and Millidge, Taking features out of superposition with sparse
      autoencoders, 2022.
    """
    return jnp.mean(jnp.max(cosine_similarities(W_dec, features), axis=1))


def mcc(W_dec, features) -> float:
    """Mean correlation coefficient: the mean |C_ji| of the best one-to-one matching.

    The mean is over the min(F, N) pairs of the matching that maximises it. The
    Hungarian algorithm runs on the host: half a minute for 4,096 latents and 16,384
    features.

    Args:
      W_dec: `[F, D]`, learned features.
      features: `[N, D]`, true features.

    Raises:
      ValueError: as for `cosine_similarities`, or if a cosine is nan.
      ImportError: if SciPy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment  # slow to import
    except ImportError as error:
        raise _checks.extra("recovery.mcc", "scipy", "sweep") from error
    cosines = cosine_similarities(W_dec, features)
    if isinstance(cosines, jax.core.Tracer):
        raise _checks.ArgumentError(
            "mcc", "runs on the host", advice="call it outside jax.jit and jax.vmap"
        )
    C = np.abs(np.asarray(cosines))
    if not np.isfinite(C).all():
        raise _checks.ArgumentError("W_dec and features", "must be finite")
    return float(C[linear_sum_assignment(C, maximize=True)].mean(dtype=np.float64))


def nearest_features(W_dec, features) -> Int[Array, "F"]:
    """argmax_i |C_ji| `[F]`: the true feature that each latent predicts.

    Args:
      W_dec: `[F, D]`, learned features.
      features: `[N, D]`, true features.

    Raises:
      ValueError: as for `cosine_similarities`.
    """
    return jnp.argmax(jnp.abs(cosine_similarities(W_dec, features)), axis=1)


def uniqueness(W_dec, features) -> Float[Array, ""]:
    """The number of different `nearest_features`, divided by F.

    1 if no two latents are nearest to the same true feature. Dead latents count.

    Args:
      W_dec: `[F, D]`, learned features.
      features: `[N, D]`, true features.

    Raises:
      ValueError: as for `cosine_similarities`.
    """
    nearest = nearest_features(W_dec, features)
    is_nearest = jnp.zeros(len(features), bool).at[nearest].set(True)
    return jnp.sum(is_nearest, dtype=jnp.float32) / len(nearest)


# ---- latents as classifiers of their nearest features --------------------------------


class Counts(NamedTuple):
    """Over examples, for each latent `[F]`: how often it and its feature are active.

    Counts of several batches add up: `jax.tree.map(numpy.add, counts, more)`.

    Attributes:
      true_positives: both are active.
      false_positives: the latent alone is.
      false_negatives: the feature alone is.
      true_negatives: neither is.
    """

    true_positives: Any
    false_positives: Any
    false_negatives: Any
    true_negatives: Any


class Classification(NamedTuple):
    """How well each latent predicts its feature, `[F]`; for means, `f1.mean()`.

    Attributes:
      f1: 2 TP / (2 TP + FP + FN).
      precision: TP / (TP + FP).
      recall: TP / (TP + FN).
      accuracy: (TP + TN) / (TP + FP + FN + TN).
    """

    f1: Any
    precision: Any
    recall: Any
    accuracy: Any


def count(z, coefficients, nearest) -> Counts:
    """Count a batch for `classification`.

    A latent is active if z_j is not 0, a feature if its coefficient is above 0.

    Args:
      z: `[B, F]`, latents.
      coefficients: `[B, N]`, of the true features.
      nearest: `[F]` integers, from `nearest_features`.

    Returns:
      Counts, each `[F]`.

    Raises:
      ValueError: if the shapes do not fit.
    """
    z, coefficients = map(jnp.asarray, (z, coefficients))
    nearest = jnp.asarray(nearest)
    shapes = z.shape, coefficients.shape, nearest.shape
    fits = list(map(len, shapes)) == [2, 2, 1]
    if not fits or z.shape != (len(coefficients), len(nearest)):
        raise _checks.ArgumentError(
            "z, coefficients and nearest",
            "must have shapes [B, F], [B, N] and [F]",
            ", ".join(str(list(shape)) for shape in shapes),
        )
    fired, is_active = z != 0, coefficients[:, nearest] > 0
    return Counts(
        jnp.sum(fired & is_active, axis=0),
        jnp.sum(fired & ~is_active, axis=0),
        jnp.sum(~fired & is_active, axis=0),
        jnp.sum(~fired & ~is_active, axis=0),
    )


def classification(counts: Counts) -> Classification:
    """F1, precision, recall and accuracy of each latent; 0 where undefined.

    SynthSAEBench reports their unweighted means over latents: `mean()` of each.

    Args:
      counts: of all examples, from `count`.
    """
    TP, FP, FN, TN = (jnp.asarray(number, jnp.float32) for number in counts)
    return Classification(
        f1=_ratio(2 * TP, 2 * TP + FP + FN),
        precision=_ratio(TP, TP + FP),
        recall=_ratio(TP, TP + FN),
        accuracy=_ratio(TP + TN, TP + FP + FN + TN),
    )


def _ratio(part, total):
    return jnp.where(total > 0, part / jnp.where(total > 0, total, 1), 0)


# ---- a model on data with known coefficients -----------------------------------------


def shrinkage(x, x_hat) -> Float[Array, ""]:
    """Mean over examples of |x_hat| / |x|; below 1 if reconstructions are too short.

    Examples with |x| of at most 1e-6 do not count; nan if there are no others.

    Args:
      x, x_hat: `[B, D]`.

    Raises:
      ValueError: if they are not two batches of floats of one shape.
    """
    x, x_hat = _checks.floating("x", x), _checks.floating("x_hat", x_hat)
    if x.ndim != 2 or x.shape != x_hat.shape:
        raise _checks.ArgumentError(
            "x and x_hat",
            "must be batches of one shape [B, D]",
            f"{list(x.shape)} and {list(x_hat.shape)}",
        )
    total, number = _norm_ratios(x, x_hat)
    return total / number


def _norm_ratios(x, x_hat):
    """The sum of |x_hat| / |x|, and of how many examples."""
    norms = jnp.linalg.norm(x, axis=1)
    counts = norms > _SMALLEST_NORM
    ratios = jnp.linalg.norm(x_hat, axis=1) / jnp.where(counts, norms, 1)
    return jnp.sum(jnp.where(counts, ratios, 0)), jnp.sum(counts)


def evaluate(
    ae: Autoencoder,
    params,
    batches: Iterable,
    features,
    *,
    state: Any = (),
    training: bool = False,
    encode: Callable[..., Array] | None = None,
) -> dict[str, float]:
    """All metrics of SynthSAEBench's final evaluation, over data of any length.

    One batch is in memory at a time, with counts for each latent; the cosines of all
    pairs of features need F N numbers, and `mcc` runs on the host.

    Args:
      ae: the model.
      params: its parameters.
      batches: pairs (x `[B, D]`, coefficients `[B, N]`), such as
        `dictionary.batches(key, 1000, 1024)`. Batches of one size compile once.
      features: `[N, D]`, such as `dictionary.features`.
      state: what the activation carries, `run.state.state`, if it carries anything.
      training: whether an activation that depends on the batch is applied as in
        training. SynthSAEBench does so: its numbers of active latents are exactly k.
      encode: `(ae, params, x [B, D]) -> z [B, H]`, a hashable function that encodes in
        place of the model's own encoder; state and training are then not used.

    Returns:
      By name: "explained_variance", 1 - sum |x - x_hat|^2 / sum |x - mean(x)|^2 with
      the mean of all x; "shrinkage"; "l0" and "true_l0", the mean numbers of active
      latents and features; "dead_fraction", of latents that were never active; "mcc",
      "mmcs" and "uniqueness"; and "f1", "precision", "recall" and "accuracy", means
      over latents.

    Raises:
      ValueError: if there is no batch, a batch is not such a pair, a shape does not
        fit, or `params` are another model's.

    Example:
      dictionary = jaxae.data.dictionaries.synthsaebench(key)
      run = jaxae.train(objective, dictionary.source(1024), ...)
      batches = dictionary.batches(other_key, 1000, 1024)
      jaxae.recovery.evaluate(ae, run.params, batches, dictionary.features)
    """
    W_dec, features = _as_matrices(ae.expand(params).W_dec, features)
    nearest = nearest_features(W_dec, features)
    sums, moments = None, None
    for batch in batches:
        x, coefficients = _as_pair(batch, ae.input_dim, len(features))
        data = x, coefficients, nearest
        choices = {"ae": ae, "training": training, "encode": encode}
        score = _score(params, *data, state, **choices)
        batch_sums, batch_moments = jax.tree.map(
            lambda n: np.asarray(n, np.float64), score
        )
        batch_moments = Moments(len(x), *batch_moments)
        sums = batch_sums if sums is None else jax.tree.map(np.add, sums, batch_sums)
        moments = batch_moments if moments is None else merge(moments, batch_moments)
    if sums is None or moments is None:
        raise _checks.ArgumentError("batches", "must hold at least one pair", "none")
    return {
        **_summary(sums, moments),
        "mcc": mcc(W_dec, features),
        "mmcs": float(mmcs(W_dec, features)),
        "uniqueness": float(uniqueness(W_dec, features)),
    }


class _Sums(NamedTuple):
    """Sums over examples."""

    counts: Counts
    num_active: Any  # true features
    squared_error: Any
    norm_ratios: Any  # and of how many examples


@functools.partial(jax.jit, static_argnames=("ae", "training", "encode"))
def _score(params, x, coefficients, nearest, state, *, ae, training, encode):
    """The `_Sums` of a batch, and the mean and squared deviations of x."""
    if encode is None:
        p = Objective(ae).forward(params, x, None, {}, state, training=training)
        z, x_hat = p.z, jax.vmap(ae.observation.mean)(p.eta)
    else:
        z = _checks.returned("encode", encode(ae, params, x), (len(x), ae.latent_dim))
        x_hat = jax.vmap(ae.decode, (None, 0, 0))(params, z, x)
    mean = jnp.mean(x, axis=0)
    sums = _Sums(
        count(z, coefficients, nearest),
        jnp.sum(coefficients > 0),
        jnp.sum((x_hat - x) ** 2),
        _norm_ratios(x, x_hat),
    )
    return sums, (mean, jnp.sum((x - mean[None]) ** 2, axis=0))


def _summary(sums: _Sums, moments: Moments) -> dict[str, float]:
    num_fired = sums.counts.true_positives + sums.counts.false_positives
    total, number = sums.norm_ratios
    with np.errstate(divide="ignore", invalid="ignore"):  # nan where undefined
        values = {
            "explained_variance": 1 - sums.squared_error / moments.squares.sum(),
            "shrinkage": total / number,
            "l0": num_fired.sum() / moments.num_rows,
            "true_l0": sums.num_active / moments.num_rows,
            "dead_fraction": (num_fired == 0).mean(),
        }
    scores = classification(sums.counts)._asdict()
    return {
        **{name: float(value) for name, value in values.items()},
        **{name: float(jnp.mean(each)) for name, each in scores.items()},
    }


# ---- checks --------------------------------------------------------------------------


def _as_matrices(W_dec, features) -> tuple[Array, Array]:
    W_dec = _checks.floating("W_dec", W_dec)
    features = _checks.floating("features", features)
    shapes = W_dec.shape, features.shape
    is_matrix = all(len(shape) == 2 and 0 not in shape for shape in shapes)
    if not is_matrix or W_dec.shape[1] != features.shape[1]:
        raise _checks.ArgumentError(
            "W_dec and features",
            "must have shapes [F, D] and [N, D]",
            f"{list(W_dec.shape)} and {list(features.shape)}",
        )
    return W_dec, features


def _as_pair(batch: Any, D: int, N: int) -> tuple[Array, Array]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise _checks.ArgumentError(
            "batches",
            "must hold pairs (x, coefficients)",
            _checks.describe(batch),
            "draw them with dictionary.batches(key, num_batches, batch_size)",
        )
    x = _checks.floating("x", batch[0])
    coefficients = _checks.floating("coefficients", batch[1])
    shapes = x.shape, coefficients.shape
    if not x.size or shapes != ((len(x), D), (len(x), N)):
        raise _checks.ArgumentError(
            "x and coefficients",
            f"must have shapes [B, {D}] and [B, {N}]",
            f"{list(x.shape)} and {list(coefficients.shape)}",
        )
    return x, coefficients


def _unit_rows(V):
    # First by the largest number, whose square would otherwise overflow or vanish.
    V = _divided(V, jnp.max(jnp.abs(V), axis=1, keepdims=True))
    return _divided(V, jnp.linalg.norm(V, axis=1, keepdims=True))


def _divided(V, norms):
    return V / jnp.where(norms == 0, 1, norms)
