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
* `roundoff`: what cancellation costs is in no constant, so it is measured: twice the
  largest change of the claim when every parameter moves at random by its last bit. A
  correct claim owes its error to rounding of that size; a bug is the same on both
  sides of the last bit, so it does not widen its own tolerance.
* `differences`: what the difference quotients resolve, from the disagreement of two
  extrapolations and the measured noise of the function.

The modules, each building on those before: `report`, what is returned; `rounding` and
`params`, what is given; `differences`, the slope along a line; `functions`, the
function in float64; `evidence`, all that is measured of a leaf; `verdicts`, what
follows for its gradient and the claim; `checking`, the whole.
"""

from jaxae.gradcheck.checking import check
from jaxae.gradcheck.report import Leaf, Report, Worst

__all__ = ["Leaf", "Report", "Worst", "check"]
