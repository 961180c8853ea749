"""Lanes that are one program: what they share, and the numbers that differ."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae import _checks
from jaxae.autoencoder.model import LATENT_DIM
from jaxae.objective import Objective
from jaxae.sweeps.spaces import CHOICES, Lanes
from jaxae.training import TrainConfig, epochs, refusals
from jaxae.training.epochs import INIT_SCALE, Data


class Group(NamedTuple):
    """Lanes whose program is the same.

    Attributes:
      name: what is special about it, such as "optimizer sgd"; empty for the only one.
      objective: as wide as the widest lane.
      config: the fixed choices.
      lanes: `[n]`, which of the sweep's.
      hparams: `[n]` by name, with latent_dim where widths differ.
      limits: `[n]`, the `init_limit` of each lane's own model.
      seeds: `[n]`.
      widths: `[n]`, each lane's own latent_dim.
    """

    name: str
    objective: Objective
    config: TrainConfig
    lanes: np.ndarray
    hparams: dict[str, np.ndarray]
    limits: np.ndarray
    seeds: np.ndarray
    widths: np.ndarray

    def objective_of(self, i: int) -> Objective:
        """With the model of its i-th lane, at its own width."""
        return with_width(self.objective, int(self.widths[i]))

    def hparams_of(self, i: int) -> dict[str, float]:
        """What its i-th lane alone would be given."""
        return {
            name: values[i].item()
            for name, values in self.hparams.items()
            if name != LATENT_DIM
        }

    def params_of(self, stacked: Any, i: int) -> Any:
        """The params of its i-th lane, from `[n, ...]`, at its own width."""
        params = jax.tree.map(lambda leaf: leaf[i], stacked)
        H, width = self.objective.ae.latent_dim, int(self.widths[i])
        if width == H:
            return params
        names = [*self.objective.ae.parametrization.weights, "b_enc"]
        own = {n: getattr(params, n)[:width] for n in names if len(getattr(params, n))}
        return params._replace(**own)


def with_width(objective: Objective, latent_dim: int) -> Objective:
    """The objective of the same model with so many latents."""
    ae = dataclasses.replace(objective.ae, latent_dim=latent_dim)
    return dataclasses.replace(objective, ae=ae)


def groups_of(
    objective: Objective, config: TrainConfig, lanes: Lanes, hparams: Mapping, data, key
) -> list[Group]:
    """One group for every combination of what changes the program.

    Raises:
      ValueError: for a hyperparameter that no lane reads or that some lane lacks, one
        out of range, or widths that the model cannot have as padding.
    """
    members: dict[tuple, list[int]] = {}
    for lane, choices in enumerate(lanes.choices):
        members.setdefault(choices, []).append(lane)
    checked = refusals.as_hparams(hparams, jnp.float32)
    shared = {name: np.float32(value) for name, value in checked.items()}
    given = {**shared, **{name: values[0] for name, values in lanes.numbers.items()}}
    chosen = [_chosen(objective, config, choices) for choices in members]
    read = [
        refusals.names_read(its_objective, its_config, data, given, key)
        for its_objective, its_config in chosen
    ]
    _check_names(given, sorted({INIT_SCALE}.union(*read)))
    groups = []
    for (its_objective, its_config), names, indices in zip(
        chosen, read, members.values(), strict=True
    ):
        wanted = {n: v for n, v in given.items() if n in (*names, INIT_SCALE)}
        refusals.check_parts(its_objective, key, its_config)
        refusals.check_hparams(its_objective, its_config, data, wanted, key)
        mine = np.array(indices)
        groups.append(_group(its_objective, its_config, lanes, mine, shared, wanted))
    for group in groups:
        _check_numbers(group, data)
    return groups


def _check_names(given: Mapping, read: list[str]) -> None:
    unread = [f"{n}{_checks.closest(n, read)}" for n in given if n not in read]
    if unread:
        raise ValueError(
            f"space or hparams have {', '.join(unread)}, which nothing in this sweep "
            f"reads; its objectives, optimizers and data read: {', '.join(read)}."
        )


def _chosen(objective: Objective, config: TrainConfig, choices: tuple):
    for name, value in choices:
        objective, config = CHOICES[name].apply(objective, config, value)
    return objective, config


def _group(objective, config, lanes: Lanes, mine, shared, wanted) -> Group:
    widths = lanes.widths[mine]
    objective = with_width(objective, int(widths.max()))
    with np.errstate(over="ignore"):  # refused below, lane by lane
        numbers = {
            name: lanes.numbers[name][mine].astype(np.float32)
            if name in lanes.numbers
            else np.full(len(mine), shared[name])
            for name in wanted
        }
    if len(set(widths)) > 1:
        _check_padding(objective)
        numbers[LATENT_DIM] = widths.astype(np.int32)
    limits = [with_width(objective, int(w)).ae.init_limit for w in widths]
    first = {name: lanes.axes[name][mine[0]] for name, _ in lanes.choices[mine[0]]}
    return Group(
        name=", ".join(f"{name} {value}" for name, value in first.items()),
        objective=objective,
        config=config,
        lanes=mine,
        hparams=numbers,
        limits=np.array(limits, np.float32),
        seeds=lanes.seeds[mine],
        widths=widths,
    )


def _check_padding(objective: Objective) -> None:
    activation = objective.ae.activation
    if activation.slope is None or activation.init is not None:
        raise ValueError(
            "space['latent_dim'] needs an elementwise activation without parameters, "
            f"but {activation} is none; run one sweep for each latent_dim."
        )


def _check_numbers(group: Group, data: Data) -> None:
    """Refuse numbers that are out of range in any lane."""
    for i in range(len(group.lanes)):
        one = group.hparams_of(i)
        for name, value in one.items():
            if not np.isfinite(value):
                raise ValueError(f"space[{name!r}] must be finite in float32.")
        refusals.check_numbers(group.objective, group.config, data, one)


def num_steps(group: Group, data: Data) -> int:
    """Of one epoch."""
    return epochs.num_steps(data, group.config)
