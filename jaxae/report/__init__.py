"""One HTML page of a run or a sweep, in one file that needs no network."""

from jaxae.report.runs import write_run
from jaxae.report.sweeps import write_sweep

__all__ = ["write_run", "write_sweep"]
