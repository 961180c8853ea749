"""The measurements on the gradient in one leaf."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from jaxae.gradcheck.differences import (
    Line,
    Slopes,
    coarse_noise,
    float64_noise,
    slopes_along,
    taylor_order,
)
from jaxae.gradcheck.functions import Floats, ReferenceFunction
from jaxae.gradcheck.report import Leaf

_MAX_EXHAUSTIVE_SIZE = 64  # up to this size every entry of a leaf is differenced
# Of a larger leaf:
_NUM_TOP = 2  # the entries largest in each measure,
_NUM_DIFFERING = 8  # entries in which claim and autodiff differ,
_NUM_SAMPLED = 4  # random entries,
_NUM_DIRECTIONS = 6  # and random sign vectors over the leaf


class Rounding(NamedTuple):
    """The rounding error expected of a claim from its dtypes and shapes."""

    tolerance: float  # 8 u + sqrt(N) u32
    batch_sizes: frozenset[int] = frozenset()  # lengths of the data's first axes

    @property
    def rtol(self) -> float:
        """The accuracy to which slopes are needed."""
        return max(self.tolerance / 2, 1e-10)


class Probe(NamedTuple):
    """Access to the n derivatives of one leaf through function evaluations.

    `direction` below is a vector [n] of weights of the derivatives.
    """

    line: Callable[[np.ndarray, float], Line]  # (direction, unit of steps)
    point: Callable[[np.ndarray, float], Floats]  # (direction, t): the params there
    units: np.ndarray  # [n] the natural length of a step along each axis
    to_entries: Callable[[np.ndarray], np.ndarray]  # derivatives to (complex) numbers


class Evidence(NamedTuple):
    """The measurements on one leaf of n derivatives, flattened."""

    leaf: Leaf  # still undecided
    to_entries: Callable[[np.ndarray], np.ndarray]  # derivatives to (complex) numbers
    rounding: Rounding
    claim: np.ndarray  # [n]
    roundoff: np.ndarray  # [n] rounding error of the claim
    autodiff: Any  # [n] in float64, or None
    autodiff_roundoff: Any
    is_smooth: Any  # [n] where autodiff does not jump, or None
    indices: np.ndarray  # [m] derivatives measured one by one
    directions: np.ndarray  # [d, n] sign vectors; d = 0 for a small leaf
    slopes: Slopes  # [m + d] of the function along those axes and directions

    @property
    def derivatives_per_entry(self) -> int:
        """2 for a complex leaf, 1 for a real one."""
        return self.claim.size // max(math.prod(self.leaf.shape), 1)

    def slopes_of(self, gradient: np.ndarray) -> np.ndarray:
        """Slopes [m + d] of a gradient along the same axes and directions."""
        return np.append(gradient[self.indices], self.directions @ gradient)


def probe_leaf(function: ReferenceFunction, path: str, to_entries: Any) -> Probe:
    """The probe of one leaf of the params."""
    center = function.points[path]

    def line(direction: np.ndarray, unit: float) -> Line:
        return function.line({path: direction.reshape(center.shape)}, unit)

    def point(direction: np.ndarray, t: float) -> Floats:
        step = t * direction.reshape(center.shape)
        return function.points | {path: center + step}

    return Probe(line, point, step_units(center).ravel(), to_entries)


def step_units(point: np.ndarray) -> np.ndarray:
    """The natural length of a step in each entry: its size, at least the rms."""
    return np.asarray(np.maximum(np.abs(point), rms(point) or 1.0))


def measure_noise(
    function: ReferenceFunction, rng: np.random.Generator
) -> ReferenceFunction:
    """The function with its noise, measured along a random direction."""
    direction = {
        path: rng.choice([-1.0, 1.0], p.shape) * np.where(p, np.abs(p), rms(p) or 1.0)
        for path, p in function.points.items()
    }
    return function._replace(noise=float64_noise(function.line(direction)))


def gather(
    probe: Probe,
    leaf: Leaf,
    claims: list[Any],
    autodiffs: list[Any],
    derive: Callable[[Floats], Any],
    rounding: Rounding,
    rng: np.random.Generator,
) -> Evidence:
    """The evidence on a leaf.

    `claims` and `autodiffs` hold the derivatives at the params, then those of nearby
    points; `derive` is autodiff in float64.
    """
    claim, roundoff = _estimate_roundoff(claims)
    autodiff, autodiff_roundoff, is_smooth = None, None, None
    if autodiffs and np.all(np.isfinite(autodiffs[0])):
        autodiff, autodiff_roundoff = _estimate_roundoff(autodiffs)
        is_smooth = _find_smooth(autodiff, probe, derive, rng)
    per_entry = claim.size // max(math.prod(leaf.shape), 1)
    indices = _select_indices(claim, roundoff, autodiff, per_entry, rng)
    num_directions = _NUM_DIRECTIONS if claim.size > _MAX_EXHAUSTIVE_SIZE else 0
    directions = rng.choice([-1.0, 1.0], (max(num_directions, 1), claim.size))
    if is_smooth is not None:  # slopes at kinks do not add up along a direction
        directions = directions * is_smooth
    unit = rms(probe.units)
    axis_lines = _measure_coarse_noise(_axis_line(probe, k) for k in indices)
    lines = _measure_coarse_noise(probe.line(vector, unit) for vector in directions)
    uncertainty = rounding.tolerance * _norm(claim) + _norm(roundoff)
    order = taylor_order(lines[0], float(directions[0] @ claim), uncertainty)
    evidence = Evidence(
        leaf=replace(leaf, slope=order),
        to_entries=probe.to_entries,
        rounding=rounding,
        claim=claim,
        roundoff=roundoff,
        autodiff=autodiff,
        autodiff_roundoff=autodiff_roundoff,
        is_smooth=is_smooth,
        indices=indices,
        directions=directions[:num_directions],
        slopes=slopes_along([*axis_lines, *lines[:num_directions]], rounding.rtol),
    )
    # Bisection is unreliable under coarse rounding.
    is_coarse = lines[0].is_coarse
    return evidence if is_coarse else _add_deviating_entry(evidence, probe)


def _find_smooth(
    autodiff: np.ndarray,
    probe: Probe,
    derive: Callable[[Floats], Any],
    rng: np.random.Generator,
) -> Any:
    """A mask [n] of the derivatives that are the same a short step to either side.

    None if fewer than a tenth are: the changes are then the noise of a coarse function.
    """
    direction = rng.choice([-1.0, 1.0], autodiff.size) * probe.units
    change = np.zeros(autodiff.size)
    for t in (1e-6, -1e-6):
        neighbor = np.asarray(derive(probe.point(direction, t))).ravel()
        change = np.fmax(change, np.abs(neighbor - autodiff))
    is_smooth = change <= 1e-4 * max_abs(autodiff)
    return is_smooth if np.sum(is_smooth) >= 0.1 * is_smooth.size else None


def _measure_coarse_noise(lines: Iterable[Line]) -> list[Line]:
    """The lines of a function that rounds coarsely with their noise; others unchanged.

    The noise is at least the median: the rounding of a sum is the same along all lines.
    """
    lines = list(lines)
    if not lines or not lines[0].is_coarse:
        return lines
    noises = [coarse_noise(line) for line in lines]
    typical = float(np.median(noises))
    return [
        line._replace(noise=max(noise, typical))
        for line, noise in zip(lines, noises, strict=True)
    ]


def _axis_line(probe: Probe, k: Any) -> Line:
    return probe.line(np.arange(probe.units.size) == k, probe.units[k])


def _add_deviating_entry(evidence: Evidence, probe: Probe) -> Evidence:
    """The evidence, with the entry of a deviation that only the directions show.

    It bisects the direction that deviates most: each step keeps the half whose slope
    deviates more from the claim's.
    """
    m, rtol = evidence.indices.size, evidence.rounding.rtol
    deviations = evidence.slopes_of(evidence.claim) - evidence.slopes.slope
    exceeds = np.abs(deviations) > _allowed_deviations(evidence)
    if np.any(exceeds[:m]) or not np.any(exceeds[m:]):
        return evidence
    worst = int(np.argmax(np.abs(deviations[m:])))
    direction, deviation = evidence.directions[worst], deviations[m + worst]
    unit, candidates = rms(probe.units), np.arange(direction.size)
    while candidates.size > 1:
        left, right = np.array_split(candidates, 2)
        half = np.zeros(direction.size)
        half[left] = direction[left]
        slope = slopes_along([probe.line(half, unit)], rtol).slope[0]
        left_deviation = float(evidence.claim @ half - slope)
        right_deviation = deviation - left_deviation
        if abs(left_deviation) > abs(right_deviation):
            candidates, deviation = left, left_deviation
        else:
            candidates, deviation = right, right_deviation
    per_entry = evidence.derivatives_per_entry
    added = candidates[0] // per_entry * per_entry + np.arange(per_entry)
    added_slopes = slopes_along((_axis_line(probe, k) for k in added), rtol)
    return evidence._replace(
        indices=np.append(added, evidence.indices),
        slopes=Slopes(*map(np.append, added_slopes, evidence.slopes)),
    )


def _allowed_deviations(evidence: Evidence) -> np.ndarray:
    """[m + d] deviations of the claim from the slopes that rounding explains."""
    claim, roundoff, m = evidence.claim, evidence.roundoff, evidence.indices.size
    tolerance, slopes = evidence.rounding.tolerance, evidence.slopes
    allowed = 2 * slopes.resolution + np.abs(slopes.jump)
    allowed[:m] += tolerance * max_abs(claim) + max_abs(roundoff)
    allowed[m:] += tolerance * _norm(claim) + _norm(roundoff)
    return allowed


def _estimate_roundoff(derivatives: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The first derivatives, flat in float64, and the rounding error of each.

    The error is five standard deviations. The other derivatives have been perturbed by
    2 u, whereas the error of rounding to nearest is uniform within u, with a standard
    deviation of u / sqrt(3).
    """
    flat = [np.asarray(x).astype(np.float64).ravel() for x in derivatives]
    changes = [np.nan_to_num(np.abs(x - flat[0]), posinf=0.0) for x in flat[1:]]
    scale = 5 / (2 * math.sqrt(3))
    return flat[0], scale * np.sqrt(np.mean(np.square(changes), axis=0))


def _select_indices(
    claim: np.ndarray,
    roundoff: np.ndarray,
    autodiff: Any,
    per_entry: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Indices of the derivatives to measure one by one.

    These are the largest in claim, roundoff, autodiff and claim - autodiff; a random
    sample; and a sample of those in which claim and autodiff differ. Of a complex entry
    both derivatives are selected.
    """
    if claim.size <= _MAX_EXHAUSTIVE_SIZE:
        return np.arange(claim.size)
    measures = [claim, roundoff]
    if autodiff is not None:
        measures += [autodiff, claim - autodiff]
    sizes = [np.nan_to_num(np.abs(x)) for x in measures]
    selected = [np.argpartition(-x, _NUM_TOP)[:_NUM_TOP] for x in sizes]
    selected.append(rng.choice(claim.size, _NUM_SAMPLED, replace=False))
    if autodiff is not None:
        differs = np.flatnonzero(sizes[-1] > 1e-5 * max_abs(autodiff))
        selected.append(_sample_evenly(differs[np.argsort(sizes[-1][differs])]))
    first = np.unique(np.concatenate(selected) // per_entry) * per_entry
    return np.add.outer(first, np.arange(per_entry)).ravel()


def _sample_evenly(indices: np.ndarray) -> np.ndarray:
    """At most _NUM_DIFFERING of the indices, evenly spaced, the first and the last."""
    count = min(indices.size, _NUM_DIFFERING)
    return indices[np.linspace(0, indices.size - 1, count).astype(int)]


def _norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(x))


def max_abs(x: np.ndarray) -> float:
    """max |x|, 0 for an empty array."""
    return float(np.max(np.abs(x), initial=0.0))


def rms(x: np.ndarray) -> float:
    """Root mean square, 0 for an empty array."""
    return math.sqrt(np.mean(x**2)) if x.size else 0.0
