"""What a run shows: notes, progress, results and pictures; and how it is stopped."""

import contextlib
import functools
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxae
from jaxae import data, metrics, plots
from jaxae.cli import run_folder
from jaxae.training import diagnostics

if TYPE_CHECKING:
    from jaxae.cli.data_splits import Splits

SPLITS = ("train", "validation", "test")
_NUM_EXAMPLES, _NUM_USAGE_ROWS = 12, 10_000  # rows that pictures show


class Interrupt:
    """Records the first Ctrl-C or SIGTERM as a request; the second raises.

    Training checks for the request where it can stop cleanly. The default handler
    raises at any line, and an exception inside a callback of the runtime is lost.
    """

    def __init__(self):
        self.is_requested = False

    def __enter__(self) -> "Interrupt":
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def raise_if_requested(self) -> None:
        """Raise KeyboardInterrupt if a signal has come."""
        if self.is_requested:
            raise KeyboardInterrupt

    def _request(self, number, frame) -> None:
        if self.is_requested:
            raise KeyboardInterrupt
        self.is_requested = True
        print(
            "\njaxae: stopping; press Ctrl-C again to stop at once.",
            file=sys.stderr,
        )


class Reporter:
    """Writes the metrics of each epoch and shows progress.

    Args:
      out: the run folder.
      config: of the run.
      num_steps: of the whole run.
      history: the metrics of the epochs before a resumed run's checkpoint. Their lines
        are written again: a killed process may have written more than the checkpoint.
    """

    def __init__(
        self,
        out: Path,
        config: jaxae.TrainConfig,
        num_steps: int,
        history: tuple[dict[str, float], ...],
    ):
        self._out, self._config, self._num_steps = out, config, num_steps
        self._epoch, self._step = len(history), 0
        self._stack = contextlib.ExitStack()
        rows = [{"epoch": epoch, **row} for epoch, row in enumerate(history, 1)]
        run_folder.write_rows(out / run_folder.METRICS_FILE, rows)
        timings = out / run_folder.TIMING_FILE
        intact = run_folder.read_intact_rows(timings)
        run_folder.write_rows(timings, intact[: len(history)])

    def __enter__(self) -> "Reporter":
        show = progress(
            "epoch",
            self._config.num_epochs,
            "loss {task.fields[loss]:.4f}",
            "{task.fields[rate]:,.0f} examples/s",
            loss=float("nan"),
            rate=0.0,
        )
        self._show = self._stack.enter_context(show)
        self._show(completed=self._epoch)
        self._started = time.perf_counter()
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def on_part(self, step: int) -> None:
        """Show how far the run is, in steps."""
        self._show(completed=self._config.num_epochs * step / self._num_steps)

    def on_epoch(self, metrics: dict[str, float], state: Any) -> None:
        """Write the metrics and the time of an epoch."""
        del state
        self._epoch += 1
        seconds = time.perf_counter() - self._started
        num_examples = self._config.batch_size * self._num_steps
        rate = num_examples / self._config.num_epochs / seconds
        run_folder.append(
            self._out / run_folder.METRICS_FILE, {"epoch": self._epoch, **metrics}
        )
        timing = {"epoch": self._epoch, "seconds": seconds, "examples_per_second": rate}
        run_folder.append(self._out / run_folder.TIMING_FILE, timing)
        self._show(completed=self._epoch, loss=metrics["train/loss"], rate=rate)
        self._started = time.perf_counter()


@contextlib.contextmanager
def progress(
    unit: str, total: int | None, *columns: str, **fields: Any
) -> Iterator[Callable[..., None]]:
    """A progress bar with the time left; shown on a terminal only.

    Args:
      unit: what is counted.
      total: up to which number; None if it is not known yet.
      columns: what else is shown; `{task.fields[NAME]}` is the latest value of a field.
      fields: their first values.

    Yields:
      A function that updates it, `(advance=, completed=, total=, **fields) -> None`.
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


# ---- results -------------------------------------------------------------------------


def evaluate(objective, params, splits: "Splits", hparams) -> dict[str, Any]:
    """The metrics of each split; beside them those of PCA, for rows in memory."""
    results: dict[str, Any] = {}
    pca = None
    if isinstance(splits.train, np.ndarray):
        num_components = min(objective.ae.latent_dim, *splits.train.shape)
        results["pca_components"] = num_components
        pca = _pca(splits.train, num_components)
    for name in SPLITS:
        X = getattr(splits, name)
        if len(X):
            results[name] = diagnostics.evaluate(objective, params, X, hparams)
            if pca is not None:
                results[name]["pca_squared_error"] = pca(np.asarray(X))
    return results


def _pca(X: np.ndarray, num_components: int) -> Callable[[np.ndarray], float]:
    """`X -> squared error` of PCA with as many components, fitted to these rows."""
    from sklearn.decomposition import PCA

    # float64, because scikit-learn has no bfloat16. A single row is fitted twice, for
    # PCA needs two; the shares of a variance of 0 are 0 / 0.
    model = PCA(num_components, svd_solver="covariance_eigh")
    with np.errstate(invalid="ignore"):
        rows = np.concatenate([X, X]) if len(X) == 1 else X
        model.fit(rows.astype(np.float64))

    def squared_error(X: np.ndarray) -> float:
        X = X.astype(np.float64)
        X_hat = model.inverse_transform(model.transform(X))
        return float(metrics.squared_error(X, X_hat))

    return squared_error


_COLUMNS = {
    "loss": "loss",
    "variance unexplained": "fvu",
    "squared error": "squared_error",
    "of PCA({pca_components})": "pca_squared_error",
    "bits per dim": "bits_per_dim",
}


def print_results(results: dict[str, Any]) -> None:
    """Print a table with a row for each split, and notes on the metrics."""
    from rich.console import Console
    from rich.table import Table

    names = (*SPLITS, "data")  # the last for the data of `jaxae evaluate RUN DATA`
    rows = {name: results[name] for name in names if name in results}
    columns = {
        heading.format(**results): name
        for heading, name in _COLUMNS.items()
        if any(name in row for row in rows.values())
    }
    table = Table("split")
    for heading in columns:
        table.add_column(heading, justify="right")
    for split, row in rows.items():
        cells = (f"{row[name]:.4f}" if name in row else "" for name in columns.values())
        table.add_row(split, *cells)
    Console().print(table)
    remarks: dict[str, list[str]] = {}
    for split, row in rows.items():
        for remark in diagnostics.remarks(row):
            remarks.setdefault(remark, []).append(split)
    for remark, of_splits in remarks.items():
        note(f"{', '.join(of_splits)}: {remark}")


def note(sentence: str) -> None:
    """Print a note to stderr: worth knowing, but no error."""
    print(f"jaxae: note: {sentence}", file=sys.stderr)


@contextlib.contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Print each warning as a note at once, however the work ends afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", RuntimeWarning)
        warnings.showwarning = lambda message, *_, **__: note(str(message))
        yield


# ---- pictures ------------------------------------------------------------------------


def draw(
    out: Path, ae: jaxae.Autoencoder, params: Any, history: Mapping, splits: "Splits"
) -> None:
    """Draw filters, reconstructions, curves and how often each latent is active."""
    shape = splits.info.image_shape or plots.square_shape(ae.input_dim)
    untied = jax.tree.map(_as_float64, ae.parametrization.expand(params))
    plots.filters(untied.W_enc, out / run_folder.FILTERS, shape)
    if not ae.tied:
        plots.filters(untied.W_dec, out / run_folder.DECODER_FILTERS, shape)
    rows = splits.test if len(splits.test) else splits.train
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
