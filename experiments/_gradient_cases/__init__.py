"""Gradients that are wrong for a known cause, and right ones that are hard to check."""

from _gradient_cases import (
    backpropagation,
    kinks,
    numerics,
    objectives,
    parts,
    published,
)
from _gradient_cases.case import Case, Function, Size

CASES: dict[str, Case] = {
    **backpropagation.CASES,
    **objectives.CASES,
    **parts.CASES,
    **published.CASES,
    **kinks.CASES,
    **numerics.CASES,
}
__all__ = ["CASES", "Case", "Function", "Size"]
