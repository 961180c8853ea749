"""The host's side of a sweep: check and prepare, plan, execute."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae import _checks
from jaxae.sweeps import halving as halving_module
from jaxae.sweeps import plans, ray_engine, spaces
from jaxae.sweeps import results as results_module
from jaxae.sweeps import store as store_module
from jaxae.sweeps.groups import Group, groups_of
from jaxae.sweeps.halving import Halving
from jaxae.sweeps.plans import Plan, Schedule
from jaxae.sweeps.results import LaneResults, ProgressReporter, Sweep
from jaxae.sweeps.running import GroupRun
from jaxae.sweeps.spaces import Lanes
from jaxae.sweeps.store import Store
from jaxae.training import TrainConfig, checks

_MAX_METRICS = 2**30  # numbers of one metric, lanes x epochs: 8 GiB


def sweep(
    objective,
    data: Any,
    space,
    *,
    hparams=None,
    key,
    config=None,
    validation=None,
    num_samples: int | None = None,
    sampler: str = "sobol",
    halving=None,
    lanes_at_once=None,
    devices=None,
    memory_budget=None,
    out=None,
    engine: str | None = None,
    on_plan=None,
    on_progress=None,
) -> Sweep:
    """Train every trial of a space in one compiled program, whose lanes are the trials.

    A lane is the single run `train(data=..., **sweep.trial(lane))`: bit-identical if
    lanes run in sequence and are not padded, equal up to rounding otherwise.

    A penalty of your own must not change with the number of padded latents, and neither
    must `config.after_update`; `p.mask` marks them.

    Args:
      objective: what is minimised.
      data: as for `train`, shared by all lanes; rows on disk are read into memory.
      space: the values of each axis by name: a list, or `sweeps.uniform` or
        `sweeps.log_uniform`; under a tuple of names, a list of tuples of values that
        change together. All combinations are lanes; the last axis varies fastest.
        Hyperparameters, `init_scale`, `seed` and `latent_dim` (narrower models are
        padded) vary within one program. Each value of activation, observation, tied,
        bias, pre_bias, corruption, optimizer, batch_size and gradient needs a
        compilation. A lane's key is fold_in(key, seed), with seed 0 unless it is in
        the space.
      hparams: the hyperparameters that all lanes share.
      key: the key of the sweep; ranges are sampled from it too.
      config: the static settings, shared by all lanes.
      validation: as for `train`; evaluated after each epoch.
      num_samples: the number of points sampled from the ranges.
      sampler: "sobol" spreads the points evenly, "random" draws them independently.
      halving: a `Halving`, to train only the best lanes to the end.
      lanes_at_once: the largest number of lanes in one vmap; 1 runs lanes in sequence.
        By default the fastest number, measured if training is long enough. With a
        generator that is not vmap-invariant (rbg, unsafe_rbg), only lanes of one seed
        share a vmap, and none do for data from a source or a custom corruption.
      devices: the devices over which lanes are spread; by default all local ones.
      memory_budget: bytes per device; by default most of its free memory.
      out: a folder where lanes are saved every minute and when they finish. If it holds
        lanes of the same sweep, training resumes from them, also to more epochs.
      engine: None for this process; "ray" runs each block of lanes as a task on a Ray
        cluster (the extra `ray`), repeated if a worker dies. A task uses one device.
      on_plan: called with the `Plan` before training.
      on_progress: called with a `Progress` after each epoch of a block of lanes.

    Raises:
      ValueError: as `train`, for a bad space, or an `out` that holds another sweep;
        before training.
      OSError: if `out` cannot be written.
    """
    _check_callbacks(on_plan=on_plan, on_progress=on_progress)
    task = prepare(
        objective,
        data,
        space,
        hparams=hparams,
        key=key,
        config=config,
        validation=validation,
        num_samples=num_samples,
        sampler=sampler,
        halving=halving,
        lanes_at_once=lanes_at_once,
        devices=devices,
        memory_budget=memory_budget,
        out=out,
        engine=engine,
    )
    with store_module.opened(task.out, task.fingerprint) as store:
        sweep_plan = plan(task, store)
        if on_plan is not None:
            on_plan(sweep_plan)
        return execute(task, sweep_plan, store, on_progress)


# ---- prepare -------------------------------------------------------------------------


class SweepTask(NamedTuple):
    """A validated sweep, with its data on the device.

    Attributes:
      runs: the program of each group.
      lanes: the settings of each lane.
      rungs: the epochs of each rung; one rung unless lanes are halved.
      key, config, halving, lanes_at_once, devices, memory_budget, out, engine: as for
        `sweep`, with the defaults filled in.
      fingerprint: what a resumed sweep must share; empty unless there is `out`.
    """

    runs: tuple[GroupRun, ...]
    lanes: Lanes
    rungs: list[range]
    key: Any
    config: TrainConfig
    halving: Halving | None
    lanes_at_once: int | None
    devices: tuple[jax.Device, ...]
    memory_budget: int | None
    out: Path | None
    engine: str | None
    fingerprint: dict[str, Any]


def prepare(
    objective,
    data: Any,
    space,
    *,
    hparams=None,
    key,
    config=None,
    validation=None,
    num_samples: int | None = None,
    sampler: str = "sobol",
    halving=None,
    lanes_at_once=None,
    devices=None,
    memory_budget=None,
    out=None,
    engine: str | None = None,
) -> SweepTask:
    """Check the arguments of a sweep; nothing is trained, and nothing is written.

    Args: as for `sweep`.

    Raises:
      ValueError: as `sweep`, except for what `out` holds.
    """
    config = TrainConfig() if config is None else config
    hparams = {} if hparams is None else hparams
    _checks.hparams(hparams)
    checks.check_arguments(objective, key, config)
    _check_choices(config, lanes_at_once, memory_budget, engine)
    devices = _as_devices(devices)
    devices = devices[:1] if engine == "ray" else devices  # a task uses one
    out = None if out is None else _checks.folder("out", out)
    latent_dim = objective.ae.latent_dim
    lanes = spaces.lanes_of(space, hparams, latent_dim, key, num_samples, sampler)
    _check_num_epochs(config, lanes)
    groups = groups_of(objective, config, lanes, hparams, data, key)
    rungs = halving_module.rungs_of(halving, config.num_epochs, validation)
    fingerprint = {}
    if out is not None:
        hparams = checks.as_hparams(hparams, jnp.float32)  # 1 and 1.0 are the same
        fingerprint = store_module.fingerprint_of(
            objective, config, hparams, key, data, validation, lanes, halving
        )
    data, validation = _placed(groups, data, validation)
    runs = [GroupRun(group, data, validation, key, devices) for group in groups]
    for run in runs if halving is not None else ():
        halving_module.check_metric(halving, run.metric_names())
    return SweepTask(
        runs=tuple(runs),
        lanes=lanes,
        rungs=rungs,
        key=key,
        config=config,
        halving=halving,
        lanes_at_once=lanes_at_once,
        devices=devices,
        memory_budget=memory_budget,
        out=out,
        engine=engine,
        fingerprint=fingerprint,
    )


def _check_callbacks(**callbacks) -> None:
    for name, callback in callbacks.items():
        if not (callback is None or callable(callback)):
            raise _checks.ArgumentError(
                name, "must be a function", _checks.describe(callback)
            )


def _check_choices(config: TrainConfig, lanes_at_once, memory_budget, engine) -> None:
    if config.patience is not None:
        raise ValueError(
            "patience stops a single run early; in a sweep leave it out, and give "
            "halving=jaxae.sweeps.Halving()."
        )
    if engine not in (None, "ray"):
        raise _checks.ArgumentError("engine", "must be None or 'ray'", repr(engine))
    if lanes_at_once is not None:
        _checks.positive_int("lanes_at_once", lanes_at_once)
    if memory_budget is not None:
        _checks.positive_int("memory_budget", memory_budget)


def _check_num_epochs(config: TrainConfig, lanes: Lanes) -> None:
    if len(lanes) * config.num_epochs > _MAX_METRICS:
        raise _checks.ArgumentError(
            "num_epochs",
            f"must be at most {_MAX_METRICS // len(lanes):,} for {len(lanes):,} "
            "lanes, whose metrics have a number an epoch",
            _checks.describe(config.num_epochs),
        )


def _as_devices(devices) -> tuple[jax.Device, ...]:
    if devices is None:
        return tuple(jax.local_devices())
    as_tuple = tuple(devices) if isinstance(devices, Iterable) else ()
    if not as_tuple or not all(isinstance(device, jax.Device) for device in as_tuple):
        raise _checks.ArgumentError(
            "devices",
            "must be a list of at least one device, such as jax.local_devices()[:1]",
            repr(devices),
        )
    return as_tuple


def _placed(groups: list[Group], data, validation):
    """The data, checked for every group and put on the device once."""
    for group in groups:  # the first one makes arrays, the others only check these
        config = TrainConfig(
            batch_size=group.config.batch_size,
            steps_per_epoch=group.config.steps_per_epoch,
            memory_budget=2**62,
        )
        data = checks.as_data("data", data, group.objective, jnp.float32, config)
        if not callable(data):
            data = jax.tree.map(jnp.asarray, data)
        if validation is not None:
            validation = checks.as_rows(
                "validation", validation, group.objective, jnp.float32, 2**62
            )
            validation = jax.tree.map(jnp.asarray, validation)
        checks.check_updates(group.config, data)
    return data, validation


# ---- plan ----------------------------------------------------------------------------


def plan(task: SweepTask, store: Store | None = None) -> Plan:
    """How `sweep` runs the lanes of a task; candidates are compiled and timed.

    Nothing is trained and nothing is written.

    Args:
      task: from `prepare`.
      store: the opened folder `task.out`. A resumed sweep keeps the plan that it holds,
        and the blocks of a saved sweep are shorter.

    Raises:
      ValueError: if the store holds another sweep, or a lane exceeds the memory.
    """
    saved = None if store is None else store.schedules()
    budget = task.memory_budget or plans.budget_of(task.devices[0])
    num_devices = len(task.devices)
    groups = [run.group for run in task.runs]
    if saved is None:
        schedules = _fastest_schedules(task, budget, is_saved=store is not None)
    else:
        schedules = [
            plans.as_saved(
                schedule,
                group,
                budget=budget,
                num_devices=num_devices,
                requested=task.lanes_at_once,
            )
            for schedule, group in zip(saved, groups, strict=True)
        ]
    return Plan(
        names=tuple(group.name for group in groups),
        num_lanes=tuple(len(group.lanes) for group in groups),
        schedules=tuple(schedules),
        num_devices=num_devices,
    )


def _fastest_schedules(task: SweepTask, budget: int, is_saved: bool) -> list[Schedule]:
    schedules: list[Schedule] = []
    measured: dict[tuple[int, ...], Schedule] = {}  # by the size of a group
    for run in task.runs:
        schedule = run.schedule(
            task.config.num_epochs,
            budget,
            task.lanes_at_once,
            is_saved=is_saved,
            reuse=measured.get(run.size),
        )
        schedules.append(schedule)
        if schedule.tried:
            measured.setdefault(run.size, schedule)
    return schedules


# ---- execute -------------------------------------------------------------------------


def execute(
    task: SweepTask, plan: Plan, store: Store | None = None, on_progress=None
) -> Sweep:
    """Train the lanes of a task, rung by rung and group by group.

    Args:
      task: from `prepare`.
      plan: from `plan`.
      store: the opened folder `task.out`, from which lanes resume.
      on_progress: as for `sweep`.
    """
    if store is not None:
        store.begin(list(plan.schedules))
    train = GroupRun.train if task.engine is None else ray_engine.Engine().train
    results = [LaneResults(run.group) for run in task.runs]
    alive = [np.arange(len(run.group.lanes)) for run in task.runs]
    num_steps = _num_steps(task, alive, task.rungs)
    report_progress = ProgressReporter(on_progress, results, num_steps)
    for r, rung in enumerate(task.rungs):
        for g, run in enumerate(task.runs):
            for block in _saved_blocks(store, r, g, run):
                report_progress(results[g].add(block), is_saved=True)
            schedule = plan.schedules[g]
            for block in train(
                run, results[g], alive[g], rung, schedule, report_progress
            ):
                is_last = block.num_epochs == task.config.num_epochs
                if store is None and is_last:  # nothing resumes from it
                    block = block._replace(carry=())
                results[g].add(block)
                if store is not None:
                    store.write(r, g, results[g].block(block.indices, rung.start))
                report_progress()
        if task.halving is not None and r + 1 < len(task.rungs):
            alive = halving_module.survivors(task.halving, results, alive, rung)
            num_steps = _num_steps(task, alive, task.rungs[r + 1 :])
            report_progress.end_rung(alive, num_steps)
    for of_group in results:
        of_group.carry = None  # frees it: nothing resumes from here
    return results_module.as_sweep(results, task.lanes.axes, plan, task.key)


def _saved_blocks(store: Store | None, rung: int, g: int, run: GroupRun):
    return [] if store is None else store.read(rung, g, *run.structure())


def _num_steps(task: SweepTask, alive, rungs) -> int:
    """The steps of these rungs, summed over lanes; estimated if lanes are halved."""
    factor = 1 if task.halving is None else task.halving.factor
    return sum(
        math.ceil(len(lanes) / factor**r) * len(rung) * run.num_steps
        for run, lanes in zip(task.runs, alive, strict=True)
        for r, rung in enumerate(rungs)
    )
