"""The record of an activation, and the catalogues."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxae import _checks
from jaxae.sparse import Codes


class Activation(NamedTuple):
    """A differentiable function `z = g(a)` and its hand-derived derivatives.

    Attributes:
      name: how it is printed, saved, looked up and pickled.
      apply: `(a, *theta) -> z`.
      vjp: `(a, z, dz, *theta) -> da`, the cotangent of `a` from that of `z`.
      slope: `(a, z) -> g'(a)` where g is elementwise, else None.
      curvature: `(a, z) -> g''(a)` where g is elementwise, else None.
      init: `(latent_dim) -> theta`, a tuple or NamedTuple of arrays, if g is learned.
      vjp_theta: `(a, z, dz, *theta) -> dtheta`, a tuple like theta, for one example.
      init_gain: factor on Glorot's uniform limit for weights in front of this g.
      output_range: bounds of g; kl_sparsity needs latents between 0 and 1.
      apply_batch: `(A [B, H], theta, state, training) -> Z [B, H]`, for a g that
        depends on the other examples of a batch; objectives use it instead of apply.
      vjp_batch: `(A, Z, dZ, theta, state) -> dA [B, H]`, beside apply_batch; vjp of
        each example where None.
      init_state: `(latent_dim) ->` a pytree of arrays that g carries from step to step;
        () is its state where None.
      update_state: `(A, Z, theta, state) -> state` after a step.
      surrogate: names of what g learns whose vjp_theta is a straight-through estimator,
        not a derivative; gradcheck judges these leaves by autodiff.
      is_sparse: whether g keeps few latents. The decoder of a model of such latents
        starts with rows of norm 1, and the encoder as the decoder.
      max_active: the most latents of an example that are not 0 (per example, on average
        over a batch), where g has such a number; a model has at least as many latents.
      hparams: names of hyperparameters that replace numbers of g; they may be left out.
      with_hparams: `(g, hparams) -> Activation`, g with their values, which may be
        traced.
      check_hparams: `(g, hparams) -> None`; raises a ValueError for a number out of
        range.
      uses_weights: whether g has (W_enc, W_dec) in the place of theta.
      codes: `(A [B, H], *theta) -> jaxae.sparse.Codes` of Z for a g that makes all but
        few entries 0; each example has as many entries.
      codes_vjp: `(codes, dvalues, *theta) -> (da, dtheta)`, da at the codes' indices
        and dtheta summed over the batch. None for a g without theta whose entries are
        those of a: dvalues where the values are not 0.
      gate: `(a, *theta) -> [H]`, 1 where g lets a pass and 0 elsewhere, which the l0
        penalty counts.
      gate_vjp: `(a, dgate, *theta) -> (da, dtheta)`, its straight-through estimator.
      threshold: `(*theta) -> [H]`, in units of a, above which g lets a pass; None is 0.
      threshold_vjp: `(dthreshold, *theta) -> dtheta`, its derivative.
      for_inference: `(g, hparams, theta, state, latent_dim) -> (Activation, theta)` to
        use on one example, for a g that depends on the batch or on a hyperparameter.
    """

    name: str
    apply: Callable[..., Array]
    vjp: Callable[..., Array]
    slope: Callable[..., Array] | None = None
    curvature: Callable[..., Array] | None = None
    init: Callable[..., tuple] | None = None
    vjp_theta: Callable[..., tuple] | None = None
    init_gain: float = 1.0
    output_range: tuple[float, float] = (-math.inf, math.inf)
    apply_batch: Callable[..., Array] | None = None
    vjp_batch: Callable[..., Array] | None = None
    init_state: Callable[..., Any] | None = None
    update_state: Callable[..., Any] | None = None
    surrogate: tuple[str, ...] = ()
    is_sparse: bool = False
    max_active: int | None = None
    hparams: tuple[str, ...] = ()
    with_hparams: Callable[..., "Activation"] | None = None
    check_hparams: Callable[..., None] | None = None
    uses_weights: bool = False
    codes: Callable[..., Codes] | None = None
    codes_vjp: Callable[..., tuple] | None = None
    gate: Callable[..., Array] | None = None
    gate_vjp: Callable[..., tuple] | None = None
    threshold: Callable[..., Array] | None = None
    threshold_vjp: Callable[..., tuple] | None = None
    for_inference: Callable[..., tuple["Activation", tuple]] | None = None

    def theta_of(self, untied: Any) -> tuple:
        """What apply and the others have as theta, of a model's untied parameters."""
        return (untied.W_enc, untied.W_dec) if self.uses_weights else untied.activation

    def at(self, hparams: Mapping[str, Any]) -> "Activation":
        """Return the activation with the values of its hyperparameters."""
        own = {name: hparams[name] for name in self.hparams if name in hparams}
        return self.with_hparams(self, own) if own and self.with_hparams else self

    def checked_apply(self, a, theta: tuple) -> Array:
        """apply on one example; raises unless z has the shape of a."""
        z = self.apply(a, *theta)
        return _checks.returned(f"activation {self}: apply", z, a.shape)

    def checked_apply_batch(self, A, theta: tuple, state, training: bool) -> Array:
        """apply_batch, or apply where None; raises unless Z has the shape of A."""
        if self.apply_batch is None:
            return jax.vmap(self.checked_apply, (0, None))(A, theta)
        Z = self.apply_batch(A, theta, state, training)
        return _checks.returned(f"activation {self}: apply_batch", Z, A.shape)

    def checked_codes(self, A, theta: tuple) -> Codes:
        """codes; raises unless they are codes of as many examples as A has."""
        assert self.codes is not None
        codes = self.codes(A, *theta)
        what = f"activation {self}: codes"
        if not isinstance(codes, Codes) or codes.values.shape != codes.indices.shape:
            outline = _checks.outline(codes)
            raise _checks.ArgumentError(what, "must return jaxae.sparse.Codes", outline)
        _checks.returned(what, codes.values, (len(A), *codes.values.shape[1:]))
        return codes

    def checked_codes_vjp(self, codes: Codes, d_values, theta: tuple) -> tuple:
        """codes_vjp, or d_values where the values are not 0, if None."""
        if self.codes_vjp is None:
            return jnp.where(codes.values != 0, d_values, 0), ()
        d_a, d_theta = self.codes_vjp(codes, d_values, *theta)
        what = f"activation {self}: codes_vjp"
        return _checks.returned_like(what, d_a, codes.values), d_theta

    def checked_vjp_batch(self, A, Z, dZ, theta: tuple, state) -> Array:
        """vjp_batch, or vjp where None; raises unless dA is like A."""
        if self.vjp_batch is None:
            return jax.vmap(self.checked_vjp, (0, 0, 0, None))(A, Z, dZ, theta)
        dA = self.vjp_batch(A, Z, dZ, theta, state)
        return _checks.returned_like(f"activation {self}: vjp_batch", dA, A)

    def checked_state(self, A, Z, theta: tuple, state) -> Any:
        """The state after a step; raises unless it is like the one before."""
        if self.update_state is None:
            return state
        what = f"activation {self}: update_state"
        return _checks.returned_state(
            what, self.update_state(A, Z, theta, state), state
        )

    def checked_vjp(self, a, z, dz, theta: tuple) -> Array:
        """vjp; raises unless it is like a."""
        da = self.vjp(a, z, dz, *theta)
        return _checks.returned_like(f"activation {self}: vjp", da, a)

    def checked_vjp_theta(self, a, z, dz, theta: tuple) -> tuple:
        """vjp_theta; raises unless it is like theta."""
        what = f"activation {self}: vjp_theta"
        return _checks.returned_by_theta(what, self.vjp_theta, (a, z, dz), theta)

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self):
        # By name if the name gives this object, so that it hits the same compilation
        # caches after unpickling.
        if find(self.name) is self:
            return get, (self.name,)
        return Activation, tuple(self)


# By name: activations, and those of the sparse family, of which some are functions of
# numbers, such as topk in "topk(32)".
CATALOGUE: dict[str, Activation] = {}
SPARSE: dict[str, Activation | Callable[..., Activation]] = {}


def get(name: str) -> Activation:
    """The activation of that name, such as "relu" or "topk(32)".

    Raises:
      ValueError: for an unknown name, or a number out of range.
    """
    return _checks.get_part("activation", {**CATALOGUE, **SPARSE}, name)


def find(name: str) -> Activation | None:
    """The activation of that name; None for an unknown one.

    Raises:
      ValueError: for a number out of range.
    """
    return _checks.find_part({**CATALOGUE, **SPARSE}, name)
