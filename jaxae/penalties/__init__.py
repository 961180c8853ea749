"""The penalties: terms that are added to the reconstruction loss.

A penalty is a function of the batch, times the hyperparameter of its name and no other
factor. `Penalty` and `Cotangents` are defined in `jaxae.terms`.
"""

from jaxae.penalties._base import CATALOGUE, COEFFICIENTS, SPARSE, find, get
from jaxae.penalties._classical import contractive, kl_sparsity, l1, weight_decay
from jaxae.terms import Cotangents, Pass, Penalty

__all__ = [
    "CATALOGUE",
    "COEFFICIENTS",
    "SPARSE",
    "Cotangents",
    "Pass",
    "Penalty",
    "contractive",
    "find",
    "get",
    "kl_sparsity",
    "l1",
    "weight_decay",
]
