"""What a sweep made: a table, and what each lane was."""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxae import _checks
from jaxae.sweeps.groups import Group
from jaxae.sweeps.plans import Plan
from jaxae.sweeps.store import LaneBlock

FINISHED, DIVERGED, HALVED = "finished", "diverged", "halved"


class LaneResults:
    """What is known of the lanes of one group, `[n]`, as far as they have come."""

    def __init__(self, group: Group, num_epochs: int):
        self.group = group
        n = len(group.lanes)
        self.metrics: dict[str, np.ndarray] = {}
        self.final: dict[str, np.ndarray] = {}
        self.stopped_at = np.full(n, -1)
        self.step = np.zeros(n, int)  # steps begun
        self.num_epochs = np.zeros(n, int)  # that have ended
        self.params: Any = None  # [n, ...]
        self.rest: Any = None  # [n, ...]: what else training goes on from
        self._shape = n, num_epochs

    def add(self, part: LaneBlock) -> int:
        """What became of some lanes; return how many steps are new, of all of them."""
        i, first = part.indices, part.num_epochs - part.num_rows
        self.params = self._written(self.params, part.params, i)
        self.rest = self._written(self.rest, part.rest, i)
        for name, values in part.rows.items():
            whole = self.metrics.setdefault(name, np.full(self._shape, np.nan))
            whole[i, first : part.num_epochs] = values
        if part.num_epochs == self._shape[1]:  # or else it is of a shorter sweep
            for name, values in part.final.items():
                whole = self.final.setdefault(name, np.full(self._shape[0], np.nan))
                whole[i] = values
        num_new = part.step * len(i) - int(self.step[i].sum())
        self.stopped_at[i] = part.stopped_at
        self.step[i], self.num_epochs[i] = part.step, part.num_epochs
        return num_new

    def part(self, indices, rung: range) -> LaneBlock:
        """Lanes that stand at one step of a rung, with all its epochs that ended."""
        of_lanes = functools.partial(jax.tree.map, lambda leaf: leaf[indices])
        num_epochs = int(self.num_epochs[indices[0]])
        final = self.final if num_epochs == self._shape[1] else {}
        return LaneBlock(
            indices=indices,
            params=of_lanes(self.params),
            rest=of_lanes(self.rest),
            step=int(self.step[indices[0]]),
            num_epochs=num_epochs,
            stopped_at=self.stopped_at[indices],
            rows={
                name: values[indices, rung.start : num_epochs]
                for name, values in self.metrics.items()
            },
            final={name: values[indices] for name, values in final.items()},
        )

    def _written(self, whole: Any, part: Any, indices) -> Any:
        if not jax.tree.leaves(part):  # sgd's state has none, but a structure
            return part if whole is None else whole
        if whole is None:
            n = self._shape[0]
            whole = jax.tree.map(
                lambda leaf: np.zeros((n, *leaf.shape[1:]), leaf.dtype), part
            )
        for old, new in zip(*map(jax.tree.leaves, (whole, part)), strict=True):
            old[indices] = new
        return whole


@dataclass(frozen=True)
class Sweep:
    """What a sweep made; lane i is one trial.

    Attributes:
      axes: one entry a lane of everything in the space, by name.
      metrics: `[L, num_epochs]` by name, "train/loss", "validation/loss", ...; nan
        after a lane was halved away.
      status: "finished", "diverged" or "halved", one a lane.
      plan: how the lanes were run.
    """

    axes: dict[str, np.ndarray]
    metrics: dict[str, np.ndarray]
    status: np.ndarray
    plan: Plan
    _ledgers: tuple[LaneResults, ...]
    _places: np.ndarray  # [L, 2]: of each lane, its group and its place in it
    _key: Any

    def __len__(self) -> int:
        return len(self._places)

    @property
    def table(self):
        """A pandas frame: one row a lane, its axes, final metrics, status, stopped_at.

        With them "epochs", how many it ran; of a lane that was halved away, the
        metrics are those of the last of these. One that diverged stands still from
        stopped_at on, and its epochs count.

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
            [None if at < 0 else int(at) for at in self._gather("stopped_at")],
            dtype="Int64",
        )
        return frame.rename_axis("lane")

    @property
    def final(self) -> dict[str, np.ndarray]:
        """The metrics `[L]` of each lane's last epoch, by name."""
        last = self._gather("num_epochs") - 1
        of_epochs = {n: v[np.arange(len(self)), last] for n, v in self.metrics.items()}
        names = dict.fromkeys(name for led in self._ledgers for name in led.final)
        looked = {
            name: np.array([self._final(name, lane) for lane in range(len(self))])
            for name in names
        }
        return {**of_epochs, **looked}

    def best(self, metric="validation/loss") -> int:
        """The finished lane whose metric is the smallest at its end.

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
        """The plain params of one lane, of its own width."""
        ledger, i = self._place(lane)
        params = ledger.group.params_of(ledger.params, i)
        return jax.tree.map(jnp.asarray, params)

    def trial(self, lane) -> dict[str, Any]:
        """The keyword arguments with which `train(data=..., **...)` repeats a lane."""
        ledger, i = self._place(lane)
        group = ledger.group
        config = dataclasses.replace(group.config, num_epochs=int(ledger.num_epochs[i]))
        return {
            "objective": group.objective_of(i),
            "hparams": group.hparams_of(i),
            "config": config,
            "key": jax.random.fold_in(self._key, group.seeds[i]),
        }

    def _place(self, lane) -> tuple[LaneResults, int]:
        is_integer = isinstance(lane, int | np.integer) and not isinstance(lane, bool)
        if not is_integer or not -len(self) <= lane < len(self):
            raise _checks.ArgumentError(
                "lane", f"must be an integer below {len(self)}", repr(lane)
            )
        group, i = self._places[int(lane)]
        return self._ledgers[group], int(i)

    def _gather(self, name: str) -> np.ndarray:
        return np.array([getattr(self._ledgers[g], name)[i] for g, i in self._places])

    def _final(self, name: str, lane: int) -> float:
        ledger, i = self._place(lane)
        return float(ledger.final[name][i]) if name in ledger.final else math.nan


def gathered(ledgers, lanes, num_epochs: int, plan: Plan, key) -> Sweep:
    """A sweep's result, from what is known of each group."""
    places = np.zeros((len(lanes), 2), int)
    for g, ledger in enumerate(ledgers):
        places[ledger.group.lanes] = [(g, i) for i in range(len(ledger.group.lanes))]
    names = dict.fromkeys(name for ledger in ledgers for name in ledger.metrics)
    metrics = {name: np.full((len(lanes), num_epochs), np.nan) for name in names}
    status = np.full(len(lanes), FINISHED, dtype="<U8")
    for ledger in ledgers:
        mine = ledger.group.lanes
        for name, values in ledger.metrics.items():
            metrics[name][mine] = values
        status[mine[ledger.num_epochs < num_epochs]] = HALVED
        status[mine[ledger.stopped_at >= 0]] = DIVERGED
    return Sweep(lanes.axes, metrics, status, plan, tuple(ledgers), places, key)
