"""What a check returns, and how it prints."""

import json
import math
from dataclasses import dataclass
from typing import NamedTuple


class Worst(NamedTuple):
    """The entry that deviates most."""

    index: tuple[int, ...]  # type: ignore[assignment]  # hides tuple.index
    claimed: float
    true: float


@dataclass(frozen=True)
class Leaf:
    """What was found about one leaf of the params."""

    shape: tuple[int, ...]
    dtype: str  # of the parameter, in the caller's precision
    verdict: str = "undecided"  # or "correct", "wrong", "kink", "surrogate"
    ok: bool = False
    error: float = math.nan  # relative to the leaf; absolute if its gradient is zero
    resolution: float = math.inf  # the smallest error that could have been seen
    slope: float | None = None  # of the Taylor remainder: 2 if right, None in the noise
    worst: Worst | None = None
    hint: str = ""


@dataclass(frozen=True, repr=False)
class Report:
    """The verdict on every leaf, by its path; `print` shows it as a table."""

    leaves: dict[str, Leaf]
    ignored: tuple[str, ...] = ()  # paths of integer, bool, None and other leaves
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every leaf is."""
        return all(leaf.ok for leaf in self.leaves.values())

    def assert_ok(self) -> None:
        """Raise an AssertionError that shows the table unless `ok`."""
        if not self.ok:
            raise AssertionError(str(self))

    def to_json(self) -> str:
        """The report as JSON text; numbers that are not finite become strings."""
        leaves = {
            path: vars(leaf) | {"worst": leaf.worst and leaf.worst._asdict()}
            for path, leaf in self.leaves.items()
        }
        text = json.dumps({"ok": self.ok} | vars(self) | {"leaves": leaves})
        finite = json.loads(text, parse_constant=lambda name: str(float(name)))
        return json.dumps(finite, allow_nan=False)

    def __str__(self) -> str:
        """A table, one row a leaf."""
        bad = [path or "params" for path, leaf in self.leaves.items() if not leaf.ok]
        title = "leaf shape dtype verdict error resolution slope worst hint".split()
        rows = [title, *(_row(path, leaf) for path, leaf in self.leaves.items())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines.insert(0, f"gradcheck: {'not ok: ' + ', '.join(bad) if bad else 'ok'}")
        if self.ignored:
            lines.append(f"ignored, not real numbers: {', '.join(self.ignored)}")
        return "\n".join([*lines, *self.notes])

    __repr__ = __str__


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
