"""The training of one group of lanes, block by block."""

import functools
import math
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxae._keys import generator_of
from jaxae.sweeps import plans, program
from jaxae.sweeps.groups import Group, Layout
from jaxae.sweeps.plans import Schedule
from jaxae.sweeps.program import LaneState
from jaxae.sweeps.results import LaneBlock, LaneResults
from jaxae.training import batches, checkpointing, diagnostics, train_step

BLOCK_SECONDS = 60.0  # the training that is lost, at most, if the process is killed
_SAVING_SHARE = 0.1  # of the time, at most
_BLOCK_ROWS = 16384  # rows of one evaluation, summed over the lanes at once


class GroupRun:
    """The program of one group, on its data and devices.

    Attributes:
      group: the lanes.
      data, validation: on the device.
      num_steps: of an epoch.
    """

    def __init__(self, group: Group, data, validation, key, devices):
        self.group, self.data, self.validation = group, data, validation
        self.num_steps = batches.num_steps(data, group.config)
        self._key, self._devices = key, devices
        self._source = data if callable(data) else None
        self._means_shapes: train_step.Means | None = None  # of one lane, once known
        is_mesh = len(devices) > 1
        self._mesh = Mesh(np.array(devices), (program.AXIS,)) if is_mesh else None
        self._static = {
            "objective": group.objective,
            "config": group.config.program(),
            "mesh": self._mesh,
        }

    def description(self) -> dict[str, Any]:
        """What another process needs to make this run, with `from_description`."""
        return {
            "token": uuid.uuid4().hex,
            "group": self.group,
            "data": _on_host(self.data),
            "validation": _on_host(self.validation),
            "key": np.asarray(jax.random.key_data(self._key)),
            "generator": generator_of(self._key),
        }

    @classmethod
    def from_description(cls, description: dict[str, Any], devices) -> "GroupRun":
        """The run with that description."""
        key = jax.random.wrap_key_data(
            jnp.asarray(description["key"]), impl=description["generator"]
        )
        data, validation = description["data"], description["validation"]
        if not callable(data):
            data = jax.tree.map(jnp.asarray, data)
        validation = jax.tree.map(jnp.asarray, validation)
        return cls(description["group"], data, validation, key, devices)

    @property
    def size(self) -> tuple[int, ...]:
        """The numbers on which speed depends."""
        ae, seeds = self.group.objective.ae, set(self.group.seeds.tolist())
        batch_size = self.group.config.batch_size
        return (
            len(self.group.lanes),
            len(seeds),
            ae.input_dim,
            ae.latent_dim,
            batch_size,
        )

    def metric_names(self) -> list[str]:
        """The metrics of every epoch; the validation metrics are found on one row."""
        objective = self.group.objective
        names = [f"train/{name}" for name in diagnostics.names_of_step(objective)]
        if self.group.config.on_nonfinite == "skip":
            names.append("train/skipped_steps")
        if self.validation is not None:
            params = objective.ae.init(self._key)
            row = jax.tree.map(lambda rows: rows[:1], self.validation)
            hparams = self.group.hparams_of(0)
            metrics = diagnostics.evaluate(objective, params, row, hparams)
            names += [f"validation/{name}" for name in metrics]
        return names

    def structure(self) -> tuple[Any, Any]:
        """The pytree structures of a `LaneBlock`'s params and carry."""

        def begin():
            layout = self.group.layout(1, len(self._devices), np.array([0]))
            state, hparams = self._begin(layout)
            return state, self._zero_means(layout, state, hparams)

        state, means = jax.eval_shape(begin)
        return state.params, _carry(state, means)

    def schedule(
        self,
        num_epochs: int,
        budget: int,
        lanes_at_once: int | None,
        is_saved: bool,
        reuse: Schedule | None,
    ) -> Schedule:
        """How the lanes are run; blocks are short where they are saved on disk."""
        return plans.schedule_of(
            self.group,
            self._trial,
            self.num_steps * num_epochs,
            budget=budget,
            num_devices=len(self._devices),
            lanes_at_once=lanes_at_once,
            block_seconds=BLOCK_SECONDS if is_saved else math.inf,
            reuse=reuse,
        )

    def _trial(self, block: Layout, num_steps: int) -> float:
        """The seconds that some steps of these lanes take; results are dropped."""
        state, hparams = self._begin(block)
        shared, means = self._shared(block, 0), self._zero_means(block, state, hparams)
        jax.block_until_ready((state, shared, means))
        start = time.perf_counter()
        results = self._run(block, state, means, hparams, shared, 0, num_steps)
        jax.block_until_ready(results)
        return time.perf_counter() - start

    # ---- blocks ----------------------------------------------------------------------

    def train(
        self, results: LaneResults, lanes, rung: range, schedule, report_progress
    ) -> Iterator[LaneBlock]:
        """Train some lanes to the end of a rung, from where they are in the results."""
        layouts = self.layouts(lanes, schedule)
        yield from self.train_blocks(results, layouts, rung, report_progress)

    def layouts(self, lanes, schedule: Schedule) -> list[Layout]:
        """The blocks in which lanes are trained; they do not depend on progress."""
        if not len(lanes):
            return []
        layout = self._layout(lanes, schedule.lanes_at_once)
        return layout.blocks(min(schedule.num_chunks, len(layout.slots)))

    def train_blocks(
        self, results: LaneResults, layouts, rung: range, report_progress
    ) -> Iterator[LaneBlock]:
        """Train blocks; if one runs out of memory, retry with half the lanes at once.

        The caller must add each yielded block to the results.
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
                halved = self._layout(lanes, at_once // 2)
                smaller = halved.blocks(min(len(layout.slots), len(halved.slots)))
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
            part = self._layout(lanes[steps == step], layout.lanes_at_once)
            blocks += part.blocks(min(len(layout.slots), len(part.slots)))
        return blocks

    def _layout(self, lanes, lanes_at_once: int) -> Layout:
        return self.group.layout(lanes_at_once, len(self._devices), lanes)

    def _train_block(
        self, results: LaneResults, layout: Layout, rung: range, report_progress
    ) -> Iterator[LaneBlock]:
        """Train to the end of the rung; yield the lanes each minute and at the end."""
        lanes, num_steps = layout.lanes(), self.num_steps
        step, end = int(results.step[lanes[0]]), rung.stop * num_steps
        state, hparams = self._begin(layout)
        means = self._zero_means(layout, state, hparams)
        if step > 0:
            state, means = _resumed(results, layout)
        shared, history = None, []
        pace = checkpointing.Pace(1)  # a step of many lanes may be long
        saved_at, interval = time.monotonic(), BLOCK_SECONDS
        while step < end:
            first = step % num_steps
            if shared is None or first == 0:
                shared = self._shared(layout, step - first)
            shared = shared._replace(step=np.int32(step))
            last = first + pace.num_steps(num_steps - first)
            state, means = self._run(layout, state, means, hparams, shared, first, last)
            jax.block_until_ready(state)
            step += last - first
            if last == num_steps:
                history.append(self._epoch_metrics(layout, state, means, hparams))
                means = self._zero_means(layout, state, hparams)
            report_progress(len(lanes) * (last - first))
            now = time.monotonic()
            if step == end or now - saved_at >= interval:
                yield self._lane_block(layout, state, means, hparams, step, history)
                history, saved_at = [], time.monotonic()
                interval = max(BLOCK_SECONDS, (saved_at - now) / _SAVING_SHARE)

    def _lane_block(
        self, layout: Layout, state, means, hparams, step: int, history
    ) -> LaneBlock:
        """The lanes of a block on the host, with the metrics of the last epochs."""
        num_epochs, config = step // self.num_steps, self.group.config
        final = {}
        if config.diagnostics and num_epochs == config.num_epochs:
            final = self._diagnostics(layout, state, hparams)
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

    def _begin(self, layout: Layout) -> tuple[LaneState, dict]:
        """The lanes before the first step, and their hyperparameters."""
        hparams = {n: values[layout.slots] for n, values in self.group.hparams.items()}
        limits = self.group.limits[layout.slots]
        keys = program.keys_of(self._key, layout.seeds)
        state = program.begin(hparams, limits, keys, layout.seed_of, **self._static)
        return state, hparams

    def _shared(self, layout: Layout, epoch_start: int) -> program.Shared:
        """What the lanes share in the epoch that begins at that step."""
        num_rows = None if self._source is not None else batches.num_rows(self.data)
        keys, orders = program.keys_and_orders(
            self._key, layout.seeds, np.int32(epoch_start), num_rows=num_rows
        )
        data = None if self._source is not None else self.data
        return program.Shared(keys, orders, data, np.int32(epoch_start))

    def _zero_means(
        self, layout: Layout, state: LaneState, hparams
    ) -> train_step.Means:
        """The means of the metrics at the beginning of an epoch."""
        if self._means_shapes is None:
            lane, lane_hparams = jax.tree.map(_lane_shape, (state, hparams))
            init = functools.partial(
                train_step.init_means, objective=self.group.objective
            )
            self._means_shapes = jax.eval_shape(
                init,
                program.to_train_state(lane, self._key, np.int32(0)),
                batches.batch_shape(
                    self.data, self._key, lane_hparams, self.group.config
                ),
                lane_hparams,
            )
        shape = layout.slots.shape
        return jax.tree.map(
            lambda leaf: jnp.zeros((*shape, *leaf.shape), leaf.dtype),
            self._means_shapes,
        )

    def _run(self, layout: Layout, state, means, hparams, shared, first, last):
        return program.run(
            state,
            means,
            hparams,
            layout.seed_of,
            shared,
            np.int32(first),
            np.int32(last),
            source=self._source,
            **self._static,
        )

    # ---- evaluation ------------------------------------------------------------------

    def _epoch_metrics(self, layout: Layout, state, means, hparams) -> dict:
        """The metrics of an epoch that has ended, `[n]` by name."""
        train = _by_lane(layout, means.read(self.group.config))
        metrics = _prefixed("train", train)
        if self.validation is not None:
            validation = self._evaluate(
                layout, state, hparams, self.validation, self._mesh
            )
            metrics |= _prefixed("validation", validation)
        return metrics

    def _diagnostics(self, layout: Layout, state, hparams) -> dict[str, np.ndarray]:
        """The metrics of the training data after the last epoch, `[n]` by name."""
        if self._source is None:
            rows = diagnostics.probe(self.data, self._key, hparams)
            metrics = self._evaluate(layout, state, hparams, rows, self._mesh)
        else:
            metrics = self._evaluate_on_source(layout, state, hparams)
        # "train/" has the means of the epoch by these names.
        for name in diagnostics.names_of_step(self.group.objective):
            del metrics[name]
        return _prefixed("train", metrics)

    def _evaluate_on_source(self, layout: Layout, state, hparams) -> dict:
        """`_evaluate` each lane on the rows that the source draws for it."""
        # Without the optimizer's state, which nothing reads here.
        stacked = jax.device_get((state._replace(opt_state=()), hparams))

        def lane_metrics(place):
            lane = layout.slots[place]
            own_state, own_hparams = jax.tree.map(lambda leaf: leaf[place], stacked)
            key = jax.random.fold_in(self._key, self.group.seeds[lane])
            rows = diagnostics.probe(self._source, key, own_hparams)
            own_state, own_hparams = jax.tree.map(
                lambda leaf: leaf[None, None, None], (own_state, own_hparams)
            )
            one = self.group.layout(1, 1, np.array([lane]))
            return self._evaluate(one, own_state, own_hparams, rows, mesh=None)

        return _joined(lane_metrics(place) for place in layout.places())

    def _evaluate(self, layout: Layout, state, hparams, X, mesh) -> dict:
        """`diagnostics.evaluate` of every lane, `[n]` by name."""
        objective = self.group.objective

        def of_batch(batch):
            return program.evaluate_block(
                state, hparams, batch, objective=objective, mesh=mesh
            )

        rows = max(256, _BLOCK_ROWS // layout.lanes_at_once)
        sums = diagnostics.sum_blocks(of_batch, X, rows)
        return _by_lane(layout, diagnostics.as_metrics(objective, sums))


def _joined(metrics: Iterable[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The metrics of several lanes, `[n]` by name; nan where a lane lacks one."""
    metrics = list(metrics)
    names = dict.fromkeys(name for row in metrics for name in row)
    return {
        name: np.hstack([row.get(name, np.nan) for row in metrics]) for name in names
    }


def _prefixed(prefix: str, metrics: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


# ---- between the device, `[C, S, M, ...]`, and the host, `[n, ...]` ------------------


def _carry(state: LaneState, means: train_step.Means) -> tuple:
    return state.opt_state, state.state, means


def _by_lane(layout: Layout, tree) -> Any:
    """`[C, S, M, ...]` to `[n, ...]`, in the order of `layout.lanes()`."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[layout.is_first], tree)


def _resumed(
    results: LaneResults, layout: Layout
) -> tuple[LaneState, train_step.Means]:
    """The state and means of the lanes of a layout, from the results."""
    opt_state, objective_state, means = results.carry
    state = LaneState(results.params, opt_state, objective_state, results.stopped_at)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[layout.slots]), (state, means))


def _lane_shape(leaf) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape[3:], leaf.dtype)


def _on_host(data: Any) -> Any:
    return data if callable(data) else jax.tree.map(np.asarray, data)
