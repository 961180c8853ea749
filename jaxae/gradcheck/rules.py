"""Checks of a differentiation rule in isolation: `check_vjp` and `check_jvp`."""

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxae.gradcheck.checking import check
from jaxae.gradcheck.differences import Line, float64_noise
from jaxae.gradcheck.evidence import Probe, step_units
from jaxae.gradcheck.functions import (
    Float64Function,
    Floats,
    ReferenceFunction,
    autodiff_claim,
)
from jaxae.gradcheck.judging import judge_claim
from jaxae.gradcheck.params import (
    build_tangents,
    complex_to_real,
    is_inexact,
    leaves_by_path,
    read_matching,
    read_params,
    read_seed,
    read_surrogate,
    replace_floats,
    require_callables,
    to_complex_tangent,
    to_real_entries,
)
from jaxae.gradcheck.report import Report, describe_leaf
from jaxae.gradcheck.rounding import as_numpy, canonicalize, is_complex

_ALL = "all"
_REMEDY = (
    "pass tangents of your own as jvp=, or check the transpose of a custom_vjp with "
    "check_vjp"
)


def check_vjp(
    fn: Any,
    params: Any,
    *args: Any,
    vjp: Any = None,
    key: Any = None,
    surrogate: Collection[str] = (),
) -> Report:
    """Check the vector-Jacobian product `vjp` of `fn`, output by output.

        vjp(params, *args, cotangents)  =?  sum_o cotangents_o  d fn_o / d params

    The check is repeated with a random cotangent for one output at a time and zeros for
    the others, then with random cotangents for all outputs, so it detects a rule that
    ignores one of them.

    Args:
      fn: `(params, *args) ->` any pytree of arrays; those that are not floating-point
        are ignored and listed.
      params, args, key, surrogate: as in `check`.
      vjp: `(params, *args, cotangents) ->` a pytree like `params`. As for `jax.vjp`,
        cotangents are a pytree like the output of `fn`, with zeros of dtype `float0`
        for outputs that are not floating-point arrays. None stands for `jax.vjp`, which
        applies the custom rules of `fn`.

    Returns:
      A `Report` whose leaves are keyed "output -> leaf", "all -> leaf" for all outputs
      together, and by the leaf alone where there is one output.

    Raises:
      ValueError: as `check` does; or `fn` returns no floating-point array.

    Example:
      >>> check_vjp(jnp.sin, x, vjp=lambda x, dy: dy * jnp.cos(x)).assert_ok()
    """
    require_callables(fn, vjp, "vjp")
    rng = np.random.default_rng(read_seed(key))
    args = jax.tree.map(canonicalize, args)
    out = fn(params, *args)
    outputs, ignored = _split_outputs(out)

    def weighted_sum(params: Any, cotangents: Floats, *args: Any) -> jax.Array:
        return _weighted_sum(fn(params, *args), cotangents)

    def grad(params: Any, cotangents: Floats, *args: Any) -> Any:
        floats = jax.tree.map(complex_to_real, cotangents)
        claim = vjp(params, *args, build_tangents(out, floats))
        read_matching(claim, params, "vjp", "params")  # raises if it does not match
        return claim

    reports = {}
    for source, paths in _sources(outputs):
        cotangents = {
            path: _random_like(leaf, rng) if path in paths else jnp.zeros_like(leaf)
            for path, leaf in outputs.items()
        }
        reports[source] = check(
            weighted_sum,
            params,
            cotangents,
            *args,
            grad=None if vjp is None else grad,
            key=key,
            surrogate=surrogate,
        )
    return _merge_reports(reports, ignored, unnamed="params")


def check_jvp(
    fn: Any,
    params: Any,
    *args: Any,
    jvp: Any = None,
    key: Any = None,
    surrogate: Collection[str] = (),
) -> Report:
    """Check the Jacobian-vector product `jvp` of `fn`, params leaf by params leaf.

        jvp(params, *args, tangents)  =?  sum_p (d fn / d p) tangents_p

    The check is repeated with a random tangent for one leaf at a time and zeros for the
    others, then with random tangents for all leaves. Every entry of every output is
    judged as `check` judges the entries of a gradient.

    Args:
      fn: `(params, *args) ->` any pytree of arrays; those that are not floating-point
        are ignored and listed.
      params, args, key: as in `check`.
      jvp: `(params, *args, tangents) ->` a pytree like the output of `fn`. As for
        `jax.jvp`, tangents are a pytree like `params`, with zeros of dtype `float0` for
        leaves that are not floating-point. None stands for `jax.jvp`, which applies the
        custom rules of `fn`.
      surrogate: paths of leaves of the params whose tangents are meant to follow
        autodiff instead of the function; "all" leaves them out.

    Returns:
      A `Report` whose leaves are keyed "leaf -> output", "all -> output" for all leaves
      together, and by the output alone where the params are one leaf.

    Raises:
      ValueError: as `check` does; or `fn` returns no floating-point array, or, without
        `jvp`, JAX cannot push tangents through it.

    Example:
      >>> check_jvp(jnp.sin, x, jvp=lambda x, dx: dx * jnp.cos(x)).assert_ok()
    """
    require_callables(fn, jvp, "jvp")
    seed = read_seed(key)
    floats, _ = read_params(params)
    surrogate = read_surrogate(surrogate, floats)
    args = jax.tree.map(canonicalize, args)
    out = fn(replace_floats(params, floats), *args)
    outputs, ignored = _split_outputs(out)
    rng = np.random.default_rng(seed)
    weights = {path: _random_like(leaf, rng) for path, leaf in outputs.items()}

    def output_floats(floats: Floats, args: Any) -> Floats:
        leaves = leaves_by_path(fn(replace_floats(params, floats), *args))
        return {path: complex_to_real(leaves[path]) for path in outputs}

    def loss(floats: Floats, args: Any) -> jax.Array:
        return _weighted_sum(fn(replace_floats(params, floats), *args), weights)

    def claim(tangents: Floats) -> Callable[[Floats], Floats]:
        if jvp is None:
            derivative = functools.partial(_derivative_along, tangents)
            return autodiff_claim(derivative, output_floats, floats, args, _REMEDY)
        pushed = build_tangents(params, tangents)
        return functools.partial(_claimed_outputs, jvp, params, args, pushed, out)

    zeros = {path: np.zeros_like(as_numpy(leaf)) for path, leaf in floats.items()}
    push_forward = functools.partial(_push_forward, output_floats)
    autodiff = Float64Function(push_forward, floats, args, zeros)
    outputs_in_float64 = Float64Function(output_floats, floats, args)
    originals = leaves_by_path(params)
    reports = {}
    for source, paths in _sources(floats, without=surrogate):
        tangents = zeros | {path: _random_tangent(floats[path], rng) for path in paths}
        tangents64 = {path: leaf.astype(np.float64) for path, leaf in tangents.items()}
        reports[source] = judge_claim(
            loss,
            floats,
            args,
            params={path: describe_leaf(originals[path]) for path in floats},
            claim=claim(tangents),
            leaves={path: describe_leaf(leaf) for path, leaf in outputs.items()},
            probes=functools.partial(
                _probe_outputs, outputs_in_float64, tangents64, outputs
            ),
            autodiff=autodiff,
            seeds=[tangents64],
            surrogate=outputs if source in surrogate else (),
            rng=rng,
        )
    return _merge_reports(reports, ignored, unnamed="output")


def _claimed_outputs(
    jvp: Any, params: Any, args: Any, tangents: Any, out: Any, floats: Floats
) -> Floats:
    """The claimed tangents of the outputs by path, as real leaves."""
    claim = jvp(replace_floats(params, floats), *args, tangents)
    leaves = read_matching(claim, out, "jvp", "what fn returns")
    return {path: complex_to_real(leaf) for path, leaf in leaves.items()}


def _derivative_along(
    tangents: Floats, function: Callable[..., Floats]
) -> Callable[..., Floats]:
    return functools.partial(_push_forward, function, tangents=tangents)


def _push_forward(
    function: Callable[..., Floats], floats: Floats, args: Any, tangents: Floats
) -> Floats:
    """The tangents of the outputs by autodiff."""
    cast = {k: jnp.asarray(tangents[k], leaf.dtype) for k, leaf in floats.items()}
    return jax.jvp(lambda floats: function(floats, args), (floats,), (cast,))[1]


def _probe_outputs(
    outputs_in_float64: Float64Function,
    tangents: Floats,
    outputs: dict[str, Any],
    function: ReferenceFunction,
) -> dict[str, Probe]:
    """A probe for each output, as a function of t at points + t tangents."""

    def shift(t: float) -> Floats:
        return {path: x + t * tangents[path] for path, x in function.points.items()}

    @functools.lru_cache(maxsize=64)  # all entries of an output use the same few t
    def evaluate(t: float) -> Floats:
        function.value.calls += 1
        values = outputs_in_float64(shift(t))
        return {path: np.asarray(x).ravel() for path, x in values.items()}

    def probe(path: str) -> Probe:
        def line(direction: np.ndarray, unit: float) -> Line:
            def value(t: float) -> float:
                return float(direction @ evaluate(float(t))[path])

            line = Line(value, value(0.0), 0.0, unit, function.is_coarse)
            return line._replace(noise=float64_noise(line))

        def point(direction: np.ndarray, t: float) -> Floats:
            del direction  # the tangents alone determine the point
            return shift(t)

        is_pair = is_complex(outputs[path])
        to_entries = to_complex_tangent if is_pair else to_real_entries
        units = np.ones(evaluate(0.0)[path].size)
        return Probe(line, point, units, to_entries)

    return {path: probe(path) for path in outputs}


def _split_outputs(out: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The floating-point outputs by path, and the paths of all other outputs."""
    leaves = leaves_by_path(out)
    outputs = {path: leaf for path, leaf in leaves.items() if is_inexact(leaf)}
    if not outputs:
        raise ValueError(
            f"fn must return at least one floating-point array, got {out!r:.80}."
        )
    return outputs, tuple(path for path in leaves if path not in outputs)


def _weighted_sum(out: Any, weights: Floats) -> jax.Array:
    """The real part of the sum of all outputs times their weights."""
    leaves = leaves_by_path(out)
    return sum(
        (jnp.sum(jnp.real(w * leaves[path])) for path, w in weights.items()),
        start=jnp.zeros(()),
    )


def _sources(
    paths: Iterable[str], without: Collection[str] = ()
) -> list[tuple[str, list[str]]]:
    """(name, paths) of each path alone and, if there are several, of all together."""
    each = [(path, [path]) for path in paths]
    together = [path for path in paths if path not in without]
    return each + ([(_ALL, together)] if len(together) > 1 else [])


def _random_like(leaf: Any, rng: np.random.Generator) -> jax.Array:
    """Normal random numbers of the leaf's shape and dtype."""
    draws = rng.normal(size=np.shape(leaf) + (2,) * is_complex(leaf))
    numbers = draws[..., 0] + 1j * draws[..., 1] if is_complex(leaf) else draws
    return jnp.asarray(numbers, canonicalize(leaf).dtype)


def _random_tangent(leaf: Any, rng: np.random.Generator) -> np.ndarray:
    """A random direction with a standard deviation of about each entry's size."""
    point = as_numpy(leaf)
    units = step_units(np.asarray(point, np.float64))
    return (rng.normal(size=point.shape) * units).astype(point.dtype)


def _merge_reports(
    reports: dict[str, Report], ignored: tuple[str, ...], unnamed: str
) -> Report:
    """One report with the leaves of all sources, keyed "source -> leaf"."""
    leaves = {
        path if len(reports) == 1 else f"{source} -> {path or unnamed}": leaf
        for source, report in reports.items()
        for path, leaf in report.leaves.items()
    }
    notes = [note for report in reports.values() for note in report.notes]
    all_ignored = [*ignored, *(path for r in reports.values() for path in r.ignored)]
    cost: Counter[str] = Counter()
    for report in reports.values():
        cost.update(report.cost)
    return Report(
        leaves,
        ignored=tuple(dict.fromkeys(all_ignored)),
        notes=tuple(dict.fromkeys(notes)),
        cost=dict(cost),
    )
