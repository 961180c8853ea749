"""From the evidence on a leaf: its true gradient, and the verdict on the claim."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from jaxae.gradcheck.evidence import Evidence, max_abs, rms
from jaxae.gradcheck.hints import explain
from jaxae.gradcheck.report import Leaf, Worst
from jaxae.gradcheck.rounding import FLOAT32_UNIT, ROUNDING_FACTOR

_MAX_RESOLUTION = 0.1  # a verdict needs a better one


class TrueGradient(NamedTuple):
    """The derivatives of the function, as far as they are known."""

    indices: np.ndarray  # [k] of the known derivatives
    values: np.ndarray  # [k]
    scale: float  # the largest derivative of the leaf
    norm: float  # the norm of the leaf
    kinks: np.ndarray  # indices at which the function has no derivative
    has_kink: bool  # along an axis or a direction
    is_autodiff: bool  # autodiff is confirmed, so all derivatives are known


def judge_leaf(evidence: Evidence, is_declared: bool) -> Leaf:
    """The leaf with its verdict.

    A leaf declared a surrogate must follow autodiff instead of the function.
    """
    leaf = _judge_by_function(evidence)
    is_checked = (
        leaf.verdict != "undecided" and is_declared and evidence.autodiff is not None
    )
    if is_checked and not _follows_autodiff(evidence):
        return _not_as_declared(evidence)
    is_declared_surrogate = is_declared and leaf.verdict == "surrogate"
    return replace(leaf, ok=leaf.ok or is_declared_surrogate)


def _judge_by_function(evidence: Evidence) -> Leaf:
    if not evidence.claim.size:
        leaf = replace(evidence.leaf, error=0.0, resolution=0.0, hint="empty")
        return replace(leaf, verdict="correct", ok=True)
    not_finite = np.flatnonzero(~np.isfinite(evidence.claim))
    if not_finite.size:
        count = np.unique(not_finite // evidence.derivatives_per_entry).size
        first = _entry_index(evidence, not_finite[0])
        hint = f"{count} claimed entries are not finite, the first at {first}"
        return replace(evidence.leaf, hint=hint)
    slope, jump, resolution = evidence.slopes
    if not np.all(np.isfinite(resolution)):
        return replace(evidence.leaf, hint="fn is not finite around the params")
    if np.all(np.abs(slope) <= resolution) and not np.any(jump):
        return _judge_zero(evidence)
    return _judge_nonzero(evidence)


def _not_as_declared(evidence: Evidence) -> Leaf:
    """A wrong leaf, with its error relative to autodiff."""
    scale, k = (
        max_abs(evidence.autodiff),
        int(np.argmax(np.abs(evidence.claim - evidence.autodiff))),
    )
    error, roundoff = (
        max_abs(evidence.claim - evidence.autodiff),
        max_abs(evidence.roundoff),
    )
    return replace(
        evidence.leaf,
        verdict="wrong",
        error=error / (scale or 1.0),
        resolution=evidence.rounding.tolerance + roundoff / (scale or 1.0),
        worst=Worst(
            _entry_index(evidence, k),
            _entry(evidence, evidence.claim, k),
            _entry(evidence, evidence.autodiff, k),
        ),
        hint="declared a surrogate, but not what autodiff says",
    )


def _judge_zero(evidence: Evidence) -> Leaf:
    """The verdict on a leaf in which no slope exceeds the noise; errors are absolute.

    A claim of zero, to within its own rounding, is correct. A claim that is larger than
    that but below the resolution of differences can be neither confirmed nor refuted.
    """
    rounding = max_abs(evidence.roundoff)
    floor = max_abs(evidence.slopes.resolution[: evidence.indices.size])
    error, resolution = max_abs(evidence.claim), floor + rounding
    leaf = replace(evidence.leaf, error=error, resolution=resolution)
    if error > resolution:
        verdict = "surrogate" if _follows_autodiff(evidence) else "wrong"
        k = int(np.argmax(np.abs(evidence.claim)))
        worst = Worst(
            _entry_index(evidence, k), _entry(evidence, evidence.claim, k), 0.0
        )
        hint = "the true gradient is zero: error is absolute"
        return replace(leaf, verdict=verdict, worst=worst, hint=hint)
    is_below_resolution = error > 5 * rounding
    if evidence.autodiff is not None:
        # Autodiff is not zero either, beyond rounding, and differences cannot show it.
        least = max(5 * max_abs(evidence.autodiff_roundoff), rounding)
        is_below_resolution |= least < max_abs(evidence.autodiff) <= floor
    if is_below_resolution:
        hint = f"too small for differences, which see {floor:.1e} and more"
        return replace(leaf, hint=hint)
    hint = "zero: error is absolute"
    return replace(leaf, verdict="correct", ok=True, hint=hint)


def _judge_nonzero(evidence: Evidence) -> Leaf:
    true = _find_true_gradient(evidence)
    error, resolution = _measure_error(evidence, true)
    claim = evidence.claim[true.indices]
    k = int(np.argmax(np.abs(claim - true.values)))
    index = int(true.indices[k])
    worst = Worst(
        _entry_index(evidence, index),
        _entry(evidence, claim, k),
        _entry(evidence, true.values, k),
    )
    leaf = replace(evidence.leaf, error=error, resolution=resolution, worst=worst)
    if resolution > _MAX_RESOLUTION and error <= 3 * resolution:
        hint = f"resolution worse than {_MAX_RESOLUTION}: too noisy"
        return replace(leaf, hint=hint)
    if error > resolution and index in true.kinks:
        return replace(leaf, verdict="kink", hint="not between the one-sided slopes")
    if error > resolution:
        is_surrogate = not true.is_autodiff and _follows_autodiff(evidence)
        hint = explain(
            evidence.to_entries(claim),
            evidence.to_entries(true.values),
            2 * resolution,
            evidence.leaf.shape,
            evidence.rounding.batch_sizes,
        )
        verdict = "surrogate" if is_surrogate else "wrong"
        return replace(leaf, verdict=verdict, hint=hint)
    if true.has_kink and claim.size < evidence.claim.size:
        return replace(leaf, hint="kinks, and no autodiff that tells every entry")
    if true.has_kink:
        hint = f"at {true.kinks.size} of the entries looked at"
        return replace(leaf, verdict="kink", ok=True, hint=hint)
    return replace(leaf, verdict="correct", ok=True)


def _find_true_gradient(evidence: Evidence) -> TrueGradient:
    """Autodiff if the differences confirm it, otherwise the differences themselves.

    At a kink, the true value is the one between the one-sided slopes that is nearest to
    the claim. The scale is estimated from axes and directions together, because either
    may have missed the largest derivatives.
    """
    indices, m = evidence.indices, evidence.indices.size
    values, jump = evidence.slopes.slope[:m].copy(), evidence.slopes.jump[:m]
    norm = max(rms(evidence.slopes.slope[m:]), max_abs(values))
    scale = max(
        max_abs(values), max_abs(jump) / 2, norm / math.sqrt(evidence.claim.size)
    )
    is_kink = np.abs(evidence.slopes.jump) > evidence.rounding.tolerance * _scales(
        evidence, scale, norm
    )
    has_kink, kinks = bool(np.any(is_kink)), indices[is_kink[:m]]
    low, high = values - np.abs(jump) / 2, values + np.abs(jump) / 2
    nearest = np.where(jump, np.clip(evidence.claim[indices], low, high), values)
    if not _is_autodiff_confirmed(evidence, scale, norm):
        return TrueGradient(indices, nearest, scale, norm, kinks, has_kink, False)
    values = evidence.autodiff.copy()
    scale, norm = max(scale, max_abs(values)), float(np.linalg.norm(values))
    values[indices[jump != 0]] = nearest[jump != 0]
    # A claim that differs from autodiff at a measured kink may differ at other kinks
    # too. Autodiff is only one of the right answers there.
    differs = (
        np.abs(evidence.claim - evidence.autodiff)
        > evidence.rounding.tolerance * scale + evidence.roundoff
    )
    if np.any(differs[kinks]):
        differs &= True if evidence.is_smooth is None else ~evidence.is_smooth
        differs[indices] = False
        values[differs] = evidence.claim[differs]
    indices = np.arange(values.size)
    return TrueGradient(indices, values, scale, norm, kinks, has_kink, True)


def _is_autodiff_confirmed(evidence: Evidence, scale: float, norm: float) -> bool:
    """Whether autodiff agrees with all differences, to float32 or the claim's dtype."""
    if evidence.autodiff is None:
        return False
    tolerance = max(
        min(evidence.rounding.tolerance, ROUNDING_FACTOR * FLOAT32_UNIT), 1e-12
    )
    allowed = tolerance * _scales(evidence, scale, norm) + evidence.slopes.resolution
    agrees = _distance_to_slopes(evidence, evidence.autodiff) <= allowed
    m = evidence.indices.size
    # At a kink, slopes do not add up along a direction.
    return bool(np.all(agrees[:m] if np.any(evidence.slopes.jump[m:]) else agrees))


def _scales(evidence: Evidence, scale: float, norm: float) -> np.ndarray:
    """[m + d]: the scale for the axes, the norm for the directions."""
    return np.repeat([scale, norm], [evidence.indices.size, len(evidence.directions)])


def _distance_to_slopes(evidence: Evidence, gradient: np.ndarray) -> np.ndarray:
    """[m + d] distances of a gradient's slopes to the range of one-sided slopes."""
    distance = np.abs(evidence.slopes_of(gradient) - evidence.slopes.slope)
    return np.maximum(distance - np.abs(evidence.slopes.jump) / 2, 0.0)


def _measure_error(evidence: Evidence, true: TrueGradient) -> tuple[float, float]:
    """(error, resolution), of the entries or along the directions if that is worse."""
    m, tolerance, roundoff = (
        evidence.indices.size,
        evidence.rounding.tolerance,
        evidence.roundoff.copy(),
    )
    roundoff[true.kinks] = 0.0
    error = max_abs(evidence.claim[true.indices] - true.values)
    uncertainty = max_abs(roundoff) + max_abs(evidence.slopes.resolution[:m])
    pairs = [(error / true.scale, tolerance + uncertainty / true.scale)]
    if m < evidence.slopes.slope.size and not np.any(evidence.slopes.jump[m:]):
        error = max_abs(_distance_to_slopes(evidence, evidence.claim)[m:])
        uncertainty = float(np.linalg.norm(roundoff)) + max_abs(
            evidence.slopes.resolution[m:]
        )
        pairs.append((error / true.norm, tolerance + uncertainty / true.norm))
    return max(pairs, key=lambda pair: pair[0] / pair[1])


def _follows_autodiff(evidence: Evidence) -> bool:
    if evidence.autodiff is None:
        return False
    allowed = evidence.rounding.tolerance * max_abs(evidence.autodiff) + max_abs(
        evidence.roundoff
    )
    return max_abs(evidence.claim - evidence.autodiff) <= allowed


def _entry_index(evidence: Evidence, k: Any) -> tuple[int, ...]:
    """The index in the leaf of the entry that the k-th derivative belongs to."""
    entry = k // evidence.derivatives_per_entry
    return tuple(map(int, np.unravel_index(entry, evidence.leaf.shape)))


def _entry(evidence: Evidence, derivatives: np.ndarray, k: int) -> float | complex:
    """The entry that the k-th of the derivatives belongs to."""
    per_entry = evidence.derivatives_per_entry
    first = k // per_entry * per_entry
    return evidence.to_entries(derivatives[first : first + per_entry]).item()
