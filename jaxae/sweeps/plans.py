"""Plans: how many lanes share a vmap, and which lanes are trained to the end."""

import itertools
import math
import os
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from jaxae import _checks
from jaxae._checks import ArgumentError
from jaxae.sweeps.groups import Group, Layout

_MIN_PAYOFF = 4.0  # training takes this many times as long as timing, at least
_SAMPLE_SECONDS = 0.05
_NUM_ROUNDS = 3


class GroupPlan(NamedTuple):
    """How the lanes of one group are run.

    Attributes:
      name: the static axes of the group; empty for the only group.
      num_lanes: the lanes of the group.
      lanes_at_once: the lanes of a chunk, in one vmap; 1 for lanes in sequence.
      num_chunks: the chunks of a block, in one call of the program.
      bytes: the memory of one call, estimated.
      seconds: the training time of the group, estimated; nan if not measured.
      timings: the candidates that were timed, if there were several, as pairs
        (lanes_at_once, seconds a step of a lane).
      reason: why lanes_at_once is less than requested, or than would fit.
    """

    name: str
    num_lanes: int
    lanes_at_once: int
    num_chunks: int
    bytes: int
    seconds: float = math.nan
    timings: tuple[tuple[int, float], ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        at_once = self.lanes_at_once
        how = f"{at_once} at once" if at_once > 1 else "in sequence"
        if self.reason:
            how += f" ({self.reason})"
        # An observation's name may hold a weight for each of many columns.
        name = textwrap.shorten(self.name or "all", 60, placeholder=" ...")
        lanes, mebibytes = _count(self.num_lanes, "lane"), self.bytes / 2**20
        line = f"{name}: {lanes}, {how}, {mebibytes:.0f} MiB"
        if not math.isnan(self.seconds):
            line += f", about {_duration(self.seconds)}"
        if self.timings:
            timings = ", ".join(f"{n}: {1e6 * t:.3g} us" for n, t in self.timings)
            line += f" (a lane's step, by lanes at once: {timings})"
        return line


class Plan(NamedTuple):
    """How a sweep is run.

    Attributes:
      groups: the plan of each group of lanes that share a compiled program.
      num_devices: the number of devices over which lanes are spread.
    """

    groups: tuple[GroupPlan, ...]
    num_devices: int

    def __str__(self) -> str:
        lanes = _count(sum(group.num_lanes for group in self.groups), "lane")
        programs = _count(len(self.groups), "compiled program")
        head = f"{lanes} in {programs}, {_count(self.num_devices, 'device')}"
        return "\n".join([head, *(f"  {group}" for group in self.groups)])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number > 1)}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


# ---- memory --------------------------------------------------------------------------


class Machine(NamedTuple):
    """The devices of a sweep, the bytes that it may use on each, and its threads."""

    num_devices: int
    memory_budget: int
    num_threads: int = 1  # that run chunks side by side


def num_threads_of(devices) -> int:
    """One a core on a CPU; elsewhere one, since a call keeps the device busy."""
    if len(devices) > 1 or devices[0].platform != "cpu":
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def budget_of(device: jax.Device) -> int:
    """The bytes that a sweep may use by default: most of the device's free memory."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(0.8 * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    free = 2**31
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") or free
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
    widths = 4 * ae.latent_dim + 3 * (ae.input_dim + ae.output_dim)
    activations = group.config.batch_size * widths * 4
    return state, state + activations


def max_lanes_at_once(group: Group, machine: Machine) -> int:
    """The most lanes at once that fit the memory of each device."""
    state, working = bytes_of_lane(group)
    fitting = machine.memory_budget // (2 * state + working)
    if fitting < 1:
        budget, needed = map(_mebibytes, (machine.memory_budget, 2 * state + working))
        lane = f"a lane of {group.name or 'this sweep'}"
        latents = f"{group.objective.ae.latent_dim:,} latents"
        problem = (
            f"is {budget} a device, but {lane} with {latents} needs about {needed}"
        )
        advice = "give more, or sweep smaller models"
        raise ArgumentError("memory_budget", problem, advice=advice)
    return min(fitting, _lanes_of_device(group, machine), group.max_at_once)


def _lanes_of_device(group: Group, machine: Machine) -> int:
    return math.ceil(len(group.lanes) / machine.num_devices)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.{0 if size > 2**23 else 2}f} MiB"


def _plan(group: Group, machine: Machine, at_once: int) -> GroupPlan:
    """The plan with at most that many lanes at once, in blocks that fit the memory."""
    layout = group.layout(at_once, machine.num_devices)
    state, working = bytes_of_lane(group)
    at_once = layout.lanes_at_once
    threads = machine.num_threads
    free = machine.memory_budget - threads * at_once * working
    most_chunks = max(1, free // max(1, 2 * state * at_once)) * machine.num_devices
    most_chunks -= most_chunks % min(most_chunks, threads)
    num_chunks = _even(len(layout.slots), most_chunks, machine.num_devices)
    num_chunks = padded_num_chunks(num_chunks, threads)
    chunks_of_device = num_chunks // machine.num_devices
    used = chunks_of_device * at_once * 2 * state
    used += min(threads, chunks_of_device) * at_once * working
    return GroupPlan(group.name, len(group.lanes), at_once, num_chunks, int(used))


def padded_num_chunks(num_chunks: int, num_threads: int) -> int:
    """The number of chunks of a block, padded so that threads share one program."""
    return _multiple(num_chunks, min(num_chunks, num_threads))


def _even(num_chunks: int, most: int, num_devices: int) -> int:
    """The chunks of a block, at most `most`, so that blocks have about equal sizes."""
    num_blocks = math.ceil(num_chunks / most)
    return _multiple(math.ceil(num_chunks / num_blocks), num_devices)


def _multiple(number: int, divisor: int) -> int:
    """The smallest multiple of the divisor that is at least the number."""
    return math.ceil(number / divisor) * divisor


# ---- lanes at once -------------------------------------------------------------------

Measure = Callable[[Layout, int], float]  # (block, num_steps) -> seconds


def fastest_plan(
    group: Group,
    machine: Machine,
    measure: Measure,
    num_steps: int,  # of each lane in the whole sweep
    block_seconds: float = math.inf,  # a block is shorter, where it can be
    same_size: GroupPlan | None = None,
) -> GroupPlan:
    """The fastest plan of a group among the candidates that are worth timing.

    Another candidate is timed only if training takes several times as long as a timing,
    most of which is compilation. With the plan of a group of the same size, only its
    number of lanes at once is timed, because speed depends on sizes much more than on
    the parts of the model.
    """
    most = math.ceil(max_lanes_at_once(group, machine) / machine.num_threads)
    candidates = _candidates(most)
    if same_size is not None:
        candidates = [min(same_size.lanes_at_once, most)]
    timings = _time(group, machine, candidates, measure, num_steps)
    best = min(timings, key=timings.__getitem__)
    plan, num_devices = _plan(group, machine, best), machine.num_devices
    chunk_seconds = timings[best] * best * num_devices * num_steps
    chunks_in_time = num_devices * block_seconds / max(chunk_seconds, 1e-9)
    most_chunks = int(min(plan.num_chunks, max(chunks_in_time, machine.num_threads)))
    num_chunks = _even(plan.num_chunks, most_chunks, num_devices)
    return plan._replace(
        num_chunks=padded_num_chunks(num_chunks, machine.num_threads),
        seconds=timings[best] * len(group.lanes) * num_steps,
        timings=tuple(timings.items()) if len(timings) > 1 else (),
        reason=_reason(group, machine, plan.lanes_at_once),
    )


def _candidates(most: int) -> list[int]:
    """The most lanes at once, 1, and numbers between them in steps of four."""
    between = [most // 4**i for i in range(1, 20) if most // 4**i > 1]
    return list(dict.fromkeys([most, 1, *between]))


def _time(
    group: Group, machine: Machine, candidates, measure: Measure, num_steps: int
) -> dict[int, float]:
    """The seconds that a step of a lane takes, by lanes at once."""
    samples: dict[int, Callable[[], float]] = {}
    timings: dict[int, float] = {}
    for at_once in candidates:
        start = time.perf_counter()
        samples[at_once] = _sampler(group, machine, at_once, measure)
        timings[at_once] = samples[at_once]()
        timing_seconds = time.perf_counter() - start
        training_seconds = min(timings.values()) * len(group.lanes) * num_steps
        if training_seconds < _MIN_PAYOFF * timing_seconds:
            break
    # Interleaved, so that background load affects all candidates.
    for _ in range(_NUM_ROUNDS if len(samples) > 1 else 0):
        for at_once, sample in samples.items():
            timings[at_once] = min(timings[at_once], sample())
    return timings


def _sampler(
    group: Group, machine: Machine, at_once: int, measure: Measure
) -> Callable[[], float]:
    """Compile; return a function that measures the seconds of a lane's step."""
    plan = _plan(group, machine, at_once)
    layout = group.layout(plan.lanes_at_once, machine.num_devices)
    block = layout.blocks(plan.num_chunks)[0]
    measure(block, 1)  # compiles
    seconds = measure(block, 1)
    num_steps = max(1, min(1000, int(_SAMPLE_SECONDS / max(seconds, 1e-6))))
    return lambda: measure(block, num_steps) / num_steps / len(block.lanes())


def requested_plan(group: Group, machine: Machine, lanes_at_once: int) -> GroupPlan:
    """The plan with that many lanes at once, or with as many as are possible."""
    most = max_lanes_at_once(group, machine)
    plan = _plan(group, machine, min(lanes_at_once, most))
    reason = _reason(group, machine, plan.lanes_at_once, lanes_at_once, most)
    return plan._replace(reason=reason)


def resumed_plan(
    saved: GroupPlan, group: Group, machine: Machine, requested: int | None
) -> GroupPlan:
    """The saved plan of a resumed sweep, adapted to the present devices.

    The lanes of a chunk stay the same, so that the results do too. A block has as many
    chunks as before, or as many as fit the memory.
    """
    at_once, num_devices = saved.lanes_at_once, machine.num_devices
    fitting = _plan(group, machine, at_once).num_chunks
    num_chunks = min(_multiple(saved.num_chunks, num_devices), fitting)
    plan = saved._replace(num_chunks=num_chunks)
    if requested is None or saved.reason.startswith(f"not {requested}: "):
        return plan
    if at_once == min(requested, _lanes_of_device(group, machine)):
        return plan
    return plan._replace(reason=f"not {requested}: a resumed sweep keeps its plan")


def _reason(
    group: Group, machine: Machine, at_once: int, requested=None, fitting=None
) -> str:
    """Why at_once is less than requested, or than all lanes; else empty."""
    num_lanes = _lanes_of_device(group, machine)
    desired = min(requested or num_lanes, num_lanes)
    if at_once == desired:
        return ""
    if fitting is not None and fitting < min(desired, group.max_at_once):
        why = f"memory_budget holds {fitting}"
    elif group.max_at_once < desired:
        kind = "of one seed" if group.vmap_scope == "seed" else "in sequence"
        why = f"{group.generator} keys are not vmap-invariant, so lanes are {kind}"
    elif requested is None:
        return ""
    else:
        why = "chunks are of one size"
    return why if requested is None else f"not {requested}: {why}"


# ---- successive halving --------------------------------------------------------------


@dataclass(frozen=True)
class Halving:
    """Stop the worse lanes after first, first x factor, first x factor^2, ... epochs.

    The best 1 / factor of the remaining lanes continue, rounded up: those with the
    smallest metric; a diverged lane ranks last. Lanes are compared only with lanes of
    the same observation, since losses of different observations are not comparable.

    Attributes:
      first: the epochs of the first rung.
      factor: divides the number of lanes and multiplies the epochs at each rung.
      metric: "validation/loss", or any metric that every epoch has.

    Raises:
      ArgumentError: for first < 1 or factor < 2.

    References:
      Jamieson and Talwalkar, Non-stochastic best arm identification and hyperparameter
      optimization, AISTATS 2016.
    """

    # No runtime type check by jaxtyping: the checks below have shorter messages.
    __no_type_check__ = True

    first: int = 1
    factor: int = 2
    metric: str = "validation/loss"

    def __post_init__(self):
        _checks.positive_int("first", self.first)
        if _checks.positive_int("factor", self.factor) < 2:
            raise ArgumentError("factor", "must be at least 2", str(self.factor))
        if not isinstance(self.metric, str):
            raise ArgumentError("metric", "must be a metric's name", repr(self.metric))


def rungs_of(halving, num_epochs: int, validation) -> list[range]:
    """The epochs of each rung; lanes may stop between two rungs."""
    if halving is None:
        return [range(num_epochs)]
    if not isinstance(halving, Halving):
        problem = "must be a jaxae.sweeps.Halving or None"
        raise ArgumentError("halving", problem, repr(halving))
    if halving.metric.startswith("validation/") and validation is None:
        problem = f"compares {halving.metric}, but there are no validation data"
        advice = "give validation=, or Halving(metric='train/loss')"
        raise ArgumentError("halving", problem, advice=advice)
    ends, end = [0], halving.first
    while end < num_epochs:
        ends.append(end)
        end *= halving.factor
    return [range(a, b) for a, b in itertools.pairwise([*ends, num_epochs])]


def survivors(
    halving: Halving, groups: list[Group], values: list[np.ndarray], alive
) -> list[np.ndarray]:
    """The lanes of each group that continue after a rung, of those still alive.

    `values` is the metric `[n]` of the lanes of each group; the smallest is the best.
    """
    surviving: list[list[int]] = [[] for _ in groups]
    lanes_of: dict[str, list[tuple[int, int]]] = {}  # by observation
    for g, group in enumerate(groups):
        observation = str(group.objective.ae.observation)
        lanes_of.setdefault(observation, []).extend((g, int(i)) for i in alive[g])
    for lanes in lanes_of.values():
        # Sorting is stable, so that the number of a lane breaks ties.
        lanes.sort(key=lambda lane: values[lane[0]][lane[1]])
        for g, i in lanes[: math.ceil(len(lanes) / halving.factor)]:
            surviving[g].append(i)
    return [np.array(sorted(indices), int) for indices in surviving]
