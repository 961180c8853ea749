"""Shared strictness: types and shapes are checked, silent broadcasts are errors."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
from jaxtyping import install_import_hook

# Every shape annotation of the library becomes a runtime check in the tests.
install_import_hook("jaxae", "beartype.beartype").install()

jax.config.update("jax_numpy_rank_promotion", "raise")
