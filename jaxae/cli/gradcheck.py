"""`jaxae gradcheck`: checks the library's gradients, or those of a user's function."""

import collections
import contextlib
import dataclasses
import functools
import importlib
import json
import math
import os
import re
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxae
from jaxae import _checks
from jaxae._files import expanded
from jaxae.autoencoder.files import read_tensors
from jaxae.cli import config_file, gradcheck_cases, run_folder
from jaxae.cli.gradcheck_cases import Case
from jaxae.cli.options import (
    CommandError,
    GradcheckOptions,
    check_seed,
    option_name,
)
from jaxae.cli.reporting import print_table, progress
from jaxae.gradcheck import Leaf, Report, check

DEFAULT_OUT = "runs/gradcheck"
KINDS = "a .npz, .npy or .safetensors file, or a folder that jaxae.save wrote"
_ONLY_WITH_FUNCTION = ("params", "grad", "arg", "has_aux", "surrogate", "x64")


class Result(NamedTuple):
    """The report on one case, and how long it took."""

    report: Report
    seconds: float


def gradcheck(options: GradcheckOptions) -> int:
    """`jaxae gradcheck`: 0 if every leaf is ok, 1 if not."""
    check_seed(options.seed)
    _check_combination(options)
    # The default folder is replaced, unless it holds the run of another command.
    overwrite, name = options.overwrite, options.out
    if name is None:
        name = DEFAULT_OUT
        overwrite |= not run_folder.OTHER_THAN_GRADCHECK.exist(Path(name))
    out = run_folder.check_out(name, overwrite)
    run_folder.check_inputs(out, params=options.params)
    for arg in options.arg:
        if _number_or_key(arg) is None:
            run_folder.check_inputs(out, arg=arg)
    if options.function is None:
        results = _check_catalogue(options)
        _write(out, options, results)
        _print_summary(results)
    else:
        results = {options.function: _check_function(options)}
        _write(out, options, results)
        print(f"{options.function}\n{results[options.function].report}")
    print(f"run folder: {out}")
    return 0 if all(result.report.ok for result in results.values()) else 1


def _check_combination(options: GradcheckOptions) -> None:
    if options.function is None:
        for name in _ONLY_WITH_FUNCTION:
            if getattr(options, name) != getattr(GradcheckOptions, name):
                raise CommandError(
                    f"{option_name(name)} needs a function to check: name it, as in "
                    "jaxae gradcheck mypackage.losses:loss --params FILE."
                )
    elif options.params is None:
        raise CommandError(
            f"--params must name the parameters at which {options.function} is "
            f"checked: {KINDS}."
        )
    elif options.only is not None:
        raise CommandError(
            "--only chooses among the catalogue's cases: leave it out, or leave out "
            f"{options.function}."
        )


def _check_catalogue(options: GradcheckOptions) -> dict[str, Result]:
    catalogue, only = gradcheck_cases.catalogue(), options.only or ""
    chosen = {name: make for name, make in catalogue.items() if only in name}
    if not chosen:
        names = list(catalogue)
        raise CommandError(
            f"--only {only!r} is in the name of none of the {len(names)} "
            f"cases{_checks.closest(only, names)}; names are like "
            f"{', '.join(names[:2])} and {names[-1]}."
        )
    results = {}
    with progress("case", len(chosen), "{task.fields[name]}", name="") as show:
        for name, make in chosen.items():
            show(advance=0, name=name)
            # Seeded by the name: a case has the same values alone and among others.
            rng = np.random.default_rng([options.seed, zlib.crc32(name.encode())])
            results[name] = _check_case(name, make(rng), options.seed)
            show(advance=1)
    return results


def _check_function(options: GradcheckOptions) -> Result:
    assert options.function is not None and options.params is not None
    errors: list[BaseException] = []

    def function_of(name: str) -> Callable[..., Any]:
        return _recorded(read_function(name), errors)

    is_x64 = options.x64 or jax.config.read("jax_enable_x64")
    # Importable during the whole check: the function may import when it is called.
    with _importable(os.getcwd()), jax.enable_x64(is_x64):
        case = Case(
            fn=function_of(options.function),
            params=_read_tree("--params", options.params, KINDS),
            args=tuple(map(read_arg, options.arg)),
            grad=function_of(options.grad) if options.grad else None,
            has_aux=options.has_aux,
            surrogate=options.surrogate,
        )
        return _check_case(options.function, case, options.seed, errors)


def _check_case(
    name: str, case: Case, seed: int, user_errors: list[BaseException] | None = None
) -> Result:
    """Check one case; `user_errors` has what the user's functions raised by then."""
    started = time.perf_counter()
    try:
        report = check(
            case.fn,
            case.params,
            *case.args,
            grad=case.grad,
            key=jax.random.key(seed),
            has_aux=case.has_aux,
            surrogate=case.surrogate,
        )
    except (Exception, SystemExit) as error:
        is_users = any(error is other for other in user_errors or ())
        if isinstance(error, ValueError) and not is_users:  # a sentence of gradcheck
            raise CommandError(f"{name}: {error}") from error
        place = _place(error) if is_users else None
        raise CommandError(f"checking {name} {_raised(error, place)}") from error
    return Result(report, time.perf_counter() - started)


# ---- the user's functions ------------------------------------------------------------


@contextlib.contextmanager
def _importable(directory: str) -> Iterator[None]:
    """Modules of this folder are imported first, as by `python -m`."""
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        sys.path.remove(directory)


def read_function(name: str) -> Callable[..., Any]:
    """The function of that name, `module:function` or `module:object.method`."""
    module_name, _, attributes = name.partition(":")
    if not all(map(str.isidentifier, f"{module_name}.{attributes}".split("."))):
        raise CommandError(
            "a function must be named MODULE:FUNCTION, e.g. mypackage.losses:loss, "
            f"got {name!r}."
        )
    value: Any = _import(module_name, name)
    for attribute in attributes.split("."):
        if not hasattr(value, attribute):
            raise CommandError(
                f"{name} does not exist: {module_name} has no "
                f"{attribute!r}{_checks.closest(attribute, dir(value))}."
            )
        value = getattr(value, attribute)
    if not callable(value):
        raise CommandError(f"{name} must be a function, got {_checks.describe(value)}.")
    return value


def _import(module_name: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = getattr(error, "name", None)
        is_missing = isinstance(error, ModuleNotFoundError) and missing is not None
        if is_missing and f"{module_name}.".startswith(f"{missing}."):
            raise CommandError(
                f"{name} does not exist: there is no module {missing!r}; it must be "
                f"installed or in the current folder, {os.getcwd()}."
            ) from error
        raised = _raised(error, _place(error))
        raise CommandError(f"importing {module_name} {raised}") from error


def _recorded(function: Callable[..., Any], errors: list) -> Callable[..., Any]:
    """The same function; what it raises is appended to `errors`."""

    @functools.wraps(function)
    def call(*args):
        try:
            return function(*args)
        except (Exception, SystemExit) as error:
            errors.append(error)
            raise

    return call


def _raised(error: BaseException, place: str | None) -> str:
    """What was raised, and where, in words that follow a name."""
    line, kind = _checks.first_line(error), type(error).__name__
    message = line if line.startswith(f"{kind}: ") else f"{kind}: {line}"
    notes = getattr(error, "__notes__", [])  # JAX adds some too, about its own frames
    where = [place] if place else []
    where += [note.rstrip(".") for note in notes if note.startswith("gradcheck ")]
    return f"raised {message}" + (f" ({'; '.join(where)})." if where else ".")


def _place(error: BaseException) -> str | None:
    """FILE:LINE: the innermost line in the file of the user's that was called."""
    frames = traceback.extract_tb(error.__traceback__)
    last = max(i for i, frame in enumerate(frames) if frame.filename == __file__)
    machinery = (importlib.__file__, str(Path(jax.__file__).parent), "<")
    entered = [f for f in frames[last + 1 :] if not f.filename.startswith(machinery)]
    if not entered:
        return None
    path, here = Path(entered[0].filename), Path.cwd()
    line = [f.lineno for f in entered if f.filename == entered[0].filename][-1]
    return f"{path.relative_to(here) if path.is_relative_to(here) else path}:{line}"


# ---- the user's arrays ---------------------------------------------------------------


def read_arg(text: str) -> Any:
    """The value of --arg: a number, a random key, or the arrays of a file or folder."""
    value = _number_or_key(text)
    if value is None:
        value = _read_tree("--arg", text, f"a number, key:SEED, {KINDS}")
    return value


def _number_or_key(text: str) -> Any:
    """The number or random key that --arg names; None for a file or folder."""
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    if text.startswith("key:"):
        seed = text.removeprefix("key:")
        if not re.fullmatch("[0-9]{1,10}", seed) or int(seed) >= 2**32:
            raise CommandError(
                "--arg key:SEED must hold an integer from 0 to 2**32 - 1, got "
                f"{_checks.describe(text)}."
            )
        return jax.random.key(int(seed))
    return None


def _read_tree(option: str, name: str, kinds: str) -> Any:
    """One array, a dict of arrays, or a model's params; nothing is unpickled."""
    path = expanded(name)
    suffix = path.suffix.lower()
    if path.is_dir():
        return _read_tensors(option, name, lambda: jaxae.load(path)[1])
    if suffix not in (".npz", ".npy", ".safetensors"):
        raise CommandError(f"{option} must be {kinds}, got {name!r}.")
    if not path.is_file():
        raise FileNotFoundError(f"{option} {name} does not exist; give {kinds}.")
    if suffix == ".safetensors":
        arrays = _read_tensors(option, name, lambda: read_tensors(path)[0])
        return _nested(arrays, path)
    with _checks.reading(path, "store numbers, by np.save or np.savez"):
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            arrays = dict(content)
    return _nested(arrays, path)


def _read_tensors(option: str, name: str, read: Callable[[], Any]) -> Any:
    return run_folder.read_float64(
        f"{option} {name}",
        read,
        is_allowed=jax.config.read("jax_enable_x64"),
        problem="JAX would round to float32 here; add --x64",
    )


def _nested(arrays: dict[str, Any], path: Path) -> dict[str, Any]:
    """`{"a/b": x}` as `{"a": {"b": x}}`."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        node: Any = tree
        for folder in folders:
            node = node.setdefault(folder, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last in node:
            raise CommandError(
                f"{path} holds {name!r} beside an array that would be in a folder of "
                "that name, or the other way round; rename one."
            )
        node[last] = array
    return tree


# ---- reports -------------------------------------------------------------------------


def _write(out: Path, options: GradcheckOptions, results: dict[str, Result]) -> None:
    """All at the end: an interrupted run writes nothing and keeps an older run."""
    reports = {name: json.loads(r.report.to_json()) for name, r in results.items()}
    run_folder.clear(out, run_folder.RUN)
    config = {
        "options": dataclasses.asdict(options),
        "cases": list(results),
        **config_file.environment(),
    }
    timing = [{"case": name, "seconds": r.seconds} for name, r in results.items()]
    run_folder.write_rows(out / run_folder.TIMING_FILE, timing)
    report = reports if options.function is None else reports[options.function]
    run_folder.write_json(out / run_folder.REPORT_FILE, report)
    run_folder.write_json(out / run_folder.CONFIG_FILE, config)


def _print_summary(results: dict[str, Result]) -> None:
    rows = []
    for name, (report, _) in results.items():
        largest = max(map(_ratio, report.leaves.values()), default=0.0)
        rows.append([name, _verdicts(report), f"{largest:.2g}"])
    print_table(["case", "verdicts", "error / resolution"], rows)
    failed = {name: r.report for name, r in results.items() if not r.report.ok}
    for name, report in failed.items():
        print(f"{name}\n{report}\n")
    verdict = f"{len(failed)} not ok: {', '.join(failed)}" if failed else "all ok"
    print(f"{len(results)} case{'s' * (len(results) != 1)}, {verdict}")


def _ratio(leaf: Leaf) -> float:
    """The error as a multiple of the tolerance; NaN counts as infinite."""
    ratio = leaf.error / leaf.resolution
    return math.inf if math.isnan(ratio) else ratio


def _verdicts(report: Report) -> str:
    """Such as "2 correct, 1 WRONG": in capitals if not ok, as in a report."""
    counts = collections.Counter(
        leaf.verdict if leaf.ok else leaf.verdict.upper()
        for leaf in report.leaves.values()
    )
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
