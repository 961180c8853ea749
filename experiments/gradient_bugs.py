"""Which wrong gradients do gradient checkers detect, and which right ones do they fail?

Claim: `jaxae.gradcheck` detects every one of these wrong gradients, in exactly the
leaves that are wrong, and calls none of the right ones wrong, difficult as they are, at
every size and seed. If the rounding error of a right gradient exceeds 10 % of a leaf,
the verdict is "undecided"; that is so in less than 1 % of the checks.
`jax.test_util.check_grads`, `chex.assert_numerical_grads` and torch's `gradcheck` are
given the same gradients; nothing is claimed about them.

Source: the autoencoder and its gradient are Hugo Larochelle's, Neural networks:
Autoencoder, Université de Sherbrooke, October 2012; the published bugs name the project
and the issue in which they were reported.

    python experiments/gradient_bugs.py [--quick | --full] [--out DIR]

A case of `_gradient_cases` is a function of a pytree with a claimed gradient. A bug is
caught if the leaves that are not ok are those that are wrong by design; a right
gradient passes if every leaf is ok. The other outcomes are: missed, false alarm, other
leaves, undecided, cannot run.

Each judge is called with its defaults, in the dtype of the case:
  jaxae        check(fn, params, *args, grad=claim, surrogate=that of the case)
  check_grads  check_grads(f, (params,), order=1, modes=("rev",)), where f is a
               `custom_vjp` whose backward pass is the claim times the cotangent
  by leaf      the same for one leaf at a time, with the others fixed. This shows which
               leaf is wrong, and large leaves do not hide errors in small ones
  chex         assert_numerical_grads(f, leaves, order=1), where f is a `custom_jvp` of
               the leaves (it takes no pytree) whose tangent is <claim, tangent>
  torch        gradcheck in float64, which it requires; its results are those of
               `benchmarks/torch_gradcheck.py`, which runs in its own environment
Of the peers only `by leaf` must name the wrong leaves; the others need only raise. Only
jaxae has declarations of surrogates. The bugs that a judge catches mean little if it
fails right gradients, so both halves of the plot belong together.
"""

import concurrent.futures
import functools
import json
import multiprocessing
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import _study
import chex
import jax
import jax.numpy as jnp
import numpy as np
from _gradient_cases import CASES, Case, Size
from jax.test_util import check_grads
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

import jaxae

RIGHT = {"bug": "caught", "right": "passed"}
WRONG = {"bug": "missed", "right": "false alarm"}
OTHER, UNDECIDED, CANNOT = "other leaves", "undecided", "cannot run"
TORCH = Path(__file__).parents[1] / "benchmarks" / "results" / "torch_gradcheck.json"


class Settings(NamedTuple):
    """The extent of the study."""

    sizes: tuple[Size, ...]
    num_seeds: int
    num_seeds_large: int  # at the last size, if there are several
    num_processes: int
    stride: int = 1  # of the cases that are run


class Dataset(NamedTuple):
    """The source of the cases' inputs."""

    name: str = "random numbers"
    sha256: None = None


SIZES = (Size(5, 3, 4), Size(20, 10, 8), Size(64, 32, 32), Size(784, 500, 64))
FULL = Settings(SIZES, num_seeds=10, num_seeds_large=10, num_processes=2)
USUAL = FULL._replace(num_seeds_large=1)
QUICK = Settings(SIZES[:1], num_seeds=1, num_seeds_large=1, num_processes=1, stride=4)


def main(argv=None) -> int:
    full = "as many seeds at the largest size as at the others"
    args = _study.parse(argv, "gradient_bugs", __doc__, full=full)
    settings = QUICK if args.quick else FULL if args.full else USUAL
    with tempfile.TemporaryDirectory() as cache:
        rows = judge_all(settings, cache)
    rows = with_torch(rows)
    print_outcomes(rows)
    draw(rows, args.out / "detection_matrix.png")
    passed = is_as_claimed(rows)
    results = {"totals": totals(rows), "cases": rows}
    return _study.finish(args, __doc__, settings, Dataset(), passed, results)


# ---- the judges: (case, fn, grad, params, args) -> outcome ---------------------------


def outcome(case: Case, failed: set) -> str:
    """The outcome of a judge that names the leaves that fail."""
    if not failed:
        return WRONG["bug"] if case.wrong else RIGHT["right"]
    if case.kind == "right":
        return WRONG["right"]
    return RIGHT["bug"] if failed == set(case.wrong) else OTHER


def by_jaxae(case: Case, fn, grad, params, args) -> tuple[str, str]:
    """The outcome, and the report or the error."""
    surrogate = case.function.surrogate
    options = {"grad": grad, "surrogate": surrogate}
    try:
        report = jaxae.gradcheck.check(fn, params, *args, **options)
    except Exception as error:
        return CANNOT, repr(error)
    leaves = report.leaves.items()
    if any(leaf.verdict == UNDECIDED and not leaf.ok for _, leaf in leaves):
        return UNDECIDED, str(report)
    return outcome(case, {path for path, leaf in leaves if not leaf.ok}), str(report)


def by_check_grads(case: Case, fn, grad, params, args) -> str:
    f = with_vjp(lambda p: fn(p, *args), lambda p: grad(p, *args))
    return raises(case, lambda: check_grads(f, (params,), 1, modes=("rev",)))


def by_check_grads_of_leaves(case: Case, fn, grad, params, args) -> str:
    paths, leaves, fill = flatten(params)

    def judge_leaf(i: int) -> str:
        def put(leaf):
            return fill([*leaves[:i], leaf, *leaves[i + 1 :]])

        f = with_vjp(
            lambda leaf: fn(put(leaf), *args),
            lambda leaf: flatten(grad(put(leaf), *args))[1][i],
        )
        return raises(case, lambda: check_grads(f, (leaves[i],), 1, modes=("rev",)))

    outcomes = {path: judge_leaf(i) for i, path in enumerate(paths)}
    if CANNOT in outcomes.values():
        return CANNOT
    alarms = RIGHT["bug"], WRONG["right"]
    return outcome(case, {path for path, each in outcomes.items() if each in alarms})


def by_chex(case: Case, fn, grad, params, args) -> str:
    """On the loss that is not compiled, because chex replaces stop_gradient in it."""
    _, leaves, fill = flatten(params)
    loss = case.function.loss
    f = jax.custom_jvp(lambda *leaves: loss(fill(leaves), *args))

    @f.defjvp
    def jvp(primals, tangents):
        claims = flatten(grad(fill(primals), *args))[1]
        out = f(*primals)
        slope = sum(map(jnp.vdot, claims, tangents))
        return out, jnp.asarray(slope, out.dtype)

    return raises(case, lambda: chex.assert_numerical_grads(f, leaves, order=1))


JUDGES = {
    "check_grads": by_check_grads,
    "by leaf": by_check_grads_of_leaves,
    "chex": by_chex,  # last, because it replaces stop_gradient in what is traced
}


def with_vjp(fn, grad):
    """`fn` with the claim as its rule."""

    def backward(params, cotangent):
        scale = functools.partial(jnp.multiply, cotangent)
        return (jax.tree.map(scale, grad(params)),)

    f = jax.custom_vjp(fn)
    f.defvjp(lambda params: (fn(params), params), backward)
    return f


def raises(case: Case, check) -> str:
    """The outcome of a judge that raises an AssertionError for a wrong gradient."""
    try:
        check()
    except AssertionError:
        return RIGHT["bug"] if case.kind == "bug" else WRONG["right"]
    except Exception:
        return CANNOT
    return WRONG["bug"] if case.kind == "bug" else RIGHT["right"]


def flatten(tree):
    flat, structure = jax.tree_util.tree_flatten_with_path(tree)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    paths, leaves = [name(path) for path, _ in flat], [leaf for _, leaf in flat]
    return paths, leaves, functools.partial(jax.tree.unflatten, structure)


# ---- all cases, sizes and seeds ------------------------------------------------------


def judge_all(settings, cache) -> list[dict]:
    """A row for each case: the number of seeds by judge, size and outcome."""
    keep_compiled(cache)
    names = list(CASES)[:: settings.stride]
    tasks = [(name, size) for size in settings.sizes for name in names]
    seeds = [range(num_seeds_at(size, settings)) for _, size in tasks]
    if settings.num_processes == 1:
        counts = list(map(judge, tasks, seeds))
    else:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(
            settings.num_processes, context, keep_compiled, (cache,)
        ) as pool:
            counts = list(pool.map(judge, tasks, seeds))
    rows = []
    for name in names:
        case = CASES[name]
        fields = ("kind", "name", "cause", "source", "wrong")
        row = {field: getattr(case, field) for field in fields}
        row["outcomes"] = {judge: {} for judge in ("jaxae", *JUDGES)}
        row["failures"] = {}
        for size in settings.sizes:
            outcomes, failures = counts[tasks.index((name, size))]
            for judge_name, counter in outcomes.items():
                row["outcomes"][judge_name][str(size)] = dict(counter)
            if failures:
                row["failures"][str(size)] = failures
        rows.append(row)
    return rows


def num_seeds_at(size, settings) -> int:
    is_large = size == settings.sizes[-1] and len(settings.sizes) > 1
    return settings.num_seeds_large if is_large else settings.num_seeds


def keep_compiled(cache) -> None:
    """Cache compiled programs on disk, to share them between seeds."""
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def judge(task, seeds) -> tuple[dict, dict]:
    """The outcomes of each judge, and jaxae's reports of other outcomes, by seed."""
    name, size = task
    case, failures = CASES[name], {}
    fn, grad = jax.jit(case.function.loss), case.grad
    problems = [case.function.inputs(np.random.default_rng(s), size) for s in seeds]
    outcomes = {"jaxae": Counter()}
    for seed, (params, *args) in zip(seeds, problems, strict=True):
        result, report = by_jaxae(case, fn, grad, params, args)
        outcomes["jaxae"][result] += 1
        if result != RIGHT[case.kind]:
            failures[seed] = f"{result}\n{report}"
            print(f"{name}, {size}, seed {seed}: {failures[seed]}", flush=True)
    for judge_name, by_peer in JUDGES.items():
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            outcomes[judge_name] = Counter(
                by_peer(case, fn, grad, jax.tree.map(jnp.asarray, params), args)
                for params, *args in problems
            )
    jax.clear_caches()  # traces hold chex's replacement of stop_gradient
    print(f"{name}, {size}: {json.dumps(outcomes)}", flush=True)
    return outcomes, failures


def with_torch(rows) -> list[dict]:
    """The rows with the outcomes of torch's gradcheck, if there are any."""
    if not TORCH.exists():
        return rows
    by_case = json.loads(TORCH.read_text())["outcomes"]
    for row in rows:
        for judge_name, outcomes in by_case.get(row["name"], {}).items():
            row["outcomes"][judge_name] = outcomes
    return rows


# ---- tables and plots ----------------------------------------------------------------


def pooled(row, judge_name) -> Counter:
    """Outcomes over all sizes."""
    return sum(map(Counter, row["outcomes"].get(judge_name, {}).values()), Counter())


def is_all_right(row, judge_name) -> bool:
    return set(pooled(row, judge_name)) == {RIGHT[row["kind"]]}


def is_as_claimed(rows) -> bool:
    """All bugs caught; all but few right gradients passed, the others undecided."""
    counts_of = {kind: Counter(totals(rows)[kind]["jaxae"]) for kind in RIGHT}
    for counts in counts_of.values():
        del counts["cases all right"], counts["cases"]
    right = counts_of["right"]
    return (
        set(counts_of["bug"]) == {RIGHT["bug"]}
        and set(right) <= {RIGHT["right"], UNDECIDED}
        and right[UNDECIDED] < 0.01 * right.total()
    )


def judges_of(rows) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["outcomes"]))


def totals(rows) -> dict:
    """Outcomes over all cases by kind and judge, and the number of cases all right."""
    by_kind = {}
    for kind in RIGHT:
        cases = [row for row in rows if row["kind"] == kind]
        for judge_name in judges_of(rows):
            counts = sum((pooled(row, judge_name) for row in cases), Counter())
            num_all_right = sum(is_all_right(row, judge_name) for row in cases)
            all_right = {"cases all right": num_all_right, "cases": len(cases)}
            by_kind.setdefault(kind, {})[judge_name] = dict(counts) | all_right
    return by_kind


def print_outcomes(rows) -> None:
    judges = judges_of(rows)
    for kind, word in RIGHT.items():
        table = []
        for row in rows:
            if row["kind"] == kind:
                cells = {name: cell(row, name, word) for name in judges}
                table.append({f"{kind}, {word} of": row["name"], **cells})
        counts = totals(rows)[kind]
        cells = {
            name: f"{counts[name]['cases all right']} of {len(table)}"
            for name in judges
        }
        table.append({f"{kind}, {word} of": f"cases always {word}", **cells})
        _study.print_table(table, dict.fromkeys(table[0], ""))


def cell(row, judge_name, word) -> str:
    counts = pooled(row, judge_name)
    if set(counts) <= {CANNOT}:
        return "cannot" if counts else "-"
    return f"{counts[word]}/{counts.total()}"


BAD_TO_GOOD = LinearSegmentedColormap.from_list("", ("#c8413b", "#f2d98d", "#2f7f6f"))
BAD_TO_GOOD = BAD_TO_GOOD.with_extremes(bad="0.85")


def draw(rows, path) -> None:
    """A row per case, a column per judge and size; the colour is the share right."""
    counts = [sum(row["kind"] == kind for row in rows) for kind in RIGHT]
    figure = Figure(figsize=(16, 1.9 + 0.2 * max(counts)), layout="constrained")
    panels = figure.subplots(1, 2)
    judges = judges_of(rows)
    columns = [
        (name, size)
        for name in judges
        for size in dict.fromkeys(
            size for row in rows for size in row["outcomes"].get(name, {})
        )
    ]
    for axes, (kind, word) in zip(panels, RIGHT.items(), strict=True):
        of_kind = [row for row in rows if row["kind"] == kind]
        shares = np.ma.masked_invalid(
            [[share(row, *column, word) for column in columns] for row in of_kind]
        )
        image = axes.pcolormesh(
            shares, vmin=0, vmax=1, cmap=BAD_TO_GOOD, edgecolors="w", linewidth=0.6
        )
        axes.set_ylim(max(counts), 0)
        axes.set_yticks(np.arange(len(of_kind)) + 0.5, [r["name"] for r in of_kind])
        names = [size.replace("x", "×") for _, size in columns]
        axes.set_xticks(np.arange(len(columns)) + 0.5, names, rotation=90)
        axes.tick_params(length=0, labelsize=8.5)
        axes.xaxis.tick_top()
        for side in ("top", "right", "left", "bottom"):
            axes.spines[side].set_visible(False)
        for name in judges:
            indices = [i for i, column in enumerate(columns) if column[0] == name]
            height = len(of_kind) / max(counts)
            axes.axvline(indices[0], color="k", linewidth=1.2, ymin=1 - height)
            label = name.replace("check_grads", "jax\ncheck_grads")
            label = label.replace("by leaf", "check_grads\nby leaf").replace(", ", "\n")
            axes.annotate(
                label,
                (np.mean(indices) + 0.5, 1),
                (0, 46),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=9,
            )
        title = f"{len(of_kind)} {'wrong' if kind == 'bug' else 'right'} gradients"
        axes.set_title(f"{title}: share {word}", pad=84, loc="left", fontsize=12)
    bar_axes = panels[1].inset_axes((0.2, 0.3, 0.6, 0.015))  # below the shorter panel
    bar = figure.colorbar(image, cax=bar_axes, orientation="horizontal")
    bar.set_label("share of seeds judged right (grey: cannot be run)")
    _study.save(figure, path)


def share(row, judge_name, size, word) -> float:
    counts = Counter(row["outcomes"].get(judge_name, {}).get(size, {}))
    return counts[word] / counts.total() if set(counts) - {CANNOT} else np.nan


if __name__ == "__main__":
    sys.exit(main())
