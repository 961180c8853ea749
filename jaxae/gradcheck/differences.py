"""Slopes along a line t -> f(x + t v) by differences that know their own error."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

_EPS = float(np.finfo(np.float64).eps)
_MAX_STEPS = 12  # step sizes tried, each a factor 8 from the one before
_FIRST_STEP = 0.01  # relative to what is natural; beyond its size, a function
_NATURAL_STEP = 1.0  # that is bounded looks flat, and one that is not looks straight
_LONGEST_STEP = 1e6  # where noise hides the function at shorter ones
_VISIBLE = 10.0  # times the noise
_RESOLVED = 0.1  # of the largest slope: what a step beyond the natural has to show


class Line(NamedTuple):
    """A function of one real number, near 0."""

    value: Callable[[float], float]
    f0: float  # value(0)
    noise: float  # standard deviation of the rounding in a value
    size: float  # the natural unit of steps: they are given as multiples of it
    is_coarse: bool = False  # rounds to less than float64


class Slopes(NamedTuple):
    """What differences say of a slope, or of several."""

    slope: Any  # the mean of the two one-sided slopes
    jump: Any  # right minus left, 0 unless it stands out
    resolution: Any


def slopes_along(lines: Iterable[Line], rtol: float) -> Slopes:
    """Slopes at 0 of every line, each to within rtol of the largest so far.

    The best step of one is the next one's first. A line that is less smooth than its
    noise promises is measured again; so is, where long steps show more, one that they
    did not resolve, now that the largest slope is known.
    """
    lines, found, steps, step, largest = list(lines), [], [], _FIRST_STEP, 0.0
    for i, line in enumerate(lines):
        first = min(step, _NATURAL_STEP)
        slopes, step, is_clear = _differentiate(line, first, rtol, largest)
        if not is_clear and (noise := float64_noise(line)) > line.noise:
            lines[i] = line = line._replace(noise=noise)
            slopes, step, _ = _differentiate(line, _FIRST_STEP, rtol, largest)
        found.append(slopes)
        steps.append(step)
        largest = float(np.fmax(largest, abs(slopes.slope) - slopes.resolution))
    is_any_far = any(step > _NATURAL_STEP for step in steps)
    for i, line in enumerate(lines):
        is_unresolved = found[i].resolution > rtol * largest
        if is_any_far and steps[i] <= _NATURAL_STEP and is_unresolved:
            found[i], _, _ = _differentiate(line, _NATURAL_STEP, rtol, largest)
    return Slopes(*np.array(found).reshape(-1, 3).T)


def _differentiate(
    line: Line, step: float, rtol: float, floor: float
) -> tuple[Slopes, float, bool]:
    """Slope at 0 to within rtol max(|slope|, floor); best step; whether it is clear.

    The step shrinks while truncation is the larger error and grows while rounding is,
    until together they meet the goal or change places. A jump counts as truncation
    until the step is so small that single precision cannot tell it from a kink at 0.
    What misses the goal though rounding, if the noise is right, allows it is not clear.

    Where rounding is the larger error at the natural step too, other terms of the
    function hide this one. Then the step grows on, until the function visibly moves and
    truncation shows. A slope so far away counts only if it stands out, a kink never:
    it may be beside 0.
    """
    best, best_step, trend = Slopes(math.nan, 0.0, math.inf), step, None
    least, allowed = math.inf, 0.0

    def is_enough(error: float, slope: float) -> bool:
        return bool(error <= rtol * max(abs(slope), floor))

    longest = _NATURAL_STEP if line.is_coarse else _LONGEST_STEP
    for _ in range(_MAX_STEPS):
        is_far = step > _NATURAL_STEP
        if is_far and not _is_visible(line, step) and 8 * step <= longest:
            step, trend = 8 * step, 8.0
            continue
        found, rounding = _extrapolate(line, step, is_enough)
        error = found.resolution + (abs(found.jump) if step > 1e-6 else 0.0)
        # Where two steps contradict each other, the longer one has left out too much.
        gap = abs(found.slope - best.slope) - found.resolution - best.resolution
        is_better = step < best_step if gap > 0 else error < least
        stands_out = found.resolution <= _RESOLVED * max(abs(found.slope), floor)
        if is_better and (not is_far or (stands_out and not found.jump)):
            best, best_step, least, allowed = found, step, error, rounding
        factor = 8.0 if error < 2 * rounding else 1 / 8
        is_last = trend not in (None, factor) or factor * step > longest
        if is_enough(least, best.slope) or is_last:
            break
        step, trend = step * factor, factor
    return best, best_step, is_enough(least, best.slope) or bool(least < 2 * allowed)


def _is_visible(line: Line, step: float) -> bool:
    """Whether the function moves by more than its noise, or ends, within the step."""
    moves = (abs(line.value(t * line.size) - line.f0) for t in (step, -step))
    return not all(move <= _VISIBLE * line.noise for move in moves)


def _extrapolate(
    line: Line, step: float, is_enough: Callable[[float, float], bool]
) -> tuple[Slopes, float]:
    """Richardson's extrapolation from h, h/2, and h/4 if need be; its rounding error.

    D(h) = (f(h) - f(-h)) / 2h gives R = (4 D(h/2) - D(h)) / 3, whose truncation is less
    than that of D(h/2), which R tells; or R twice, where their disagreement bounds that
    of the finer. 6 noise / h is three standard deviations of the rounding in R(h).
    S(h) = (f(h) - 2 f(0) + f(-h)) / h gives the jump J = 2 S(h/2) - S(h).
    """
    h = step * line.size
    (d1, s1, f1), (d2, s2, _) = _quotients(line, h), _quotients(line, h / 2)
    noise = max(line.noise, _EPS * f1)  # f may be large there, and 0 here
    coarse, first, rounding = (4 * d2 - d1) / 3, 2 * s2 - s1, 6 * noise / h
    resolution = abs(coarse - d2) + rounding
    if is_enough(resolution + abs(first), coarse):
        return Slopes(coarse, 0.0, resolution), rounding
    d3, s3, _ = _quotients(line, h / 4)
    fine, last, rounding = (4 * d3 - d2) / 3, 2 * s3 - s2, 2 * rounding
    stands_out = abs(last) > 4 * (abs(last - first) + 2 * rounding)
    jump, resolution = last if stands_out else 0.0, abs(fine - coarse) + rounding
    return Slopes(fine, jump, resolution), rounding


def _quotients(line: Line, h: float) -> tuple[float, float, float]:
    """D(h), S(h), and the largest of the values that they are made of."""
    ahead, behind = line.value(h), line.value(-h)
    central, second = (ahead - behind) / (2 * h), (ahead - 2 * line.f0 + behind) / h
    return central, second, max(abs(ahead), abs(behind))


def float64_noise(line: Line) -> float:
    """Standard deviation of the rounding in f if all of it is in float64.

    More and Wild, "Estimating computational noise", 2011: differences of order k along
    steps too small for the function leave only noise, with variance (2k)! / (k!)^2.
    """
    values = [line.value(k * 1e-7 * line.size) for k in range(-6, 7)]
    floor = _EPS * abs(line.f0)
    noise = _median_difference(values, 4) / math.sqrt(70)
    return max(noise, floor) if math.isfinite(noise) else floor


def coarse_noise(line: Line) -> float:
    """Standard deviation of whatever rounding there is in f, or the noise it has.

    The same along steps so long that bfloat16 does not round them away, of two lengths:
    along one of them f may happen to move by whole last bits. In a smooth function
    differences of a higher order are smaller; in noise they are larger. Doubled, since
    few differences tell it.
    """
    noise = [line.noise]
    for step in (2.5e-3, 1.6e-3):
        values = [line.value(k * step * line.size) for k in range(-8, 9)]
        fifth, seventh = _median_difference(values, 5), _median_difference(values, 7)
        if fifth < seventh < math.inf:
            noise.append(2 * fifth / math.sqrt(252))
    return max(noise)


def _median_difference(values: list[float], order: int) -> float:
    """Standard deviation of the differences if normal; a jump or two do not count."""
    return float(np.median(np.abs(np.diff(values, order)))) / 0.6745


def taylor_order(line: Line, slope: float, blur: float) -> float | None:
    """Order in h of |f(h) - f(0) - h slope|, from the smallest h where it stands out.

    That is above 10 (noise + h blur): the slope is known to within `blur`.
    """
    remainders: list[float] = []
    for h in line.size * 0.25 * 0.25 ** np.arange(8):
        remainder = abs(line.value(h) - line.f0 - h * slope)
        if not remainder > 10 * (line.noise + h * blur):
            break
        remainders.append(remainder)
    if len(remainders) < 2:
        return None
    return math.log(remainders[-2] / remainders[-1], 4)
