"""A sparse autoencoder as other libraries store it, to and from a model."""

from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxae import _checks
from jaxae.activations import Activation, Gated, Threshold
from jaxae.autoencoder import Autoencoder, SkipParams, TiedParams, UntiedParams
from jaxae.formats import _base, _tensors

NORMALIZATION = "normalize_activations"  # an entry of metadata, as SAELens has it


class Weights(NamedTuple):
    """The arrays of a sparse autoencoder.

    a = W_enc (x - b_dec) + b_enc, or W_enc x + b_enc without a pre-encoder bias;
    x_hat = W_dec^T g(a) + b_dec (+ W_skip x).

    Attributes:
      W_enc: `[H, D]`.
      W_dec: `[H, D]`; None in a file of tied weights.
      b_enc: `[H]`.
      b_dec: `[D]`.
      W_skip: `[D, D]`, or None.
      threshold: `[H]` for jumprelu, else None.
      log_scale, shift: `[H]` for gated, else None.
    """

    W_enc: Any
    W_dec: Any
    b_enc: Any
    b_dec: Any
    W_skip: Any = None
    threshold: Any = None
    log_scale: Any = None
    shift: Any = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are there, by field."""
        fields = self._asdict().items()
        return {name: np.ascontiguousarray(w) for name, w in fields if w is not None}


# ---- from a file ---------------------------------------------------------------------


def sizes(path: Path, tensors: dict[str, Any], name: str) -> tuple[int, int]:
    """The shape of a matrix that a file must hold."""
    shape: Any = getattr(tensors.get(name), "shape", ())
    if len(shape) != 2 or 0 in shape:
        found = _checks.describe(tensors[name]) if name in tensors else "none"
        raise _checks.ArgumentError(str(path), f"must hold a matrix {name}", found)
    return shape


def as_float32(path: Path, tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    """Tensors of narrower or of mixed dtypes, for libraries that compute in float32.

    Raises:
      ValueError: if a tensor does not hold floats.
    """
    for name, tensor in tensors.items():
        _check_floats(path, name, tensor)
    is_double = any(tensor.dtype == np.float64 for tensor in tensors.values())
    dtype = np.float64 if is_double else np.float32
    return {name: tensor.astype(dtype) for name, tensor in tensors.items()}


def to_model(
    path: Path, weights: Weights, activation: Activation, *, pre_bias: bool
) -> tuple[Autoencoder, Any]:
    """The model and the parameters of weights that were read from a file.

    Raises:
      ValueError: if the arrays are not floats of one dtype, one holds NaN, float64
        would be rounded, or the activation keeps more latents than there are.
    """
    arrays = weights.arrays()
    for name, array in arrays.items():
        _check_floats(path, name, array)
        if np.isnan(array).any():
            raise _checks.ArgumentError(str(path), f"holds NaN in {name}")
    dtypes = {str(array.dtype) for array in arrays.values()}
    if len(dtypes) > 1:
        raise _checks.ArgumentError(
            str(path), "must hold tensors of one dtype", ", ".join(sorted(dtypes))
        )
    try:
        ae = Autoencoder(
            input_dim=weights.W_enc.shape[1],
            latent_dim=weights.W_enc.shape[0],
            activation=activation,
            observation="gaussian",
            tied=weights.W_dec is None,
            pre_bias=pre_bias,
            skip=weights.W_skip is not None,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return ae, _params(weights._replace(**_tensors.as_jax(path, arrays)))


def _params(weights: Weights) -> TiedParams | UntiedParams | SkipParams:
    W_enc, W_dec, b_enc, b_dec, W_skip, *_ = weights
    theta = _theta(weights)
    if W_dec is None:
        return TiedParams(W_enc, b_enc, b_dec, theta)
    if W_skip is None:
        return UntiedParams(W_enc, W_dec, b_enc, b_dec, theta)
    return SkipParams(W_enc, W_dec, b_enc, b_dec, W_skip, theta)


def _theta(weights: Weights) -> tuple:
    """What the activation learns."""
    if weights.threshold is not None:
        return Threshold(weights.threshold)
    if weights.shift is not None:
        return Gated(weights.log_scale, weights.shift)
    return ()


def _check_floats(path: Path, name: str, tensor: Any) -> None:
    if not jnp.issubdtype(getattr(tensor, "dtype", bool), jnp.floating):
        raise _checks.ArgumentError(
            str(path), f"must hold floats in {name}", _checks.describe(tensor)
        )


# ---- from a model --------------------------------------------------------------------


def from_model(
    ae: Autoencoder, params: Any, format: str, *, pre_bias: bool, skip: bool = False
) -> Weights:
    """The weights of a model, for a file with or without a pre-encoder bias.

    b_enc is another one where the model's pre_bias is; the function is the same.

    Raises:
      ValueError: if the outputs are not linear in the latents or not as wide as the
        inputs, or for a skip connection if `skip` is False.
    """
    _base.check_linear_decoder(ae, format)
    if ae.skip and not skip:
        raise _base.unsupported(ae, format, "a skip connection")
    if ae.output_dim != ae.input_dim:
        raise _base.unsupported(ae, format, "outputs of another width than the inputs")
    is_own = pre_bias and ae.pre_bias and ae.parametrization.is_composed
    p = _base.numpy_params(ae, params, is_own)
    b_enc = p.b_enc + p.W_enc @ p.b_dec if pre_bias and not is_own else p.b_enc
    W_skip = p.W_skip if isinstance(p, SkipParams) else None
    weights = Weights(p.W_enc, p.W_dec, b_enc, p.b_dec, W_skip)
    theta = p.activation
    if isinstance(theta, Gated):
        return weights._replace(log_scale=theta.log_scale, shift=theta.shift)
    if isinstance(theta, Threshold):
        return weights._replace(threshold=_base.scaled_threshold(ae, theta))
    return weights


def kind(ae: Autoencoder, format: str, *kinds: str) -> str:
    """The activation's name without its numbers, which must be one of `kinds`."""
    name = _base.activation_kind(ae)
    if name not in kinds:
        is_batch = name == "batch_topk"
        advice = "give the model that training returns, run.model" if is_batch else ""
        raise _base.unsupported(ae, format, f"activation {ae.activation}", advice)
    return name


def refuse_normalization(metadata: dict[str, Any], format: str) -> None:
    """Check that the inputs are not normalized, which a file has no entry for."""
    if (value := metadata.get(NORMALIZATION, "none")) != "none":
        raise _checks.ArgumentError(
            f"metadata[{NORMALIZATION!r}]",
            f"has no place in such a file of the format {format!r}",
            repr(value),
            "leave it out if whoever reads the file normalizes the inputs",
        )
