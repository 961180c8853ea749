"""Check a gradient against the function itself, one parameter leaf at a time.

Finite differences of the function in float64 decide, because they do not depend on
derivative rules. Automatic differentiation in float64 only selects the entries to
measure. Once differences confirm it in a leaf, it gives the true value of every entry.

A leaf passes when `error <= resolution`. Both are relative to the largest true entry of
*that* leaf (along a random direction over a large leaf: to its Euclidean norm), never
to other leaves or to the value of the function:

    error      = max_i |claim_i - true_i| / max_i |true_i|
    resolution = 8 u + sqrt(N) u32 + roundoff + differences

* `8 u`: 64 roundings in sequence, for u the unit roundoff of the coarsest dtype among
  the params and the claim.
* `sqrt(N) u32`: one sum of N terms in float32, the longest that the arrays allow.
* `roundoff`: the change of the claim when its rounding errors are perturbed at random.
* `differences`: the error of the difference quotients.

Two cases need a human decision. At a kink, any number between the one-sided slopes is
right. A leaf that is declared a surrogate is compared with autodiff instead of the
function. `docs/explanation/gradcheck.md` gives reasons and sources,
`docs/architecture.md` the modules.
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
