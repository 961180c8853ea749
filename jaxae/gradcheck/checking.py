"""The check itself: claims in the caller's precision, the function in float64."""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxae.gradcheck.evidence import differentiate_nearby, gather, measure_noise
from jaxae.gradcheck.functions import (
    Floats,
    Function,
    UndecidableError,
    compiled,
    in_float64,
    longest_sum,
    scalar,
)
from jaxae.gradcheck.params import (
    fill,
    read_grads,
    read_params,
    read_seed,
    require_callables,
)
from jaxae.gradcheck.report import Leaf, Report
from jaxae.gradcheck.rounding import canonical, narrow, nearby, nudged, tolerance
from jaxae.gradcheck.stochastic import shaken
from jaxae.gradcheck.verdicts import judge

_NUM_NEARBY = 8  # evaluations of the claim one last bit away


def check(
    fn: Any,
    params: Any,
    *args: Any,
    grad: Any = None,
    key: Any = None,
    has_aux: bool = False,
    surrogate: Collection[str] = (),
) -> Report:
    """Judge, leaf by leaf, whether `grad` is the gradient of `fn` at `params`.

        grad(params, *args)  =?  d fn(params, *args) / d params

    Args:
      fn: `(params, *args) -> []`, a real scalar, or `(scalar, aux)` with `has_aux`.
        It is evaluated on float64 copies of the params and of the arrays in `args`,
        on the CPU; what it closes over keeps its own precision.
      params: any pytree of real floating-point arrays or floats. Leaves of any other
        kind are ignored and listed. As everywhere in JAX, a float64 NumPy array counts
        as float32 unless the caller has enabled x64.
      args: passed on; a random key that `fn` needs is one of them.
      grad: `(params, *args) ->` gradient, a pytree like `params`, evaluated as it is,
        in the caller's precision. None stands for `jax.grad(fn)`: custom rules judged.
      key: `jax.random.key` that seeds the sampled entries and directions.
      has_aux: whether `fn` returns `(scalar, aux)`. `grad` never returns aux.
      surrogate: paths of leaves meant to follow autodiff rather than the function
        (straight-through estimators, `stop_gradient`).

    Returns:
      A `Report`, whose leaves are keyed by `jax.tree_util.keystr(path, simple=True,
      separator="/")`. Verdicts: "correct"; "wrong"; "kink", there is no derivative, ok
      if the claim lies between the one-sided ones; "surrogate", claim and autodiff
      agree with each other but not with the function, ok if declared; "undecided",
      not finite, too noisy or not deterministic, never ok.

    Raises:
      ValueError: `fn` or `grad` is not callable, `key` is no random key, `fn` gives no
        real scalar, `params` has no floating-point leaf or a complex one, `grad` has
        another structure or shape, `surrogate` names no leaf.

    Example:
      >>> report = check(lambda p: jnp.sum(p**2), params, grad=lambda p: 2 * p)
      >>> report.assert_ok()
    """
    require_callables(fn, grad)
    seed = read_seed(key)
    floats, ignored = read_params(params, surrogate)
    points = {path: narrow(leaf) for path, leaf in floats.items()}
    args = jax.tree.map(canonical, args)
    rng = np.random.default_rng(seed)

    def loss(floats: Floats, args: Any) -> jax.Array:
        return scalar(fn(fill(params, floats), *args), has_aux)

    def claim(floats: Floats) -> Floats:
        assert grad is not None
        return read_grads(grad(fill(params, floats), *args), params, floats)

    value = compiled(loss, floats, args)
    gradient = claim if grad else compiled(jax.grad(loss), floats, args)
    values = list(map(float, nearby(value, floats, rng, count=_NUM_NEARBY)))
    claims = [gradient(floats), *_shake(gradient, floats, rng)]
    claims = [jax.tree.map(narrow, grads) for grads in claims]
    num_terms = longest_sum(loss, floats, args)
    leaves = {path: Leaf(p.shape, str(p.dtype)) for path, p in points.items()}
    notes: tuple[str, ...] = ()
    cpu = jax.devices("cpu")[0]
    # What is not finite is looked for, so NumPy need not warn of it.
    with jax.enable_x64(True), jax.default_device(cpu), np.errstate(all="ignore"):
        try:
            function = measure_noise(in_float64(loss, points, args, values), rng)
            leaves, notes = _judge_all(function, leaves, claims, num_terms, rng)
        except UndecidableError as reason:
            hint = str(reason)
            leaves = {path: replace(leaf, hint=hint) for path, leaf in leaves.items()}
    for path in surrogate:
        if leaves[path].verdict == "surrogate":
            leaves[path] = replace(leaves[path], ok=True)
    return Report(leaves, ignored, notes)


def _shake(
    gradient: Callable[[Floats], Floats], floats: Floats, rng: np.random.Generator
) -> list[Floats]:
    """The claim with its params and all that it rounds moved by a last bit.

    Where it cannot be traced, only its params move, by two.
    """
    shake = shaken(gradient, floats)
    if shake is None:
        return [gradient(nudged(floats, rng, bits=2)) for _ in range(_NUM_NEARBY)]
    seeds = rng.integers(2**32, size=_NUM_NEARBY)
    return [shake(nudged(floats, rng), int(seed)) for seed in seeds]


def _judge_all(
    function: Function,
    leaves: dict[str, Leaf],
    claims: list[Floats],
    num_terms: int,
    rng: np.random.Generator,
) -> tuple[dict[str, Leaf], tuple[str, ...]]:
    """The leaves with verdicts on claims here and one last bit away; notes."""
    autodiffs, notes = differentiate_nearby(function, rng)
    dtypes, judged = [leaf.dtype for leaf in leaves.values()], {}
    for path, leaf in leaves.items():
        allowed = tolerance([*dtypes, claims[0][path].dtype], num_terms)
        e = gather(function, path, leaf, claims, autodiffs, allowed, rng)
        judged[path] = judge(e)
    return judged, notes
