"""Hints: the single cause that explains the deviation of a wrong gradient."""

import math

import numpy as np

from jaxae.gradcheck.evidence import max_abs


def explain(
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
    suffix = "" if is_complete else " looked at"
    return f"in {np.sum(deviates)} of {claim.size} entries{suffix}"


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
    for size in sorted(batch_sizes):
        for word, expected in (("divided", 1 / size), ("multiplied", float(size))):
            if size > 1 and abs(factor - expected) <= tolerance * expected:
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
