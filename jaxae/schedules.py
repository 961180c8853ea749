"""Schedules: hyperparameters of an objective that change during training.

A schedule replaces one hyperparameter at every step, for the whole objective: the
coefficient of a penalty, the k of topk, a bandwidth, the corruption rate. Its own
numbers are hyperparameters too, so that the lanes of a sweep may differ in them. The
learning rate has schedules of its own (`jaxae.optimizers.build`).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxae import _checks, metrics
from jaxae.terms import Pass


class Schedule(NamedTuple):
    """A hyperparameter as a function of the others and of a state.

    Attributes:
      kind: how it is printed, such as "linear".
      name: the hyperparameter that it replaces, such as "l1" or "k".
      hparams: the names of the hyperparameters that it reads.
      value: `(hparams, state) -> []`, the value at this step.
      init_state: `() ->` a pytree of arrays, carried from step to step.
      update_state: `(hparams, state, p) ->` the state after the step, for the `Pass` p,
        in which the hyperparameter has this step's value.
      check_hparams: `(hparams) -> None`; raises a ValueError for a number out of range.
    """

    kind: str
    name: str
    hparams: tuple[str, ...]
    value: Callable[[Mapping[str, Any], Any], Any]
    init_state: Callable[[], Any]
    update_state: Callable[[Mapping[str, Any], Any, Pass], Any]
    check_hparams: Callable[[Mapping[str, Any]], None]

    @property
    def state_name(self) -> str:
        """The key of its state in the objective's."""
        return f"{self.name}_schedule"

    def __repr__(self) -> str:
        return f"{self.kind}({self.name!r})"

    def __reduce__(self):
        # By name, so that it hits the same compilation caches after unpickling.
        if self.kind in CATALOGUE:
            return CATALOGUE[self.kind], (self.name,)
        return Schedule, tuple(self)


# ---- linear: v_t = start + (end - start) min(t / steps, 1) ---------------------------


@functools.cache  # the same name gives the same object
def linear(name: str) -> Schedule:
    """A linear change to the hyperparameter's own value, which then stays.

        v_t = start + (v - start) min(t / T, 1)

    with v = hparams[name], start = hparams["NAME_start"], T = hparams["NAME_steps"] and
    t the number of steps before. From a start of 0 it is a warm-up of a penalty's
    coefficient; with "k", a falling number of active latents, rounded to an integer.
    """
    start, steps = f"{name}_start", f"{name}_steps"

    def value(hparams, t):
        T = hparams[steps]
        fraction = jnp.where(t < T, t / jnp.maximum(T, 1), 1)
        v = hparams[start] + (hparams[name] - hparams[start]) * fraction
        return jnp.round(v) if name == "k" else v

    def check_hparams(hparams):
        _checks.AT_LEAST_0.check(start, hparams)
        _checks.AT_LEAST_0.check(steps, hparams)

    return Schedule(
        "linear",
        name,
        hparams=(name, start, steps),
        value=value,
        init_state=lambda: jnp.int32(0),
        update_state=lambda hparams, t, p: t + 1,
        check_hparams=check_hparams,
    )


# ---- l0_controller: a coefficient that steers the number of active latents -----------


class L0Integral(NamedTuple):
    """The state of an L0 controller: the sum of its errors."""

    integral: Float[Array, ""]


@functools.cache
def l0_controller(name: str) -> Schedule:
    """A coefficient that steers the mean number of active latents to a target.

        v_t = v exp(gain * sum_{s < t} e_s),  e_s = (L0_s - target) / target, at most 1

    with v = hparams[name], target = hparams["l0_target"], gain = hparams["l0_gain"] and
    L0_s the mean number of latents that are not 0 on the batch of step s. The sum is
    the integral of an integral controller, carried in the state: at rest, L0 is the
    target whatever v is. The errors are bounded because L0 is often many times the
    target at the start, where a larger sum would overshoot and leave dead latents. With
    a gain of 1e-3 the coefficient changes by at most a factor of e in 1000 steps.

    Raises:
      ValueError: for a hyperparameter that is not the coefficient of a penalty.
    """
    if name in ("k", "bandwidth", "corruption_rate"):
        raise _checks.ArgumentError(
            "l0_controller",
            "must set the coefficient of a penalty that makes latents fewer, such as "
            "l1 or l0",
            repr(name),
        )

    def value(hparams, state):
        return hparams[name] * jnp.exp(hparams["l0_gain"] * state.integral)

    def update_state(hparams, state, p):
        target = hparams["l0_target"]
        error = jnp.minimum((metrics.l0(p.z) - target) / target, 1)
        return L0Integral((state.integral + error).astype(state.integral.dtype))

    def check_hparams(hparams):
        _checks.POSITIVE.check(name, hparams)  # 0 times any factor stays 0
        _checks.POSITIVE.check("l0_target", hparams)
        _checks.AT_LEAST_0.check("l0_gain", hparams)

    return Schedule(
        "l0_controller",
        name,
        hparams=(name, "l0_target", "l0_gain"),
        value=value,
        init_state=lambda: L0Integral(jnp.float32(0)),
        update_state=update_state,
        check_hparams=check_hparams,
    )


CATALOGUE: dict[str, Callable[[str], Schedule]] = {
    "linear": linear,
    "l0_controller": l0_controller,
}
