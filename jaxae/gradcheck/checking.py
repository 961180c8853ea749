"""The check itself: claims in the caller's precision, the function in float64."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxae.gradcheck.evidence import Probe, probe_leaf
from jaxae.gradcheck.functions import Floats, Function, Referee, own_derivative, scalar
from jaxae.gradcheck.judging import judged
from jaxae.gradcheck.params import (
    fill,
    gradient_numbers,
    leaves_by_path,
    read_grads,
    read_params,
    read_seed,
    read_surrogate,
    real_numbers,
    require_callables,
)
from jaxae.gradcheck.report import Report, described
from jaxae.gradcheck.rounding import canonical, copied, is_complex

_REMEDY = "pass a gradient of your own, as grad= or, in check_vjp, as vjp="


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
        It is traced once. Of the trace, what depends on the params is evaluated in
        float64, on the CPU; random numbers and data stay as they are. Only what cannot
        be traced is run again, as Python under x64; a note then says so.
      params: any pytree of real or complex floating-point arrays or numbers. Leaves of
        any other kind are ignored and listed. As everywhere in JAX, a float64 NumPy
        array counts as float32 unless the caller has enabled x64.
      args: passed on; a random key that `fn` needs is one of them.
      grad: `(params, *args) ->` gradient, a pytree like `params`, evaluated as it is,
        in the caller's precision. None stands for `jax.grad(fn)`: custom rules judged.
        By a complex z it is JAX's, df/d(Re z) - i df/d(Im z).
      key: `jax.random.key` that seeds the sampled entries and directions.
      has_aux: whether `fn` returns `(scalar, aux)`. `grad` never returns aux.
      surrogate: paths of leaves meant to follow autodiff rather than the function
        (straight-through estimators, `stop_gradient`). There, claims must do so.

    Returns:
      A `Report`, whose leaves are keyed by `jax.tree_util.keystr(path, simple=True,
      separator="/")`. Verdicts: "correct"; "wrong"; "kink", there is no derivative, ok
      if the claim lies between the one-sided ones; "surrogate", claim and autodiff
      agree with each other but not with the function, ok if declared; "undecided",
      not finite, too noisy or not deterministic, never ok.

    Raises:
      ValueError: `fn` or `grad` is not callable, `key` is no random key, `fn` gives no
        real scalar or, without `grad`, cannot be differentiated by JAX, `params` has no
        floating-point leaf, `grad` has another structure or shape, `surrogate` names no
        leaf.

    Example:
      >>> report = check(lambda p: jnp.sum(p**2), params, grad=lambda p: 2 * p)
      >>> report.assert_ok()
    """
    require_callables(fn, grad)
    seed = read_seed(key)
    floats, ignored = read_params(params)
    surrogate = read_surrogate(surrogate, floats)
    args = jax.tree.map(canonical, args)
    given = {path: leaves_by_path(params)[path] for path in floats}
    leaves = {path: described(leaf) for path, leaf in given.items()}

    def loss(floats: Floats, args: Any) -> jax.Array:
        return scalar(fn(fill(params, floats), *args), has_aux)

    def claim(floats: Floats) -> Floats:
        assert grad is not None  # it gets copies: it may donate them
        copies = jax.tree.map(copied, floats)
        return read_grads(grad(fill(params, copies), *args), params)

    def probes(function: Function) -> dict[str, Probe]:
        numbers = {
            path: gradient_numbers if is_complex(leaf) else real_numbers
            for path, leaf in given.items()
        }
        return {path: probe_leaf(function, path, numbers[path]) for path in floats}

    def gradient(floats: Floats, args: Any, seed: Any) -> Floats:
        value, pull_back = jax.vjp(lambda floats: loss(floats, args), floats)
        return pull_back(jnp.asarray(seed, value.dtype))[0]

    report = judged(
        loss,
        floats,
        args,
        given=leaves,
        claim=claim if grad else own_derivative(jax.grad, loss, floats, args, _REMEDY),
        leaves=leaves,
        probes=probes,
        autodiff=Referee(gradient, floats, args, np.float32(1)),
        seeds=[np.float64(1)],
        surrogate=surrogate,
        rng=np.random.default_rng(seed),
    )
    return replace(report, ignored=ignored)
