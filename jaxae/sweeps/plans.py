"""Plans: how many lanes of each group share a vmap, chosen by timing candidates."""

import math
import os
import textwrap
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxae import _checks
from jaxae.sweeps.groups import Group, Layout

_MIN_PAYOFF = 4.0  # training takes so many timing runs, for another to pay
_SAMPLE_SECONDS = 0.05
_NUM_ROUNDS = 3


class Schedule(NamedTuple):
    """How the lanes of one group are run.

    Attributes:
      lanes_at_once: the lanes of a chunk, in one vmap; 1 for lanes in sequence.
      num_chunks: the chunks of a block, in one call of the program.
      bytes: the memory of one call, estimated.
      seconds: the training time of the group, estimated; nan if not measured.
      tried: (lanes_at_once, measured seconds a step of a lane) of each trial.
      reason: why lanes_at_once is less than requested, or than would fit.
    """

    lanes_at_once: int
    num_chunks: int
    bytes: int
    seconds: float = math.nan
    tried: tuple[tuple[int, float], ...] = ()
    reason: str = ""


class Plan(NamedTuple):
    """How a sweep is run.

    Attributes:
      names: the static axes of each group.
      num_lanes: the number of lanes of each group.
      schedules: the schedule of each group.
      num_devices: the devices over which the chunks of a block are spread.
    """

    names: tuple[str, ...]
    num_lanes: tuple[int, ...]
    schedules: tuple[Schedule, ...]
    num_devices: int

    def __str__(self) -> str:
        num_groups, num_devices = len(self.names), self.num_devices
        head = (
            f"{_lanes(sum(self.num_lanes))} in {num_groups} compiled "
            f"program{'s' * (num_groups > 1)}, "
            f"{num_devices} device{'s' * (num_devices > 1)}"
        )
        return "\n".join([head, *map(self._line, range(num_groups))])

    def _line(self, g: int) -> str:
        schedule = self.schedules[g]
        how = "in sequence"
        if schedule.lanes_at_once > 1:
            how = f"{schedule.lanes_at_once} at once"
        if schedule.reason:
            how += f" ({schedule.reason})"
        # An observation's name may hold a weight for each of many columns.
        name = textwrap.shorten(self.names[g] or "all", 60, placeholder=" ...")
        line = f"  {name}: {_lanes(self.num_lanes[g])}, {how}, "
        line += f"{schedule.bytes / 2**20:.0f} MiB"
        if not math.isnan(schedule.seconds):
            line += f", about {_duration(schedule.seconds)}"
        if schedule.tried:
            tried = ", ".join(f"{n}: {1e6 * t:.3g} us" for n, t in schedule.tried)
            line += f" (a lane's step, by lanes at once: {tried})"
        return line


def _lanes(number: int) -> str:
    return f"{number} lane{'s' * (number > 1)}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


# ---- memory --------------------------------------------------------------------------


def budget_of(device: jax.Device) -> int:
    """The bytes that a sweep may use: most of the device's free memory."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(0.8 * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    pages = (
        os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in os.sysconf_names else 0
    )
    free = pages * os.sysconf("SC_PAGE_SIZE") if pages else 2**31
    return max(free // 2, 2**28)


def bytes_of_lane(group: Group) -> tuple[int, int]:
    """Estimate the bytes of a lane's state, and of its state and temporary arrays."""
    ae = group.objective.ae
    hparams = {name: np.float32(1) for name in group.hparams}

    def init(key):
        params = ae.init(key)
        return params, group.config.optimizer(hparams).init(params)

    shapes = jax.tree.leaves(jax.eval_shape(init, jax.random.key(0)))
    state = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes)
    activations = group.config.batch_size * (4 * ae.latent_dim + 6 * ae.input_dim) * 4
    return state, state + activations


def max_lanes_at_once(group: Group, budget: int, num_devices: int) -> int:
    """The most lanes at once that fit the memory of each device.

    Raises:
      ValueError: if not even one does.
    """
    state, working = bytes_of_lane(group)
    fitting = budget // (2 * state + working)
    if fitting < 1:
        raise _checks.ArgumentError(
            "memory_budget",
            f"is {_mebibytes(budget)} a device, but a lane of "
            f"{group.name or 'this sweep'} with {group.objective.ae.latent_dim:,} "
            f"latents needs about {_mebibytes(2 * state + working)}",
            advice="give more, or sweep smaller models",
        )
    return min(fitting, math.ceil(len(group.lanes) / num_devices), group.max_at_once)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.{0 if size > 2**23 else 2}f} MiB"


# ---- time ----------------------------------------------------------------------------

Trial = Callable[[Layout, int], float]  # (block, num_steps) -> seconds


def schedule_of(
    group: Group,
    trial: Trial,
    num_steps: int,
    *,
    budget: int,
    num_devices: int,
    lanes_at_once: int | None,
    block_seconds: float,
    reuse: Schedule | None = None,
) -> Schedule:
    """The fastest schedule of a group, of those that are worth trying.

    Another number of lanes at once is tried only if training takes several times as
    long as the trial, most of which is compilation.

    Args:
      group: the group to schedule.
      trial: `(block, num_steps) -> seconds` that these steps of all its lanes take.
      num_steps: the steps of each lane in the whole sweep.
      budget: bytes on a device.
      num_devices: the number of devices.
      lanes_at_once: the number requested, instead of the fastest.
      block_seconds: a block takes no longer than this, where it can be shorter.
      reuse: the schedule of another group of the same size, for which several were
        tried. Speed depends on sizes much more than on the parts of the model.
    """
    most = max_lanes_at_once(group, budget, num_devices)
    if lanes_at_once is not None:
        schedule = _schedule(group, min(lanes_at_once, most), budget, num_devices)
        at_once = schedule.lanes_at_once
        reason = _reason(group, at_once, num_devices, lanes_at_once, most)
        return schedule._replace(reason=reason)
    tried = _try(
        group,
        _candidates(most) if reuse is None else [min(reuse.lanes_at_once, most)],
        trial,
        num_steps,
        budget,
        num_devices,
    )
    best = min(tried, key=tried.__getitem__)
    schedule = _schedule(group, best, budget, num_devices)
    chunk_seconds = tried[best] * best * num_devices * num_steps
    in_block_seconds = num_devices * block_seconds / max(chunk_seconds, 1e-9)
    most_chunks = max(1, int(min(schedule.num_chunks, in_block_seconds)))
    return schedule._replace(
        num_chunks=_even(schedule.num_chunks, most_chunks, num_devices),
        seconds=tried[best] * len(group.lanes) * num_steps,
        tried=tuple(tried.items()) if len(tried) > 1 else (),
        reason=_reason(group, schedule.lanes_at_once, num_devices),
    )


def _candidates(most: int) -> list[int]:
    """The most lanes at once, 1, and numbers between them in steps of four."""
    between = [most // 4**i for i in range(1, 20) if most // 4**i > 1]
    return list(dict.fromkeys([most, 1, *between]))


def _try(
    group: Group, candidates, trial: Trial, num_steps, budget, num_devices
) -> dict[int, float]:
    """The seconds a step of a lane takes, by lanes at once, for those worth trying."""
    samples: dict[int, Callable[[], float]] = {}
    tried: dict[int, float] = {}
    for at_once in candidates:
        start = time.perf_counter()
        schedule = _schedule(group, at_once, budget, num_devices)
        samples[at_once] = _sampler(group, schedule, trial, num_devices)
        tried[at_once] = samples[at_once]()
        trial_seconds = time.perf_counter() - start
        training_seconds = min(tried.values()) * len(group.lanes) * num_steps
        if training_seconds < _MIN_PAYOFF * trial_seconds:
            break
    # Interleaved, so that background load affects all candidates.
    for _ in range(_NUM_ROUNDS if len(samples) > 1 else 0):
        for at_once, sample in samples.items():
            tried[at_once] = min(tried[at_once], sample())
    return tried


def _sampler(
    group: Group, schedule: Schedule, trial: Trial, num_devices: int
) -> Callable[[], float]:
    """Compile; return a function that measures the seconds a step of a lane takes."""
    layout = group.layout(schedule.lanes_at_once, num_devices)
    block = layout.blocks(schedule.num_chunks)[0]
    trial(block, 1)  # compiles
    seconds = trial(block, 1)
    num_steps = max(1, min(1000, int(_SAMPLE_SECONDS / max(seconds, 1e-6))))
    return lambda: trial(block, num_steps) / num_steps / len(block.lanes())


def _schedule(group: Group, at_once: int, budget: int, num_devices: int) -> Schedule:
    layout = group.layout(at_once, num_devices)
    state, working = bytes_of_lane(group)
    at_once = layout.lanes_at_once
    free = budget - at_once * working
    most_chunks = max(1, free // max(1, 2 * state * at_once)) * num_devices
    num_chunks = _even(len(layout.slots), most_chunks, num_devices)
    used = num_chunks // num_devices * at_once * 2 * state + at_once * working
    return Schedule(at_once, num_chunks, int(used))


def _even(num_chunks: int, most: int, num_devices: int) -> int:
    """The chunks of a block, at most `most`, so that blocks are about equally long."""
    num_blocks = math.ceil(num_chunks / most)
    return _multiple(math.ceil(num_chunks / num_blocks), num_devices)


def _multiple(number: int, divisor: int) -> int:
    """The smallest multiple of the divisor that is at least the number."""
    return math.ceil(number / divisor) * divisor


# ---- why a schedule is not the one requested -----------------------------------------


def _reason(
    group: Group,
    at_once: int,
    num_devices: int,
    requested: int | None = None,
    fitting: int | None = None,
) -> str:
    """Why at_once is less than was requested, or than all lanes; empty if it is not."""
    num_lanes = math.ceil(len(group.lanes) / num_devices)
    desired = min(requested or num_lanes, num_lanes)
    if at_once == desired:
        return ""
    if fitting is not None and fitting < min(desired, group.max_at_once):
        why = f"memory_budget holds {fitting}"
    elif group.max_at_once < desired:
        kind = "of one seed" if group.vmapped == "seed" else "in sequence"
        why = f"{group.generator} keys are not vmap-invariant, so lanes are {kind}"
    elif requested is None:
        return ""
    else:
        why = "chunks are of one size"
    return why if requested is None else f"not {requested}: {why}"


def as_saved(
    schedule: Schedule,
    group: Group,
    *,
    budget: int,
    num_devices: int,
    requested: int | None,
) -> Schedule:
    """The saved schedule of a resumed sweep, adapted to the devices that it has now.

    The lanes of a chunk stay the same, so that the results do too. A block has as many
    chunks as were saved, or fewer where more exceed the memory of these devices.
    """
    fitting = _schedule(group, schedule.lanes_at_once, budget, num_devices).num_chunks
    num_chunks = min(_multiple(schedule.num_chunks, num_devices), fitting)
    schedule = schedule._replace(num_chunks=num_chunks)
    num_lanes = math.ceil(len(group.lanes) / num_devices)
    if requested is None or schedule.lanes_at_once == min(requested, num_lanes):
        return schedule
    if schedule.reason.startswith(f"not {requested}: "):
        return schedule
    reason = f"not {requested}: a resumed sweep keeps its schedule"
    return schedule._replace(reason=reason)
