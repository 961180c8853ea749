"""Judges a gradient against the function itself, one parameter leaf at a time.

Differences of the function in float64 decide, because they know nothing of derivative
rules. Automatic differentiation in float64 only says where to look, and speaks for
every entry of a leaf once differences have confirmed it there.

A leaf passes when `error <= resolution`. Both are relative to the largest true entry of
*that* leaf (along a random direction over a large leaf: to its Euclidean norm), never
to other leaves or to the value of the function:

    error      = max_i |claim_i - true_i| / max_i |true_i|
    resolution = 8 u + sqrt(N) u32 + roundoff + differences

* `8 u`, u the unit roundoff of the coarsest dtype among the params and the claim: k
  roundings in sequence cost about sqrt(k) u (Higham and Mary, "A new approach to
  probabilistic rounding error analysis", 2019), so this covers 64 of them.
* `sqrt(N) u32`, by the same rule: a sum of N terms, accumulated in float32 even where
  the terms are narrower (in u if that is less). N is the longest sum that the arrays
  allow: all axes but the shortest of the largest among params, args and constants.
  For 784x500 weights it is 1.7e-6.
* `roundoff`: what cancellation costs is in no constant, so it is measured. Every
  parameter, and every intermediate result that is rounded and depends on one, moves at
  random by its last bit, 2 u (Parker, "Monte Carlo arithmetic", 1997); a sum of N terms
  by sqrt(1 + N / 16) of them, since that many are added up in sequence where 16 run
  side by side. Rounding to nearest has a standard deviation of u / sqrt(3), so five of
  them change the claim by 5 / (2 sqrt(3)) times the root mean square change seen; this
  is that of the entry where it is largest. A correct claim owes its error to rounding
  of that size, as where x_hat - x cancels; a bug is the same on both sides of the last
  bit, so it does not widen its own tolerance. In a claim that cannot be traced only the
  parameters move, by two last bits; of a loop or a branch, only what comes out of it
  does.
* `differences`: what the difference quotients resolve, from the disagreement of two
  extrapolations and the measured noise of the function. Where something in it rounds to
  less than float64 (the traced function says so), noise is measured along every line.

Two things only people can decide. At a kink, where autodiff is not the same on both
sides, any number between the one-sided slopes is right; where a claim departs from
autodiff at some kinks, it may at others that were not looked at. A leaf declared a
surrogate is judged by autodiff.

The modules, each building on those before: `report`, what is returned; `rounding` and
`params`, what is given; `programs`, traced programs; `stochastic`, the claim as
rounding may change it; `promotion`, a traced program in float64; `differences`, the
slope along a line; `functions`, the function in float64; `evidence`, all that is
measured of a leaf; `hints` and `verdicts`, what follows for its gradient and the claim;
`judging`, from a claim to its report; `checking`, gradients; `rules`, transposes and
tangents; `precision`, which only measures.
"""

from jaxae.gradcheck.checking import check
from jaxae.gradcheck.precision import Deviation, Precision, precision
from jaxae.gradcheck.report import Leaf, Report, Worst
from jaxae.gradcheck.rules import check_jvp, check_vjp

__all__ = [
    "Deviation",
    "Leaf",
    "Precision",
    "Report",
    "Worst",
    "check",
    "check_jvp",
    "check_vjp",
    "precision",
]
