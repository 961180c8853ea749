"""The space of a sweep as a TOML file: its forms, and how it completes the options."""

import dataclasses
import tomllib
import typing
from pathlib import Path
from typing import Any, NamedTuple

from jaxae import _checks, optimizers
from jaxae.cli.options import (
    HPARAMS,
    SharedOptions,
    SweepOptions,
    TrainOptions,
    as_option,
    build_optimizer,
    option_name,
)
from jaxae.sweeps import spaces
from jaxae.sweeps.spaces import LATENT_DIM, SEED, STATIC_AXES, log_uniform, uniform

ZIPPED = "together"  # the table of axes that are zipped
NAMES = (*HPARAMS, SEED, LATENT_DIM, *STATIC_AXES)
_SCALES = {"linear": uniform, "log": log_uniform}
_FORMS = "a list such as [0.01, 0.1], or { low = 1e-4, high = 1e-1, scale = 'log' }"


class Space(NamedTuple):
    """A space as its file has it.

    Attributes:
      axes: as `jaxae.sweep` takes them, with names of parts instead of parts.
      text: the content of the file.
    """

    axes: dict[str | tuple[str, ...], Any]
    text: bytes

    @property
    def names(self) -> list[str]:
        """The names of everything that varies."""
        return spaces.names_of(self.axes)

    def first(self) -> dict[str, Any]:
        """The first value of each axis."""
        values: dict[str, Any] = {}
        for key, axis in self.axes.items():
            if isinstance(key, tuple):
                values |= dict(zip(key, axis[0], strict=True))
            else:
                is_range = isinstance(axis, spaces.SampledRange)
                values[key] = axis.low if is_range else axis[0]
        return values


def read(path: Path) -> Space:
    """The space of a file, checked by `jaxae.sweeps.spaces.check_space`.

    Raises:
      ValueError: if there is no such file, if it is not TOML, and for an axis that
        cannot be swept.
    """
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise ValueError(
            f"{path} {problem}; write the axes of the sweep into one, such as "
            "learning_rate = [0.001, 0.01]."
        )
    text = path.read_bytes()
    try:
        tables = tomllib.loads(text.decode())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}.") from None
    except (ValueError, RecursionError) as error:  # of a number or a nesting too long
        raise ValueError(f"{path} is not TOML: {_checks.first_line(error)}.") from None
    zipped = tables.pop(ZIPPED, [])
    if not isinstance(zipped, list) or not all(isinstance(t, dict) for t in zipped):
        raise ValueError(
            f"{path} has {ZIPPED} as {_checks.describe(zipped)}; write [[{ZIPPED}]] on "
            "a line of its own, and lists of one length under it."
        )
    axes: dict[Any, Any] = {n: _axis(path, n, value) for n, value in tables.items()}
    for table in zipped:
        axes[tuple(table)] = _zipped_axis(path, table)
    if not axes:
        raise ValueError(
            f"{path} has no axis; give at least one name {_FORMS}, such as "
            "learning_rate = [0.001, 0.01]."
        )
    try:
        spaces.check_space(axes, source=str(path))
    except ValueError as error:
        message = str(error)
        prefix = "" if message.startswith(str(path)) else f"{path}: "
        raise ValueError(f"{prefix}{message}") from None
    return Space(axes, text)


def _axis(path: Path, name: str, value: Any) -> Any:
    """Convert a TOML value to an axis of `jaxae.sweep`; its values are not checked."""
    if name not in NAMES:
        raise ValueError(
            f"{path} has {name!r}, which cannot be swept"
            f"{_checks.closest(name, NAMES)}; known: {', '.join(NAMES)}, and "
            f"[[{ZIPPED}]] for axes that are zipped."
        )
    if isinstance(value, list):
        no_part = "none" if name == "corruption" else None
        return [None if item == no_part else item for item in value]
    if not isinstance(value, dict):
        raise ValueError(
            f"{path} has {name} as {_checks.describe(value)}; it must be {_FORMS}."
        )
    if name == SEED and set(value) == {"count"}:
        if (
            type(value["count"]) is not int
            or not 1 <= value["count"] <= spaces.MAX_LANES
        ):
            raise ValueError(
                f"{path} has seed.count as {_checks.describe(value['count'])}; it must "
                f"be an integer of at least 1 and at most {spaces.MAX_LANES}."
            )
        return list(range(value["count"]))
    if name not in HPARAMS:
        forms = "a list or { count = 8 }" if name == SEED else "a list"
        raise ValueError(f"{path} must give {name} {forms}, not a range.")
    is_range = {"low", "high"} <= set(value) <= {"low", "high", "scale"}
    scale = value.get("scale", "linear")
    if not is_range or not isinstance(scale, str) or scale not in _SCALES:
        raise ValueError(
            f"{path} has {name} as {_checks.describe(value)}; a range takes low, "
            'high and an optional scale = "linear" or "log", and nothing else.'
        )
    try:
        return _SCALES[scale](value["low"], value["high"])
    except ValueError as error:
        raise ValueError(f"{path} in {name}: {error}") from None


def _zipped_axis(path: Path, table: dict[str, Any]) -> list[tuple]:
    lengths = {n: len(v) if isinstance(v, list) else None for n, v in table.items()}
    if len(table) < 2 or len({*lengths.values()}) > 1 or None in lengths.values():
        raise ValueError(
            f"{path} must have lists of one length under [[{ZIPPED}]], for at least "
            f"two names, got {_checks.describe(table)}."
        )
    columns = [_axis(path, name, value) for name, value in table.items()]
    return list(zip(*columns, strict=True))


# ---- with the options ----------------------------------------------------------------


def check_options(space: Space, options: SweepOptions) -> None:
    """Raise if an option is in the space too, or if a schedule's length varies.

    Raises:
      ValueError: the message names the option.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for name in space.names:
        option, _ = as_option(name, None)
        is_given = getattr(options, option, None) != defaults.get(option)
        if name != SEED and is_given:
            raise ValueError(
                f"{name} is in {options.space}, and {option_name(name)} is given "
                "too; leave one of them out."
            )
    if options.schedule == "constant" or options.schedule_steps is not None:
        return
    for name in ("batch_size", "warmup_steps"):
        if name in space.names and "schedule_steps" not in space.names:
            raise ValueError(
                f"--schedule {options.schedule} ends with the run, and its number of "
                f"steps depends on the {name} in {options.space}; give "
                f"--schedule-steps, or schedule_steps together with {name}."
            )


def as_train_options(options: SweepOptions, values: dict[str, Any]) -> TrainOptions:
    """The options of a single run with these values of what varies."""
    hints = typing.get_type_hints(SharedOptions)
    shared = {name: getattr(options, name) for name in hints}
    for name in values.keys() - {SEED}:
        option, value = as_option(name, values[name])
        is_float = hints.get(option) in (float, float | None)
        if option in hints:  # TOML has 1 for 1.0
            shared[option] = float(value) if is_float else value
    # All rows are read into memory: lanes share them on the device.
    return TrainOptions(**shared, memory_budget=2**30)


def with_optimizers(space: Space, options: TrainOptions) -> dict[Any, Any]:
    """The axes for `jaxae.sweep`; each optimizer has the schedule of the options."""

    def complete(name: str, value: Any) -> Any:
        return build_optimizer(options, value) if name == "optimizer" else value

    axes: dict[Any, Any] = {}
    for key, axis in space.axes.items():
        if isinstance(key, tuple):
            axes[key] = [tuple(map(complete, key, row)) for row in axis]
        elif isinstance(axis, spaces.SampledRange):
            axes[key] = axis
        else:
            axes[key] = [complete(key, value) for value in axis]
    return axes


def lane_values(axes: dict[str, Any], lane: int, options: TrainOptions) -> dict:
    """The value of each axis in a lane, as the file has it."""
    values = {name: column[lane].item() for name, column in axes.items()}
    if "optimizer" in values:
        names = {
            optimizers.name_of(build_optimizer(options, name)): name
            for name in optimizers.CATALOGUE
        }
        values["optimizer"] = names[values["optimizer"]]
    if values.get("corruption") == "None":
        values["corruption"] = None
    return values
