"""A run folder: which files it has, how they are written."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxae
from jaxae.autoencoder.files import CONFIG_FILE, PARAMS_FILE, write_atomically

METRICS_FILE = "metrics.jsonl"
TIMING_FILE = "timing.jsonl"  # everything that a clock says, apart
RESULTS_FILE = "results.json"
REPORT_FILE = "report.json"  # of gradcheck
FILTERS, DECODER_FILTERS = "filters.png", "decoder_filters.png"
RECONSTRUCTIONS, CURVES = "reconstructions.png", "curves.png"
PICTURES = (FILTERS, DECODER_FILTERS, RECONSTRUCTIONS, CURVES)
RUN_FILES = (
    *(CONFIG_FILE, PARAMS_FILE, METRICS_FILE, TIMING_FILE, RESULTS_FILE, REPORT_FILE),
    *PICTURES,
)


def check_out(name: str, overwrite: bool) -> Path:
    """The folder `--out` of that name, if a run may be written there.

    Raises:
      ValueError: if it has no name, is a file, or holds a run and may not be
        overwritten.
    """
    if not name:
        raise ValueError("--out must name a folder, got ''.")
    out = Path(name)
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


def write_json(path: Path, value: Any) -> None:
    """A file of JSON for people to read, whole or not at all."""
    write_atomically(path, (to_json(value, indent=2) + "\n").encode())


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


def environment() -> dict[str, Any]:
    """What a run ran on, for its `config.json`."""
    import jaxlib
    import optax

    modules = (jaxae, jax, jaxlib, optax, np)
    versions = {module.__name__: module.__version__ for module in modules}
    return {
        "versions": {"python": sys.version.split()[0], **versions},
        "device": jax.devices()[0].device_kind,
    }
