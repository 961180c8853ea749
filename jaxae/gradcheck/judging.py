"""From a claim about derivatives to the report on it."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxae.gradcheck.evidence import (
    Probe,
    Rounding,
    gather,
    max_abs,
    measure_noise,
)
from jaxae.gradcheck.functions import (
    CallCounter,
    Float64Function,
    Floats,
    ReferenceFunction,
    UndecidableError,
    build_reference,
    compile_function,
    longest_sum,
)
from jaxae.gradcheck.report import Leaf, Report
from jaxae.gradcheck.rounding import (
    ROUNDING_FACTOR,
    as_numpy,
    evaluate_nearby,
    float_dtype,
    perturb_last_bits,
    tolerance,
    unit_roundoff,
)
from jaxae.gradcheck.stochastic import perturb_rounding
from jaxae.gradcheck.verdicts import judge_leaf

_NUM_NEARBY = 8  # evaluations of the claim one last bit away
_NOT_REPRODUCED = "the claim is not deterministic: evaluated again, it differs"
_COARSE_NOTE = (
    "fn rounds to less than float64 inside, or calls the host: its noise is measured"
)


def judge_claim(
    loss: Callable[..., Any],
    floats: Floats,
    args: Any,
    *,
    params: dict[str, Leaf],
    claim: Callable[[Floats], Floats],
    leaves: dict[str, Leaf],
    probes: Callable[[ReferenceFunction], dict[str, Probe]],
    autodiff: Float64Function,
    seeds: Sequence[Any],
    surrogate: Collection[str],
    rng: np.random.Generator,
) -> Report:
    """The report on a claim about derivatives of `loss(floats, args)`.

    The claim is evaluated under the caller's configuration of JAX, everything else in
    float64 on the CPU.

    Args:
      loss: `(floats, args) -> []`.
      floats: the params by path, complex ones as real leaves.
      args: the other arguments of `loss`.
      params, leaves: the leaves of the params and of the claim, still undecided.
      claim: `floats ->` the claimed derivatives by path.
      probes: `function ->` a probe for each leaf of the claim.
      autodiff: `(floats, *seeds) ->` the same derivatives by autodiff.
      seeds: for `autodiff`.
      surrogate: paths of the leaves that are meant to follow autodiff.
      rng: draws the perturbations, entries and directions.
    """
    value = compile_function(loss, floats, args)
    values = list(map(float, evaluate_nearby(value, floats, rng, count=_NUM_NEARBY)))
    loss_in_float64 = Float64Function(loss, floats, args)
    is_x64 = float_dtype(0.0) == np.float64

    def evaluate_again() -> float:
        with jax.enable_x64(is_x64):
            return float(compile_function(loss, floats, args)(floats))

    claims, is_reproduced = _evaluate_claim(claim, floats, rng)
    points = {path: as_numpy(leaf) for path, leaf in floats.items()}
    rounding = _expected_rounding(params, claims[0], loss_in_float64.shapes)
    derive = CallCounter(lambda points: autodiff(points, *seeds))
    verdicts = {}
    with _float64_on_cpu():
        try:
            function = build_reference(loss_in_float64, points, values, evaluate_again)
        except UndecidableError as reason:
            hint = str(reason)
            return Report({k: replace(leaf, hint=hint) for k, leaf in leaves.items()})
        function = measure_noise(function, rng)
        autodiffs, notes = _autodiff_nearby(derive, function.points, rng)
        for path, probe in probes(function).items():
            evidence = gather(
                probe,
                leaves[path],
                [grads[path] for grads in claims],
                [grads[path] for grads in autodiffs],
                _leaf_of(derive, path),
                rounding[path],
                rng,
            )
            verdicts[path] = judge_leaf(evidence, path in surrogate)
            if not is_reproduced[path]:
                verdicts[path] = replace(leaves[path], hint=_NOT_REPRODUCED)
    if loss_in_float64.note:
        notes.append(f"fn is {loss_in_float64.note}")
    elif autodiffs and autodiff.note:
        notes.append(f"the derivative of fn is {autodiff.note}")
    notes += [_COARSE_NOTE] * function.is_coarse
    cost = {
        "fn": function.value.calls,
        "claim": len(claims) + 1,  # one of them twice
        "autodiff": derive.calls,
    }
    return Report(verdicts, notes=tuple(notes), cost=cost)


@contextlib.contextmanager
def _float64_on_cpu() -> Iterator[None]:
    with (
        jax.enable_x64(True),
        jax.default_device(jax.devices("cpu")[0]),
        # Values that are not finite have verdicts of their own.
        jax.debug_nans(False),
        np.errstate(all="ignore"),
    ):
        yield


def _leaf_of(derive: CallCounter, path: str) -> Callable[[Floats], Any]:
    return lambda points: derive(points)[path]


def _is_reproduced(first: np.ndarray, second: np.ndarray) -> bool:
    """Equality up to the order in which a device may add the terms of a sum."""
    unit = unit_roundoff(first.dtype)
    a, b = (np.nan_to_num(np.ravel(x).astype(np.float64)) for x in (first, second))
    return not np.any(np.abs(a - b) > ROUNDING_FACTOR * unit * max_abs(a))


def _evaluate_claim(
    claim: Callable[[Floats], Floats], floats: Floats, rng: np.random.Generator
) -> tuple[list[Floats], dict[str, bool]]:
    """The claim at the params and perturbed; which leaves are equal when repeated."""
    evaluations = [claim(floats), claim(floats), *_perturbed_claims(claim, floats, rng)]
    first, second, *perturbed = [jax.tree.map(as_numpy, grads) for grads in evaluations]
    is_reproduced = {path: _is_reproduced(first[path], second[path]) for path in first}
    return [first, *perturbed], is_reproduced


def _perturbed_claims(
    claim: Callable[[Floats], Floats], floats: Floats, rng: np.random.Generator
) -> list[Floats]:
    """The claim with its params and every rounded result perturbed by one last bit.

    Of a claim that cannot be traced only the params are perturbed, by two last bits.
    """
    perturbed_claim = perturb_rounding(claim, floats)
    if perturbed_claim is None:
        nearby = [perturb_last_bits(floats, rng, bits=2) for _ in range(_NUM_NEARBY)]
        return list(map(claim, nearby))
    seeds = rng.integers(2**32, size=_NUM_NEARBY)
    return [
        perturbed_claim(perturb_last_bits(floats, rng), int(seed)) for seed in seeds
    ]


def _autodiff_nearby(
    derive: CallCounter, points: Floats, rng: np.random.Generator
) -> tuple[list[Floats], list[str]]:
    """Autodiff in float64 at the point and one last bit away; a note if it fails."""
    try:
        return evaluate_nearby(derive, points, rng, count=2), []
    except Exception as error:  # a rule may fail in its own way; differences decide
        reason = str(error).partition("\n")[0]
        return [], [f"no float64 autodiff to compare with: {reason:.120}"]


def _expected_rounding(
    params: dict[str, Leaf], claim: Floats, shapes: list[tuple[int, ...]]
) -> dict[str, Rounding]:
    """The rounding error expected of each leaf of the claim, by dtypes and shapes."""
    dtypes = [leaf.dtype for leaf in params.values()]
    num_terms = longest_sum([leaf.shape for leaf in params.values()] + shapes)
    batch_sizes = frozenset(shape[0] for shape in shapes if shape)
    return {
        path: Rounding(tolerance([*dtypes, leaf.dtype], num_terms), batch_sizes)
        for path, leaf in claim.items()
    }
