"""Sparse autoencoders: training steps with TopK, and the parts of a step.

Timed are training steps with D = 768, k = 32 and 512 rows, by the trainers of four
libraries as they are installed: `Trainer.fit` of eai-sparsify, `TopKTrainer.update` of
dictionary-learning, `SAETrainer.step` of sae-lens and `train_sae` of overcomplete;
beside `jaxae`, by codes and by dense autodiff. Each has the same data in the same
order, the same initial parameters, k, and Adam with the same learning rate. After each
run, the fraction of variance unexplained (FVU) of other rows is computed, outside of
the time; after equal steps it must agree. "FVU at equal time" is that of each library
when jaxae has finished, by interpolation.

The libraries differ where they leave no choice. dictionary-learning keeps decoder rows
at norm 1. dictionary-learning and sae-lens clip gradients; the data are scaled so that
this changes nothing. eai-sparsify divides the loss of a batch by the variance of the
batch. overcomplete has no decoder bias; the data are centered. Default options that
differ from the others are turned off where they can be. PyTorch's fused Adam, which
three of the trainers do not offer, is used for all, since it is faster.

Two cases measure the parts of a step of jaxae, at k = 32 and 256: the product of the
encoder; the floor, which is the product and `jax.lax.top_k`; loss and gradient, and
steps, by codes and by dense autodiff.

A run has two to four steps. jaxae checks after each step that parameters and moments
are finite, and copies the state once a run, so that it can undo a step that fails;
longer runs copy it as rarely as once an epoch. No step can be faster than the encoder's
product, which is about a third of the time of the fastest step here.

Not measured: the quality of trained models, since the runs have few steps; logging,
checkpoints and the reading of data; dead latents, of which none are declared dead.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.results import compared, versions_of
from benchmarks.sparse.work import Work
from benchmarks.turns import Program, Times, take_turns

REFERENCE = "jaxae"
FVU_TOLERANCE = 0.03  # relative; see above in which way the libraries differ
AT_ONCE = 3  # processes, beside the reference: their memory at 65,536 latents

WORKS = (
    Work(8192, num_steps=4),
    Work(16384, num_steps=2),
    Work(65536, num_steps=2),
)
PARTS = (Work(16384, num_steps=2), Work(16384, k=256, num_steps=2))
QUICK = Work(256, k=4, input_dim=32, batch_size=64, num_steps=2)


def run(num_rounds: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Compare all contestants in every work."""
    if quick:
        few = {"floor", "loss and gradient, codes"}
        yield compare_trainers(QUICK, 1)
        yield compare_parts(QUICK, 1, few)
        return
    for work in WORKS:
        yield compare_trainers(work, num_rounds)
    for work in PARTS:
        yield compare_parts(work, num_rounds)


def trainers(work: Work) -> dict[str, Program]:
    """The training steps of every library."""
    options = work._asdict()

    def peer(name, **more):
        function = f"sparse.with_peers:{name}"
        return Program(function, {"fused": True} | more | options, is_peer=True)

    return {
        "eai-sparsify": peer("sparsify"),
        "sae-lens": peer("sae_lens", use_sparse_activations=True),
        "dictionary-learning": peer("dictionary_learning"),
        "overcomplete": peer("overcomplete"),
        "jaxae, dense autodiff": with_jaxae("train", work, gradient="autodiff"),
    }


def with_jaxae(function: str, work: Work, **more) -> Program:
    """A program of jaxae."""
    return Program(f"sparse.with_jaxae:{function}", more | work._asdict())


def compare_trainers(work: Work, num_rounds: int) -> dict[str, Any]:
    """The times of one work, the FVU after equal steps and at equal time."""
    reference = {REFERENCE: with_jaxae("train", work, gradient="manual")}
    others = list(trainers(work).items())
    contestants: dict[str, Any] = {}
    versions: dict[str, dict[str, str]] = {}
    for i in range(0, len(others), AT_ONCE):
        group = reference | dict(others[i : i + AT_ONCE])
        times = take_turns(group, num_rounds)
        new = compared(times, REFERENCE)
        for name, entry in new.items():
            entry["fvu"] = times[name].results
            entry["fvu at equal time"] = fvu_at_equal_time(
                times[name], times[REFERENCE]
            )
            check_fvu(name, times[name], times[REFERENCE])
        contestants = new | contestants  # the first of the two times of the reference
        versions |= versions_of(times)
    return {
        "case": work._asdict(),
        "steps": work.num_steps,
        "contestants": contestants,
        "versions": versions,
    }


def fvu_at_equal_time(times: Times, reference: Times) -> float:
    """The FVU when the reference has finished, linear between the ends of runs."""
    ends = np.cumsum([0.0, *times.seconds])
    fvus = [times.first_result, *times.results]
    return float(np.interp(sum(reference.seconds), ends, fvus))


def check_fvu(name: str, times: Times, reference: Times) -> None:
    """Check that a contestant did the same work."""
    for fvu, expected in zip(times.results, reference.results, strict=True):
        if not abs(fvu / expected - 1) < FVU_TOLERANCE:
            raise AssertionError(f"{name} has FVU {fvu}, jaxae {expected}.")


def parts(work: Work) -> dict[str, Program]:
    """The parts of one step."""
    programs = {
        "floor": with_jaxae("floor", work),
        "encoder's product": with_jaxae("product", work),
    }
    functions = {"loss and gradient": "loss_and_gradient", "step": "train"}
    for name, gradient in {"codes": "manual", "dense": "autodiff"}.items():
        for part, function in functions.items():
            programs[f"{part}, {name}"] = with_jaxae(function, work, gradient=gradient)
    return programs


def compare_parts(work: Work, num_rounds: int, names=None) -> dict[str, Any]:
    """The times of the parts of one step, as ratios to the floor; all parts by default.

    A run of a part has as many repetitions as a run of the trainers has steps.
    """
    programs = {n: p for n, p in parts(work).items() if names is None or n in names}
    times = take_turns(programs, num_rounds)
    return {
        "case": {"part": "parts of a step"} | work._asdict(),
        "steps": work.num_steps,
        "contestants": compared(times, "floor"),
        "versions": versions_of(times),
    }
