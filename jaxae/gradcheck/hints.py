"""The single cause that explains how a wrong gradient deviates, where one does."""

import math

import numpy as np

from jaxae.gradcheck.evidence import largest


def explain(
    claim: np.ndarray,
    true: np.ndarray,
    tolerance: float,
    shape: tuple[int, ...],
    batch_sizes: frozenset[int],
) -> str:
    """What turns `true` into `claim`, both flat, to within tolerance.

    They hold all entries of a leaf of that shape, or those that were looked at.
    """

    def explains(other: np.ndarray) -> bool:
        return largest(claim - other) <= tolerance * largest(other)

    if not np.any(claim):
        return "zero"
    if explains(-true):
        return "sign"
    if np.iscomplexobj(true) and explains(np.conj(true)):
        return "conjugated"
    factor = _factor(claim, true, tolerance)
    if abs(factor - 1) > tolerance and explains(factor * true):
        batch = _batch(factor, tolerance, batch_sizes)
        return f"off by a factor {_in_digits(factor)}{batch}"
    is_whole = claim.size == math.prod(shape)
    if is_whole and len(shape) == 2 and explains(true.reshape(shape).T.ravel()):
        return "transposed"
    deviates = np.abs(claim - true) > tolerance * largest(true)
    if is_whole and np.sum(deviates) > 1 and (place := _place(deviates, shape)):
        return place
    seen = "" if is_whole else " looked at"
    return f"in {np.sum(deviates)} of {claim.size} entries{seen}"


def _factor(claim: np.ndarray, true: np.ndarray, tolerance: float) -> float | complex:
    """The number by which true has to be multiplied to come nearest to the claim."""
    square = np.vdot(true, true).real
    factor = complex(np.vdot(true, claim)) / square if square else 0j
    floor = tolerance * abs(factor)
    real, imag = (x if abs(x) > floor else 0.0 for x in (factor.real, factor.imag))
    return complex(real, imag) if imag else real


def _in_digits(factor: float | complex) -> str:
    """Four digits, of the distance from 1 where it is small."""
    if isinstance(factor, float) and 0 < abs(factor - 1) < 1e-3:
        return f"1 {'-' if factor < 1 else '+'} {abs(factor - 1):.1e}"
    return f"{factor:#.4g}"


def _batch(
    factor: float | complex, tolerance: float, batch_sizes: frozenset[int]
) -> str:
    """Mean for sum, or sum for mean, over one of the first axes of the data."""
    for size in sorted(batch_sizes):
        for word, expected in (("divided", 1 / size), ("multiplied", float(size))):
            if size > 1 and abs(factor - expected) <= tolerance * expected:
                return f": {word} by the batch size {size}"
    return ""


def _place(deviates: np.ndarray, shape: tuple[int, ...]) -> str:
    """The one row or column in which all deviations lie, if they do."""
    if len(shape) != 2:
        return ""
    where = np.nonzero(deviates.reshape(shape))
    for name, indices, size in zip(("row", "column"), where, shape, strict=True):
        if size > 1 and np.all(indices == indices[0]):
            return f"one {name}: {indices[0]}"
    return ""
