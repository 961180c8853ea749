"""A differentiation rule in isolation: its transposes and its tangents."""

import functools
from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxae.gradcheck.checking import check
from jaxae.gradcheck.differences import Line, float64_noise
from jaxae.gradcheck.evidence import Probe, natural_sizes
from jaxae.gradcheck.functions import Floats, Function, Referee, own_derivative
from jaxae.gradcheck.judging import judged
from jaxae.gradcheck.params import (
    fill,
    fill_tangents,
    in_parts,
    is_number,
    leaves_by_path,
    read_like,
    read_params,
    read_seed,
    read_surrogate,
    real_numbers,
    require_callables,
    tangent_numbers,
)
from jaxae.gradcheck.report import Report, described
from jaxae.gradcheck.rounding import canonical, is_complex, narrow

_ALL = "all"
_REMEDY = (
    "pass tangents of your own as jvp=, or judge the transpose of a custom_vjp with "
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
    """Judge whether `vjp` pulls the cotangents of every output of `fn` back.

        vjp(params, *args, cotangents)  =?  sum_o cotangents_o  d fn_o / d params

    Each output has a random cotangent of its own while those of all others are zero;
    then all have one together. So a rule that ignores one of them is found.

    Args:
      fn: `(params, *args) ->` any pytree of arrays; those that are not floating-point
        are ignored and listed.
      params, args, key, surrogate: as in `check`.
      vjp: `(params, *args, cotangents) ->` a pytree like `params`. Cotangents are a
        pytree like what `fn` returns, with zeros of dtype `float0` where that is no
        floating-point array, as `jax.vjp` has it. None stands for the rule that
        `fn` carries, which `jax.vjp` uses.

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
    args = jax.tree.map(canonical, args)
    out = fn(params, *args)
    outputs, ignored = _numbers(out)

    def weighted(params: Any, cotangents: Floats, *args: Any) -> jax.Array:
        return _weighted(fn(params, *args), cotangents)

    def pulled_back(params: Any, cotangents: Floats, *args: Any) -> Any:
        parts = jax.tree.map(in_parts, cotangents)
        claim = vjp(params, *args, fill_tangents(out, parts))
        read_like(claim, params, "vjp", "params")  # refuses what is not like them
        return claim

    reports = {}
    for source, chosen in _each_and_all(outputs):
        cotangents = {
            path: _draw(leaf, rng) if path in chosen else jnp.zeros_like(leaf)
            for path, leaf in outputs.items()
        }
        reports[source] = check(
            weighted,
            params,
            cotangents,
            *args,
            grad=None if vjp is None else pulled_back,
            key=key,
            surrogate=surrogate,
        )
    return _merged(reports, ignored, unnamed="params")


def check_jvp(
    fn: Any,
    params: Any,
    *args: Any,
    jvp: Any = None,
    key: Any = None,
    surrogate: Collection[str] = (),
) -> Report:
    """Judge whether `jvp` pushes the tangents of every leaf of the params forward.

        jvp(params, *args, tangents)  =?  sum_p (d fn / d p) tangents_p

    Each leaf has a random tangent of its own while those of all others are zero; then
    all have one together. Every entry of every output is judged as `check` judges the
    entries of a gradient.

    Args:
      fn: `(params, *args) ->` any pytree of arrays; those that are not floating-point
        are ignored and listed.
      params, args, key: as in `check`.
      jvp: `(params, *args, tangents) ->` a pytree like what `fn` returns. Tangents are
        a pytree like `params`, with zeros of dtype `float0` where it has no
        floating-point leaf, as `jax.jvp` has it. None stands for the rule that `fn`
        carries, which `jax.jvp` uses.
      surrogate: paths of leaves of the params whose tangents are meant to follow
        autodiff rather than the function; they take no part in "all".

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
    args = jax.tree.map(canonical, args)
    out = fn(fill(params, floats), *args)
    outputs, ignored = _numbers(out)
    given = {path: described(leaves_by_path(params)[path]) for path in floats}
    leaves = {path: described(leaf) for path, leaf in outputs.items()}
    rng = np.random.default_rng(seed)
    weights = {path: _draw(leaf, rng) for path, leaf in outputs.items()}

    def in_outputs(floats: Floats, args: Any) -> Floats:
        found = leaves_by_path(fn(fill(params, floats), *args))
        return {path: in_parts(found[path]) for path in outputs}

    def loss(floats: Floats, args: Any) -> jax.Array:
        return _weighted(fn(fill(params, floats), *args), weights)

    push = functools.partial(_push_by_autodiff, in_outputs)
    still = {path: np.zeros_like(narrow(leaf)) for path, leaf in floats.items()}
    autodiff = Referee(push, floats, args, still)
    in_float64 = Referee(in_outputs, floats, args)
    reports = {}
    for source, chosen in _each_and_all(floats, without=surrogate):
        tangents = still | {path: _tangent(floats[path], rng) for path in chosen}
        wide = {path: move.astype(np.float64) for path, move in tangents.items()}
        claimed = functools.partial(_push, jvp, fn, params, args, out, tangents)
        derivative = functools.partial(_pusher, tangents)
        own = own_derivative(derivative, in_outputs, floats, args, _REMEDY)
        reports[source] = judged(
            loss,
            floats,
            args,
            given=given,
            claim=own if jvp is None else claimed,
            leaves=leaves,
            probes=functools.partial(_probe_outputs, in_float64, wide, outputs),
            autodiff=autodiff,
            seeds=[wide],
            surrogate=outputs if source in surrogate else (),
            rng=rng,
        )
    return _merged(reports, ignored, unnamed="output")


def _push(
    jvp: Any, fn: Any, params: Any, args: Any, out: Any, tangents: Floats, at: Floats
) -> Floats:
    """What is claimed of the outputs' tangents."""
    claim = jvp(fill(params, at), *args, fill_tangents(params, tangents))
    found = read_like(claim, out, "jvp", "what fn returns")
    return {path: in_parts(leaf) for path, leaf in found.items()}


def _push_by_autodiff(
    in_outputs: Callable[..., Floats], floats: Floats, args: Any, tangents: Floats
) -> Floats:
    moves = {k: jnp.asarray(tangents[k], leaf.dtype) for k, leaf in floats.items()}
    return jax.jvp(lambda floats: in_outputs(floats, args), (floats,), (moves,))[1]


def _pusher(tangents: Floats, in_outputs: Callable[..., Floats]) -> Any:
    return functools.partial(_push_by_autodiff, in_outputs, tangents=tangents)


def _probe_outputs(
    value: Referee, moves: Floats, outputs: dict[str, Any], function: Function
) -> dict[str, Probe]:
    """Every output as a function of t at points + t moves."""

    @functools.lru_cache(maxsize=64)  # many entries ask for the same few t
    def at(t: float) -> Floats:
        function.value.calls += 1
        found = value({k: x + t * moves[k] for k, x in function.points.items()})
        return {path: np.asarray(x).ravel() for path, x in found.items()}

    def probe(path: str) -> Probe:
        def line(vector: np.ndarray, size: float) -> Line:
            def project(t: float) -> float:
                return float(vector @ at(float(t))[path])

            line = Line(project, project(0.0), 0.0, size, function.is_coarse)
            return line._replace(noise=float64_noise(line))

        numbers = tangent_numbers if is_complex(outputs[path]) else real_numbers

        def moved(vector: np.ndarray, t: float) -> Floats:
            return {path: x + t * moves[path] for path, x in function.points.items()}

        sizes = np.ones(at(0.0)[path].size)
        return Probe(line, moved, sizes, numbers)

    return {path: probe(path) for path in outputs}


def _numbers(out: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The floating-point arrays that a function returns, and the paths of all else."""
    leaves = leaves_by_path(out)
    numbers = {path: leaf for path, leaf in leaves.items() if is_number(leaf)}
    if not numbers:
        raise ValueError(
            f"fn must return at least one floating-point array, got {out!r:.80}."
        )
    return numbers, tuple(path for path in leaves if path not in numbers)


def _weighted(out: Any, weights: Floats) -> jax.Array:
    """The sum of all outputs times their weights, its real part."""
    leaves = leaves_by_path(out)
    return sum(
        (jnp.sum(jnp.real(w * leaves[path])) for path, w in weights.items()),
        start=jnp.zeros(()),
    )


def _each_and_all(
    paths: Iterable[str], without: Collection[str] = ()
) -> list[tuple[str, list[str]]]:
    """Names of sources, and the paths that each stands for."""
    together = [path for path in paths if path not in without]
    each = [(path, [path]) for path in paths]
    return each + ([(_ALL, together)] if len(together) > 1 else [])


def _draw(leaf: Any, rng: np.random.Generator) -> jax.Array:
    """Random numbers in place of a leaf's."""
    parts = rng.normal(size=np.shape(leaf) + (2,) * is_complex(leaf))
    numbers = parts[..., 0] + 1j * parts[..., 1] if is_complex(leaf) else parts
    return jnp.asarray(numbers, canonical(leaf).dtype)


def _tangent(leaf: Any, rng: np.random.Generator) -> np.ndarray:
    """A random direction in which a step of 1 moves every entry by about its size."""
    point = narrow(leaf)
    sizes = natural_sizes(np.asarray(point, np.float64))
    return (rng.normal(size=point.shape) * sizes).astype(point.dtype)


def _merged(
    reports: dict[str, Report], ignored: tuple[str, ...], unnamed: str
) -> Report:
    """One report on what each source says of each leaf."""
    leaves = {
        path if len(reports) == 1 else f"{source} -> {path or unnamed}": leaf
        for source, report in reports.items()
        for path, leaf in report.leaves.items()
    }
    notes = [note for report in reports.values() for note in report.notes]
    others = [path for report in reports.values() for path in report.ignored]
    cost: dict[str, int] = {}
    for report in reports.values():
        for name, count in report.cost.items():
            cost[name] = cost.get(name, 0) + count
    return Report(
        leaves,
        ignored=tuple(dict.fromkeys((*ignored, *others))),
        notes=tuple(dict.fromkeys(notes)),
        cost=cost,
    )
