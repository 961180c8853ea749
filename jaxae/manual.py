"""The lecture's backward pass, derived by hand and split by path. No autodiff here.

Written once, for untied parameters; a model's own gradients are the pullback of these,
which for tied weights adds the encoder's and the decoder's (`parametrizations`). The
same contractions serve one example and a batch. `docs/derivation.md` derives each line.

References:
  Hugo Larochelle, Neural networks: Autoencoder, Université de Sherbrooke, 2012.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxae import _checks
from jaxae.autoencoder import Autoencoder, Forward, UntiedParams
from jaxae.autoencoder.model import padded_latents, product
from jaxae.objective import Aux, Objective, add
from jaxae.penalties import Cotangents

ENCODER = ("W_enc", "b_enc", "activation")
DECODER = ("W_dec", "b_dec", "observation")


class Backprop(NamedTuple):
    """One example's whole pass, forward and backward."""

    a: Float[Array, "H"]
    z: Float[Array, "H"]
    eta: Float[Array, "D"]
    x_hat: Float[Array, "D"]
    d_eta: Float[Array, "D"]
    d_z: Float[Array, "H"]
    d_a: Float[Array, "H"]
    grads: Any  # the params' own type


class Paths(NamedTuple):
    """The gradient by the path it came through; the sum is the whole."""

    encoder: Any  # the params' own type
    decoder: Any


class Signals(NamedTuple):
    """What flows backward: derivatives of the loss by what was computed forward."""

    d_eta: Array
    d_z: Array
    d_a: Array
    d_activation: tuple  # by what a learned activation learns
    d_observation: tuple


def backprop(ae, params, x, target=None) -> Backprop:
    """The lecture's algorithm on one example.

    d_eta = dl/deta (x_hat - x for the lecture's two losses); d_z = W_dec d_eta;
    d_a = d_z * g'(a); dW_enc = d_a x^T; dW_dec = z d_eta^T; db_enc = d_a;
    db_dec = d_eta. Tied: dW = d_a x^T + z d_eta^T.

    Args:
      ae: the model.
      params: its parameters.
      x: `[D]`, what is encoded.
      target: `[D]`, what is scored; x unless given.

    Raises:
      ValueError: for a batch, a wrong size or dtype, or another model's parameters.
    """
    forward, signals, untied_grads = _example_pass(
        ae, params, x, target, "manual.backprop"
    )
    return Backprop(
        a=forward.a,
        z=forward.z,
        eta=forward.eta,
        x_hat=ae.observation.mean(forward.eta),
        d_eta=signals.d_eta,
        d_z=signals.d_z,
        d_a=signals.d_a,
        grads=ae.parametrization.pullback(params, untied_grads),
    )


def path_grads(ae, params, x, target=None) -> Paths:
    """The encoder's and the decoder's share of the gradient, on one example.

    encoder: (d_a x^T, d_a), through z = g(W_enc x + b_enc); decoder: (z d_eta^T,
    d_eta), through eta = W_dec^T z + b_dec. Both of the params' type; `backprop`'s
    grads are their sum. Equal to jax.grad of `ae.path_loss` by its first and by its
    second argument.

    Args:
      ae: the model.
      params: its parameters.
      x: `[D]`, what is encoded.
      target: `[D]`, what is scored; x unless given.

    Raises:
      ValueError: for a batch, a wrong size or dtype, or another model's parameters.
    """
    _, _, untied_grads = _example_pass(ae, params, x, target, "manual.path_grads")
    pullback = ae.parametrization.pullback
    return Paths(
        encoder=pullback(params, _only(ENCODER, untied_grads)),
        decoder=pullback(params, _only(DECODER, untied_grads)),
    )


def value_and_grad(objective) -> Callable:
    """Like `jax.value_and_grad(objective, has_aux=True)`, with no autodiff.

    Returns:
      `(params, batch, key, hparams, state=()) -> (loss, aux), grads`, the gradient of
      the mean over the batch, penalties included, of the params' own type.

    Raises:
      ValueError: if `objective` is not an Objective; when called, as an objective does.
    """
    if not isinstance(objective, Objective):
        raise _checks.ArgumentError(
            "objective", "must be a jaxae.Objective", repr(objective)
        )

    def value_and_grad_fn(params, batch, key, hparams, state=()):
        inputs, targets = objective.prepare(batch, key, hparams)
        forward = objective.forward(params, inputs, hparams)
        loss, metrics = objective.score(params, forward, targets, hparams)
        grads = batch_grads(objective, params, inputs, targets, forward, hparams)
        return (loss, Aux(metrics, state)), grads

    return value_and_grad_fn


def batch_grads(
    objective: Objective, params, inputs, targets, forward: Forward, hparams
):
    """The gradient of an objective from its forward pass; the loss is not computed.

    Args:
      objective: what is minimised.
      params: the model's parameters.
      inputs, targets: `[B, D]`, from `objective.prepare`.
      forward: a, z `[B, H]` and eta `[B, D]`, from `objective.forward`.
      hparams: scalars by name.

    Returns:
      Gradients of the params' own type.
    """
    ae = objective.ae
    untied_grads, cotangents = _batch_pass(
        objective, params, inputs, targets, forward, hparams
    )
    grads = add(ae.parametrization.pullback(params, untied_grads), cotangents.params)
    return _cast_like(params, grads)


def batch_path_grads(
    objective: Objective, params, inputs, targets, forward: Forward, hparams
) -> Paths:
    """The encoder's and the decoder's share of `batch_grads`.

    As `path_grads`, for the mean over the batch. What penalties add on a and on z comes
    through the encoder, and is in its share. What they add on the parameters directly
    (all of weight_decay, of contractive the part through ||W_enc||) came through
    neither, and is in neither: `batch_grads` is encoder + decoder +
    `objective.cotangents(params, forward, hparams).params`.

    Args:
      objective: what is minimised.
      params: the model's parameters.
      inputs, targets: `[B, D]`, from `objective.prepare`.
      forward: a, z `[B, H]` and eta `[B, D]`, from `objective.forward`.
      hparams: scalars by name.
    """
    untied_grads, _ = _batch_pass(objective, params, inputs, targets, forward, hparams)
    pullback = objective.ae.parametrization.pullback
    return Paths(
        encoder=_cast_like(params, pullback(params, _only(ENCODER, untied_grads))),
        decoder=_cast_like(params, pullback(params, _only(DECODER, untied_grads))),
    )


def _batch_pass(
    objective: Objective, params, inputs, targets, forward: Forward, hparams
) -> tuple[UntiedParams, Cotangents]:
    """The gradient through the model, and what the penalties add to it and beside."""
    ae = objective.ae
    untied = ae.parametrization.expand(objective.rounded(params))
    cotangents = objective.cotangents(params, forward, hparams)
    is_latent = padded_latents(ae, hparams)

    def backward(forward, target, d_a, d_z):
        # The mean over the batch: every signal carries 1/B from the start.
        added = Cotangents(d_a, d_z)
        weight = 1 / len(inputs)
        return _backward(ae, untied, forward, target, added, weight, is_latent)

    signals = jax.vmap(backward)(forward, targets, cotangents.a, cotangents.z)
    return _contract(untied, inputs, forward, signals), cotangents


def _example_pass(ae, params, x, target, method: str):
    if not isinstance(ae, Autoencoder):
        raise _checks.ArgumentError(
            "ae",
            "must be a jaxae.Autoencoder",
            type(ae).__name__,
            f"the order is {method}(ae, params, x)",
        )

    def example(name, value):
        in_axes = "(None, None, 0)"
        return _checks.one_example(name, value, ae.input_dim, method, in_axes)

    x = example("x", x)
    target = x if target is None else example("target", target)
    forward = ae.forward(params, x)
    untied = ae.parametrization.expand(params)
    signals = _backward(ae, untied, forward, target, Cotangents(), 1.0)
    return forward, signals, _contract(untied, x, forward, signals)


def _backward(
    ae: Autoencoder,
    untied: UntiedParams,
    forward: Forward,
    target: Float[Array, "D"],
    cotangents: Cotangents,
    weight: float,
    is_latent=None,
) -> Signals:
    """The signals of one example whose loss counts `weight` times."""
    a, z, eta = forward
    d_eta = weight * ae.observation.checked_dloss(eta, target, untied.observation)
    d_z = add(product(untied.W_dec, d_eta, untied.b_dec.dtype), cotangents.z)
    if is_latent is not None:  # what z = 0 on padding does to a signal that returns
        d_z = jnp.where(is_latent, d_z, 0)
    d_a = add(ae.activation.checked_vjp(a, z, d_z, untied.activation), cotangents.a)
    d_activation = ae.activation.checked_vjp_theta(a, z, d_z, untied.activation)
    d_theta = ae.observation.checked_dtheta(eta, target, untied.observation)
    d_observation = jax.tree.map(lambda d: weight * d, d_theta)
    return Signals(d_eta, d_z, d_a, d_activation, d_observation)


def _contract(
    untied: UntiedParams, x: Array, forward: Forward, signals: Signals
) -> UntiedParams:
    """Gradients from signals; leading axes, if there are any, are summed over."""
    return UntiedParams(
        W_enc=_sum_of_outer(untied.W_enc, signals.d_a, x),
        W_dec=_sum_of_outer(untied.W_dec, forward.z, signals.d_eta),
        b_enc=_sum_like(untied.b_enc, signals.d_a),
        b_dec=_sum_like(untied.b_dec, signals.d_eta),
        activation=jax.tree.map(_sum_like, untied.activation, signals.d_activation),
        observation=jax.tree.map(_sum_like, untied.observation, signals.d_observation),
    )


def _sum_of_outer(W, left, right) -> Float[Array, "H D"]:
    """sum left right^T of numbers rounded as W is, where it is; the sum is not."""
    dtype, left, right = left.dtype, left.astype(W.dtype), right.astype(W.dtype)
    return jnp.einsum("...h,...d->hd", left, right, preferred_element_type=dtype)


def _sum_like(param, signal):
    return jnp.sum(signal.reshape(-1, *param.shape), axis=0)


def _only(names: tuple[str, ...], grads: UntiedParams) -> UntiedParams:
    zeros = jax.tree.map(jnp.zeros_like, grads)
    return zeros._replace(**{name: getattr(grads, name) for name in names})


def _cast_like(params, grads):
    return jax.tree.map(lambda grad, leaf: grad.astype(leaf.dtype), grads, params)
