"""The gradient by hand-derived backpropagation, and its parts by path; no autodiff.

The gradient is derived for untied parameters. `parametrizations` pulls it back to the
parameters of a model; for tied weights, this adds the encoder's and the decoder's. One
example is a batch of one. `docs/derivation.md` derives each line.

References:
  Hugo Larochelle, Neural networks: Autoencoder, Université de Sherbrooke, 2012.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxae import _checks, prefixes, sparse
from jaxae.autoencoder import Autoencoder, SkipParams
from jaxae.autoencoder.model import example_pair
from jaxae.autoencoder.parametrizations import Expanded
from jaxae.objective import Objective, activation_state
from jaxae.sparse import Codes
from jaxae.terms import Cotangents, Pass, add, reconstruction


class Backprop(NamedTuple):
    """One example's pass, forward and backward."""

    a: Float[Array, "H"]
    z: Float[Array, "H"]
    eta: Float[Array, "O"]
    x_hat: Float[Array, "O"]
    d_eta: Float[Array, "O"]
    d_z: Float[Array, "H"]
    d_a: Float[Array, "H"]
    grads: Any  # the params' own type


class Paths(NamedTuple):
    """The gradient by path: encoder + decoder is the gradient."""

    encoder: Any  # the params' own type
    decoder: Any


class Signals(NamedTuple):
    """Gradients of the objective with respect to the contributions, z, a and theta."""

    d_levels: Float[Array, "B M O"]  # d_eta where there is one level
    d_z: Float[Array, "B H"]
    d_a: Float[Array, "B H"]
    d_theta: tuple  # of each example; theta are a learned activation's parameters


def backprop(ae, params, x, target=None) -> Backprop:
    """Backpropagate by hand on one example, as in Larochelle's lecture (2012).

    d_eta = dl/deta (x_hat - x for the lecture's two losses); d_z = W_dec d_eta;
    d_a = d_z * g'(a); dW_enc = d_a x^T; dW_dec = z d_eta^T; db_enc = d_a;
    db_dec = d_eta. Tied: dW = d_a x^T + z d_eta^T. Skip: dW_skip = d_eta x^T.

    Args:
      ae: the model.
      params: its parameters.
      x: `[D]`, the input.
      target: `[O]`, the target of the loss; x by default.

    Raises:
      ValueError: for a batch, a wrong size or dtype, or another model's parameters.
    """
    objective, p = _example_pass(ae, params, x, target, "manual.backprop")
    cotangents = objective.cotangents(params, p, objective.terms)
    untied = _expanded(objective, params)
    signals = _backward(objective, untied, p, cotangents)
    paths = _contract(objective, untied, p, signals)
    untied_grads = _assembled(objective, params, *paths)
    return Backprop(
        a=p.a[0],
        z=p.z[0],
        eta=p.eta[0],
        x_hat=ae.observation.mean(p.eta[0]),
        d_eta=signals.d_levels[0, 0],
        d_z=signals.d_z[0],
        d_a=signals.d_a[0],
        grads=add(_pullback(objective, params, untied_grads), cotangents.params),
    )


def path_grads(ae, params, x, target=None) -> Paths:
    """Return the encoder's and the decoder's part of the gradient, on one example.

    encoder: (d_a x^T, d_a), through z = g(W_enc x + b_enc); decoder: (z d_eta^T,
    d_eta), through eta = W_dec^T z + b_dec. Both of the params' type; `backprop`'s
    grads are their sum. The two equal jax.grad of `ae.path_loss` with argnums=0 and
    argnums=1.

    Args:
      ae: the model.
      params: its parameters.
      x: `[D]`, the input.
      target: `[O]`, the target of the loss; x by default.

    Raises:
      ValueError: for a batch, a wrong size or dtype, or another model's parameters.
    """
    objective, p = _example_pass(ae, params, x, target, "manual.path_grads")
    return batch_path_grads(objective, params, p)


def value_and_grad(objective) -> Callable:
    """Like `jax.value_and_grad(objective, has_aux=True)`, by the hand-derived gradient.

    Sparse latents with known indices, such as those of topk, are decoded and
    differentiated by these, without an array of the size of B x H beyond the
    pre-activations, unless a penalty has a gradient by all latents.

    Returns:
      `(params, batch, key, hparams, state=()) -> ((loss, aux), grads)`, the gradient of
      the mean over the batch, penalties included, of the params' own type.

    Raises:
      ValueError: if `objective` is not an Objective; when called, as an objective does.
    """
    _checks.instance("objective", objective, Objective, "jaxae.Objective")

    def value_and_grad_fn(params, batch, key, hparams, state=()):
        loss, (aux, p) = objective.value_and_pass(
            params, batch, key, hparams, state, by_codes=True
        )
        return (loss, aux), batch_grads(objective, params, p)

    return value_and_grad_fn


def batch_grads(objective: Objective, params, p: Pass):
    """Return the gradient of an objective, from the forward pass of a batch.

    Args:
      objective: what is minimised.
      params: the model's parameters.
      p: from `objective.forward` with these parameters.

    Returns:
      Gradients of the params' own type.
    """
    cotangents = objective.cotangents(params, p, objective.terms)
    paths = _untied_paths(objective, params, p, cotangents)
    untied_grads = _assembled(objective, params, *paths)
    grads = add(_pullback(objective, params, untied_grads), cotangents.params)
    return _cast_like(params, grads)


def batch_path_grads(objective: Objective, params, p: Pass) -> Paths:
    """Return the encoder's and the decoder's part of `batch_grads`.

    As `path_grads`, for the mean over the batch. The penalties' cotangents of a and z
    flow through the encoder only and contribute to it; those of eta contribute to both.
    Direct gradients of penalties on the parameters (all of weight_decay; of contractive
    the part through ||W_enc||) are in neither: `batch_grads` is encoder + decoder +
    `objective.cotangents(params, p, objective.penalties).params`.

    Args:
      objective: what is minimised.
      params: the model's parameters.
      p: from `objective.forward` with these parameters.
    """
    cotangents = objective.cotangents(params, p, objective.terms)
    paths = _untied_paths(objective, params, p, cotangents)
    # Gradients of a learned observation's parameters belong to the decoder.
    observation = objective.cotangents(params, p, (reconstruction,)).params
    encoder, decoder = (
        _pullback(objective, params, _assembled(objective, params, path))
        for path in paths
    )
    return Paths(
        encoder=_cast_like(params, encoder),
        decoder=_cast_like(params, add(decoder, observation)),
    )


def _example_pass(ae, params, x, target, method: str) -> tuple[Objective, Pass]:
    """One example as a batch of one, and the objective that is its loss."""
    order = f"the order is {method}(ae, params, x)"
    _checks.instance("ae", ae, Autoencoder, "jaxae.Autoencoder", order)
    x, target = example_pair(ae, x, target, method, "(None, None, 0)")
    objective = Objective(ae)
    return objective, objective.forward(params, (x[None], target[None]), None, {})


def _expanded(objective: Objective, params) -> Expanded:
    return objective.ae.parametrization.expand(objective.rounded(params))


def _untied_paths(objective, params, p: Pass, cotangents: Cotangents) -> Paths:
    """The gradients by the untied parameters by path, in one of two equal ways.

    Each is a dict by field, without those that are 0.
    """
    untied = _expanded(objective, params)
    if _is_sparse(p, cotangents):
        return _contract_codes(objective, untied, p, cotangents)
    return _contract(objective, untied, p, _backward(objective, untied, p, cotangents))


def _assembled(objective, params, *paths: dict[str, Any]) -> Expanded:
    """The sum of paths, with 0 in the fields that none has, in the params' dtype."""
    grads: dict[str, Any] = {}
    for path in paths:
        grads |= {name: add(grads.get(name), grad) for name, grad in path.items()}
    untied = jax.eval_shape(objective.ae.parametrization.expand, params)
    return jax.tree.map(jnp.zeros_like, untied)._replace(**grads)


def _d_levels(objective: Objective, cotangents: Cotangents) -> Float[Array, "B M O"]:
    """The gradient by the contribution of each level of the latents to eta."""
    return prefixes.d_contributions(_d_etas(cotangents), objective.cut_prefixes)


def _d_etas(cotangents: Cotangents) -> Float[Array, "B M O"]:
    """The gradient by the decoder pre-activations of each prefix."""
    assert cotangents.etas is not None  # the reconstruction has it
    if cotangents.eta is None:
        return cotangents.etas
    return cotangents.etas.at[:, -1].add(cotangents.eta)


def _backward(
    objective: Objective, untied: Expanded, p: Pass, cotangents: Cotangents
) -> Signals:
    """Propagate the cotangents of all terms from eta to a."""
    d_levels = _d_levels(objective, cotangents)
    activation = objective.ae.activation.at(p.hparams)
    state, theta = activation_state(p.state), activation.theta_of(untied)
    d_z = prefixes.d_latents(
        untied.W_dec, d_levels, objective.sizes, untied.b_dec.dtype
    )
    d_z = add(d_z, cotangents.z)
    if p.mask is not None:  # z is 0 on padding, whatever g(a) is there
        d_z = jnp.where(p.mask, d_z, 0)
    d_a = activation.checked_vjp_batch(p.a, p.z, d_z, theta, state)
    d_theta = jax.vmap(activation.checked_vjp_theta, (0, 0, 0, None))(
        p.a, p.z, d_z, theta
    )
    return Signals(d_levels, d_z, add(d_a, cotangents.a), d_theta)


def _contract(
    objective: Objective, untied: Expanded, p: Pass, signals: Signals
) -> Paths:
    """Sum over the batch: dW_enc = d_a x^T, dW_dec = z d_eta^T, and the biases'."""
    encoder = {
        "W_enc": prefixes.sum_of_outer(untied.W_enc, signals.d_a, p.inputs),
        "b_enc": jnp.sum(signals.d_a, axis=0),
    }
    d_theta = jax.tree.map(lambda d: jnp.sum(d, axis=0), signals.d_theta)
    sizes = objective.sizes
    d_W_dec = prefixes.d_decoder(untied.W_dec, p.z, signals.d_levels, sizes)
    return Paths(
        _with_theta(objective, encoder, d_theta),
        {"W_dec": d_W_dec, **_offset_grads(untied, p, signals.d_levels)},
    )


def _with_theta(objective: Objective, encoder: dict[str, Any], d_theta):
    """With the gradients by theta: what the activation learns, or the weights."""
    if not objective.ae.activation.uses_weights:
        return {**encoder, "activation": d_theta}
    d_W_enc, d_W_dec = d_theta
    return {**encoder, "W_enc": encoder["W_enc"] + d_W_enc, "W_dec": d_W_dec}


def _offset_grads(untied: Expanded, p: Pass, d_levels) -> dict[str, Any]:
    """The gradients of b_dec, and of a skip connection: dW_skip = d_eta x^T."""
    d_eta = d_levels[:, 0]  # every prefix contains the first level
    grads = {"b_dec": jnp.sum(d_eta, axis=0)}
    if isinstance(untied, SkipParams):
        grads["W_skip"] = prefixes.sum_of_outer(untied.W_skip, d_eta, p.inputs)
    return grads


# ---- sparse latents: the same, for the k latents of each example that may not be 0 ---


def _is_sparse(p: Pass, cotangents: Cotangents) -> bool:
    """Whether the gradient by a is 0 but for few entries, whose indices are known."""
    is_sparse = cotangents.a is None or isinstance(cotangents.a, Codes)
    return p.codes is not None and cotangents.z is None and is_sparse


def _contract_codes(
    objective: Objective, untied: Expanded, p: Pass, cotangents: Cotangents
) -> Paths:
    """The same sums, over the codes alone."""
    codes, sizes, latent_dim = p.codes, objective.sizes, objective.ae.latent_dim
    assert codes is not None
    activation = objective.ae.activation.at(p.hparams)
    d_levels = _d_levels(objective, cotangents)
    d_z = sparse.project(d_levels, untied.W_dec, codes.indices, sizes)
    d_values, d_theta = activation.checked_codes_vjp(
        codes, d_z, activation.theta_of(untied)
    )
    d_a = add(Codes(d_values, codes.indices), cotangents.a)
    inputs = p.inputs[:, None]
    encoder = {
        "W_enc": sparse.sum_of_outer(d_a, inputs, untied.W_enc, (latent_dim,)),
        "b_enc": sparse.sum_of_rows(d_a, latent_dim),
    }
    d_W_dec = sparse.sum_of_outer(codes, d_levels, untied.W_dec, sizes)
    return Paths(
        _with_theta(objective, encoder, d_theta),
        {"W_dec": d_W_dec, **_offset_grads(untied, p, d_levels)},
    )


def _pullback(objective: Objective, params, untied_grads: Expanded):
    parametrization = objective.ae.parametrization
    grads = parametrization.pullback(objective.rounded(params), untied_grads)
    what = f"parametrization {parametrization}: pullback"
    return _checks.returned_like(what, grads, params)


def _cast_like(params, grads):
    return jax.tree.map(lambda grad, leaf: grad.astype(leaf.dtype), grads, params)
