"""Observations: distributions p(x | mu) over the inputs, which determine the loss.

`bernoulli`, `gaussian` and `gaussian_with` are written by hand; `from_log_prob` and
`from_distribution` follow the lecture's recipe for other types of input, with
derivatives from autodiff.
"""

from jaxae.observations._base import CATALOGUE, Observation, find, get
from jaxae.observations.by_hand import bernoulli, gaussian, gaussian_with
from jaxae.observations.recipes import from_distribution, from_log_prob

__all__ = [
    "CATALOGUE",
    "Observation",
    "bernoulli",
    "find",
    "from_distribution",
    "from_log_prob",
    "gaussian",
    "gaussian_with",
    "get",
]
