"""The lanes of one group, trained block by block."""

import functools
import math
import time
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxae.sweeps import plans, program
from jaxae.sweeps.groups import Group, num_steps
from jaxae.sweeps.layouts import Layout, layout
from jaxae.sweeps.plans import Schedule
from jaxae.sweeps.program import LaneState
from jaxae.sweeps.store import Part
from jaxae.training import diagnostics, epochs
from jaxae.training.looking import probe

BLOCK_SECONDS = 60.0  # of training that a kill may cost
_BLOCK_ROWS = 16384  # looked at together, of one lane


class Kept(NamedTuple):
    """Of a ledger, what lanes `[n, ...]` go on from in a next rung."""

    params: Any
    rest: Any
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
        key = self._key
        is_typed = jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
        return {
            "token": uuid.uuid4().hex,
            "group": self.group,
            "data": _on_host(self._data),
            "validation": _on_host(self._validation),
            "key": np.asarray(jax.random.key_data(key) if is_typed else key),
            "impl": str(jax.random.key_impl(key)) if is_typed else None,
        }

    @classmethod
    def of(cls, described: dict[str, Any], devices) -> "GroupRun":
        """The run that was described."""
        key = jnp.asarray(described["key"])
        if described["impl"] is not None:
            key = jax.random.wrap_key_data(key, impl=described["impl"])
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
        alike: Schedule | None,
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
            alike=alike,
        )

    def train(
        self, kept, lanes, rung: range, schedule: Schedule, tell
    ) -> Iterator[Part]:
        """These epochs of these lanes, which go on from what is kept of them."""
        if len(lanes):
            whole = self._layout(lanes, schedule.lanes_at_once)
            blocks = whole.blocks(min(schedule.num_chunks, len(whole.slots)))
            yield from self.train_blocks(kept, blocks, rung, tell)

    def train_blocks(
        self, kept, blocks: list[Layout], rung: range, tell
    ) -> Iterator[Part]:
        """Block by block; where one does not fit the memory, its chunks are halved."""
        for i, block in enumerate(blocks):
            try:
                yield self._train_block(kept, block, rung, tell)
            except jax.errors.JaxRuntimeError as error:
                at_once = block.lanes_at_once
                if "RESOURCE_EXHAUSTED" not in str(error) or at_once == 1:
                    raise
                left = np.concatenate([block.lanes() for block in blocks[i:]])
                whole = self._layout(left, at_once // 2)
                smaller = whole.blocks(min(len(block.slots), len(whole.slots)))
                yield from self.train_blocks(kept, smaller, rung, tell)
                return

    def _layout(self, lanes, lanes_at_once: int) -> Layout:
        whole = layout(self.group.seeds[lanes], lanes_at_once, len(self._devices))
        return whole._replace(slots=lanes[whole.slots])

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

    def like(self, rung: range) -> tuple[Any, Any]:
        """The structures of a part's params and rest after a rung."""
        one = self._begin(layout(self.group.seeds[:1], 1, len(self._devices)))[0]
        return one.params, self._rest(one, rung)

    # ---- one block -------------------------------------------------------------------

    def _train_block(self, kept, block: Layout, rung: range, tell) -> Part:
        state, hparams = self._begin(block)
        if rung.start > 0:
            state = _restored(kept, block)
        history: list[dict] = []
        for epoch in rung:
            shared = self._shared(block, epoch * self.num_steps)
            means = self._means(block, state, hparams)
            state, means = self._run(block, state, means, hparams, shared)
            row = _lanes_of(block, _prefixed("train", means.read(self.group.config)))
            if self._validation is not None:
                scores = self._scores(state, hparams, block, self._validation)
                row |= _prefixed("validation", scores)
            history.append(row)
            tell(len(block.lanes()) * self.num_steps)
        final = {}
        if self.group.config.diagnostics and self._is_last(rung):
            final = self._final(state, hparams, block)
        own = _lanes_of(block, state)
        return Part(
            indices=block.lanes(),
            params=own.params,
            rest=self._rest(own, rung),
            stopped_at=own.stopped_at,
            rows={
                name: np.stack([row[name] for row in history], axis=1)
                for name in history[0]
            },
            final=final,
        )

    def _is_last(self, rung: range) -> bool:
        return rung.stop == self.group.config.num_epochs

    def _rest(self, state: LaneState, rung: range) -> Any:
        return () if self._is_last(rung) else (state.opt_state, state.state)

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
            whole = program.whole(of_lane(state), self._key, np.int32(0))
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

    def _run(self, block: Layout, state, means, hparams, shared, last=None):
        return program.run(
            state,
            means,
            hparams,
            block.seed_of,
            shared,
            np.int32(0),
            np.int32(self.num_steps if last is None else last),
            source=self._source,
            **self._static,
        )

    def _trial(self, block: Layout, steps: int) -> float:
        """Seconds that so many steps of these lanes take; what they make is dropped."""
        state, hparams = self._begin(block)
        shared, means = self._shared(block, 0), self._means(block, state, hparams)
        jax.block_until_ready((state, shared, means))
        begun = time.perf_counter()
        jax.block_until_ready(self._run(block, state, means, hparams, shared, steps))
        return time.perf_counter() - begun

    # ---- looking ---------------------------------------------------------------------

    def _scores(self, state, hparams, block: Layout, X) -> dict[str, np.ndarray]:
        """`diagnostics.evaluate` of every lane, `[n]` by name."""
        rows = max(256, _BLOCK_ROWS // block.lanes_at_once)
        parts = []
        for part in diagnostics.blocks(X, rows):
            batch = part if len(part) == 2 else part[0]
            seen = program.look(
                state.params,
                hparams,
                batch,
                objective=self.group.objective,
                mesh=self._mesh,
            )
            parts.append((seen, diagnostics.spread_of(part), len(part[0])))
        parts = jax.device_get(parts)

        def of_lane(place):
            width = int(self.group.widths[block.slots[place]])
            sums = [
                diagnostics.sums(_seen_of(seen, place, width), spread, num_rows)
                for seen, spread, num_rows in parts
            ]
            whole = functools.reduce(diagnostics.merge, sums)
            return diagnostics.as_metrics(self.group.objective, whole)

        scores = [of_lane(tuple(place)) for place in np.argwhere(block.is_first)]
        names = dict.fromkeys(name for score in scores for name in score)
        return {n: np.array([s.get(n, np.nan) for s in scores]) for n in names}

    def _final(self, state, hparams, block: Layout) -> dict[str, np.ndarray]:
        """What `train` looks at on the training data, once."""
        if self._source is not None:  # endless, and of each lane another
            return {}
        X = probe(self._data, self._key, hparams)
        scores = self._scores(state, hparams, block, X)
        # Of these "train/" has the epoch's own means.
        for name in diagnostics.names_of_step(self.group.objective):
            del scores[name]
        return _prefixed("train", scores)


def _seen_of(seen: dict[str, Any], place: tuple, width: int) -> dict[str, Any]:
    """Of one lane, without its padding."""
    one = jax.tree.map(lambda leaf: leaf[place], seen)
    for name in ("is_dead", "is_saturated"):
        one[name] = None if one[name] is None else one[name][:width]
    return one


def _on_host(data: Any) -> Any:
    return data if callable(data) else jax.tree.map(np.asarray, data)


def _of_lane(leaf) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape[3:], leaf.dtype)


def _restored(kept, block: Layout) -> LaneState:
    """As the last rung left them."""
    opt_state, state = kept.rest
    whole = LaneState(kept.params, opt_state, state, kept.stopped_at)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[block.slots]), whole)


def _lanes_of(block: Layout, tree) -> Any:
    """`[C, S, M, ...]` as one entry a lane, in the order of `block.lanes()`."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[block.is_first], tree)


def _prefixed(part: str, metrics: dict[str, Any]) -> dict[str, Any]:
    return {f"{part}/{name}": value for name, value in metrics.items()}
