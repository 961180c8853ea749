"""All that is measured of the gradient in one leaf."""

import itertools
import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from jaxae.gradcheck.differences import (
    Line,
    Slopes,
    rounding_noise,
    slopes_along,
    taylor_order,
)
from jaxae.gradcheck.functions import Floats, Function
from jaxae.gradcheck.report import Leaf
from jaxae.gradcheck.rounding import nearby

_SMALL = 64  # up to this size every entry of a leaf is differenced
_NUM_TOP = 4  # beyond: this many entries from each place of interest,
_NUM_SAMPLED = 6  # this many at random,
_NUM_DIRECTIONS = 6  # and this many random sign vectors over the whole leaf


class Evidence(NamedTuple):
    """All that is known of one leaf of n entries, flattened."""

    leaf: Leaf  # still undecided
    tolerance: float  # 8 u + sqrt(N) u32
    claim: np.ndarray  # [n]
    roundoff: np.ndarray  # [n] what rounding may do to the claim
    autodiff: Any  # [n] in float64, or None
    autodiff_roundoff: Any
    looked_at: np.ndarray  # [m] entries differenced one by one
    signs: np.ndarray  # [d, n] directions over the whole leaf, none if it is small
    found: Slopes  # [m + d] of the function along those entries and directions

    def along(self, gradient: np.ndarray) -> np.ndarray:
        """Slopes [m + d] that a gradient stands for."""
        return np.append(gradient[self.looked_at], self.signs @ gradient)


def measure_noise(function: Function, rng: np.random.Generator) -> Function:
    """The function with its noise, measured along a random direction."""
    moves = {
        path: rng.choice([-1.0, 1.0], p.shape) * np.where(p, np.abs(p), rms(p) or 1.0)
        for path, p in function.points.items()
    }
    return function._replace(noise=rounding_noise(function.line(moves)))


def differentiate_nearby(
    function: Function, rng: np.random.Generator
) -> tuple[list[Floats], tuple[str, ...]]:
    """Autodiff in float64 here and one last bit away, or a note why there is none."""
    try:
        return nearby(function.gradient(), function.points, rng, count=2), ()
    except Exception as error:  # a rule may fail in its own way; differences decide
        reason = str(error).partition("\n")[0]
        return [], (f"no float64 autodiff to compare with: {reason:.120}",)


def gather(
    function: Function,
    path: str,
    leaf: Leaf,
    claims: list[Floats],
    autodiffs: list[Floats],
    tolerance: float,
    rng: np.random.Generator,
) -> Evidence:
    """The evidence on a leaf, from gradients here and one last bit away."""
    point = function.points[path]
    claim, roundoff = _spread([grads[path] for grads in claims])
    autodiff, autodiff_roundoff = None, None
    if autodiffs and np.all(np.isfinite(autodiffs[0][path])):
        autodiff, autodiff_roundoff = _spread([grads[path] for grads in autodiffs])
    looked_at = _where_to_look(claim, roundoff, autodiff, rng)
    num_directions = _NUM_DIRECTIONS if point.size > _SMALL else 0
    signs = rng.choice([-1.0, 1.0], (max(num_directions, 1), point.size))
    size = rms(point) or 1.0  # the length natural to a step
    sizes = np.maximum(np.abs(point.ravel()), size)

    def line(vector: np.ndarray, size: float) -> Line:
        return function.line({path: vector.reshape(point.shape)}, size)

    along_axes = (line(np.arange(point.size) == k, sizes[k]) for k in looked_at)
    along_signs = [line(vector, size) for vector in signs]
    lines = itertools.chain(along_axes, along_signs[:num_directions])
    blur = tolerance * np.linalg.norm(claim) + np.linalg.norm(roundoff)
    slope = taylor_order(along_signs[0], float(signs[0] @ claim), float(blur))
    return Evidence(
        leaf=replace(leaf, slope=slope),
        tolerance=tolerance,
        claim=claim,
        roundoff=roundoff,
        autodiff=autodiff,
        autodiff_roundoff=autodiff_roundoff,
        looked_at=looked_at,
        signs=signs[:num_directions],
        found=slopes_along(lines, rtol=max(tolerance / 2, 1e-10)),
    )


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
    claim: np.ndarray, roundoff: np.ndarray, autodiff: Any, rng: np.random.Generator
) -> np.ndarray:
    """Entries largest in claim, autodiff, their difference, roundoff; and a sample."""
    if claim.size <= _SMALL:
        return np.arange(claim.size)
    measures = [claim, roundoff]
    if autodiff is not None:
        measures += [autodiff, claim - autodiff]
    sizes = [np.nan_to_num(np.abs(x)) for x in measures]
    tops = [np.argpartition(-x, _NUM_TOP)[:_NUM_TOP] for x in sizes]
    sample = rng.choice(claim.size, _NUM_SAMPLED, replace=False)
    return np.unique(np.concatenate([*tops, sample]))


def largest(x: np.ndarray) -> float:
    """max |x|, 0 if there is none."""
    return float(np.max(np.abs(x), initial=0.0))


def rms(x: np.ndarray) -> float:
    """Root mean square, 0 if there is none."""
    return math.sqrt(np.mean(x**2)) if x.size else 0.0
