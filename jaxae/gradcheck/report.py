"""The result of a check, as records, as a table and as JSON."""

import json
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jaxae.gradcheck.rounding import canonicalize


class Worst(NamedTuple):
    """The entry that deviates most."""

    index: tuple[int, ...]  # type: ignore[assignment]  # hides tuple.index
    claimed: float | complex
    true: float | complex


@dataclass(frozen=True)
class Leaf:
    """The verdict on one leaf of the params, with its measurements."""

    shape: tuple[int, ...]
    dtype: str  # of the parameter, in the caller's precision
    verdict: str = "undecided"  # or "correct", "wrong", "kink", "surrogate"
    ok: bool = False
    error: float = math.nan  # relative to the leaf; absolute if its gradient is zero
    resolution: float = math.inf  # the smallest error that the check can detect
    slope: float | None = None  # Taylor remainder's order: 2 if right, None if noise
    worst: Worst | None = None
    hint: str = ""


@dataclass(frozen=True, repr=False)
class Report:
    """The verdicts on all leaves, by path; `print` shows them as a table."""

    leaves: dict[str, Leaf]
    ignored: tuple[str, ...] = ()  # paths of integer, bool, None and other leaves
    notes: tuple[str, ...] = ()
    cost: dict[str, int] = field(default_factory=dict)  # evaluations of each function

    @property
    def ok(self) -> bool:
        """Whether every leaf is ok."""
        return all(leaf.ok for leaf in self.leaves.values())

    def assert_ok(self) -> None:
        """Raise an AssertionError with the table, unless `ok`."""
        if not self.ok:
            raise AssertionError(str(self))

    def to_json(self) -> str:
        """The report as JSON text.

        Numbers that are not finite become strings, complex ones pairs.
        """
        leaves = {
            path: vars(leaf) | {"worst": leaf.worst and leaf.worst._asdict()}
            for path, leaf in self.leaves.items()
        }
        return as_json({"ok": self.ok} | vars(self) | {"leaves": leaves})

    def __str__(self) -> str:
        """A table, one row a leaf."""
        failed = [path or "params" for path, leaf in self.leaves.items() if not leaf.ok]
        header = "leaf shape dtype verdict error resolution slope worst hint".split()
        rows = [header, *(_row(path, leaf) for path, leaf in self.leaves.items())]
        summary = f"not ok: {', '.join(failed)}" if failed else "ok"
        lines = [f"gradcheck: {summary}", *align_columns(rows)]
        if self.ignored:
            lines.append(f"ignored, not real numbers: {', '.join(self.ignored)}")
        lines.extend(self.notes)
        if self.cost:
            counts = (f"{name} {count}" for name, count in self.cost.items())
            lines.append(f"evaluations: {', '.join(counts)}")
        return "\n".join(lines)

    __repr__ = __str__


def as_json(tree: Any) -> str:
    """JSON text; numbers that are not finite become strings, complex ones pairs."""
    text = json.dumps(tree, default=lambda z: [z.real, z.imag])
    finite = json.loads(text, parse_constant=lambda name: str(float(name)))
    return json.dumps(finite, allow_nan=False)


def align_columns(rows: list[list[str]]) -> list[str]:
    """One line per row, with the cells padded to the width of their column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def describe_leaf(leaf: Any) -> Leaf:
    """An undecided `Leaf` with the shape and dtype of an array or number."""
    array = canonicalize(
        np.asarray(leaf) if isinstance(leaf, float | complex) else leaf
    )
    return Leaf(np.shape(array), str(array.dtype))


def _row(path: str, leaf: Leaf) -> list[str]:
    worst = "-"
    if leaf.worst and not leaf.ok:
        index = ",".join(map(str, leaf.worst.index))
        worst = f"[{index}] {leaf.worst.claimed:.4g}, true {leaf.worst.true:.4g}"
    return [
        path or "params",
        "x".join(map(str, leaf.shape)) or "scalar",
        leaf.dtype,
        leaf.verdict if leaf.ok else leaf.verdict.upper(),
        f"{leaf.error:.1e}",
        f"{leaf.resolution:.1e}",
        "-" if leaf.slope is None else f"{leaf.slope:.1f}",
        worst,
        leaf.hint,
    ]
