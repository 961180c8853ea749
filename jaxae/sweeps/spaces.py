"""A space of settings, and the lanes that it describes."""

import dataclasses
import itertools
import math
import numbers
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxae import _checks, activations, corruptions, observations, optimizers
from jaxae._checks import ArgumentError
from jaxae.objective import Objective
from jaxae.training import TrainConfig

SEED, LATENT_DIM = "seed", "latent_dim"
SAMPLERS = ("sobol", "random")
MAX_LANES = 2**20  # each takes a kilobyte on the host
_MIN_AND_BITS = {SEED: (0, 32), LATENT_DIM: (1, 31)}


class SampledRange(NamedTuple):
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


def uniform(low, high) -> SampledRange:
    """An axis of numbers uniform on [low, high]; `sweep` needs num_samples.

    Raises:
      ArgumentError: unless low < high, both finite.
    """
    return _range(low, high, is_log=False)


def log_uniform(low, high) -> SampledRange:
    """An axis of numbers whose logarithm is uniform on [log low, log high].

    `sweep` needs num_samples.

    Raises:
      ArgumentError: unless 0 < low < high, both finite.
    """
    return _range(low, high, is_log=True)


def _range(low, high, is_log: bool) -> SampledRange:
    found = f"{_checks.describe(low)} and {_checks.describe(high)}"
    low, high = (
        _as_float(bound)
        if isinstance(bound, numbers.Real) and not isinstance(bound, bool)
        else math.nan
        for bound in (low, high)
    )
    if not (-math.inf < low < high < math.inf):
        raise ArgumentError("a range", "needs finite low < high", found)
    if is_log and low <= 0:
        raise ArgumentError("a range", "on a log scale needs low > 0", found)
    return SampledRange(low, high, is_log)


# ---- static axes: what changes the program -------------------------------------------


class StaticAxis(NamedTuple):
    """A static choice that a space may vary; each value needs a compilation.

    Attributes:
      owner: what has the field of that name: "model", "objective" or "config".
      get: the part of a name; None if values have no names.
      label: how a value is written in a table.
      check: `(argument, value)`; raises an error that names the argument.
    """

    owner: str
    get: Callable[[str], Any] | None = None
    label: Callable[[Any], Any] = lambda value: value
    check: Callable[[str, Any], Any] = lambda argument, value: None


def _check_flag(argument: str, value: Any) -> None:
    if not isinstance(value, bool | np.bool_):
        raise ArgumentError(argument, "must be True or False", _checks.describe(value))


STATIC_AXES = {
    "activation": StaticAxis("model", get=activations.get, label=str),
    "observation": StaticAxis("model", get=observations.get, label=str),
    "tied": StaticAxis("model", label=bool, check=_check_flag),
    "bias": StaticAxis("model", label=bool, check=_check_flag),
    "pre_bias": StaticAxis("model", label=bool, check=_check_flag),
    "corruption": StaticAxis("objective", get=corruptions.get, label=str),
    "optimizer": StaticAxis("config", get=optimizers.get, label=optimizers.name_of),
    "batch_size": StaticAxis("config", check=_checks.positive_int),
    "gradient": StaticAxis("config"),
}


def with_static_values(
    objective: Objective, config: TrainConfig, values
) -> tuple[Objective, TrainConfig]:
    """The objective and the config with the (name, value) of each static axis."""
    changes: dict[str, dict] = {"model": {}, "objective": {}, "config": {}}
    for name, value in values:
        changes[STATIC_AXES[name].owner][name] = value
    ae = dataclasses.replace(objective.ae, **changes["model"])
    objective = dataclasses.replace(objective, ae=ae, **changes["objective"])
    return objective, dataclasses.replace(config, **changes["config"])


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
    axis of num_samples points, in the place of the first range. A key that is a tuple
    of names is one axis whose values are tuples.
    """
    axes = check_space(space, hparams)
    ranges = {n: axis for n, axis in axes.items() if isinstance(axis, SampledRange)}
    _check_sampling(ranges, num_samples, sampler)
    columns = _columns(axes, ranges, key, num_samples, sampler)
    num_lanes = math.prod(map(len, columns))
    if num_lanes > MAX_LANES:
        problem = (
            f"has {num_lanes:,} combinations, more than the {MAX_LANES:,} lanes of "
        )
        advice = "take shorter lists, or num_samples of ranges"
        raise ArgumentError("space", f"{problem}a sweep", advice=advice)
    rows = list(itertools.product(*columns))
    by_name = {
        name: [row[j][name] for row in rows]
        for j, column in enumerate(columns)
        for name in column[0]
    }
    values = {name: by_name[name] for name in names_of(space)}
    static_names = [name for name in values if name in STATIC_AXES]
    labels = {n: [STATIC_AXES[n].label(v) for v in values[n]] for n in static_names}
    static = [[(name, value) for value in values[name]] for name in static_names]
    return Lanes(
        axes={n: np.array(column) for n, column in (values | labels).items()},
        hparams={
            name: np.asarray(column, np.float64)
            for name, column in values.items()
            if name not in (SEED, LATENT_DIM, *STATIC_AXES)
        },
        seeds=np.asarray(values.get(SEED, np.zeros(num_lanes)), np.uint32),
        widths=np.asarray(values.get(LATENT_DIM, np.full(num_lanes, latent_dim)), int),
        static=list(zip(*static, strict=True)) if static else [()] * num_lanes,
    )


def _columns(axes, ranges, key, num_samples, sampler) -> list[list[dict]]:
    """The points of each axis, each a dict by name."""
    columns = []
    for names, axis in axes.items():
        if isinstance(names, tuple):
            columns.append([dict(zip(names, row, strict=True)) for row in axis])
        elif names not in ranges:
            columns.append([{names: value} for value in axis])
        elif names == next(iter(ranges)):
            columns.append(_sample(ranges, num_samples, sampler, key))
    return columns


def _sample(ranges: Mapping[str, SampledRange], num_samples: int, sampler: str, key):
    data = np.asarray(jax.random.key_data(key))
    rng = np.random.default_rng(data.ravel().tolist())
    if sampler == "random":
        u: np.ndarray = rng.random((num_samples, len(ranges)))
    else:
        points = _sobol(num_samples, len(ranges))
        # A digital shift: the points depend on the key, none is a corner, and unlike
        # a sum, exclusive or keeps them balanced (one point in each half of each half).
        shifts = rng.integers(2**32, size=len(ranges), dtype=np.uint64)
        codes = (points[:num_samples] * 2.0**32).astype(np.uint64) ^ shifts[None]
        u = (codes + 0.5) / 2.0**32
    columns = [axis.at(u[:, i]).tolist() for i, axis in enumerate(ranges.values())]
    return [dict(zip(ranges, row, strict=True)) for row in zip(*columns, strict=True)]


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
        raise ArgumentError("sampler", "must be 'sobol' or 'random'", repr(sampler))
    name, found = "num_samples", _checks.describe(num_samples)
    if num_samples is None:
        if ranges:
            problem = f"must say how many points of {', '.join(ranges)} to draw"
            raise ArgumentError(name, problem)
    elif not ranges:
        raise ArgumentError(name, "is for ranges, and space has none")
    elif _checks.positive_int(name, num_samples) > MAX_LANES:
        problem = f"must be at most the {MAX_LANES:,} lanes of a sweep"
        raise ArgumentError(name, problem, found)


# ---- the rules of a space ------------------------------------------------------------


def check_space(space, hparams: Collection[str] = (), *, source="space") -> dict:
    """The axes of a space, checked, by its keys.

    An axis is a `SampledRange` of a hyperparameter or a list of values; under a tuple
    of names, a list of tuples. Lists become lists of Python values, and a string that
    names a part becomes the part. `hparams` are those that all lanes share. `source` is
    what errors call the space, such as the path of its file.
    """
    if not isinstance(space, Mapping) or not space:
        example = "{'learning_rate': [0.1, 0.01]}"
        problem = f"must be a dict of at least one axis, such as {example}"
        raise ArgumentError(source, problem)
    for key in space:
        names = key if isinstance(key, tuple) else (key,)
        if not names or not all(isinstance(name, str) for name in names):
            problem = "must have names, or tuples of names, as keys"
            raise ArgumentError(source, problem, repr(key))
    axes = {key: _check_axis(key, axis, source) for key, axis in space.items()}
    _check_names(names_of(space), hparams, source)
    return axes


def names_of(space: Mapping) -> list[str]:
    """The names of everything that a space varies, those of a tuple one by one."""
    return [
        name for key in space for name in (key if isinstance(key, tuple) else (key,))
    ]


def _check_names(names: list[str], hparams: Collection[str], source: str) -> None:
    for name in names:
        if name in hparams or names.count(name) > 1:
            where = "and in hparams" if name in hparams else "twice"
            raise ArgumentError(name, f"is in {source} {where}", advice="leave one out")


def _check_axis(key: str | tuple[str, ...], axis: Any, source: str) -> Any:
    argument = f"{source}[{key!r}]"
    _checks.refuse_masked(argument, axis)
    if isinstance(key, tuple):
        return _check_zipped(key, axis, source)
    if isinstance(axis, SampledRange):
        if key in (SEED, LATENT_DIM, *STATIC_AXES):
            raise ArgumentError(argument, "must be a list, not a range")
        return axis
    values = _as_list(axis, argument)
    if key in STATIC_AXES:
        return _check_static(key, values, argument, axis)
    return _check_numbers(key, values, argument, axis)


def _check_zipped(names: tuple[str, ...], axis: Any, source: str) -> list[tuple]:
    argument = f"{source}[{names!r}]"
    if isinstance(axis, SampledRange):
        advice = "give each range its own name"
        raise ArgumentError(argument, "must be a list of tuples", advice=advice)
    rows = _as_list(axis, argument)
    if not rows or any(not _is_row(row, len(names)) for row in rows):
        problem = f"must be a list of tuples of {len(names)} values each"
        raise ArgumentError(argument, problem)
    columns = [
        _check_axis(name, [row[i] for row in rows], source)
        for i, name in enumerate(names)
    ]
    return list(zip(*columns, strict=True))


def _is_row(row: Any, length: int) -> bool:
    is_array = isinstance(row, np.ndarray) and row.ndim > 0
    return (is_array or isinstance(row, tuple | list)) and len(row) == length


def _check_numbers(name: str, given: list, argument: str, axis: Any) -> list:
    kind = "integer" if name in _MIN_AND_BITS else "number"
    values: list[Any] = [_as_number(value, kind) for value in given]
    problem = None
    if not values or None in values:
        problem = f"must be a list of at least one {kind}"
    elif name in _MIN_AND_BITS:
        minimum, bits = _MIN_AND_BITS[name]
        if min(values) < minimum or max(values) >= 2**bits:
            problem = f"must lie between {minimum} and 2**{bits} - 1"
    elif not all(map(math.isfinite, values)):
        problem = "must be finite"
    if problem is not None:
        raise ArgumentError(argument, problem, _checks.describe(axis))
    return values


def _as_number(value: Any, kind: str) -> int | float | None:
    """A value as a Python number; None if it is no number of that kind."""
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


def _check_static(name: str, values: list, argument: str, axis: Any) -> list:
    static_axis = STATIC_AXES[name]
    if not values:
        problem = f"must be a list of at least one {name}"
        raise ArgumentError(argument, problem, _checks.describe(axis))
    for value in values:
        try:
            hash(value)
        except TypeError:
            problem = f"must be a list of values of {name}, and "
            problem += f"{_checks.describe(value)} is none"
            raise ArgumentError(argument, problem) from None
        static_axis.check(argument, value)
    get = static_axis.get
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
        problem = f"has more values than the {MAX_LANES:,} lanes of a sweep"
        raise ArgumentError(argument, problem, advice="take a shorter list")
    return values
