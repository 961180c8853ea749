"""Optimizers: functions of hyperparameters, hparams -> optax.GradientTransformation.

Training calls them inside the traced function, so that hyperparameters are traced: a
new value does not recompile, and the lanes of a sweep may differ in it. `build` adds a
schedule, warm-up, clipping, accumulation and decoder rows of norm 1. An optimizer of
your own:

    lambda hp: optax.chain(optax.clip(hp["limit"]), optax.lion(hp["learning_rate"]))
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32

from jaxae import _checks
from jaxae._checks import AT_LEAST_0, POSITIVE, Range

F = TypeVar("F", bound=Callable[..., Any])
Optimizer = Callable[[Mapping[str, Any]], optax.GradientTransformation]
Schedule = Callable[[Any, Mapping[str, Any]], Any]

_LEARNING_RATE = AT_LEAST_0._replace(
    reason="a negative learning rate increases the loss"
)
_RANGES: dict[Callable[..., Any], dict[str, Range]] = {}


def _with_ranges(**ranges: Range) -> Callable[[F], F]:
    """Register the ranges of the hyperparameters that a function reads."""

    def register(function: F) -> F:
        _RANGES[function] = ranges
        return function

    return register


def check_hparams(optimizer: Optimizer, hparams: Mapping[str, Any]) -> None:
    """Check the ranges of an optimizer's hyperparameters, which must not be traced.

    These are the learning rate of any optimizer, what the optimizers of this module
    read, and what the optimizer's own `check_hparams(hparams)` checks, if it has one.

    Raises:
      ValueError: naming a hyperparameter, its value and its range.
    """
    _LEARNING_RATE.check("learning_rate", hparams)
    _check_ranges(optimizer, hparams)
    if hasattr(optimizer, "check_hparams"):
        optimizer.check_hparams(hparams)


def _check_ranges(function: Callable[..., Any], hparams: Mapping[str, Any]) -> None:
    for name, values in _RANGES.get(function, {}).items():
        values.check(name, hparams)


def adam(hparams: Mapping[str, Any]) -> optax.GradientTransformation:
    """Adam; reads `learning_rate`. Kingma and Ba, 2015."""
    return optax.adam(hparams["learning_rate"])


def sgd(hparams: Mapping[str, Any]) -> optax.GradientTransformation:
    """Stochastic gradient descent; reads `learning_rate`."""
    return optax.sgd(hparams["learning_rate"])


@_with_ranges(momentum=Range(lambda x: 0 <= x < 1, "at least 0 and below 1"))
def momentum(hparams: Mapping[str, Any]) -> optax.GradientTransformation:
    """Gradient descent with heavy-ball momentum; reads `learning_rate`, `momentum`."""
    return optax.sgd(hparams["learning_rate"], momentum=hparams["momentum"])


@_with_ranges(adamw_decay=AT_LEAST_0)
def adamw(hparams: Mapping[str, Any]) -> optax.GradientTransformation:
    """Adam with decoupled decay; reads `learning_rate`, `adamw_decay`.

    Loshchilov and Hutter, 2019. The name weight_decay is that of a penalty.
    """
    return optax.adamw(hparams["learning_rate"], weight_decay=hparams["adamw_decay"])


def rmsprop(hparams: Mapping[str, Any]) -> optax.GradientTransformation:
    """RMSProp; reads `learning_rate`. Tieleman and Hinton, 2012."""
    return optax.rmsprop(hparams["learning_rate"])


CATALOGUE: dict[str, Optimizer] = {
    o.__name__: o for o in (adam, sgd, momentum, adamw, rmsprop)
}


def get(name: str) -> Optimizer:
    """Return the optimizer of that name.

    Raises:
      ValueError: for an unknown name; the message lists the known ones.
    """
    return _checks.lookup("optimizer", CATALOGUE, name)


_FRACTION = Range(lambda x: 0 <= x <= 1, "between 0 and 1")
_POSITIVE_FRACTION = Range(
    lambda x: 0 < x <= 1,
    "above 0 and at most 1",
    "final_fraction=0 sets the learning rate to 0 after the first update",
)

# ---- schedules: (count, hparams) -> the factor on the learning rate at that update ---
# optax's own schedules branch in Python on their arguments, which fails for traced
# values. A factor on the updates has the same effect, since every optimizer of the
# catalogue has the update -learning_rate * direction.


def constant(count, hparams: Mapping[str, Any]):
    """The constant 1; reads no hyperparameters."""
    del count, hparams
    return 1.0


@_with_ranges(schedule_steps=AT_LEAST_0, final_fraction=_FRACTION)
def linear(count, hparams: Mapping[str, Any]):
    """Linear decay from 1 to f over T updates, then constant.

        1 + (f - 1) t, t = min(count / T, 1)

    Reads T = max(`schedule_steps`, 1) and f = `final_fraction`.
    """
    t = jnp.minimum(_elapsed(count, hparams), 1)
    return 1 + (hparams["final_fraction"] - 1) * t


@_with_ranges(schedule_steps=AT_LEAST_0, final_fraction=_FRACTION)
def cosine(count, hparams: Mapping[str, Any]):
    """Cosine decay from 1 to f over T updates, then constant.

        f + (1 - f) (1 + cos(pi t)) / 2, t = min(count / T, 1)

    Reads T = max(`schedule_steps`, 1) and f = `final_fraction`. Loshchilov and Hutter,
    SGDR, 2017, without restarts.
    """
    t = jnp.minimum(_elapsed(count, hparams), 1)
    final_fraction = hparams["final_fraction"]
    return final_fraction + (1 - final_fraction) * (1 + jnp.cos(jnp.pi * t)) / 2


@_with_ranges(schedule_steps=AT_LEAST_0, final_fraction=_POSITIVE_FRACTION)
def exponential(count, hparams: Mapping[str, Any]):
    """f^(count / T): f after T updates, f^2 after 2 T, and so on.

    Reads T = max(`schedule_steps`, 1) and f = `final_fraction`, above 0.
    """
    return hparams["final_fraction"] ** _elapsed(count, hparams)


SCHEDULES: dict[str, Schedule] = {
    s.__name__: s for s in (constant, linear, cosine, exponential)
}


def _elapsed(count, hparams):
    return count / jnp.maximum(hparams["schedule_steps"], 1)


# ---- build ---------------------------------------------------------------------------


def build(
    optimizer, *, schedule=None, warmup=False, clip=False, accumulate=1, unit_norm=False
) -> Optimizer:
    """An optimizer with a schedule, warm-up, clipping, accumulation and unit norm.

        update = -learning_rate * schedule(count) * direction(clipped mean gradient)

    where count is the number of updates before this one. As in `optax.adamw(schedule)`,
    the schedule also multiplies AdamW's decay. Equal arguments, by name or by function,
    give the same object, which as a static argument compiles once.

    Args:
      optimizer: `hparams -> optax.GradientTransformation` with updates proportional to
        its learning rate, or a name in CATALOGUE.
      schedule: `(count, hparams) -> factor`, or a name in SCHEDULES; None is constant.
      warmup: whether the factor min(count / w, 1), w = hparams["warmup_steps"] >= 0,
        precedes the schedule, so that the first update is 0. With cosine this is
        `optax.warmup_cosine_decay_schedule` from 0 with decay_steps w + T.
      clip: whether to scale gradients with a global norm above hparams["max_norm"] to
        that norm.
      accumulate: the number of steps whose gradients are averaged for one update.
        Clipping acts on the average.
      unit_norm: whether each update leaves the decoder rows w, those of params.W_dec or
        params.W, at norm 1. First of all, the gradient g of a row loses its component
        along the row, which would change the norm alone: g - (g . u) u, u = w / ||w||.
        Clipping then acts on the gradient of the constrained problem. Last of all, the
        update d of a row becomes (w + d) / ||w + d|| - w. Rows of the initial
        parameters get norm 1 from the first update; rows that are 0 stay 0. Bricken et
        al., Towards Monosemanticity, 2023.

    Raises:
      ValueError: if a name is unknown, an argument is not a function or a bool, or
        accumulate is below 1. With unit_norm, the transformation raises one for params
        that have neither W_dec nor W.
    """
    return _build(
        _function("optimizer", CATALOGUE, optimizer),
        _function("schedule", SCHEDULES, constant if schedule is None else schedule),
        _checks.boolean("warmup", warmup, "set its value with hparams['warmup_steps']"),
        _checks.boolean("clip", clip, "set its value with hparams['max_norm']"),
        _checks.positive_int("accumulate", accumulate),
        _checks.boolean("unit_norm", unit_norm),
    )


def name_of(optimizer: Callable[..., Any]) -> str:
    """Such as "adam" or "adam+cosine+warmup+clip+accumulate(4)+unit_norm"."""
    return getattr(optimizer, "__name__", None) or repr(optimizer)


@functools.cache
def _build(
    optimizer, schedule, warmup: bool, clip: bool, accumulate: int, unit_norm: bool
) -> Optimizer:
    # build("adam") is adam itself, so that both share their compiled programs.
    is_plain = not (warmup or clip or unit_norm) and accumulate == 1
    if is_plain and schedule is constant:
        return optimizer
    return _Built(optimizer, schedule, warmup, clip, accumulate, unit_norm)


@dataclass(frozen=True, repr=False)
class _Built:
    """What `build` returns, a record so that it has a repr and can be pickled."""

    optimizer: Optimizer
    schedule: Schedule
    warmup: bool
    clip: bool
    accumulate: int
    unit_norm: bool

    def __call__(self, hparams: Mapping[str, Any]) -> optax.GradientTransformation:
        # `train` records which hyperparameters this call reads. A schedule reads them
        # only at an update, so evaluate it once here.
        self._factor(jnp.int32(0), hparams)
        factor = functools.partial(self._factor, hparams=hparams)
        transformations = [_clip(hparams["max_norm"])] if self.clip else []
        transformations.append(self.optimizer(hparams))
        if self.warmup or self.schedule is not constant:
            transformations.append(optax.scale_by_schedule(factor))
        if self.unit_norm:
            transformations = [_tangential(), *transformations, _to_unit_norm()]
        chain = optax.chain(*transformations)
        return chain if self.accumulate == 1 else _accumulate(chain, self.accumulate)

    def check_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Check the ranges of the hyperparameters, which must not be traced."""
        check_hparams(self.optimizer, hparams)
        _check_ranges(self.schedule, hparams)
        if self.clip:
            POSITIVE.check("max_norm", hparams)
        if self.warmup:
            AT_LEAST_0.check("warmup_steps", hparams)

    def _factor(self, count, hparams):
        """schedule(count), or with warm-up as in `build`."""
        if not self.warmup:
            return self.schedule(count, hparams)
        w = hparams["warmup_steps"]
        warmup = jnp.where(count < w, count / jnp.maximum(w, 1), 1)
        return warmup * self.schedule(jnp.maximum(count - w, 0), hparams)

    @property
    def __name__(self) -> str:
        names = [name_of(self.optimizer)]
        names += [name_of(self.schedule)] if self.schedule is not constant else []
        names += ["warmup"] if self.warmup else []
        names += ["clip"] if self.clip else []
        names += [f"accumulate({self.accumulate})"] if self.accumulate > 1 else []
        names += ["unit_norm"] if self.unit_norm else []
        return "+".join(names)

    def __repr__(self) -> str:
        return self.__name__

    def __reduce__(self):
        fields = (self.optimizer, self.schedule, self.warmup, self.clip)
        return _build, (*fields, self.accumulate, self.unit_norm)


def _clip(max_norm) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` for a dtype of gradients other than max_norm's."""
    clip = optax.clip_by_global_norm(max_norm)

    def update(grads, state, params=None):
        # optax selects between the gradient and its multiple. With a traced max_norm
        # these differ in dtype if the gradient is in half precision.
        dtype = jnp.result_type(jnp.float32, max_norm, *jax.tree.leaves(grads))
        cast = jax.tree.map(lambda leaf: leaf.astype(dtype), grads)
        clipped, state = clip.update(cast, state, params)
        return jax.tree.map(_cast_like, clipped, grads), state

    return optax.GradientTransformation(clip.init, update)


# ---- decoder rows of norm 1 ----------------------------------------------------------


def _tangential() -> optax.GradientTransformation:
    """Remove from the gradient of each decoder row its component along the row."""

    def tangential(grad, rows):
        direction = _unit_rows(rows)
        along = jnp.sum(grad * direction, axis=-1, keepdims=True)
        return (grad - along * direction).astype(grad.dtype)

    return _on_decoder_rows(tangential)


def _to_unit_norm() -> optax.GradientTransformation:
    """Change the update so that each decoder row has norm 1 after it."""

    def to_unit_norm(update, rows):
        rows = rows.astype(_at_least_float32(rows))
        is_zero = jnp.all(rows == 0, axis=-1, keepdims=True)  # such as padding
        # In the wide dtype, so that rows in half precision are rounded once.
        return jnp.where(is_zero, 0, _unit_rows(rows + update) - rows)

    return _on_decoder_rows(to_unit_norm)


def _on_decoder_rows(function) -> optax.GradientTransformation:
    """`function(updates, rows)` on the one leaf that holds the decoder's rows."""

    def init(params):
        _decoder_rows(params)
        return optax.EmptyState()

    def update(updates, state, params=None):
        name = _decoder_rows(params)
        changed = function(getattr(updates, name), getattr(params, name))
        return updates._replace(**{name: changed}), state

    return optax.GradientTransformation(init, update)


def _decoder_rows(params) -> str:
    """The name of the leaf whose rows are those of the decoder."""
    for name in ("W_dec", "W"):
        if name in getattr(params, "_fields", ()):
            return name
    raise _checks.ArgumentError(
        "unit_norm",
        "must be False for parameters that have neither a field W_dec nor W",
        type(params).__name__ if params is None else _checks.outline(params),
    )


def _unit_rows(rows):
    """Each row divided by its norm, at least in float32; rows that are 0 stay 0."""
    rows = rows.astype(_at_least_float32(rows))
    largest = jnp.max(jnp.abs(rows), axis=-1, keepdims=True)
    is_zero = largest == 0
    scaled = rows / jnp.where(is_zero, 1, largest)  # their squares do not overflow
    norms = jnp.linalg.norm(scaled, axis=-1, keepdims=True)
    return scaled / jnp.where(is_zero, 1, norms)


def _at_least_float32(array):
    return jnp.promote_types(array.dtype, jnp.float32)


# ---- accumulation --------------------------------------------------------------------


class AccumulatorState(NamedTuple):
    """The gradients accumulated since the last update."""

    mini_step: Int32[Array, ""]  # number of accumulated gradients
    mean: Any  # of these gradients, a pytree like params, at least float32
    inner: Any  # the state of the optimizer


def _accumulate(
    inner: optax.GradientTransformation, num_steps: int
) -> optax.GradientTransformation:
    """`optax.MultiSteps`, whose accumulator has no fixed dtype before optax 0.2.6."""

    def init(params):
        def zeros(leaf):
            return jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))

        return AccumulatorState(
            jnp.int32(0), jax.tree.map(zeros, params), inner.init(params)
        )

    def update(grads, state, params=None):
        count = state.mini_step + 1
        mean = jax.tree.map(lambda m, g: m + (g - m) / count, state.mean, grads)
        is_due = count == num_steps
        average = jax.tree.map(_cast_like, mean, grads)
        updates, inner_state = inner.update(average, state.inner, params)

        def where_due(new, old):
            return jnp.where(is_due, new.astype(old.dtype), old)

        def zero_where(is_zero, tree):
            return jax.tree.map(lambda leaf: jnp.where(is_zero, 0, leaf), tree)

        return zero_where(~is_due, updates), AccumulatorState(
            mini_step=count % num_steps,
            mean=zero_where(is_due, mean),
            inner=jax.tree.map(where_due, inner_state, state.inner),
        )

    return optax.GradientTransformation(init, update)


def _cast_like(new, old):
    return new.astype(old.dtype)


def _function(kind: str, catalogue: Mapping[str, Any], value: Any) -> Any:
    return value if callable(value) else _checks.lookup(kind, catalogue, value)
