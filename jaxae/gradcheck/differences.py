"""Slopes along a line t -> f(x + t v) by finite differences with an error estimate."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

_EPS = float(np.finfo(np.float64).eps)
_MAX_STEPS = 12  # step sizes tried, each a factor 8 from the one before
# Steps are multiples of a line's unit. Over a step far longer than the unit, a bounded
# function looks flat, and an unbounded one looks straight.
_FIRST_STEP = 0.01
_UNIT_STEP = 1.0
_MAX_STEP = 1e6  # used only where noise hides the function at shorter steps
_MIN_CHANGE = 10.0  # change of a value, in units of its noise, that counts as visible
_MAX_LONG_STEP_ERROR = 0.1  # of a slope from steps beyond the unit, to the largest


class Line(NamedTuple):
    """A function of one real number, near 0."""

    value: Callable[[float], float]
    f0: float  # value(0)
    noise: float  # standard deviation of the rounding error in a value
    unit: float  # the natural length of a step
    is_coarse: bool = False  # rounds to less than float64


class Slopes(NamedTuple):
    """One slope, or an array of slopes, by finite differences."""

    slope: Any  # the mean of the two one-sided slopes
    jump: Any  # right minus left slope, 0 unless it exceeds its own error
    resolution: Any  # bound on the error of the slope


def slopes_along(lines: Iterable[Line], rtol: float) -> Slopes:
    """Slopes at 0 of all lines, each to within rtol of the largest so far.

    The best step of a line is the first step of the next. A line whose values are
    noisier than its stated noise is differentiated again with the measured noise. If
    any line needed steps beyond the unit, all unresolved lines are differentiated again
    from the unit step on, now that the largest slope is known.
    """
    lines, slopes, steps, step, largest = list(lines), [], [], _FIRST_STEP, 0.0
    for i, line in enumerate(lines):
        first = min(step, _UNIT_STEP)
        estimate, step, is_clear = _differentiate(line, first, rtol, largest)
        if not is_clear and (noise := float64_noise(line)) > line.noise:
            lines[i] = line = line._replace(noise=noise)
            estimate, step, _ = _differentiate(line, _FIRST_STEP, rtol, largest)
        slopes.append(estimate)
        steps.append(step)
        largest = float(np.fmax(largest, abs(estimate.slope) - estimate.resolution))
    has_long_step = any(step > _UNIT_STEP for step in steps)
    for i, line in enumerate(lines):
        is_unresolved = slopes[i].resolution > rtol * largest
        if has_long_step and steps[i] <= _UNIT_STEP and is_unresolved:
            slopes[i], _, _ = _differentiate(line, _UNIT_STEP, rtol, largest)
    return Slopes(*np.array(slopes).reshape(-1, 3).T)


def _differentiate(
    line: Line, step: float, rtol: float, floor: float
) -> tuple[Slopes, float, bool]:
    """(slope at 0 to within rtol max(|slope|, floor), best step, whether it is clear).

    The step shrinks while truncation is the larger error and grows while rounding is
    the larger one. The search ends when their sum meets the goal or the larger error
    changes. A jump counts as truncation until the step is so small that single
    precision cannot distinguish it from a kink at 0. A slope is not clear if it misses
    the goal although its rounding error, by the line's stated noise, is small enough.

    If rounding is the larger error at the unit step too, other terms of the function
    hide this line's. The step then grows until the function changes visibly and
    truncation shows. A slope from such a long step counts only if it is resolved and
    has no jump, because the kink may lie beside 0 instead of at 0.
    """
    best, best_step, trend = Slopes(math.nan, 0.0, math.inf), step, None
    least_error, best_rounding = math.inf, 0.0

    def meets_goal(error: float, slope: float) -> bool:
        return bool(error <= rtol * max(abs(slope), floor))

    max_step = _UNIT_STEP if line.is_coarse else _MAX_STEP
    for _ in range(_MAX_STEPS):
        is_long = step > _UNIT_STEP
        if is_long and not _changes_visibly(line, step) and 8 * step <= max_step:
            step, trend = 8 * step, 8.0
            continue
        estimate, rounding = _extrapolate(line, step, meets_goal)
        slope, jump, resolution = estimate
        error = resolution + (abs(jump) if step > 1e-6 else 0.0)
        # If two steps contradict each other, the longer one has the larger truncation.
        gap = abs(slope - best.slope) - resolution - best.resolution
        is_better = step < best_step if gap > 0 else error < least_error
        is_resolved = resolution <= _MAX_LONG_STEP_ERROR * max(abs(slope), floor)
        if is_better and (not is_long or (is_resolved and not jump)):
            best, best_step = estimate, step
            least_error, best_rounding = error, rounding
        factor = 8.0 if error < 2 * rounding else 1 / 8
        is_last = trend not in (None, factor) or factor * step > max_step
        if meets_goal(least_error, best.slope) or is_last:
            break
        step, trend = step * factor, factor
    is_clear = meets_goal(least_error, best.slope) or least_error < 2 * best_rounding
    return best, best_step, bool(is_clear)


def _changes_visibly(line: Line, step: float) -> bool:
    """Whether the value changes by more than its noise, or is NaN, after a step."""
    changes = (abs(line.value(t * line.unit) - line.f0) for t in (step, -step))
    return not all(change <= _MIN_CHANGE * line.noise for change in changes)


def _extrapolate(
    line: Line, step: float, meets_goal: Callable[[float, float], bool]
) -> tuple[Slopes, float]:
    """Richardson's extrapolation from h and h/2, and h/4 if needed; its rounding error.

    D(h) = (f(h) - f(-h)) / 2h gives R(h) = (4 D(h/2) - D(h)) / 3. The difference of
    R(h) and D(h/2) bounds the truncation of R(h); if that is too large, the difference
    of R(h) and R(h/2) bounds that of R(h/2). 6 noise / h is three standard deviations
    of the rounding error in R(h).
    S(h) = (f(h) - 2 f(0) + f(-h)) / h gives the jump J = 2 S(h/2) - S(h).
    """
    h = step * line.unit
    (d1, s1, f1), (d2, s2, _) = _quotients(line, h), _quotients(line, h / 2)
    noise = max(line.noise, _EPS * f1)  # f may be large there, and 0 here
    coarse, first, rounding = (4 * d2 - d1) / 3, 2 * s2 - s1, 6 * noise / h
    resolution = abs(coarse - d2) + rounding
    if meets_goal(resolution + abs(first), coarse):
        return Slopes(coarse, 0.0, resolution), rounding
    d3, s3, _ = _quotients(line, h / 4)
    fine, last, rounding = (4 * d3 - d2) / 3, 2 * s3 - s2, 2 * rounding
    has_jump = abs(last) > 4 * (abs(last - first) + 2 * rounding)
    jump, resolution = last if has_jump else 0.0, abs(fine - coarse) + rounding
    return Slopes(fine, jump, resolution), rounding


def _quotients(line: Line, h: float) -> tuple[float, float, float]:
    """D(h), S(h) and max(|f(h)|, |f(-h)|)."""
    plus, minus = line.value(h), line.value(-h)
    central, second = (plus - minus) / (2 * h), (plus - 2 * line.f0 + minus) / h
    return central, second, max(abs(plus), abs(minus))


def float64_noise(line: Line) -> float:
    """Standard deviation of the rounding error in f, if f is computed in float64.

    Differences of order k over steps too short for f to change leave only the noise,
    times sqrt((2k)! / (k!)^2). Source: More and Wild, "Estimating computational noise",
    2011.
    """
    values = [line.value(k * 1e-7 * line.unit) for k in range(-6, 7)]
    floor = _EPS * abs(line.f0)
    noise = _median_difference(values, 4) / math.sqrt(70)
    return max(noise, floor) if math.isfinite(noise) else floor


def coarse_noise(line: Line) -> float:
    """Standard deviation of the rounding error in f, in whatever precision.

    As `float64_noise`, but over steps that bfloat16 does not round away. Two lengths
    are used, because over one of them f may happen to change by whole last bits. Noise
    is recognised by its differences of higher order, which are larger; those of a
    smooth function are smaller. The estimate is doubled, since it rests on few
    differences.
    """
    noise = [line.noise]
    for step in (2.5e-3, 1.6e-3):
        values = [line.value(k * step * line.unit) for k in range(-8, 9)]
        fifth, seventh = _median_difference(values, 5), _median_difference(values, 7)
        if fifth < seventh < math.inf:
            noise.append(2 * fifth / math.sqrt(252))
    return max(noise)


def _median_difference(values: list[float], order: int) -> float:
    """Standard deviation of normal differences, by the median: robust to jumps."""
    return float(np.median(np.abs(np.diff(values, order)))) / 0.6745


def taylor_order(line: Line, slope: float, uncertainty: float) -> float | None:
    """Order in h of |f(h) - f(0) - h slope|, from the smallest h that resolves it.

    A remainder is resolved above 10 (noise + h uncertainty), where `uncertainty` is
    that of the slope. None if fewer than two remainders are.
    """
    remainders: list[float] = []
    for h in line.unit * 0.25 * 0.25 ** np.arange(8):
        remainder = abs(line.value(h) - line.f0 - h * slope)
        if not remainder > 10 * (line.noise + h * uncertainty):
            break
        remainders.append(remainder)
    if len(remainders) < 2:
        return None
    return math.log(remainders[-2] / remainders[-1], 4)
