"""Groups of lanes that share a compiled program, and how a group is laid out in it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxae import _checks, _keys, activations, corruptions
from jaxae._checks import ArgumentError
from jaxae.activations import Activation
from jaxae.autoencoder import Autoencoder
from jaxae.autoencoder.parametrizations import LATENT_FIELDS
from jaxae.data import BlockShuffle
from jaxae.objective import Objective
from jaxae.sweeps.spaces import LATENT_DIM, Lanes, with_static_values
from jaxae.training import TrainConfig, checks
from jaxae.training.batches import Data, shuffle_of
from jaxae.training.train_step import INIT_SCALE


class Group(NamedTuple):
    """Lanes that share one compiled program.

    Attributes:
      name: its static axes, such as "optimizer sgd"; empty for the only group.
      objective: as wide as the widest lane.
      config: the static settings.
      lanes: `[n]`, the number of each lane in the sweep.
      hparams: `[n]` by name, with latent_dim where widths differ.
      init_limits: `[n]`, the `init_limit` of each lane's own model.
      seeds: `[n]`, the seed of each lane.
      widths: `[n]`, each lane's own latent_dim.
      params: the initial ones of all lanes; None if each lane draws its own.
      shuffle: the `shuffle_of` the data as the user passed them: a copy on the device
        is read in the same order. None for rows in any order.
      vmap_scope: which lanes may share a vmap: "any", those of one "seed", or "none".
      generator: the random generator that decides this, by its name in JAX.
    """

    name: str
    objective: Objective
    config: TrainConfig
    lanes: np.ndarray
    hparams: dict[str, np.ndarray]
    init_limits: np.ndarray
    seeds: np.ndarray
    widths: np.ndarray
    params: Any
    shuffle: BlockShuffle | None
    vmap_scope: str
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
        if self.vmap_scope == "seed":
            return int(np.unique(self.seeds, return_counts=True)[1].max())
        return len(self.lanes) if self.vmap_scope == "any" else 1

    def layout(self, lanes_at_once: int, num_devices: int, indices=None) -> "Layout":
        """The layout of all its lanes, or of those with the given indices."""
        indices = np.arange(len(self.lanes)) if indices is None else indices
        seeds, mixes_seeds = self.seeds[indices], self.vmap_scope == "any"
        layout = layout_of(seeds, lanes_at_once, num_devices, mixes_seeds)
        return layout._replace(slots=indices[layout.slots])

    def objective_of(self, i: int) -> Objective:
        """The objective with the model of lane i, at its own width."""
        return with_width(self.objective, int(self.widths[i]))

    def hparams_of(self, i: int) -> dict[str, float]:
        """The hyperparameters of lane i, as `train` takes them."""
        columns = self.hparams.items()
        return {name: v[i].item() for name, v in columns if name != LATENT_DIM}

    def params_of(self, stacked: Any, i: int) -> Any:
        """The params of lane i, from `[n, ...]`, without the padding."""
        params = jax.tree.map(lambda leaf: leaf[i], stacked)
        width = int(self.widths[i])
        if width == self.objective.ae.latent_dim:
            return params
        padded = [name for name in LATENT_FIELDS if name in params._fields]
        # b_enc is () where the encoder has no bias, also after [:width].
        return params._replace(**{n: getattr(params, n)[:width] for n in padded})


def with_width(objective: Objective, latent_dim: int) -> Objective:
    """The objective of the same model with latent_dim latents."""
    ae = dataclasses.replace(objective.ae, latent_dim=latent_dim)
    return dataclasses.replace(objective, ae=ae)


def groups_of(
    objective: Objective,
    config: TrainConfig,
    lanes: Lanes,
    hparams: Mapping,
    data,
    key,
    params,
) -> list[Group]:
    """One group for every combination of values of the static axes, checked."""
    if params is not None:
        _check_params(params, lanes)
    if LATENT_DIM in lanes.axes and objective.prefixes is not None:
        problem = "cannot be swept with prefixes, which end at one latent_dim"
        advice = "run one sweep for each latent_dim"
        raise ArgumentError(f"space['{LATENT_DIM}']", problem, advice=advice)
    members: dict[tuple, list[int]] = {}
    for lane, static_values in enumerate(lanes.static):
        members.setdefault(static_values, []).append(lane)
    # Which names are read does not depend on the values, so those of one lane do.
    shared = checks.as_hparams(hparams, jnp.float32)
    example = {name: np.float32(value) for name, value in shared.items()}
    example |= {name: values[0] for name, values in lanes.hparams.items()}
    programs = [with_static_values(objective, config, values) for values in members]
    read = [checks.names_read(*program, data, example, key) for program in programs]
    optional = {INIT_SCALE} if params is None else set()
    _check_names(example, sorted(optional.union(*read)))
    groups = []
    for program, names, indices in zip(programs, read, members.values(), strict=True):
        own = {n: v for n, v in example.items() if n in (*names, *optional)}
        checks.trace_custom_components(program[0], key, program[1])
        checks.check_hparams(*program, data, own, key, params)
        group = _group(*program, lanes, np.array(indices), own, data, key)
        if params is not None:
            group.objective.ae.check_params(params)
        groups.append(group._replace(params=params))
    for group in groups:
        _check_values(group, data)
    return groups


def _check_params(params, lanes: Lanes) -> None:
    if LATENT_DIM in lanes.axes:
        problem = "cannot be swept with params, which have one latent_dim"
        raise ArgumentError(f"space['{LATENT_DIM}']", problem)
    for name, leaf in _checks.named(params):
        if leaf.dtype != jnp.float32:
            problem = "must be float32, in which the lanes of a sweep train"
            raise ArgumentError(f"params.{name}", problem, str(leaf.dtype))


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
    labels = [f"{name} {lanes.axes[name][first]}" for name, _ in lanes.static[first]]
    distinct, width_of = np.unique(widths, return_inverse=True)
    limits = [with_width(objective, int(width)).ae.init_limit for width in distinct]
    vmap_scope, generator = _vmap_scope(objective, config, hparams, data, key)
    return Group(
        name=", ".join(labels),
        objective=objective,
        config=config,
        lanes=indices,
        hparams=columns,
        init_limits=np.array(limits, np.float32)[width_of],
        seeds=lanes.seeds[indices],
        widths=widths,
        params=None,
        shuffle=shuffle_of(data, config),
        vmap_scope=vmap_scope,
        generator=generator,
    )


def _vmap_scope(
    objective: Objective, config, hparams, data: Data, key
) -> tuple[str, str]:
    """Which lanes may share a vmap, and the generator that decides this."""
    for own in _keys_in_state(objective, config, hparams):
        if not _keys.is_vmap_invariant(own):
            return "none", _keys.generator_of(own)
    generator = _keys.generator_of(key)
    if _keys.is_vmap_invariant(key):
        return "any", generator
    # Lanes of one seed share its key, so that vmap gives no draw an axis, unless the
    # function that draws does: a loop that depends on a hyperparameter, for example.
    is_ours = objective.corruption in (None, *corruptions.CATALOGUE.values())
    return "seed" if is_ours and not callable(data) else "none", generator


def _keys_in_state(objective: Objective, config: TrainConfig, hparams) -> list:
    """A key of each generator that a lane's state may hold keys of, besides its seed's.

    An array of uint32 may be the data of a key of JAX's default generator.
    """
    default, examples = jax.random.key(0), {}

    def init():
        params = objective.ae.init(default)
        state = config.optimizer(hparams).init(params), objective.init_state()
        for leaf in jax.tree.leaves(state):
            if _keys.is_key(leaf):
                examples[_keys.generator_of(leaf)] = leaf
            elif jnp.result_type(leaf) == jnp.uint32:
                examples[_keys.generator_of(default)] = default

    jax.eval_shape(init)
    return list(examples.values())


def _check_padding(ae: Autoencoder) -> None:
    activation, parametrization = ae.activation, ae.parametrization
    depends_on_others = activation.slope is None or activation.init_state
    if activation.init or (depends_on_others and not _ignores_padding(activation)):
        problem = "an activation without parameters that is elementwise or one of "
        problem += f"topk, abs_topk and batch_topk, but {activation} is not one"
    elif not parametrization.is_composed:
        problem = "a parametrization that can be padded, but "
        problem += f"{parametrization} is your own"
    else:
        return
    advice = "run one sweep for each latent_dim"
    raise ArgumentError("space['latent_dim']", f"needs {problem}", advice=advice)


def _ignores_padding(activation: Activation) -> bool:
    """Whether pre-activations of 0, as padding has, never displace another latent."""
    is_own = activations.find(activation.name) is activation
    return is_own and activation.max_active is not None


def _check_values(group: Group, data: Data) -> None:
    lanes = range(len(group.lanes))
    rows = zip(lanes, *group.hparams.values(), strict=True)
    for i in {tuple(values): i for i, *values in rows}.values():  # thousands may agree
        hparams = group.hparams_of(i)
        for name, value in hparams.items():
            if not np.isfinite(value):
                raise ArgumentError(f"space[{name!r}]", "must be finite in float32")
        checks.check_hparam_ranges(group.objective, group.config, data, hparams)


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
        blocks = []
        for start in range(0, len(self.slots), num_chunks):
            chunks, is_own = _filled(len(self.slots), start, start + num_chunks)
            is_first = self.is_first[chunks] & is_own[:, None, None]
            slots, seed_of = self.slots[chunks], self.seed_of[chunks]
            blocks.append(Layout(slots, is_first, seed_of, self.seeds))
        return blocks

    def lanes(self) -> np.ndarray:
        """The lanes, each once, in the order of their slots."""
        return self.slots[self.is_first]


def layout_of(
    seeds: np.ndarray, lanes_at_once: int, num_devices: int = 1, mixes_seeds=True
) -> Layout:
    """The lanes with these seeds `[L]`, in chunks of about equal size.

    A chunk has at most lanes_at_once lanes, of several seeds if mixes_seeds. Each
    device has the same number of chunks.
    """
    unique, seed_of_lane = np.unique(seeds, return_inverse=True)
    lanes_of_seed = [np.flatnonzero(seed_of_lane == u) for u in range(len(unique))]
    largest = max(map(len, lanes_of_seed))
    per_seed = math.ceil(largest / math.ceil(largest / lanes_at_once))
    slots, is_first, seed_of = [], [], []  # of rows: the lanes of one seed in a chunk
    for u, lanes in enumerate(lanes_of_seed):
        for start in range(0, len(lanes), per_seed):
            indices, is_own = _filled(len(lanes), start, start + per_seed)
            slots.append(lanes[indices])
            is_first.append(is_own)
            seed_of.append(u)
    num_rows = len(slots)
    at_once = max(1, min(num_rows, lanes_at_once // per_seed)) if mixes_seeds else 1
    at_once = math.ceil(num_rows / math.ceil(num_rows / at_once))
    num_chunks = math.ceil(num_rows / at_once / num_devices) * num_devices
    rows, is_own = _filled(num_rows, 0, num_chunks * at_once)
    shape = num_chunks, at_once, per_seed
    return Layout(
        slots=np.array(slots)[rows].reshape(shape),
        is_first=(np.array(is_first)[rows] & is_own[:, None]).reshape(shape),
        seed_of=np.array(seed_of)[rows].reshape(shape[:2]),
        seeds=unique,
    )


def _filled(length: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices from start to stop, the last one below length repeated; False there."""
    indices = np.arange(start, stop)
    return np.minimum(indices, length - 1), indices < length
