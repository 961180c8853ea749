"""A space of hyperparameters, and the lanes that it means."""

import dataclasses
import itertools
import math
import numbers
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxae import _checks, activations, corruptions, observations, optimizers
from jaxae.objective import Objective
from jaxae.optimizers import name_of
from jaxae.training import TrainConfig

SEED, LATENT_DIM = "seed", "latent_dim"
RESERVED = ("k",)  # changes what an activation is, and no activation has one yet
SAMPLERS = ("sobol", "random")
MAX_LANES = 2**20  # a kilobyte of bookkeeping each


class Range(NamedTuple):
    """Numbers between low and high, of which a sweep draws some."""

    low: float
    high: float
    is_log: bool

    def at(self, u: np.ndarray) -> np.ndarray:
        """The numbers a fraction u of the way, in logarithms where is_log."""
        if not self.is_log:
            return self.low + u * (self.high - self.low)
        return np.exp(math.log(self.low) + u * math.log(self.high / self.low))


def uniform(low, high) -> Range:
    """Numbers spread evenly over [low, high], in a space; needs num_samples.

    Raises:
      ValueError: unless low < high, both finite.
    """
    return _range(low, high, is_log=False)


def log_uniform(low, high) -> Range:
    """Numbers whose logarithms spread evenly over [low, high]; needs num_samples.

    Raises:
      ValueError: unless 0 < low < high, both finite.
    """
    return _range(low, high, is_log=True)


def _range(low, high, is_log: bool) -> Range:
    is_number = all(
        isinstance(v, numbers.Real) and not isinstance(v, bool) for v in (low, high)
    )
    given = f"{_checks.describe(low)} and {_checks.describe(high)}"
    low, high = map(_as_float, (low, high)) if is_number else (math.nan, math.nan)
    if not (-math.inf < low < high < math.inf):
        raise ValueError(f"a range needs finite low < high, got {given}.")
    if is_log and low <= 0:
        raise ValueError(f"a range on a log scale needs low > 0, got {given}.")
    return Range(low, high, is_log)


# ---- what changes the program --------------------------------------------------------


class StaticAxis(NamedTuple):
    """A fixed choice that a space may vary, at one compilation a value.

    Attributes:
      apply: `(objective, config, value) -> (objective, config)` with that choice.
      named: the part of a given name, where a string is not the value itself.
      label: how a value is written in a table.
    """

    apply: Callable[[Objective, TrainConfig, Any], tuple[Objective, TrainConfig]]
    named: Callable[[str], Any] | None = None
    label: Callable[[Any], Any] = lambda value: value


def _of_model(name: str, named=None, label: Callable = str) -> StaticAxis:
    def apply(objective, config, value):
        ae = dataclasses.replace(objective.ae, **{name: value})
        return dataclasses.replace(objective, ae=ae), config

    return StaticAxis(apply, named, label)


def _of_objective(name: str, named=None) -> StaticAxis:
    def apply(objective, config, value):
        return dataclasses.replace(objective, **{name: value}), config

    return StaticAxis(apply, named, str)


def _of_config(name: str, named=None, label: Callable = lambda v: v) -> StaticAxis:
    def apply(objective, config, value):
        return objective, dataclasses.replace(config, **{name: value})

    return StaticAxis(apply, named, label)


STATIC_AXES: dict[str, StaticAxis] = {
    "activation": _of_model("activation", activations.get),
    "observation": _of_model("observation", observations.get),
    "tied": _of_model("tied", label=bool),
    "bias": _of_model("bias", label=bool),
    "corruption": _of_objective("corruption", corruptions.get),
    "optimizer": _of_config("optimizer", optimizers.get, name_of),
    "batch_size": _of_config("batch_size"),
    "gradient": _of_config("gradient"),
}


# ---- lanes ---------------------------------------------------------------------------


class Lanes(NamedTuple):
    """What each lane is.

    Attributes:
      axes: one entry a lane of everything in the space, as tables show it.
      numbers: `[L]` of every hyperparameter in the space.
      seeds: `[L]`; 0 unless in the space.
      widths: `[L]`, latent_dim; the model's own unless in the space.
      choices: of each lane, its values of what changes the program.
    """

    axes: dict[str, np.ndarray]
    numbers: dict[str, np.ndarray]
    seeds: np.ndarray
    widths: np.ndarray
    choices: list[tuple[tuple[str, Any], ...]]

    def __len__(self) -> int:
        return len(self.seeds)


def lanes_of(
    space, hparams: Mapping, latent_dim: int, key, *, num_samples=None, sampler="sobol"
) -> Lanes:
    """Every combination of the lists in a space, and of the points of its ranges.

    The axes are in the space's order, the last one fastest; all ranges are one axis of
    num_samples points, in the place of the first of them. A key that is a tuple of
    names is one axis whose values are tuples: these go together.

    Raises:
      ValueError: for a space that is none, a name in both space and hparams, bad
        values, ranges without num_samples, or more than MAX_LANES lanes.
    """
    _check_space(space, hparams)
    columns = _columns(space, key, num_samples, sampler)
    wanted = math.prod(map(len, columns))
    if wanted > MAX_LANES:
        raise ValueError(
            f"space has {wanted:,} combinations, more than the {MAX_LANES:,} lanes of "
            "a sweep; take shorter lists, or num_samples of ranges."
        )
    rows = [dict(ChainMap(*entries)) for entries in itertools.product(*columns)]
    values = {name: [row[name] for row in rows] for name in _names(space)}
    num_lanes = len(rows)
    seeds = np.asarray(values.get(SEED, np.zeros(num_lanes)), np.uint32)
    widths = np.asarray(values.get(LATENT_DIM, np.full(num_lanes, latent_dim)), int)
    chosen = [name for name in values if name in STATIC_AXES]
    shown = {
        name: np.array([STATIC_AXES[name].label(v) for v in column])
        if name in STATIC_AXES
        else np.array(column)
        for name, column in values.items()
    }
    numbers_ = {
        name: np.asarray(column, np.float64)
        for name, column in values.items()
        if name not in (SEED, LATENT_DIM, *STATIC_AXES)
    }
    choices = [tuple((n, values[n][i]) for n in chosen) for i in range(num_lanes)]
    return Lanes(shown, numbers_, seeds, widths, choices)


def _columns(space, key, num_samples, sampler) -> list[list[dict]]:
    """The entries of each axis: dicts by name."""
    ranges = {name: axis for name, axis in space.items() if isinstance(axis, Range)}
    _check_sampling(ranges, num_samples, sampler)
    columns = []
    for name, axis in space.items():
        if name in ranges:
            if name == next(iter(ranges)):
                columns.append(_draw(ranges, num_samples, sampler, key))
        elif isinstance(name, tuple):
            columns.append(_zipped(name, axis))
        else:
            columns.append([{name: value} for value in _axis(name, axis)])
    return columns


def _draw(ranges: Mapping[str, Range], num_samples: int, sampler: str, key):
    data = np.asarray(jax.random.key_data(key))
    rng = np.random.default_rng(data.ravel().tolist())
    shape = num_samples, len(ranges)
    if sampler == "random":
        u: np.ndarray = rng.random(shape)
    else:
        points = _sobol(num_samples, len(ranges))
        # Moved by exclusive or, so that the key counts and no point is a corner: a sum
        # would not keep what is even about them, a point in each half of each half.
        moves = rng.integers(2**32, size=len(ranges), dtype=np.uint64)
        codes = (points[:num_samples] * 2.0**32).astype(np.uint64) ^ moves[None]
        u = (codes + 0.5) / 2.0**32
    columns = {name: axis.at(u[:, i]) for i, (name, axis) in enumerate(ranges.items())}
    return [
        {name: float(column[i]) for name, column in columns.items()}
        for i in range(num_samples)
    ]


def _sobol(num_points: int, num_columns: int) -> np.ndarray:
    """The first points of the Sobol sequence, a power of 2 of them, `[N, columns]`."""
    try:
        from scipy.stats import qmc  # slow to import
    except ImportError as error:
        raise _checks.extra("sampler='sobol'", "scipy", "sweep") from error
    log = max(0, math.ceil(math.log2(num_points)))
    return qmc.Sobol(num_columns, scramble=False).random_base2(log)


def _zipped(names: tuple[str, ...], rows: Any) -> list[dict]:
    rows = _listed(names, rows)
    if not rows or any(not _is_row(row, len(names)) for row in rows):
        raise ValueError(
            f"space[{names!r}] must be a list of tuples of {len(names)} values each."
        )
    columns = {
        name: _axis(name, [row[i] for row in rows]) for i, name in enumerate(names)
    }
    return [
        {name: column[i] for name, column in columns.items()} for i in range(len(rows))
    ]


def _is_row(row: Any, length: int) -> bool:
    is_array = isinstance(row, np.ndarray) and row.ndim > 0
    return (is_array or isinstance(row, tuple | list)) and len(row) == length


def _axis(name: str, axis: Any) -> list:
    if name in STATIC_AXES:
        return _choices(name, axis)
    kind = "integer" if name in (SEED, LATENT_DIM) else "number"
    values: list[Any] = [_number(value, kind) for value in _listed(name, axis)]
    if not values or None in values:
        raise ValueError(
            f"space[{name!r}] must be a list of at least one {kind}, got "
            f"{_checks.describe(axis)}."
        )
    if name == SEED and not (0 <= min(values) and max(values) < 2**32):
        raise ValueError(
            "space['seed'] must lie between 0 and 2**32 - 1, got "
            f"{_checks.describe(axis)}."
        )
    if name == LATENT_DIM and not (1 <= min(values) and max(values) < 2**31):
        raise ValueError(
            "space['latent_dim'] must lie between 1 and 2**31 - 1, got "
            f"{_checks.describe(axis)}."
        )
    if not all(map(math.isfinite, values)):
        raise ValueError(
            f"space[{name!r}] must be finite, got {_checks.describe(axis)}."
        )
    return values


def _number(value: Any, kind: str) -> int | float | None:
    """A value as Python's own number; None where it is none of that kind."""
    if type(value) is int:  # of any size, which NumPy's are not
        return value if kind == "integer" or abs(value) < 2**53 else _as_float(value)
    if value is np.ma.masked:  # NumPy would make it 0
        return None
    try:
        array = np.asarray(value)
    except Exception:  # of any library's making
        return None
    kinds = "iu" if kind == "integer" else "fiu"
    return array.item() if array.ndim == 0 and array.dtype.kind in kinds else None


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _choices(name: str, axis: Any) -> list:
    values = _listed(name, axis)
    if not values:
        raise ValueError(
            f"space[{name!r}] must be a list of at least one {name}, got "
            f"{_checks.describe(axis)}."
        )
    for value in values:
        if not _is_hashable(value):
            raise ValueError(
                f"space[{name!r}] must be a list of values of {name}, and "
                f"{_checks.describe(value)} is none."
            )
    named = STATIC_AXES[name].named
    return [named(v) if named and isinstance(v, str) else v for v in values]


def _listed(name: Any, axis: Any) -> list:
    """The entries of an axis; none where it is no list."""
    is_part = isinstance(axis, tuple) and type(axis) is not tuple  # an Activation
    if isinstance(axis, str | bytes) or is_part:
        return []
    try:
        values = list(itertools.islice(axis, MAX_LANES + 1))
    except TypeError:  # among others, of an array without axes
        return []
    if len(values) > MAX_LANES:
        raise ValueError(
            f"space[{name!r}] has more values than the {MAX_LANES:,} lanes of a "
            "sweep; take a shorter list."
        )
    return values


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _names(space: Mapping) -> list[str]:
    return [
        name for key in space for name in (key if isinstance(key, tuple) else (key,))
    ]


def _check_space(space: Any, hparams: Mapping) -> None:
    if not isinstance(space, Mapping) or not space:
        raise ValueError(
            "space must be a dict of at least one axis, such as "
            "{'learning_rate': [0.1, 0.01]}."
        )
    for key, axis in space.items():
        _check_key(key, axis)
    names = _names(space)
    for name in names:
        if name in RESERVED:
            raise ValueError(
                f"space[{name!r}] changes what an activation is; give "
                "space['activation'] a list of activations."
            )
        if name in hparams:
            raise ValueError(f"{name} is in space and in hparams; leave one out.")
        if names.count(name) > 1:
            raise ValueError(f"{name} is in space twice; leave one out.")


def _check_key(key: Any, axis: Any) -> None:
    _checks.refuse_masked(f"space[{key!r}]", axis)
    together = key if isinstance(key, tuple) else (key,)
    if not together or not all(isinstance(name, str) for name in together):
        raise ValueError(
            f"space's keys must be names, or tuples of names, got {key!r}."
        )
    if isinstance(key, tuple) and isinstance(axis, Range):
        raise ValueError(
            f"space[{key!r}] must be a list of tuples; give each range its own name."
        )


def _check_sampling(ranges: Mapping, num_samples: Any, sampler: Any) -> None:
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be 'sobol' or 'random', got {sampler!r}.")
    integers = [name for name in ranges if name in (SEED, LATENT_DIM, *STATIC_AXES)]
    if integers:
        raise ValueError(f"space[{integers[0]!r}] must be a list, not a range.")
    if ranges and num_samples is None:
        raise ValueError(
            f"num_samples must say how many points of {', '.join(ranges)} to draw."
        )
    if num_samples is not None:
        if not ranges:
            raise ValueError("num_samples is for ranges, and space has none.")
        if _checks.positive_int("num_samples", num_samples) > MAX_LANES:
            raise ValueError(
                f"num_samples must be at most the {MAX_LANES:,} lanes of a sweep, got "
                f"{_checks.describe(num_samples)}."
            )
