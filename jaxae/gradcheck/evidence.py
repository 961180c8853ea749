"""All that is measured of the gradient in one leaf."""

import itertools
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
from jaxae.gradcheck.functions import Floats, Function
from jaxae.gradcheck.report import Leaf

_SMALL = 64  # up to this size every entry of a leaf is differenced
_NUM_TOP = 2  # beyond: this many entries from each place of interest,
_NUM_SPREAD = 8  # this many from where claim and autodiff differ
_NUM_SAMPLED = 4  # this many at random,
_NUM_DIRECTIONS = 6  # and this many random sign vectors over the whole leaf


class Rounding(NamedTuple):
    """What rounding may do to a claim, from its dtypes and shapes alone."""

    tolerance: float  # 8 u + sqrt(N) u32
    batch_sizes: frozenset[int] = frozenset()  # lengths of first axes among the data

    @property
    def rtol(self) -> float:
        """How well slopes have to be known."""
        return max(self.tolerance / 2, 1e-10)


class Probe(NamedTuple):
    """How the function can be moved to see the n derivatives of a leaf."""

    line: Callable[[np.ndarray, float], Line]  # whose slope is theirs along [n]
    moved: Callable[[np.ndarray, float], Floats]  # the points t along [n]
    sizes: np.ndarray  # [n] the length natural to a step along each
    numbers: Callable[[np.ndarray], np.ndarray]  # [n] as the caller writes them


class Evidence(NamedTuple):
    """All that is known of one leaf of n derivatives, flattened."""

    leaf: Leaf  # still undecided
    numbers: Callable[[np.ndarray], np.ndarray]  # as the caller writes them
    rounding: Rounding
    claim: np.ndarray  # [n]
    roundoff: np.ndarray  # [n] what rounding may do to the claim
    autodiff: Any  # [n] in float64, or None
    autodiff_roundoff: Any
    is_smooth: Any  # [n] where autodiff does not jump, or None
    looked_at: np.ndarray  # [m] entries differenced one by one
    signs: np.ndarray  # [d, n] directions over the whole leaf, none if it is small
    found: Slopes  # [m + d] of the function along those entries and directions

    @property
    def num_parts(self) -> int:
        """Derivatives to a number: 2 if it is complex."""
        return self.claim.size // max(math.prod(self.leaf.shape), 1)

    def along(self, gradient: np.ndarray) -> np.ndarray:
        """Slopes [m + d] that a gradient stands for."""
        return np.append(gradient[self.looked_at], self.signs @ gradient)


def probe_leaf(function: Function, path: str, numbers: Any) -> Probe:
    """Moves one leaf of the params."""
    point = function.points[path]

    def line(vector: np.ndarray, size: float) -> Line:
        return function.line({path: vector.reshape(point.shape)}, size)

    def moved(vector: np.ndarray, t: float) -> Floats:
        move = t * vector.reshape(point.shape)
        return function.points | {path: point + move}

    return Probe(line, moved, natural_sizes(point).ravel(), numbers)


def natural_sizes(point: np.ndarray) -> np.ndarray:
    """The length of a step that is natural to each entry."""
    return np.asarray(np.maximum(np.abs(point), rms(point) or 1.0))


def measure_noise(function: Function, rng: np.random.Generator) -> Function:
    """The function with its noise, measured along a random direction."""
    moves = {
        path: rng.choice([-1.0, 1.0], p.shape) * np.where(p, np.abs(p), rms(p) or 1.0)
        for path, p in function.points.items()
    }
    return function._replace(noise=float64_noise(function.line(moves)))


def gather(
    probe: Probe,
    leaf: Leaf,
    claims: list[Any],
    autodiffs: list[Any],
    derive: Callable[[Floats], Any],
    rounding: Rounding,
    rng: np.random.Generator,
) -> Evidence:
    """The evidence on a leaf, from derivatives here and one last bit away."""
    claim, roundoff = _spread(claims)
    autodiff, autodiff_roundoff, is_smooth = None, None, None
    if autodiffs and np.all(np.isfinite(autodiffs[0])):
        autodiff, autodiff_roundoff = _spread(autodiffs)
        is_smooth = _where_smooth(autodiff, probe, derive, rng)
    parts = claim.size // max(math.prod(leaf.shape), 1)
    looked_at = _where_to_look(claim, roundoff, autodiff, parts, rng)
    num_directions = _NUM_DIRECTIONS if claim.size > _SMALL else 0
    signs = rng.choice([-1.0, 1.0], (max(num_directions, 1), claim.size))
    if is_smooth is not None:  # at kinks, slopes along directions do not add up
        signs = signs * is_smooth
    size = rms(probe.sizes)
    along_axes = _with_own_noise(_axis(probe, k) for k in looked_at)
    along_signs = _with_own_noise(probe.line(vector, size) for vector in signs)
    blur = rounding.tolerance * _norm(claim) + _norm(roundoff)
    slope = taylor_order(along_signs[0], float(signs[0] @ claim), blur)
    e = Evidence(
        leaf=replace(leaf, slope=slope),
        numbers=probe.numbers,
        rounding=rounding,
        claim=claim,
        roundoff=roundoff,
        autodiff=autodiff,
        autodiff_roundoff=autodiff_roundoff,
        is_smooth=is_smooth,
        looked_at=looked_at,
        signs=signs[:num_directions],
        found=slopes_along(
            itertools.chain(along_axes, along_signs[:num_directions]), rounding.rtol
        ),
    )
    # Amid coarse rounding, halving leads astray.
    is_coarse = along_signs[0].is_coarse
    return e if is_coarse else _with_entry_behind(e, probe, rounding.rtol)


def _where_smooth(
    autodiff: np.ndarray,
    probe: Probe,
    derive: Callable[[Floats], Any],
    rng: np.random.Generator,
) -> Any:
    """Entries whose derivative is the same a little to either side.

    None where hardly any is, since that is the noise of a coarse function.
    """
    vector = rng.choice([-1.0, 1.0], autodiff.size) * probe.sizes
    change = np.zeros(autodiff.size)
    for t in (1e-6, -1e-6):
        beside = np.asarray(derive(probe.moved(vector, t))).ravel()
        change = np.fmax(change, np.abs(beside - autodiff))
    is_smooth = change <= 1e-4 * largest(autodiff)
    return is_smooth if np.sum(is_smooth) >= 0.1 * is_smooth.size else None


def _with_own_noise(lines: Iterable[Line]) -> list[Line]:
    """The same lines; of a function that rounds coarsely, with the noise along each.

    It is at least the typical one: what a sum is rounded to is the same for all.
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


def _axis(probe: Probe, k: Any) -> Line:
    return probe.line(np.arange(probe.sizes.size) == k, probe.sizes[k])


def _with_entry_behind(e: Evidence, probe: Probe, rtol: float) -> Evidence:
    """Where directions see what no entry looked at shows, the entry that they see.

    It is found by halving: the half whose slope deviates more from the claim's.
    """
    m, parts = e.looked_at.size, e.num_parts
    gap = e.along(e.claim) - e.found.slope
    allowed = 2 * e.found.resolution + np.abs(e.found.jump)
    tolerance = e.rounding.tolerance
    allowed[:m] += tolerance * largest(e.claim) + largest(e.roundoff)
    allowed[m:] += tolerance * _norm(e.claim) + _norm(e.roundoff)
    stands_out = np.abs(gap) > allowed
    if np.any(stands_out[:m]) or not np.any(stands_out[m:]):
        return e
    worst = m + int(np.argmax(np.abs(gap[m:])))
    vector, size, total = e.signs[worst - m], rms(probe.sizes), gap[worst]
    entries = np.arange(vector.size)
    while entries.size > 1:
        left, right = np.array_split(entries, 2)
        part = np.zeros(vector.size)
        part[left] = vector[left]
        seen = slopes_along([probe.line(part, size)], rtol).slope[0]
        in_left = float(e.claim @ part - seen)
        is_left = abs(in_left) > abs(total - in_left)
        entries, total = (left, in_left) if is_left else (right, total - in_left)
    first = entries[0] // parts * parts
    added = first + np.arange(parts)
    here = slopes_along((_axis(probe, k) for k in added), rtol)
    found = Slopes(*map(np.append, here, e.found))
    return e._replace(looked_at=np.append(added, e.looked_at), found=found)


def _spread(near: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The first, flat in float64, and entry by entry what rounding may do to it.

    That is five standard deviations. The others have moved by 2 u where rounding to
    nearest, uniform within u, has a standard deviation of u / sqrt(3).
    """
    flat = [np.asarray(x).astype(np.float64).ravel() for x in near]
    changes = [np.nan_to_num(np.abs(x - flat[0]), posinf=0.0) for x in flat[1:]]
    scale = 5 / (2 * math.sqrt(3))
    return flat[0], scale * np.sqrt(np.mean(np.square(changes), axis=0))


def _where_to_look(
    claim: np.ndarray,
    roundoff: np.ndarray,
    autodiff: Any,
    parts: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Entries largest in claim, autodiff, their difference, roundoff; and samples.

    One sample is of all entries, one of those where claim and autodiff differ, evenly
    from the least to the most. Of a complex number, that is of two parts, both.
    """
    if claim.size <= _SMALL:
        return np.arange(claim.size)
    measures = [claim, roundoff]
    if autodiff is not None:
        measures += [autodiff, claim - autodiff]
    sizes = [np.nan_to_num(np.abs(x)) for x in measures]
    tops = [np.argpartition(-x, _NUM_TOP)[:_NUM_TOP] for x in sizes]
    sample = rng.choice(claim.size, _NUM_SAMPLED, replace=False)
    if autodiff is not None:
        tops.append(_evenly(sizes[-1], sizes[-1] > 1e-5 * largest(autodiff)))
    first = np.unique(np.concatenate([*tops, sample]) // parts) * parts
    return np.add.outer(first, np.arange(parts)).ravel()


def _norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(x))


def _evenly(sizes: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Some of the entries that a mask selects, evenly from the least to the largest."""
    entries = np.flatnonzero(where)
    order = entries[np.argsort(sizes[entries])]
    return order[
        np.linspace(0, order.size - 1, min(order.size, _NUM_SPREAD)).astype(int)
    ]


def largest(x: np.ndarray) -> float:
    """max |x|, 0 if there is none."""
    return float(np.max(np.abs(x), initial=0.0))


def rms(x: np.ndarray) -> float:
    """Root mean square, 0 if there is none."""
    return math.sqrt(np.mean(x**2)) if x.size else 0.0
