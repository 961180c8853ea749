"""The check of a gradient."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxae.gradcheck.evidence import Probe, probe_leaf
from jaxae.gradcheck.functions import (
    Float64Function,
    Floats,
    ReferenceFunction,
    autodiff_claim,
    extract_scalar,
)
from jaxae.gradcheck.judging import judge_claim
from jaxae.gradcheck.params import (
    leaves_by_path,
    read_grads,
    read_params,
    read_seed,
    read_surrogate,
    replace_floats,
    require_callables,
    to_complex_gradient,
    to_real_entries,
)
from jaxae.gradcheck.report import Report, describe_leaf
from jaxae.gradcheck.rounding import canonicalize, copy_array, is_complex

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
    """Check, leaf by leaf, whether `grad` is the gradient of `fn` at `params`.

        grad(params, *args)  =?  d fn(params, *args) / d params

    Args:
      fn: `(params, *args) -> []`, a real scalar, or `(scalar, aux)` with `has_aux`.
        It is traced once. The operations that depend on the params are evaluated in
        float64 on the CPU; random numbers and data keep their precision. A function
        that cannot be traced is called again as Python under x64, and a note says so.
      params: any pytree of real or complex floating-point arrays or numbers. Leaves of
        any other kind are ignored and listed. As everywhere in JAX, a float64 NumPy
        array counts as float32 unless the caller has enabled x64.
      args: passed on to `fn` and `grad`, including a random key if they need one.
      grad: `(params, *args) ->` gradient, a pytree like `params`, evaluated in the
        caller's precision. None stands for `jax.grad(fn)`, which checks custom rules.
        A gradient by a complex z follows JAX: df/d(Re z) - i df/d(Im z).
      key: `jax.random.key` that seeds the sampled entries and directions.
      has_aux: whether `fn` returns `(scalar, aux)`. `grad` never returns aux.
      surrogate: paths of leaves that are meant to follow autodiff instead of the
        function (straight-through estimators, `stop_gradient`), and must follow it.

    Returns:
      A `Report`, whose leaves are keyed by `jax.tree_util.keystr(path, simple=True,
      separator="/")`. The verdicts:

      * "correct" or "wrong".
      * "kink": the function has no derivative; ok if the claim lies between the
        one-sided derivatives.
      * "surrogate": claim and autodiff agree with each other but not with the function;
        ok if declared in `surrogate`.
      * "undecided": not finite, too noisy or not deterministic; never ok.

    Raises:
      ValueError: `fn` or `grad` is not callable, `key` is no random key, `fn` does not
        return a real scalar or, without `grad`, cannot be differentiated by JAX,
        `params` has no floating-point leaf, `grad` returns another structure or shape,
        or `surrogate` names no leaf.

    Example:
      >>> report = check(lambda p: jnp.sum(p**2), params, grad=lambda p: 2 * p)
      >>> report.assert_ok()
    """
    require_callables(fn, grad)
    seed = read_seed(key)
    floats, ignored = read_params(params)
    surrogate = read_surrogate(surrogate, floats)
    args = jax.tree.map(canonicalize, args)
    originals = {path: leaves_by_path(params)[path] for path in floats}
    leaves = {path: describe_leaf(leaf) for path, leaf in originals.items()}

    def loss(floats: Floats, args: Any) -> jax.Array:
        return extract_scalar(fn(replace_floats(params, floats), *args), has_aux)

    def claim(floats: Floats) -> Floats:
        assert grad is not None
        copies = jax.tree.map(copy_array, floats)  # grad may donate its arguments
        return read_grads(grad(replace_floats(params, copies), *args), params)

    def probe(function: ReferenceFunction, path: str) -> Probe:
        is_pair = is_complex(originals[path])
        to_entries = to_complex_gradient if is_pair else to_real_entries
        return probe_leaf(function, path, to_entries)

    def gradient(floats: Floats, args: Any, seed: Any) -> Floats:
        value, pull_back = jax.vjp(lambda floats: loss(floats, args), floats)
        return pull_back(jnp.asarray(seed, value.dtype))[0]

    report = judge_claim(
        loss,
        floats,
        args,
        params=leaves,
        claim=claim if grad else autodiff_claim(jax.grad, loss, floats, args, _REMEDY),
        leaves=leaves,
        probes=lambda function: {path: probe(function, path) for path in floats},
        autodiff=Float64Function(gradient, floats, args, np.float32(1)),
        seeds=[np.float64(1)],
        surrogate=surrogate,
        rng=np.random.default_rng(seed),
    )
    return replace(report, ignored=ignored)
