"""A batch's pass through the model, and the terms that an objective adds up.

A term is a function of a pass. Its hand-derived gradient is a set of cotangents, of
`a`, `z`, `eta` and the parameters; `manual` propagates them and knows no term by name.
The reconstruction loss is the first term; the others are the penalties.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxae import _checks
from jaxae.autoencoder import Autoencoder
from jaxae.sparse import Codes, concatenate, dense


@jax.tree_util.register_static  # no array: not traced where a pass is
@dataclass(frozen=True)
class Levels:
    """The nested prefixes of the latents (see `jaxae.prefixes`).

    Attributes:
      sizes: the ends of the prefixes; (latent_dim,) without prefixes.
      is_cut: whether the loss of a prefix trains its last level only.
    """

    sizes: tuple[int, ...]
    is_cut: bool = False


class Pass(NamedTuple):
    """The forward pass of one batch: its inputs and all intermediate values.

    Attributes:
      inputs: `[B, D]`, corrupted in training.
      targets: `[B, O]`; O is D, but for a transcoder.
      a: `[B, H]`, encoder pre-activations.
      z: `[B, H]`, latents.
      eta: `[B, O]`, decoder pre-activations.
      hparams: scalars by name; all of those passed to the objective.
      key: the random key for terms that draw numbers; None in evaluation.
      state: the state of each part by its name, before this batch.
      mask: `[H]`, True on the latents of the model, False on the padding of a lane that
        is narrower than its sweep; None without padding.
      etas: `[B, M, O]`, the decoder pre-activations of each of the objective's M
        prefixes, of which `eta` is the last.
      codes: the latents as `jaxae.sparse.Codes`, where the gradient uses them.
      is_dead: `[H]`, whether a latent was 0 on every example of the last
        `dead_after` batches; None for an objective that does not count them.
      levels: the objective's prefixes.
    """

    inputs: Float[Array, "B D"]
    targets: Float[Array, "B O"]
    a: Float[Array, "B H"]
    z: Float[Array, "B H"]
    eta: Float[Array, "B O"]
    hparams: Mapping[str, Any]
    key: Any = None
    state: Any = ()
    mask: Bool[Array, "H"] | None = None
    etas: Float[Array, "B M O"] | None = None
    codes: Codes | None = None
    is_dead: Bool[Array, "H"] | None = None
    levels: Levels | None = None


class Cotangents(NamedTuple):
    """Partial derivatives of a term, each with the others held fixed; None is zeros.

    Attributes:
      a: `[B, H]`, by the encoder pre-activations; may be `jaxae.sparse.Codes`.
      z: `[B, H]`, by the latents.
      eta: `[B, O]`, by the decoder pre-activations.
      params: by the parameters, of the params' own type.
      etas: `[B, M, O]`, by those of each prefix, in addition to `eta`.
    """

    a: Array | Codes | None = None
    z: Array | None = None
    eta: Array | None = None
    params: Any = None
    etas: Array | None = None

    def times(self, coefficient) -> "Cotangents":
        """The cotangents of coefficient * term."""
        scaled = jax.tree.map(lambda leaf: coefficient * leaf, self)
        if isinstance(self.a, Codes):
            scaled = scaled._replace(a=Codes(scaled.a.values, self.a.indices))
        return scaled


def add(left: Any, right: Any) -> Any:
    """left + right for pytrees, where None stands for zeros."""
    if left is None or right is None:
        return right if left is None else left
    if isinstance(left, Codes) and isinstance(right, Codes):
        return concatenate(left, right)
    if isinstance(right, Codes):
        left, right = right, left
    if isinstance(left, Codes):
        left = dense(left, right.shape[1])
    return jax.tree.map(jnp.add, left, right)


def _accept_any(argument: Any) -> None:
    del argument


class Penalty(NamedTuple):
    """A term: a function of a pass and of the parameters.

    For a sweep over `latent_dim`, latents that are 0 must add nothing to the value: sum
    over latents instead of averaging, or leave out padding by `p.mask`.

    Attributes:
      name: the name of its coefficient in `hparams`, of its metric and of its state.
      value: `(ae, params, p) -> []` for a `Pass` p.
      cotangents: `(ae, params, p) -> Cotangents`, the derivatives of the value. Used by
        `gradient="manual"`, `manual` and the diagnostics; autodiff does not call it.
      hparams: the names of the other hyperparameters that it reads from `p.hparams`.
      check: `(ae) -> None`; raises a ValueError if the model does not suit it.
      check_hparams: `(hparams) -> None`; raises a ValueError for a number out of range.
      init_state: `(ae) -> pytree` of arrays that it carries from step to step, in
        `p.state[name]`; None for a term without state.
      update_state: `(ae, params, p) -> pytree`, the state after the step, of the same
        structure, shapes and dtypes; None for a term without state.
      needs_dead: whether it reads `p.is_dead`, so that the objective counts the steps
        since each latent was active.
      holds_fixed: whether it holds a part of its value fixed (`stop_gradient`), so that
        its cotangents are not the derivatives of the value. gradcheck then judges the
        gradient of an objective by autodiff.
      made_by: the function that makes it of numbers, and these: (aux_k, (512,)). It is
        then printed, looked up and pickled as this call, else by its name.
    """

    name: str
    value: Callable[..., Array]
    cotangents: Callable[..., Cotangents]
    hparams: tuple[str, ...] = ()
    check: Callable[[Autoencoder], None] = _accept_any
    check_hparams: Callable[[Any], None] = _accept_any
    init_state: Callable[[Autoencoder], Any] | None = None
    update_state: Callable[..., Any] | None = None
    needs_dead: bool = False
    holds_fixed: bool = False
    made_by: tuple[Callable[..., "Penalty"], tuple] | None = None

    def checked_value(self, ae: Autoencoder, params, p: Pass) -> Array:
        """The value; raises unless it is a scalar."""
        with self._reading(p):
            value = self.value(ae, params, p)
        return _checks.returned(f"penalty {self}: value", value, ())

    def checked_cotangents(self, ae: Autoencoder, params, p: Pass) -> Cotangents:
        """The cotangents; raises unless each is like what it is the derivative by."""
        with self._reading(p):
            cotangents = self.cotangents(ae, params, p)
        what = f"penalty {self}: cotangents"
        if not isinstance(cotangents, Cotangents):
            raise _checks.ArgumentError(
                what,
                "must return a jaxae.penalties.Cotangents",
                _checks.outline(cotangents),
            )

        def checked(name, cotangent, like):
            if cotangent is None or isinstance(cotangent, Codes):
                return cotangent
            return _checks.returned_like(f"{what}.{name}", cotangent, like)

        variables = (p.a, p.z, p.eta, params, p.etas)
        return Cotangents(*map(checked, Cotangents._fields, cotangents, variables))

    def checked_state(self, ae: Autoencoder, params, p: Pass) -> Any:
        """The state after the step; raises unless it is like the one before."""
        assert self.update_state is not None  # the objective checks it
        with self._reading(p):
            state = self.update_state(ae, params, p)
        what = f"penalty {self}: update_state"
        return _checks.returned_state(what, state, p.state[self.name])

    @contextlib.contextmanager
    def _reading(self, p: Pass) -> Iterator[None]:
        """Name the hyperparameter that one of the functions reads undeclared."""
        try:
            yield
        except KeyError as error:
            (name,) = error.args or (None,)
            if not isinstance(name, str) or name in p.hparams:
                raise
            raise _checks.ArgumentError(
                f"penalty {self}",
                f"reads the hyperparameter {name!r}, which it does not declare",
                advice=f"declare it: Penalty(..., hparams={(*self.hparams, name)})",
            ) from error

    def __repr__(self) -> str:
        if self.made_by is None:
            return str(self.name)
        function, numbers = self.made_by
        return f"{function.__name__}({', '.join(map(repr, numbers))})"

    def __reduce__(self):
        # By the call if it gives this object, so that it hits the same compilation
        # caches after unpickling.
        if self.made_by is not None:
            function, numbers = self.made_by
            if function(*numbers) is self:
                return function, numbers
        return Penalty, tuple(self)


# ---- reconstruction: mean_b -log p(x_b | x_hat_b), also the mean over prefixes -------


def example_losses(ae: Autoencoder, params, p: Pass) -> Float[Array, "B"]:
    """-log p(x | x_hat) of each example, without the terms free of the parameters.

    x_hat is that of all latents, not of a prefix.
    """
    loss = jax.vmap(ae.observation.checked_loss, in_axes=(0, 0, None))
    return loss(p.eta, p.targets, params.observation)


def _prefix_losses(ae: Autoencoder, params, p: Pass) -> Float[Array, "B M"]:
    assert p.etas is not None  # forward sets it
    loss = jax.vmap(ae.observation.checked_loss, in_axes=(0, None, None))
    return jax.vmap(loss, in_axes=(0, 0, None))(p.etas, p.targets, params.observation)


def _reconstruction(ae, params, p: Pass):
    return jnp.mean(_prefix_losses(ae, params, p))


def _reconstruction_cotangents(ae: Autoencoder, params, p: Pass):
    """d_eta, which is x_hat - x for the lecture's two losses, and d_theta."""
    assert p.etas is not None  # forward sets it
    weight = 1 / (p.etas.shape[0] * p.etas.shape[1])

    def of_prefixes(function):
        of_one = jax.vmap(function, in_axes=(0, None, None))
        of_batch = jax.vmap(of_one, in_axes=(0, 0, None))
        values = of_batch(p.etas, p.targets, params.observation)
        return jax.tree.map(lambda value: weight * value, values)

    d_etas = of_prefixes(ae.observation.checked_dloss)
    if ae.observation.init is None:
        return Cotangents(etas=d_etas)
    d_theta = of_prefixes(ae.observation.checked_dtheta)
    d_theta = jax.tree.map(lambda d: jnp.sum(d, axis=(0, 1)), d_theta)
    zeros = jax.tree.map(jnp.zeros_like, params)
    return Cotangents(etas=d_etas, params=zeros._replace(observation=d_theta))


reconstruction = Penalty("reconstruction", _reconstruction, _reconstruction_cotangents)
