"""Sweeps: one compiled, sharded program whose lanes are independent experiments."""

from jaxae.sweeps.plans import GroupPlan, Halving, Plan
from jaxae.sweeps.results import Progress, Sweep
from jaxae.sweeps.spaces import log_uniform, uniform
from jaxae.sweeps.sweeper import PreparedSweep, plan, prepare, sweep

__all__ = [
    "GroupPlan",
    "Halving",
    "Plan",
    "PreparedSweep",
    "Progress",
    "Sweep",
    "log_uniform",
    "plan",
    "prepare",
    "sweep",
    "uniform",
]
