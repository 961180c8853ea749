"""Sweeps: many small models, trained at once and otherwise.

Timed is the full call at four sizes, from data to the logged loss of every epoch. All
contestants train the same lanes from the same parameters (`work.py`), and their last
losses must agree to one percent. Each has its fastest setting: the sweep has the lanes
at once of the plan of a long sweep; PyTorch has the fastest of its Adams and numbers of
threads; `torch.func` has the fastest number of lanes at once and of threads. Its lanes
all share one order of the rows, so it gathers each batch once. The processes of a pool
are started, and everything is compiled, before the rounds.

The last case is a call with 20,000 lanes as in a new process. It includes planning,
compilation, the metrics of validation and training data, and the table. `torch.func`
there trains only. The result of the sweep divides its time into compilation, the
compiled program, and the rest, which is Python. Python's share is measured with a wait
after each call of the program, so nothing overlaps.

The larger a model, the less of a step is overhead that a sweep can share. At 784x500
the matrix products fill two cores, and a process a core is as fast or faster.

Not measured: larger models, sources of data, several devices, a GPU. `peak_mib` is that
of the parent process of a pool.
"""

from collections.abc import Iterator
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
QUICK = Work(6, 3, 8, 32, 1, 2, 1)


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
    return {
        REFERENCE: Program("sweeps.with_jaxae:whole_call", work._asdict()),
        "torch.func": Program("sweeps.with_torch:ensembles", work._asdict(), True),
    }


def run(num_rounds: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Compare all contestants at every size; if quick, without what starts slowly."""
    works, many = ((QUICK,), QUICK) if quick else (WORKS, MANY)
    cases = [(work, programs(work)) for work in works]
    cases.append((many, programs_of_many(many)))
    if quick:
        cases = [(work, quick_ones(entries)) for work, entries in cases]
    for work, entries in cases:
        yield compare(work, entries, num_rounds)


def quick_ones(entries: dict[str, Program]) -> dict[str, Program]:
    """Without peers and pools, which start slowly, and with a faster compilation."""
    environment = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return {
        name: entry._replace(environment=environment)
        for name, entry in entries.items()
        if not entry.is_peer and not entry.function.endswith(":pool")
    }


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
