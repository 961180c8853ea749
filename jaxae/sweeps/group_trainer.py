"""The training of one group of lanes, in this process or on a Ray cluster."""

import concurrent.futures
import functools
import itertools
import os
import time
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxae import _checks
from jaxae._keys import generator_of
from jaxae.sweeps import plans, program
from jaxae.sweeps.groups import Group, Layout
from jaxae.sweeps.program import Program, Shared
from jaxae.sweeps.results import LaneBlock, LaneResults
from jaxae.training import diagnostics
from jaxae.training.batches import num_rows, num_steps
from jaxae.training.checkpointing import Pace
from jaxae.training.diagnostics import probe
from jaxae.training.train_step import Means, TrainState

BLOCK_SECONDS = 60.0  # the training that is lost, at most, if the process is killed
_SAVING_SHARE = 0.1  # of the time, at most
_BLOCK_ROWS = 16384  # rows of one evaluation, summed over the lanes at once
_RETRIES = 3  # of a block whose worker died


class GroupTrainer:
    """Trains the lanes of one group, on its data and devices.

    Attributes:
      group: the lanes.
      data, validation: arrays on the device; data may be a source.
      key: the key of the sweep.
      num_steps: the steps of an epoch.
    """

    def __init__(self, group: Group, data, validation, key, devices, num_threads=1):
        self.group, self.data, self.validation = group, data, validation
        self._num_threads = num_threads  # that run chunks side by side
        self._compiled = set[tuple[int, ...]]()  # shapes of chunks
        self.key, self.num_steps = key, num_steps(data, group.config)
        self._num_devices = len(devices)
        self._source = data if callable(data) else None
        self._rows = None if callable(data) else data
        mesh = Mesh(np.array(devices), (program.AXIS,)) if len(devices) > 1 else None
        config = group.config.compiled()
        self._program = Program(group.objective, config, self._source, mesh)

    def metric_names(self) -> list[str]:
        """The metrics of every epoch; one row is evaluated for those of validation."""
        objective = self.group.objective
        names = [f"train/{name}" for name in diagnostics.names_of_step(objective)]
        if self.group.config.on_nonfinite == "skip":
            names.append("train/skipped_steps")
        if self.validation is not None:
            params = objective.ae.init(self.key)
            row = jax.tree.map(lambda rows: rows[:1], self.validation)
            hparams = self.group.hparams_of(0)
            state = objective.init_state()
            metrics = diagnostics.evaluate(objective, params, row, hparams, state)
            names += [f"validation/{name}" for name in metrics]
        return names

    def structure(self) -> tuple[Any, Any, Any]:
        """The pytree structures of a `LaneBlock`'s params, state and carry."""
        layout = self._layout(np.array([0]), 1)
        state, means = jax.eval_shape(lambda: self._begin(layout))
        return state.params, state.state, _carry(state, means)

    def measure(self, layout: Layout, num_steps: int) -> float:
        """The seconds that so many steps of these lanes take."""
        (state, means), shared = self._begin(layout), self._shared(layout, 0)
        jax.block_until_ready((state, means, shared))
        start = time.perf_counter()
        results = self._run(layout, state, means, shared, 0, num_steps)
        jax.block_until_ready(results)
        return time.perf_counter() - start

    def layouts(self, lanes, lanes_at_once: int, most_chunks: int) -> list[Layout]:
        """Lay the lanes out in blocks of at most that many chunks."""
        if not len(lanes):
            return []
        layout = self._layout(lanes, lanes_at_once)
        num_chunks = plans.padded_num_chunks(len(layout.slots), self._num_threads)
        return layout.blocks(min(most_chunks, num_chunks))

    def _layout(self, lanes, lanes_at_once: int) -> Layout:
        return self.group.layout(lanes_at_once, self._num_devices, lanes)

    def train_blocks(
        self, results: LaneResults, layouts, rung: range, report_progress
    ) -> Iterator[LaneBlock]:
        """Train blocks to the end of a rung, from where the results are.

        A block that runs out of memory is trained with half the lanes at once. The
        caller must add each yielded block to the results.
        """
        for i, layout in enumerate(layouts):
            try:
                for part in self.unfinished(results, layout, rung):
                    yield from self._train_block(results, part, rung, report_progress)
                continue
            except jax.errors.JaxRuntimeError as error:
                at_once = layout.lanes_at_once
                if "RESOURCE_EXHAUSTED" not in str(error) or at_once == 1:
                    raise
            # Only here, where the traceback no longer holds the arrays of the attempt.
            lanes = np.concatenate([layout.lanes() for layout in layouts[i:]])
            smaller = self.layouts(lanes, at_once // 2, len(layout.slots))
            yield from self.train_blocks(results, smaller, rung, report_progress)
            return

    def unfinished(
        self, results: LaneResults, layout: Layout, rung: range
    ) -> list[Layout]:
        """The unfinished lanes of a block, split by the number of steps taken."""
        lanes = layout.lanes()
        steps = results.step[lanes]
        distinct = np.unique(steps[steps < rung.stop * self.num_steps])
        if len(distinct) == 1 and (steps == distinct).all():
            return [layout]
        blocks: list[Layout] = []
        for step in distinct:
            at_step = lanes[steps == step]
            blocks += self.layouts(at_step, layout.lanes_at_once, len(layout.slots))
        return blocks

    def _train_block(
        self, results: LaneResults, layout: Layout, rung: range, report_progress
    ) -> Iterator[LaneBlock]:
        """Train lanes to the end of the rung; yield them each minute and at the end."""
        lanes, num_steps = layout.lanes(), self.num_steps
        step, end = int(results.step[lanes[0]]), rung.stop * num_steps
        state, means = _resumed(results, layout) if step > 0 else self._begin(layout)
        shared, history = None, []
        pace = Pace(1)  # a step of many lanes may be long
        saved_at, interval = time.monotonic(), BLOCK_SECONDS
        while step < end:
            first = step % num_steps
            if shared is None or first == 0:
                shared = self._shared(layout, step - first)
            shared = shared._replace(step=np.int32(step))
            last = first + pace.num_steps(num_steps - first)
            state, means = self._run(layout, state, means, shared, first, last)
            jax.block_until_ready(state)
            step += last - first
            if last == num_steps:
                history.append(self._epoch_metrics(layout, state, means))
                means = jax.tree.map(jnp.zeros_like, means)
            report_progress(len(lanes) * (last - first))
            now = time.monotonic()
            if step == end or now - saved_at >= interval:
                yield self._lane_block(layout, state, means, step, history)
                history, saved_at = [], time.monotonic()
                interval = max(BLOCK_SECONDS, (saved_at - now) / _SAVING_SHARE)

    def _lane_block(self, layout: Layout, state, means, step, history) -> LaneBlock:
        """The lanes of a block on the host, with the metrics of the latest epochs."""
        num_epochs, config = step // self.num_steps, self.group.config
        metrics: dict[str, np.ndarray] = {}
        if history:
            metrics = jax.tree.map(lambda *epochs: np.stack(epochs, axis=1), *history)
        final = {}
        if config.diagnostics and num_epochs == config.num_epochs:
            final = self._diagnostics(layout, state)
        state, means = _by_lane(layout, (state, means))
        return LaneBlock(
            indices=layout.lanes(),
            params=state.params,
            state=state.state,
            carry=_carry(state, means),
            step=step,
            num_epochs=num_epochs,
            stopped_at=state.stopped_at,
            metrics=metrics,
            final=final,
        )

    def _hparams(self, layout: Layout) -> dict[str, np.ndarray]:
        """`[C, S, M]` by name."""
        return {name: v[layout.slots] for name, v in self.group.hparams.items()}

    def _begin(self, layout: Layout) -> tuple[TrainState, Means]:
        """The lanes before the first step."""
        hparams, limits = self._hparams(layout), self.group.init_limits[layout.slots]
        keys = program.keys_of(self.key, layout.seeds)
        lanes = hparams, limits, keys, layout.seed_of
        params = self.group.params
        return program.begin(*lanes, self._rows, params, program=self._program)

    def _shared(self, layout: Layout, epoch_start: int) -> Shared:
        """What the lanes share in the epoch that begins at that step."""
        step = np.int32(epoch_start)
        size = None if self._rows is None else num_rows(self._rows)
        keys, orders = program.keys_and_orders(
            self.key, layout.seeds, step, size, self.group.shuffle
        )
        return Shared(keys, orders, self._rows, step)

    def _run(self, layout: Layout, state, means, shared, first: int, last: int):
        """Run steps of every lane; several threads each run some of the chunks.

        On a CPU, a call of the program leaves cores idle between its operations. On two
        cores, two threads with 25 lanes each took 0.53 and 0.68 of the time of a call
        with 100 (64x32, batch 128, and 20x5, batch 1024). Two loops in one program, on
        the same chunks, took 0.88 and 0.83, about as long as one loop.
        """
        lanes = state, means, self._hparams(layout), layout.seed_of
        steps = np.int32(first), np.int32(last)

        def run(lanes):
            results = program.run(*lanes, shared, *steps, program=self._program)
            return jax.block_until_ready(results)

        num_parts = min(self._num_threads, len(layout.slots))
        if num_parts == 1:
            return run(lanes)
        parts = _parts(lanes, len(layout.slots), num_parts)
        shapes = [part[-1].shape + layout.slots.shape for part in parts]
        # Otherwise two threads that need the same program would compile it twice.
        num_workers = num_parts if self._compiled.issuperset(shapes) else 1
        self._compiled.update(shapes)
        with concurrent.futures.ThreadPoolExecutor(num_workers) as threads:
            results = list(threads.map(run, parts))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *results)

    def _epoch_metrics(self, layout: Layout, state, means: Means) -> dict:
        """The metrics of an epoch that has ended, `[n]` by name."""
        train = _by_lane(layout, means.read(self.group.config))
        metrics = {f"train/{name}": values for name, values in train.items()}
        if self.validation is not None:
            scores = self._evaluate(layout, state, self.validation, self._program)
            metrics |= {f"validation/{name}": v for name, v in scores.items()}
        return metrics

    def _diagnostics(self, layout: Layout, state) -> dict[str, np.ndarray]:
        """The metrics of the training data after the last epoch, `[n]` by name."""
        if self._source is None:
            rows = probe(self.data, self.key, {})
            scores = self._evaluate(layout, state, rows, self._program)
        else:
            scores = self._evaluate_on_source(layout, state)
        # By these names, the epoch has the means over its steps.
        step_names = diagnostics.names_of_step(self.group.objective)
        return {f"train/{n}": v for n, v in scores.items() if n not in step_names}

    def _evaluate_on_source(self, layout: Layout, state) -> dict[str, np.ndarray]:
        """`_evaluate` each lane on the rows that the source draws for it."""
        # Without the optimizer's state, which nothing reads here.
        states = _by_lane(layout, state._replace(opt_state=()))
        on_one_device = self._program._replace(mesh=None)

        def lane_metrics(k, lane):
            key = jax.random.fold_in(self.key, self.group.seeds[lane])
            hparams = {name: v[lane] for name, v in self.group.hparams.items()}
            rows = probe(self._source, key, hparams)
            state = jax.tree.map(lambda leaf: leaf[None, None, k : k + 1], states)
            alone = self.group.layout(1, 1, np.array([lane]))
            return self._evaluate(alone, state, rows, on_one_device)

        rows = [lane_metrics(k, lane) for k, lane in enumerate(layout.lanes())]
        names = dict.fromkeys(name for row in rows for name in row)
        return {n: np.hstack([row.get(n, np.nan) for row in rows]) for n in names}

    def _evaluate(self, layout: Layout, state, X, compiled: Program) -> dict:
        """`diagnostics.evaluate` of every lane, `[n]` by name."""
        evaluate = functools.partial(
            program.evaluate_block, state, self._hparams(layout), program=compiled
        )
        block_rows = max(256, _BLOCK_ROWS // layout.lanes_at_once)
        sums = diagnostics.sum_blocks(evaluate, X, block_rows)
        return _by_lane(layout, diagnostics.as_metrics(self.group.objective, sums))


# ---- between the device, `[C, S, M, ...]`, and the host, `[n, ...]` ------------------


def _carry(state: Any, means: Means) -> tuple:
    return state._replace(params=None, state=None, stopped_at=None), means


def _by_lane(layout: Layout, tree) -> Any:
    """`[C, S, M, ...]` to `[n, ...]`, in the order of `layout.lanes()`."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[layout.is_first], tree)


def _parts(lanes, num_chunks: int, num_parts: int) -> list:
    """Pytrees `[C, ...]` as several ones on the host, of about equal size."""
    ends = [num_chunks * i // num_parts for i in range(num_parts + 1)]
    return [
        jax.tree.map(lambda leaf: np.asarray(leaf)[start:end], lanes)  # noqa: B023
        for start, end in itertools.pairwise(ends)
    ]


def _resumed(results: LaneResults, layout: Layout) -> tuple[TrainState, Means]:
    """The state and means of the lanes of a layout, from the results."""
    state, means = results.carry
    state = state._replace(
        params=results.params, state=results.state, stopped_at=results.stopped_at
    )
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[layout.slots]), (state, means))


def on_device(data: Any) -> Any:
    """The arrays of a dataset on the device; a source and None stay as they are."""
    return data if callable(data) else jax.tree.map(jnp.asarray, data)


# ---- on a Ray cluster ----------------------------------------------------------------


class RayCluster:
    """Trains blocks of lanes as tasks of the Ray cluster that is connected.

    Workers need this package, and a device for each task that runs at once. If no
    cluster is connected, `ray.init()` connects to RAY_ADDRESS or starts one on this
    machine.
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
        self._descriptions: dict[GroupTrainer, Any] = {}  # on the cluster

    def train_blocks(
        self, trainer: GroupTrainer, results, layouts, rung, report_progress
    ) -> Iterator[LaneBlock]:
        """As `GroupTrainer.train_blocks`, in any order.

        A task ends after a minute, and another one resumes its block, so that a dead
        worker costs a minute of training.
        """
        if trainer not in self._descriptions:
            self._descriptions[trainer] = self._ray.put(_describe(trainer))
        description, task = self._descriptions[trainer], self._task()

        running: dict[Any, Layout] = {}

        def submit(layout: Layout) -> None:
            for part in trainer.unfinished(results, layout, rung):
                start = results.block(part.lanes())._replace(metrics={})
                running[task.remote(description, start, part, rung)] = part

        for layout in layouts:
            submit(layout)
        while running:
            ready, _ = self._ray.wait(list(running))
            for done in ready:
                for block in self._ray.get(done):
                    steps_before = results.step[block.indices]
                    report_progress(int((block.step - steps_before).sum()))
                    yield block
                submit(running.pop(done))

    def _task(self):
        num_gpus = 1 if jax.default_backend() == "gpu" else 0
        options = {"num_cpus": 1, "num_gpus": num_gpus, "max_retries": _RETRIES}
        return self._ray.remote(**options)(_train_block)


def _describe(trainer: GroupTrainer) -> dict[str, Any]:
    """What a worker needs to make the same trainer."""
    data = trainer.data
    return {
        "token": uuid.uuid4().hex,
        "group": trainer.group,
        "data": data if callable(data) else jax.tree.map(np.asarray, data),
        "validation": jax.tree.map(np.asarray, trainer.validation),
        "key": np.asarray(jax.random.key_data(trainer.key)),
        "generator": generator_of(trainer.key),
    }


def _train_block(description, start: LaneBlock, layout, rung) -> list[LaneBlock]:
    """In a worker: train a block until it is finished or a minute has passed."""
    trainer = _trainer_of(description)
    results, blocks = LaneResults(trainer.group), []
    results.add(start)
    for block in trainer.train_blocks(results, [layout], rung, lambda steps: None):
        results.add(block)
        blocks.append(block)
        if block.step < rung.stop * trainer.num_steps:
            break
    return blocks


_trainers: dict[str, GroupTrainer] = {}  # of this worker, which compiles once a group


def _trainer_of(description: dict[str, Any]) -> GroupTrainer:
    token = description["token"]
    if token not in _trainers:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        if len(_trainers) == 2:  # their data are on the device
            _trainers.pop(next(iter(_trainers)))
        key = jnp.asarray(description["key"])
        _trainers[token] = GroupTrainer(
            description["group"],
            on_device(description["data"]),
            on_device(description["validation"]),
            jax.random.wrap_key_data(key, impl=description["generator"]),
            jax.local_devices()[:1],
        )
    return _trainers[token]
