"""The command line: one verb a job, each writing one run folder.

tyro, rich, matplotlib and scikit-learn (the extra `cli`) are imported where used.
"""

import dataclasses
import importlib.util
import re
import sys
from collections.abc import Callable
from typing import Any

import jaxae
from jaxae import _checks
from jaxae.cli.options import TrainOptions
from jaxae.cli.train import INTERRUPTED, train

VERBS: dict[str, tuple[type, Callable[[Any], int]]] = {"train": (TrainOptions, train)}


def main(argv: list[str] | None = None) -> int:
    """Run one verb; return the exit status. A mistake is one sentence, no traceback."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb == "--version":
        print(f"jaxae {jaxae.__version__}")
        return 0
    try:
        options_type, run = _checks.lookup("verb", VERBS, verb)
        _require_packages()
        return run(_parse(options_type, rest, verb))
    except (ValueError, OSError, ImportError) as error:
        print(f"jaxae: error: {_in_options(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxae: interrupted; nothing more was written.", file=sys.stderr)
        return INTERRUPTED


def _in_options(sentence: str) -> str:
    """The library's names of arguments as the command line spells them."""
    names = {field.name for field in dataclasses.fields(TrainOptions)}
    options = {name: f"--{name.replace('_', '-')}" for name in names if "_" in name}
    options["num_epochs"] = "--epochs"
    pattern = rf"(?<![\w'-])({'|'.join(options)})(?![\w'])"
    return re.sub(pattern, lambda match: options[match[0]], sentence)


def _usage() -> str:
    verbs = [f"  {verb:10}{options.__doc__}" for verb, (options, _) in VERBS.items()]
    return "\n".join(
        [
            "usage: jaxae VERB [options]",
            "",
            *verbs,
            "",
            "`jaxae VERB --help` shows every option with its default.",
        ]
    )


def _require_packages() -> None:
    """Before any work, not when the training is done."""
    for name in ("tyro", "rich", "matplotlib", "sklearn"):
        if importlib.util.find_spec(name) is None:
            raise _checks.extra("The command line", name, "cli")


def _parse(options_type: type, arguments: list[str], verb: str) -> Any:
    import tyro

    return tyro.cli(
        options_type,
        args=arguments,
        prog=f"jaxae {verb}",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
