"""Blocks of lanes as tasks of a Ray cluster, retried if a worker dies.

Tasks are independent, so that a dead worker costs one block; the blocks that are back
are safe with the caller. Workers need this package, and a device for each task that
runs at once.
"""

import functools
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from jaxae import _checks
from jaxae.sweeps.groups import Layout
from jaxae.sweeps.plans import Schedule
from jaxae.sweeps.results import LaneBlock, LaneResults
from jaxae.sweeps.running import GroupRun

_RETRIES = 3  # of a block whose worker died


class Engine:
    """Trains the lanes of groups on the Ray cluster that is connected.

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
                # Ray forks only to start other programs; JAX warns of every fork.
                warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")
                ray.init(include_dashboard=False, log_to_driver=False)
        self._descriptions: dict[int, Any] = {}

    def train(
        self,
        run: GroupRun,
        results: LaneResults,
        lanes,
        rung: range,
        schedule: Schedule,
        report_progress,
    ) -> Iterator[LaneBlock]:
        """As `GroupRun.train`; blocks come back in any order.

        A task ends after a minute, and another one resumes its block, so that a dead
        worker costs no more than that.
        """
        task, description = self._task(), self._description(run)

        def submit(layouts: Iterable[Layout]) -> dict[Any, Layout]:
            tasks = {}
            for layout in layouts:
                for part in run.unfinished(results, layout, rung):
                    start = results.block(part.lanes())._replace(metrics={})
                    tasks[task.remote(description, start, part, rung)] = part
            return tasks

        running = submit(run.layouts(lanes, schedule))
        while running:
            ready, _ = self._ray.wait(list(running))
            for done in ready:
                for block in self._ray.get(done):
                    steps_before = results.step[block.indices]
                    report_progress(int((block.step - steps_before).sum()))
                    yield block
                running |= submit([running.pop(done)])

    def _task(self):
        options: dict[str, Any] = {"num_cpus": 1, "max_retries": _RETRIES}
        if jax.default_backend() == "gpu":
            options["num_gpus"] = 1
        return self._ray.remote(**options)(_train_block)

    def _description(self, run: GroupRun) -> Any:
        """The description of a group on the cluster, sent there once."""
        if id(run) not in self._descriptions:
            self._descriptions[id(run)] = self._ray.put(run.description())
        return self._descriptions[id(run)]


def _train_block(description, start: LaneBlock, layout, rung) -> list[LaneBlock]:
    """In a worker: train a block until it is finished or a minute has passed."""
    run = _run_of(_Description(description))
    results, blocks = LaneResults(run.group), []
    results.add(start)
    for block in run.train_blocks(results, [layout], rung, lambda steps: None):
        results.add(block)
        blocks.append(block)
        if block.step < rung.stop * run.num_steps:
            break
    return blocks


class _Description:
    """A description, hashed by its token, so that a worker compiles once a group."""

    def __init__(self, fields: dict[str, Any]):
        self.fields = fields

    def __hash__(self) -> int:
        return hash(self.fields["token"])

    def __eq__(self, other: Any) -> bool:
        return self.fields["token"] == other.fields["token"]


@functools.lru_cache(maxsize=2)
def _run_of(description: _Description) -> GroupRun:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    devices = jax.local_devices()[:1]
    return GroupRun.from_description(description.fields, devices)
