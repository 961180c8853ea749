"""The training of one group of lanes, in this process or on a Ray cluster."""

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
from jaxae.sweeps import program
from jaxae.sweeps.groups import Group, Layout
from jaxae.sweeps.program import Shared
from jaxae.sweeps.results import LaneBlock, LaneResults
from jaxae.training import diagnostics
from jaxae.training.checkpointing import Pace
from jaxae.training.epochs import Means, TrainState, num_rows, num_steps
from jaxae.training.evaluation import probe

BLOCK_SECONDS = 60.0  # the training that is lost, at most, if the process is killed
_SAVING_SHARE = 0.1  # of the time, at most
_BLOCK_ROWS = 16384  # rows of one evaluation, summed over the lanes at once
_RETRIES = 3  # of a block whose worker died


class GroupTrainer:
    """Trains the lanes of one group, on its data and devices.

    Attributes:
      group: the lanes.
      data, validation: on the device.
      key: the key of the sweep.
      num_steps: of an epoch.
    """

    def __init__(self, group: Group, data, validation, key, devices):
        self.group, self.data, self.validation = group, data, validation
        self.key, self.num_steps = key, num_steps(data, group.config)
        self._num_devices = len(devices)
        self._mesh = None
        if len(devices) > 1:
            self._mesh = Mesh(np.array(devices), (program.AXIS,))
        self._source = data if callable(data) else None
        self._rows = None if callable(data) else data
        self._static = {
            "objective": group.objective,
            "config": group.config.program(),
            "source": self._source,
            "mesh": self._mesh,
        }

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
            metrics = diagnostics.evaluate(objective, params, row, hparams)
            names += [f"validation/{name}" for name in metrics]
        return names

    def structure(self) -> tuple[Any, Any]:
        """The pytree structures of a `LaneBlock`'s params and carry."""
        layout = self._layout(np.array([0]), 1)
        state, means = jax.eval_shape(lambda: self._begin(layout))
        return state.params, _carry(state, means)

    def measure(self, layout: Layout, num_steps: int) -> float:
        """The seconds that some steps of these lanes take; results are dropped."""
        (state, means), shared = self._begin(layout), self._shared(layout, 0)
        jax.block_until_ready((state, means, shared))
        start = time.perf_counter()
        results = self._run(layout, state, means, shared, 0, num_steps)
        jax.block_until_ready(results)
        return time.perf_counter() - start

    # ---- blocks ----------------------------------------------------------------------

    def layouts(self, lanes, lanes_at_once: int, most_chunks: int) -> list[Layout]:
        """Lay the lanes out in blocks of at most that many chunks."""
        if not len(lanes):
            return []
        layout = self._layout(lanes, lanes_at_once)
        return layout.blocks(min(most_chunks, len(layout.slots)))

    def _layout(self, lanes, lanes_at_once: int) -> Layout:
        return self.group.layout(lanes_at_once, self._num_devices, lanes)

    def train_blocks(
        self, results: LaneResults, layouts, rung: range, report_progress
    ) -> Iterator[LaneBlock]:
        """Train blocks to the end of a rung, from where the results are.

        If a block runs out of memory, it is trained with half the lanes at once. The
        caller must add each yielded block to the results.
        """
        for i, layout in enumerate(layouts):
            try:
                for part in self.unfinished(results, layout, rung):
                    yield from self._train_block(results, part, rung, report_progress)
            except jax.errors.JaxRuntimeError as error:
                at_once = layout.lanes_at_once
                if "RESOURCE_EXHAUSTED" not in str(error) or at_once == 1:
                    raise
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
        """Train to the end of the rung; yield the lanes each minute and at the end."""
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
        """The lanes of a block on the host, with the metrics of the last epochs."""
        num_epochs, config = step // self.num_steps, self.group.config
        final = {}
        if config.diagnostics and num_epochs == config.num_epochs:
            final = self._diagnostics(layout, state)
        state, means = _by_lane(layout, (state, means))
        return LaneBlock(
            indices=layout.lanes(),
            params=state.params,
            carry=_carry(state, means),
            step=step,
            num_epochs=num_epochs,
            stopped_at=state.stopped_at,
            metrics={
                name: np.stack([metrics[name] for metrics in history], axis=1)
                for name in (history[0] if history else ())
            },
            final=final,
        )

    # ---- calls of the program --------------------------------------------------------

    def _hparams(self, layout: Layout) -> dict[str, np.ndarray]:
        """`[C, S, M]` by name."""
        return {name: v[layout.slots] for name, v in self.group.hparams.items()}

    def _begin(self, layout: Layout) -> tuple[TrainState, Means]:
        """The lanes before the first step."""
        return program.begin(
            self._hparams(layout),
            self.group.limits[layout.slots],
            program.keys_of(self.key, layout.seeds),
            layout.seed_of,
            self._rows,
            **self._static,
        )

    def _shared(self, layout: Layout, epoch_start: int) -> Shared:
        """What the lanes share in the epoch that begins at that step."""
        step = np.int32(epoch_start)
        size = None if self._rows is None else num_rows(self._rows)
        keys, orders = program.keys_and_orders(self.key, layout.seeds, step, size)
        return Shared(keys, orders, self._rows, step)

    def _run(self, layout: Layout, state, means, shared, first: int, last: int):
        return program.run(
            state,
            means,
            self._hparams(layout),
            layout.seed_of,
            shared,
            np.int32(first),
            np.int32(last),
            **self._static,
        )

    # ---- evaluation ------------------------------------------------------------------

    def _epoch_metrics(self, layout: Layout, state, means: Means) -> dict:
        """The metrics of an epoch that has ended, `[n]` by name."""
        train = _by_lane(layout, means.read(self.group.config))
        metrics = _prefixed("train", train)
        if self.validation is not None:
            validation = self._evaluate(layout, state, self.validation, self._mesh)
            metrics |= _prefixed("validation", validation)
        return metrics

    def _diagnostics(self, layout: Layout, state) -> dict[str, np.ndarray]:
        """The metrics of the training data after the last epoch, `[n]` by name."""
        if self._source is None:
            rows = probe(self.data, self.key, {})
            metrics = self._evaluate(layout, state, rows, self._mesh)
        else:
            metrics = self._evaluate_on_source(layout, state)
        # "train/" has the means of the epoch by these names.
        for name in diagnostics.names_of_step(self.group.objective):
            del metrics[name]
        return _prefixed("train", metrics)

    def _evaluate_on_source(self, layout: Layout, state) -> dict[str, np.ndarray]:
        """`_evaluate` each lane on the rows that the source draws for it."""
        # Without the optimizer's state, which nothing reads here.
        states = _by_lane(layout, state._replace(opt_state=()))

        def lane_metrics(k, lane):
            key = jax.random.fold_in(self.key, self.group.seeds[lane])
            hparams = {name: v[lane] for name, v in self.group.hparams.items()}
            rows = probe(self._source, key, hparams)
            state = jax.tree.map(lambda leaf: leaf[None, None, k : k + 1], states)
            alone = self.group.layout(1, 1, np.array([lane]))
            return self._evaluate(alone, state, rows, mesh=None)

        metrics = [lane_metrics(k, lane) for k, lane in enumerate(layout.lanes())]
        names = dict.fromkeys(name for row in metrics for name in row)
        return {
            name: np.hstack([row.get(name, np.nan) for row in metrics])
            for name in names
        }

    def _evaluate(self, layout: Layout, state, X, mesh) -> dict[str, np.ndarray]:
        """`diagnostics.evaluate` of every lane, `[n]` by name."""
        objective, hparams = self.group.objective, self._hparams(layout)

        def of_batch(batch):
            return program.evaluate_block(
                state, hparams, batch, objective=objective, mesh=mesh
            )

        block_rows = max(256, _BLOCK_ROWS // layout.lanes_at_once)
        sums = diagnostics.sum_blocks(of_batch, X, block_rows)
        return _by_lane(layout, diagnostics.as_metrics(objective, sums))


def _prefixed(prefix: str, metrics: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


# ---- between the device, `[C, S, M, ...]`, and the host, `[n, ...]` ------------------


def _carry(state: Any, means: Means) -> tuple:
    return state._replace(params=None, stopped_at=None), means


def _by_lane(layout: Layout, tree) -> Any:
    """`[C, S, M, ...]` to `[n, ...]`, in the order of `layout.lanes()`."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[layout.is_first], tree)


def _resumed(results: LaneResults, layout: Layout) -> tuple[TrainState, Means]:
    """The state and means of the lanes of a layout, from the results."""
    state, means = results.carry
    state = state._replace(params=results.params, stopped_at=results.stopped_at)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[layout.slots]), (state, means))


def on_device(data: Any) -> Any:
    """The arrays of a dataset on the device; a source and None stay as they are."""
    return data if callable(data) else jax.tree.map(jnp.asarray, data)


# ---- on a Ray cluster ----------------------------------------------------------------


class RayCluster:
    """Trains blocks of lanes as tasks of the Ray cluster that is connected.

    Tasks are independent: a dead worker costs one block, which is trained again.
    Workers need this package, and a device for each task that runs at once. If no
    cluster is connected, `ray.init()` connects to RAY_ADDRESS or starts one on this
    machine.

    Raises:
      ImportError: if ray is not installed.
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
        self,
        trainer: GroupTrainer,
        results: LaneResults,
        layouts,
        rung,
        report_progress,
    ) -> Iterator[LaneBlock]:
        """As `GroupTrainer.train_blocks`; blocks come back in any order.

        A task ends after a minute, and another one resumes its block, so that a dead
        worker costs no more than that.
        """
        if trainer not in self._descriptions:
            self._descriptions[trainer] = self._ray.put(_describe(trainer))
        description, task = self._descriptions[trainer], self._task()

        def submit(layouts) -> dict[Any, Layout]:
            tasks = {}
            for layout in layouts:
                for part in trainer.unfinished(results, layout, rung):
                    start = results.block(part.lanes())._replace(metrics={})
                    tasks[task.remote(description, start, part, rung)] = part
            return tasks

        running = submit(layouts)
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


def _describe(trainer: GroupTrainer) -> dict[str, Any]:
    """What a worker needs to make an equal trainer."""
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
