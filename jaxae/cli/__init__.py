"""The command line: each subcommand does one job.

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
from jaxae.cli.gradcheck import gradcheck
from jaxae.cli.inference import encode, evaluate, plot, reconstruct
from jaxae.cli.options import (
    EncodeOptions,
    EvaluateOptions,
    GradcheckOptions,
    PlotOptions,
    ReconstructOptions,
    SweepOptions,
    TrainOptions,
    argument_names,
)
from jaxae.cli.sweep import sweep
from jaxae.cli.train import INTERRUPTED, train


class Subcommand(NamedTuple):
    """A job of the command line.

    Attributes:
      options: a dataclass; its docstring describes the subcommand in the usage.
      run: `(options) -> exit status`.
      packages: what must be installed.
      defaults: `(arguments) -> options or None`, for arguments that name a file of
        defaults.
    """

    options: type
    run: Callable[[Any], int]
    packages: tuple[str, ...]
    defaults: Callable[[list[str]], Any] = lambda arguments: None


BROKEN_PIPE = 141  # what a shell reports for a program whose reader has gone

_TRAIN_PACKAGES = ("tyro", "rich", "matplotlib", "sklearn", "orbax")
_SWEEP_PACKAGES = ("tyro", "rich", "matplotlib", "sklearn", "pandas")
SUBCOMMANDS = {
    "train": Subcommand(TrainOptions, train, _TRAIN_PACKAGES, config_file.defaults),
    "sweep": Subcommand(SweepOptions, sweep, _SWEEP_PACKAGES),
    "encode": Subcommand(EncodeOptions, encode, ("tyro",)),
    "reconstruct": Subcommand(ReconstructOptions, reconstruct, ("tyro",)),
    "evaluate": Subcommand(EvaluateOptions, evaluate, ("tyro", "rich", "sklearn")),
    "plot": Subcommand(PlotOptions, plot, ("tyro", "matplotlib")),
    "gradcheck": Subcommand(GradcheckOptions, gradcheck, ("tyro", "rich")),
}


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; return the exit status. A mistake prints one sentence."""
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
    try:
        subcommand = _checks.lookup("verb", SUBCOMMANDS, name)
        _require_packages(subcommand)
        return subcommand.run(_parse(subcommand, rest, name))
    except ArgumentError as error:
        is_known = name in SUBCOMMANDS
        names = argument_names(SUBCOMMANDS[name].options) if is_known else {}
        return _print_error(error.render(names))
    except (ValueError, ImportError) as error:
        return _print_error(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        return _print_error(_sentence(error))
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        return _print_error(_runtime_sentence(error))
    except KeyboardInterrupt:
        print("jaxae: interrupted.", file=sys.stderr)
        return INTERRUPTED


def _print_error(sentence: str) -> int:
    print(f"jaxae: error: {sentence}", file=sys.stderr)
    return 2


def _sentence(error: OSError) -> str:
    """The message of the library, or one made of what the system reports."""
    if error.errno is None or error.strerror is None:
        return str(error)
    name = error.filename if error.filename2 is None else error.filename2
    where = "" if name is None else f" {name}"
    return (
        f"cannot read or write{where}: {error.strerror}; make room, grant access, or "
        "choose another place."
    )


def _runtime_sentence(error: MemoryError | jax.errors.JaxRuntimeError) -> str:
    line = _checks.first_line(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return f"out of memory ({line}); use a smaller batch, model or dataset."
    return f"JAX or its device failed ({line}); check the device, and run it again."


def _usage() -> str:
    lines = [
        f"  {name:10}{subcommand.options.__doc__}"
        for name, subcommand in SUBCOMMANDS.items()
    ]
    return "\n".join(
        [
            "usage: jaxae VERB [options]",
            "",
            *lines,
            "",
            "`jaxae VERB --help` shows every option with its default.",
        ]
    )


def _require_packages(subcommand: Subcommand) -> None:
    """Raise before any work if a package is not installed."""
    for name in subcommand.packages:
        if importlib.util.find_spec(name) is None:
            raise _checks.extra("The command line", name, "cli")


def _parse(subcommand: Subcommand, arguments: list[str], name: str) -> Any:
    import tyro

    default = subcommand.defaults(arguments)
    options = tyro.cli(
        subcommand.options,
        args=arguments,
        **({} if default is None else {"default": default}),
        prog=f"jaxae {name}",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    for option, value in vars(options).items():
        if isinstance(value, str) and "\0" in value:
            raise ValueError(
                f"{option} is {value!r}, but neither a path nor a name can hold a null "
                "character; leave it out."
            )
    return options
