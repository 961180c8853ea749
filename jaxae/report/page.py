"""The page: sections of blocks as JSON, in a template with its style and script.

The JSON is data: the script writes every text of it as text, never as HTML. A policy in
the page allows no script but its own, and no connection.
"""

import base64
import hashlib
import html
import importlib.resources
import json
import math
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxae._checks import ArgumentError
from jaxae._files import expanded, write_atomically

Block = dict[str, Any]
_DIGITS = 4  # significant ones of numbers in the page
_MAX_POINTS = 1000  # of a line


def section(title: str, *blocks: Block | None, text: str = "") -> Block | None:
    """A section with a heading; None if it has no block."""
    present = [block for block in blocks if block is not None]
    return {"title": title, "text": text, "blocks": present} if present else None


def as_file(path: Any) -> Path:
    """The path of a page, which must be a file in a folder that exists."""
    path = expanded(path)
    if path.is_dir() or not path.name:
        raise ArgumentError("path", "must be a file", f"the folder {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}.")
    return path


def write(path: Path, title: str, lead: str, sections: Sequence[Block | None]) -> Path:
    """Write a page of these sections, atomically; return its path."""
    present = [section for section in sections if section is not None]
    page = {"title": title, "lead": lead, "sections": present}
    # "</script>" inside the element would end it.
    data = json.dumps(_clean(page), allow_nan=False, separators=(",", ":"))
    data = data.replace("<", "\\u003c")
    script = _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    content = string.Template(_resource("page.html")).substitute(
        title=html.escape(title),
        style=_resource("page.css"),
        script=script,
        script_hash=f"sha256-{digest}",
        data=data,
    )
    write_atomically(path, content.encode(errors="replace"))
    return path


def _resource(name: str) -> str:
    folder = importlib.resources.files("jaxae.report")
    return folder.joinpath(name).read_text(encoding="utf-8")


def _clean(value: Any) -> Any:
    """JSON values: floats to a few digits, null for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(name): _clean(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value


# ---- blocks --------------------------------------------------------------------------


def facts(items: Mapping[str, Any]) -> Block | None:
    """Names with values, in words."""
    pairs = [[name, str(value)] for name, value in items.items()]
    return {"type": "facts", "items": pairs} if pairs else None


def code(content: str | None) -> Block | None:
    """A command."""
    return None if content is None else {"type": "code", "text": content}


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], **options: Any
) -> Block | None:
    """A table that can be sorted; with `search=` it can be searched."""
    if not rows:
        return None
    return {"type": "table", "columns": columns, "rows": rows, **options}


def lines(
    title: str, named: Mapping[str, Any], *, dashes: Sequence[str] = (), **options: Any
) -> Block | None:
    """Lines by epoch, of the values by name."""
    if not named:
        return None
    num_epochs = max(len(values) for values in named.values())
    stride = math.ceil(num_epochs / _MAX_POINTS)
    epochs = np.unique([*range(0, num_epochs, stride), num_epochs - 1])
    drawn = [
        {
            "label": name,
            "x": epochs[epochs < len(values)] + 1,
            "y": np.asarray(values)[epochs[epochs < len(values)]],
            "dash": dash,
        }
        for (name, values), dash in zip(
            named.items(), dashes or [""] * len(named), strict=True
        )
    ]
    return {"type": "lines", "title": title, "x": "epoch", "lines": drawn, **options}


def bars(title: str, x: str, y: str, counts: Any, edges: Any) -> Block:
    """A histogram."""
    return {
        "type": "bars",
        "title": title,
        "x": x,
        "y": y,
        "counts": counts,
        "edges": edges,
    }
