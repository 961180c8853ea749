"""Contestants that take turns.

Each contestant is a process of its own, which lives as long as the comparison
(`contestant.py`). In every round each contestant runs once, in a rotating order, and
only one process runs at a time. A busy moment of the machine then strikes all alike.
Comparisons use the ratios within a round.
"""

import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".venv-bench"  # made by `make bench-env`


class Program(NamedTuple):
    """What a contestant runs.

    Attributes:
      function: "module:function" below `benchmarks`.
      options: its keyword arguments, JSON values.
      is_peer: whether it runs in the environment of the peers.
      environment: environment variables of its process.
    """

    function: str
    options: Mapping[str, Any] = {}
    is_peer: bool = False
    environment: Mapping[str, str] = {}

    @property
    def is_available(self) -> bool:
        """Whether the environment that the program needs is there."""
        return not self.is_peer or (PEERS / ".installed").exists()


class Times(NamedTuple):
    """What the turns of one contestant gave.

    Attributes:
      seconds, results: of each round.
      first_result: of the round that is not counted.
      setting: what the program chose for itself.
      prepared_in: seconds before the first round: imports, compilation, tuning.
      peak_mib: the largest resident memory of the process.
      versions: of Python and of the libraries that the process imported.
    """

    seconds: list[float]
    results: list[Any]
    first_result: Any
    setting: str
    prepared_in: float
    peak_mib: float
    versions: dict[str, str]


class Contestant:
    """A process that runs one program when asked."""

    def __init__(self, name: str, program: Program):
        self.name = name
        python = str(PEERS / "bin" / "python") if program.is_peer else sys.executable
        module = ["-m", "benchmarks.contestant", f"benchmarks.{program.function}"]
        self.process = subprocess.Popen(
            [python, *module, json.dumps(dict(program.options))],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | dict(program.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.prepared = self._answer()

    def ask(self, request: str) -> dict[str, Any]:
        """Send a request; wait for the answer."""
        assert self.process.stdin is not None
        print(request, file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError(f"the program of {self.name!r} ended: see its message.")
        return json.loads(line)


@contextlib.contextmanager
def started(programs: Mapping[str, Program]) -> Iterator[list[Contestant]]:
    """Start the processes one after another; end all of them at last."""
    contestants: list[Contestant] = []
    try:
        for name, program in programs.items():
            contestants.append(Contestant(name, program))
        yield contestants
    finally:
        for contestant in contestants:
            contestant.close()


def take_turns(
    programs: Mapping[str, Program], num_rounds: int, num_uncounted: int = 1
) -> dict[str, Times]:
    """Run every program once a round, after rounds that are not counted.

    Programs whose environment is not installed are left out.
    """
    available = {n: program for n, program in programs.items() if program.is_available}
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in available}
    with started(available) as contestants:
        for i in range(num_uncounted + num_rounds):
            shift = i % len(contestants)  # one contestant may affect the next
            for contestant in contestants[shift:] + contestants[:shift]:
                answers[contestant.name].append(contestant.ask("run"))
        counted = {name: all_[num_uncounted:] for name, all_ in answers.items()}
        return {
            contestant.name: Times(
                seconds=[answer["seconds"] for answer in counted[contestant.name]],
                results=[answer["result"] for answer in counted[contestant.name]],
                first_result=answers[contestant.name][0]["result"],
                peak_mib=answers[contestant.name][-1]["peak_mib"],
                versions=contestant.ask("describe"),
                **contestant.prepared,
            )
            for contestant in contestants
        }


class Ratio(NamedTuple):
    """The median over rounds of a ratio of times, and its quartiles."""

    median: float
    low: float
    high: float


def ratio(times: Times, reference: Times) -> Ratio:
    """The time of a contestant over that of a reference in the same round."""
    return spread(
        [a / b for a, b in zip(times.seconds, reference.seconds, strict=True)]
    )


def spread(values: list[float]) -> Ratio:
    """The median and the quartiles."""
    if len(values) == 1:
        return Ratio(*itertools.repeat(values[0], 3))
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Ratio(median, low, high)
