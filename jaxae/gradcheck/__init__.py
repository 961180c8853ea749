"""Check a gradient against the function itself, one parameter leaf at a time.

Finite differences of the function in float64 decide, because they do not depend on
derivative rules. Automatic differentiation in float64 only selects the entries to
measure. Once differences confirm it in a leaf, it gives the true value of every entry.

A leaf passes when `error <= resolution`. Both are relative to the largest true entry of
*that* leaf (along a random direction over a large leaf: to its Euclidean norm), never
to other leaves or to the value of the function:

    error      = max_i |claim_i - true_i| / max_i |true_i|
    resolution = 8 u + sqrt(N) u32 + roundoff + differences

* `8 u`: u is the unit roundoff of the coarsest dtype among the params and the claim. A
  sequence of k roundings has an error of about sqrt(k) u (Higham and Mary, "A new
  approach to probabilistic rounding error analysis", 2019), so this covers 64 of them.
* `sqrt(N) u32`: by the same rule, the error of a sum of N terms, accumulated in float32
  even if the terms are narrower (in u if that is less). N is the longest sum that the
  arrays allow: the product of all axes but the shortest, of the largest array among
  params, args and constants. For 784x500 weights this term is 1.7e-6.
* `roundoff`: the error from cancellation follows from no constant, so it is measured.
  Every parameter, and every rounded intermediate result that depends on one, is
  perturbed at random by its last bit, 2 u (Parker, "Monte Carlo arithmetic", 1997). A
  sum of N terms is perturbed by sqrt(1 + N / 16) last bits, since 16 SIMD lanes add
  N / 16 terms each in sequence. Rounding to nearest has a standard deviation of
  u / sqrt(3), so five standard deviations change the claim by 5 / (2 sqrt(3)) times its
  root mean square change under perturbation. The entry with the largest change counts.
  The error of a correct claim is of that size, for example where x_hat - x cancels. A
  bug does not change under perturbation, so it does not widen its own tolerance. Of a
  claim that cannot be traced only the parameters are perturbed, by two last bits; of a
  loop or a branch, only its outputs.
* `differences`: the error of the difference quotients, from the disagreement of two
  extrapolations and the measured noise of the function. If an operation of the traced
  function rounds to less than float64, the noise is measured along every line.

Two cases need a human decision. At a kink, where autodiff differs between the two
sides, any number between the one-sided slopes is right; a claim that differs from
autodiff at some measured kinks may do so at the others. A leaf that is declared a
surrogate is compared with autodiff instead of the function.

`docs/architecture.md` lists the modules, each of which builds on those before.
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
