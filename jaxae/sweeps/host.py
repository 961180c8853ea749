"""The host's loop of a sweep: groups, rungs, blocks, epochs."""

import math
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae import _checks
from jaxae.sweeps import plans, ray_engine, results, spaces
from jaxae.sweeps import store as store_module
from jaxae.sweeps.groups import Group, groups_of
from jaxae.sweeps.halving import Halving, check_metric, rungs_of, survivors
from jaxae.sweeps.plans import Plan
from jaxae.sweeps.results import LaneResults, Sweep
from jaxae.sweeps.running import GroupRun
from jaxae.training import TrainConfig, checks

_MAX_ROWS = 2**30  # epochs of lanes: 8 GiB for each metric


class Progress(NamedTuple):
    """How far a sweep has come.

    Attributes:
      lanes_done: that will not be trained on.
      num_lanes: of the sweep.
      steps: of single models, so far.
      num_steps: of single models, in all.
      seconds: since training began.
      steps_kept: those of `steps` that were read from disk and not trained again.
    """

    lanes_done: int
    num_lanes: int
    steps: int
    num_steps: int
    seconds: float
    steps_kept: int = 0


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
    """Train every trial of a space, as one compiled program whose lanes are trials.

    A lane is the single run `train(data=..., **sweep.trial(lane))`: to the bit where
    lanes run in sequence and are not padded, up to rounding otherwise.

    Args:
      objective: what is minimised.
      data: as for `train`, shared by all lanes; rows on disk are read whole.
      space: values by name. A list, or `sweeps.uniform` or `sweeps.log_uniform`; under
        a tuple of names, a list of tuples of values that go together. Any
        hyperparameter, `init_scale`, `seed` and `latent_dim` (narrower models are
        padded) are lanes of one program; activation, observation, tied, bias,
        corruption, optimizer, batch_size and gradient take a compilation for each
        value. All combinations are lanes, the last axis fastest. A lane's key is
        fold_in(key, seed), seed 0 unless given.
      hparams: the hyperparameters that all lanes share.
      key: of the whole sweep; ranges are drawn from it too.
      config: the fixed choices, shared by all lanes.
      validation: as for `train`; scored after each epoch.
      num_samples: how many points of the ranges are drawn.
      sampler: how: "sobol" spreads them evenly, "random" does not.
      halving: where given, only the best lanes are trained to the end.
      lanes_at_once: the most lanes in one vmap, 1 for lanes in sequence. What is
        fastest here, found by trying where that pays, unless given. Lanes of one seed
        at most where the key's generator is not vmap-invariant (rbg, unsafe_rbg), and
        in sequence where data are a source or the corruption is your own.
      devices: over which lanes are spread; all local ones unless given.
      memory_budget: bytes a device; most of what is free unless given.
      out: a folder where lanes are saved each minute and as they finish. If it holds
        some of the same sweep, these go on from there, to more epochs as well.
      engine: None for this process, "ray" for a task a block of lanes on a Ray cluster
        (the extra `ray`), retried where a worker dies. Each task uses one device.
      on_plan: called with the `Plan` before anything is trained.
      on_progress: called with a `Progress` after each epoch of a block of lanes.

    Raises:
      ValueError: as `train`, for a bad space, or an `out` that holds another sweep;
        before any work.
      OSError: if `out` cannot be written.
    """
    config = TrainConfig() if config is None else config
    hparams = {} if hparams is None else hparams
    _checks.hparams(hparams)
    hparams = dict(hparams)
    checks.check_arguments(objective, key, config)
    if config.patience is not None:
        raise ValueError(
            "patience is for train, whose run ends alone; in a sweep leave it out, and "
            "give halving=jaxae.sweeps.Halving()."
        )
    if engine not in (None, "ray"):
        raise ValueError(f"engine must be None or 'ray', got {engine!r}.")
    for name, number in (
        ("lanes_at_once", lanes_at_once),
        ("memory_budget", memory_budget),
    ):
        if number is not None:
            _checks.positive_int(name, number)
    for name, callback in (("on_plan", on_plan), ("on_progress", on_progress)):
        if not (callback is None or callable(callback)):
            raise ValueError(
                f"{name} must be a function, got {_checks.describe(callback)}."
            )
    devices = _as_devices(devices)
    out = None if out is None else _checks.folder("out", out)
    lanes = spaces.lanes_of(
        space,
        hparams,
        objective.ae.latent_dim,
        key,
        num_samples=num_samples,
        sampler=sampler,
    )
    if len(lanes) * config.num_epochs > _MAX_ROWS:
        raise ValueError(
            f"num_epochs must be at most {_MAX_ROWS // len(lanes):,} for "
            f"{len(lanes):,} lanes, whose metrics have a number an epoch, got "
            f"{_checks.describe(config.num_epochs)}."
        )
    groups = groups_of(objective, config, lanes, hparams, data, key)
    rungs = rungs_of(halving, config.num_epochs, validation)
    fingerprint = {}
    if out is not None:
        fingerprint = store_module.fingerprint_of(
            objective, config, hparams, key, data, validation, lanes, halving
        )
    data, validation = _placed(groups, data, validation)
    for group in groups:
        checks.check_updates(group.config, data)
    devices = devices[:1] if engine == "ray" else devices  # of a task
    runs = [GroupRun(group, data, validation, key, devices) for group in groups]
    for run in runs if halving is not None else []:
        check_metric(halving, run.names())
    with store_module.opened(out, fingerprint) as store:
        schedules = None if store is None else store.schedules()
        if schedules is None:
            budget = memory_budget or plans.budget_of(devices[0])
            schedules, found = [], dict[tuple[int, ...], plans.Schedule]()
            for run in runs:
                schedule = run.schedule(
                    config.num_epochs,
                    budget,
                    lanes_at_once,
                    is_kept=store is not None,
                    reuse=found.get(run.size),
                )
                schedules.append(schedule)
                if schedule.tried:
                    found.setdefault(run.size, schedule)
        plan = Plan(
            tuple(group.name for group in groups),
            tuple(len(group.lanes) for group in groups),
            tuple(
                plans.as_begun(schedule, group, len(devices), lanes_at_once)
                for schedule, group in zip(schedules, groups, strict=True)
            ),
            len(devices),
        )
        if on_plan is not None:
            on_plan(plan)
        if store is not None:
            store.begin(schedules)
        train = GroupRun.train if engine is None else ray_engine.Engine().train
        ledgers = [LaneResults(group, config.num_epochs) for group in groups]
        alive = [np.arange(len(group.lanes)) for group in groups]
        num_steps = _steps_of(runs, alive, rungs, halving)
        tell = _ProgressReporter(on_progress, ledgers, num_steps)
        for number, rung in enumerate(rungs):
            for g, run in enumerate(runs):
                ledger = ledgers[g]
                if store is not None:
                    for part in store.parts(number, g, *run.like()):
                        tell(ledger.add(part), is_kept=True)
                for part in train(run, ledger, alive[g], rung, schedules[g], tell):
                    if store is None and part.num_epochs == config.num_epochs:
                        part = part._replace(rest=())
                    ledger.add(part)
                    if store is not None:
                        store.put(number, g, ledger.part(part.indices, rung))
                    tell()
            if halving is not None and rung.stop < config.num_epochs:
                alive = survivors(halving, ledgers, alive, rung)
                ahead = _steps_of(runs, alive, rungs[number + 1 :], halving)
                tell(gone=len(lanes) - sum(map(len, alive)), ahead=ahead)
        for ledger in ledgers:
            ledger.rest = None  # nothing goes on from here
        return results.gathered(ledgers, lanes, config.num_epochs, plan, key)


def _as_devices(devices) -> tuple[jax.Device, ...]:
    if devices is None:
        return tuple(jax.local_devices())
    given = tuple(devices) if isinstance(devices, Iterable) else ()
    if not given or not all(isinstance(device, jax.Device) for device in given):
        raise ValueError(
            "devices must be a list of at least one device, such as "
            f"jax.local_devices()[:1], got {devices!r}."
        )
    return given


def _placed(groups: list[Group], data, validation):
    """Checked for every group, and on the device, once."""
    for group in groups:  # the first one makes arrays, the others look at these
        placing = group.config.__class__(
            batch_size=group.config.batch_size,
            steps_per_epoch=group.config.steps_per_epoch,
            memory_budget=2**62,
        )
        data = checks.as_data("data", data, group.objective, jnp.float32, placing)
        if not callable(data):
            data = jax.tree.map(jnp.asarray, data)
        if validation is not None:
            validation = checks.as_rows(
                "validation", validation, group.objective, jnp.float32, 2**62
            )
            validation = jax.tree.map(jnp.asarray, validation)
    return data, validation


class _ProgressReporter:
    """Tells a sweep's progress, if anyone wants to know."""

    def __init__(self, on_progress, ledgers: list[LaneResults], num_steps: int):
        self._on_progress, self._ledgers = on_progress, ledgers
        self._num_steps, self._begun = num_steps, time.perf_counter()
        self._steps = self._steps_kept = self._gone = 0

    def __call__(
        self, steps=0, gone: int | None = None, ahead=None, is_kept=False
    ) -> None:
        """Of steps made; of lanes that go no further and steps to come, if changed."""
        self._steps += steps
        self._steps_kept += steps if is_kept else 0
        self._num_steps = self._num_steps if ahead is None else self._steps + ahead
        self._gone = self._gone if gone is None else gone
        if self._on_progress is None:
            return
        ends = [led.num_epochs == led.group.config.num_epochs for led in self._ledgers]
        self._on_progress(
            Progress(
                lanes_done=sum(int(end.sum()) for end in ends) + self._gone,
                num_lanes=sum(map(len, ends)),
                steps=self._steps,
                num_steps=self._num_steps,
                seconds=time.perf_counter() - self._begun,
                steps_kept=self._steps_kept,
            )
        )


def _steps_of(runs, alive, rungs, halving: Halving | None) -> int:
    """Of single models, to come; about, where lanes are halved."""
    factor = 1 if halving is None else halving.factor
    return sum(
        math.ceil(len(lanes) / factor**r) * len(rung) * run.num_steps
        for run, lanes in zip(runs, alive, strict=True)
        for r, rung in enumerate(rungs)
    )
