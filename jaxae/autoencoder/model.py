"""The autoencoder: a frozen dataclass, whose methods are pure functions of params."""

import functools
import math
import typing
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxae import _checks, _keys, activations, observations
from jaxae.activations import Activation
from jaxae.autoencoder import parametrizations
from jaxae.autoencoder.parametrizations import Parametrization, Params, UntiedParams
from jaxae.observations import Observation

LATENT_DIM = "latent_dim"  # in hparams: how many latents are not padding
_TYPES = {"activation": Activation, "observation": Observation}


class Forward(NamedTuple):
    """The intermediate values of one example's forward pass."""

    a: Float[Array, "H"]  # encoder pre-activation
    z: Float[Array, "H"]  # latents
    eta: Float[Array, "D"]  # decoder pre-activation


@dataclass(frozen=True, init=False, repr=False)
class Autoencoder:
    """z = g(W_enc x + b_enc), x_hat = o(W_dec^T z + b_dec); tied: W_dec is W_enc.

    Without encoder bias: z = g(W_enc x), and `params.b_enc` is (). With a pre-encoder
    bias: z = g(W_enc (x - b_dec) + b_enc).

    A frozen record of choices: it can be printed, compared, hashed (a static argument
    of `jax.jit`), pickled and written into `config.json`. Its methods are pure
    functions of parameters and one example; for a batch, vmap them:
    `jax.vmap(ae.encode, in_axes=(None, 0))(params, X)`. They raise a ValueError for a
    batch, a wrong size or dtype, and another model's parameters.

    Attributes:
      input_dim: D, the number of inputs.
      latent_dim: H, the number of latents.
      activation: g, one of `jaxae.activations`, its name, or your own `Activation`.
      observation: p(x | x_hat), one of `jaxae.observations`, its name, or your own.
      parametrization: how the parameters become W_enc, W_dec, b_enc and b_dec. By
        default tied, with an encoder bias. The arguments `tied`, `bias` and `pre_bias`
        select the usual ones:
        tied: whether the decoder is the encoder transposed.
        bias: whether the encoder has a bias, b_enc; the decoder always has one.
        pre_bias: whether b_dec is subtracted from the input of the encoder.

    Raises:
      ValueError: for a dimension below 1, a part of the wrong type, an unknown name,
        an observation of another number of columns, or a choice that contradicts the
        parametrization.

    References:
      Hugo Larochelle, Neural networks: Autoencoder, Université de Sherbrooke, 2012.
    """

    input_dim: int
    latent_dim: int
    activation: Activation
    observation: Observation
    parametrization: Parametrization

    @typing.no_type_check  # it checks its arguments itself, before beartype in tests
    def __init__(
        self,
        *,
        input_dim: int,
        latent_dim: int,
        activation: Activation | str = activations.sigmoid,
        observation: Observation | str = observations.bernoulli,
        tied: bool | None = None,
        bias: bool | None = None,
        pre_bias: bool | None = None,
        parametrization: Parametrization = parametrizations.tied,
    ):
        g = _checks.part(
            *("activation", activation, activations.get, Activation),
            example="activations.sigmoid",
        )
        _checks.check_names(f"activation {g}: surrogate", g.surrogate)
        p = _checks.part(
            *("observation", observation, observations.get, Observation),
            example="observations.bernoulli",
        )
        choices = {"tied": tied, "bias": bias, "pre_bias": pre_bias}
        fields = {
            "input_dim": _checks.positive_int("input_dim", input_dim),
            "latent_dim": _checks.positive_int("latent_dim", latent_dim),
            "activation": g,
            "observation": p,
            "parametrization": _composed(parametrization, choices),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        if g.max_active is not None and g.max_active > self.latent_dim:
            raise _checks.ArgumentError(
                f"activation {g}",
                f"needs at least {g.max_active} latents",
                f"latent_dim {self.latent_dim}",
            )
        if p.input_dim not in (None, self.input_dim):
            raise _checks.ArgumentError(
                "input_dim",
                f"must be {p.input_dim} for observation {p}",
                str(self.input_dim),
            )

    @property
    def tied(self) -> bool:
        """Whether the decoder is the encoder transposed."""
        return self.parametrization.tied

    @property
    def bias(self) -> bool:
        """Whether the encoder has a bias."""
        return self.parametrization.bias

    @property
    def pre_bias(self) -> bool:
        """Whether b_dec is subtracted from the input of the encoder."""
        return self.parametrization.pre_bias

    def __repr__(self) -> str:
        """The choices by name; bias and pre_bias only where not the default."""
        choices = [
            f"{name}={getattr(self, name)!r}"
            for name in ("input_dim", "latent_dim", "activation", "observation")
        ]
        if self.parametrization.is_composed:
            choices.append(f"tied={self.tied}")
        else:
            choices.append(f"parametrization={self.parametrization!r}")
        choices += [] if self.bias else ["bias=False"]
        choices += ["pre_bias=True"] if self.pre_bias else []
        return f"{type(self).__name__}({', '.join(choices)})"

    def init(
        self, key, *, dtype: Any = jnp.float32, data_mean=None, limit=None
    ) -> Params:
        """Draw parameters: Glorot uniform weights, zero biases.

        W_ij ~ U(-r, r), r = gain sqrt(6 / (D + H)), with gain 4 for sigmoid latents, in
        encoder and decoder alike. Each row has its own key, so row i is the same for
        any H, up to r. Weights are drawn in float32 for every dtype.

        Args:
          key: a random key; consumed.
          dtype: of every parameter; float32 by default, under x64 too.
          data_mean: `[D]`, the mean of the data, for an output bias that starts there:
            b_dec = o^-1(data_mean). By default the output bias starts at 0.
          limit: r; may be traced. By default the model's own, `init_limit`.

        Raises:
          ValueError: if key is not a random key, dtype is not floating, or data_mean
            has the wrong shape or an observation without eta_of_mean.

        References:
          Glorot and Bengio, Understanding the difficulty of training deep feedforward
          neural networks, 2010.
        """
        _checks.prng_key(key)
        dtype = _checks.floating_dtype(dtype)
        limit = self.init_limit if limit is None else limit
        encoder_key, decoder_key = _keys.one_by_one(jax.random.split)(key)
        params = UntiedParams(
            W_enc=self._draw_weights(encoder_key, limit),
            W_dec=self._draw_weights(decoder_key, limit),
            b_enc=jnp.zeros(self.latent_dim),
            b_dec=self._output_bias(data_mean),
            activation=_theta("activation", self.activation, self.latent_dim),
            observation=_theta("observation", self.observation, self.input_dim),
        )
        params = self.parametrization.from_untied(params)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)

    def encoder_pre_acts(self, params, x) -> Float[Array, "H"]:
        """a(x) = b_enc + W_enc x, `[D] -> [H]`; the lecture's a."""
        x = _checks.one_example("x", x, self.input_dim, "ae.encoder_pre_acts")
        return encoder_pre_acts(self.expand(params), x)

    def encode(self, params, x) -> Float[Array, "H"]:
        """z = g(b_enc + W_enc x), `[D] -> [H]`; the lecture's h(x)."""
        x = _checks.one_example("x", x, self.input_dim, "ae.encode")
        return self._encode(self.expand(params), x)[1]

    def decoder_pre_acts(self, params, z) -> Float[Array, "D"]:
        """eta = b_dec + W_dec^T z, `[H] -> [D]`; the lecture's â."""
        z = _checks.one_example("z", z, self.latent_dim, "ae.decoder_pre_acts")
        return decoder_pre_acts(self.expand(params), z)

    def decode(self, params, z) -> Float[Array, "D"]:
        """x_hat = o(b_dec + W_dec^T z), `[H] -> [D]`; the mean of p(x | z)."""
        z = _checks.one_example("z", z, self.latent_dim, "ae.decode")
        return self.observation.mean(decoder_pre_acts(self.expand(params), z))

    def reconstruct(self, params, x) -> Float[Array, "D"]:
        """x_hat = decode(encode(x)), `[D] -> [D]`; the lecture's f(x)."""
        x = _checks.one_example("x", x, self.input_dim, "ae.reconstruct")
        return self.observation.mean(self.forward(params, x).eta)

    def forward(self, params, x) -> Forward:
        """a, z and eta of one example, `[D] -> ([H], [H], [D])`."""
        x = _checks.one_example("x", x, self.input_dim, "ae.forward")
        return self._forward(params, params, x)

    def loss(self, params, x, target=None) -> Float[Array, ""]:
        """l(f(x)), -log p(target | x_hat) without the terms free of the parameters.

        Args:
          params: this model's parameters.
          x: `[D]`, the input.
          target: `[D]`, the target of the loss; x by default. Another one for denoising
            and transcoders.
        """
        return self.path_loss(params, params, x, target)

    def path_loss(self, encoder_params, decoder_params, x, target=None):
        """The loss with two sets of parameters: loss(p, x) = path_loss(p, p, x).

        Its derivatives by the first and by the second argument are the two gradients
        that the lecture adds: an independent check of `manual.path_grads`.

        Args:
          encoder_params: used for z = g(W_enc x + b_enc).
          decoder_params: used for eta = W_dec^T z + b_dec and the loss.
          x: `[D]`, the input.
          target: `[D]`, the target of the loss; x by default.
        """
        x, target = self._check_pair(x, target, "ae.loss")
        eta = self._forward(encoder_params, decoder_params, x).eta
        return self.observation.checked_loss(eta, target, decoder_params.observation)

    def log_prob(self, params, x, target=None) -> Float[Array, ""]:
        """log p(target | x_hat), normalised, in nats.

        A concrete target outside the support raises an error. Under jit and vmap, where
        values are not known, the result is -inf.

        Args:
          params: this model's parameters.
          x: `[D]`, the input.
          target: `[D]`, the target of the loss; x by default.

        Raises:
          ValueError: for a batch, a wrong size or dtype, another model's parameters, a
            target outside the support, or an observation that is not a likelihood.
        """
        if self.observation.base_measure == "none":
            raise _checks.ArgumentError(
                f"observation {self.observation}",
                "is a loss, not a likelihood, and has no log_prob",
                advice="use ae.loss",
            )
        x, target = self._check_pair(x, target, "ae.log_prob")
        eta = self._forward(params, params, x).eta
        return self.observation.checked_log_prob(eta, target, params.observation)

    # ---- computed with untied parameters ---------------------------------------------

    def _encode(self, untied: UntiedParams, x):
        a = encoder_pre_acts(untied, x)
        return a, self.activation.checked_apply(a, untied.activation)

    def _forward(self, encoder_params, decoder_params, x) -> Forward:
        a, z = self._encode(self.expand(encoder_params), x)
        return Forward(a, z, decoder_pre_acts(self.expand(decoder_params), z))

    # ---- initial values --------------------------------------------------------------

    @property
    def init_limit(self) -> float:
        """r = gain sqrt(6 / (D + H)): initial weights lie in [-r, r]."""
        num_units = self.input_dim + self.latent_dim
        return self.activation.init_gain * math.sqrt(6 / num_units)

    def _draw_weights(self, key, limit) -> Float[Array, "H D"]:
        def row(key, i):
            key = jax.random.fold_in(key, i)
            return jax.random.uniform(
                key, (self.input_dim,), jnp.float32, minval=-1, maxval=1
            )

        rows = jax.vmap(_keys.one_by_one(row), in_axes=(None, 0))
        return limit * rows(key, jnp.arange(self.latent_dim))

    def _output_bias(self, data_mean) -> Float[Array, "D"]:
        if data_mean is None:
            return jnp.zeros(self.input_dim)
        if self.observation.eta_of_mean is None:
            raise _checks.ArgumentError(
                "data_mean",
                f"was given but observation {self.observation} has no eta_of_mean",
                advice="leave {data_mean} out",
            )
        data_mean = _checks.floating("data_mean", data_mean)
        if data_mean.shape != (self.input_dim,):
            raise _checks.ArgumentError(
                "data_mean",
                f"must have shape [{self.input_dim}]",
                str(list(data_mean.shape)),
                "for data [N, D] give X.mean(axis=0)",
            )
        if not isinstance(data_mean, jax.core.Tracer):
            self.observation.validate(data_mean)
        eta = self.observation.eta_of_mean(data_mean)
        what = f"observation {self.observation}: eta_of_mean"
        return _checks.returned(what, eta, data_mean.shape)

    # ---- checks, of shapes and types only --------------------------------------------

    def expand(self, params) -> UntiedParams:
        """W_enc, W_dec, b_enc and b_dec of this model's parameters.

        Raises:
          ValueError: for another model's parameters.
        """
        self.check_params(params)
        untied = self.parametrization.expand(params)
        if not self.parametrization.is_composed:
            self._check_expanded(untied)
        return untied

    def _check_expanded(self, untied: Any) -> None:
        what = f"parametrization {self.parametrization}: expand"
        if not isinstance(untied, UntiedParams):
            raise _checks.ArgumentError(
                what, "must return UntiedParams", _checks.outline(untied)
            )
        H, D = self.latent_dim, self.input_dim
        shapes = {"W_enc": (H, D), "W_dec": (H, D), "b_enc": (H,), "b_dec": (D,)}
        for name, shape in shapes.items():
            _checks.returned(f"{what}, as {name},", getattr(untied, name), shape)

    def check_params(self, params: Any) -> None:
        """Check that parameters have this model's type and sizes.

        Raises:
          ValueError: naming the field, its shape and the shape this model has.
        """
        expected: Any = self.parametrization.params_type
        if not isinstance(params, expected):
            other = " or jaxae.untie(params)" if expected is UntiedParams else ""
            raise _checks.ArgumentError(
                "params",
                f"must be {expected.__name__} for this {self.parametrization} model",
                type(params).__name__,
                f"make them with ae.init(key){other}",
            )
        shapes = _param_shapes(self)
        for name, leaf in params._asdict().items():
            if name in _TYPES:
                _check_theta(name, getattr(self, name), leaf)
            elif getattr(shapes, name) == ():
                _check_no_bias(leaf)
            else:
                self._check_leaf(name, leaf, getattr(shapes, name).shape)

    def _check_leaf(self, name: str, leaf: Any, shape: tuple[int, ...]) -> None:
        _checks.refuse_masked(f"params.{name}", leaf)
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise _checks.ArgumentError(
                f"params.{name}",
                "must be a real floating array",
                _checks.describe(leaf),
            )
        if jnp.shape(leaf) != shape:
            raise _checks.ArgumentError(
                f"params.{name}",
                f"must have shape {list(shape)} for this model "
                f"(input_dim={self.input_dim}, latent_dim={self.latent_dim})",
                _checks.describe(leaf),
            )

    def _check_pair(self, x, target, method: str):
        x = _checks.one_example("x", x, self.input_dim, method)
        if target is None:
            return x, x
        return x, _checks.one_example("target", target, self.input_dim, method)


def _composed(base: Any, choices: dict[str, Any]) -> Parametrization:
    """`base` with tied, bias and pre_bias as chosen; None leaves its own."""
    path = "jaxae.autoencoder.Parametrization"
    _checks.instance("parametrization", base, Parametrization, path)
    _checks.check_names(f"parametrization {base}: weights", base.weights)
    for name, choice in choices.items():
        if not isinstance(choice, bool | np.bool_ | None):
            raise _checks.ArgumentError(name, "must be True or False", repr(choice))
        if choice is not None and bool(choice) != getattr(base, name):
            base = parametrizations.change(base, name)
    return base


@functools.cache
def _param_shapes(ae: Autoencoder) -> Any:
    """The shapes of the model's parameters, without those of its parts."""
    H, D = ae.latent_dim, ae.input_dim
    weights, b_enc, b_dec = jnp.zeros((H, D)), jnp.zeros(H), jnp.zeros(D)
    untied = UntiedParams(weights, weights, b_enc, b_dec)
    return jax.eval_shape(ae.parametrization.from_untied, untied)


def encoder_pre_acts(untied: UntiedParams, x) -> Float[Array, "H"]:
    """a = W_enc x + b_enc, unchecked."""
    return product(untied.W_enc, x, untied.b_enc.dtype) + untied.b_enc


def decoder_pre_acts(untied: UntiedParams, z) -> Float[Array, "D"]:
    """eta = W_dec^T z + b_dec, unchecked."""
    return product(untied.W_dec.T, z, untied.b_dec.dtype) + untied.b_dec


def product(W, v, dtype):
    """W v, computed in the dtype of W, as `dtype`."""
    return W @ v if W.dtype == dtype else (W @ v.astype(W.dtype)).astype(dtype)


def _theta(kind: str, part: Activation | Observation, size: int) -> tuple:
    """Return the initial parameters of an activation or observation."""
    if part.init is None:
        return ()
    theta = part.init(size)
    is_tuple = isinstance(theta, tuple) and bool(theta)
    if not (is_tuple and all(map(_checks.is_real, theta))):
        raise _checks.ArgumentError(
            f"{kind} {part}: init",
            "must return a tuple of arrays of numbers, one for each thing that is "
            "learned",
            _checks.outline(theta),
        )
    return theta


def _check_theta(name: str, part: Activation | Observation, theta: Any) -> None:
    if not isinstance(theta, tuple) or bool(theta) != (part.init is not None):
        expected = "()" if part.init is None else "the tuple that its init returns"
        raise _checks.ArgumentError(
            f"params.{name}",
            f"must be {expected} for {name} {part}",
            _checks.outline(theta),
        )


def _check_no_bias(b_enc: Any) -> None:
    if not isinstance(b_enc, tuple) or b_enc:
        raise _checks.ArgumentError(
            "params.b_enc",
            "must be () for this model, whose encoder has no bias (bias=False)",
            _checks.describe(b_enc),
        )
