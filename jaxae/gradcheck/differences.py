"""Slopes along a line t -> f(x + t v) by differences that know their own error."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

_MAX_STEPS = 12  # step sizes tried, each a factor 8 from the one before


class Line(NamedTuple):
    """A function of one real number, near 0."""

    value: Callable[[float], float]
    f0: float  # value(0)
    noise: float  # standard deviation of the rounding in a value
    size: float  # the natural unit of steps: they are given as multiples of it


class Slopes(NamedTuple):
    """What differences say of a slope, or of several."""

    slope: Any  # the mean of the two one-sided slopes
    jump: Any  # right minus left, 0 unless it stands out
    resolution: Any


def slopes_along(lines: Iterable[Line], rtol: float) -> Slopes:
    """Slopes at 0 of every line, each to within rtol of the largest so far.

    The best step of one is the next one's first.
    """
    found, step, largest = [], 0.1, 0.0
    for line in lines:
        slopes, step = _differentiate(line, step, rtol, largest)
        found.append(slopes)
        largest = float(np.fmax(largest, abs(slopes.slope)))
    return Slopes(*np.array(found).reshape(-1, 3).T)


def _differentiate(
    line: Line, step: float, rtol: float, floor: float
) -> tuple[Slopes, float]:
    """Slope at 0 to within rtol max(|slope|, floor), and the step that served best.

    The step shrinks while truncation is the larger error and grows while rounding is,
    until together they meet the goal or change places. A jump counts as truncation
    until the step is so small that single precision cannot tell it from a kink at 0.
    """
    best, best_step, least = Slopes(math.nan, 0.0, math.inf), step, math.inf
    trend = None
    for _ in range(_MAX_STEPS):
        found, rounding = _extrapolate(line, step)
        error = found.resolution + (abs(found.jump) if step > 1e-6 else 0.0)
        if error < least:
            best, best_step, least = found, step, error
        factor = 8.0 if error < 2 * rounding else 1 / 8
        is_enough = least <= rtol * max(abs(best.slope), floor)
        if is_enough or trend not in (None, factor) or factor * step > 100:
            break
        step, trend = step * factor, factor
    return best, best_step


def _extrapolate(line: Line, step: float) -> tuple[Slopes, float]:
    """Richardson's extrapolation from h, h/2, h/4, and its rounding error.

    D(h) = (f(h) - f(-h)) / 2h gives R = (4 D(h/2) - D(h)) / 3 twice; their disagreement
    bounds the truncation of the finer. 12 noise / h is three standard deviations of its
    rounding. S(h) = (f(h) - 2 f(0) + f(-h)) / h gives the jump J = 2 S(h/2) - S(h).
    """
    h = step * line.size * np.array([1.0, 0.5, 0.25])
    ahead, behind = (np.array([line.value(t) for t in side * h]) for side in (1, -1))
    central, second = (ahead - behind) / (2 * h), (ahead - 2 * line.f0 + behind) / h
    coarse, fine = (4 * central[1:] - central[:-1]) / 3
    first, last = 2 * second[1:] - second[:-1]
    truncation, rounding = abs(fine - coarse), 12 * line.noise / h[0]
    stands_out = abs(last) > 4 * (abs(last - first) + 2 * rounding)
    return Slopes(fine, last if stands_out else 0.0, truncation + rounding), rounding


def rounding_noise(line: Line) -> float:
    """Standard deviation of the rounding in f, from its fourth differences.

    More and Wild, "Estimating computational noise", 2011: differences of order k along
    steps too small for the function leave only noise, with variance (2k)! / (k!)^2. The
    steps grow while most values are equal: a function may round to float32 inside.
    """
    for step in (1e-7, 1e-6, 1e-5, 1e-4):
        values = [line.value(k * step * line.size) for k in range(9)]
        if len(set(values)) > 4:
            break
    deviation = math.sqrt(np.mean(np.diff(values, 4) ** 2) / 70)
    floor = float(np.finfo(np.float64).eps) * abs(line.f0)
    return max(deviation, floor) if math.isfinite(deviation) else floor


def taylor_order(line: Line, slope: float, blur: float) -> float | None:
    """Order in h of |f(h) - f(0) - h slope|, from the smallest h where it stands out.

    That is above 10 (noise + h blur): the slope is known to within `blur`.
    """
    h = line.size * 0.25 * 0.25 ** np.arange(8)
    remainder = np.abs([line.value(t) - line.f0 - t * slope for t in h])
    stands_out = remainder > 10 * (line.noise + h * blur)
    count = int(np.argmin(np.append(stands_out, False)))
    if count < 2:
        return None
    return math.log(remainder[count - 2] / remainder[count - 1], 4)
