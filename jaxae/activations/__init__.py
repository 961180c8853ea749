"""Activations, the lecture's g and o, with their derivatives by hand.

Every function of an elementwise one acts on the last axis and works unchanged on one
example `[H]` or a batch `[B, H]`. None of them has a custom rule, so that `jax.grad` of
a model is an independent check of the derivatives written here.
"""

from jaxae.activations._base import CATALOGUE, SPARSE, Activation, find, get
from jaxae.activations._elementwise import (
    elementwise,
    identity,
    relu,
    sigmoid,
    softplus,
    softplus_of,
    tanh,
)
from jaxae.activations._gated import Gated, gated
from jaxae.activations._jumprelu import Threshold, jumprelu
from jaxae.activations._matching_pursuit import matching_pursuit
from jaxae.activations._topk import (
    BatchTopKState,
    abs_topk,
    abs_topk_codes,
    batch_topk,
    topk,
    topk_codes,
)

__all__ = [
    "CATALOGUE",
    "SPARSE",
    "Activation",
    "BatchTopKState",
    "Gated",
    "Threshold",
    "abs_topk",
    "abs_topk_codes",
    "batch_topk",
    "elementwise",
    "find",
    "gated",
    "get",
    "identity",
    "jumprelu",
    "matching_pursuit",
    "relu",
    "sigmoid",
    "softplus",
    "softplus_of",
    "tanh",
    "topk",
    "topk_codes",
]
