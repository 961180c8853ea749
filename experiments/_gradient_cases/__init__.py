"""Gradients that are wrong for a known reason, and right ones that look wrong."""

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
