"""Growth: time and peak memory against each size, and the fitted exponents.

One size varies, the others are fixed. Timed is a call of `jaxae.train`, or of
`jaxae.sweep`, with data from NumPy, after a first call that compiled it. Each point has
processes of its own. Peak memory is the largest resident memory of the process, as the
operating system counts it. It includes the interpreter, the libraries and compilation.

- `jaxae`: the data are an array in memory.
- `jaxae, blocks`: the data exceed `TrainConfig.memory_budget`, so they are read by
  blocks.
- `PyTorch`: a loop of steps with the fused Adam, from the same data and parameters. For
  lanes, one model after another.

The suite checks that the losses agree to one percent; the orders of rows differ.

The exponent p of time ~ size^p is the slope of a straight line through the logarithms
of the medians, at the largest four sizes, or at all where there are only three. Its
standard error is that of the line. Fixed costs of a step make an exponent smaller than
that of the arithmetic. Against B, the number of rows is fixed, so the arithmetic is
too.

Memory is fitted to a line at all sizes: peak = fixed + copies x bytes, where the bytes
are those of one copy, in float32, of what grows. With lanes, each lane also has a batch
of its own, which is larger than its parameters; the copies count both.

Two things may surprise a user. `jaxae.train` holds the data several times: the array of
the caller, the one on the device, and for a moment the temporaries of the checks before
training. And a block has 64 MiB whatever the `memory_budget`, with several blocks in
memory at once. The largest data here are two blocks, too few to save memory.

Not measured: sparse models, sources of data other than arrays, several devices.
"""

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import page
from benchmarks.one_model.work import Work
from benchmarks.results import compared, versions_of
from benchmarks.turns import Program, spread, take_turns

REFERENCE = "jaxae"
LOSS_TOLERANCE = 0.01  # relative; the orders of rows differ
NUM_ASYMPTOTIC = 4  # sizes of the fit of an exponent
MAX_TORCH_LANES = 64  # more take long one after another
FLOAT = 4  # bytes


class Axis(NamedTuple):
    """A size that varies.

    Attributes:
      sizes: its values.
      work: `size -> Work`.
      grows: what grows, in words.
      num_bytes: `(size, work) -> bytes` of one copy of what grows.
      expected: the exponent of time that the arithmetic has.
    """

    sizes: tuple[int, ...]
    work: Callable[[int], Work]
    grows: str
    num_bytes: Callable[[int, Work], int]
    expected: float = 1.0


def num_params(work: Work) -> int:
    """Weights and biases of the tied model."""
    D, H = work.input_dim, work.latent_dim
    return D * H + D + H


def sizes(first: int, last: int, factor: int = 2) -> tuple[int, ...]:
    """A geometric sequence."""
    count = round(math.log(last / first, factor)) + 1
    return tuple(first * factor**i for i in range(count))


AXES = {
    "D": Axis(
        sizes(256, 8192),
        lambda D: Work(D, 256, num_rows=2048, num_epochs=2),
        "data and parameters",
        lambda D, work: FLOAT * (num_params(work) + work.num_rows * D),
    ),
    "H": Axis(
        sizes(256, 8192),
        lambda H: Work(512, H, num_rows=2048, num_epochs=2),
        "parameters",
        lambda H, work: FLOAT * num_params(work),
    ),
    "B": Axis(
        sizes(32, 8192, 4),
        lambda B: Work(256, 256, batch_size=B, num_rows=16384, num_epochs=1),
        "a batch: inputs, latents and reconstructions",
        lambda B, work: FLOAT * B * (2 * work.input_dim + work.latent_dim),
        expected=0.0,
    ),
    "rows": Axis(
        sizes(8192, 131072),
        lambda N: Work(256, 64, batch_size=256, num_rows=N, num_epochs=1),
        "data",
        lambda N, work: FLOAT * N * work.input_dim,
    ),
    "lanes": Axis(
        sizes(4, 1024, 4),
        lambda L: Work(64, 32, num_rows=2048, num_epochs=1),
        "parameters",
        lambda L, work: FLOAT * L * num_params(work),
    ),
}
QUICK = {
    "D": AXES["D"]._replace(
        sizes=(4,), work=lambda D: Work(D, 4, 8, num_rows=16, num_epochs=1)
    ),
    "lanes": AXES["lanes"]._replace(
        sizes=(2,), work=lambda L: Work(4, 2, 8, num_rows=16, num_epochs=1)
    ),
}


def programs(axis: str, size: int, work: Work) -> dict[str, Program]:
    """The contestants at one point."""
    options = work._asdict()
    if axis == "lanes":
        options |= {"num_lanes": size}
        entries = {REFERENCE: Program("growth.with_jaxae:sweep", options)}
    else:
        entries = {REFERENCE: Program("growth.with_jaxae:train", options)}
    if axis == "rows":
        by_blocks = {"memory_budget": 2**20} | options
        entries["jaxae, blocks"] = Program("growth.with_jaxae:train", by_blocks)
    if axis != "lanes" or size <= MAX_TORCH_LANES:
        entries["PyTorch"] = Program("growth.with_torch:train", options, is_peer=True)
    return entries


def run(num_rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Compare all contestants at every point of every axis."""
    axes = QUICK if quick else AXES
    return [
        compare(name, axis, size, num_rounds)
        for name, axis in axes.items()
        for size in axis.sizes
    ]


def compare(name: str, axis: Axis, size: int, num_rounds: int) -> dict[str, Any]:
    """The times and memory at one point, and a check of the losses."""
    work = axis.work(size)
    times = take_turns(programs(name, size, work), num_rounds)
    contestants = compared(times, REFERENCE)
    for entry in contestants.values():
        ratio = entry["result"] / contestants[REFERENCE]["result"]
        if not abs(ratio - 1) < LOSS_TOLERANCE:
            raise AssertionError(f"the losses at {name} = {size}: {contestants}.")
    print(f"{name} = {size}", flush=True)
    return {
        "case": {"axis": name, "size": size} | work._asdict(),
        "bytes of one copy": axis.num_bytes(size, work),
        "contestants": contestants,
        "versions": versions_of(times),
    }


class Line(NamedTuple):
    """A straight line by least squares, and the standard error of its slope."""

    slope: float
    error: float
    intercept: float


def fit(x: list[float], y: list[float]) -> Line:
    """Fit y = intercept + slope x; the error is nan for two points."""
    slope, intercept = statistics.linear_regression(x, y)
    residuals = [b - intercept - slope * a for a, b in zip(x, y, strict=True)]
    num_free = len(x) - 2
    variance = sum(r * r for r in residuals) / num_free if num_free else math.nan
    mean = statistics.fmean(x)
    return Line(slope, (variance / sum((a - mean) ** 2 for a in x)) ** 0.5, intercept)


class Growth(NamedTuple):
    """The points of one contestant on one axis.

    Attributes:
      sizes, seconds, peak_mib: of each point; seconds are medians.
      quartiles: of the seconds, `[points, 2]`.
      exponent: of time, at the largest sizes.
      memory: peak MiB against MiB of one copy of what grows.
    """

    sizes: list[int]
    seconds: np.ndarray
    quartiles: np.ndarray
    peak_mib: list[float]
    exponent: Line
    memory: Line


def growth(cases: list[dict[str, Any]], contestant: str) -> Growth:
    """What the cases of one axis say of a contestant."""
    cases = [case for case in cases if contestant in case["contestants"]]
    entries = [case["contestants"][contestant] for case in cases]
    sizes = [case["case"]["size"] for case in cases]
    times = np.array([spread(entry["seconds"]) for entry in entries])
    seconds, quartiles = times[:, 0], times[:, 1:]
    peaks = [entry["peak_mib"] for entry in entries]
    logs = [
        [math.log(v) for v in values[-NUM_ASYMPTOTIC:]] for values in (sizes, seconds)
    ]
    copies = [case["bytes of one copy"] / 2**20 for case in cases]
    return Growth(sizes, seconds, quartiles, peaks, fit(*logs), fit(copies, peaks))


def by_axis(result: dict[str, Any]) -> dict[str, dict[str, Growth]]:
    """The growth of each contestant on each axis."""
    cases = {
        axis: [case for case in result["cases"] if case["case"]["axis"] == axis]
        for axis in AXES
    }
    names = dict.fromkeys(
        name for case in result["cases"] for name in case["contestants"]
    )
    return {
        axis: {
            name: growth(points, name)
            for name in names
            if any(name in point["contestants"] for point in points)
        }
        for axis, points in cases.items()
    }


def markdown(result: dict[str, Any]) -> str:
    """A table of the fits, and one of the ratios at the ends of each axis."""
    fits, ratios, unsteady = {}, {}, []
    for name, contestants in by_axis(result).items():
        axis = AXES[name]
        points = [case for case in result["cases"] if case["case"]["axis"] == name]
        for contestant, grown in contestants.items():
            fits[f"{name}, {contestant}"] = (
                f"{grown.exponent.slope:.2f} ± {grown.exponent.error:.2f}",
                f"{axis.expected:g}",
                f"{grown.memory.intercept:.0f} MiB",
                f"{grown.memory.slope:.1f} ± {grown.memory.error:.1f}",
                axis.grows,
            )
            if contestant != REFERENCE:
                ratios[f"{name}, {contestant}"] = ratios_at_ends(points, contestant)
                unsteady += unsteady_points(points, contestant)
    header = ("", "exponent of time", "of the arithmetic", "fixed", "copies", "of what")
    return "\n\n".join(
        (
            page.markdown_table(header, fits),
            "The time of the others over that of jaxae, at the ends of each axis:",
            page.markdown_table(("", "smallest", "ratio", "largest", "ratio"), ratios),
            f"Unsteady points: {', '.join(unsteady) or 'none'}. They are in the figure "
            "and in the fits.",
        )
    )


def ratios_at_ends(cases: list[dict[str, Any]], name: str) -> tuple[str, ...]:
    """The smallest and the largest size of a contestant, with its ratios there."""
    cases = [case for case in cases if name in case["contestants"]]
    cells = []
    for case in (cases[0], cases[-1]):
        values = case["contestants"][name][f"over {REFERENCE}"]
        cells += [str(case["case"]["size"]), page.ratio(values)]
    return tuple(cells)


def unsteady_points(cases: list[dict[str, Any]], name: str) -> list[str]:
    """The points where the ratios of a contestant differ too much between rounds."""
    return [
        f"{case['case']['axis']} = {case['case']['size']} ({name})"
        for case in cases
        if name in case["contestants"]
        and page.is_unsteady(case["contestants"][name][f"over {REFERENCE}"])
    ]


def draw(result: dict[str, Any], path: Path) -> None:
    """Medians and quartiles of time, and peak memory, with logarithmic axes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    grown = by_axis(result)
    figure = Figure(figsize=(15, 6), layout="constrained")
    rows = figure.subplots(2, len(grown), sharey="row", sharex="col")
    for j, (axis, contestants) in enumerate(grown.items()):
        for name, points in contestants.items():
            errors = abs(points.quartiles - points.seconds[:, None]).T
            rows[0, j].errorbar(
                points.sizes, points.seconds, errors, fmt="o-", markersize=4, label=name
            )
            rows[1, j].plot(points.sizes, points.peak_mib, "o-", markersize=4)
        rows[0, j].set_title(axis)
        rows[1, j].set_xscale("log", base=2)
        rows[1, j].set_xlabel(axis)
    rows[0, 0].set_yscale("log")
    rows[0, 0].set_ylabel("time, s")
    rows[1, 0].set_yscale("log", base=2)
    rows[1, 0].yaxis.set_major_formatter("{x:g}")
    rows[1, 0].yaxis.set_minor_formatter("{x:.0f}")
    rows[1, 0].yaxis.set_minor_locator(LogLocator(base=2, subs=(1.25, 1.5, 1.75)))
    rows[1, 0].set_ylabel("peak memory, MiB")
    rows[0, list(grown).index("rows")].legend()
    for plot in rows.ravel():
        plot.grid(alpha=0.3)
    figure.savefig(path, dpi=80)
