"""Sweeps: one compiled, sharded program whose lanes are independent experiments."""

from jaxae.sweeps.halving import Halving
from jaxae.sweeps.host import Progress, sweep
from jaxae.sweeps.plans import Plan
from jaxae.sweeps.results import Sweep
from jaxae.sweeps.spaces import log_uniform, uniform

__all__ = [
    "Halving",
    "Plan",
    "Progress",
    "Sweep",
    "log_uniform",
    "sweep",
    "uniform",
]
