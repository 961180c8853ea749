"""The catalogues of the penalties, and what several penalties share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxae import _checks
from jaxae.autoencoder import Autoencoder, UntiedParams
from jaxae.terms import Penalty

COEFFICIENTS = _checks.AT_LEAST_0._replace(
    reason="below it the objective has no minimum"
)

# By name: penalties, and those of the sparse family, of which some are functions of
# numbers, such as aux_k in "aux_k(512)".
CATALOGUE: dict[str, Penalty] = {}
SPARSE: dict[str, Penalty | Callable[..., Penalty]] = {}


def get(name: str) -> Penalty:
    """The penalty of that name, such as "l1" or "aux_k(512)".

    Raises:
      ValueError: for an unknown name, or a number out of range; the message lists the
        known ones.
    """
    return _checks.get_part("penalty", {**CATALOGUE, **SPARSE}, name)


def find(name: str) -> Penalty | None:
    """The penalty of that name; None for an unknown one.

    Raises:
      ValueError: for a number out of range.
    """
    return _checks.find_part({**CATALOGUE, **SPARSE}, name)


# ---- functions of the decoder --------------------------------------------------------


def row_norms(W: Float[Array, "H D"]) -> Float[Array, "H"]:
    """||W_j||, whose gradient by autodiff is 0 for a row of zeros, such as padding."""
    squares = jnp.sum(W**2, axis=1)
    is_zero = squares == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squares)))


def row_norms_vjp(W, norms, d_norms) -> Float[Array, "H D"]:
    """dW_j = d_norms_j W_j / ||W_j||, 0 for a row of zeros."""
    return (d_norms / jnp.where(norms == 0, 1, norms))[:, None] * W


def decoder_pullback(ae: Autoencoder, params, d_W_dec):
    """The gradient by the params of a function of W_dec alone."""
    untied: UntiedParams = ae.parametrization.expand(params)
    zeros = jax.tree.map(jnp.zeros_like, untied)
    return ae.parametrization.pullback(params, zeros._replace(W_dec=d_W_dec))
