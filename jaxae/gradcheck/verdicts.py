"""From the evidence on a leaf to its true gradient, the verdict and the hint."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from jaxae.gradcheck.evidence import Evidence, max_abs, rms
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
    if not is_declared or leaf.verdict == "undecided" or evidence.autodiff is None:
        return leaf
    if not _follows_autodiff(evidence):
        return _reject_surrogate(evidence)
    return replace(leaf, ok=leaf.ok or leaf.verdict == "surrogate")


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


def _reject_surrogate(evidence: Evidence) -> Leaf:
    """A wrong leaf, with its error relative to autodiff."""
    deviations = np.abs(evidence.claim - evidence.autodiff)
    scale, k = max_abs(evidence.autodiff) or 1.0, int(np.argmax(deviations))
    return replace(
        evidence.leaf,
        verdict="wrong",
        error=max_abs(deviations) / scale,
        resolution=evidence.rounding.tolerance + max_abs(evidence.roundoff) / scale,
        worst=_worst(evidence, k, k, evidence.claim, evidence.autodiff),
        hint="declared a surrogate, but differs from autodiff",
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
        worst = _worst(evidence, k, k, evidence.claim, evidence.claim)
        worst = worst._replace(true=0.0)
        hint = "the true gradient is zero: error is absolute"
        return replace(leaf, verdict=verdict, worst=worst, hint=hint)
    is_below_resolution = error > 5 * rounding
    if evidence.autodiff is not None:
        # Autodiff is not zero either, beyond rounding, and differences cannot show it.
        least = max(5 * max_abs(evidence.autodiff_roundoff), rounding)
        is_below_resolution |= least < max_abs(evidence.autodiff) <= floor
    if is_below_resolution:
        hint = f"too small for differences, which resolve {floor:.1e}"
        return replace(leaf, hint=hint)
    hint = "zero: error is absolute"
    return replace(leaf, verdict="correct", ok=True, hint=hint)


def _judge_nonzero(evidence: Evidence) -> Leaf:
    true = _find_true_gradient(evidence)
    error, resolution = _measure_error(evidence, true)
    claim = evidence.claim[true.indices]
    k = int(np.argmax(np.abs(claim - true.values)))
    index = int(true.indices[k])
    worst = _worst(evidence, index, k, claim, true.values)
    leaf = replace(evidence.leaf, error=error, resolution=resolution, worst=worst)
    if resolution > _MAX_RESOLUTION and error <= 3 * resolution:
        hint = f"resolution worse than {_MAX_RESOLUTION}: too noisy"
        return replace(leaf, hint=hint)
    if error > resolution and index in true.kinks:
        return replace(leaf, verdict="kink", hint="not between the one-sided slopes")
    if error > resolution:
        is_surrogate = not true.is_autodiff and _follows_autodiff(evidence)
        hint = _explain(
            evidence.to_entries(claim),
            evidence.to_entries(true.values),
            2 * resolution,
            evidence.leaf.shape,
            evidence.rounding.batch_sizes,
        )
        verdict = "surrogate" if is_surrogate else "wrong"
        return replace(leaf, verdict=verdict, hint=hint)
    if true.has_kink and claim.size < evidence.claim.size:
        return replace(leaf, hint="kinks, and no autodiff for the entries not measured")
    if true.has_kink:
        hint = f"at {true.kinks.size} of the measured entries"
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
    least_jump = evidence.rounding.tolerance * _scales(evidence, scale, norm)
    is_kink = np.abs(evidence.slopes.jump) > least_jump
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
    allowed = evidence.rounding.tolerance * scale + evidence.roundoff
    differs = np.abs(evidence.claim - evidence.autodiff) > allowed
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
    tolerance = min(evidence.rounding.tolerance, ROUNDING_FACTOR * FLOAT32_UNIT)
    tolerance = max(tolerance, 1e-12)
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
    m, tolerance = evidence.indices.size, evidence.rounding.tolerance
    roundoff, (slope, jump, resolution) = evidence.roundoff.copy(), evidence.slopes
    roundoff[true.kinks] = 0.0
    error = max_abs(evidence.claim[true.indices] - true.values)
    uncertainty = max_abs(roundoff) + max_abs(resolution[:m])
    pairs = [(error / true.scale, tolerance + uncertainty / true.scale)]
    if m < slope.size and not np.any(jump[m:]):
        error = max_abs(_distance_to_slopes(evidence, evidence.claim)[m:])
        uncertainty = float(np.linalg.norm(roundoff)) + max_abs(resolution[m:])
        pairs.append((error / true.norm, tolerance + uncertainty / true.norm))
    return max(pairs, key=lambda pair: pair[0] / pair[1])


def _follows_autodiff(evidence: Evidence) -> bool:
    if evidence.autodiff is None:
        return False
    allowed = evidence.rounding.tolerance * max_abs(evidence.autodiff)
    deviation = max_abs(evidence.claim - evidence.autodiff)
    return deviation <= allowed + max_abs(evidence.roundoff)


def _worst(
    evidence: Evidence, index: int, k: int, claim: np.ndarray, true: np.ndarray
) -> Worst:
    """The entry of the derivative at `index`, the k-th of those claimed and true."""
    per_entry = evidence.derivatives_per_entry
    first = k // per_entry * per_entry
    claimed, true_entry = (
        evidence.to_entries(derivatives[first : first + per_entry]).item()
        for derivatives in (claim, true)
    )
    return Worst(_entry_index(evidence, index), claimed, true_entry)


def _entry_index(evidence: Evidence, k: Any) -> tuple[int, ...]:
    """The index in the leaf of the entry that the k-th derivative belongs to."""
    entry = k // evidence.derivatives_per_entry
    return tuple(map(int, np.unravel_index(entry, evidence.leaf.shape)))


# ---- hints: the single cause that explains a deviation -------------------------------


def _explain(
    claim: np.ndarray,
    true: np.ndarray,
    tolerance: float,
    shape: tuple[int, ...],
    batch_sizes: frozenset[int],
) -> str:
    """The change that turns `true` into `claim`, both flat, to within the tolerance.

    The arrays hold all entries of a leaf of that shape, or those that were measured.
    """

    def explains(other: np.ndarray) -> bool:
        return max_abs(claim - other) <= tolerance * max_abs(other)

    if not np.any(claim):
        return "zero"
    if explains(-true):
        return "sign"
    if np.iscomplexobj(true) and explains(np.conj(true)):
        return "conjugated"
    factor = _factor(claim, true, tolerance)
    if abs(factor - 1) > tolerance and explains(factor * true):
        cause = _batch_size_cause(factor, tolerance, batch_sizes)
        return f"off by a factor {_format_factor(factor)}{cause}"
    is_complete = claim.size == math.prod(shape)
    if is_complete and len(shape) == 2 and explains(true.reshape(shape).T.ravel()):
        return "transposed"
    deviates = np.abs(claim - true) > tolerance * max_abs(true)
    if is_complete and np.sum(deviates) > 1 and (line := _common_line(deviates, shape)):
        return line
    entries = "entries" if is_complete else "measured entries"
    return f"in {np.sum(deviates)} of {claim.size} {entries}"


def _factor(claim: np.ndarray, true: np.ndarray, tolerance: float) -> float | complex:
    """The least-squares factor c of claim = c true."""
    square = np.vdot(true, true).real
    factor = complex(np.vdot(true, claim)) / square if square else 0j
    floor = tolerance * abs(factor)
    real, imag = (x if abs(x) > floor else 0.0 for x in (factor.real, factor.imag))
    return complex(real, imag) if imag else real


def _format_factor(factor: float | complex) -> str:
    """Four digits; for a factor close to 1, its distance from 1."""
    if isinstance(factor, float) and 0 < abs(factor - 1) < 1e-3:
        return f"1 {'-' if factor < 1 else '+'} {abs(factor - 1):.1e}"
    return f"{factor:#.4g}"


def _batch_size_cause(
    factor: float | complex, tolerance: float, batch_sizes: frozenset[int]
) -> str:
    """Whether a sum and a mean over a batch were confused."""
    for size in sorted(size for size in batch_sizes if size > 1):
        for word, expected in (("divided", 1 / size), ("multiplied", float(size))):
            if abs(factor - expected) <= tolerance * expected:
                return f": {word} by the batch size {size}"
    return ""


def _common_line(deviates: np.ndarray, shape: tuple[int, ...]) -> str:
    """The one row or column that holds all deviations, if there is one."""
    if len(shape) != 2:
        return ""
    positions = np.nonzero(deviates.reshape(shape))
    for name, indices, size in zip(("row", "column"), positions, shape, strict=True):
        if size > 1 and np.all(indices == indices[0]):
            return f"one {name}: {indices[0]}"
    return ""
