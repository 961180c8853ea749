"""`jaxae gradcheck`: the library's gradients, or the user's, judged."""

import collections
import dataclasses
import json
import math
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxae import _checks
from jaxae._files import write_atomically
from jaxae.cli import cases, run_folder, user_code
from jaxae.cli.cases import Case
from jaxae.cli.options import GradcheckOptions, checked_seed
from jaxae.cli.outputs import check_folder, check_inputs
from jaxae.cli.reporting import progress
from jaxae.gradcheck import Leaf, Report, check

# What has a meaning only beside a function of the user's.
USUAL_OUT = "runs/gradcheck"
_OF_A_FUNCTION = ("params", "grad", "arg", "has_aux", "surrogate", "x64")


class Judged(NamedTuple):
    """What was found about a case."""

    report: Report
    seconds: float


def gradcheck(options: GradcheckOptions) -> int:
    """`jaxae gradcheck`: 0 if every leaf is ok, 1 if not."""
    checked_seed(options.seed)
    _check_belong_together(options)
    is_usual = options.out is None
    where = USUAL_OUT if options.out is None else options.out
    out = run_folder.check_out(
        where, options.overwrite or (is_usual and _is_ours(where))
    )
    check_folder(out)
    check_inputs(out, params=options.params)
    if options.function is None:
        judged = _judge_catalogue(options)
        reports = {name: _as_json(one.report) for name, one in judged.items()}
        _write(out, options, judged, reports)
        _print_summary(judged)
    else:
        [(name, one)] = (judged := _judge_yours(options)).items()
        _write(out, options, judged, _as_json(one.report))
        print(f"{name}\n{one.report}")
    print(f"run folder: {out}")
    return 0 if all(one.report.ok for one in judged.values()) else 1


def _is_ours(out: str) -> bool:
    """Whether a folder has nothing that another verb than this one wrote."""
    others = (
        run_folder.PARAMS_FILE,
        run_folder.METRICS_FILE,
        run_folder.CHECKPOINTS,
        run_folder.LANES,
    )
    return not any(Path(out, name).exists() for name in others)


def _check_belong_together(options: GradcheckOptions) -> None:
    default = GradcheckOptions()
    if options.function is None:
        for name in _OF_A_FUNCTION:
            if getattr(options, name) != getattr(default, name):
                raise ValueError(
                    f"--{name.replace('_', '-')} belongs to a function of yours: name "
                    "it, as in jaxae gradcheck mypackage.losses:loss --params FILE."
                )
    elif options.params is None:
        raise ValueError(
            f"--params must say where to judge {options.function}: {user_code.KINDS}."
        )
    elif options.only is not None:
        raise ValueError(
            "--only chooses among the catalogue's cases: leave it out, or leave out "
            f"{options.function}."
        )


# ---- the two jobs --------------------------------------------------------------------


def _judge_catalogue(options: GradcheckOptions) -> dict[str, Judged]:
    judged = {}
    chosen = _choose(cases.catalogue(), options.only)
    with progress("case", len(chosen), "{task.fields[name]}", name="") as show:
        for name, make in chosen.items():
            show(advance=0, name=name)
            # Of the name, so that a case is the same alone as among others.
            rng = np.random.default_rng([options.seed, zlib.crc32(name.encode())])
            judged[name] = _judge(name, make(rng), options.seed)
            show(advance=1)
    return judged


def _choose(
    found: dict[str, Callable[..., Case]], only: str | None
) -> dict[str, Callable[..., Case]]:
    chosen = {name: make for name, make in found.items() if (only or "") in name}
    if not chosen:
        raise ValueError(
            f"--only {only!r} is in the name of none of the {len(found)} cases"
            f"{_checks.closest(only, found)}; names are like {', '.join([*found][:2])} "
            f"and {[*found][-1]}."
        )
    return chosen


def _judge_yours(options: GradcheckOptions) -> dict[str, Judged]:
    name, params = options.function, options.params
    assert name is not None and params is not None
    is_x64 = options.x64 or jax.config.read("jax_enable_x64")
    # Importable to the end: a function may import more when it is called.
    with user_code.importable(os.getcwd()), jax.enable_x64(is_x64):
        case = Case(
            fn=user_code.read_function(name),
            params=user_code.read_params(params),
            args=tuple(map(user_code.read_arg, options.arg)),
            grad=user_code.read_function(options.grad) if options.grad else None,
            has_aux=options.has_aux,
            surrogate=options.surrogate,
        )
        return {name: _judge(name, case, options.seed)}


def _judge(name: str, case: Case, seed: int) -> Judged:
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
        if user_code.is_refusal(error):
            raise ValueError(f"{name}: {error}") from error
        raise user_code.YourCodeError(
            f"judging {name} {user_code.raised(error)}"
        ) from error
    return Judged(report, time.perf_counter() - started)


# ---- what is written -----------------------------------------------------------------


def _as_json(report: Report) -> Any:
    return json.loads(report.to_json())


def _write(
    out: Path, options: GradcheckOptions, judged: dict[str, Judged], report: Any
) -> None:
    """All at the end: an interrupted run leaves nothing, and an old one as it was."""
    run_folder.clear(out)
    config = {
        "options": dataclasses.asdict(options),
        "cases": list(judged),
        **run_folder.environment(),
    }
    rows = [{"case": name, "seconds": one.seconds} for name, one in judged.items()]
    timing = "".join(run_folder.to_json(row) + "\n" for row in rows)
    write_atomically(out / run_folder.TIMING_FILE, timing.encode())
    run_folder.write_json(out / run_folder.REPORT_FILE, report)
    run_folder.write_json(out / run_folder.CONFIG_FILE, config)


def _print_summary(judged: dict[str, Judged]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("case", "verdicts")
    table.add_column("error / resolution", justify="right")
    for name, (report, _) in judged.items():
        leaves = report.leaves.values()
        worst = max((_ratio(leaf) for leaf in leaves), default=0.0)
        table.add_row(name, _verdicts(report), f"{worst:.2g}")
    Console().print(table)
    bad = {name: one.report for name, one in judged.items() if not one.report.ok}
    for name, report in bad.items():
        print(f"{name}\n{report}\n")
    verdict = f"{len(bad)} not ok: {', '.join(bad)}" if bad else "all ok"
    print(f"{len(judged)} case{'s' * (len(judged) != 1)}, {verdict}")


def _ratio(leaf: Leaf) -> float:
    """How near the leaf came to failing, which it does above 1; NaN counts as all."""
    ratio = leaf.error / leaf.resolution
    return math.inf if math.isnan(ratio) else ratio


def _verdicts(report: Report) -> str:
    """As "2 correct, 1 WRONG": in capitals if not ok, as in a report."""
    leaves = report.leaves.values()
    counts = collections.Counter(
        leaf.verdict if leaf.ok else leaf.verdict.upper() for leaf in leaves
    )
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
