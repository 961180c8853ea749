"""Dashboards of latents for other programs: SAEDashboard's files, and Neuronpedia's.

Both describe each latent by the tokens on which it is active.
"""

from jaxae.dashboards.latents import Source, Unembedding
from jaxae.dashboards.neuronpedia import write_neuronpedia
from jaxae.dashboards.saedashboard import write_saedashboard

__all__ = ["Source", "Unembedding", "write_neuronpedia", "write_saedashboard"]
