"""Sweeps: one compiled, sharded program whose lanes are independent experiments."""

from jaxae.sweeps.halving import Halving
from jaxae.sweeps.host import SweepTask, plan, prepare, sweep
from jaxae.sweeps.plans import Plan
from jaxae.sweeps.results import Progress, Sweep
from jaxae.sweeps.spaces import log_uniform, uniform

__all__ = [
    "Halving",
    "Plan",
    "Progress",
    "Sweep",
    "SweepTask",
    "log_uniform",
    "plan",
    "prepare",
    "sweep",
    "uniform",
]
