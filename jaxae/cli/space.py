"""The file that says what a sweep varies: TOML, read and checked."""

import dataclasses
import math
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from jaxae import _checks, optimizers
from jaxae.cli.factory import HPARAMS
from jaxae.cli.options import SharedOptions, SweepOptions, TrainOptions
from jaxae.sweeps.spaces import (
    LATENT_DIM,
    MAX_LANES,
    SEED,
    STATIC_AXES,
    log_uniform,
    uniform,
)
from jaxae.training.epochs import INIT_SCALE

TOGETHER = "together"
_HPARAMS = (*HPARAMS, "final_fraction", "schedule_steps", INIT_SCALE)
NAMES = (*_HPARAMS, SEED, LATENT_DIM, *STATIC_AXES)
_NEGATED = {"tied": "untied", "bias": "no_bias"}  # options that say the contrary
_FORMS = "a list such as [0.01, 0.1], or { low = 1e-4, high = 1e-1, scale = 'log' }"


class SpaceError(Exception):
    """The file, in whose words names are not options."""


class Space(NamedTuple):
    """What a file says.

    Attributes:
      axes: as `jaxae.sweep` takes them, but for names that options complete.
      text: of the file.
    """

    axes: dict[str | tuple[str, ...], Any]
    text: bytes

    @property
    def names(self) -> list[str]:
        """Of everything that varies."""
        return [
            name
            for key in self.axes
            for name in (key if isinstance(key, tuple) else (key,))
        ]

    def first(self) -> dict[str, Any]:
        """A value of each: what stands where a single run has an option."""
        found: dict[str, Any] = {}
        for key, axis in self.axes.items():
            if isinstance(key, tuple):
                found |= dict(zip(key, axis[0], strict=True))
            else:
                found[key] = axis[0] if isinstance(axis, list) else axis.low
        return found


def read(path: Path) -> Space:
    """The space of a file.

    Raises:
      SpaceError: there is none, it is no TOML, or names or holds what cannot be swept.
    """
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise SpaceError(
            f"{path} {what}; write what varies into one, such as "
            "learning_rate = [0.001, 0.01]."
        )
    text = path.read_bytes()
    try:
        found = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        said = _checks.first_line(error).removeprefix("TOMLDecodeError: ")
        raise SpaceError(f"{path} is not TOML: {said}.") from None
    axes: dict[str | tuple[str, ...], Any] = {}
    together = found.pop(TOGETHER, [])
    for name, value in found.items():
        _check_name(path, name)
        axes[name] = _axis(path, name, value)
    if not isinstance(together, list) or not all(isinstance(t, dict) for t in together):
        raise SpaceError(
            f"{path} has {TOGETHER} as {_checks.describe(together)}; write "
            f"[[{TOGETHER}]] on a line of its own, and lists of one length under it."
        )
    for table in together:
        axes[tuple(table)] = _together(path, table)
    if not axes:
        raise SpaceError(
            f"{path} varies nothing; give at least one name {_FORMS}, such as "
            "learning_rate = [0.001, 0.01]."
        )
    _check_twice(path, Space(axes, text).names)
    return Space(axes, text)


def _check_name(path: Path, name: str) -> None:
    if name not in NAMES:
        raise SpaceError(
            f"{path} has {name!r}, which cannot be swept"
            f"{_checks.closest(name, NAMES)}; known: {', '.join(NAMES)}, and "
            f"[[{TOGETHER}]] for those that go together."
        )


def _check_twice(path: Path, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SpaceError(
                f"{path} has {name} both alone and in [[{TOGETHER}]], or in two of "
                "them; leave one out."
            )


def _together(path: Path, table: dict[str, Any]) -> list[tuple]:
    for name, value in table.items():
        _check_name(path, name)
        if not isinstance(value, list) or not value:
            raise SpaceError(
                f"{path} has {name} in [[{TOGETHER}]] as {_checks.describe(value)}; "
                "it must be a list of at least one value."
            )
    lengths = {name: len(value) for name, value in table.items()}
    if len(table) < 2 or len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise SpaceError(
            f"{path} must have lists of one length under [[{TOGETHER}]], for at least "
            f"two names, got: {said or 'nothing'}."
        )
    columns = [_axis(path, name, value) for name, value in table.items()]
    return list(zip(*columns, strict=True))


def _axis(path: Path, name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return _table(path, name, value)
    if not isinstance(value, list) or not value:
        raise SpaceError(
            f"{path} has {name} as {_checks.describe(value)}; it must be {_FORMS}."
        )
    wanted = _kind(name)
    for item in value:
        if not _is_a(wanted, item):
            raise SpaceError(
                f"{path} has {_checks.describe(item)} in {name}, whose values must be "
                f"{_KINDS[wanted]}."
            )
        if wanted == "integer" and item >= 2**32:
            said = _checks.describe(item)
            raise SpaceError(f"{path} has {said} in {name}, which must be < 2**32.")
        if wanted == "integer" and item < (name != SEED):
            least = int(name != SEED)
            raise SpaceError(f"{path} has {item} in {name}, which must be >= {least}.")
        if wanted == "number" and not _is_finite(item):
            said = _checks.describe(item)
            raise SpaceError(f"{path} has {said} in {name}, which must be finite.")
        if name in STATIC_AXES and isinstance(item, str) and item != _NONE.get(name):
            _check_word(path, name, item)
    return [None if item == _NONE.get(name, ...) else item for item in value]


def _is_finite(number: int | float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond every float
        return False


_NONE = {"corruption": "none"}


def _check_word(path: Path, name: str, word: str) -> None:
    named = STATIC_AXES[name].named
    try:
        if named is not None:
            named(word)
    except ValueError as error:
        raise SpaceError(f"{path}: {error}") from None


def _table(path: Path, name: str, value: dict[str, Any]) -> Any:
    """`{ low, high, scale }`, or of seeds `{ count }`."""
    if name == SEED and set(value) == {"count"}:
        count = value["count"]
        if not _is_a("integer", count) or not 1 <= count <= MAX_LANES:
            raise SpaceError(
                f"{path} has seed.count as {_checks.describe(count)}; it must be an "
                f"integer of at least 1 and at most {MAX_LANES}."
            )
        return list(range(count))
    if name not in _HPARAMS:
        forms = "a list or { count = 8 }" if name == SEED else "a list"
        raise SpaceError(f"{path} must give {name} {forms}, not a range.")
    scales = {"linear": uniform, "log": log_uniform}
    scale = value.get("scale", "linear")
    is_whole = {"low", "high"} <= set(value) <= {"low", "high", "scale"}
    if not is_whole or not isinstance(scale, str) or scale not in scales:
        raise SpaceError(
            f"{path} has {name} as {_checks.describe(value)}; a range has low, high "
            'and, if you like, scale = "linear" or "log", and nothing else.'
        )
    try:
        return scales[scale](value["low"], value["high"])
    except ValueError as error:
        raise SpaceError(f"{path} in {name}: {error}") from None


_KINDS = {
    "number": "numbers",
    "integer": "integers",
    "flag": "true or false",
    "word": 'names in quotes, such as "relu"',
}


def _kind(name: str) -> str:
    if name in _HPARAMS:
        return "number"
    if name in (SEED, LATENT_DIM, "batch_size"):
        return "integer"
    return "flag" if name in _NEGATED else "word"


def _is_a(kind: str, value: Any) -> bool:
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    types = {"integer": int, "flag": bool, "word": str}
    return type(value) is types[kind]


# ---- with the options ----------------------------------------------------------------


def check_options(space: Space, options: SweepOptions) -> None:
    """Refuse what is said twice, and what the file and the options leave open.

    Raises:
      SpaceError: naming it.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for name in space.names:
        option = _NEGATED.get(name, name)
        given = getattr(options, option, None)
        if name != SEED and option in defaults and given != defaults[option]:
            raise SpaceError(
                f"{name} is in {options.space}, and --{option.replace('_', '-')} is "
                "given too; leave one of them out."
            )
    is_open = options.schedule_steps is None and "schedule_steps" not in space.names
    if "batch_size" in space.names and options.schedule != "constant" and is_open:
        raise SpaceError(
            f"--schedule {options.schedule} ends with the run, whose steps depend on "
            f"the batch_size in {options.space}; say --schedule-steps."
        )


def as_train(options: SweepOptions, values: dict[str, Any]) -> TrainOptions:
    """The options of a single run with these values of what varies."""
    names = {field.name for field in dataclasses.fields(SharedOptions)}
    found = {name: getattr(options, name) for name in names}
    for name, value in values.items():
        if name in _NEGATED:
            found[_NEGATED[name]] = not value
        elif name in names and name != SEED:
            found[name] = value
    # All rows are read: lanes share them on the device.
    return TrainOptions(**found, memory_budget=2**30)


def completed(space: Space, options: TrainOptions) -> dict[Any, Any]:
    """The axes as `jaxae.sweep` takes them; optimizers with what options add to all."""

    def complete(name: str, value: Any) -> Any:
        return built(value, options) if name == "optimizer" else value

    axes: dict[Any, Any] = {}
    for key, axis in space.axes.items():
        if isinstance(key, tuple):
            rows = [zip(key, row, strict=True) for row in axis]
            axes[key] = [tuple(complete(*item) for item in row) for row in rows]
        elif isinstance(axis, list):
            axes[key] = [complete(key, value) for value in axis]
        else:
            axes[key] = axis
    return axes


def built(name: str, options: TrainOptions) -> optimizers.Optimizer:
    """The optimizer of that name, as `building.config` makes it."""
    return optimizers.build(
        name,
        schedule=options.schedule,
        warmup=options.warmup_steps is not None,
        clip=options.max_norm is not None,
        accumulate=options.accumulate,
    )


def values_of(axes: dict[str, Any], lane: int, options: TrainOptions) -> dict[str, Any]:
    """What a lane has of everything that varies, as the file would say it."""
    values = {name: column[lane].item() for name, column in axes.items()}
    if "optimizer" in values:
        labels = {
            optimizers.name_of(built(name, options)): name
            for name in optimizers.CATALOGUE
        }
        values["optimizer"] = labels[values["optimizer"]]
    if values.get("corruption") == "None":
        values["corruption"] = None
    return values
