"""A run folder: which files it has, how they are written."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxae.autoencoder.files import CONFIG_FILE, PARAMS_FILE

METRICS_FILE = "metrics.jsonl"
TIMING_FILE = "timing.jsonl"  # everything that a clock says, apart
RESULTS_FILE = "results.json"
FILTERS, DECODER_FILTERS = "filters.png", "decoder_filters.png"
RECONSTRUCTIONS, CURVES = "reconstructions.png", "curves.png"
PICTURES = (FILTERS, DECODER_FILTERS, RECONSTRUCTIONS, CURVES)
RUN_FILES = (
    *(CONFIG_FILE, PARAMS_FILE, METRICS_FILE, TIMING_FILE, RESULTS_FILE),
    *PICTURES,
)


def check_out(out: Path, overwrite: bool) -> Path:
    """`out`, if a run may be written there.

    Raises:
      ValueError: if it is a file, or holds a run and may not be overwritten.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, but {out} is a file.")
    if not overwrite and any((out / name).exists() for name in RUN_FILES):
        raise ValueError(
            f"--out {out} holds a run already; choose another folder, or replace it "
            "with --overwrite."
        )
    return out


def clear(out: Path) -> None:
    """Make the folder, without the files of a run before."""
    out.mkdir(parents=True, exist_ok=True)
    for name in RUN_FILES:
        (out / name).unlink(missing_ok=True)


def remove(out: Path) -> None:
    """Remove a run's files, and the folder if nothing else is in it."""
    clear(out)
    with contextlib.suppress(OSError):
        out.rmdir()


def append(path: Path, row: dict[str, Any]) -> None:
    """One more line of JSON."""
    with path.open("a") as file:
        file.write(to_json(row) + "\n")


def to_json(value: Any, **options) -> str:
    """JSON in which what is not finite is null: NaN is no JSON."""

    def clean(value):
        if isinstance(value, dict):
            return {name: clean(item) for name, item in value.items()}
        if isinstance(value, float) and not np.isfinite(value):
            return None
        return value

    return json.dumps(clean(value), allow_nan=False, **options)
