"""From a claim to the verdicts on it, whichever derivatives it is a claim of."""

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxae.gradcheck.evidence import (
    Probe,
    Rounding,
    gather,
    largest,
    measure_noise,
)
from jaxae.gradcheck.functions import (
    Counted,
    Floats,
    Function,
    Referee,
    UndecidableError,
    compiled,
    in_float64,
    longest_sum,
)
from jaxae.gradcheck.report import Leaf, Report
from jaxae.gradcheck.rounding import (
    ROUNDINGS,
    float_dtype,
    narrow,
    nearby,
    perturbed,
    tolerance,
    unit_roundoff,
)
from jaxae.gradcheck.stochastic import perturbed_claim
from jaxae.gradcheck.verdicts import judge

_NUM_NEARBY = 8  # evaluations of the claim one last bit away


def judged(
    loss: Callable[..., Any],
    floats: Floats,
    args: Any,
    *,
    given: dict[str, Leaf],
    claim: Callable[[Floats], Floats],
    leaves: dict[str, Leaf],
    probes: Callable[[Function], dict[str, Probe]],
    autodiff: Referee,
    seeds: Sequence[Any],
    surrogate: Collection[str],
    rng: np.random.Generator,
) -> Report:
    """The report on a claim about derivatives of `loss(floats, args)`.

    `given` are the leaves that it is a function of, as the caller wrote them; `leaves`
    those of the claim, whose paths `probes` and `autodiff(points, *seeds)` share. The
    claim is evaluated as the caller has set up JAX; all else in float64, on the CPU.
    """
    value = compiled(loss, floats, args)
    values = list(map(float, nearby(value, floats, rng, count=_NUM_NEARBY)))
    referee, is_x64 = Referee(loss, floats, args), float_dtype(0.0) == np.float64

    def evaluate_again() -> float:
        with jax.enable_x64(is_x64):
            return float(compiled(loss, floats, args)(floats))

    claims = [claim(floats), claim(floats), *_shake(claim, floats, rng)]
    first, again, *others = [jax.tree.map(narrow, found) for found in claims]
    claims = [first, *others]
    points = {path: narrow(leaf) for path, leaf in floats.items()}
    allowed = _rounding(given, claims[0], referee.shapes)
    cpu = jax.devices("cpu")[0]
    # What is not finite is looked for, so NumPy need not warn of it.
    with (
        jax.enable_x64(True),
        jax.default_device(cpu),
        jax.debug_nans(False),
        np.errstate(all="ignore"),
    ):
        try:
            function = in_float64(referee, points, values, evaluate_again)
            function = measure_noise(function, rng)
        except UndecidableError as reason:
            hint = str(reason)
            return Report({k: replace(leaf, hint=hint) for k, leaf in leaves.items()})
        derive = Counted(lambda points: autodiff(points, *seeds))
        theirs, notes = _autodiff_nearby(derive, function.points, rng)
        verdicts = {}
        for path, probe in probes(function).items():
            e = gather(
                probe,
                leaves[path],
                [found[path] for found in claims],
                [found[path] for found in theirs],
                functools.partial(_derive_one, derive, path),
                allowed[path],
                rng,
            )
            verdicts[path] = judge(e, path in surrogate)
            if not _is_same(first[path], again[path]):
                hint = "the claim is not deterministic: evaluated again, it differs"
                verdicts[path] = replace(leaves[path], hint=hint)
    if referee.note:
        notes.append(f"fn is {referee.note}")
    elif theirs and autodiff.note:
        notes.append(f"the derivative of fn is {autodiff.note}")
    if function.is_coarse:
        notes.append(
            "fn rounds to less than float64 inside, or is out of sight: noise is "
            "allowed for"
        )
    counts = (function.value.calls, len(claims) + 1, derive.calls)
    cost = dict(zip(("fn", "claim", "autodiff"), counts, strict=True))
    return Report(verdicts, notes=tuple(notes), cost=cost)


def _derive_one(derive: Counted, path: str, points: Floats) -> Any:
    return derive(points)[path]


def _is_same(claim: np.ndarray, again: np.ndarray) -> bool:
    """Up to the order in which a device may add things up."""
    unit = unit_roundoff(claim.dtype)
    one, two = (np.nan_to_num(np.ravel(x).astype(np.float64)) for x in (claim, again))
    return not np.any(np.abs(one - two) > ROUNDINGS * unit * largest(one))


def _shake(
    claim: Callable[[Floats], Floats], floats: Floats, rng: np.random.Generator
) -> list[Floats]:
    """The claim with its params and all that it rounds moved by a last bit.

    Where it cannot be traced, only its params move, by two.
    """
    shake = perturbed_claim(claim, floats)
    if shake is None:
        return [claim(perturbed(floats, rng, bits=2)) for _ in range(_NUM_NEARBY)]
    seeds = rng.integers(2**32, size=_NUM_NEARBY)
    return [shake(perturbed(floats, rng), int(seed)) for seed in seeds]


def _autodiff_nearby(
    derive: Counted, points: Floats, rng: np.random.Generator
) -> tuple[list[Floats], list[str]]:
    """Autodiff in float64, what it gives here and one last bit away, or why nothing."""
    try:
        return nearby(derive, points, rng, count=2), []
    except Exception as error:  # a rule may fail in its own way; differences decide
        reason = str(error).partition("\n")[0]
        return [], [f"no float64 autodiff to compare with: {reason:.120}"]


def _rounding(
    given: dict[str, Leaf], claim: Floats, shapes: list[tuple[int, ...]]
) -> dict[str, Rounding]:
    """What rounding may do to each leaf of the claim, from dtypes and shapes alone."""
    dtypes = [leaf.dtype for leaf in given.values()]
    num_terms = longest_sum([leaf.shape for leaf in given.values()] + shapes)
    batch_sizes = frozenset(shape[0] for shape in shapes if shape)
    return {
        path: Rounding(tolerance([*dtypes, found.dtype], num_terms), batch_sizes)
        for path, found in claim.items()
    }
