"""Gradcheck: the cost of checking a gradient, against model size.

Each contestant checks the gradient of one loss by automatic differentiation: a tied
autoencoder with a sigmoid and a Bernoulli output, the mean over 16 rows, from the same
parameters, in float64. A first call follows `jax.clear_caches()` and compiles; a later
call may use what was compiled. PyTorch compiles nothing.

The loss and the answer are equal, and the suite checks both: each accepts the gradient.
What is measured differs. `jaxae.gradcheck.check` reports on each leaf, by single
entries and by random directions, and estimates its own resolution. `check_grads`
compares one random direction over all leaves, and the slow mode of
`torch.autograd.gradcheck` every entry, its fast mode one random direction. The slow
mode calls the loss twice for each parameter, so it is left out at 784x500.

Not measured: how many wrong gradients each detects (experiments/gradient_bugs.py).
"""

import math
from typing import Any

from benchmarks.one_model.work import Work
from benchmarks.results import compared
from benchmarks.turns import Program, take_turns

REFERENCE = "jaxae, first call"
LOSS_TOLERANCE = 1e-5  # relative; jaxae's own parameters are float32

BATCH_SIZE = 16
SIZES = ((5, 3), (64, 32), (784, 500))
MAX_SLOW_PARAMS = 10_000  # of the slow mode: seconds a call


def run(num_rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Compare the checks at each size; with `quick`, first calls at the least."""
    return [
        compare(input_dim, latent_dim, quick, num_rounds)
        for input_dim, latent_dim in (SIZES[:1] if quick else SIZES)
    ]


def compare(
    input_dim: int, latent_dim: int, quick: bool, num_rounds: int
) -> dict[str, Any]:
    """The times of one size, and a check that all accept the gradient of one loss."""
    work = Work(input_dim, latent_dim, batch_size=BATCH_SIZE, num_rows=BATCH_SIZE)
    num_params = input_dim * latent_dim + input_dim + latent_dim
    entries = programs(work, num_params, quick)
    times = take_turns(entries, num_rounds, num_uncounted=0 if quick else 1)
    contestants = compared(times, REFERENCE)
    for name, entry in contestants.items():
        check_result(name, entry["result"], contestants[REFERENCE]["result"])
    return {
        "case": {
            "input_dim": input_dim,
            "latent_dim": latent_dim,
            "params": num_params,
        },
        "contestants": contestants,
        "versions": {name: entry.versions for name, entry in times.items()},
    }


def programs(work: Work, num_params: int, quick: bool) -> dict[str, Program]:
    """Every contestant of one size."""
    options = work._asdict()
    entries = {
        f"{name}, {call} call": Program(
            f"gradcheck.with_jax:{function}", {"is_first": call == "first"} | options
        )
        for name, function in (("jaxae", "jaxae_check"), ("check_grads", "check_grads"))
        for call in (("first",) if quick else ("first", "later"))
    }
    for mode in ("fast", "slow") if num_params <= MAX_SLOW_PARAMS else ("fast",):
        entries[f"PyTorch, {mode} mode"] = Program(
            "gradcheck.with_torch:check",
            {"fast_mode": mode == "fast"} | options,
            is_peer=True,
        )
    return entries


def check_result(name: str, result: dict, reference: dict) -> None:
    """Check that a contestant accepted the gradient, and of the same loss."""
    if not result["accepted"]:
        raise AssertionError(f"{name} rejects a right gradient.")
    if not math.isclose(result["loss"], reference["loss"], rel_tol=LOSS_TOLERANCE):
        raise AssertionError(f"{name} has loss {result['loss']}, not {reference}.")
