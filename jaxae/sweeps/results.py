"""The lanes of a sweep as they are trained, their progress, and the final table."""

import dataclasses
import functools
import math
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae import _checks
from jaxae._checks import ArgumentError
from jaxae.autoencoder import Autoencoder
from jaxae.sweeps.groups import Group
from jaxae.sweeps.plans import Plan

FINISHED, DIVERGED, HALVED = "finished", "diverged", "halved"


class LaneBlock(NamedTuple):
    """Lanes of one group that have taken the same number of steps.

    Training yields blocks and resumes from them. The store saves them, and the workers
    of a cluster exchange them.

    Attributes:
      indices: `[n]`, the lanes, as indices into the group.
      params: their parameters, `[n, ...]`; None before the first step.
      state: the objective's state, `[n, ...]`.
      carry: what else training resumes from, `[n, ...]`: the other fields of the
        `TrainState`, and the means of the epoch.
      step: the steps begun.
      num_epochs: the epochs that have ended.
      stopped_at: `[n]`, the step that failed; -1 while all is finite.
      metrics: the metrics of the latest epochs, `[n, epochs]` by name.
      final: the diagnostics after the last epoch of the sweep, `[n]` by name.
    """

    indices: np.ndarray
    params: Any
    state: Any
    carry: Any
    step: int
    num_epochs: int
    stopped_at: np.ndarray
    metrics: dict[str, np.ndarray]
    final: dict[str, np.ndarray]


class LaneResults:
    """All lanes `[n]` of one group, collected from blocks; fields as in `LaneBlock`."""

    def __init__(self, group: Group):
        n = len(group.lanes)
        self.group = group
        self.params: Any = None
        self.state: Any = None
        self.carry: Any = None
        self.step = np.zeros(n, int)
        self.num_epochs = np.zeros(n, int)
        self.stopped_at = np.full(n, -1)
        self.metrics: dict[str, np.ndarray] = {}
        self.final: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.step)

    def add(self, block: LaneBlock) -> int:
        """Store a block; return the number of new steps, summed over its lanes."""
        i, num_epochs = block.indices, self.group.config.num_epochs
        self.params = _stored(self.params, block.params, i, len(self))
        self.state = _stored(self.state, block.state, i, len(self))
        self.carry = _stored(self.carry, block.carry, i, len(self))
        for name, values in block.metrics.items():
            if name not in self.metrics:
                self.metrics[name] = np.full((len(self), num_epochs), np.nan)
            first_epoch = block.num_epochs - values.shape[1]
            self.metrics[name][i, first_epoch : block.num_epochs] = values
        if block.num_epochs == num_epochs:  # a shorter sweep may have saved the block
            for name, values in block.final.items():
                self.final.setdefault(name, np.full(len(self), np.nan))[i] = values
        num_new_steps = int((block.step - self.step[i]).sum())
        self.stopped_at[i] = block.stopped_at
        self.step[i], self.num_epochs[i] = block.step, block.num_epochs
        return num_new_steps

    def block(self, indices, first_epoch: int = 0) -> LaneBlock:
        """Lanes with the same number of steps; metrics from first_epoch on."""
        first = indices[0]
        step, num_epochs = int(self.step[first]), int(self.num_epochs[first])
        selected = functools.partial(jax.tree.map, lambda leaf: leaf[indices])
        metrics = selected(self.metrics)
        return LaneBlock(
            indices=indices,
            params=selected(self.params),
            state=selected(self.state),
            carry=selected(self.carry),
            step=step,
            num_epochs=num_epochs,
            stopped_at=self.stopped_at[indices],
            metrics={n: v[:, first_epoch:num_epochs] for n, v in metrics.items()},
            final=selected(self.final) if self.is_done[first] else {},
        )

    def ranking_values(self, metric: str, num_epochs: int) -> np.ndarray:
        """`[n]`: the metric after so many epochs; infinite if a lane diverged."""
        values = self.metrics[metric][:, num_epochs - 1]
        return np.where((self.stopped_at >= 0) | np.isnan(values), math.inf, values)

    @property
    def is_done(self) -> np.ndarray:
        """`[n]`: whether a lane has been trained for all epochs."""
        return self.num_epochs == self.group.config.num_epochs

    @property
    def status(self) -> np.ndarray:
        """`[n]`, at the end of the sweep."""
        status = np.where(self.is_done, FINISHED, HALVED)
        return np.where(self.stopped_at >= 0, DIVERGED, status)


def _stored(stacked: Any, new: Any, indices, num_lanes: int) -> Any:
    """A pytree `[num_lanes, ...]` with the new leaves `[n, ...]` at these indices."""
    if not jax.tree.leaves(new):  # sgd's state has a structure, but no leaves
        return new if stacked is None else stacked
    if not jax.tree.leaves(stacked):  # None, or () from a block that nothing resumes
        shape = (num_lanes,)
        stacked = jax.tree.map(lambda v: np.zeros(shape + v.shape[1:], v.dtype), new)
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

    def __init__(self, on_progress, results: list[LaneResults], num_steps: int):
        self._on_progress, self._results = on_progress, results
        self._num_lanes = sum(map(len, results))
        self._num_steps, self._start = num_steps, time.perf_counter()
        self._steps = self._steps_kept = self._num_halved = 0

    def __call__(self, num_new_steps: int = 0, is_saved: bool = False) -> None:
        """Report new steps, which were trained or, if is_saved, read from disk."""
        self._steps += num_new_steps
        self._steps_kept += num_new_steps if is_saved else 0
        if self._on_progress is None:
            return
        num_finished = sum(int(results.is_done.sum()) for results in self._results)
        progress = Progress(
            lanes_done=num_finished + self._num_halved,
            num_lanes=self._num_lanes,
            steps=self._steps,
            num_steps=self._num_steps,
            seconds=time.perf_counter() - self._start,
            steps_kept=self._steps_kept,
        )
        self._on_progress(progress)

    def end_rung(self, alive: list[np.ndarray], num_steps_left: int) -> None:
        """Report which lanes are still alive, and the steps that are left."""
        self._num_halved = self._num_lanes - sum(map(len, alive))
        self._num_steps = self._steps + num_steps_left
        self()


# ---- the final table -----------------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """The results of a sweep.

    Attributes:
      axes: `[L]` of everything in the space, by name.
      metrics: `[L, num_epochs]` by name, "train/loss", "validation/loss", ...; nan
        after a lane was halved.
      status: `[L]`, "finished", "diverged" or "halved": stopped early by successive
        halving.
      plan: how the lanes were run.
    """

    axes: dict[str, np.ndarray]
    metrics: dict[str, np.ndarray]
    status: np.ndarray
    plan: Plan
    _results: tuple[LaneResults, ...]
    _order: np.ndarray  # [L]: the place of each lane among those of all groups
    _key: Any

    def __len__(self) -> int:
        return len(self._order)

    @property
    def table(self):
        """A pandas frame: one row a lane, its axes, final metrics, status, stopped_at.

        The column "epochs" is the number of epochs that a lane ran. The metrics of a
        halved lane are those of its last epoch. A diverged lane does not change after
        stopped_at; its later epochs count.

        Raises:
          ImportError: if pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise _checks.extra("sweep.table", "pandas", "sweep") from error
        frame = pd.DataFrame({**self.axes, **self.final})
        frame["epochs"] = self._gather("num_epochs")
        frame["status"] = self.status
        stopped_at = self._gather("stopped_at")
        frame["stopped_at"] = pd.arrays.IntegerArray(stopped_at, mask=stopped_at < 0)
        return frame.rename_axis("lane")

    @property
    def final(self) -> dict[str, np.ndarray]:
        """The metrics `[L]` after each lane's last epoch, by name."""
        last = np.arange(len(self)), self._gather("num_epochs") - 1
        of_epochs = {name: values[last] for name, values in self.metrics.items()}
        diagnostics = [results.final for results in self._results]
        return {**of_epochs, **_joined(diagnostics, self._results, self._order)}

    def best(self, metric="validation/loss") -> int:
        """The finished lane whose final metric is the smallest.

        Raises:
          ArgumentError: for an unknown metric, or if no finished lane has a number.
        """
        final = self.final
        if not isinstance(metric, str) or metric not in final:
            found = f"{metric!r}{_checks.closest(metric, final)}"
            raise ArgumentError("metric", f"must be one of {', '.join(final)}", found)
        values = np.where(self.status == FINISHED, final[metric], np.nan)
        if np.isnan(values).all():
            problem = f"is {metric}, for which no finished lane has a number"
            raise ArgumentError("metric", problem)
        return int(np.nanargmin(values))

    def params(self, lane) -> Any:
        """The params of one lane, without padding."""
        results, i = self._place(lane)
        params = results.group.params_of(results.params, i)
        return jax.tree.map(jnp.asarray, params)

    def model(self, lane) -> tuple[Autoencoder, Any]:
        """The model of one lane and its params, for use on one example.

        As `Run.model`: batch_topk becomes a jumprelu with the running threshold, and
        topk one with the lane's own k.
        """
        results, i = self._place(lane)
        group = results.group
        state = jax.tree.map(lambda leaf: leaf[i], results.state)
        return group.objective_of(i).inference_model(
            self.params(lane), group.hparams_of(i), state
        )

    def trial(self, lane) -> dict[str, Any]:
        """The keyword arguments with which `train(data=..., **...)` repeats a lane."""
        results, i = self._place(lane)
        group, num_epochs = results.group, int(results.num_epochs[i])
        initial = {} if group.params is None else {"params": group.params}
        return {
            "objective": group.objective_of(i),
            "hparams": group.hparams_of(i),
            "config": dataclasses.replace(group.config, num_epochs=num_epochs),
            "key": jax.random.fold_in(self._key, group.seeds[i]),
            **initial,
        }

    def _place(self, lane) -> tuple[LaneResults, int]:
        """The results of a lane's group, and the lane's index in them."""
        is_integer = isinstance(lane, int | np.integer) and not isinstance(lane, bool)
        if not is_integer or not -len(self) <= lane < len(self):
            problem = f"must be an integer below {len(self)}"
            raise ArgumentError("lane", problem, repr(lane))
        i = int(self._order[int(lane)])
        for results in self._results:
            if i < len(results):
                break
            i -= len(results)
        return results, i

    def _gather(self, name: str) -> np.ndarray:
        columns = [getattr(results, name) for results in self._results]
        return np.concatenate(columns)[self._order]


def as_sweep(results: list[LaneResults], axes, plan: Plan, key) -> Sweep:
    """The results of all groups, in the order of the sweep's lanes."""
    order = np.argsort(np.concatenate([r.group.lanes for r in results]))
    metrics = _joined([r.metrics for r in results], results, order)
    status = np.concatenate([r.status for r in results])[order]
    return Sweep(axes, metrics, status, plan, tuple(results), order, key)


def _joined(columns, results, order: np.ndarray) -> dict[str, np.ndarray]:
    """Columns `[n, ...]` of all groups as `[L, ...]`; nan where a group has none."""
    joined = {}
    for name in dict.fromkeys(name for named in columns for name in named):
        (example, *_) = (named[name] for named in columns if name in named)
        parts = [
            named.get(name, np.full((len(r), *example.shape[1:]), math.nan))
            for named, r in zip(columns, results, strict=True)
        ]
        joined[name] = np.concatenate(parts)[order]
    return joined
