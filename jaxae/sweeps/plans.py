"""How lanes are to be run, found by measuring, and said before anything runs."""

import math
import os
import textwrap
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxae.sweeps.groups import Group
from jaxae.sweeps.layouts import Layout

_PAYS = 4.0  # another schedule is tried where the whole takes so many compilations
_SAMPLE_SECONDS = 0.05
_NUM_TURNS = 3


class Schedule(NamedTuple):
    """How the lanes of one group are run.

    Attributes:
      lanes_at_once: in one vmap; 1 for lanes in sequence.
      num_chunks: of so many lanes, in one call of the program.
      bytes: that one call needs, about.
      seconds: that the group is expected to take; nan if not measured.
      tried: seconds a step of a lane, by lanes_at_once.
      reason: why lanes_at_once is less than was asked for, or than would fit.
    """

    lanes_at_once: int
    num_chunks: int
    bytes: int
    seconds: float = math.nan
    tried: tuple[tuple[int, float], ...] = ()
    reason: str = ""


class Plan(NamedTuple):
    """Of every group, what it varies, how many lanes it has, and its schedule."""

    names: tuple[str, ...]
    num_lanes: tuple[int, ...]
    schedules: tuple[Schedule, ...]
    num_devices: int

    def __str__(self) -> str:
        total = sum(self.num_lanes)
        head = f"{_lanes(total)} in {len(self.names)} compiled program"
        head += "s" * (len(self.names) > 1)
        head += f", {self.num_devices} device{'s' * (self.num_devices > 1)}"
        return "\n".join([head, *map(self._line, range(len(self.names)))])

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
    """Bytes that a sweep may use: most of what the device has free."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(0.8 * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    pages = (
        os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in os.sysconf_names else 0
    )
    free = pages * os.sysconf("SC_PAGE_SIZE") if pages else 2**31
    return max(free // 2, 2**28)


def bytes_of_lane(group: Group) -> tuple[int, int]:
    """What a lane keeps, and what it needs beside that while it is trained, about."""
    ae = group.objective.ae
    hparams = {name: np.float32(1) for name in group.hparams}

    def state(key):
        params = ae.init(key)
        return params, group.config.optimizer(hparams).init(params)

    shapes = jax.tree.leaves(jax.eval_shape(state, jax.random.key(0)))
    kept = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes)
    activations = group.config.batch_size * (4 * ae.latent_dim + 6 * ae.input_dim) * 4
    return kept, kept + activations


def fitting(group: Group, budget: int, num_devices: int) -> int:
    """As many lanes at once as fit, on each device.

    Raises:
      ValueError: if none does.
    """
    kept, working = bytes_of_lane(group)
    most = budget // (2 * kept + working)
    if most < 1:
        raise ValueError(
            f"memory_budget is {_mebibytes(budget)} a device, but a lane of "
            f"{group.name or 'this sweep'} with {group.objective.ae.latent_dim:,} "
            f"latents needs about {_mebibytes(2 * kept + working)}; give more, or "
            "sweep smaller models."
        )
    return min(most, math.ceil(len(group.lanes) / num_devices), group.most_at_once)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.{0 if size > 2**23 else 2}f} MiB"


# ---- time ----------------------------------------------------------------------------

Trial = Callable[[Layout, int], float]  # (block, steps) -> seconds


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
    """The fastest way to run a group's lanes, of those that it pays to try.

    Another number of lanes at once is tried while the whole takes several times what
    the trial does, which is mostly compilation.

    Args:
      group: whose lanes.
      trial: `(block, steps) -> seconds` that these steps of all its lanes take.
      num_steps: of the whole.
      budget: bytes on a device.
      num_devices: of them.
      lanes_at_once: if it is not to be chosen.
      block_seconds: a block is to take no longer, where it can be shorter.
      reuse: of a group of the same size, for which more than one was tried; what is
        fastest depends on sizes much more than on parts, and trying takes compilations.
    """
    most = fitting(group, budget, num_devices)
    if lanes_at_once is not None:
        schedule = _schedule(group, min(lanes_at_once, most), budget, num_devices)
        return schedule._replace(
            reason=_reason(
                group, schedule.lanes_at_once, num_devices, lanes_at_once, most
            )
        )
    candidates = _candidates(most)
    if reuse is not None:
        candidates = [min(reuse.lanes_at_once, most)]
    samples: dict[int, Callable[[], float]] = {}
    tried: dict[int, float] = {}
    for at_once in candidates:
        begun = time.perf_counter()
        schedule = _schedule(group, at_once, budget, num_devices)
        samples[at_once] = _sampler(group, schedule, trial, num_devices)
        tried[at_once] = samples[at_once]()
        cost = time.perf_counter() - begun
        if min(tried.values()) * len(group.lanes) * num_steps < _PAYS * cost:
            break
    # In turns, so that a slow moment of the machine strikes all of them.
    for _ in range(_NUM_TURNS if len(samples) > 1 else 0):
        for at_once, sample in samples.items():
            tried[at_once] = min(tried[at_once], sample())
    best = min(tried, key=tried.__getitem__)
    schedule = _schedule(group, best, budget, num_devices)
    chunk = tried[best] * best * num_devices * num_steps
    most = int(min(schedule.num_chunks, num_devices * block_seconds / max(chunk, 1e-9)))
    num_chunks = _even(schedule.num_chunks, max(1, most), num_devices)
    return schedule._replace(
        num_chunks=num_chunks,
        seconds=tried[best] * len(group.lanes) * num_steps,
        tried=tuple(tried.items()) if len(tried) > 1 else (),
        reason=_reason(group, schedule.lanes_at_once, num_devices),
    )


def _reason(
    group: Group,
    at_once: int,
    num_devices: int,
    asked: int | None = None,
    most: int | None = None,
) -> str:
    """Why fewer lanes are at once than were asked for, or than the generator allows."""
    num_lanes = math.ceil(len(group.lanes) / num_devices)
    wanted = min(asked or num_lanes, num_lanes)
    if at_once == wanted:
        return ""
    if most is not None and most < min(wanted, group.most_at_once):
        why = f"memory_budget holds {most}"
    elif group.most_at_once < wanted:
        kind = "of one seed" if group.vmapped == "seed" else "in sequence"
        why = f"{group.generator} keys are not vmap-invariant, so lanes are {kind}"
    elif asked is None:
        return ""
    else:
        why = "chunks are of one size"
    return why if asked is None else f"not {asked}: {why}"


def as_begun(
    schedule: Schedule, group: Group, num_devices: int, asked: int | None
) -> Schedule:
    """The schedule of a sweep that goes on; it says so where another is asked for."""
    most = math.ceil(len(group.lanes) / num_devices)
    if asked is None or schedule.lanes_at_once == min(asked, most):
        return schedule
    if schedule.reason.startswith(f"not {asked}: "):
        return schedule
    return schedule._replace(reason=f"not {asked}: the sweep goes on as it was begun")


def _candidates(most: int) -> list[int]:
    """All, 1, and what lies between in steps of four."""
    between = [most // 4**i for i in range(1, 20) if most // 4**i > 1]
    return list(dict.fromkeys([most, 1, *between]))


def _schedule(group: Group, at_once: int, budget: int, num_devices: int) -> Schedule:
    whole = group.layout(at_once, num_devices)
    kept, working = bytes_of_lane(group)
    at_once = whole.lanes_at_once
    room = budget - at_once * working
    most = max(1, room // max(1, 2 * kept * at_once)) * num_devices
    num_chunks = _even(len(whole.slots), most, num_devices)
    used = num_chunks // num_devices * at_once * 2 * kept + at_once * working
    return Schedule(at_once, num_chunks, int(used))


def _even(num_chunks: int, most: int, num_devices: int) -> int:
    """Chunks in a block: at most so many, and blocks as even as they come."""
    num_blocks = math.ceil(num_chunks / most)
    return math.ceil(num_chunks / num_blocks / num_devices) * num_devices


def _sampler(
    group: Group, schedule: Schedule, trial: Trial, num_devices: int
) -> Callable[[], float]:
    """Compiles; what is called then takes a moment, and tells seconds a lane's step."""
    whole = group.layout(schedule.lanes_at_once, num_devices)
    block = whole.blocks(schedule.num_chunks)[0]
    trial(block, 1)  # compiles
    seconds = trial(block, 1)
    steps = max(1, min(1000, int(_SAMPLE_SECONDS / max(seconds, 1e-6))))
    return lambda: trial(block, steps) / steps / len(block.lanes())
