"""Maps from a model's parameters to W_enc, W_dec, b_enc and b_dec, and their pullbacks.

The mathematics of this library is written once, for untied parameters. `expand` maps a
model's parameters to these, and `pullback`, the adjoint of its derivative, maps
gradients back. For tied weights the pullback is the lecture's "sum of two gradients".
"""

import functools
from collections.abc import Callable, Mapping
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
    W_dec: Float[Array, "H O"]
    b_enc: Float[Array, "H"] | Any  # () in a model that has none
    b_dec: Float[Array, "O"]
    activation: tuple = ()  # parameters of a learned activation
    observation: tuple = ()  # parameters of a learned observation


class TiedParams(NamedTuple):
    """Parameters whose decoder is the encoder transposed: W* = W^T."""

    W: Float[Array, "H D"]
    b_enc: Float[Array, "H"] | Any  # () in a model that has none
    b_dec: Float[Array, "D"]
    activation: tuple = ()
    observation: tuple = ()


class SkipParams(NamedTuple):
    """`UntiedParams` and a linear map from the input to the output: W_skip x."""

    W_enc: Float[Array, "H D"]
    W_dec: Float[Array, "H O"]
    b_enc: Float[Array, "H"] | Any  # () in a model that has none
    b_dec: Float[Array, "O"]
    W_skip: Float[Array, "O D"]
    activation: tuple = ()
    observation: tuple = ()


Params = Any  # the NamedTuple of a parametrization, its `params_type`
Expanded = UntiedParams | SkipParams  # what the mathematics uses
# The fields with one row for each latent, which a sweep pads.
LATENT_FIELDS = ("W", "W_enc", "W_dec", "b_enc")


class Parametrization(NamedTuple):
    """A map to untied parameters, and the adjoint of its derivative.

    Attributes:
      name: how it is printed and saved, such as "tied".
      params_type: the NamedTuple that holds the model's own parameters, with fields
        `b_dec`, `activation` and `observation` as in `UntiedParams`.
      expand: `params -> UntiedParams`, the parameters that the mathematics uses, or
        `SkipParams` for a skip connection.
      pullback: `(params, untied_grads) -> grads` of the params' own type; the adjoint
        of expand's derivative D at params: <pullback(params, g), t> = <g, D t>.
      from_untied: `UntiedParams -> params`, the initial parameters from drawn ones.
      weights: the names of the fields that are weight matrices, each once.
      tied: whether the decoder is the encoder transposed.
      bias: whether the encoder has a bias.
      pre_bias: whether b_dec is subtracted from the input of the encoder.
      skip: whether W_skip x is added to the output: expand returns `SkipParams`.
    """

    name: str
    params_type: type
    expand: Callable[[Any], Any]
    pullback: Callable[[Any, Any], Any]
    from_untied: Callable[[UntiedParams], Any]
    weights: tuple[str, ...]
    tied: bool = False
    bias: bool = True
    pre_bias: bool = False
    skip: bool = False

    @property
    def is_composed(self) -> bool:
        """Whether it is one of the library's, with its bias and pre_bias."""
        if self.name not in BASES:
            return False
        return self == compose(self.name, self.bias, self.pre_bias)

    @property
    def is_selected(self) -> bool:
        """Whether tied, bias, pre_bias and skip determine the map."""
        return self.is_composed and self.name in _SELECTED.values()

    @property
    def needs_equal_dims(self) -> str:
        """Why the output must be as wide as the input, in words; "" if it need not."""
        if self.tied:
            return "with tied weights"
        if self.pre_bias:
            return "with pre_bias, which subtracts b_dec from the input"
        if self.is_composed and self.name == "aligned":
            return "for aligned weights, an inner product of encoder and decoder rows"
        return ""

    def __reduce__(self):
        # By its choices where these give the same object, so that it hits the same
        # compilation caches after unpickling.
        if self.is_composed:
            return compose, (self.name, self.bias, self.pre_bias)
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


tied = Parametrization(
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


def _with_zero_skip(params: UntiedParams) -> SkipParams:
    shape = params.W_dec.shape[1], params.W_enc.shape[1]
    return SkipParams(*params[:4], jnp.zeros(shape, params.W_enc.dtype), *params[4:])


skip = Parametrization(
    "skip",
    SkipParams,
    expand=lambda params: params,
    pullback=lambda params, untied_grads: untied_grads,
    from_untied=_with_zero_skip,
    weights=("W_enc", "W_dec", "W_skip"),
    skip=True,
)


# ---- aligned: <W_enc,j, W_dec,j> = 1 for every latent j ------------------------------


def _alignment(params: UntiedParams):
    """1 / ||D||^2 and (1 - <V, D>) / ||D||^2 of each row, `[H, 1]`; 0 where D is 0."""
    V, D = params.W_enc, params.W_dec
    squared_norms = jnp.sum(D**2, axis=1, keepdims=True)
    is_zero = squared_norms == 0  # the padding of a sweep
    inverses = jnp.where(is_zero, 0, 1 / jnp.where(is_zero, 1, squared_norms))
    return inverses, (1 - jnp.sum(V * D, axis=1, keepdims=True)) * inverses


def _expand_aligned(params: UntiedParams) -> UntiedParams:
    """W_enc,j = V_j + (1 - <V_j, D_j>) D_j / ||D_j||^2, with W_dec,j = D_j.

    That is the point next to V_j = params.W_enc[j] of the plane <w, D_j> = 1.
    """
    _, steps = _alignment(params)
    return params._replace(W_enc=params.W_enc + steps * params.W_dec)


def _pullback_aligned(params: UntiedParams, untied_grads: UntiedParams) -> UntiedParams:
    """With G the gradient by W_enc, c = <G, D> / ||D||^2 and s = 1 - <V, D>, by row:

    dV = G - c D;  dD = (the gradient by W_dec) - c V + s / ||D||^2 (G - 2 c D).
    """
    V, D, G = params.W_enc, params.W_dec, untied_grads.W_enc
    inverses, steps = _alignment(params)
    c = inverses * jnp.sum(G * D, axis=1, keepdims=True)
    d_D = untied_grads.W_dec - c * V + steps * (G - 2 * c * D)
    return untied_grads._replace(W_enc=G - c * D, W_dec=d_D)


# The constraint is that of Aligned Training, arXiv 2605.18629, 2026.
aligned = Parametrization(
    "aligned",
    UntiedParams,
    expand=_expand_aligned,
    pullback=_pullback_aligned,
    from_untied=lambda params: params,
    weights=("W_enc", "W_dec"),
)


# ---- no encoder bias: b_enc = 0, params.b_enc is () ----------------------------------


def _expand_no_bias(base: Parametrization, params) -> Expanded:
    untied_params = base.expand(params)
    zeros = jnp.zeros(len(untied_params.W_enc), untied_params.b_dec.dtype)
    return untied_params._replace(b_enc=zeros)


def _pullback_no_bias(base: Parametrization, params, untied_grads: Expanded):
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


def _expand_pre_bias(base: Parametrization, params) -> Expanded:
    untied = base.expand(params)
    return untied._replace(b_enc=untied.b_enc - untied.W_enc @ untied.b_dec)


def _pullback_pre_bias(base: Parametrization, params, untied_grads: Expanded):
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

BASES: dict[str, Parametrization] = {
    base.name: base for base in (tied, untied, skip, aligned)
}
_SELECTED = {  # (tied, skip) -> name
    (True, False): "tied",
    (False, False): "untied",
    (False, True): "skip",
}


def compose(name: str, bias: bool, pre_bias: bool) -> Parametrization:
    """The library's parametrization of that name, with bias and pre_bias as chosen."""
    base = BASES[name] if bias else without_encoder_bias(BASES[name])
    return with_pre_bias(base) if pre_bias else base


def change(base: Parametrization, choices: Mapping[str, bool]) -> Parametrization:
    """`base` with "tied", "bias", "pre_bias" and "skip" as chosen.

    Raises:
      ValueError: if `base` fixes one of the choices, or for skip with tied weights.
    """
    changed = {n: choice for n, choice in choices.items() if choice != getattr(base, n)}
    name = base.name
    if base.is_selected:
        key = changed.pop("tied", base.tied), changed.pop("skip", base.skip)
        if key not in _SELECTED:
            raise _checks.ArgumentError(
                "skip",
                "must be False with tied weights, which are the default",
                "True",
                "give tied=False",
            )
        name = _SELECTED[key]
    if base.is_composed:
        bias = changed.pop("bias", base.bias)
        base = compose(name, bias, changed.pop("pre_bias", base.pre_bias))
    for name, choice in changed.items():
        base = _change_one(base, name, choice)
    return base


def _change_one(base: Parametrization, name: str, choice: bool) -> Parametrization:
    if name == "bias" and not choice:
        return without_encoder_bias(base)
    if name == "pre_bias" and choice:
        return with_pre_bias(base)
    raise _checks.ArgumentError(
        name,
        f"must be {getattr(base, name)} for the parametrization {base}",
        str(choice),
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


def as_dtype(params: Params, dtype: Any) -> Params:
    """The parameters as `dtype`; those of a learned activation at least float32."""

    def cast(tree, dtype):
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)

    wide = cast(params.activation, jnp.promote_types(dtype, jnp.float32))
    return cast(params, dtype)._replace(activation=wide)
