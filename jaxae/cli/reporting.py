"""What a run shows: notes, progress, results and pictures."""

import contextlib
import functools
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxae
from jaxae import data, plots
from jaxae.cli import run_folder
from jaxae.training import diagnostics

_NUM_EXAMPLES, _NUM_USAGE_ROWS = 12, 10_000  # rows that pictures show


def note(sentence: str) -> None:
    """Print a note to stderr: worth knowing, but no error."""
    print(f"jaxae: note: {sentence}", file=sys.stderr)


def note_without_counts(objective: jaxae.Objective) -> None:
    """Print a note if a penalty reads which latents are dead, as training counts."""
    names = [penalty.name for penalty in objective.penalties if penalty.needs_dead]
    if names:
        note(
            "which latents were dead in training is not a part of the saved model, so "
            f"{' and '.join(names)} is 0 in these results."
        )


@contextlib.contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Print each warning as a note at once, however the work ends afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", RuntimeWarning)
        warnings.showwarning = lambda message, *_, **__: note(str(message))
        yield


# ---- progress ------------------------------------------------------------------------


@contextlib.contextmanager
def progress(
    unit: str, total: int | None, *columns: str, **fields: Any
) -> Iterator[Callable[..., None]]:
    """A progress bar with the time left; shown on a terminal only.

    `columns` show the latest value of a field as `{task.fields[NAME]}`. The bar is
    updated by the function `(advance=, completed=, total=, **fields) -> None`.
    """
    import rich.progress
    from rich.console import Console

    console = Console()
    bar = rich.progress.Progress(
        rich.progress.TextColumn(unit),
        rich.progress.MofNCompleteColumn(),
        rich.progress.BarColumn(),
        *map(rich.progress.TextColumn, columns),
        rich.progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        yield functools.partial(bar.update, bar.add_task("", total=total, **fields))


class Reporter:
    """Writes the metrics and the time of each epoch of a run, and shows its progress.

    The lines of `history`, the epochs before the checkpoint of a resumed run, are
    written again: a killed process may have written more than the checkpoint.
    """

    def __init__(
        self,
        out: Path,
        config: jaxae.TrainConfig,
        num_steps: int,
        step: int,
        history: tuple[dict[str, float], ...],
        show: Callable[..., None],
    ):
        self._metrics = out / run_folder.METRICS_FILE
        self._timing = out / run_folder.TIMING_FILE
        self._config, self._num_steps, self._show = config, num_steps, show
        self._epoch, self._step = len(history), step
        rows = [{"epoch": epoch, **row} for epoch, row in enumerate(history, 1)]
        run_folder.write_rows(self._metrics, rows)
        intact = run_folder.read_intact_rows(self._timing)
        run_folder.write_rows(self._timing, intact[: len(history)])
        self._show(completed=self._epoch)
        self._started = time.perf_counter()

    def on_step(self, step: int) -> None:
        """Show how far the run is, in steps."""
        self._show(completed=self._config.num_epochs * step / self._num_steps)

    def on_epoch(self, metrics: dict[str, float]) -> None:
        """Write the metrics and the time of an epoch."""
        self._epoch += 1
        seconds = time.perf_counter() - self._started
        # A resumed run may have begun within the epoch.
        end = self._epoch * self._num_steps // self._config.num_epochs
        rate = self._config.batch_size * (end - self._step) / seconds
        self._step = end
        run_folder.append(self._metrics, {"epoch": self._epoch, **metrics})
        timing = {"epoch": self._epoch, "seconds": seconds, "examples_per_second": rate}
        run_folder.append(self._timing, timing)
        self._show(completed=self._epoch, loss=metrics["train/loss"], rate=rate)
        self._started = time.perf_counter()


# ---- results -------------------------------------------------------------------------

_COLUMNS = {
    "loss": "loss",
    "variance unexplained": "fvu",
    "squared error": "squared_error",
    "of PCA({pca_components})": "pca_squared_error",
    "bits per dim": "bits_per_dim",
}


def print_results(results: dict[str, Any]) -> None:
    """Print a table with a row for each split, and notes on the metrics."""
    splits = {name: row for name, row in results.items() if isinstance(row, dict)}
    columns = {
        heading.format(**results): name
        for heading, name in _COLUMNS.items()
        if any(name in row for row in splits.values())
    }
    rows = [[s, *map(row.get, columns.values())] for s, row in splits.items()]
    print_table(["split", *columns], rows)
    remarks: dict[str, list[str]] = {}
    for split, row in splits.items():
        for remark in diagnostics.remarks(row):
            remarks.setdefault(remark, []).append(split)
    for remark, of_remark in remarks.items():
        note(f"{', '.join(of_remark)}: {remark}")


def print_table(headings: list[str], rows: list[list[Any]], title: str = "") -> None:
    """Print a table of texts and of numbers, with four digits; nothing for None."""
    from rich.console import Console
    from rich.table import Table

    table = Table(headings[0], title=title or None, title_justify="left")
    for heading in headings[1:]:
        table.add_column(heading, justify="right", overflow="fold")
    for row in rows:
        cells = (f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row)
        table.add_row(*("" if cell is None else str(cell) for cell in cells))
    console = Console()
    if not console.is_terminal:  # no line of a file needs to be broken
        console = Console(width=200)
    console.print(table)


def draw(
    out: Path, ae: jaxae.Autoencoder, params: Any, history: Mapping, rows: Any, shape
) -> None:
    """Draw filters, reconstructions of rows, curves, and how often latents are active.

    `shape` is that of the image that a row holds; None where it is not known.
    """
    shape = shape or plots.square_shape(ae.input_dim)
    untied = jax.tree.map(_as_float64, ae.parametrization.expand(params))
    plots.filters(untied.W_enc, out / run_folder.FILTERS, shape)
    if not ae.tied:
        plots.filters(untied.W_dec, out / run_folder.DECODER_FILTERS, shape)
    X = _first(rows, _NUM_EXAMPLES)
    X_hat = jax.vmap(ae.reconstruct, in_axes=(None, 0))(params, X)
    plots.reconstructions(
        _as_float64(X), _as_float64(X_hat), out / run_folder.RECONSTRUCTIONS, shape
    )
    Z = jax.vmap(ae.encode, in_axes=(None, 0))(params, _first(rows, _NUM_USAGE_ROWS))
    plots.latent_usage(_as_float64(Z), out / run_folder.USAGE)
    if history:
        plots.curves(history, out / run_folder.CURVES)


def print_folder(out: Path) -> None:
    """Print the names of the pictures in a run folder, and where it is."""
    names = [name for name in run_folder.PICTURES if (out / name).exists()]
    print(f"pictures: {', '.join(names)}")
    print(f"run folder: {out}")


def _first(rows: Any, count: int) -> jax.Array:
    return jnp.asarray(data.take(rows, np.arange(min(count, len(rows)))))


def _as_float64(array) -> np.ndarray:
    return np.asarray(array).astype(np.float64)  # matplotlib has no bfloat16
