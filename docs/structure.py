"""Draw the modules of two checkouts: python docs/structure.py OUT.svg BEFORE AFTER.

A box is a module or package of jaxae. A line leads down from it to each module that it
imports, unless it also imports that module through another one.
"""

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

OMITTED = ("__init__", "__main__", "_version")


def imports_of(path: Path) -> Iterator[str]:
    """The modules and packages of jaxae that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "jaxae":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.startswith("jaxae."):
                yield node.module.split(".")[1]


def modules_of(package: Path) -> dict[str, tuple[list[Path], set[str]]]:
    """The files and the imports of each module or package."""
    files: dict[str, list[Path]] = {}
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).parts[0].removesuffix(".py")
        if name not in OMITTED:
            files.setdefault(name, []).append(path)
    return {
        name: (
            paths,
            {i for p in paths for i in imports_of(p)} & (files.keys() - {name}),
        )
        for name, paths in files.items()
    }


def size_of(paths: list[Path]) -> str:
    """Such as "9 files, 2,267 lines"."""
    lines = f"{sum(len(path.read_text().splitlines()) for path in paths):,} lines"
    return f"{len(paths)} files, {lines}" if len(paths) > 1 else lines


def draw(axes, title: str, package: Path) -> None:
    """Draw one checkout; the height of a box is its longest chain of imports."""
    modules = modules_of(package)

    @functools.cache
    def reachable(name):
        imports = modules[name][1]
        return imports.union(*map(reachable, imports))

    @functools.cache
    def height(name):
        return 1 + max(map(height, modules[name][1]), default=-1)

    rows: dict[int, list[str]] = {}
    for name in modules:
        rows.setdefault(height(name), []).append(name)
    positions = {
        name: ((i + (0.38 if y % 2 else 0.62)) / len(row), y)  # shows the lines between
        for y, row in rows.items()
        for i, name in enumerate(row)
    }
    for name, (paths, imports) in modules.items():
        for other in imports.difference(*map(reachable, imports)):
            line = zip(positions[name], positions[other], strict=True)
            axes.plot(*line, color="0.7", linewidth=0.8)
        axes.text(
            *positions[name],
            f"{name}\n{size_of(paths)}",
            ha="center",
            va="center",
            fontsize=7,
            bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": "0.3"},
        )
    axes.set_title(f"{title}: {size_of(list(package.rglob('*.py')))}", fontsize=10)
    axes.set(xlim=(0, 1), ylim=(-0.6, len(rows) - 0.4))
    axes.axis("off")


def main() -> None:
    """Draw the two checkouts side by side."""
    out, before, after = sys.argv[1:]
    # Equal checkouts give an equal file.
    plt.rcParams["svg.hashsalt"] = "jaxae"
    figure, axes = plt.subplots(1, 2, figsize=(14, 8), layout="constrained")
    draw(axes[0], "Before", Path(before) / "jaxae")
    draw(axes[1], "After", Path(after) / "jaxae")
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main()
