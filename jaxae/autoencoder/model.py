"""The autoencoder: a frozen dataclass, whose methods are pure functions of params."""

import functools
import math
import typing
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxae import _checks, _keys, activations, observations
from jaxae.activations import Activation
from jaxae.autoencoder import parametrizations
from jaxae.autoencoder.parametrizations import (
    Expanded,
    Parametrization,
    Params,
    SkipParams,
    UntiedParams,
)
from jaxae.observations import Observation

LATENT_DIM = "latent_dim"  # in hparams: how many latents are not padding
_TYPES = {"activation": Activation, "observation": Observation}


class Forward(NamedTuple):
    """The intermediate values of one example's forward pass."""

    a: Float[Array, "H"]  # encoder pre-activation
    z: Float[Array, "H"]  # latents
    eta: Float[Array, "O"]  # decoder pre-activation


@dataclass(frozen=True, init=False, repr=False)
class Autoencoder:
    """z = g(W_enc x + b_enc), x_hat = o(W_dec^T z + b_dec); tied: W_dec is W_enc.

    Without encoder bias: z = g(W_enc x), and `params.b_enc` is (). With a pre-encoder
    bias: z = g(W_enc (x - b_dec) + b_enc). A transcoder has outputs of another width,
    and learns from pairs of inputs and targets. With a skip connection:
    x_hat = o(W_dec^T z + b_dec + W_skip x).

    A frozen record of choices: it can be printed, compared, hashed (a static argument
    of `jax.jit`), pickled and written into `config.json`. Its methods are pure
    functions of parameters and one example; for a batch, vmap them:
    `jax.vmap(ae.encode, in_axes=(None, 0))(params, X)`. They raise a ValueError for a
    batch, a wrong size or dtype, and another model's parameters.

    Attributes:
      input_dim: D, the number of inputs.
      latent_dim: H, the number of latents.
      output_dim: O, the number of outputs; `input_dim` by default.
      activation: g, one of `jaxae.activations`, its name, or your own `Activation`.
      observation: p(x | x_hat), one of `jaxae.observations`, its name, or your own.
      parametrization: how the parameters become W_enc, W_dec, b_enc and b_dec. By
        default tied, with an encoder bias. The arguments `tied`, `bias`, `pre_bias` and
        `skip` select the usual ones:
        tied: whether the decoder is the encoder transposed.
        bias: whether the encoder has a bias, b_enc; the decoder always has one.
        pre_bias: whether b_dec is subtracted from the input of the encoder.
        skip: whether W_skip x is added to the output; needs tied=False.

    Raises:
      ValueError: for a dimension below 1, a part of the wrong type, an unknown name,
        an observation of another number of columns, a choice that contradicts the
        parametrization, or an output of another width than the input with tied or
        aligned weights or a pre-encoder bias.

    References:
      Hugo Larochelle, Neural networks: Autoencoder, Université de Sherbrooke, 2012.
    """

    input_dim: int
    latent_dim: int
    activation: Activation
    observation: Observation
    parametrization: Parametrization
    output_dim: int

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
        skip: bool | None = None,
        parametrization: Parametrization = parametrizations.tied,
        output_dim: int | None = None,
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
        choices = {"tied": tied, "bias": bias, "pre_bias": pre_bias, "skip": skip}
        input_dim = _checks.positive_int("input_dim", input_dim)
        if output_dim is None:
            output_dim = input_dim
        fields = {
            "input_dim": input_dim,
            "latent_dim": _checks.positive_int("latent_dim", latent_dim),
            "activation": g,
            "observation": p,
            "parametrization": _composed(parametrization, choices),
            "output_dim": _checks.positive_int("output_dim", output_dim),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        if g.uses_weights and self.output_dim != self.input_dim:
            raise _checks.ArgumentError(
                "output_dim",
                f"must be input_dim, {self.input_dim}, for activation {g}",
                str(self.output_dim),
            )
        if g.max_active is not None and g.max_active > self.latent_dim:
            raise _checks.ArgumentError(
                f"activation {g}",
                f"needs at least {g.max_active} latents",
                f"latent_dim {self.latent_dim}",
            )
        self._check_output_dim()

    def _check_output_dim(self) -> None:
        is_autoencoder = self.output_dim == self.input_dim
        reason = self.parametrization.needs_equal_dims
        if reason and not is_autoencoder:
            raise _checks.ArgumentError(
                "output_dim",
                f"must be input_dim, {self.input_dim}, {reason}",
                str(self.output_dim),
                "give tied=False" if self.tied else "use plain untied weights",
            )
        if self.observation.input_dim not in (None, self.output_dim):
            raise _checks.ArgumentError(
                "input_dim" if is_autoencoder else "output_dim",
                f"must be {self.observation.input_dim} for observation "
                f"{self.observation}",
                str(self.output_dim),
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

    @property
    def skip(self) -> bool:
        """Whether W_skip x is added to the output."""
        return self.parametrization.skip

    def __repr__(self) -> str:
        """The choices by name; those that have a default only where they differ."""
        choices = [
            f"{name}={getattr(self, name)!r}"
            for name in ("input_dim", "latent_dim", "activation", "observation")
        ]
        if self.output_dim != self.input_dim:
            choices.insert(2, f"output_dim={self.output_dim}")
        if self.parametrization.is_selected:
            choices.append(f"tied={self.tied}")
            choices += ["skip=True"] if self.skip else []
        else:
            choices.append(f"parametrization={self.parametrization!r}")
        choices += [] if self.bias else ["bias=False"]
        choices += ["pre_bias=True"] if self.pre_bias else []
        return f"{type(self).__name__}({', '.join(choices)})"

    def init(
        self,
        key,
        *,
        dtype: Any = jnp.float32,
        data_mean=None,
        limit=None,
        encoder: str | None = None,
        decoder_norm=None,
        scale=1.0,
    ) -> Params:
        """Draw parameters: Glorot uniform weights, zero biases.

        W_ij ~ U(-r, r), r = gain sqrt(6 / (D + H)), with gain 4 for sigmoid latents, in
        encoder and decoder alike; D is (D + O) / 2 for a transcoder. Each row has its
        own key, so row i is the same for any H, up to r. Weights are drawn in float32
        for every dtype.

        With `decoder_norm`, each row of W_dec is then divided by its norm and
        multiplied by `decoder_norm`; with encoder="decoder", W_enc starts equal to
        W_dec. Both are usual for a sparse activation, such as top-k, and its defaults.

        Args:
          key: a random key; consumed.
          dtype: of every parameter; float32 by default, under x64 too. What an
            activation learns stays at least float32: a threshold in bfloat16 is too
            coarse for the updates of training, which would be rounded away.
          data_mean: `[O]`, the mean of the targets, for an output bias that starts
            there: b_dec = o^-1(data_mean). Another centre of the data may be given,
            such as `data.geometric_median(X)`. By default the output bias starts at 0.
          limit: r; may be traced. By default the model's own, `init_limit`.
          encoder: "decoder" starts W_enc as a copy of W_dec, "random" draws it apart.
            By default "decoder" for a sparse activation where the output is as wide as
            the input, else "random". With tied weights it is "decoder".
          decoder_norm: the norm of each row of W_dec, or of W with tied weights; may be
            traced. By default 1 for a sparse activation, else None, which leaves the
            rows as drawn.
          scale: factor on all initial weights, on `limit` and `decoder_norm` alike; may
            be traced. `hparams["init_scale"]` of `train`.

        Raises:
          ValueError: if key is not a random key, dtype is not floating, data_mean has
            the wrong shape or an observation without eta_of_mean, encoder is not one of
            the two or cannot be had in this model, or decoder_norm or scale is not
            positive.

        References:
          Glorot and Bengio, Understanding the difficulty of training deep feedforward
          neural networks, 2010. Gao et al., Scaling and evaluating sparse autoencoders,
          2024, for encoder="decoder" with decoder rows of norm 1.
        """
        _checks.prng_key(key)
        dtype = _checks.floating_dtype(dtype)
        is_copy = self._copies_decoder(encoder)
        if decoder_norm is None and self.activation.is_sparse:
            decoder_norm = 1.0
        _check_positive(decoder_norm=decoder_norm, scale=scale)
        return self._draw(
            key,
            self._check_data_mean(data_mean),
            (self.init_limit if limit is None else limit) * scale,
            None if decoder_norm is None else decoder_norm * scale,
            dtype=dtype,
            is_copy=is_copy,
        )

    def encoder_pre_acts(self, params, x) -> Float[Array, "H"]:
        """a(x) = b_enc + W_enc x, `[D] -> [H]`; the lecture's a."""
        x = _checks.one_example("x", x, self.input_dim, "ae.encoder_pre_acts")
        return encoder_pre_acts(self.expand(params), x)

    def encode(self, params, x) -> Float[Array, "H"]:
        """z = g(b_enc + W_enc x), `[D] -> [H]`; the lecture's h(x)."""
        x = _checks.one_example("x", x, self.input_dim, "ae.encode")
        return self._encode(self.expand(params), x)[1]

    def decoder_pre_acts(self, params, z, x=None) -> Float[Array, "O"]:
        """eta = b_dec + W_dec^T z, `[H] -> [O]`; the lecture's â.

        A model with a skip connection adds W_skip x: give it x `[D]`, the input. Other
        models ignore x.
        """
        return self._decode(params, z, x, "ae.decoder_pre_acts")

    def decode(self, params, z, x=None) -> Float[Array, "O"]:
        """x_hat = o(b_dec + W_dec^T z), `[H] -> [O]`; the mean of p(x | z).

        A model with a skip connection needs x, as `decoder_pre_acts` does.
        """
        return self.observation.mean(self._decode(params, z, x, "ae.decode"))

    def reconstruct(self, params, x) -> Float[Array, "O"]:
        """x_hat = decode(encode(x)), `[D] -> [O]`; the lecture's f(x)."""
        x = _checks.one_example("x", x, self.input_dim, "ae.reconstruct")
        return self.observation.mean(self.forward(params, x).eta)

    def forward(self, params, x) -> Forward:
        """a, z and eta of one example, `[D] -> ([H], [H], [O])`."""
        x = _checks.one_example("x", x, self.input_dim, "ae.forward")
        return self._forward(params, params, x)

    def loss(self, params, x, target=None) -> Float[Array, ""]:
        """l(f(x)), -log p(target | x_hat) without the terms free of the parameters.

        Args:
          params: this model's parameters.
          x: `[D]`, the input.
          target: `[O]`, the target of the loss; x by default. Another one for denoising
            and transcoders.
        """
        return self.path_loss(params, params, x, target)

    def path_loss(self, encoder_params, decoder_params, x, target=None):
        """The loss with two sets of parameters: loss(p, x) = path_loss(p, p, x).

        Its derivatives by the first and by the second argument are the two gradients
        that the lecture adds: an independent check of `manual.path_grads`.

        Args:
          encoder_params: used for z = g(W_enc x + b_enc).
          decoder_params: used for eta = W_dec^T z + b_dec (+ W_skip x) and the loss.
          x: `[D]`, the input.
          target: `[O]`, the target of the loss; x by default.
        """
        x, target = example_pair(self, x, target, "ae.loss")
        eta = self._forward(encoder_params, decoder_params, x).eta
        return self.observation.checked_loss(eta, target, decoder_params.observation)

    def log_prob(self, params, x, target=None) -> Float[Array, ""]:
        """log p(target | x_hat), normalised, in nats.

        A concrete target outside the support raises an error. Under jit and vmap, where
        values are not known, the result is -inf.

        Args:
          params: this model's parameters.
          x: `[D]`, the input.
          target: `[O]`, the target of the loss; x by default.

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
        x, target = example_pair(self, x, target, "ae.log_prob")
        eta = self._forward(params, params, x).eta
        return self.observation.checked_log_prob(eta, target, params.observation)

    # ---- computed with untied parameters ---------------------------------------------

    def _encode(self, untied: Expanded, x):
        a = encoder_pre_acts(untied, x)
        return a, self.activation.checked_apply(a, self.activation.theta_of(untied))

    def _forward(self, encoder_params, decoder_params, x) -> Forward:
        a, z = self._encode(self.expand(encoder_params), x)
        return Forward(a, z, decoder_pre_acts(self.expand(decoder_params), z, x))

    def _decode(self, params, z, x, method: str) -> Float[Array, "O"]:
        z = _checks.one_example("z", z, self.latent_dim, method)
        if x is not None:
            x = _checks.one_example("x", x, self.input_dim, method)
        elif self.skip:
            raise _checks.ArgumentError(
                "x",
                "is missing, the input, which the skip connection adds to the output "
                "as W_skip x",
                advice=f"call {method}(params, z, x)",
            )
        return decoder_pre_acts(self.expand(params), z, x)

    # ---- initial values --------------------------------------------------------------

    @property
    def init_limit(self) -> float:
        """r = gain sqrt(6 / (D + H)): initial weights lie in [-r, r].

        For a transcoder D is (D + O) / 2.
        """
        num_units = (self.input_dim + self.output_dim) / 2 + self.latent_dim
        return self.activation.init_gain * math.sqrt(6 / num_units)

    def _copies_decoder(self, encoder: str | None) -> bool:
        """Whether W_enc starts as W_dec, by the argument `encoder` of `init`."""
        if encoder not in (None, "decoder", "random"):
            raise _checks.ArgumentError(
                "encoder", "must be 'decoder' or 'random'", repr(encoder)
            )
        is_autoencoder = self.output_dim == self.input_dim
        if encoder == "decoder" and not is_autoencoder:
            raise _checks.ArgumentError(
                "encoder",
                "must be 'random' for a model whose output is not as wide as its input "
                f"(input_dim={self.input_dim}, output_dim={self.output_dim})",
                repr(encoder),
            )
        if encoder == "random" and self.tied:
            raise _checks.ArgumentError(
                "encoder",
                "must be 'decoder' with tied weights",
                repr(encoder),
                "leave it out",
            )
        if encoder is None:
            return self.tied or (self.activation.is_sparse and is_autoencoder)
        return encoder == "decoder"

    # Compiled as one program: each of the operations by itself would be another one.
    @functools.partial(jax.jit, static_argnames=("self", "dtype", "is_copy"))
    def _draw(self, key, data_mean, limit, decoder_norm, *, dtype, is_copy) -> Params:
        encoder_key, decoder_key = _keys.one_by_one(jax.random.split)(key)
        if self.tied:
            decoder_key = encoder_key
        if decoder_norm is None:
            W_dec = self._draw_weights(decoder_key, limit, self.output_dim)
        else:
            directions = self._draw_weights(decoder_key, 1.0, self.output_dim)
            W_dec = decoder_norm * _unit_rows(directions)
        if is_copy:  # an array of its own, so that both may be donated
            W_enc = jnp.array(W_dec, copy=True)
        else:
            W_enc = self._draw_weights(encoder_key, limit, self.input_dim)
        params = UntiedParams(
            W_enc=W_enc,
            W_dec=W_dec,
            b_enc=jnp.zeros(self.latent_dim),
            b_dec=self._output_bias(data_mean),
            activation=_theta("activation", self.activation, self.latent_dim),
            observation=_theta("observation", self.observation, self.output_dim),
        )
        params = self.parametrization.from_untied(params)
        return parametrizations.as_dtype(params, dtype)

    def _draw_weights(self, key, limit, width: int) -> Float[Array, "H width"]:
        def row(key, i):
            key = jax.random.fold_in(key, i)
            return jax.random.uniform(key, (width,), jnp.float32, minval=-1, maxval=1)

        rows = jax.vmap(_keys.one_by_one(row), in_axes=(None, 0))
        return limit * rows(key, jnp.arange(self.latent_dim))

    def _check_data_mean(self, data_mean) -> Float[Array, "O"] | None:
        if data_mean is None:
            return None
        if self.observation.eta_of_mean is None:
            raise _checks.ArgumentError(
                "data_mean",
                f"was given but observation {self.observation} has no eta_of_mean",
                advice="leave {data_mean} out",
            )
        data_mean = _checks.floating("data_mean", data_mean)
        if data_mean.shape != (self.output_dim,):
            raise _checks.ArgumentError(
                "data_mean",
                f"must have shape [{self.output_dim}]",
                str(list(data_mean.shape)),
                "for data [N, D] give X.mean(axis=0)",
            )
        if not isinstance(data_mean, jax.core.Tracer):
            self.observation.validate(data_mean)
        return data_mean

    def _output_bias(self, data_mean) -> Float[Array, "O"]:
        if data_mean is None:
            return jnp.zeros(self.output_dim)
        assert self.observation.eta_of_mean is not None  # _check_data_mean
        eta = self.observation.eta_of_mean(data_mean)
        what = f"observation {self.observation}: eta_of_mean"
        return _checks.returned(what, eta, data_mean.shape)

    # ---- checks, of shapes and types only --------------------------------------------

    def expand(self, params) -> Expanded:
        """W_enc, W_dec, b_enc, b_dec (and W_skip) of this model's parameters.

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
        kind = SkipParams if self.skip else UntiedParams
        if not isinstance(untied, kind):
            problem = f"must return {kind.__name__}"
            raise _checks.ArgumentError(what, problem, _checks.outline(untied))
        H, num_in, num_out = self.latent_dim, self.input_dim, self.output_dim
        shapes: dict[str, tuple[int, ...]] = {
            "W_enc": (H, num_in),
            "W_dec": (H, num_out),
            "b_enc": (H,),
            "b_dec": (num_out,),
        }
        if self.skip:
            shapes["W_skip"] = num_out, num_in
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
                f"must have shape {list(shape)} for this model ({self._sizes()})",
                _checks.describe(leaf),
            )

    def _sizes(self) -> str:
        sizes = f"input_dim={self.input_dim}, latent_dim={self.latent_dim}"
        is_autoencoder = self.output_dim == self.input_dim
        return sizes if is_autoencoder else f"{sizes}, output_dim={self.output_dim}"


def _composed(base: Any, choices: dict[str, Any]) -> Parametrization:
    """`base` with tied, bias and pre_bias as chosen; None leaves its own."""
    path = "jaxae.autoencoder.Parametrization"
    _checks.instance("parametrization", base, Parametrization, path)
    _checks.check_names(f"parametrization {base}: weights", base.weights)
    chosen = {
        name: _checks.boolean(name, choice)
        for name, choice in choices.items()
        if choice is not None
    }
    return parametrizations.change(base, chosen)


@functools.cache
def _param_shapes(ae: Autoencoder) -> Any:
    """The shapes of the model's parameters, without those of its parts."""

    def params():
        H = ae.latent_dim
        untied = UntiedParams(
            W_enc=jnp.zeros((H, ae.input_dim)),
            W_dec=jnp.zeros((H, ae.output_dim)),
            b_enc=jnp.zeros(H),
            b_dec=jnp.zeros(ae.output_dim),
        )
        return ae.parametrization.from_untied(untied)

    return jax.eval_shape(params)


def example_pair(ae: Autoencoder, x, target, method: str, in_axes="(None, 0)"):
    """The input and the target of one example, checked; by default x is the target."""
    x = _checks.one_example("x", x, ae.input_dim, method, in_axes)
    if target is not None:
        target = _checks.one_example("target", target, ae.output_dim, method, in_axes)
        return x, target
    if ae.output_dim != ae.input_dim:
        raise _checks.ArgumentError(
            "target",
            f"is missing, of shape [{ae.output_dim}]: the output of this model is not "
            "as wide as its input",
        )
    return x, x


def encoder_pre_acts(untied: Expanded, x) -> Float[Array, "H"]:
    """a = W_enc x + b_enc, unchecked."""
    return product(untied.W_enc, x, untied.b_enc.dtype) + untied.b_enc


def decoder_pre_acts(untied: Expanded, z, x) -> Float[Array, "O"]:
    """eta = W_dec^T z + b_dec, and + W_skip x with a skip connection, unchecked."""
    decoded = product(untied.W_dec.T, z, untied.b_dec.dtype)
    return decoded + decoder_offset(untied, x)


def decoder_offset(untied: Expanded, x) -> Float[Array, "O"]:
    """eta without the latents: b_dec, and + W_skip x with a skip connection."""
    if isinstance(untied, SkipParams):
        return untied.b_dec + product(untied.W_skip, x, untied.b_dec.dtype)
    return untied.b_dec


def product(W, v, dtype):
    """W v, computed in the dtype of W, as `dtype`."""
    return W @ v if W.dtype == dtype else (W @ v.astype(W.dtype)).astype(dtype)


def _unit_rows(W: Float[Array, "H width"]) -> Float[Array, "H width"]:
    """The rows of W, each divided by its norm."""
    # The same bits under jit, vmap and eager: a compiler may fuse a product and a sum
    # into one rounding, so the products here are exact, of halves of the 24 bits; and
    # the order of a sum may vary with its shape, so that of a row is by halves.
    high = jax.lax.reduce_precision(W, exponent_bits=8, mantissa_bits=11)
    low = W - high
    sums = jnp.concatenate([high * high, 2 * high * low, low * low], axis=1)
    while (width := sums.shape[1]) > 1:
        sums = jnp.pad(sums, ((0, 0), (0, width % 2)))
        sums = sums[:, : sums.shape[1] // 2] + sums[:, sums.shape[1] // 2 :]
    return W / jax.lax.optimization_barrier(jnp.sqrt(sums))


def _check_positive(**numbers: Any) -> None:
    for name, value in _checks.untraced(numbers).items():
        if numbers[name] is not None and not (_checks.is_real(value) and value > 0):
            raise _checks.ArgumentError(name, "must be a positive number", repr(value))


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
