"""What the evidence says of the true gradient in one leaf, and so of the claim."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from jaxae.gradcheck.evidence import Evidence, largest, rms
from jaxae.gradcheck.hints import explain
from jaxae.gradcheck.report import Leaf, Worst
from jaxae.gradcheck.rounding import ROUNDINGS, SINGLE

_COARSEST = 0.1  # a resolution worse than this decides nothing


class Truth(NamedTuple):
    """The gradient as far as it is known."""

    known: np.ndarray  # [k] entries of which the truth is known
    true: np.ndarray  # [k]
    scale: float  # the largest entry
    norm: float  # of the whole leaf
    kinks: np.ndarray  # entries that have no derivative
    has_kink: bool  # an entry or a direction
    is_autodiff: bool  # confirmed, so that every entry is known


def judge(e: Evidence, is_declared: bool) -> Leaf:
    """The leaf with the verdict that the evidence supports.

    One that is declared to follow autodiff rather than the function has to.
    """
    leaf = _judge_by_function(e)
    is_checked = leaf.verdict != "undecided" and is_declared and e.autodiff is not None
    if is_checked and not _follows_autodiff(e):
        return _not_as_declared(e)
    is_meant = is_declared and leaf.verdict == "surrogate"
    return replace(leaf, ok=leaf.ok or is_meant)


def _judge_by_function(e: Evidence) -> Leaf:
    if not e.claim.size:
        leaf = replace(e.leaf, error=0.0, resolution=0.0, hint="empty")
        return replace(leaf, verdict="correct", ok=True)
    bad = np.unique(np.flatnonzero(~np.isfinite(e.claim)) // e.num_parts)
    if bad.size:
        first = tuple(map(int, np.unravel_index(bad[0], e.leaf.shape)))
        hint = f"{bad.size} claimed entries are not finite, the first at {first}"
        return replace(e.leaf, hint=hint)
    slope, jump, resolution = e.found
    if not np.all(np.isfinite(resolution)):
        return replace(e.leaf, hint="fn is not finite around the params")
    if np.all(np.abs(slope) <= resolution) and not np.any(jump):
        return _judge_zero(e)
    return _judge_nonzero(e)


def _not_as_declared(e: Evidence) -> Leaf:
    """Wrong by the measure of autodiff."""
    scale, k = largest(e.autodiff), int(np.argmax(np.abs(e.claim - e.autodiff)))
    error, roundoff = largest(e.claim - e.autodiff), largest(e.roundoff)
    return replace(
        e.leaf,
        verdict="wrong",
        error=error / (scale or 1.0),
        resolution=e.rounding.tolerance + roundoff / (scale or 1.0),
        worst=Worst(_index(e, k), _number(e, e.claim, k), _number(e, e.autodiff, k)),
        hint="declared a surrogate, but not what autodiff says",
    )


def _judge_zero(e: Evidence) -> Leaf:
    """Where no difference stands out of the noise, errors can only be absolute.

    A claim that is zero to within its own rounding is right. One that insists on a
    value too small for differences can be neither confirmed nor refuted.
    """
    rounding = largest(e.roundoff)
    floor = largest(e.found.resolution[: e.looked_at.size])
    error, resolution = largest(e.claim), floor + rounding
    leaf = replace(e.leaf, error=error, resolution=resolution)
    if error > resolution:
        verdict = "surrogate" if _follows_autodiff(e) else "wrong"
        k = int(np.argmax(np.abs(e.claim)))
        worst = Worst(_index(e, k), _number(e, e.claim, k), 0.0)
        hint = "the true gradient is zero: error is absolute"
        return replace(leaf, verdict=verdict, worst=worst, hint=hint)
    insists = error > 5 * rounding
    if e.autodiff is not None:
        # Not what is below the claim's rounding, nor what differences would have seen.
        least = max(5 * largest(e.autodiff_roundoff), rounding)
        insists |= least < largest(e.autodiff) <= floor
    if insists:
        hint = f"too small for differences, which see {floor:.1e} and more"
        return replace(leaf, hint=hint)
    hint = "zero: error is absolute"
    return replace(leaf, verdict="correct", ok=True, hint=hint)


def _judge_nonzero(e: Evidence) -> Leaf:
    truth = _find_truth(e)
    error, resolution = _measure(e, truth)
    claim, true = e.claim[truth.known], truth.true
    k = int(np.argmax(np.abs(claim - true)))
    entry = int(truth.known[k])
    worst = Worst(_index(e, entry), _number(e, claim, k), _number(e, true, k))
    leaf = replace(e.leaf, error=error, resolution=resolution, worst=worst)
    if resolution > _COARSEST and error <= 3 * resolution:
        return replace(leaf, hint=f"resolution worse than {_COARSEST}: too noisy")
    if error > resolution and entry in truth.kinks:
        return replace(leaf, verdict="kink", hint="not between the one-sided slopes")
    if error > resolution:
        follows = not truth.is_autodiff and _follows_autodiff(e)
        verdict = "surrogate" if follows else "wrong"
        hint = explain(
            e.numbers(claim),
            e.numbers(true),
            2 * resolution,
            e.leaf.shape,
            e.rounding.batch_sizes,
        )
        return replace(leaf, verdict=verdict, hint=hint)
    if truth.has_kink and claim.size < e.claim.size:
        return replace(leaf, hint="kinks, and no autodiff that tells every entry")
    if truth.has_kink:
        hint = f"at {truth.kinks.size} of the entries looked at"
        return replace(leaf, verdict="kink", ok=True, hint=hint)
    return replace(leaf, verdict="correct", ok=True)


def _find_truth(e: Evidence) -> Truth:
    """Autodiff where that is confirmed, the differences where not.

    At a kink it is the number between the one-sided slopes that is nearest to the
    claim. Slopes of entries and of directions bound what the others may have missed.
    """
    known, m = e.looked_at, e.looked_at.size
    true, jump = e.found.slope[:m].copy(), e.found.jump[:m]
    norm = max(rms(e.found.slope[m:]), largest(true))
    scale = max(largest(true), largest(jump) / 2, norm / math.sqrt(e.claim.size))
    is_kink = np.abs(e.found.jump) > e.rounding.tolerance * _units(e, scale, norm)
    has_kink, kinks = bool(np.any(is_kink)), known[is_kink[:m]]
    half = np.abs(jump) / 2
    nearest = np.where(jump, np.clip(e.claim[known], true - half, true + half), true)
    if not _is_confirmed(e, scale, norm):
        return Truth(known, nearest, scale, norm, kinks, has_kink, False)
    true = e.autodiff.copy()
    scale, norm = max(scale, largest(true)), float(np.linalg.norm(true))
    true[known[jump != 0]] = nearest[jump != 0]
    # Where the claim departs from autodiff at kinks, as far as was looked, it may do so
    # at further ones: there, autodiff is but one of the possible answers.
    departs = np.abs(e.claim - e.autodiff) > e.rounding.tolerance * scale + e.roundoff
    if np.any(departs[kinks]):
        departs &= True if e.is_smooth is None else ~e.is_smooth
        departs[known] = False
        true[departs] = e.claim[departs]
    return Truth(np.arange(true.size), true, scale, norm, kinks, has_kink, True)


def _is_confirmed(e: Evidence, scale: float, norm: float) -> bool:
    """Whether autodiff passes all differences, to single precision or the claim's."""
    if e.autodiff is None:
        return False
    tolerance = max(min(e.rounding.tolerance, ROUNDINGS * SINGLE), 1e-12)
    allowed = tolerance * _units(e, scale, norm) + e.found.resolution
    agrees = _outside(e, e.autodiff) <= allowed
    m = e.looked_at.size
    # At a kink, slopes along directions do not add up.
    return bool(np.all(agrees[:m] if np.any(e.found.jump[m:]) else agrees))


def _units(e: Evidence, scale: float, norm: float) -> np.ndarray:
    return np.repeat([scale, norm], [e.looked_at.size, len(e.signs)])


def _outside(e: Evidence, gradient: np.ndarray) -> np.ndarray:
    """How far slopes of a gradient lie outside of the one-sided ones found."""
    distance = np.abs(e.along(gradient) - e.found.slope)
    return np.maximum(distance - np.abs(e.found.jump) / 2, 0.0)


def _measure(e: Evidence, truth: Truth) -> tuple[float, float]:
    """(error, resolution) of the entries or along the directions, the worse of both."""
    m, roundoff = e.looked_at.size, e.roundoff.copy()
    roundoff[truth.kinks] = 0.0
    error = largest(e.claim[truth.known] - truth.true)
    blur = largest(roundoff) + largest(e.found.resolution[:m])
    measures = [(error / truth.scale, e.rounding.tolerance + blur / truth.scale)]
    if m < e.found.slope.size and not np.any(e.found.jump[m:]):
        error = largest(_outside(e, e.claim)[m:])
        blur = float(np.linalg.norm(roundoff)) + largest(e.found.resolution[m:])
        measures.append((error / truth.norm, e.rounding.tolerance + blur / truth.norm))
    return max(measures, key=lambda pair: pair[0] / pair[1])


def _follows_autodiff(e: Evidence) -> bool:
    if e.autodiff is None:
        return False
    allowed = e.rounding.tolerance * largest(e.autodiff) + largest(e.roundoff)
    return largest(e.claim - e.autodiff) <= allowed


def _index(e: Evidence, k: int) -> tuple[int, ...]:
    """Where in the leaf the k-th derivative is."""
    return tuple(map(int, np.unravel_index(k // e.num_parts, e.leaf.shape)))


def _number(e: Evidence, derivatives: np.ndarray, k: int) -> float | complex:
    """The number that the k-th of some derivatives is a part of."""
    first = k // e.num_parts * e.num_parts
    return e.numbers(derivatives[first : first + e.num_parts]).item()
