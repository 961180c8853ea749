"""The lanes of a sweep: as they are trained, their progress, and the final table."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae import _checks
from jaxae.sweeps.groups import Group
from jaxae.sweeps.plans import Plan

FINISHED, DIVERGED, HALVED = "finished", "diverged", "halved"


class LaneBlock(NamedTuple):
    """Lanes of one group that have all taken the same number of steps.

    The one record of trained lanes: training yields it and resumes from it, a folder
    holds it, and a cluster receives and returns it.

    Attributes:
      indices: `[n]`, the lanes, as indices into the group.
      params: their parameters, `[n, ...]`; None before the first step.
      carry: the rest of what training resumes from, `[n, ...]`: the optimizer's state,
        the objective's state, and the means of the epoch.
      step: the steps begun.
      num_epochs: the epochs that have ended.
      stopped_at: `[n]`, the step that failed; -1 while all is finite.
      metrics: their metrics in the last of these epochs, `[n, epochs]` by name.
      final: their diagnostics after the last epoch of all, `[n]` by name.
    """

    indices: np.ndarray
    params: Any
    carry: Any
    step: int
    num_epochs: int
    stopped_at: np.ndarray
    metrics: dict[str, np.ndarray]
    final: dict[str, np.ndarray]


class LaneResults:
    """The lanes `[n]` of one group, collected from blocks; as in `LaneBlock`."""

    def __init__(self, group: Group):
        n = len(group.lanes)
        self.group = group
        self.params: Any = None
        self.carry: Any = None
        self.step = np.zeros(n, int)
        self.num_epochs = np.zeros(n, int)
        self.stopped_at = np.full(n, -1)
        self.metrics: dict[str, np.ndarray] = {}
        self.final: dict[str, np.ndarray] = {}

    def add(self, block: LaneBlock) -> int:
        """Store a block; return how many steps it is ahead, summed over its lanes."""
        i, num_lanes = block.indices, len(self.step)
        self.params = _stored(self.params, block.params, i, num_lanes)
        self.carry = _stored(self.carry, block.carry, i, num_lanes)
        num_epochs = self.group.config.num_epochs
        for name, values in block.metrics.items():
            if name not in self.metrics:
                self.metrics[name] = np.full((num_lanes, num_epochs), np.nan)
            first_epoch = block.num_epochs - values.shape[1]
            self.metrics[name][i, first_epoch : block.num_epochs] = values
        if block.num_epochs == num_epochs:  # otherwise it is of a shorter sweep
            for name, values in block.final.items():
                self.final.setdefault(name, np.full(num_lanes, np.nan))[i] = values
        num_new_steps = int((block.step - self.step[i]).sum())
        self.stopped_at[i] = block.stopped_at
        self.step[i], self.num_epochs[i] = block.step, block.num_epochs
        return num_new_steps

    def block(self, indices, first_epoch: int = 0) -> LaneBlock:
        """Lanes that have taken equally many steps; metrics from first_epoch on."""
        of_lanes = functools.partial(jax.tree.map, lambda leaf: leaf[indices])
        num_epochs = int(self.num_epochs[indices[0]])
        final = self.final if num_epochs == self.group.config.num_epochs else {}
        return LaneBlock(
            indices=indices,
            params=of_lanes(self.params),
            carry=of_lanes(self.carry),
            step=int(self.step[indices[0]]),
            num_epochs=num_epochs,
            stopped_at=self.stopped_at[indices],
            metrics={
                name: values[indices, first_epoch:num_epochs]
                for name, values in self.metrics.items()
            },
            final={name: values[indices] for name, values in final.items()},
        )


def _stored(stacked: Any, new: Any, indices, num_lanes: int) -> Any:
    """A pytree `[num_lanes, ...]` with the new leaves `[n, ...]` at these indices."""
    if not jax.tree.leaves(new):  # sgd's state has a structure, but no leaves
        return new if stacked is None else stacked
    if stacked is None:
        stacked = jax.tree.map(
            lambda leaf: np.zeros((num_lanes, *leaf.shape[1:]), leaf.dtype), new
        )
    for leaf, new_leaf in zip(*map(jax.tree.leaves, (stacked, new)), strict=True):
        leaf[indices] = new_leaf
    return stacked


# ---- progress ------------------------------------------------------------------------


class Progress(NamedTuple):
    """The progress of a sweep.

    Attributes:
      lanes_done: the lanes that will not be trained further.
      num_lanes: of the sweep.
      steps: the steps so far, summed over the lanes.
      num_steps: the steps of the whole sweep, summed over the lanes.
      seconds: since training began.
      steps_kept: those of `steps` that were read from disk instead of trained.
    """

    lanes_done: int
    num_lanes: int
    steps: int
    num_steps: int
    seconds: float
    steps_kept: int = 0


class ProgressReporter:
    """Counts the steps and lanes of a sweep, and calls on_progress if there is one."""

    def __init__(
        self,
        on_progress: Callable[[Progress], Any] | None,
        results: list[LaneResults],
        num_steps: int,
    ):
        self._on_progress, self._results = on_progress, results
        self._num_steps, self._start = num_steps, time.perf_counter()
        self._steps = self._steps_kept = self._num_halved = 0

    def __call__(self, num_new_steps: int = 0, is_saved: bool = False) -> None:
        """Report new steps, which were trained or, if is_saved, read from disk."""
        self._steps += num_new_steps
        self._steps_kept += num_new_steps if is_saved else 0
        if self._on_progress is None:
            return
        is_done = [r.num_epochs == r.group.config.num_epochs for r in self._results]
        self._on_progress(
            Progress(
                lanes_done=int(sum(map(np.sum, is_done))) + self._num_halved,
                num_lanes=sum(map(len, is_done)),
                steps=self._steps,
                num_steps=self._num_steps,
                seconds=time.perf_counter() - self._start,
                steps_kept=self._steps_kept,
            )
        )

    def end_rung(self, alive: list[np.ndarray], num_steps_left: int) -> None:
        """Report that only some lanes are still alive."""
        num_lanes = sum(len(of_group.step) for of_group in self._results)
        self._num_halved = num_lanes - sum(map(len, alive))
        self._num_steps = self._steps + num_steps_left
        self()


# ---- at the end ----------------------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """The results of a sweep; lane i is one trial.

    Attributes:
      axes: `[L]` of everything in the space, by name.
      metrics: `[L, num_epochs]` by name, "train/loss", "validation/loss", ...; nan
        after a lane was halved.
      status: `[L]`, "finished", "diverged" or "halved".
      plan: how the lanes were run.
    """

    axes: dict[str, np.ndarray]
    metrics: dict[str, np.ndarray]
    status: np.ndarray
    plan: Plan
    _results: tuple[LaneResults, ...]
    _places: np.ndarray  # [L, 2]: each lane's group, and its index in the group
    _key: Any

    def __len__(self) -> int:
        return len(self._places)

    @property
    def table(self):
        """A pandas frame: one row a lane, its axes, final metrics, status, stopped_at.

        The column "epochs" is the number of epochs that a lane ran. The metrics of a
        halved lane are those of its last epoch. A diverged lane does not change after
        stopped_at; its later epochs count.

        Raises:
          ImportError: where pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise _checks.extra("sweep.table", "pandas", "sweep") from error
        frame = pd.DataFrame({**self.axes, **self.final})
        frame["epochs"] = self._gather("num_epochs")
        frame["status"] = self.status
        frame["stopped_at"] = pd.array(
            [None if step < 0 else int(step) for step in self._gather("stopped_at")],
            dtype="Int64",
        )
        return frame.rename_axis("lane")

    @property
    def final(self) -> dict[str, np.ndarray]:
        """The metrics `[L]` after each lane's last epoch, by name."""
        last = self._gather("num_epochs") - 1
        of_epochs = {n: v[np.arange(len(self)), last] for n, v in self.metrics.items()}
        names = dict.fromkeys(
            name for results in self._results for name in results.final
        )
        diagnostics = {
            name: np.array([self._final(name, lane) for lane in range(len(self))])
            for name in names
        }
        return {**of_epochs, **diagnostics}

    def best(self, metric="validation/loss") -> int:
        """The finished lane whose final metric is the smallest.

        Raises:
          ValueError: for an unknown metric, or where no lane has a number.
        """
        final = self.final
        if not isinstance(metric, str) or metric not in final:
            raise _checks.ArgumentError(
                "metric",
                f"must be one of {', '.join(final)}",
                f"{metric!r}{_checks.closest(metric, final)}",
            )
        values = np.where(self.status == FINISHED, final[metric], np.nan)
        if np.isnan(values).all():
            raise ValueError(f"no lane finished with a number for {metric}.")
        return int(np.nanargmin(values))

    def params(self, lane) -> Any:
        """The params of one lane, without padding."""
        results, i = self._place(lane)
        params = results.group.params_of(results.params, i)
        return jax.tree.map(jnp.asarray, params)

    def trial(self, lane) -> dict[str, Any]:
        """The keyword arguments with which `train(data=..., **...)` repeats a lane."""
        results, i = self._place(lane)
        group, num_epochs = results.group, int(results.num_epochs[i])
        return {
            "objective": group.objective_of(i),
            "hparams": group.hparams_of(i),
            "config": dataclasses.replace(group.config, num_epochs=num_epochs),
            "key": jax.random.fold_in(self._key, group.seeds[i]),
        }

    def _place(self, lane) -> tuple[LaneResults, int]:
        is_integer = isinstance(lane, int | np.integer) and not isinstance(lane, bool)
        if not is_integer or not -len(self) <= lane < len(self):
            raise _checks.ArgumentError(
                "lane", f"must be an integer below {len(self)}", repr(lane)
            )
        g, i = self._places[int(lane)]
        return self._results[g], int(i)

    def _gather(self, name: str) -> np.ndarray:
        return np.array([getattr(self._results[g], name)[i] for g, i in self._places])

    def _final(self, name: str, lane: int) -> float:
        results, i = self._place(lane)
        return float(results.final[name][i]) if name in results.final else math.nan


def as_sweep(results: list[LaneResults], axes, plan: Plan, key) -> Sweep:
    """The results of all groups, in the order of the sweep's lanes."""
    num_lanes = sum(plan.num_lanes)
    num_epochs = results[0].group.config.num_epochs
    places = np.zeros((num_lanes, 2), int)
    names = dict.fromkeys(name for of_group in results for name in of_group.metrics)
    metrics = {name: np.full((num_lanes, num_epochs), np.nan) for name in names}
    status = np.full(num_lanes, FINISHED, dtype="<U8")
    for g, of_group in enumerate(results):
        lanes = of_group.group.lanes
        places[lanes] = [(g, i) for i in range(len(lanes))]
        for name, values in of_group.metrics.items():
            metrics[name][lanes] = values
        status[lanes[of_group.num_epochs < num_epochs]] = HALVED
        status[lanes[of_group.stopped_at >= 0]] = DIVERGED
    return Sweep(axes, metrics, status, plan, tuple(results), places, key)
