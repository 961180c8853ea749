"""Write docs/benchmarks.md, and its figures, from the committed results.

    python -m benchmarks.page

Every number of the page comes from a file in benchmarks/results. The text of a suite is
the docstring of its `suite.py`. A suite may have two functions of its own:
`markdown(result)`, in place of the tables, and `draw(result, path)`, a figure.
"""

import importlib
import statistics
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from benchmarks import results
from benchmarks.__main__ import ACCELERATOR, SUITES
from benchmarks.turns import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
FIGURES = ROOT / "docs" / "benchmarks"
MISSING = "Not yet measured."
UNSTEADY = (
    1.5  # the upper quartile over the lower one, from which no conclusion is drawn
)

INTRODUCTION = f"""\
<!-- Written by `python -m benchmarks.page`; edit the docstrings of the suites. -->

# Benchmarks

These are comparisons of jaxae with other libraries, on the same work and one machine.

## How to read the tables

Each contestant is a process that lives as long as the comparison. In every round each
contestant runs once, one after the other, in an order that rotates. The first round is
not counted. *Time* is the median over rounds. *Ratio* is the time over that of jaxae in
the same round: the median of the rounds, and in brackets their quartiles. A ratio of 2
means that jaxae takes half the time. An asterisk marks an unsteady ratio, whose upper
quartile is more than {UNSTEADY} times the lower one; draw no conclusion from it.
*Faster* names the faster one of the two. It names neither if the ratio is unsteady, or
if the quartiles lie on both sides of 1.

## What is not claimed

- The ratios hold for this machine and these versions. Other processors, numbers of
  cores and sizes give other ratios. The times of a virtual machine also vary between
  days; this is why only ratios of one round are compared.
- The quartiles describe the rounds of one run. They are not confidence intervals for
  another machine.
- The authors of jaxae wrote the programs of the other libraries. They are in
  `benchmarks/`, a folder for each suite; a faster way to write one is welcome.
- Each suite says what it does not measure.

## How to repeat

```bash
make bench                                  # every suite, then this page
python -m benchmarks one_model --rounds 7   # one suite
python -m benchmarks --quick                # small sizes: does everything run?
python -m benchmarks.page                   # this page from the results
```

`make bench-env` installs the other libraries in an environment of their own.
"""


def page() -> str:
    """The whole page, in Markdown."""
    sections = [section(name) for name in (*SUITES, ACCELERATOR)]
    return "\n".join([INTRODUCTION, *sections])


def section(name: str) -> str:
    """The text of a suite, its results, and where they come from."""
    suite = suite_of(name)
    title, _, text = (suite.__doc__ or "").partition("\n")
    heading, _, subject = title.rstrip(".").partition(": ")
    first = subject[:1].upper() + subject[1:] + "."
    result = results.read(name, getattr(suite, "DEVICE", "cpu"))
    blocks = [f"## {heading}", first, text.strip()]
    blocks += [MISSING] if result is None else measured(suite, result)
    return "\n\n".join(block for block in blocks if block) + "\n"


def suite_of(name: str) -> ModuleType:
    """The module of a suite."""
    return importlib.import_module(f"benchmarks.{name}.suite")


def measured(suite: ModuleType, result: dict[str, Any]) -> Iterator[str]:
    """The results of a suite, and where they come from."""
    name = result["suite"]
    if hasattr(suite, "draw"):
        yield f"![{name}]({FIGURES.name}/{name}.png)"
    yield suite.markdown(result) if hasattr(suite, "markdown") else tables(result)
    yield provenance(result)


def tables(result: dict[str, Any]) -> str:
    """A table for each case, under the settings in which the cases differ."""
    cases = result["cases"]
    common, labels = settings([case["case"] for case in cases])
    blocks = [f"In all cases: {common}."] if common else []
    for label, case in zip(labels, cases, strict=True):
        blocks += [f"**{label}**"] if label else []
        blocks.append(table(case["contestants"]))
    return "\n\n".join(blocks)


def settings(cases: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """The settings that all cases share, and for each case the others."""
    shared = {
        name
        for name, value in cases[0].items()
        if len(cases) > 1 and all(case.get(name) == value for case in cases)
    }

    def label(case, names):
        values = {name: v for name, v in case.items() if name in names}
        part = [values.pop("part")] if "part" in values else []
        return ", ".join([*part, *(f"{name} {v}" for name, v in values.items())])

    others = [label(case, case.keys() - shared) for case in cases]
    return label(cases[0], shared), others


def table(contestants: dict[str, Any]) -> str:
    """One row a contestant, in the order of their ratios."""
    reference = reference_of(contestants)
    rows = {
        name: (
            time(statistics.median(entry["seconds"])),
            ratio(entry[f"over {reference}"]) if name != reference else "1",
            faster(name, reference, entry[f"over {reference}"]),
            f"{entry['peak_mib']} MiB",
        )
        for name, entry in sorted(
            contestants.items(), key=lambda pair: pair[1][f"over {reference}"][0]
        )
    }
    return markdown_table(("", "time", "ratio", "faster", "peak memory"), rows)


def markdown_table(header: tuple[str, ...], rows: dict[str, tuple[str, ...]]) -> str:
    """A table in Markdown; the first column has the names of the rows."""
    lines = [header, ("---", *["---:"] * (len(header) - 1))]
    lines += [(name, *cells) for name, cells in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def reference_of(contestants: dict[str, Any]) -> str:
    """The contestant to which the ratios refer."""
    [key] = {key for entry in contestants.values() for key in entry if "over " in key}
    return key.removeprefix("over ")


def time(seconds: float) -> str:
    """A time with three digits."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def ratio(values: list[float]) -> str:
    """A median and its quartiles, marked if unsteady."""
    median, low, high = values
    mark = " \\*" if is_unsteady(values) else ""
    return f"{median:.2f} [{low:.2f}, {high:.2f}]{mark}"


def rate(entry: dict[str, Any]) -> float:
    """The amount of work a second, of a contestant that has an amount."""
    return entry["amount"] / statistics.median(entry["seconds"])


def is_unsteady(values: list[float]) -> bool:
    """Whether the quartiles of a ratio are too far apart to compare."""
    _, low, high = values
    return high > UNSTEADY * low


def faster(name: str, reference: str, values: list[float]) -> str:
    """Which of the two is faster, if the ratio is steady and on one side of 1."""
    _, low, high = values
    if name == reference:
        return ""
    if is_unsteady(values):
        return "neither"
    return reference if low > 1 else name if high < 1 else "neither"


def provenance(result: dict[str, Any]) -> str:
    """When, where, with what and by which command the results were measured."""
    about = result["machine"]
    return (
        f"Measured on {result['date']} by `{result['command']}`, on "
        f"{about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB, "
        f"{about['system']}; {versions(result)}."
    )


def versions(result: dict[str, Any]) -> str:
    """All versions that were used, by library."""
    used = {
        (name, version)
        for case in result["cases"]
        for contestant in case["versions"].values()
        for name, version in contestant.items()
    }
    return ", ".join(f"{name} {version}" for name, version in sorted(used))


def main() -> None:
    """Write the page and the figures."""
    for name in SUITES:
        suite, result = suite_of(name), results.read(name)
        if result is not None and hasattr(suite, "draw"):
            FIGURES.mkdir(exist_ok=True)
            suite.draw(result, FIGURES / f"{name}.png")
    PAGE.write_text(page())
    print(PAGE)


if __name__ == "__main__":
    main()
