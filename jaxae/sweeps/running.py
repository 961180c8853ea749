"""The lanes of one group, trained block by block."""

import functools
import math
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxae._keys import generator_of
from jaxae.sweeps import plans, program
from jaxae.sweeps.groups import Group, num_steps
from jaxae.sweeps.layouts import Layout
from jaxae.sweeps.plans import Schedule
from jaxae.sweeps.program import LaneState
from jaxae.sweeps.store import LaneBlock
from jaxae.training import diagnostics, epochs
from jaxae.training.checkpointing import Pace
from jaxae.training.evaluation import probe

BLOCK_SECONDS = 60.0  # of training that a kill may cost
_SAVING_SHARE = 0.1  # of the time, at most
_BLOCK_ROWS = 16384  # looked at together, of one lane


class ResumeState(NamedTuple):
    """Of a ledger, what lanes `[n, ...]` go on from."""

    params: Any
    rest: Any
    step: Any
    stopped_at: Any


class GroupRun:
    """The program of one group, on its data and devices.

    Attributes:
      group: whose lanes.
      num_steps: of an epoch.
    """

    def __init__(self, group: Group, data, validation, key, devices):
        self.group, self.num_steps = group, num_steps(group, data)
        self._data, self._validation, self._key = data, validation, key
        self._source = data if callable(data) else None
        self._devices = devices
        self._logged = None  # the shapes of what a lane logs
        several = len(devices) > 1
        self._mesh = Mesh(np.array(devices), (program.AXIS,)) if several else None
        self._static = {
            "objective": group.objective,
            "config": group.config.program(),
            "mesh": self._mesh,
        }

    def described(self) -> dict[str, Any]:
        """What another process makes it again from, by `of`."""
        return {
            "token": uuid.uuid4().hex,
            "group": self.group,
            "data": _on_host(self._data),
            "validation": _on_host(self._validation),
            "key": np.asarray(jax.random.key_data(self._key)),
            "generator": generator_of(self._key),
        }

    @classmethod
    def of(cls, described: dict[str, Any], devices) -> "GroupRun":
        """The run that was described."""
        key = jax.random.wrap_key_data(
            jnp.asarray(described["key"]), impl=described["generator"]
        )
        data, validation = described["data"], described["validation"]
        if not callable(data):
            data = jax.tree.map(jnp.asarray, data)
        validation = jax.tree.map(jnp.asarray, validation)
        return cls(described["group"], data, validation, key, devices)

    @property
    def size(self) -> tuple[int, ...]:
        """Of its lanes and of their arrays: what speed depends on."""
        ae, seeds = self.group.objective.ae, set(self.group.seeds.tolist())
        rows = self.group.config.batch_size
        return len(self.group.lanes), len(seeds), ae.input_dim, ae.latent_dim, rows

    def schedule(
        self,
        num_epochs: int,
        budget: int,
        lanes_at_once: int | None,
        is_kept: bool,
        reuse: Schedule | None,
    ) -> Schedule:
        """How the lanes are to be run; blocks are short where they are kept on disk."""
        return plans.schedule_of(
            self.group,
            self._trial,
            self.num_steps * num_epochs,
            budget=budget,
            num_devices=len(self._devices),
            lanes_at_once=lanes_at_once,
            block_seconds=BLOCK_SECONDS if is_kept else math.inf,
            reuse=reuse,
        )

    def train(
        self, kept, lanes, rung: range, schedule: Schedule, tell
    ) -> Iterator[LaneBlock]:
        """These lanes to the end of a rung, from where what is kept of them stands."""
        yield from self.train_blocks(kept, self.blocks(lanes, schedule), rung, tell)

    def blocks(self, lanes, schedule: Schedule) -> list[Layout]:
        """Lanes as they are trained together; the same however far they have come."""
        if not len(lanes):
            return []
        whole = self._layout(lanes, schedule.lanes_at_once)
        return whole.blocks(min(schedule.num_chunks, len(whole.slots)))

    def is_left(self, kept, block: Layout, rung: range) -> bool:
        """Whether any lane of a block is not yet at the end of a rung."""
        return bool((kept.step[block.lanes()] < rung.stop * self.num_steps).any())

    def train_blocks(
        self, kept, blocks: list[Layout], rung: range, tell
    ) -> Iterator[LaneBlock]:
        """Block by block; where one does not fit the memory, its chunks are halved."""
        for i, block in enumerate(blocks):
            try:
                for one in self._in_step(kept, block, rung):
                    yield from self._train_block(kept, one, rung, tell)
            except jax.errors.JaxRuntimeError as error:
                at_once = block.lanes_at_once
                if "RESOURCE_EXHAUSTED" not in str(error) or at_once == 1:
                    raise
                left = np.concatenate([block.lanes() for block in blocks[i:]])
                whole = self._layout(left, at_once // 2)
                smaller = whole.blocks(min(len(block.slots), len(whole.slots)))
                yield from self.train_blocks(kept, smaller, rung, tell)
                return

    def _in_step(self, kept, block: Layout, rung: range) -> list[Layout]:
        """What is left of a block, in blocks whose lanes stand at one step each."""
        lanes = block.lanes()
        steps = kept.step[lanes]
        left = np.unique(steps[steps < rung.stop * self.num_steps])
        if len(left) == 1 and (steps == left).all():
            return [block]
        parts = [self._layout(lanes[steps == s], block.lanes_at_once) for s in left]
        most = len(block.slots)
        return [
            one for part in parts for one in part.blocks(min(most, len(part.slots)))
        ]

    def _layout(self, lanes, lanes_at_once: int) -> Layout:
        return self.group.layout(lanes_at_once, len(self._devices), lanes)

    def names(self) -> list[str]:
        """The metrics of every epoch, as one row tells before hours of training do."""
        objective = self.group.objective
        found = [f"train/{name}" for name in diagnostics.names_of_step(objective)]
        if self.group.config.on_nonfinite == "skip":
            found.append("train/skipped_steps")
        if self._validation is not None:
            params = objective.ae.init(self._key)
            row = jax.tree.map(lambda part: part[:1], self._validation)
            hparams = self.group.hparams_of(0)
            scores = diagnostics.evaluate(objective, params, row, hparams)
            found += [f"validation/{name}" for name in scores]
        return found

    def like(self) -> tuple[Any, Any]:
        """The structures of a part's params and rest."""

        def begun():
            block = self.group.layout(1, len(self._devices), np.array([0]))
            state, hparams = self._begin(block)
            return state, self._means(block, state, hparams)

        state, means = jax.eval_shape(begun)
        return state.params, _rest(state, means)

    # ---- one block -------------------------------------------------------------------

    def _train_block(
        self, kept, block: Layout, rung: range, tell
    ) -> Iterator[LaneBlock]:
        """To the end of the rung, and what the lanes are each minute until then."""
        lanes, num_steps = block.lanes(), self.num_steps
        step, end = int(kept.step[lanes[0]]), rung.stop * num_steps
        state, hparams = self._begin(block)
        means = self._means(block, state, hparams)
        if step > 0:
            state, means = _restored(kept, block)
        shared, history, pace = None, [], Pace(1)  # a step of many lanes may be long
        saved_at, interval = time.monotonic(), BLOCK_SECONDS
        while step < end:
            first = step % num_steps
            if shared is None or first == 0:
                shared = self._shared(block, step - first)
            shared = shared._replace(step=np.int32(step))
            last = min(num_steps, first + pace.num_steps())
            state, means = self._run(block, state, means, hparams, shared, first, last)
            jax.block_until_ready(state)
            step += last - first
            if last == num_steps:
                history.append(self._row(block, state, means, hparams))
                means = self._means(block, state, hparams)
            tell(len(lanes) * (last - first))
            asked_at = time.monotonic()
            if step == end or asked_at - saved_at >= interval:
                yield self._part(block, state, means, hparams, step, history)
                history, saved_at = [], time.monotonic()
                cost = saved_at - asked_at
                interval = max(BLOCK_SECONDS, cost / _SAVING_SHARE)

    def _row(self, block: Layout, state, means, hparams) -> dict[str, np.ndarray]:
        """The metrics of an epoch that has ended, `[n]` by name."""
        row = _lanes_of(block, _prefixed("train", means.read(self.group.config)))
        if self._validation is not None:
            scores = self._scores(state, hparams, block, self._validation)
            row |= _prefixed("validation", scores)
        return row

    def _part(
        self, block: Layout, state, means, hparams, step: int, history
    ) -> LaneBlock:
        """What the lanes of a block are, with the rows of the last epochs."""
        num_epochs, config = step // self.num_steps, self.group.config
        final = {}
        if config.diagnostics and num_epochs == config.num_epochs:
            final = self._final(state, hparams, block)
        own = _lanes_of(block, state)
        return LaneBlock(
            indices=block.lanes(),
            params=own.params,
            rest=_rest(own, _lanes_of(block, means)),
            step=step,
            num_epochs=num_epochs,
            stopped_at=own.stopped_at,
            rows={
                name: np.stack([row[name] for row in history], axis=1)
                for name in (history[0] if history else ())
            },
            final=final,
        )

    def _begin(self, block: Layout) -> tuple[LaneState, dict]:
        hparams = {n: values[block.slots] for n, values in self.group.hparams.items()}
        limits = self.group.limits[block.slots]
        keys = program.keys_of(self._key, block.seeds)
        state = program.begin(hparams, limits, keys, block.seed_of, **self._static)
        return state, hparams

    def _shared(self, block: Layout, step: int) -> program.Shared:
        num_rows = None if self._source is not None else epochs.num_rows(self._data)
        keys, orders = program.keys_and_orders(
            self._key, block.seeds, np.int32(step), num_rows=num_rows
        )
        data = None if self._source is not None else self._data
        return program.Shared(keys, orders, data, np.int32(step))

    def _means(self, block: Layout, state: LaneState, hparams) -> epochs.Means:
        """Zeros, for what each lane will log."""
        if self._logged is None:
            of_lane = functools.partial(jax.tree.map, _of_lane)
            whole = program.to_train_state(of_lane(state), self._key, np.int32(0))
            init = functools.partial(epochs.init_means, objective=self.group.objective)
            hparams = of_lane(hparams)
            self._logged = jax.eval_shape(init, whole, self._batch(hparams), hparams)
        shape = block.slots.shape
        return jax.tree.map(
            lambda leaf: jnp.zeros((*shape, *leaf.shape), leaf.dtype), self._logged
        )

    def _batch(self, hparams) -> Any:
        if self._source is not None:
            return jax.eval_shape(self._source, self._key, hparams)
        size = self.group.config.batch_size
        return jax.tree.map(
            lambda part: jax.ShapeDtypeStruct((size, part.shape[1]), part.dtype),
            self._data,
        )

    def _run(self, block: Layout, state, means, hparams, shared, first, last):
        return program.run(
            state,
            means,
            hparams,
            block.seed_of,
            shared,
            np.int32(first),
            np.int32(last),
            source=self._source,
            **self._static,
        )

    def _trial(self, block: Layout, steps: int) -> float:
        """Seconds that so many steps of these lanes take; what they make is dropped."""
        state, hparams = self._begin(block)
        shared, means = self._shared(block, 0), self._means(block, state, hparams)
        jax.block_until_ready((state, shared, means))
        begun = time.perf_counter()
        jax.block_until_ready(self._run(block, state, means, hparams, shared, 0, steps))
        return time.perf_counter() - begun

    # ---- looking ---------------------------------------------------------------------

    def _scores(self, state, hparams, block: Layout, X) -> dict[str, np.ndarray]:
        """`diagnostics.evaluate` of every lane, `[n]` by name."""
        rows = max(256, _BLOCK_ROWS // block.lanes_at_once)
        objective = self.group.objective

        def of_batch(batch):
            return program.evaluate_block(
                state, hparams, batch, objective=objective, mesh=self._mesh
            )

        sums = diagnostics.sum_blocks(of_batch, X, rows)
        return _lanes_of(block, diagnostics.as_metrics(objective, sums))

    def _final(self, state, hparams, block: Layout) -> dict[str, np.ndarray]:
        """What `train` looks at on the training data, once."""
        if self._source is None:
            X = probe(self._data, self._key, hparams)
            scores = self._scores(state, hparams, block, X)
        else:
            scores = self._scores_of_source(state, hparams, block)
        # Of these "train/" has the epoch's own means.
        for name in diagnostics.names_of_step(self.group.objective):
            del scores[name]
        return _prefixed("train", scores)

    def _scores_of_source(self, state, hparams, block: Layout) -> dict[str, np.ndarray]:
        """The same for data that are endless, and other ones for each lane."""
        objective, everything = self.group.objective, jax.device_get(state)

        def of_lane(place):
            one_lane, mine = jax.tree.map(
                lambda leaf: leaf[place], (everything, hparams)
            )
            lane = int(block.slots[place])
            key = jax.random.fold_in(self._key, self.group.seeds[lane])
            X = probe(self._source, key, mine)

            def of_batch(batch):
                return diagnostics.evaluate_block(
                    one_lane.params, batch, mine, one_lane.state, objective=objective
                )

            sums = diagnostics.sum_blocks(of_batch, X, _BLOCK_ROWS)
            return diagnostics.as_metrics(objective, sums)

        return _by_name(map(of_lane, block.places()))


def _by_name(scores: Iterable[dict[str, float]]) -> dict[str, np.ndarray]:
    """The metrics of several lanes, `[n]`; nan where a lane lacks one."""
    scores = list(scores)
    names = dict.fromkeys(name for score in scores for name in score)
    return {n: np.array([s.get(n, np.nan) for s in scores]) for n in names}


def _on_host(data: Any) -> Any:
    return data if callable(data) else jax.tree.map(np.asarray, data)


def _of_lane(leaf) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape[3:], leaf.dtype)


def _rest(state: LaneState, means: epochs.Means) -> tuple:
    """What training goes on from, beside the parameters and where it stopped."""
    return state.opt_state, state.state, means


def _restored(kept, block: Layout) -> tuple[LaneState, epochs.Means]:
    """As they were kept."""
    opt_state, state, means = kept.rest
    whole = LaneState(kept.params, opt_state, state, kept.stopped_at), means
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[block.slots]), whole)


def _lanes_of(block: Layout, tree) -> Any:
    """`[C, S, M, ...]` as one entry a lane, in the order of `block.lanes()`."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[block.is_first], tree)


def _prefixed(part: str, metrics: dict[str, Any]) -> dict[str, Any]:
    return {f"{part}/{name}": value for name, value in metrics.items()}
