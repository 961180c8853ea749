"""What is minimised: mean reconstruction loss of a batch + sum of coef * penalty."""

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxae import _checks, corruptions, metrics, penalties
from jaxae.autoencoder import Autoencoder, Forward
from jaxae.autoencoder.model import padded_latents
from jaxae.corruptions import Corruption
from jaxae.penalties import COEFFICIENTS, Cotangents, Penalty

CORRUPTION_RATE = "corruption_rate"
# Metrics, so no penalty may have these names.
TAKEN = {
    *("loss", "reconstruction", "squared_error", "fvu", "log_prob", "bits_per_dim"),
    *("l0", "dead_fraction", "saturated_fraction", "skipped_steps"),
}


class Aux(NamedTuple):
    """What an objective returns beside its value."""

    metrics: dict[str, Float[Array, ""]]  # looked at, not optimised
    state: Any  # carried to the next step, neither learned nor swept


@dataclass(frozen=True)
class Objective:
    """J(params) = mean_b l(f(x~_b), x_b) + sum_p hparams[p] * penalty_p.

    x~ is x corrupted afresh for every call. Frozen and hashable: a static argument.

    Attributes:
      ae: the model.
      corruption: one of `jaxae.corruptions` or its name, of strength
        hparams["corruption_rate"].
      penalties: some of `jaxae.penalties` or their names, each weighted by the hparam
        of its name, which is at least 0.
      compute_dtype: "bfloat16" for matrix products of numbers rounded to it, with
        parameters, activations, losses and sums over examples in float32. None for the
        parameters' own dtype, and parameters other than float32 keep theirs in any
        case: float64 remains the referee.

    Raises:
      ValueError: for a part that is not of its type, a penalty named twice, or one that
        the model cannot bear.
    """

    # jaxtyping leaves this constructor alone: it refuses bad fields in its own words.
    __no_type_check__ = True

    ae: Autoencoder
    _: KW_ONLY
    corruption: Corruption | None = None
    penalties: tuple[Penalty, ...] = ()
    compute_dtype: str | None = None

    def __post_init__(self):
        if not isinstance(self.ae, Autoencoder):
            raise ValueError(f"ae must be a jaxae.Autoencoder, got {self.ae!r}.")
        if self.corruption is not None:
            corruption = _checks.part(
                "corruption",
                self.corruption,
                corruptions.get,
                Corruption,
                "corruptions.masking",
            )
            object.__setattr__(self, "corruption", corruption)
        object.__setattr__(self, "penalties", _as_penalties(self.penalties))
        for penalty in self.penalties:
            penalty.check(self.ae)
        if self.compute_dtype not in (None, "bfloat16"):
            raise ValueError(
                "compute_dtype must be 'bfloat16', or None for the parameters' own, "
                f"got {self.compute_dtype!r}."
            )

    @property
    def hparam_names(self) -> tuple[str, ...]:
        """The hyperparameters that this objective reads."""
        rate = (CORRUPTION_RATE,) if self.corruption else ()
        return rate + self._penalty_hparam_names

    @property
    def _penalty_hparam_names(self) -> tuple[str, ...]:
        return tuple(name for p in self.penalties for name in (p.name, *p.hparams))

    def __call__(
        self, params, batch, key, hparams, state: Any = ()
    ) -> tuple[Float[Array, ""], Aux]:
        """The objective's value on a batch, and what there is to see.

        Args:
          params: the model's parameters.
          batch: `[B, D]`, or a pair (inputs, targets) of such.
          key: consumed by the corruption; may be None where there is none.
          hparams: scalars by name; may hold more than this objective reads.
          state: carried through.

        Raises:
          ValueError: for a batch of the wrong shape or dtype, a missing hparam or one
            out of range, or a part whose function returns another shape than it must.
        """
        inputs, targets = self.prepare(batch, key, hparams)
        forward = self.forward(params, inputs, hparams)
        loss, scores = self.score(params, forward, targets, hparams)
        return loss, Aux(scores, state)

    def evaluate(self, params, X, hparams) -> dict[str, Float[Array, ""]]:
        """The metrics on data `[N, D]` (or a pair) as one batch, without corruption.

        "loss", "reconstruction", each penalty, and "squared_error", the mean over
        examples of ||x_hat - x||^2.

        Raises:
          ValueError: as for a call.
        """
        inputs, targets = self.as_pair(X)
        self._require(self._penalty_hparam_names, hparams)
        forward = self.forward(params, inputs, hparams)
        _, scores = self.score(params, forward, targets, hparams)
        x_hat = jax.vmap(self.ae.observation.mean)(forward.eta)
        return {**scores, "squared_error": metrics.squared_error(targets, x_hat)}

    def check_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Refuse numbers out of range; those that are traced cannot be seen.

        Raises:
          ValueError: naming the hyperparameter, its value and its range.
        """
        seen = _checks.untraced(hparams)
        if self.corruption is not None:
            self.corruption.rates.check(CORRUPTION_RATE, seen)
        for penalty in self.penalties:
            COEFFICIENTS.check(penalty.name, seen)
            if seen.keys() >= {penalty.name, *penalty.hparams}:
                penalty.check_hparams(seen)

    # ---- the parts of a call, shared with the hand-derived gradient ------------------

    def prepare(self, batch, key, hparams) -> tuple[Array, Array]:
        """Inputs, corrupted, and targets, each `[B, D]`."""
        self._require(self.hparam_names, hparams)
        inputs, targets = self.as_pair(batch)
        if self.corruption is None:
            return inputs, targets
        _checks.prng_key(key)
        keys = jax.random.split(key, len(inputs))
        rate = hparams[CORRUPTION_RATE]
        corrupt = jax.vmap(self.corruption.__call__, in_axes=(0, 0, None))
        return corrupt(keys, inputs, rate), targets

    def forward(self, params, inputs, hparams) -> Forward:
        """a, z `[B, H]` and eta `[B, D]` of a batch."""
        is_latent = padded_latents(self.ae, hparams)
        forward = jax.vmap(self.ae.forward, in_axes=(None, 0, None))
        return forward(self.rounded(params), inputs, is_latent)

    def rounded(self, params):
        """The parameters as matrix products use them: weights in compute_dtype."""
        if self.compute_dtype is None or params.b_dec.dtype != jnp.float32:
            return params
        names = self.ae.parametrization.weights
        weights = {n: getattr(params, n).astype(self.compute_dtype) for n in names}
        return params._replace(**weights)

    def score(self, params, forward: Forward, targets, hparams):
        """The value and its named parts, from a batch's forward pass."""
        reconstruction = jnp.mean(self.example_losses(params, forward, targets))
        scores = {"reconstruction": reconstruction}
        total = reconstruction
        for penalty in self.penalties:
            value = penalty.value(self.ae, params, forward, hparams)
            value = _checks.returned(f"penalty {penalty}: value", value, ())
            scores[penalty.name] = value
            total = total + hparams[penalty.name] * value
        return total, {"loss": total, **scores}

    def example_losses(self, params, forward: Forward, targets) -> Float[Array, "B"]:
        """-log p(x | x_hat) of each example, without what is free of the parameters."""
        loss = jax.vmap(self.ae.observation.checked_loss, in_axes=(0, 0, None))
        return loss(forward.eta, targets, params.observation)

    def cotangents(self, params, forward: Forward, hparams) -> Cotangents:
        """What the penalties together add to the backward pass."""
        total = Cotangents()
        for penalty in self.penalties:
            added = penalty.cotangents(self.ae, params, forward, hparams)
            added = _as_cotangents(penalty, added, params, forward)
            coefficient = hparams[penalty.name]
            scaled = jax.tree.map(lambda leaf, c=coefficient: c * leaf, added)
            total = Cotangents(*map(add, total, scaled))
        return total

    def _require(self, names: tuple[str, ...], hparams: Any) -> None:
        """Refuse hparams that lack one of these, are no numbers, or out of range."""
        _checks.hparams(hparams)
        missing = [name for name in names if name not in hparams]
        if missing:
            raise ValueError(
                f"hparams lacks {', '.join(missing)}; this objective reads "
                f"{', '.join(names)}, got {', '.join(hparams) or 'none'}."
            )
        self.check_hparams(hparams)

    def as_pair(self, batch) -> tuple[Array, Array]:
        """Inputs and targets, each `[B, D]`, of a batch that is an array or a pair."""
        if isinstance(batch, tuple) and len(batch) != 2:
            raise ValueError(
                "batch must be an array or a pair (inputs, targets), got a tuple of "
                f"{len(batch)}."
            )
        inputs, targets = batch if isinstance(batch, tuple) else (batch, batch)
        inputs = self._check_batch("batch", inputs)
        targets = self._check_batch("targets", targets)
        if len(inputs) != len(targets):
            raise ValueError(
                f"batch must pair each input with a target, got {len(inputs)} inputs "
                f"and {len(targets)} targets."
            )
        return inputs, targets

    def _check_batch(self, name: str, batch) -> Array:
        array = _checks.floating(name, batch)
        if array.ndim != 2 or array.shape[1] != self.ae.input_dim or not len(array):
            raise ValueError(
                f"{name} must have shape [B, {self.ae.input_dim}], "
                f"got {list(array.shape)}"
                f"{'; add a leading axis: x[None]' if array.ndim == 1 else ''}."
            )
        return array


def add(left: Any, right: Any) -> Any:
    """left + right for pytrees, where None adds nothing."""
    if left is None or right is None:
        return right if left is None else left
    return jax.tree.map(jnp.add, left, right)


def _as_cotangents(
    penalty: Penalty, added: Any, params, forward: Forward
) -> Cotangents:
    """What a penalty adds, if it has the shapes of what it is added to."""
    what = f"penalty {penalty}: cotangents"
    if not isinstance(added, Cotangents):
        raise ValueError(
            f"{what} must return a jaxae.penalties.Cotangents, got "
            f"{_checks.outline(added)}."
        )
    places = Cotangents(forward.a, forward.z, params)
    return Cotangents(
        *(
            None if part is None else _checks.returned_like(f"{what}.{name}", part, at)
            for name, part, at in zip(Cotangents._fields, added, places, strict=True)
        )
    )


def _as_penalties(parts: Any) -> tuple[Penalty, ...]:
    # A Penalty is itself a tuple, so a forgotten comma must be caught by hand.
    if isinstance(parts, Penalty | str):
        raise ValueError(
            f"penalties must be a tuple, got {parts!r}; write ({parts!r},)."
        )
    found = tuple(
        _checks.part("penalties", part, penalties.get, Penalty, "penalties.l1")
        for part in (parts if isinstance(parts, Iterable) else (parts,))
    )
    names = [penalty.name for penalty in found]
    taken = TAKEN & set(names)
    if taken:
        raise ValueError(f"a penalty must not be named {taken.pop()}: a metric is.")
    if len(set(names)) < len(names):
        raise ValueError(
            f"penalties must have different names, got {', '.join(names)}."
        )
    return found
