"""The command line: each command does one job.

tyro, rich, matplotlib and scikit-learn (the extra `cli`) are imported where used.
"""

import importlib.util
import io
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import jaxae
from jaxae import _checks
from jaxae._checks import ArgumentError
from jaxae.cli import config_file
from jaxae.cli.convert import convert
from jaxae.cli.export import export
from jaxae.cli.gradcheck import gradcheck
from jaxae.cli.options import (
    CommandError,
    ConvertOptions,
    EncodeOptions,
    EvaluateOptions,
    ExportOptions,
    GradcheckOptions,
    PlotOptions,
    ReconstructOptions,
    ReportOptions,
    SweepOptions,
    TrainOptions,
    argument_names,
)
from jaxae.cli.report import report
from jaxae.cli.signals import INTERRUPTED
from jaxae.cli.sweep import sweep
from jaxae.cli.train import train
from jaxae.cli.trained_model import encode, evaluate, plot, reconstruct


class Subcommand(NamedTuple):
    """A command; the docstring of its options describes it in the usage."""

    options: type
    run: Callable[..., int]  # options -> exit status
    packages: tuple[str, ...]  # that must be installed
    # The defaults in the files that the arguments name, if any.
    defaults: Callable[[list[str]], Any] = lambda arguments: None
    needs_arguments: bool = False  # `run` takes the arguments too, as they were typed


BROKEN_PIPE = 141  # what a shell reports for a program whose reader has gone

_TRAIN_PACKAGES = ("tyro", "rich", "matplotlib", "sklearn", "orbax")
_SWEEP_PACKAGES = ("tyro", "rich", "matplotlib", "sklearn", "pandas")
SUBCOMMANDS = {
    "train": Subcommand(TrainOptions, train, _TRAIN_PACKAGES, config_file.defaults),
    "sweep": Subcommand(SweepOptions, sweep, _SWEEP_PACKAGES, needs_arguments=True),
    "encode": Subcommand(EncodeOptions, encode, ("tyro",)),
    "reconstruct": Subcommand(ReconstructOptions, reconstruct, ("tyro",)),
    "evaluate": Subcommand(EvaluateOptions, evaluate, ("tyro", "rich", "sklearn")),
    "plot": Subcommand(PlotOptions, plot, ("tyro", "matplotlib")),
    "report": Subcommand(ReportOptions, report, ("tyro",)),
    "export": Subcommand(ExportOptions, export, ("tyro",)),
    "convert": Subcommand(ConvertOptions, convert, ("tyro",)),
    "gradcheck": Subcommand(GradcheckOptions, gradcheck, ("tyro", "rich")),
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; return the exit status. A mistake prints one sentence."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name may not be valid text, and must print all the same.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            return _main(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # a reader such as `head` has read enough: no error
        # What is still to be written is discarded, or Python would print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _main(argv: list[str] | None) -> int:
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        print(f"jaxae {jaxae.__version__}")
        return 0
    names: dict[str, str] = {}
    try:
        command = _checks.lookup("command", SUBCOMMANDS, name)
        names = argument_names(command.options)
        _require_packages(command)
        options = _parse(command, rest, name)
        return command.run(options, *([rest] if command.needs_arguments else []))
    except BrokenPipeError:
        raise
    except _ERRORS as error:
        print(f"jaxae: error: {_sentence(error, names)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxae: interrupted.", file=sys.stderr)
        return INTERRUPTED


_RUNTIME_ERRORS = (MemoryError, jax.errors.JaxRuntimeError)
_ERRORS = (ValueError, ImportError, OSError, *_RUNTIME_ERRORS)


def _sentence(error: Exception, names: dict[str, str]) -> str:
    """The message of the library, or a sentence about what the system reports."""
    if isinstance(error, ArgumentError):
        return error.render(names)
    if isinstance(error, _RUNTIME_ERRORS):
        line = _checks.first_line(error)
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            return f"out of memory ({line}); use a smaller batch, model or dataset."
        return f"JAX or its device failed ({line}); check the device, and run it again."
    if isinstance(error, OSError) and None not in (error.errno, error.strerror):
        name = error.filename if error.filename2 is None else error.filename2
        where = "" if name is None else f" {name}"
        return (
            f"cannot read or write{where}: {error.strerror}; make room, grant access, "
            "or choose another place."
        )
    return str(error)


def _usage() -> str:
    lines = [f"  {name:12}{s.options.__doc__}" for name, s in SUBCOMMANDS.items()]
    commands = "\n".join(lines)
    return (
        f"usage: jaxae COMMAND [options]\n\n{commands}\n\n"
        "`jaxae COMMAND --help` shows every option with its default."
    )


def _require_packages(command: Subcommand) -> None:
    """Raise before any work if a package is not installed."""
    for name in command.packages:
        if importlib.util.find_spec(name) is None:
            raise _checks.extra("The command line", name, "cli")


def _parse(command: Subcommand, arguments: list[str], name: str) -> Any:
    import tyro

    default = command.defaults(arguments)
    options = tyro.cli(
        command.options,
        args=arguments,
        **({} if default is None else {"default": default}),
        prog=f"jaxae {name}",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    for option, value in vars(options).items():
        if isinstance(value, str) and "\0" in value:
            raise CommandError(
                f"{option} is {value!r}, but neither a path nor a name can hold a null "
                "character; leave it out."
            )
    return options
