"""The shift of a gated model, which other libraries store in b_mag.

b_mag = shift + exp(r_mag) b_gate is rounded, and then shift is not what a reader of
b_mag finds. So a file repeats the shift in an entry that its library does not read.
"""

import contextlib
from typing import Any

import jax.numpy as jnp
import numpy as np

SHIFT = "jaxae_shift"  # the entry


def b_mag(shift: Any, r_mag: Any, b_gate: Any) -> np.ndarray:
    """shift + exp(r_mag) b_gate in the dtype of shift, rounded once."""
    exact = np.asarray(shift, np.float64) + _gate_part(r_mag, b_gate)
    return exact.astype(shift.dtype)


def shift(b_mag: np.ndarray, r_mag: Any, b_gate: Any, repeated: Any) -> np.ndarray:
    """b_mag - exp(r_mag) b_gate in float64, or the repeated one that rounds to b_mag.

    Args:
      b_mag, r_mag, b_gate: `[H]`, of the file.
      repeated: the value of the entry; None, or anything else, in a file without one.
    """
    gate_part = _gate_part(r_mag, b_gate)
    shift = b_mag.astype(np.float64) - gate_part
    with contextlib.suppress(TypeError, ValueError):  # of another program
        repeated = np.asarray(repeated, np.float64)
        if repeated.shape == shift.shape:
            info = jnp.finfo(b_mag.dtype)
            error = np.abs(repeated - shift)
            is_ours = error <= float(info.eps) * np.abs(b_mag) + float(info.tiny)
            return np.where(is_ours, repeated, shift)
    return shift


def _gate_part(r_mag: Any, b_gate: Any) -> np.ndarray:
    return np.exp(np.asarray(r_mag, np.float64)) * np.asarray(b_gate, np.float64)
