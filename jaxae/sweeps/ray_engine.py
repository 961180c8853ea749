"""Blocks of lanes as tasks of a Ray cluster: retried where a worker dies.

A task needs nothing of another, so that a dead worker costs one block, and the blocks
that come back are kept by whoever asked for them. Workers need this package, and as
many devices as tasks that run at once share.
"""

import functools
import os
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from jaxae import _checks
from jaxae.sweeps.plans import Schedule
from jaxae.sweeps.running import GroupRun, ResumeState
from jaxae.sweeps.store import LaneBlock

_RETRIES = 3  # of a block whose worker died


class Engine:
    """Trains the lanes of groups on a Ray cluster: the one that is connected to.

    If none is, `ray.init()` connects to RAY_ADDRESS or starts one on this machine.

    Raises:
      ImportError: where ray is not installed.
    """

    def __init__(self):
        try:
            import ray
        except ImportError as error:
            raise _checks.extra("engine='ray'", "ray", "ray") from error
        self._ray = ray
        if not ray.is_initialized():
            with warnings.catch_warnings():
                # It forks to start other programs at once, which JAX warns of.
                warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")
                ray.init(include_dashboard=False, log_to_driver=False)
        self._puts: dict[int, Any] = {}

    def train(
        self, run: GroupRun, ledger, lanes, rung: range, schedule: Schedule, tell
    ) -> Iterator[LaneBlock]:
        """As `GroupRun.train`, in whatever order the blocks come back.

        A task ends when a minute has passed, and another goes on with its block, so
        that a dead worker costs no more than that.
        """

        def submitted(blocks):
            fields = {name: getattr(ledger, name) for name in ResumeState._fields}
            kept = self._ray.put(ResumeState(**fields))
            left = [block for block in blocks if run.is_left(ledger, block, rung)]
            return {
                task.remote(self._described(run), kept, block, rung): block
                for block in left
            }

        task = self._task()
        waiting = submitted(run.blocks(lanes, schedule))
        while waiting:
            ready, _ = self._ray.wait(list(waiting))
            for done in ready:
                for part in self._ray.get(done):
                    tell(
                        part.step * len(part.indices) - ledger.step[part.indices].sum()
                    )
                    yield part
                waiting |= submitted([waiting.pop(done)])

    def _task(self):
        options: dict[str, Any] = {"num_cpus": 1, "max_retries": _RETRIES}
        if jax.default_backend() == "gpu":
            options["num_gpus"] = 1
        return self._ray.remote(**options)(_train_block)

    def _described(self, run: GroupRun) -> Any:
        """The description of a group on the cluster, sent there once."""
        if id(run) not in self._puts:
            self._puts[id(run)] = self._ray.put(run.described())
        return self._puts[id(run)]


def _train_block(described, kept, block, rung) -> list[LaneBlock]:
    """In a worker: the lanes of a block, until they are done or a minute has passed."""
    run, parts = _run_of(_Key(described)), []
    for part in run.train_blocks(kept, [block], rung, lambda steps: None):
        parts.append(part)
        if part.step < rung.stop * run.num_steps:
            break
    return parts


class _Key:
    """A description, compared by what it is of: a worker compiles once a group."""

    def __init__(self, described: dict[str, Any]):
        self.described = described

    def __hash__(self) -> int:
        return hash(self.described["token"])

    def __eq__(self, other: Any) -> bool:
        return self.described["token"] == other.described["token"]


@functools.lru_cache(maxsize=2)
def _run_of(key: _Key) -> GroupRun:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return GroupRun.of(key.described, devices=jax.local_devices()[:1])
