"""Sweeps: many small models, trained at once and otherwise."""

from typing import Any

from benchmarks.results import compared, versions_of
from benchmarks.sweeps.work import Work
from benchmarks.turns import Program, take_turns

REFERENCE = "jaxae.sweep"
LOSS_TOLERANCE = 0.01  # relative; the orders of rows differ

WORKS = (
    Work(20, 5, 1024, 16384, 5, 25, 4),
    Work(64, 32, 128, 4096, 5, 25, 4),
    Work(784, 64, 128, 2048, 5, 8, 4),
    Work(784, 500, 128, 2048, 3, 4, 2),
)
MANY = Work(8, 4, 32, 512, 4, 5000, 4)
QUICK = (Work(6, 3, 8, 32, 2, 3, 2),)
QUICK_MANY = Work(6, 3, 8, 32, 2, 50, 2)


def programs(work: Work) -> dict[str, Program]:
    """Every contestant of one size."""
    options = work._asdict()

    def with_jaxae(function):
        return Program(f"sweeps.with_jaxae:{function}", options)

    def with_torch(function):
        return Program(f"sweeps.with_torch:{function}", options, is_peer=True)

    return {
        REFERENCE: with_jaxae("sweep"),
        "jaxae.train, one after another": with_jaxae("loop"),
        "jaxae.train, a process a core": with_jaxae("pool"),
        "PyTorch, one after another": with_torch("loop"),
        "PyTorch, a process a core": with_torch("pool"),
        "torch.func": with_torch("ensembles"),
    }


def programs_of_many(work: Work) -> dict[str, Program]:
    """The contestants that train thousands of lanes in seconds."""
    entries = {
        REFERENCE: Program("sweeps.with_jaxae:whole_call", work._asdict()),
        "torch.func": Program("sweeps.with_torch:ensembles", work._asdict(), True),
    }
    return entries


def run(num_rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Compare all contestants at every size."""
    works, many = (QUICK, QUICK_MANY) if quick else (WORKS, MANY)
    cases = [compare(work, programs(work), num_rounds) for work in works]
    return [*cases, compare(many, programs_of_many(many), num_rounds)]


def compare(work: Work, entries: dict[str, Program], num_rounds: int) -> dict[str, Any]:
    """The times of one size, and a check of the losses."""
    times = take_turns(entries, num_rounds)
    losses = {name: loss_of(entry.results[-1]) for name, entry in times.items()}
    for name, loss in losses.items():
        if not abs(loss / losses[REFERENCE] - 1) < LOSS_TOLERANCE:
            raise AssertionError(f"{name} ends at loss {loss}, not as {losses}.")
    return {
        "case": work._asdict(),
        "lanes": len(work.lanes),
        "steps": work.num_steps,
        "contestants": compared(times, REFERENCE),
        "versions": versions_of(times),
    }


def loss_of(result) -> float:
    """The mean over lanes of the last epoch's loss."""
    return result["loss"] if isinstance(result, dict) else result
