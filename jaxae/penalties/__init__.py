"""The penalties: terms that are added to the reconstruction loss.

A penalty is a function of the batch, times the hyperparameter of its name and no other
factor. `Penalty` and `Cotangents` are defined in `jaxae.terms`.
"""

from jaxae.penalties._base import CATALOGUE, COEFFICIENTS, SPARSE, find, get
from jaxae.penalties._classical import contractive, kl_sparsity, l1, weight_decay
from jaxae.penalties._dead_latents import aux_k, pre_act
from jaxae.penalties._gated import gated_aux, gated_l1
from jaxae.penalties._sparsity import l0, l1_decoder_norm, tanh_sparsity
from jaxae.terms import Cotangents, Pass, Penalty

__all__ = [
    "CATALOGUE",
    "COEFFICIENTS",
    "SPARSE",
    "Cotangents",
    "Pass",
    "Penalty",
    "aux_k",
    "contractive",
    "find",
    "gated_aux",
    "gated_l1",
    "get",
    "kl_sparsity",
    "l0",
    "l1",
    "l1_decoder_norm",
    "pre_act",
    "tanh_sparsity",
    "weight_decay",
]
