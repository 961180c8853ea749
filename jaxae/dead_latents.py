"""Dead latents, which no example activates any more: a change that revives them."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxae import _checks, _keys
from jaxae.autoencoder import Autoencoder
from jaxae.autoencoder.parametrizations import LATENT_FIELDS
from jaxae.objective import STEPS_SINCE_ACTIVE
from jaxae.terms import Pass
from jaxae.training import TrainState

# Folded into the run's key: a number that no step has, since those of an epoch's order
# and noise are folded into the same key.
_KEY = 2**32 - 1


def resample(every, *, ae, dead_after=None, encoder_scale=0.2) -> "Resample":
    """A change after each update that gives dead latents new weights at times.

    For `TrainConfig(after_update=)`. After `every` steps, and again after every further
    `every` steps, each dead latent is given an example x of the batch, with target y:

        W_dec row = n_dec * y' / ||y'||,  y' = y - b_dec if ae.pre_bias, else y
        W_enc row = encoder_scale * n_enc * x' / ||x'||,  x' likewise
        b_enc = 0

    where n_dec and n_enc are the mean norms of the rows of W_dec and W_enc over the
    latents that are not dead, or 1 if all are. A row of the W of a tied model is a
    decoder row: n_dec * y' / ||y'||. In the state of the optimizer, the rows of these
    latents become 0, such as both moments of Adam; counts and other rows stay. So do
    the parameters of a learned activation.

    The examples are drawn without replacement, with probabilities proportional to e^2,
    e = ||x_hat - y||^2 in the batch's pass, before the update. If the batch has fewer
    examples, the last latents stay dead until the next time. Padding of a sweep never
    revives.

    Bricken et al., Towards Monosemanticity, 2023. Differences: e is of this batch and
    without the penalties, where the paper draws from 819,200 examples; the paper draws
    with replacement, where latents with the same example would stay equal for ever.

    Args:
      every: the number of steps from one resampling to the next.
      ae: the model that is trained.
      dead_after: a latent is dead if it was 0 on all examples of this many steps, as
        counted by `Objective(ae, dead_after=)`; by default `every`.
      encoder_scale: the norm of new encoder rows, relative to those of other latents.

    Raises:
      ValueError: if a number is not positive, or `ae` is not an Autoencoder. Training
        raises one before the first step if the objective does not count the steps, or
        if the optimizer's state has arrays that are not like the parameters.
    """
    _checks.instance("ae", ae, Autoencoder, "jaxae.Autoencoder")
    every = _checks.positive_int("every", every)
    dead_after = every if dead_after is None else dead_after
    dead_after = _checks.positive_int("dead_after", dead_after)
    is_number = _checks.is_real(encoder_scale) and jnp.ndim(encoder_scale) == 0
    if not (is_number and 0 < encoder_scale < math.inf):
        raise _checks.ArgumentError(
            "encoder_scale",
            "must be a positive number",
            _checks.describe(encoder_scale),
        )
    return Resample(every, ae, dead_after, float(encoder_scale))


@dataclass(frozen=True)
class Resample:
    """What `resample` returns: `(state, p) -> state`, hashable, and may be pickled."""

    every: int
    ae: Autoencoder
    dead_after: int
    encoder_scale: float

    def __call__(self, state: TrainState, p: Pass) -> TrainState:
        """The state with new rows for dead latents, if it is time."""
        if STEPS_SINCE_ACTIVE not in state.state:
            raise _checks.ArgumentError(
                "objective",
                "must count the steps since each latent was active, which "
                "dead_latents.resample reads",
                advice=f"make it with Objective(ae, dead_after={self.dead_after})",
            )
        # After an update, state.step is still the number of steps before it.
        is_due = (state.step + 1) % self.every == 0
        parts = state.params, state.opt_state, state.state
        params, opt_state, counts = jax.lax.cond(
            is_due, lambda: self._resampled(state, p), lambda: parts
        )
        return state._replace(params=params, opt_state=opt_state, state=counts)

    def _resampled(self, state: TrainState, p: Pass) -> tuple[Any, Any, Any]:
        """New parameters, state of the optimizer, and state of the objective."""
        params, count = state.params, state.state[STEPS_SINCE_ACTIVE]
        is_idle = count >= self.dead_after
        is_latent = jnp.ones_like(is_idle) if p.mask is None else p.mask
        is_dead, is_alive = is_latent & is_idle, is_latent & ~is_idle

        shift = params.b_dec[None] if self.ae.pre_bias else 0
        x, x_norms = _directions(p.inputs - shift)
        y, y_norms = _directions(p.targets - shift)
        has_direction = (x_norms > 0) & (y_norms > 0)
        log_weights = jnp.where(has_direction, 2 * jnp.log(self._errors(p)), -jnp.inf)
        is_revived, example = _draw(self._key(state), log_weights, is_dead)

        directions = {"W": y, "W_dec": y, "W_enc": self.encoder_scale * x}
        changed = {}
        for name in _fields_of(params):
            leaf, rows = getattr(params, name), jnp.float32(0)  # of the bias
            if name in directions:
                rows = _mean_norm(leaf, is_alive) * directions[name][example]
            changed[name] = _with_rows(leaf, is_revived, rows)
        return (
            params._replace(**changed),
            _without_moments(state.opt_state, params, is_revived),
            {**state.state, STEPS_SINCE_ACTIVE: jnp.where(is_revived, 0, count)},
        )

    def _errors(self, p: Pass) -> Float[Array, "B"]:
        x_hat = jax.vmap(self.ae.observation.mean)(p.eta)
        return jnp.sum(_wide(x_hat - p.targets) ** 2, axis=-1)

    def _key(self, state: TrainState) -> Array:
        return jax.random.fold_in(jax.random.fold_in(state.key, _KEY), state.step)


def _draw(
    key, log_weights: Float[Array, "B"], is_dead: Bool[Array, "H"]
) -> tuple[Bool[Array, "H"], Int[Array, "H"]]:
    """Which latents are revived, and with which example each.

    Draws without replacement, with probabilities proportional to the weights: the order
    of log(weight) plus Gumbel noise. The noise has a number for each example, not for
    each latent, so that it does not depend on a sweep's padding.
    """
    gumbel = _keys.one_by_one(lambda key: jax.random.gumbel(key, log_weights.shape))
    order = jnp.argsort(-(log_weights + gumbel(key)))
    place = jnp.cumsum(is_dead) - 1  # of each dead latent among them
    example = order[jnp.clip(place, 0, len(log_weights) - 1)]
    return is_dead & (place < jnp.sum(log_weights > -jnp.inf)), example


def _wide(array: Array) -> Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _directions(X: Float[Array, "B D"]) -> tuple[Array, Array]:
    """Rows of norm 1, or 0 where a row is 0; and the norms."""
    norms = jnp.linalg.norm(_wide(X), axis=-1)
    return X / jnp.where(norms > 0, norms, 1)[:, None], norms


def _mean_norm(W: Float[Array, "H D"], is_alive: Bool[Array, "H"]) -> Float[Array, ""]:
    """The mean norm of the rows of latents that are alive; 1 if none is."""
    norms = jnp.linalg.norm(_wide(W), axis=-1)
    num_alive = jnp.sum(is_alive)
    total = jnp.sum(jnp.where(is_alive, norms, 0))
    return jnp.where(num_alive > 0, total / jnp.maximum(num_alive, 1), 1)


def _fields_of(params: Any) -> list[str]:
    """The fields with rows of latents; a model without encoder bias has () as b_enc."""
    present = [name for name in LATENT_FIELDS if name in params._fields]
    return [name for name in present if jax.tree.leaves(getattr(params, name))]


def _with_rows(leaf: Array, is_changed: Bool[Array, "H"], rows: Any) -> Array:
    is_changed = is_changed.reshape(-1, *[1] * (leaf.ndim - 1))
    return jnp.where(is_changed, rows, leaf).astype(leaf.dtype)


def _without_moments(opt_state: Any, params: Any, is_revived: Bool[Array, "H"]) -> Any:
    """The optimizer's state with 0 in the rows of revived latents.

    An array for each parameter is in a pytree like the parameters, which has their
    type. All other arrays must be scalars, or integers such as keys.
    """

    def is_like_params(node: Any) -> bool:
        return isinstance(node, type(params))

    def reset(node: Any) -> Any:
        if is_like_params(node):
            return _without_rows(node, params, is_revived)
        is_float = jnp.issubdtype(jnp.result_type(node), jnp.floating)
        if is_float and jnp.ndim(node):
            raise _unknown_state(_checks.describe(node))
        return node

    return jax.tree.map(reset, opt_state, is_leaf=is_like_params)


def _without_rows(moments: Any, params: Any, is_revived: Bool[Array, "H"]) -> Any:
    changed = {}
    for name in _fields_of(params):
        leaf, like = getattr(moments, name), getattr(params, name)
        if not jax.tree.leaves(leaf):  # the optimizer leaves this parameter out
            continue
        if jnp.shape(leaf) != like.shape:
            found = f"{_checks.describe(leaf)} for {name}, {_checks.describe(like)}"
            raise _unknown_state(found)
        changed[name] = _with_rows(leaf, is_revived, 0)
    return moments._replace(**changed)


def _unknown_state(found: str) -> _checks.ArgumentError:
    return _checks.ArgumentError(
        "optimizer",
        "must have a state of scalars and of arrays like the parameters, whose rows "
        "dead_latents.resample resets",
        found,
        "use one such as adam or sgd",
    )
