"""Helpers of the studies: options, tables, result.json and plots."""

import argparse
import io
import json
import os
import platform
from pathlib import Path

import jax
import jaxlib
import numpy as np
import optax
import sklearn

import jaxae


def parse(
    argv, name: str, doc: str, options: dict[str, dict] | None = None, **flags: str
) -> argparse.Namespace:
    """Parse --quick, --out, the given flags and options, and create the out folder.

    `options` are the arguments of `add_argument` by name.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    for flag, meaning in ({"quick": "under a minute"} | flags).items():
        parser.add_argument(f"--{flag}", action="store_true", help=meaning)
    for option, arguments in (options or {}).items():
        parser.add_argument(f"--{option}", **arguments)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs") / name,
        help="folder for result.json and pictures (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out must be a folder that can be written: {error}.")
    return args


def finish(args, doc: str, settings, dataset, passed: bool, results: dict) -> int:
    """Write result.json, print the verdict, and return the exit status."""
    modules = (jaxae, jax, jaxlib, optax, np, sklearn)
    result = {
        "claim": _paragraph(doc, "Claim"),
        "source": _paragraph(doc, "Source"),
        "pass": passed,
        "quick": args.quick,
        "settings": settings._asdict(),
        "seeds": list(range(settings.num_seeds)),
        "data": {"name": dataset.name, "sha256": dataset.sha256},
        "device": jax.devices()[0].device_kind,
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in modules},
        },
        **results,
    }
    path = args.out / "result.json"
    write_json(path, result)
    print(f"{'PASS' if passed else 'FAIL'}: {path}")
    return 0 if passed else 1


def write_json(path: Path, value) -> None:
    """Write a value as JSON, atomically."""
    text = json.dumps(_to_json(value), indent=2, allow_nan=False, ensure_ascii=False)
    write(path, f"{text}\n".encode())


def print_table(rows: list[dict], formats: dict[str, str]) -> None:
    """Print the columns named in `formats`, each in its format."""
    table = [list(formats)]
    for row in rows:
        table.append([format(row[name], spec) for name, spec in formats.items()])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print()
    for first, *others in table:
        cells = [cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]))
    print(flush=True)


def save(figure, path: Path) -> None:
    """Write a figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    write(path, file.getvalue())


def _paragraph(doc: str, name: str) -> str:
    """The paragraph of a docstring that begins with "name: ", on one line."""
    _, paragraph = doc.split(f"\n{name}: ")
    return " ".join(paragraph.split("\n\n")[0].split())


def _to_json(value):
    """The value with lists for arrays and None for numbers that are not finite."""
    if isinstance(value, dict):
        return {name: _to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_to_json(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


def write(path: Path, content: bytes) -> None:
    """Write the file atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
