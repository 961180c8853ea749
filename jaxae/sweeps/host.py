"""The host's loop of a sweep: groups, rungs, blocks, epochs."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxae.sweeps import plans, program, results, spaces
from jaxae.sweeps.groups import Group, groups_of, num_steps
from jaxae.sweeps.halving import rungs_of, survivors
from jaxae.sweeps.layouts import Layout, layout
from jaxae.sweeps.plans import Plan, Schedule
from jaxae.sweeps.results import Ledger, Sweep
from jaxae.training import TrainConfig, diagnostics, epochs, refusals
from jaxae.training.looking import probe

BLOCK_SECONDS = 60.0  # of lanes that a kill may cost
_BLOCK_ROWS = 16384  # looked at together, of one lane


class Progress(NamedTuple):
    """How far a sweep has come.

    Attributes:
      lanes_done: that will not be trained on.
      num_lanes: of the sweep.
      steps: of single models, so far.
      num_steps: of single models, in all.
      seconds: since training began.
    """

    lanes_done: int
    num_lanes: int
    steps: int
    num_steps: int
    seconds: float


def sweep(
    objective,
    data: Any,
    space,
    *,
    hparams: Mapping[str, Any] | None = None,
    key,
    config=None,
    validation=None,
    num_samples: int | None = None,
    sampler: str = "sobol",
    halving=None,
    lanes_at_once: int | None = None,
    devices=None,
    memory_budget: int | None = None,
    out=None,
    on_plan: Callable[[Plan], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Sweep:
    """Train every trial of a space, as one compiled program whose lanes are trials.

    A lane is the single run `train(data=..., **sweep.trial(lane))`: to the bit where
    lanes run in sequence and are not padded, up to rounding otherwise.

    Args:
      objective: what is minimised.
      data: as for `train`, shared by all lanes; rows on disk are read whole.
      space: values by name. A list, or `sweeps.uniform` or `sweeps.log_uniform`; under
        a tuple of names, a list of tuples of values that go together. Any
        hyperparameter, `init_scale`, `seed` and `latent_dim` (narrower models are
        padded) are lanes of one program; activation, observation, tied, corruption,
        optimizer, batch_size and gradient take a compilation for each value. All
        combinations are lanes, the last axis fastest. A lane's key is
        fold_in(key, seed), seed 0 unless given.
      hparams: the hyperparameters that all lanes share.
      key: of the whole sweep; ranges are drawn from it too.
      config: the fixed choices, shared by all lanes.
      validation: as for `train`; scored after each epoch.
      num_samples: how many points of the ranges are drawn.
      sampler: how: "sobol" spreads them evenly, "random" does not.
      halving: where given, only the best lanes are trained to the end.
      lanes_at_once: in one vmap, 1 for lanes in sequence. What is fastest here, found
        by trying where that pays, unless given.
      devices: over which lanes are spread; all local ones unless given.
      memory_budget: bytes a device; most of what is free unless given.
      out: a folder where lanes are kept as they finish. If it holds some of the same
        sweep, they are not trained again.
      on_plan: called with the `Plan` before anything is trained.
      on_progress: called with a `Progress` after each epoch of a block of lanes.

    Raises:
      ValueError: as `train`, for a bad space, or an `out` that holds another sweep;
        before any work.
      OSError: if `out` cannot be written.
    """
    config = TrainConfig() if config is None else config
    hparams = dict(hparams or {})
    refusals.check_arguments(objective, key, config)
    lanes = spaces.lanes_of(
        space,
        hparams,
        objective.ae.latent_dim,
        key,
        num_samples=num_samples,
        sampler=sampler,
    )
    groups = groups_of(objective, config, lanes, hparams, data, key)
    rungs = rungs_of(halving, config.num_epochs, validation)
    data, validation = _placed(groups, data, validation)
    devices = tuple(jax.local_devices() if devices is None else devices)
    runs = [_GroupRun(group, data, validation, key, devices) for group in groups]
    del out
    budget = plans.budget_of(devices[0]) if memory_budget is None else memory_budget
    schedules = [
        plans.schedule_of(
            run.group,
            run.trial,
            num_steps(run.group, data) * config.num_epochs,
            budget=budget,
            num_devices=len(devices),
            lanes_at_once=lanes_at_once,
            block_seconds=BLOCK_SECONDS,
        )
        for run in runs
    ]
    plan = Plan(
        tuple(group.name for group in groups),
        tuple(len(group.lanes) for group in groups),
        tuple(schedules),
        len(devices),
    )
    if on_plan is not None:
        on_plan(plan)
    ledgers = [Ledger(group, config.num_epochs) for group in groups]
    tell = _Teller(on_progress, ledgers, data)
    alive = [np.arange(len(group.lanes)) for group in groups]
    for rung in rungs:
        for run, ledger, schedule, mine in zip(
            runs, ledgers, schedules, alive, strict=True
        ):
            run.train(ledger, mine, rung, schedule, tell)
        if halving is not None and rung.stop < config.num_epochs:
            alive = survivors(halving, ledgers, alive, rung)
    return results.gathered(ledgers, lanes, config.num_epochs, plan, key)


def _placed(groups: list[Group], data, validation):
    """Checked for every group, and on the device, once."""
    for group in groups:  # the first one makes arrays, the others look at these
        placing = group.config.__class__(
            batch_size=group.config.batch_size,
            steps_per_epoch=group.config.steps_per_epoch,
            memory_budget=2**62,
        )
        data = refusals.as_data("data", data, group.objective, jnp.float32, placing)
        if not callable(data):
            data = jax.tree.map(jnp.asarray, data)
        if validation is not None:
            validation = refusals.as_rows(
                "validation", validation, group.objective, jnp.float32, 2**62
            )
            validation = jax.tree.map(jnp.asarray, validation)
    return data, validation


class _Teller:
    """Tells a sweep's progress, if anyone wants to know."""

    def __init__(self, on_progress, ledgers: list[Ledger], data):
        self._on_progress = on_progress
        self._ledgers = ledgers
        self._steps, self._begun = 0, time.perf_counter()
        self._all = sum(
            len(led.group.lanes)
            * led.group.config.num_epochs
            * num_steps(led.group, data)
            for led in ledgers
        )

    def __call__(self, num_lanes: int, num_steps: int) -> None:
        self._steps += num_lanes * num_steps
        if self._on_progress is None:
            return
        done = sum(
            int((led.num_epochs == led.group.config.num_epochs).sum())
            for led in self._ledgers
        )
        num = sum(len(led.group.lanes) for led in self._ledgers)
        seconds = time.perf_counter() - self._begun
        self._on_progress(Progress(done, num, self._steps, self._all, seconds))


class _GroupRun:
    """The program of one group, on its data and devices."""

    def __init__(self, group: Group, data, validation, key, devices):
        self.group = group
        self._validation = validation
        self._num_steps = num_steps(group, data)
        self._source = data if callable(data) else None
        self._data = None if callable(data) else data
        self._num_rows = None if callable(data) else epochs.num_rows(data)
        self._given_data = data
        self._key, self._devices = key, devices
        self._mesh = None
        if len(devices) > 1:
            self._mesh = Mesh(np.array(devices), (program.AXIS,))
        self._static = {
            "objective": group.objective,
            "config": group.config.program(),
            "mesh": self._mesh,
        }

    # ---- one block -------------------------------------------------------------------

    def trial(self, block: Layout, steps: int) -> float:
        """Seconds that so many steps of these lanes take; what they make is dropped."""
        state, hparams = self._begin(block)
        shared = self._shared(block, 0)
        means = self._means(block, state, hparams)
        jax.block_until_ready((state, shared))
        begun = time.perf_counter()
        made = self._run(block, state, means, hparams, shared, steps)
        jax.block_until_ready(made)
        return time.perf_counter() - begun

    def train(
        self, ledger: Ledger, lanes, rung: range, schedule: Schedule, tell
    ) -> None:
        """These epochs of these lanes, block by block."""
        at_once = schedule.lanes_at_once
        num_chunks = schedule.num_chunks
        while len(lanes):
            whole = layout(self.group.seeds[lanes], at_once, len(self._devices))
            whole = whole._replace(slots=lanes[whole.slots])
            num_chunks = min(num_chunks, len(whole.slots))
            try:
                for block in whole.blocks(num_chunks):
                    self._train_block(ledger, block, rung, tell)
                    lanes = np.setdiff1d(lanes, block.lanes())
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or at_once == 1:
                    raise
                at_once, num_chunks = max(1, at_once // 2), max(1, num_chunks // 2)

    def _train_block(self, ledger: Ledger, block: Layout, rung: range, tell) -> None:
        state, hparams = self._begin(block)
        if rung.start > 0:
            state = self._restored(ledger, block)
        history = []
        for epoch in rung:
            shared = self._shared(block, epoch * self._num_steps)
            means = self._means(block, state, hparams)
            state, means = self._run(
                block, state, means, hparams, shared, self._num_steps
            )
            row = _prefixed("train", means.read(self.group.config))
            if self._validation is not None:
                row |= _prefixed(
                    "validation", self._scores(state, hparams, block, self._validation)
                )
            history.append(jax.tree.map(functools.partial(_lanes_of, block), row))
            tell(len(block.lanes()), self._num_steps)
        final = {}
        if self.group.config.diagnostics and rung.stop == self.group.config.num_epochs:
            final = self._final(state, hparams, block)
        rows = {
            name: np.stack([row[name] for row in history], axis=1)
            for name in history[0]
        }
        own = jax.tree.map(functools.partial(_lanes_of, block), state)
        ledger.write(block.lanes(), own, rung, rows, final)

    def _begin(self, block: Layout):
        hparams = {n: values[block.slots] for n, values in self.group.hparams.items()}
        state = program.begin(
            hparams,
            self.group.limits[block.slots],
            self._keys(block),
            block.seed_of,
            **self._static,
        )
        return state, hparams

    def _restored(self, ledger: Ledger, block: Layout):
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[block.slots]), ledger.state)

    def _keys(self, block: Layout):
        return jax.vmap(jax.random.fold_in, (None, 0))(self._key, block.seeds)

    def _shared(self, block: Layout, step: int) -> program.Shared:
        keys = jax.vmap(lambda key: jax.random.split(key)[1])(self._keys(block))
        orders = None
        if self._data is not None:
            orders = program.orders(keys, np.int32(step), num_rows=self._num_rows)
        return program.Shared(keys, orders, self._data, np.int32(step))

    def _means(self, block: Layout, state, hparams):
        """Zeros, for what one lane would log."""
        one = jax.tree.map(lambda leaf: leaf[0, 0, 0], state)
        lane = {name: values[0, 0, 0] for name, values in hparams.items()}
        whole = program.whole(one, self._key, np.int32(0))
        batch = self._batch(lane)
        means = jax.eval_shape(
            functools.partial(epochs.init_means, objective=self.group.objective),
            whole,
            batch,
            lane,
        )
        shape = block.slots.shape
        return jax.tree.map(
            lambda leaf: jnp.zeros((*shape, *leaf.shape), leaf.dtype), means
        )

    def _batch(self, hparams):
        if self._source is not None:
            return jax.eval_shape(self._source, self._key, hparams)
        size = self.group.config.batch_size
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype),
            self._data,
        )

    def _run(self, block: Layout, state, means, hparams, shared, last: int):
        return program.run(
            state,
            means,
            hparams,
            block.seed_of,
            shared,
            np.int32(0),
            np.int32(last),
            source=self._source,
            **self._static,
        )

    # ---- looking ---------------------------------------------------------------------

    def _scores(self, state, hparams, block: Layout, X) -> dict[str, np.ndarray]:
        """`diagnostics.evaluate` of every lane, `[C, S, M]`."""
        sums: list = [None] * block.slots.size
        widths = self.group.widths[block.slots].ravel()
        own = [self.group.objective_of(int(i)) for i in block.slots.ravel()]
        rows = max(256, _BLOCK_ROWS // block.lanes_at_once)
        for part in diagnostics.blocks(X, rows):
            batch = part if len(part) == 2 else part[0]
            seen = program.look(
                state.params,
                hparams,
                batch,
                objective=self.group.objective,
                mesh=self._mesh,
            )
            seen = jax.device_get(seen)
            spread = diagnostics.spread_of(part)
            for i, place in enumerate(np.ndindex(*block.slots.shape)):
                one = jax.tree.map(lambda leaf, at=place: leaf[at], seen)
                for name in ("is_dead", "is_saturated"):
                    if one[name] is not None:
                        one[name] = one[name][: widths[i]]
                found = diagnostics.sums(one, spread, len(part[0]))
                sums[i] = (
                    found if sums[i] is None else diagnostics.merge(sums[i], found)
                )
        scores = [diagnostics.as_metrics(o, s) for o, s in zip(own, sums, strict=True)]
        names = dict.fromkeys(name for score in scores for name in score)
        return {
            name: np.array([s.get(name, np.nan) for s in scores]).reshape(
                block.slots.shape
            )
            for name in names
        }

    def _final(self, state, hparams, block: Layout) -> dict[str, np.ndarray]:
        """What `train` looks at on the training data, once."""
        if self._source is not None:
            return {}
        X = probe(self._given_data, None, {})
        seen = self._scores(state, hparams, block, X)
        for name in (
            "loss",
            "reconstruction",
            *map(str, self.group.objective.penalties),
        ):
            del seen[name]
        return {
            name: _lanes_of(block, values)
            for name, values in _prefixed("train", seen).items()
        }


def _lanes_of(block: Layout, leaf) -> np.ndarray:
    """`[C, S, M, ...]` as one entry a lane, in the order of `block.lanes()`."""
    return np.asarray(leaf)[block.is_first]


def _prefixed(part: str, metrics: dict[str, Any]) -> dict[str, Any]:
    return {f"{part}/{name}": value for name, value in metrics.items()}
