"""The function `sweep` and its three phases: prepare, plan and execute."""

import contextlib
import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae import _checks
from jaxae._checks import ArgumentError
from jaxae.sweeps import plans
from jaxae.sweeps.group_trainer import (
    BLOCK_SECONDS,
    GroupTrainer,
    RayCluster,
    on_device,
)
from jaxae.sweeps.groups import Group, groups_of
from jaxae.sweeps.plans import GroupPlan, Halving, Machine, Plan
from jaxae.sweeps.results import LaneResults, ProgressReporter, Sweep, as_sweep
from jaxae.sweeps.spaces import Lanes, lanes_of
from jaxae.sweeps.store import Store, fingerprint_of
from jaxae.training import TrainConfig, checks

_MAX_METRICS = 2**30  # numbers of one metric, lanes x epochs: 8 GiB
_ANY_SIZE = 2**62  # bytes: all rows are read into memory


def sweep(
    objective,
    data: Any,
    space,
    *,
    hparams=None,
    key,
    config=None,
    validation=None,
    params=None,
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
    """Train a model for every combination of settings, as lanes of a compiled program.

    A lane is the single run `train(data=..., **sweep.trial(lane))`: bit-identical if
    lanes run in sequence and are not padded, equal up to rounding otherwise.

    The result of a penalty of your own, or of `config.after_update`, must not depend on
    the number of padded latents; `p.mask` is False there.

    Args:
      objective: what is minimised.
      data: as for `train`, shared by all lanes. Rows on disk are copied to the device,
        and an epoch has the same order as in `train`.
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
      config: the static settings, shared by all lanes. Only `train` reads monitor,
        checkpoint_steps, checkpoint_minutes, keep_checkpoints and the memory_budget of
        the data, when it repeats a `trial`; patience must be None.
      validation: as for `train`; evaluated after each epoch.
      params: the initial parameters of all lanes, in float32, such as those of
        `jaxae.formats.load`; by default each lane draws its own.
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
    for name, callback in {"on_plan": on_plan, "on_progress": on_progress}.items():
        if not (callback is None or callable(callback)):
            found = _checks.describe(callback)
            raise ArgumentError(name, "must be a function", found)
    prepared = prepare(
        objective,
        data,
        space,
        hparams=hparams,
        key=key,
        config=config,
        validation=validation,
        params=params,
        num_samples=num_samples,
        sampler=sampler,
        halving=halving,
        lanes_at_once=lanes_at_once,
        devices=devices,
        memory_budget=memory_budget,
        out=out,
        engine=engine,
    )
    store = prepared.store
    with contextlib.nullcontext() if store is None else store.locked():
        sweep_plan = plan(prepared)
        if on_plan is not None:
            on_plan(sweep_plan)
        return execute(prepared, sweep_plan, on_progress)


# ---- prepare -------------------------------------------------------------------------


class PreparedSweep(NamedTuple):
    """A sweep whose arguments are checked, with its data on the device.

    Attributes:
      trainers: the trainer of each group.
      lanes: the settings of each lane.
      rungs: the epochs of each rung; one rung unless lanes are halved.
      machine: the number of devices, and the memory of each.
      halving, lanes_at_once, engine: as for `sweep`.
      store: the folder `out`, if there is one.
    """

    trainers: tuple[GroupTrainer, ...]
    lanes: Lanes
    rungs: list[range]
    machine: Machine
    halving: Halving | None
    lanes_at_once: int | None
    engine: str | None
    store: Store | None


def prepare(
    objective,
    data: Any,
    space,
    *,
    hparams=None,
    key,
    config=None,
    validation=None,
    params=None,
    num_samples: int | None = None,
    sampler: str = "sobol",
    halving=None,
    lanes_at_once=None,
    devices=None,
    memory_budget=None,
    out=None,
    engine: str | None = None,
) -> PreparedSweep:
    """Check the arguments of a sweep; nothing is trained, and nothing is written.

    Args: as for `sweep`.

    Raises:
      ValueError: as `sweep`, except for what `out` holds.
    """
    config = TrainConfig() if config is None else config
    hparams = {} if hparams is None else hparams
    _checks.hparams(hparams)
    checks.check_arguments(objective, key, config, params)
    _check_choices(config, lanes_at_once, memory_budget, engine)
    devices = _as_devices(devices, engine)
    out = None if out is None else _checks.folder("out", out)
    latent_dim = objective.ae.latent_dim
    lanes = lanes_of(space, hparams, latent_dim, key, num_samples, sampler)
    _check_num_epochs(config, lanes)
    groups = groups_of(objective, config, lanes, hparams, data, key, params)
    rungs = plans.rungs_of(halving, config.num_epochs, validation)
    store = None
    if out is not None:
        fingerprint = fingerprint_of(
            objective, config, hparams, key, params, data, validation, lanes, halving
        )
        store = Store(out, fingerprint)
    data, validation = _checked_data(groups, data, validation)
    num_threads = plans.num_threads_of(devices) if engine is None else 1
    trainers = [
        GroupTrainer(group, data, validation, key, devices, num_threads)
        for group in groups
    ]
    if halving is not None:
        for trainer in trainers:
            known = dict.fromkeys(trainer.metric_names())
            _checks.lookup("halving.metric", known, halving.metric)
    budget = memory_budget or plans.budget_of(devices[0])
    return PreparedSweep(
        trainers=tuple(trainers),
        lanes=lanes,
        rungs=rungs,
        machine=Machine(len(devices), budget, num_threads),
        halving=halving,
        lanes_at_once=lanes_at_once,
        engine=engine,
        store=store,
    )


def _check_choices(config: TrainConfig, lanes_at_once, memory_budget, engine) -> None:
    if config.patience is not None:
        problem = "stops a single run early, not a sweep"
        advice = "leave it out, and give halving=jaxae.sweeps.Halving()"
        raise ArgumentError("patience", problem, advice=advice)
    if engine not in (None, "ray"):
        raise ArgumentError("engine", "must be None or 'ray'", repr(engine))
    if lanes_at_once is not None:
        _checks.positive_int("lanes_at_once", lanes_at_once)
    if memory_budget is not None:
        _checks.positive_int("memory_budget", memory_budget)


def _check_num_epochs(config: TrainConfig, lanes: Lanes) -> None:
    if len(lanes) * config.num_epochs > _MAX_METRICS:
        problem = f"must be at most {_MAX_METRICS // len(lanes):,} for {len(lanes):,} "
        problem += "lanes, whose metrics have a number an epoch"
        found = _checks.describe(config.num_epochs)
        raise ArgumentError("num_epochs", problem, found)


def _as_devices(devices, engine: str | None) -> tuple[jax.Device, ...]:
    given = jax.local_devices() if devices is None else devices
    as_tuple = tuple(given) if isinstance(given, Iterable) else ()
    if not as_tuple or not all(isinstance(device, jax.Device) for device in as_tuple):
        example = "such as jax.local_devices()[:1]"
        problem = f"must be a list of at least one device, {example}"
        raise ArgumentError("devices", problem, repr(devices))
    return as_tuple[:1] if engine == "ray" else as_tuple  # a task of Ray uses one


def _checked_data(groups: list[Group], data, validation):
    """The data, checked for every group, on the device."""
    for group in groups:  # the first one makes arrays, the others only check these
        model = group.objective, jnp.float32
        config = dataclasses.replace(group.config, memory_budget=_ANY_SIZE)
        data = on_device(checks.as_data("data", data, *model, config))
        if validation is not None:
            rows = checks.as_rows("validation", validation, *model, _ANY_SIZE)
            validation = on_device(rows)
        checks.check_updates(group.config, data)
    return data, validation


# ---- plan ----------------------------------------------------------------------------


def plan(prepared: PreparedSweep) -> Plan:
    """Decide how many lanes run at once, by timing candidates.

    Nothing is trained and nothing is written. A resumed sweep keeps its plan.

    Raises:
      ValueError: if `out` holds another sweep, or a lane exceeds the memory.
    """
    store, machine = prepared.store, prepared.machine
    saved = None if store is None else store.plans()
    timed: dict[tuple[int, ...], GroupPlan] = {}  # by the size of a group
    group_plans = []
    for g, trainer in enumerate(prepared.trainers):
        group, requested = trainer.group, prepared.lanes_at_once
        if saved is not None:
            group_plan = plans.resumed_plan(saved[g], group, machine, requested)
        elif requested is not None:
            group_plan = plans.requested_plan(group, machine, requested)
        else:
            group_plan = plans.fastest_plan(
                group,
                machine,
                trainer.measure,
                trainer.num_steps * prepared.rungs[-1].stop,
                block_seconds=math.inf if store is None else BLOCK_SECONDS,
                same_size=timed.get(group.size),
            )
            if group_plan.timings:
                timed.setdefault(group.size, group_plan)
        group_plans.append(group_plan)
    return Plan(tuple(group_plans), machine.num_devices)


# ---- execute -------------------------------------------------------------------------


def execute(prepared: PreparedSweep, plan: Plan, on_progress=None) -> Sweep:
    """Train the lanes of a sweep, rung by rung and group by group."""
    store = prepared.store
    if store is not None:
        store.begin(list(plan.groups))
    results = [LaneResults(trainer.group) for trainer in prepared.trainers]
    alive = [np.arange(len(lanes)) for lanes in results]
    num_steps = _num_steps(prepared, alive, prepared.rungs)
    report_progress = ProgressReporter(on_progress, results, num_steps)
    is_local = prepared.engine is None
    train_blocks = (GroupTrainer if is_local else RayCluster()).train_blocks
    for r, rung in enumerate(prepared.rungs):
        for g, trainer in enumerate(prepared.trainers):
            lanes, group_plan = results[g], plan.groups[g]
            if store is not None:
                for block in store.read(r, g, *trainer.structure()):
                    report_progress(lanes.add(block), is_saved=True)
            at_once, num_chunks = group_plan.lanes_at_once, group_plan.num_chunks
            layouts = trainer.layouts(alive[g], at_once, num_chunks)
            for block in train_blocks(trainer, lanes, layouts, rung, report_progress):
                is_last = block.num_epochs == prepared.rungs[-1].stop
                if store is None and is_last:  # nothing resumes from here
                    block = block._replace(carry=())
                lanes.add(block)
                if store is not None:
                    store.write(r, g, lanes.block(block.indices, rung.start))
                report_progress()
        if prepared.halving is not None and r + 1 < len(prepared.rungs):
            alive = _survivors(prepared.halving, results, alive, rung)
            num_steps = _num_steps(prepared, alive, prepared.rungs[r + 1 :])
            report_progress.end_rung(alive, num_steps)
    for lanes in results:
        lanes.carry = None  # frees it: nothing resumes from here
    return as_sweep(results, prepared.lanes.axes, plan, prepared.trainers[0].key)


def _survivors(halving: Halving, results: list[LaneResults], alive, rung: range):
    values = [lanes.ranking_values(halving.metric, rung.stop) for lanes in results]
    return plans.survivors(halving, [lanes.group for lanes in results], values, alive)


def _num_steps(prepared: PreparedSweep, alive, rungs) -> int:
    """The steps of these rungs, summed over lanes; estimated if lanes are halved."""
    factor = 1 if prepared.halving is None else prepared.halving.factor
    return sum(
        math.ceil(len(lanes) / factor**r) * len(rung) * trainer.num_steps
        for trainer, lanes in zip(prepared.trainers, alive, strict=True)
        for r, rung in enumerate(rungs)
    )
