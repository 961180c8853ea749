"""Lanes that are one program: what they share, and the numbers that differ."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae import _checks, _keys, corruptions
from jaxae.autoencoder.model import LATENT_DIM
from jaxae.objective import Objective
from jaxae.sweeps import layouts
from jaxae.sweeps.layouts import Layout
from jaxae.sweeps.spaces import Lanes, with_static_values
from jaxae.training import TrainConfig, checks, epochs
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
      vmapped: which lanes may be in one vmap: "any", those of one "seed", or "none".
      generator: of the random numbers that decide this, as JAX names it.
    """

    name: str
    objective: Objective
    config: TrainConfig
    lanes: np.ndarray
    hparams: dict[str, np.ndarray]
    limits: np.ndarray
    seeds: np.ndarray
    widths: np.ndarray
    vmapped: str
    generator: str

    @property
    def most_at_once(self) -> int:
        """Lanes that may be in one vmap."""
        if self.vmapped == "seed":
            return int(np.unique(self.seeds, return_counts=True)[1].max())
        return len(self.lanes) if self.vmapped == "any" else 1

    def layout(self, lanes_at_once: int, num_devices: int, lanes=None) -> Layout:
        """Where its lanes lie, or those of them that are named."""
        lanes = np.arange(len(self.lanes)) if lanes is None else lanes
        found = layouts.layout(
            self.seeds[lanes],
            lanes_at_once,
            num_devices,
            mixes_seeds=self.vmapped == "any",
        )
        return found._replace(slots=lanes[found.slots])

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
    for lane, choices in enumerate(lanes.static):
        members.setdefault(choices, []).append(lane)
    checked = checks.as_hparams(hparams, jnp.float32)
    shared = {name: np.float32(value) for name, value in checked.items()}
    given = {**shared, **{name: values[0] for name, values in lanes.hparams.items()}}
    chosen = [with_static_values(objective, config, choices) for choices in members]
    read = [
        checks.names_read(its_objective, its_config, data, given, key)
        for its_objective, its_config in chosen
    ]
    _check_names(given, sorted({INIT_SCALE}.union(*read)))
    groups = []
    for (its_objective, its_config), names, indices in zip(
        chosen, read, members.values(), strict=True
    ):
        wanted = {n: v for n, v in given.items() if n in (*names, INIT_SCALE)}
        checks.check_parts(its_objective, key, its_config)
        checks.check_hparams(its_objective, its_config, data, wanted, key)
        mine = np.array(indices)
        group = _group(
            its_objective, its_config, lanes, mine, shared, wanted, data, key
        )
        groups.append(group)
    for group in groups:
        _check_numbers(group, data)
    return groups


def _vmapped(objective: Objective, config, hparams, data: Data, key) -> tuple[str, str]:
    """Which lanes draw in one vmap what each draws alone, and by which generator."""
    default = jax.random.key(0)  # of the keys that an optimizer makes for itself
    if not _keys.is_vmap_invariant(default) and _keeps_key(objective, config, hparams):
        return "none", _keys.generator_of(default)
    generator = _keys.generator_of(key)
    if _keys.is_vmap_invariant(key):
        return "any", generator
    # Lanes of one seed share its key, so that vmap gives no draw an axis, unless the
    # function that draws does: a loop that depends on a hyperparameter, for example.
    is_ours = objective.corruption in (None, *corruptions.CATALOGUE.values())
    return "seed" if is_ours and not callable(data) else "none", generator


def _keeps_key(objective: Objective, config: TrainConfig, hparams) -> bool:
    """Whether an optimizer's state has what may be a key: each lane has its own."""
    params = jax.eval_shape(objective.ae.init, jax.random.key(0))
    state = jax.eval_shape(config.optimizer(hparams).init, params)
    return any(leaf.dtype == jnp.uint32 for leaf in jax.tree.leaves(state))


def _check_names(given: Mapping, read: list[str]) -> None:
    unread = [f"{n}{_checks.closest(n, read)}" for n in given if n not in read]
    if unread:
        raise ValueError(
            f"space or hparams have {', '.join(unread)}, which nothing in this sweep "
            f"reads; its objectives, optimizers and data read: {', '.join(read)}."
        )


def _group(
    objective, config, lanes: Lanes, mine, shared, wanted, data: Data, key
) -> Group:
    widths = lanes.widths[mine]
    objective = with_width(objective, int(widths.max()))
    with np.errstate(over="ignore"):  # refused below, lane by lane
        numbers = {
            name: lanes.hparams[name][mine].astype(np.float32)
            if name in lanes.hparams
            else np.full(len(mine), shared[name])
            for name in wanted
        }
    if len(set(widths)) > 1:
        _check_padding(objective)
        numbers[LATENT_DIM] = widths.astype(np.int32)
    limits = [with_width(objective, int(w)).ae.init_limit for w in widths]
    first = {name: lanes.axes[name][mine[0]] for name, _ in lanes.static[mine[0]]}
    vmapped, generator = _vmapped(objective, config, wanted, data, key)
    return Group(
        name=", ".join(f"{name} {value}" for name, value in first.items()),
        objective=objective,
        config=config,
        lanes=mine,
        hparams=numbers,
        limits=np.array(limits, np.float32),
        seeds=lanes.seeds[mine],
        widths=widths,
        vmapped=vmapped,
        generator=generator,
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
        checks.check_numbers(group.objective, group.config, data, one)


def num_steps(group: Group, data: Data) -> int:
    """Of one epoch."""
    return epochs.num_steps(data, group.config)
