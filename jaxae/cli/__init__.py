"""The command line: one verb a job, each writing one run folder.

tyro, rich, matplotlib and scikit-learn (the extra `cli`) are imported where used.
"""

import dataclasses
import importlib.util
import io
import os
import re
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

import jaxae
from jaxae import _checks
from jaxae.cli import run_folder
from jaxae.cli.factory import HPARAMS
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
)
from jaxae.cli.space import SpaceError
from jaxae.cli.sweep import sweep
from jaxae.cli.train import INTERRUPTED, train, with_runs
from jaxae.cli.user_code import YourCodeError


class Verb(NamedTuple):
    """What the command line knows of a job.

    Attributes:
      options: a dataclass; its docstring is what the usage says of the verb.
      run: `(options) -> exit status`.
      packages: what must be installed.
      words: the library's words that `_in_options` does not know by itself.
      defaults: `(arguments) -> options or None`, where some of them name a file that
        has the defaults.
    """

    options: type
    run: Callable[[Any], int]
    packages: tuple[str, ...]
    words: Mapping[str, str] = MappingProxyType({})
    defaults: Callable[[list[str]], Any] = lambda arguments: None


UNREAD = 141  # what a shell reports for a program whose reader went away
_ARRAY = {"array=NAME": "--array NAME"}
_NUMBERS = (*HPARAMS, "final_fraction", "schedule_steps")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


VERBS = {
    "train": Verb(
        TrainOptions,
        train,
        packages=("tyro", "rich", "matplotlib", "sklearn", "orbax"),
        words={
            "num_epochs": "--epochs",
            "checkpoint_dir": "--out",
            **_ARRAY,
            "load it inside `with jax.enable_x64(True):`": "say --dtype float64",
            "patience waits": "--patience waits",
            "monitor must": "--monitor must",
            "accumulate must": "--accumulate must",
            **{f"hparams['{name}']": _option(name) for name in _NUMBERS},
            "give validation=, or set monitor='train/loss'": (
                "give it some, --validation-fraction 0.1, or say --monitor train/loss"
            ),
        },
        defaults=with_runs,
    ),
    "sweep": Verb(
        SweepOptions,
        sweep,
        packages=("tyro", "rich", "matplotlib", "sklearn", "pandas"),
        words={
            "num_epochs": "--epochs",
            **_ARRAY,
            "accumulate must": "--accumulate must",
            "sampler must": "--sampler must",
            # In the file or beside it.
            **{f"hparams['{name}']": name for name in (*_NUMBERS, "init_scale")},
            "engine must": "--engine must",
            "generator is": "--generator is",
            "sweep the same": "sweep the same, replace it with --overwrite",
        },
    ),
    "encode": Verb(EncodeOptions, encode, packages=("tyro",), words=_ARRAY),
    "reconstruct": Verb(
        ReconstructOptions, reconstruct, packages=("tyro",), words=_ARRAY
    ),
    "evaluate": Verb(
        EvaluateOptions,
        evaluate,
        packages=("tyro", "rich", "sklearn"),
        words=_ARRAY,
    ),
    "plot": Verb(PlotOptions, plot, packages=("tyro", "matplotlib")),
    "gradcheck": Verb(
        GradcheckOptions,
        gradcheck,
        packages=("tyro", "rich"),
        words={
            **{f"{name} must": f"--{name} must" for name in ("params", "grad")},
            "surrogate must": "--surrogate must",
            "load it inside `with jax.enable_x64(True):`": "say --x64",
        },
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb; return the exit status. A mistake is one sentence, no traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The name of a file need not be text; printing it must not fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            return _main(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `head` has read enough: that is no mistake
        # What is still to be written goes nowhere, or Python would tell of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD


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
        verb = _checks.lookup("verb", VERBS, name)
    except ValueError as error:
        return _refuse(str(error))
    try:
        _require_packages(verb)
        return verb.run(_parse(verb, rest, name))
    except (YourCodeError, SpaceError) as error:
        return _refuse(str(error))
    except (ValueError, ImportError) as error:
        return _refuse(_in_options(str(error), verb))
    except BrokenPipeError:
        raise
    except OSError as error:
        return _refuse(_in_options(run_folder.sentence(error), verb))
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        found = _checks.first_line(error)
        return _refuse(f"too large for this machine ({found}); use fewer numbers.")
    except KeyboardInterrupt:
        print("jaxae: interrupted.", file=sys.stderr)
        return INTERRUPTED


def _refuse(sentence: str) -> int:
    print(f"jaxae: error: {sentence}", file=sys.stderr)
    return 2


def _in_options(sentence: str, verb: Verb) -> str:
    """The library's names of arguments as the command line spells them."""
    names = [field.name for field in dataclasses.fields(verb.options)]
    words = {name: _option(name) for name in names if "_" in name}
    words.update(verb.words)
    if not words:
        return sentence
    known = "|".join(map(re.escape, words))
    # Not within a path, nor in what is said of a model: Autoencoder(latent_dim=4).
    pattern = rf"(?<![\w'./-])(?:{_PLACES})?({known})(?![\w'/=]|\.\w)"
    return re.sub(pattern, lambda match: words[match[1]], sentence)


_PLACES = r"(?:hparams|config|model)\."  # where a run's identity has its fields


def _usage() -> str:
    verbs = [f"  {name:10}{verb.options.__doc__}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: jaxae VERB [options]",
            "",
            *verbs,
            "",
            "`jaxae VERB --help` shows every option with its default.",
        ]
    )


def _require_packages(verb: Verb) -> None:
    """Before any work, not when the training is done."""
    for name in verb.packages:
        if importlib.util.find_spec(name) is None:
            raise _checks.extra("The command line", name, "cli")


def _parse(verb: Verb, arguments: list[str], name: str) -> Any:
    import tyro

    default = verb.defaults(arguments)
    options = tyro.cli(
        verb.options,
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
