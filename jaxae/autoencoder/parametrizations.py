"""How a model's own parameters become W_enc, W_dec, b_enc, b_dec, and gradients return.

The mathematics of this library is written once, for untied parameters. Tying weights is
a linear map in front of it, `expand`, and the gradient with respect to what was tied is
that map's adjoint, `pullback`: the lecture's "sum of two gradients" is its one plus.
Leaving out the encoder's bias is another such map, in front of either.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class UntiedParams(NamedTuple):
    """Parameters with an encoder and a decoder of their own.

    Row i of `W_enc` is what latent i looks for, row i of `W_dec` what it writes.
    """

    W_enc: Float[Array, "H D"]
    W_dec: Float[Array, "H D"]
    b_enc: Float[Array, "H"] | Any  # () in a model that has none
    b_dec: Float[Array, "D"]
    activation: tuple = ()  # what a learned activation learns
    observation: tuple = ()  # what a learned observation learns


class TiedParams(NamedTuple):
    """Parameters whose decoder is the encoder transposed: W* = W^T."""

    W: Float[Array, "H D"]
    b_enc: Float[Array, "H"] | Any  # () in a model that has none
    b_dec: Float[Array, "D"]
    activation: tuple = ()
    observation: tuple = ()


Params = TiedParams | UntiedParams


class Parametrization(NamedTuple):
    """A linear map to untied parameters, and its adjoint.

    Attributes:
      name: "tied" or "untied".
      params_type: the NamedTuple that holds the model's own parameters.
      expand: `params -> UntiedParams`, the parameters that the mathematics uses.
      pullback: `(params, untied_grads) -> grads` of the params' own type; the adjoint
        of expand: <pullback(g), p> = <g, expand(p)>.
      from_untied: `UntiedParams -> params`, where to start: expand undoes it as far as
        it can be undone.
      weights: the names of the fields that are weight matrices, each once.
    """

    name: str
    params_type: type
    expand: Callable[[Any], UntiedParams]
    pullback: Callable[[Any, UntiedParams], Any]
    from_untied: Callable[[UntiedParams], Any]
    weights: tuple[str, ...]


def _expand_tied(params: TiedParams) -> UntiedParams:
    return UntiedParams(params.W, params.W, *params[1:])


def _pullback_tied(params: TiedParams, untied_grads: UntiedParams) -> TiedParams:
    del params
    # The lecture's "sum of two gradients": W is in the encoder and in the decoder.
    return TiedParams(untied_grads.W_enc + untied_grads.W_dec, *untied_grads[2:])


def _tie(params: UntiedParams) -> TiedParams:
    return TiedParams(params.W_enc, *params[2:])


tied = Parametrization(
    "tied",
    TiedParams,
    expand=_expand_tied,
    pullback=_pullback_tied,
    from_untied=_tie,
    weights=("W",),
)
untied = Parametrization(
    "untied",
    UntiedParams,
    expand=lambda params: params,
    pullback=lambda params, untied_grads: untied_grads,
    from_untied=lambda params: params,
    weights=("W_enc", "W_dec"),
)


@functools.cache  # the same parametrization gives the same object
def without_encoder_bias(base: Parametrization) -> Parametrization:
    """`base` with b_enc = 0 that is no parameter: `params.b_enc` is ().

    What it expands to has the zeros; what is pulled back to () is nothing.
    """

    def expand(params) -> UntiedParams:
        untied_params = base.expand(params)
        zeros = jnp.zeros(len(untied_params.W_enc), untied_params.b_dec.dtype)
        return untied_params._replace(b_enc=zeros)

    def pullback(params, untied_grads: UntiedParams):
        return base.pullback(params, untied_grads._replace(b_enc=()))

    def from_untied(params: UntiedParams):
        return base.from_untied(params._replace(b_enc=()))

    return base._replace(expand=expand, pullback=pullback, from_untied=from_untied)


def untie(params) -> UntiedParams:
    """Untied parameters of the same function: W_enc = W_dec = W.

    Every array is a copy, so that both may be trained and donated. Already untied
    parameters come back as they are.

    Raises:
      ValueError: if `params` is neither TiedParams nor UntiedParams.
    """
    if isinstance(params, UntiedParams):
        return params
    if not isinstance(params, TiedParams):
        raise ValueError(
            f"params must be TiedParams or UntiedParams, got {type(params).__name__}; "
            "make them with ae.init(key)."
        )
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tied.expand(params))
