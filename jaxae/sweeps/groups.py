"""Groups of lanes that share a compiled program, and how a group is laid out in it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae import _checks, _keys, corruptions
from jaxae._checks import ArgumentError
from jaxae.autoencoder import Autoencoder
from jaxae.objective import Objective
from jaxae.sweeps.spaces import LATENT_DIM, Lanes, with_static_values
from jaxae.training import TrainConfig, checks
from jaxae.training.epochs import INIT_SCALE, Data


class Group(NamedTuple):
    """Lanes that share one compiled program; each array has one entry per lane.

    Attributes:
      name: its static axes, such as "optimizer sgd"; empty for the only group.
      objective: as wide as the widest lane.
      config: the static settings.
      lanes: `[n]`, their numbers in the sweep.
      hparams: `[n]` by name, with latent_dim where widths differ.
      limits: `[n]`, the `init_limit` of each lane's own model.
      seeds: `[n]`.
      widths: `[n]`, each lane's own latent_dim.
      vmapped: which lanes may share a vmap: "any", those of one "seed", or "none".
      generator: the random generator that decides this, by its name in JAX.
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
    def size(self) -> tuple[int, ...]:
        """The numbers on which the speed of training depends."""
        ae, num_seeds = self.objective.ae, len(np.unique(self.seeds))
        sizes = ae.input_dim, ae.latent_dim, self.config.batch_size
        return len(self.lanes), num_seeds, *sizes

    @property
    def max_at_once(self) -> int:
        """The most lanes that may share a vmap."""
        if self.vmapped == "seed":
            return int(np.unique(self.seeds, return_counts=True)[1].max())
        return len(self.lanes) if self.vmapped == "any" else 1

    def layout(self, lanes_at_once: int, num_devices: int, indices=None) -> "Layout":
        """The layout of all its lanes, or of those with the given indices."""
        indices = np.arange(len(self.lanes)) if indices is None else indices
        layout = layout_of(
            self.seeds[indices],
            lanes_at_once,
            num_devices,
            mixes_seeds=self.vmapped == "any",
        )
        return layout._replace(slots=indices[layout.slots])

    def objective_of(self, i: int) -> Objective:
        """The objective with the model of lane i, at its own width."""
        return with_width(self.objective, int(self.widths[i]))

    def hparams_of(self, i: int) -> dict[str, float]:
        """The hyperparameters of lane i, as `train` takes them."""
        return {
            name: values[i].item()
            for name, values in self.hparams.items()
            if name != LATENT_DIM
        }

    def params_of(self, stacked: Any, i: int) -> Any:
        """The params of lane i, from `[n, ...]`, without the padding."""
        params = jax.tree.map(lambda leaf: leaf[i], stacked)
        width = int(self.widths[i])
        if width == self.objective.ae.latent_dim:
            return params
        padded = [*self.objective.ae.parametrization.weights, "b_enc"]
        rows = {
            n: getattr(params, n)[:width] for n in padded if len(getattr(params, n))
        }
        return params._replace(**rows)


def with_width(objective: Objective, latent_dim: int) -> Objective:
    """The objective of the same model with latent_dim latents."""
    ae = dataclasses.replace(objective.ae, latent_dim=latent_dim)
    return dataclasses.replace(objective, ae=ae)


def groups_of(
    objective: Objective, config: TrainConfig, lanes: Lanes, hparams: Mapping, data, key
) -> list[Group]:
    """One group for every combination of values of the static axes.

    Raises:
      ArgumentError: for a hyperparameter that no lane reads, that some lane lacks or
        that is out of range, and for widths of a model that cannot be padded.
    """
    members: dict[tuple, list[int]] = {}
    for lane, static_values in enumerate(lanes.static):
        members.setdefault(static_values, []).append(lane)
    # Which names are read does not depend on the values, so those of one lane do.
    shared = checks.as_hparams(hparams, jnp.float32)
    example = {name: np.float32(value) for name, value in shared.items()}
    example |= {name: values[0] for name, values in lanes.hparams.items()}
    programs = [with_static_values(objective, config, values) for values in members]
    read = [checks.names_read(*program, data, example, key) for program in programs]
    _check_names(example, sorted({INIT_SCALE}.union(*read)))
    groups = []
    for program, names, indices in zip(programs, read, members.values(), strict=True):
        own = {n: v for n, v in example.items() if n in (*names, INIT_SCALE)}
        checks.check_parts(program[0], key, program[1])
        checks.check_hparams(*program, data, own, key)
        groups.append(_group(*program, lanes, np.array(indices), own, data, key))
    for group in groups:
        _check_values(group, data)
    return groups


def _check_names(hparams: Mapping, names_read: list[str]) -> None:
    unread = [
        f"{name}{_checks.closest(name, names_read)}"
        for name in hparams
        if name not in names_read
    ]
    if unread:
        raise ArgumentError(
            "space or hparams",
            f"have {', '.join(unread)}, which nothing in this sweep reads",
            advice=f"its objectives, optimizers and data read: {', '.join(names_read)}",
        )


def _group(
    objective, config, lanes: Lanes, indices: np.ndarray, hparams, data: Data, key
) -> Group:
    """The group of these lanes; `hparams` are those of one of them."""
    widths = lanes.widths[indices]
    objective = with_width(objective, int(widths.max()))
    with np.errstate(over="ignore"):  # _check_values raises for each lane
        columns = {
            name: lanes.hparams[name][indices].astype(np.float32)
            if name in lanes.hparams
            else np.full(len(indices), value)
            for name, value in hparams.items()
        }
    if len(set(widths)) > 1:
        _check_padding(objective.ae)
        columns[LATENT_DIM] = widths.astype(np.int32)
    first = indices[0]
    labels = {name: lanes.axes[name][first] for name, _ in lanes.static[first]}
    limits = [with_width(objective, int(width)).ae.init_limit for width in widths]
    vmapped, generator = _vmapped(objective, config, hparams, data, key)
    return Group(
        name=", ".join(f"{name} {label}" for name, label in labels.items()),
        objective=objective,
        config=config,
        lanes=indices,
        hparams=columns,
        limits=np.array(limits, np.float32),
        seeds=lanes.seeds[indices],
        widths=widths,
        vmapped=vmapped,
        generator=generator,
    )


def _vmapped(objective: Objective, config, hparams, data: Data, key) -> tuple[str, str]:
    """Which lanes may share a vmap and draw what each draws alone; which generator."""
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


def _check_padding(ae: Autoencoder) -> None:
    activation = ae.activation
    problem = None
    if activation.slope is None or activation.init or activation.init_state:
        problem = (
            "needs an elementwise activation without parameters and state, but "
            f"{activation} is none"
        )
    elif not ae.parametrization.is_composed:
        problem = (
            f"needs a parametrization that can be padded, but {ae.parametrization} is "
            "your own"
        )
    if problem is not None:
        advice = "run one sweep for each latent_dim"
        raise ArgumentError("space['latent_dim']", problem, advice=advice)


def _check_values(group: Group, data: Data) -> None:
    for i in range(len(group.lanes)):
        hparams = group.hparams_of(i)
        for name, value in hparams.items():
            if not np.isfinite(value):
                raise ArgumentError(f"space[{name!r}]", "must be finite in float32")
        checks.check_numbers(group.objective, group.config, data, hparams)


# ---- layouts -------------------------------------------------------------------------


class Layout(NamedTuple):
    """Lanes in chunks `[C, S, M]`: S seeds at once, and M lanes of each seed.

    Lanes with the same seed share batches and noise, which are computed once for all M.
    A chunk with too few lanes is padded with copies of its last lane.

    Attributes:
      slots: `[C, S, M]`, the lane in each slot, as an index into its group.
      is_first: `[C, S, M]`, False where a slot repeats a lane.
      seed_of: `[C, S]`, indices into seeds.
      seeds: `[U]`, the distinct seeds.
    """

    slots: np.ndarray
    is_first: np.ndarray
    seed_of: np.ndarray
    seeds: np.ndarray

    @property
    def lanes_at_once(self) -> int:
        """S M, the lanes of a chunk."""
        return math.prod(self.slots.shape[1:])

    def blocks(self, num_chunks: int) -> list["Layout"]:
        """The layout in blocks of num_chunks chunks each, the last one filled up."""
        return [
            Layout(
                _filled(self.slots[i : i + num_chunks], num_chunks),
                _filled(self.is_first[i : i + num_chunks], num_chunks, with_last=False),
                _filled(self.seed_of[i : i + num_chunks], num_chunks),
                self.seeds,
            )
            for i in range(0, len(self.slots), num_chunks)
        ]

    def lanes(self) -> np.ndarray:
        """The lanes, each once, in the order of their slots."""
        return self.slots[self.is_first]


def layout_of(
    seeds: np.ndarray,
    lanes_at_once: int,
    num_devices: int = 1,
    mixes_seeds: bool = True,
) -> Layout:
    """Chunks of at most lanes_at_once lanes, of about equal size.

    Args:
      seeds: `[L]`, of each lane.
      lanes_at_once: the most lanes in a chunk.
      num_devices: the number of chunks is a multiple of this.
      mixes_seeds: whether a chunk may have lanes of several seeds.
    """
    unique, seed_of_lane = np.unique(seeds, return_inverse=True)
    lanes_of_seed = [np.flatnonzero(seed_of_lane == u) for u in range(len(unique))]
    largest = max(map(len, lanes_of_seed))
    per_seed = math.ceil(largest / math.ceil(largest / lanes_at_once))
    rows = [
        (u, lanes[i : i + per_seed])
        for u, lanes in enumerate(lanes_of_seed)
        for i in range(0, len(lanes), per_seed)
    ]
    at_once = max(1, min(len(rows), lanes_at_once // per_seed)) if mixes_seeds else 1
    at_once = math.ceil(len(rows) / math.ceil(len(rows) / at_once))
    num_chunks = math.ceil(len(rows) / at_once / num_devices) * num_devices
    slots = np.stack([_filled(lanes, per_seed) for _, lanes in rows])
    is_first = np.stack(
        [_filled(np.ones(len(r), bool), per_seed, with_last=False) for _, r in rows]
    )
    num_rows = num_chunks * at_once
    shape = num_chunks, at_once
    return Layout(
        slots=_filled(slots, num_rows).reshape(*shape, per_seed),
        is_first=_filled(is_first, num_rows, with_last=False).reshape(*shape, per_seed),
        seed_of=_filled(np.array([u for u, _ in rows]), num_rows).reshape(shape),
        seeds=unique,
    )


def _filled(array: np.ndarray, length: int, with_last: bool = True) -> np.ndarray:
    """The array extended to a length by copies of its last entry, or by False."""
    missing = length - len(array)
    last = array[-1:] if with_last else np.zeros_like(array[-1:])
    return np.concatenate([array, *[last] * missing])
