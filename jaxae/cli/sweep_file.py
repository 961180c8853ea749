"""The space of a sweep as a TOML file, and how it completes the options."""

import tomllib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxae import _checks
from jaxae.cli.options import (
    HPARAMS,
    CommandError,
    SharedOptions,
    SweepOptions,
    TrainOptions,
    as_option,
    build_optimizer,
    hparam_option,
    option_name,
)
from jaxae.sweeps import spaces
from jaxae.sweeps.spaces import LATENT_DIM, SEED, STATIC_AXES, log_uniform, uniform

ZIPPED = "together"  # the table of axes that are zipped
AXES = (*HPARAMS, SEED, LATENT_DIM, *STATIC_AXES)
_TYPES = typing.get_type_hints(SharedOptions)
_INTEGERS = [n for n in HPARAMS if _TYPES[hparam_option(n)] in (int, int | None)]
_SCALES = {"linear": uniform, "log": log_uniform}
_FORMS = "a list such as [0.01, 0.1], or { low = 1e-4, high = 1e-1, scale = 'log' }"


class Space(NamedTuple):
    """A space as its file has it.

    Attributes:
      columns: the values of each axis by name, with names of parts instead of parts.
      zipped: the names of axes that vary together; the others vary independently.
      text: the content of the file.
    """

    columns: dict[str, Any]
    zipped: list[tuple[str, ...]]
    text: bytes

    def first(self) -> dict[str, Any]:
        """The first value of each axis."""
        return {
            name: column[0] if isinstance(column, list | range) else column.low
            for name, column in self.columns.items()
        }

    def axes(self, options: TrainOptions | None = None) -> dict[Any, Any]:
        """The axes for `jaxae.sweep`; optimizers have the schedule of the options."""
        columns: dict[Any, Any] = dict(self.columns)
        if options is not None and "optimizer" in columns:
            names = columns["optimizer"]
            columns["optimizer"] = [build_optimizer(options, name) for name in names]
        for names in self.zipped:
            rows = zip(*(columns.pop(name) for name in names), strict=True)
            columns[names] = list(rows)
        return columns


def read_space(path: Path) -> Space:
    """The space of a file, checked by `jaxae.sweeps.spaces.check_space`."""
    tables, text = _read_toml(path)
    zipped = tables.pop(ZIPPED, [])
    if not isinstance(zipped, list) or not all(isinstance(t, dict) for t in zipped):
        raise CommandError(
            f"{path} has {ZIPPED} as {_checks.describe(zipped)}; write [[{ZIPPED}]] on "
            "a line of its own, and lists of one length under it."
        )
    for table in zipped:
        _check_zipped(path, table)
    columns: dict[str, Any] = {}
    for table in (tables, *zipped):
        for name, value in table.items():
            if name in columns:
                raise CommandError(f"{name} is in {path} twice; leave one out.")
            columns[name] = _axis(path, name, value)
    if not columns:
        raise CommandError(
            f"{path} has no axis; give at least one name {_FORMS}, such as "
            "learning_rate = [0.001, 0.01]."
        )
    space = Space(columns, [tuple(table) for table in zipped], text)
    try:
        spaces.check_space(space.axes(), source=str(path))
    except ValueError as error:
        message = str(error)
        prefix = "" if message.startswith(str(path)) else f"{path}: "
        raise CommandError(f"{prefix}{message}") from None
    return space


def _read_toml(path: Path) -> tuple[dict[str, Any], bytes]:
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise CommandError(
            f"{path} {problem}; write the axes of the sweep into one, such as "
            "learning_rate = [0.001, 0.01]."
        )
    text = path.read_bytes()
    try:
        return tomllib.loads(text.decode()), text
    except (ValueError, RecursionError) as error:  # also a number or nesting too long
        cause = _checks.first_line(error).removeprefix("TOMLDecodeError: ")
        raise CommandError(f"{path} is not TOML: {cause}.") from None


def _check_zipped(path: Path, table: dict[str, Any]) -> None:
    lengths = {len(v) if isinstance(v, list) else None for v in table.values()}
    if len(table) < 2 or len(lengths) > 1 or None in lengths:
        raise CommandError(
            f"{path} must have lists of one length under [[{ZIPPED}]], for at least "
            f"two names, got {_checks.describe(table)}."
        )


def _axis(path: Path, name: str, value: Any) -> Any:
    """The axis of `jaxae.sweep` of a TOML value; `check_space` checks its values."""
    argument = f"{path}[{name!r}]"
    if name not in AXES:
        raise CommandError(
            f"{path} has {name!r}, which cannot be swept{_checks.closest(name, AXES)}; "
            f"known: {', '.join(AXES)}, and [[{ZIPPED}]] for axes that are zipped."
        )
    if isinstance(value, list):
        if name in _INTEGERS and any(type(item) is not int for item in value):
            described = _checks.describe(value)
            raise CommandError(
                f"{argument} must be a list of integers, got {described}."
            )
        no_part = "none" if name == "corruption" else None
        return [None if item == no_part else item for item in value]
    if not isinstance(value, dict):
        raise CommandError(
            f"{argument} must be {_FORMS}, got {_checks.describe(value)}."
        )
    if name == SEED and set(value) == {"count"}:
        return range(_checks.positive_int(f"{path}['seed'].count", value["count"]))
    if name not in HPARAMS:
        forms = "a list or { count = 8 }" if name == SEED else "a list"
        raise CommandError(f"{argument} must be {forms}, not a range.")
    is_range = {"low", "high"} <= set(value) <= {"low", "high", "scale"}
    scale = value.get("scale", "linear")
    if not is_range or not isinstance(scale, str) or scale not in _SCALES:
        raise CommandError(
            f"{argument} must have low, high and an optional scale = 'linear' or "
            f"'log', and nothing else, got {_checks.describe(value)}."
        )
    try:
        axis = _SCALES[scale](value["low"], value["high"])
    except ValueError as error:
        raise CommandError(f"{argument}: {error}") from None
    return axis._replace(is_integer=name in _INTEGERS)


# ---- with the options ----------------------------------------------------------------


def check_options(
    space: Space, options: SweepOptions, arguments: Sequence[str] = ()
) -> None:
    """Raise if an option is in the space too, or if a schedule's length varies.

    `arguments` are those of the command line: an option may be typed at its default.
    """
    typed = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    for name in space.columns:
        option = option_name(hparam_option(name))
        if name != SEED and option in typed:
            raise CommandError(
                f"{name} is in {options.space}, and {option} is given too; leave one "
                "of them out."
            )
        if name in ("pre_bias", "observation") and options.resample_every is not None:
            raise CommandError(
                f"--resample-every needs one {name} for all lanes, but it is in "
                f"{options.space}; run one sweep for each."
            )
    if options.schedule == "constant" or options.schedule_steps is not None:
        return
    for name in ("batch_size", "warmup_steps"):
        if name in space.columns and "schedule_steps" not in space.columns:
            raise CommandError(
                f"--schedule {options.schedule} ends with the run, and its number of "
                f"steps depends on the {name} in {options.space}; give "
                f"--schedule-steps, or schedule_steps together with {name}."
            )


def as_train_options(options: SweepOptions, values: dict[str, Any]) -> TrainOptions:
    """The options of a single run with these values of what varies."""
    shared = {name: getattr(options, name) for name in _TYPES}
    for name in values.keys() - {SEED}:
        option, value = as_option(name, values[name])
        if name in HPARAMS:  # TOML has 1 for 1.0, and lanes have 1.0 for 1
            value = int(value) if name in _INTEGERS else float(value)
        if option in shared:
            shared[option] = value
    # All rows are read into memory: lanes share them on the device.
    return TrainOptions(**shared, memory_budget=2**30)
