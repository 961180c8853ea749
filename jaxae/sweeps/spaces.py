"""A space of hyperparameters, and the lanes that it describes."""

import dataclasses
import itertools
import math
import numbers
from collections import ChainMap
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxae import _checks, activations, corruptions, observations, optimizers
from jaxae.objective import Objective
from jaxae.training import TrainConfig

SEED, LATENT_DIM = "seed", "latent_dim"
RESERVED = ("k",)  # changes what an activation is, and no activation has one yet
SAMPLERS = ("sobol", "random")
MAX_LANES = 2**20  # each takes a kilobyte on the host
_MIN_AND_BITS = {SEED: (0, 32), LATENT_DIM: (1, 31)}


class Range(NamedTuple):
    """The numbers between low and high; a sweep samples some of them."""

    low: float
    high: float
    is_log: bool
    is_integer: bool = False  # numbers are rounded to the nearest integer

    def at(self, u: np.ndarray) -> np.ndarray:
        """The numbers at the fractions u of the range, of its logarithm if is_log."""
        if self.is_log:
            log_ratio = math.log(self.high / self.low)
            numbers = np.exp(math.log(self.low) + u * log_ratio)
        else:
            numbers = self.low + u * (self.high - self.low)
        return np.round(numbers) if self.is_integer else numbers


def uniform(low, high) -> Range:
    """An axis of numbers distributed uniformly on [low, high]; needs num_samples.

    Raises:
      ValueError: unless low < high, both finite.
    """
    return _range(low, high, is_log=False)


def log_uniform(low, high) -> Range:
    """An axis of numbers whose logarithm is uniform on [low, high]; needs num_samples.

    Raises:
      ValueError: unless 0 < low < high, both finite.
    """
    return _range(low, high, is_log=True)


def _range(low, high, is_log: bool) -> Range:
    is_number = all(
        isinstance(v, numbers.Real) and not isinstance(v, bool) for v in (low, high)
    )
    bounds = f"{_checks.describe(low)} and {_checks.describe(high)}"
    low, high = map(_as_float, (low, high)) if is_number else (math.nan, math.nan)
    if not (-math.inf < low < high < math.inf):
        raise ValueError(f"a range needs finite low < high, got {bounds}.")
    if is_log and low <= 0:
        raise ValueError(f"a range on a log scale needs low > 0, got {bounds}.")
    return Range(low, high, is_log)


# ---- static axes: what changes the program -------------------------------------------


class StaticAxis(NamedTuple):
    """A static choice that a space may vary; each value takes a compilation.

    Attributes:
      owner: what has the field of that name: "model", "objective" or "config".
      named: the part of a given name, where a string is not the value itself.
      label: how a value is written in a table.
      check: `(argument, value)`, raises a ValueError that names the argument.
    """

    owner: str
    named: Callable[[str], Any] | None = None
    label: Callable[[Any], Any] = lambda value: value
    check: Callable[[str, Any], Any] = lambda argument, value: None


def _check_flag(argument: str, value: Any) -> None:
    if not isinstance(value, bool | np.bool_):
        raise _checks.ArgumentError(
            argument, "must be True or False", _checks.describe(value)
        )


STATIC_AXES = {
    "activation": StaticAxis("model", named=activations.get, label=str),
    "observation": StaticAxis("model", named=observations.get, label=str),
    "tied": StaticAxis("model", label=bool, check=_check_flag),
    "bias": StaticAxis("model", label=bool, check=_check_flag),
    "pre_bias": StaticAxis("model", label=bool, check=_check_flag),
    "corruption": StaticAxis("objective", named=corruptions.get, label=str),
    "optimizer": StaticAxis("config", named=optimizers.get, label=optimizers.name_of),
    "batch_size": StaticAxis("config", check=_checks.positive_int),
    "gradient": StaticAxis("config"),
}


def with_static_values(
    objective: Objective, config: TrainConfig, values
) -> tuple[Objective, TrainConfig]:
    """The objective and the config with the (name, value) of each static axis."""
    for name, value in values:
        field, owner = {name: value}, STATIC_AXES[name].owner
        if owner == "model":
            ae = dataclasses.replace(objective.ae, **field)
            objective = dataclasses.replace(objective, ae=ae)
        elif owner == "objective":
            objective = dataclasses.replace(objective, **field)
        else:
            config = dataclasses.replace(config, **field)
    return objective, config


# ---- lanes ---------------------------------------------------------------------------


class Lanes(NamedTuple):
    """The settings of every lane.

    Attributes:
      axes: `[L]` of everything in the space, by name, as tables show it.
      hparams: `[L]` of every hyperparameter in the space, by name.
      seeds: `[L]`; 0 unless in the space.
      widths: `[L]`, each lane's latent_dim; the model's own unless in the space.
      static: of each lane, the (name, value) of every static axis.
    """

    axes: dict[str, np.ndarray]
    hparams: dict[str, np.ndarray]
    seeds: np.ndarray
    widths: np.ndarray
    static: list[tuple[tuple[str, Any], ...]]

    def __len__(self) -> int:
        return len(self.seeds)


def lanes_of(
    space, hparams: Mapping, latent_dim: int, key, num_samples=None, sampler="sobol"
) -> Lanes:
    """Every combination of the axes of a space.

    The axes are in the space's order, the last one fastest. All ranges together are one
    axis of num_samples points, in the place of the first of them. A key that is a tuple
    of names is one axis whose values are tuples (the names are zipped).

    Raises:
      ValueError: as `check_space`; for ranges without num_samples, or more than
        MAX_LANES lanes.
    """
    axes = check_space(space, hparams)
    ranges = {name: axis for name, axis in axes.items() if isinstance(axis, Range)}
    _check_sampling(ranges, num_samples, sampler)
    columns = _columns(axes, ranges, key, num_samples, sampler)
    num_lanes = math.prod(map(len, columns))
    if num_lanes > MAX_LANES:
        raise _checks.ArgumentError(
            "space",
            f"has {num_lanes:,} combinations, more than the {MAX_LANES:,} lanes of a "
            "sweep",
            advice="take shorter lists, or num_samples of ranges",
        )
    rows = [dict(ChainMap(*entries)) for entries in itertools.product(*columns)]
    values = {name: [row[name] for row in rows] for name in names_of(space)}
    static_names = [name for name in values if name in STATIC_AXES]
    labels = {n: [STATIC_AXES[n].label(v) for v in values[n]] for n in static_names}
    return Lanes(
        axes={n: np.array(column) for n, column in (values | labels).items()},
        hparams={
            name: np.asarray(column, np.float64)
            for name, column in values.items()
            if name not in (SEED, LATENT_DIM, *STATIC_AXES)
        },
        seeds=np.asarray(values.get(SEED, np.zeros(num_lanes)), np.uint32),
        widths=np.asarray(values.get(LATENT_DIM, np.full(num_lanes, latent_dim)), int),
        static=[tuple((n, row[n]) for n in static_names) for row in rows],
    )


def _columns(axes, ranges, key, num_samples, sampler) -> list[list[dict]]:
    """The points of each axis, each a dict by name."""
    columns = []
    for name, axis in axes.items():
        if isinstance(name, tuple):
            columns.append([dict(zip(name, row, strict=True)) for row in axis])
        elif name not in ranges:
            columns.append([{name: value} for value in axis])
        elif name == next(iter(ranges)):
            columns.append(_draw(ranges, num_samples, sampler, key))
    return columns


def _draw(ranges: Mapping[str, Range], num_samples: int, sampler: str, key):
    data = np.asarray(jax.random.key_data(key))
    rng = np.random.default_rng(data.ravel().tolist())
    shape = num_samples, len(ranges)
    if sampler == "random":
        u: np.ndarray = rng.random(shape)
    else:
        points = _sobol(num_samples, len(ranges))
        # A digital shift: the points depend on the key, none is a corner, and unlike
        # a sum, exclusive or keeps them balanced (one point in each half of each half).
        shifts = rng.integers(2**32, size=len(ranges), dtype=np.uint64)
        codes = (points[:num_samples] * 2.0**32).astype(np.uint64) ^ shifts[None]
        u = (codes + 0.5) / 2.0**32
    columns = {name: axis.at(u[:, i]) for i, (name, axis) in enumerate(ranges.items())}
    return [
        {name: float(column[i]) for name, column in columns.items()}
        for i in range(num_samples)
    ]


def _sobol(num_points: int, num_columns: int) -> np.ndarray:
    """The first points of the Sobol sequence `[N, columns]`, N the next power of 2."""
    try:
        from scipy.stats import qmc  # slow to import
    except ImportError as error:
        raise _checks.extra("sampler='sobol'", "scipy", "sweep") from error
    log = max(0, math.ceil(math.log2(num_points)))
    return qmc.Sobol(num_columns, scramble=False).random_base2(log)


def _check_sampling(ranges: Mapping, num_samples: Any, sampler: Any) -> None:
    if sampler not in SAMPLERS:
        raise _checks.ArgumentError(
            "sampler", "must be 'sobol' or 'random'", repr(sampler)
        )
    if ranges and num_samples is None:
        raise _checks.ArgumentError(
            "num_samples", f"must say how many points of {', '.join(ranges)} to draw"
        )
    if num_samples is not None:
        if not ranges:
            raise _checks.ArgumentError(
                "num_samples", "is for ranges, and space has none"
            )
        if _checks.positive_int("num_samples", num_samples) > MAX_LANES:
            raise _checks.ArgumentError(
                "num_samples",
                f"must be at most the {MAX_LANES:,} lanes of a sweep",
                _checks.describe(num_samples),
            )


# ---- the rules of a space ------------------------------------------------------------


def check_space(space, hparams: Collection[str] = (), *, source="space") -> dict:
    """The axes of a space, checked, by its keys.

    Args:
      space: a dict of axes by name. An axis is a `Range` of a hyperparameter, or a list
        of values; under a tuple of names, a list of tuples (the names are zipped).
      hparams: the names of the hyperparameters that all lanes share.
      source: what error messages call the space, such as the path of its file.

    Returns:
      Each axis as a `Range`, a list of Python values, or a list of tuples of such. A
      string that names a part has become the part.

    Raises:
      ValueError: for a space without axes, a name that is there twice, in hparams or
        reserved, and as `check_axis`.
    """
    if not isinstance(space, Mapping) or not space:
        raise _checks.ArgumentError(
            source,
            "must be a dict of at least one axis, such as {'learning_rate': [0.1, "
            "0.01]}",
        )
    for key in space:
        names = key if isinstance(key, tuple) else (key,)
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(
                f"{source}'s keys must be names, or tuples of names, got {key!r}."
            )
    axes = {key: check_axis(key, axis, source=source) for key, axis in space.items()}
    _check_names(names_of(space), hparams, source)
    return axes


def _check_names(names: list[str], hparams: Collection[str], source: str) -> None:
    for name in names:
        if name in RESERVED:
            raise ValueError(
                f"{source}[{name!r}] changes what an activation is; give "
                f"{source}['activation'] a list of activations."
            )
        if name in hparams:
            raise _checks.ArgumentError(
                name, f"is in {source} and in hparams", advice="leave one out"
            )
        if names.count(name) > 1:
            raise _checks.ArgumentError(
                name, f"is in {source} twice", advice="leave one out"
            )


def names_of(space: Mapping) -> list[str]:
    """The names of everything that a space varies, those of a tuple one by one."""
    return [
        name for key in space for name in (key if isinstance(key, tuple) else (key,))
    ]


def check_axis(key: str | tuple[str, ...], axis: Any, *, source: str = "space") -> Any:
    """One axis of a space, as `check_space` returns it.

    Raises:
      ValueError: for a range of what is no hyperparameter, an axis that is no list,
        or a value that the name cannot have.
    """
    argument = f"{source}[{key!r}]"
    _checks.refuse_masked(argument, axis)
    if isinstance(key, tuple):
        return _check_zip(key, axis, source)
    if not isinstance(axis, Range):
        check_values = _check_static if key in STATIC_AXES else _check_numbers
        return check_values(key, axis, argument)
    if key in (SEED, LATENT_DIM, *STATIC_AXES):
        raise _checks.ArgumentError(argument, "must be a list, not a range")
    return axis


def _check_zip(names: tuple[str, ...], axis: Any, source: str) -> list[tuple]:
    argument = f"{source}[{names!r}]"
    if isinstance(axis, Range):
        raise _checks.ArgumentError(
            argument, "must be a list of tuples", advice="give each range its own name"
        )
    rows = _as_list(axis, argument)
    if not rows or any(not _is_row(row, len(names)) for row in rows):
        raise _checks.ArgumentError(
            argument, f"must be a list of tuples of {len(names)} values each"
        )
    columns = [
        check_axis(name, [row[i] for row in rows], source=source)
        for i, name in enumerate(names)
    ]
    return list(zip(*columns, strict=True))


def _is_row(row: Any, length: int) -> bool:
    is_array = isinstance(row, np.ndarray) and row.ndim > 0
    return (is_array or isinstance(row, tuple | list)) and len(row) == length


def _check_numbers(name: str, axis: Any, argument: str) -> list:
    kind = "integer" if name in _MIN_AND_BITS else "number"
    values: list[Any] = [_number(value, kind) for value in _as_list(axis, argument)]
    if not values or None in values:
        raise _checks.ArgumentError(
            argument, f"must be a list of at least one {kind}", _checks.describe(axis)
        )
    if name in _MIN_AND_BITS:
        minimum, bits = _MIN_AND_BITS[name]
        if min(values) < minimum or max(values) >= 2**bits:
            raise _checks.ArgumentError(
                argument,
                f"must lie between {minimum} and 2**{bits} - 1",
                _checks.describe(axis),
            )
    if not all(map(math.isfinite, values)):
        raise _checks.ArgumentError(argument, "must be finite", _checks.describe(axis))
    return values


def _number(value: Any, kind: str) -> int | float | None:
    """A value as Python's own number; None if it is none of that kind."""
    if type(value) is int:  # of any size, which NumPy's are not
        return value if kind == "integer" or abs(value) < 2**53 else _as_float(value)
    if value is np.ma.masked:  # NumPy would make it 0
        return None
    try:
        array = np.asarray(value)
    except Exception:  # other libraries' values may raise anything
        return None
    kinds = "iu" if kind == "integer" else "fiu"
    return array.item() if array.ndim == 0 and array.dtype.kind in kinds else None


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _check_static(name: str, axis: Any, argument: str) -> list:
    values, static_axis = _as_list(axis, argument), STATIC_AXES[name]
    if not values:
        raise _checks.ArgumentError(
            argument, f"must be a list of at least one {name}", _checks.describe(axis)
        )
    for value in values:
        if not _is_hashable(value):
            raise _checks.ArgumentError(
                argument,
                f"must be a list of values of {name}, and {_checks.describe(value)} "
                "is none",
            )
        static_axis.check(argument, value)
    get = static_axis.named
    return [get(v) if get is not None and isinstance(v, str) else v for v in values]


def _as_list(axis: Any, argument: str) -> list:
    """The values of an axis; empty if it is no list."""
    is_part = isinstance(axis, tuple) and type(axis) is not tuple  # an Activation
    if isinstance(axis, str | bytes) or is_part:
        return []
    try:
        values = list(itertools.islice(axis, MAX_LANES + 1))
    except TypeError:  # not iterable, or an array without axes
        return []
    if len(values) > MAX_LANES:
        raise _checks.ArgumentError(
            argument,
            f"has more values than the {MAX_LANES:,} lanes of a sweep",
            advice="take a shorter list",
        )
    return values


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
