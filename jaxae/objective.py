"""The objective: mean reconstruction loss of a batch + sum of coef * penalty."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxae import _checks, corruptions, metrics, penalties, prefixes, sparse
from jaxae.autoencoder import Autoencoder
from jaxae.autoencoder.model import LATENT_DIM, decoder_offset, encoder_pre_acts
from jaxae.corruptions import Corruption
from jaxae.penalties import COEFFICIENTS
from jaxae.schedules import Schedule
from jaxae.terms import Cotangents, Levels, Pass, Penalty, add, reconstruction

CORRUPTION_RATE = "corruption_rate"
ACTIVATION = "activation"  # the key of the activation's state
STEPS_SINCE_ACTIVE = "steps_since_active"  # the key of the count of each latent
DEAD_AFTER = 1000  # by default, in steps
# Reserved names: metrics, component states and hyperparameters. The metric l0 is not
# among them: it is also the value of the penalty l0.
RESERVED = {
    *("loss", "reconstruction", "squared_error", "fvu", "log_prob", "bits_per_dim"),
    *("dead_fraction", "saturated_fraction", "skipped_steps", ACTIVATION),
    STEPS_SINCE_ACTIVE,
    *(CORRUPTION_RATE, LATENT_DIM, "init_scale", "seed", "k"),
}
# Folded into a batch's key for the terms: a number that no example has, since
# split(key, B)[i] may equal fold_in(key, i).
_TERMS_KEY = 2**32 - 1


class Aux(NamedTuple):
    """What an objective returns in addition to its value."""

    metrics: dict[str, Float[Array, ""]]  # reported, not minimised
    state: Any  # for the next step; not trained


@dataclass(frozen=True)
class Objective:
    """J(params) = mean_b l(f(x~_b), x_b) + sum_p hparams[p] * penalty_p.

    x~ is a corrupted copy of x, with new noise at every call. An objective is frozen
    and hashable, so that it can be a static argument.

    Attributes:
      ae: the model.
      corruption: one of `jaxae.corruptions` or its name. Its level is
        hparams["corruption_rate"].
      penalties: some of `jaxae.penalties` or their names. The coefficient of a penalty
        is the hyperparameter of its name, which is at least 0.
      compute_dtype: "bfloat16" casts the inputs of matrix products to bfloat16;
        parameters, activations, losses and sums over examples stay in float32. None
        uses the parameters' dtype. Ignored unless the parameters are float32, so that
        float64 remains the reference.
      prefixes: the ends of nested prefixes of the latents, such as (1024, 4096, 16384),
        the last of which is latent_dim. The reconstruction loss is then the mean over
        prefixes m of the loss of decoding the latents before m (Matryoshka). None
        decodes all latents at once.
      cut_prefixes: whether the loss of a prefix trains only the latents after the
        prefix before it.
      dead_after: a latent that is 0 on every example of this many batches in sequence
        is dead. The objective's state then counts them, by the name
        "steps_since_active". None counts only for a penalty that needs it, such as
        aux_k, with 1000 batches.
      schedules: some of `jaxae.schedules`, each of which replaces a hyperparameter of
        this objective at every step, such as `schedules.linear("l1")`.

    Raises:
      ValueError: if a component has the wrong type, two penalties have one name, a
        penalty does not support the model, the prefixes do not increase and end at
        latent_dim, or a schedule sets a hyperparameter that nothing reads.
    """

    # No runtime type check by jaxtyping: the constructor checks its fields itself.
    __no_type_check__ = True

    ae: Autoencoder
    _: KW_ONLY
    corruption: Corruption | None = None
    penalties: tuple[Penalty, ...] = ()
    compute_dtype: str | None = None
    prefixes: tuple[int, ...] | None = None
    cut_prefixes: bool = False
    dead_after: int | None = None
    schedules: tuple[Schedule, ...] = ()

    def __post_init__(self):
        _checks.instance("ae", self.ae, Autoencoder, "jaxae.Autoencoder")
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
            raise _checks.ArgumentError(
                "compute_dtype",
                "must be 'bfloat16', or None for the parameters' own",
                repr(self.compute_dtype),
            )
        prefixes = _as_prefixes(self.prefixes, self.ae.latent_dim)
        object.__setattr__(self, "prefixes", prefixes)
        if _checks.boolean("cut_prefixes", self.cut_prefixes) and not prefixes:
            raise _checks.ArgumentError(
                "cut_prefixes", "must be False without prefixes", "True"
            )
        dead_after = self.dead_after
        if dead_after is None and any(p.needs_dead for p in self.penalties):
            dead_after = DEAD_AFTER
        if dead_after is not None:
            dead_after = _checks.positive_int("dead_after", dead_after)
        object.__setattr__(self, "dead_after", dead_after)
        known = {*self._penalty_hparam_names, *self.optional_hparam_names}
        known |= {CORRUPTION_RATE} if self.corruption else set()
        object.__setattr__(self, "schedules", _as_schedules(self.schedules, known))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The ends of the prefixes; (latent_dim,) without prefixes."""
        return self.prefixes or (self.ae.latent_dim,)

    @property
    def surrogate(self) -> tuple[str, ...]:
        """The leaves of the params whose gradient is not the derivative of the value.

        Those of straight-through estimators; all of them where a penalty, or a cut
        between prefixes, holds a part of the value fixed. For `gradcheck.check`.
        """
        params = jax.eval_shape(self.ae.init, jax.random.key(0))
        leaves = [name for name, _ in _checks.named(params)]
        if self.cut_prefixes or any(p.holds_fixed for p in self.penalties):
            return tuple(leaves)
        estimated = {f"activation/{name}" for name in self.ae.activation.surrogate}
        return tuple(name for name in leaves if name in estimated)

    @property
    def has_codes(self) -> bool:
        """Whether the gradient by hand can use the sparsity of the latents."""
        return self.ae.activation.codes is not None

    @property
    def optional_hparam_names(self) -> tuple[str, ...]:
        """The hyperparameters that this objective reads where they are given."""
        return self.ae.activation.hparams

    @property
    def hparam_names(self) -> tuple[str, ...]:
        """The hyperparameters that this objective reads."""
        rate = (CORRUPTION_RATE,) if self.corruption else ()
        of_schedules = (name for s in self.schedules for name in s.hparams)
        return tuple(dict.fromkeys((*rate, *self._penalty_hparam_names, *of_schedules)))

    @property
    def _penalty_hparam_names(self) -> tuple[str, ...]:
        return tuple(name for p in self.penalties for name in (p.name, *p.hparams))

    @property
    def _evaluation_hparam_names(self) -> tuple[str, ...]:
        """Without those of the corruption, which evaluation does not use."""
        own = (s.hparams for s in self.schedules if s.name != CORRUPTION_RATE)
        return (*self._penalty_hparam_names, *itertools.chain(*own))

    @property
    def terms(self) -> tuple[Penalty, ...]:
        """The reconstruction, whose coefficient is 1, then the penalties."""
        return (reconstruction, *self.penalties)

    def __call__(
        self, params, batch, key, hparams, state: Any = ()
    ) -> tuple[Float[Array, ""], Aux]:
        """Return the objective's value on a batch, its metrics and its next state.

        Args:
          params: the model's parameters.
          batch: `[B, D]`, or a pair (inputs `[B, D]`, targets `[B, O]`).
          key: the key of the corruption and of terms that draw random numbers; may be
            None if there are none.
          hparams: a dict of scalars; may hold more than this objective reads.
          state: from `init_state()` or from the previous step.

        Raises:
          ValueError: if the batch has the wrong shape or dtype, a hyperparameter is
            missing or out of range, the state of a component is missing, or a function
            of a component returns a wrong shape.
        """
        loss, (aux, _) = self.value_and_pass(params, batch, key, hparams, state)
        return loss, aux

    def value_and_pass(
        self, params, batch, key, hparams, state: Any = (), *, by_codes: bool = False
    ) -> tuple[Float[Array, ""], tuple[Aux, Pass]]:
        """Like `__call__`, but also return the forward pass of the batch."""
        p = self.forward(params, batch, key, hparams, state, by_codes=by_codes)
        loss, scores = self.score(params, p)
        return loss, (Aux(scores, self._next_state(params, p)), p)

    def evaluate(
        self, params, X, hparams, state: Any = ()
    ) -> dict[str, Float[Array, ""]]:
        """The metrics on data `[N, D]` (or a pair) as one batch, without corruption.

        "loss", "reconstruction", each penalty, and "squared_error", the mean over
        examples of ||x_hat - x||^2.

        Raises:
          ValueError: as for a call.
        """
        p = self.forward(params, X, None, hparams, state, training=False)
        return self.evaluate_pass(params, p)

    def evaluate_pass(self, params, p: Pass) -> dict[str, Float[Array, ""]]:
        """The metrics of `evaluate`, from a forward pass."""
        _, scores = self.score(params, p)
        x_hat = jax.vmap(self.ae.observation.mean)(p.eta)
        return {**scores, "squared_error": metrics.squared_error(p.targets, x_hat)}

    def init_state(self) -> dict[str, Any]:
        """Return the initial state of the stateful components, by name.

        The name of the activation's state is "activation", that of a penalty's state
        the name of the penalty. "steps_since_active" `[H]` counts the steps since each
        latent was last active. The name of a schedule's state is that of its
        hyperparameter with "_schedule". Empty if no component has a state.
        """
        state = {p.name: p.init_state(self.ae) for p in self.penalties if p.init_state}
        if self.ae.activation.init_state:
            state[ACTIVATION] = self.ae.activation.init_state(self.ae.latent_dim)
        if self.dead_after is not None:
            state[STEPS_SINCE_ACTIVE] = jnp.zeros(self.ae.latent_dim, jnp.int32)
        state |= {s.state_name: s.init_state() for s in self.schedules}
        return jax.tree.map(jnp.asarray, state)

    def for_evaluation(self) -> "Objective":
        """The objective as at inference: without corruption and compute_dtype."""
        schedules = tuple(s for s in self.schedules if s.name != CORRUPTION_RATE)
        return dataclasses.replace(
            self, corruption=None, compute_dtype=None, schedules=schedules
        )

    def check_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Check the range of each number that is not traced.

        Raises:
          ValueError: naming the hyperparameter, its value and its range.
        """
        numbers = _checks.untraced(hparams)
        if self.corruption is not None:
            self.corruption.rates.check(CORRUPTION_RATE, numbers)
        for penalty in self.penalties:
            COEFFICIENTS.check(penalty.name, numbers)
            if numbers.keys() >= {penalty.name, *penalty.hparams}:
                penalty.check_hparams(numbers)
        activation = self.ae.activation
        for schedule in self.schedules:
            schedule.check_hparams(numbers)
        if activation.check_hparams is not None:
            activation.check_hparams(activation, numbers)

    def inference_model(
        self, params, hparams: Mapping[str, Any], state: Any = ()
    ) -> tuple[Autoencoder, Any]:
        """The model and params for use on one example.

        An activation that depends on the batch or on a hyperparameter becomes one that
        does not: batch_topk a jumprelu with the running threshold, and topk one with
        hparams["k"].
        """
        g, hparams = self.ae.activation, self._scheduled(hparams, state, training=False)
        if g.for_inference is None:
            return self.ae, params
        own_state = activation_state(state)
        g, theta = g.for_inference(
            g, hparams, params.activation, own_state, self.ae.latent_dim
        )
        ae = dataclasses.replace(self.ae, activation=g)
        return ae, params._replace(activation=theta)

    # ---- the steps of a call, which the hand-derived gradient shares -----------------

    def forward(
        self,
        params,
        batch,
        key,
        hparams,
        state: Any = (),
        *,
        training: bool = True,
        by_codes: bool = False,
    ) -> Pass:
        """Compute the forward pass of a batch; corrupt it only if `training`.

        `by_codes` decodes sparse latents by their codes, where the activation has them.
        """
        names = self.hparam_names if training else self._evaluation_hparam_names
        self._require(names, hparams)
        self._require_state(state)
        hparams = self._scheduled(hparams, state, training)
        inputs, targets = self.as_pair(batch)
        if training and self.corruption is not None:
            inputs = self._corrupted(inputs, key, hparams)
        mask = latent_mask(self.ae, hparams)
        untied = self.ae.expand(self.rounded(params))
        a = jax.vmap(encoder_pre_acts, (None, 0))(untied, inputs)
        g = self.ae.activation.at(hparams)
        theta, codes = g.theta_of(untied), None
        if by_codes and g.codes is not None:
            codes = g.checked_codes(a, theta)
        if codes is None:
            z = g.checked_apply_batch(a, theta, activation_state(state), training)
            z = z if mask is None else jnp.where(mask, z, 0)
        else:  # the codes of padding are 0, as its pre-activations are
            z = sparse.dense(codes, self.ae.latent_dim)
        etas = self._decode(untied, inputs, z, codes)
        if key is not None:
            _checks.prng_key(key)
            key = jax.random.fold_in(key, _TERMS_KEY)
        return Pass(
            *(inputs, targets, a, z, etas[:, -1], hparams, key, state, mask),
            etas=etas,
            codes=codes,
            is_dead=self._is_dead(state, mask),
            levels=Levels(self.sizes, self.cut_prefixes),
        )

    def _scheduled(self, hparams, state, training: bool) -> Mapping[str, Any]:
        """The hyperparameters at this step."""
        values = {
            s.name: s.value(hparams, state[s.state_name])
            for s in self.schedules
            if training or s.name != CORRUPTION_RATE
        }
        return {**hparams, **values} if values else hparams

    def _decode(self, untied, inputs, z, codes) -> Float[Array, "B M O"]:
        """The decoder pre-activations of each prefix."""
        W, dtype = untied.W_dec, untied.b_dec.dtype
        if codes is None:
            of_levels = prefixes.contributions(W, z, self.sizes, dtype)
        else:
            of_levels = sparse.decode(codes, W, self.sizes).astype(dtype)
        first = jax.vmap(decoder_offset, (None, 0))(untied, inputs)
        return prefixes.etas(of_levels, first, self.cut_prefixes)

    def _is_dead(self, state, mask) -> Bool[Array, "H"] | None:
        if self.dead_after is None:
            return None
        is_dead = state[STEPS_SINCE_ACTIVE] >= self.dead_after
        return is_dead if mask is None else is_dead & mask

    def _corrupted(self, inputs, key, hparams) -> Float[Array, "B D"]:
        _checks.prng_key(key)
        assert self.corruption is not None
        corrupt = jax.vmap(self.corruption.__call__, in_axes=(0, 0, None))
        keys = jax.random.split(key, len(inputs))
        return corrupt(keys, inputs, hparams[CORRUPTION_RATE])

    def rounded(self, params):
        """Return the parameters with the weights cast to compute_dtype."""
        if self.compute_dtype is None or params.b_dec.dtype != jnp.float32:
            return params
        names = self.ae.parametrization.weights
        weights = {n: getattr(params, n).astype(self.compute_dtype) for n in names}
        return params._replace(**weights)

    def score(self, params, p: Pass) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Return the loss, and the loss and its terms by name, from a forward pass."""
        values = {t.name: t.checked_value(self.ae, params, p) for t in self.terms}
        loss = sum(_coefficient(t, p.hparams) * values[t.name] for t in self.terms)
        return loss, {"loss": loss, **values}

    def cotangents(self, params, p: Pass, terms: tuple[Penalty, ...]) -> Cotangents:
        """Return the sum of the terms' cotangents, each times its coefficient."""
        total = Cotangents()
        for term in terms:
            coefficient = _coefficient(term, p.hparams)
            cotangents = term.checked_cotangents(self.ae, params, p)
            scaled = cotangents.times(coefficient)
            total = Cotangents(*map(add, total, scaled))
        return total

    def _next_state(self, params, p: Pass) -> Any:
        """Return the state for the next step."""
        state = p.state
        for penalty in self.penalties:
            if penalty.init_state:
                own_state = penalty.checked_state(self.ae, params, p)
                state = {**state, penalty.name: own_state}
        if self.ae.activation.init_state:
            own_state = self.ae.activation.checked_state(
                p.a, p.z, params.activation, activation_state(p.state)
            )
            state = {**state, ACTIVATION: own_state}
        if self.dead_after is not None:
            is_active = ~metrics.is_dead(p.z)
            counts = jnp.where(is_active, 0, p.state[STEPS_SINCE_ACTIVE] + 1)
            state = {**state, STEPS_SINCE_ACTIVE: counts}
        for schedule in self.schedules:
            name = schedule.state_name
            own_state = schedule.update_state(p.hparams, p.state[name], p)
            state = {**state, name: own_state}
        return state

    def _require_state(self, state: Any) -> None:
        names = [p.name for p in self.penalties if p.init_state]
        names += [ACTIVATION] if self.ae.activation.init_state else []
        names += [STEPS_SINCE_ACTIVE] if self.dead_after is not None else []
        names += [s.state_name for s in self.schedules]
        missing = [name for name in names if name not in state]
        if missing:
            raise _checks.ArgumentError(
                "state",
                f"lacks {', '.join(missing)}, which this objective carries from step "
                "to step",
                advice="start from objective.init_state(), or after training pass "
                "run.state.state",
            )

    def _require(self, names: tuple[str, ...], hparams: Any) -> None:
        """Check that hparams has these names, and that its numbers are in range."""
        _checks.hparams(hparams)
        missing = [name for name in names if name not in hparams]
        if missing:
            raise _checks.ArgumentError(
                "hparams",
                f"lacks {_checks.argument_list(missing)}",
                ", ".join(hparams) or "none",
                f"this objective reads {_checks.argument_list(names)}",
            )
        self.check_hparams(hparams)

    def as_pair(self, batch) -> tuple[Array, Array]:
        """Inputs `[B, D]` and targets `[B, O]` of a batch: an array or a pair."""
        if isinstance(batch, tuple) and len(batch) != 2:
            raise _checks.ArgumentError(
                "batch",
                "must be an array or a pair (inputs, targets)",
                f"a tuple of {len(batch)}",
            )
        check_is_pair(self.ae, "batch", batch)
        inputs, targets = batch if isinstance(batch, tuple) else (batch, batch)
        inputs = self._check_batch("batch", inputs, self.ae.input_dim)
        targets = self._check_batch("targets", targets, self.ae.output_dim)
        if len(inputs) != len(targets):
            raise _checks.ArgumentError(
                "batch",
                "must pair each input with a target",
                f"{len(inputs)} inputs and {len(targets)} targets",
            )
        return inputs, targets

    def _check_batch(self, name: str, batch, width: int) -> Array:
        array = _checks.floating(name, batch)
        if array.ndim != 2 or array.shape[1] != width or not len(array):
            raise _checks.ArgumentError(
                name,
                f"must have shape [B, {width}]",
                str(list(array.shape)),
                "add a leading axis: x[None]" if array.ndim == 1 else "",
            )
        return array


def check_is_pair(ae: Autoencoder, name: str, data: Any) -> None:
    """Check that data of a model with other outputs than inputs are a pair."""
    if ae.output_dim != ae.input_dim and not isinstance(data, tuple):
        raise _checks.ArgumentError(
            name,
            f"must be a pair (inputs [N, {ae.input_dim}], targets "
            f"[N, {ae.output_dim}]) for this model",
            _checks.describe(data),
        )


def activation_state(state: Any) -> Any:
    """Return the activation's state, or () if the activation is stateless."""
    return state[ACTIVATION] if ACTIVATION in state else ()


def _coefficient(term: Penalty, hparams: Mapping[str, Any]) -> Any:
    return 1 if term is reconstruction else hparams[term.name]


def latent_mask(ae: Autoencoder, hparams) -> Bool[Array, "H"] | None:
    """Return a mask of the active latents; None without hparams["latent_dim"].

    A sweep pads all models to the largest latent_dim, so that they share one compiled
    program. The mask is False on the padding.
    """
    if LATENT_DIM not in hparams:
        return None
    return jnp.arange(ae.latent_dim) < hparams[LATENT_DIM]


def _as_prefixes(prefixes: Any, latent_dim: int) -> tuple[int, ...] | None:
    if prefixes is None:
        return None
    is_many = isinstance(prefixes, Iterable) and not isinstance(prefixes, str)
    ends = tuple(
        _checks.positive_int("prefixes", end)
        for end in (prefixes if is_many else [prefixes])
    )
    increase = all(left < right for left, right in itertools.pairwise(ends))
    if not ends or not increase or ends[-1] != latent_dim:
        raise _checks.ArgumentError(
            "prefixes",
            f"must increase and end at latent_dim, {latent_dim}",
            repr(prefixes),
        )
    return ends


def _as_schedules(parts: Any, known: set[str]) -> tuple[Schedule, ...]:
    is_many = isinstance(parts, Iterable) and not isinstance(parts, Schedule)
    schedules = tuple(parts) if is_many else (parts,)
    if not is_many or not all(isinstance(s, Schedule) for s in schedules):
        raise _checks.ArgumentError(
            "schedules",
            "must be a tuple of schedules, such as (schedules.linear('l1'),)",
            repr(parts),
        )
    names = [schedule.name for schedule in schedules]
    if not known.issuperset(names):
        raise _checks.ArgumentError(
            "schedules",
            "must set hyperparameters that the objective reads: "
            f"{', '.join(sorted(known)) or 'none'}",
            ", ".join(map(repr, schedules)),
        )
    if len(set(names)) < len(names):
        raise _checks.ArgumentError(
            "schedules",
            "must set different hyperparameters",
            ", ".join(map(repr, schedules)),
        )
    return schedules


def _as_penalties(parts: Any) -> tuple[Penalty, ...]:
    # A Penalty is itself a tuple, so a missing comma needs an explicit check.
    is_one = isinstance(parts, Penalty | str)
    if is_one or not isinstance(parts, Iterable):
        advice = f"write ({parts!r},)" if is_one else "write () for no penalty"
        raise _checks.ArgumentError(
            "penalties", "must be a tuple of penalties", repr(parts), advice
        )
    chosen = tuple(
        _checks.part("penalties", part, penalties.get, Penalty, "penalties.l1")
        for part in parts
    )
    for penalty in chosen:
        _check_penalty(penalty)
    names = [penalty.name for penalty in chosen]
    if len(set(names)) < len(names):
        raise _checks.ArgumentError(
            "penalties", "must have different names", ", ".join(names)
        )
    return chosen


def _check_penalty(penalty: Penalty) -> None:
    name = penalty.name
    if not (isinstance(name, str) and name.isidentifier()):
        raise _checks.ArgumentError(
            "a penalty's name", "must be an identifier such as 'l1'", repr(name)
        )
    if name in RESERVED:
        raise _checks.ArgumentError(
            "a penalty",
            f"must not be named {name}, the name of a metric, a state or a "
            "hyperparameter",
        )
    _checks.check_names(f"penalty {penalty}: hparams", penalty.hparams)
    if (penalty.init_state is None) != (penalty.update_state is None):
        raise _checks.ArgumentError(
            f"penalty {penalty}",
            "must have both init_state and update_state, or neither",
        )
