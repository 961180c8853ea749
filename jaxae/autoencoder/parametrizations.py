"""Maps from a model's parameters to W_enc, W_dec, b_enc and b_dec, and their pullbacks.

The mathematics of this library is written once, for untied parameters. `expand` maps a
model's parameters to these, and `pullback`, the adjoint of its derivative, maps
gradients back. For tied weights the pullback is the lecture's "sum of two gradients".
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxae import _checks


class UntiedParams(NamedTuple):
    """Parameters with separate weights for encoder and decoder.

    Row i of `W_enc` is what latent i looks for, row i of `W_dec` what it writes.
    """

    W_enc: Float[Array, "H D"]
    W_dec: Float[Array, "H D"]
    b_enc: Float[Array, "H"] | Any  # () in a model that has none
    b_dec: Float[Array, "D"]
    activation: tuple = ()  # parameters of a learned activation
    observation: tuple = ()  # parameters of a learned observation


class TiedParams(NamedTuple):
    """Parameters whose decoder is the encoder transposed: W* = W^T."""

    W: Float[Array, "H D"]
    b_enc: Float[Array, "H"] | Any  # () in a model that has none
    b_dec: Float[Array, "D"]
    activation: tuple = ()
    observation: tuple = ()


Params = Any  # the NamedTuple of a parametrization, its `params_type`


class Parametrization(NamedTuple):
    """A map to untied parameters, and the adjoint of its derivative.

    Attributes:
      name: how it is printed and saved, such as "tied".
      params_type: the NamedTuple that holds the model's own parameters, with fields
        `b_dec`, `activation` and `observation` as in `UntiedParams`.
      expand: `params -> UntiedParams`, the parameters that the mathematics uses.
      pullback: `(params, untied_grads) -> grads` of the params' own type; the adjoint
        of expand's derivative D at params: <pullback(params, g), t> = <g, D t>.
      from_untied: `UntiedParams -> params`, the initial parameters from drawn ones.
      weights: the names of the fields that are weight matrices, each once.
      tied: whether the decoder is the encoder transposed.
      bias: whether the encoder has a bias.
      pre_bias: whether b_dec is subtracted from the input of the encoder.
    """

    name: str
    params_type: type
    expand: Callable[[Any], UntiedParams]
    pullback: Callable[[Any, UntiedParams], Any]
    from_untied: Callable[[UntiedParams], Any]
    weights: tuple[str, ...]
    tied: bool = False
    bias: bool = True
    pre_bias: bool = False

    @property
    def is_composed(self) -> bool:
        """Whether tied, bias and pre_bias determine the map."""
        return self == compose(self.tied, self.bias, self.pre_bias)

    def __reduce__(self):
        # By its choices where these give the same object, so that it hits the same
        # compilation caches after unpickling.
        if self.is_composed:
            return compose, (self.tied, self.bias, self.pre_bias)
        return Parametrization, tuple(self)

    def __repr__(self) -> str:
        return self.name


def _expand_tied(params: TiedParams) -> UntiedParams:
    return UntiedParams(params.W, params.W, *params[1:])


def _pullback_tied(params: TiedParams, untied_grads: UntiedParams) -> TiedParams:
    del params
    # The lecture's "sum of two gradients": W is in the encoder and in the decoder.
    return TiedParams(untied_grads.W_enc + untied_grads.W_dec, *untied_grads[2:])


def _tie(params: UntiedParams) -> TiedParams:
    return TiedParams(params.W_enc, *params[2:])


tied = _TIED = Parametrization(
    "tied",
    TiedParams,
    expand=_expand_tied,
    pullback=_pullback_tied,
    from_untied=_tie,
    weights=("W",),
    tied=True,
)
untied = Parametrization(
    "untied",
    UntiedParams,
    expand=lambda params: params,
    pullback=lambda params, untied_grads: untied_grads,
    from_untied=lambda params: params,
    weights=("W_enc", "W_dec"),
)


# ---- no encoder bias: b_enc = 0, params.b_enc is () ----------------------------------


def _expand_no_bias(base: Parametrization, params) -> UntiedParams:
    untied_params = base.expand(params)
    zeros = jnp.zeros(len(untied_params.W_enc), untied_params.b_dec.dtype)
    return untied_params._replace(b_enc=zeros)


def _pullback_no_bias(base: Parametrization, params, untied_grads: UntiedParams):
    return base.pullback(params, untied_grads._replace(b_enc=()))


def _drop_bias(base: Parametrization, params: UntiedParams):
    return base.from_untied(params._replace(b_enc=()))


@functools.cache  # the same parametrization gives the same object
def without_encoder_bias(base: Parametrization) -> Parametrization:
    """`base` with b_enc = 0, which is not learned: `params.b_enc` is ()."""
    return base._replace(
        expand=functools.partial(_expand_no_bias, base),
        pullback=functools.partial(_pullback_no_bias, base),
        from_untied=functools.partial(_drop_bias, base),
        bias=False,
    )


# ---- pre-encoder bias: a = W_enc (x - b_dec) + b_enc ---------------------------------


def _expand_pre_bias(base: Parametrization, params) -> UntiedParams:
    untied = base.expand(params)
    return untied._replace(b_enc=untied.b_enc - untied.W_enc @ untied.b_dec)


def _pullback_pre_bias(base: Parametrization, params, untied_grads: UntiedParams):
    untied, d_b = base.expand(params), untied_grads.b_enc
    d_W_enc = untied_grads.W_enc - jnp.outer(d_b, untied.b_dec)
    d_b_dec = untied_grads.b_dec - untied.W_enc.T @ d_b
    return base.pullback(params, untied_grads._replace(W_enc=d_W_enc, b_dec=d_b_dec))


@functools.cache
def with_pre_bias(base: Parametrization) -> Parametrization:
    """`base` with b_enc - W_enc b_dec for b_enc, so that a = W_enc (x - b_dec) + b_enc.

    Bilinear in W_enc and b_dec: with d_b the gradient by the expanded b_enc, dW_enc
    also gets -d_b b_dec^T, and db_dec also gets -W_enc^T d_b.
    """
    return base._replace(
        expand=functools.partial(_expand_pre_bias, base),
        pullback=functools.partial(_pullback_pre_bias, base),
        pre_bias=True,
    )


# ---- compositions --------------------------------------------------------------------


def compose(tied: bool, bias: bool, pre_bias: bool) -> Parametrization:
    """The parametrization that tied, bias and pre_bias of `Autoencoder` select."""
    base = _TIED if tied else untied
    base = base if bias else without_encoder_bias(base)
    return with_pre_bias(base) if pre_bias else base


def change(base: Parametrization, choice: str) -> Parametrization:
    """`base` with one of "tied", "bias" and "pre_bias" inverted.

    Raises:
      ValueError: for a parametrization of your own, if it fixes the choice.
    """
    if base.is_composed:
        choices = {name: getattr(base, name) for name in ("tied", "bias", "pre_bias")}
        choices[choice] = not choices[choice]
        return compose(**choices)
    if choice == "bias" and base.bias:
        return without_encoder_bias(base)
    if choice == "pre_bias" and not base.pre_bias:
        return with_pre_bias(base)
    raise _checks.ArgumentError(
        str(choice),
        f"must be {getattr(base, choice)} for the parametrization {base}",
        str(not getattr(base, choice)),
        "leave it out",
    )


def untie(params) -> UntiedParams:
    """Return untied parameters of the same function: W_enc = W_dec = W.

    Every array is a copy, so that both may be trained and donated. Untied parameters
    are returned unchanged.

    Raises:
      ValueError: if `params` is neither TiedParams nor UntiedParams.
    """
    if isinstance(params, UntiedParams):
        return params
    if not isinstance(params, TiedParams):
        raise _checks.ArgumentError(
            "params",
            "must be TiedParams or UntiedParams",
            type(params).__name__,
            "make them with ae.init(key)",
        )
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tied.expand(params))
