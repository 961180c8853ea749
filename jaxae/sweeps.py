"""A sweep: one compiled program whose lanes are independent experiments."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxae import _checks, training
from jaxae.training import TrainConfig, refusals

RESERVED = ("latent_dim", "k")  # they change shapes, and need more than a vmap


@dataclass(frozen=True)
class Sweep:
    """What a sweep made; lane i is one trial.

    Attributes:
      axes: one entry a lane of everything in the space, by name.
      metrics: `[L, num_epochs]` by name, "train/loss", ...
      state: the `TrainState` of all lanes, stacked along the first axis.
    """

    axes: dict[str, np.ndarray]
    metrics: dict[str, np.ndarray]
    state: training.TrainState
    _trial: dict[str, Any]

    def __len__(self) -> int:
        return len(self.state.step)

    @property
    def table(self):
        """A pandas frame: one row a lane, its axes, final metrics, status, stopped_at.

        Raises:
          ImportError: where pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise _checks.extra("sweep.table", "pandas", "sweep") from error
        stopped_at = np.asarray(self.state.stopped_at)
        final = {name: values[:, -1] for name, values in self.metrics.items()}
        frame = pd.DataFrame({**self.axes, **final})
        frame["status"] = np.where(stopped_at < 0, "finished", "diverged")
        frame["stopped_at"] = pd.array(
            [None if at < 0 else int(at) for at in stopped_at], dtype="Int64"
        )
        return frame.rename_axis("lane")

    def params(self, lane):
        """The plain params of one lane."""
        lane = self._check(lane)
        return jax.tree.map(lambda leaf: leaf[lane], self.state.params)

    def trial(self, lane) -> dict[str, Any]:
        """The keyword arguments with which `train(data=..., **...)` repeats a lane."""
        lane = self._check(lane)
        fixed = dict(self._trial)
        axes = {name: values[lane].item() for name, values in self.axes.items()}
        key = jax.random.fold_in(fixed.pop("key"), axes.pop("seed", 0))
        return {**fixed, "hparams": {**fixed["hparams"], **axes}, "key": key}

    def _check(self, lane) -> int:
        is_integer = isinstance(lane, int | np.integer) and not isinstance(lane, bool)
        if not is_integer or not -len(self) <= lane < len(self):
            raise ValueError(
                f"lane must be an integer below {len(self)}, got {lane!r}."
            )
        return int(lane)


def sweep(
    objective,
    data: Any,
    space,
    *,
    hparams: Mapping[str, Any] | None = None,
    key,
    config=None,
) -> Sweep:
    """Train every combination of `space` at once: the vmap of the pure epoch.

    Args:
      objective: what is minimised.
      data: as for `train`, shared by all lanes; rows on disk are read whole.
      space: values by name: any hyperparameter, and `seed`. All combinations are lanes,
        the last axis fastest. A lane's key is fold_in(key, seed), seed 0 unless given.
      hparams: the hyperparameters that all lanes share.
      key: of the whole sweep.
      config: the fixed choices, shared by all lanes.

    Raises:
      ValueError: as `train`, and for an empty axis, a name in both space and hparams,
        or an axis that changes shapes.
    """
    config = TrainConfig() if config is None else config
    hparams = dict(hparams or {})
    refusals.check_arguments(objective, key, config)
    data = refusals.as_data("data", data, objective, jnp.float32, config)
    if not callable(data):  # lanes share what is on the device, whatever the budget
        data = jax.tree.map(jnp.asarray, data)
    axes = _grid(space, hparams)
    lanes = _lanes(axes, hparams)
    num_lanes = len(next(iter(axes.values())))
    for lane in range(num_lanes):
        one = {name: values[lane] for name, values in lanes.items()}
        if lane == 0:  # the names are those of every lane
            refusals.check_hparams(objective, config, data, one, key)
        objective.check_hparams(one)

    seeds = jnp.asarray(axes.get("seed", np.zeros(num_lanes, np.int32)))
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, seeds)
    state = _init_lanes(lanes, keys, objective=objective, optimizer=config.optimizer)
    run_epoch = _epoch_of_source if callable(data) else _epoch_of_arrays
    # As in train: the number of epochs is no part of the program.
    config_of_epoch = dataclasses.replace(config, num_epochs=1)
    history = []
    for _ in range(config.num_epochs):
        state, row = run_epoch(
            state, lanes, data, objective=objective, config=config_of_epoch
        )
        history.append(jax.tree.map(np.asarray, row))
    metrics = {
        f"train/{name}": np.stack([row[name] for row in history], axis=1)
        for name in history[0]
    }
    trial = {"objective": objective, "hparams": hparams, "config": config, "key": key}
    return Sweep(axes, metrics, state, trial)


_STATIC = ("objective", "config")


@functools.partial(jax.jit, static_argnames=("objective", "optimizer"))
def _init_lanes(lanes, keys, *, objective, optimizer):
    config = TrainConfig(optimizer=optimizer)
    init = functools.partial(training.init_state, objective, config=config)
    return jax.vmap(init)(lanes, keys)


def _vmapped_epoch(state, lanes, data, *, objective, config):
    epoch = functools.partial(
        training.epoch, data=data, objective=objective, config=config
    )
    return jax.vmap(epoch)(state, lanes)


_epoch_of_arrays = jax.jit(
    _vmapped_epoch, static_argnames=_STATIC, donate_argnames="state"
)
_epoch_of_source = jax.jit(
    _vmapped_epoch, static_argnames=(*_STATIC, "data"), donate_argnames="state"
)


def _grid(space, hparams: Mapping) -> dict[str, np.ndarray]:
    """One entry a lane of each axis: all combinations, the last axis fastest."""
    if not isinstance(space, Mapping) or not space:
        raise ValueError(
            "space must be a dict of at least one axis, such as "
            "{'learning_rate': [0.1, 0.01]}."
        )
    for name in space:
        if name in RESERVED:
            raise ValueError(
                f"space[{name!r}] changes the shape of the program; run one sweep for "
                f"each {name}."
            )
        if name in hparams:
            raise ValueError(f"{name} is in space and in hparams; leave one out.")
    values = {name: _axis(name, axis) for name, axis in space.items()}
    grids = np.meshgrid(*values.values(), indexing="ij")
    return {name: grid.reshape(-1) for name, grid in zip(values, grids, strict=True)}


def _axis(name: str, axis: Any) -> np.ndarray:
    kinds = "iu" if name == "seed" else "fiu"
    values = np.array(list(axis) if isinstance(axis, Iterable) else axis)
    if values.ndim != 1 or not len(values) or values.dtype.kind not in kinds:
        raise ValueError(
            f"space[{name!r}] must be a list of at least one "
            f"{'integer' if name == 'seed' else 'number'}, got {axis!r}."
        )
    if name == "seed" and not (0 <= values.min() and values.max() < 2**32):
        raise ValueError(
            f"space['seed'] must lie between 0 and 2**32 - 1, got {axis!r}."
        )
    if not np.isfinite(values).all():
        raise ValueError(f"space[{name!r}] must be finite, got {axis!r}.")
    return values


def _lanes(axes: Mapping, hparams: Mapping) -> dict[str, np.ndarray]:
    """Every hyperparameter, stacked `[L]`, on the host."""
    num_lanes = len(next(iter(axes.values())))
    shared = refusals.as_hparams(hparams, jnp.float32)
    stacked = {name: np.full(num_lanes, v) for name, v in shared.items()}
    own = {n: np.asarray(v, np.float32) for n, v in axes.items() if n != "seed"}
    return {**stacked, **own}
