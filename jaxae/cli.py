"""The command line: one verb a job, each writing one run folder.

tyro, rich, matplotlib and scikit-learn (the extra `cli`) are imported where used.
"""

import contextlib
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxae
from jaxae import _checks, data, plots
from jaxae.autoencoder.files import CONFIG_FILE, PARAMS_FILE, write_atomically
from jaxae.observations import Observation
from jaxae.training import Run, TrainState

METRICS_FILE, TIMING_FILE, RESULTS_FILE = (
    "metrics.jsonl",
    "timing.jsonl",
    "results.json",
)
PICTURES = (
    "filters.png",
    "decoder_filters.png",
    "reconstructions.png",
    "curves.png",
)
RUN_FILES = (
    CONFIG_FILE,
    PARAMS_FILE,
    METRICS_FILE,
    TIMING_FILE,
    RESULTS_FILE,
    *PICTURES,
)
INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


@dataclass(frozen=True)
class TrainOptions:
    """Train an autoencoder on real data and write a run folder."""

    data: str = "digits"
    """digits, mnist, fashion_mnist, or a path to your own .npy or .npz of [N, D]."""
    array: str | None = None
    """The array to take from an .npz that holds several."""
    data_root: str | None = None
    """A folder to look in first for mnist and fashion_mnist."""
    divide_by: float | None = None
    """Divide the data by this. None: 16 for digits, 255 for images, 1 for your own."""
    test_fraction: float = 0.2
    """Rows held out for the test, where the data set has no test split of its own."""
    validation_fraction: float = 0.1
    """Rows held out for the validation curve."""

    latent_dim: int = 64
    """Number of latents H."""
    untied: bool = False
    """Give the decoder weights of its own, instead of the encoder's transposed."""
    activation: str = "sigmoid"
    """The encoder's g: sigmoid, tanh, relu, softplus, identity."""
    observation: str = "bernoulli"
    """What the data are: bernoulli (in [0, 1]), gaussian (real)."""
    bias_from_mean: bool = False
    """Start the output bias at the mean of the training data."""

    corruption: str | None = None
    """Denoising noise: masking, gaussian, salt_and_pepper; with --corruption-rate."""
    corruption_rate: float | None = None
    """Probability of a corrupted input; standard deviation for gaussian."""
    l1: float | None = None
    """Coefficient of the batch mean of sum |z|."""
    kl_sparsity: float | None = None
    """Coefficient of KL(target || mean activity), for sigmoid latents."""
    kl_sparsity_target: float | None = None
    """The target activity of --kl-sparsity."""
    contractive: float | None = None
    """Coefficient of the batch mean of ||dz/dx||_F^2."""
    weight_decay: float | None = None
    """Coefficient of the sum of squared weights."""

    optimizer: str = "adam"
    """adam, sgd, momentum, adamw, rmsprop."""
    learning_rate: float = 1e-3
    """The optimizer's step size."""
    momentum: float | None = None
    """For --optimizer momentum."""
    adamw_decay: float | None = None
    """For --optimizer adamw."""
    epochs: int = 20
    """Passes over the training data."""
    batch_size: int = 128
    """Examples a step."""
    gradient: str = "autodiff"
    """autodiff, or manual for the hand-derived one."""
    seed: int = 0
    """Of the split, the initial parameters, the order and the noise."""
    dtype: str = "float32"
    """Of parameters and computation: float16, bfloat16, float32, float64."""

    out: str = "runs/train"
    """The run folder to write."""
    overwrite: bool = False
    """Replace the run that the folder holds."""


def main(argv: list[str] | None = None) -> int:
    """Run one verb; return the exit status. A mistake is one sentence, no traceback."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb == "--version":
        print(f"jaxae {jaxae.__version__}")
        return 0
    try:
        options_type, run = _checks.lookup("verb", VERBS, verb)
        return run(_parse(options_type, rest, verb))
    except (ValueError, OSError, ImportError) as error:
        print(f"jaxae: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxae: interrupted; nothing more was written.", file=sys.stderr)
        return INTERRUPTED


def _usage() -> str:
    verbs = [f"  {verb:10}{options.__doc__}" for verb, (options, _) in VERBS.items()]
    return "\n".join(
        [
            "usage: jaxae VERB [options]",
            "",
            *verbs,
            "",
            "`jaxae VERB --help` shows every option with its default.",
        ]
    )


def _parse(options_type: type, arguments: list[str], verb: str) -> Any:
    try:
        import tyro
    except ImportError as error:
        raise _checks.extra("The command line", "cli", error) from error
    return tyro.cli(
        options_type,
        args=arguments,
        prog=f"jaxae {verb}",
        config=(tyro.conf.FlagCreatePairsOff,),
    )


# ---- train ---------------------------------------------------------------------------


class Splits(NamedTuple):
    """The rows of a run, in the model's dtype."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    info: data.Dataset


def train(options: TrainOptions) -> int:
    """`jaxae train`: everything from the data to the pictures."""
    out = _check_out(Path(options.out), options.overwrite)
    is_double = options.dtype == "float64"
    with jax.enable_x64(True) if is_double else contextlib.nullcontext():
        return _train(options, out)


def _train(options: TrainOptions, out: Path) -> int:
    key = jax.random.key(_checked_seed(options.seed))
    observation = jaxae.observations.get(options.observation)
    splits = _load(options, observation)
    objective, hparams = _objective(options, input_dim=splits.train.shape[1])
    config = jaxae.TrainConfig(
        num_epochs=options.epochs,
        batch_size=options.batch_size,
        optimizer=jaxae.optimizers.get(options.optimizer),
        gradient=options.gradient,
    )
    init_key, train_key = jax.random.split(key)
    params = objective.ae.init(
        init_key,
        dtype=_checks.floating_dtype(options.dtype),
        data_mean=splits.train.mean(axis=0) if options.bias_from_mean else None,
    )
    with _Reporter(out, options.epochs, len(splits.train)) as reporter:
        run = jaxae.train(
            objective,
            splits.train,
            hparams=hparams,
            key=train_key,
            config=config,
            validation=splits.validation if len(splits.validation) else None,
            params=params,
            on_epoch=reporter.on_epoch,
        )
    results = _results(objective, run, splits, hparams)
    _write_run(out, options, objective, run, splits, hparams, results)
    _print_results(results, options.latent_dim)
    return _conclude(run, out, options, reporter.was_interrupted)


def _check_out(out: Path, overwrite: bool) -> Path:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, but {out} is a file.")
    if not overwrite and any((out / name).exists() for name in RUN_FILES):
        raise ValueError(
            f"--out {out} holds a run already; choose another folder, or replace it "
            "with --overwrite."
        )
    return out


def _checked_seed(seed: int) -> int:
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed must be between 0 and 2**32 - 1, got {seed}.")
    return seed


def _load(options: TrainOptions, observation: Observation) -> Splits:
    dtype = _checks.floating_dtype(options.dtype)
    found = data.load(options.data, root=options.data_root, array=options.array)
    scale = found.scale if options.divide_by is None else options.divide_by
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"--divide-by must be a positive number, got {scale}.")
    if found.train.dtype.kind in "biu" and options.divide_by is None and scale == 1:
        raise ValueError(
            f"--data {options.data} holds {found.train.dtype}; say what divides it to "
            "floats, e.g. --divide-by 255 (or 1)."
        )
    # On the whole file, so that a bad value is named by its row there.
    whole = data.scaled(found.train, scale)
    data.check_array(whole, "data")
    observation.validate(whole)
    if found.test is not None:
        rest, validation = data.split(
            found.train, options.validation_fraction, seed=options.seed
        )
        test = found.test
    else:
        rest, test, validation = data.split(
            found.train,
            options.test_fraction,
            options.validation_fraction,
            seed=options.seed,
        )
    return Splits(
        train=data.scaled(rest, scale, dtype),
        validation=data.scaled(validation, scale, dtype),
        test=data.scaled(test, scale, dtype),
        info=found,
    )


def _objective(options: TrainOptions, input_dim: int):
    ae = jaxae.Autoencoder(
        input_dim=input_dim,
        latent_dim=options.latent_dim,
        activation=jaxae.activations.get(options.activation),
        observation=jaxae.observations.get(options.observation),
        tied=not options.untied,
    )
    given = {
        name: getattr(options, name)
        for name in _HPARAMS
        if getattr(options, name) is not None
    }
    corruption = None
    if options.corruption is not None:
        corruption = jaxae.corruptions.get(options.corruption)
    objective = jaxae.Objective(
        ae,
        corruption=corruption,
        penalties=tuple(
            penalty
            for name, penalty in jaxae.penalties.CATALOGUE.items()
            if name in given
        ),
    )
    return objective, given


_HPARAMS = (
    "learning_rate",
    "momentum",
    "adamw_decay",
    "corruption_rate",
    "kl_sparsity_target",
    *jaxae.penalties.CATALOGUE,
)


class _Reporter:
    """Writes a run's lines as it goes, shows progress, and hears Ctrl-C."""

    def __init__(self, out: Path, num_epochs: int, num_examples: int):
        self.was_interrupted = False
        self._out, self._num_epochs, self._num_examples = out, num_epochs, num_examples
        self._epoch, self._stack = 0, contextlib.ExitStack()

    def __enter__(self) -> "_Reporter":
        self._advance = self._stack.enter_context(_progress(self._num_epochs))
        self._stack.enter_context(_on_interrupt(self._interrupt))
        self._started = time.perf_counter()
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def on_epoch(self, metrics: dict[str, float], state: TrainState) -> bool:
        del state
        if self._epoch == 0:  # every refusal lies behind: now the disk may change
            _clear(self._out)
        self._epoch += 1
        seconds = time.perf_counter() - self._started
        rate = self._num_examples / seconds
        _append(self._out / METRICS_FILE, {"epoch": self._epoch, **metrics})
        timing = {"epoch": self._epoch, "seconds": seconds, "examples_per_second": rate}
        _append(self._out / TIMING_FILE, timing)
        self._advance(metrics["train/loss"], rate)
        self._started = time.perf_counter()
        return self.was_interrupted

    def _interrupt(self) -> None:
        if self.was_interrupted:
            raise KeyboardInterrupt
        self.was_interrupted = True
        print(
            "\njaxae: stopping after this epoch; Ctrl-C again to stop at once.",
            file=sys.stderr,
        )


@contextlib.contextmanager
def _on_interrupt(handle: Callable[[], None]) -> Iterator[None]:
    previous = signal.signal(signal.SIGINT, lambda *_: handle())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _progress(num_epochs: int) -> Iterator[Callable[[float, float], None]]:
    """A bar with loss and examples per second; silent where nobody watches."""
    try:
        from rich import progress
        from rich.console import Console
    except ImportError as error:
        raise _checks.extra("The progress bar", "cli", error) from error
    console = Console()
    bar = progress.Progress(
        progress.TextColumn("epoch"),
        progress.MofNCompleteColumn(),
        progress.BarColumn(),
        progress.TextColumn("loss {task.fields[loss]:.4f}"),
        progress.TextColumn("{task.fields[rate]:,.0f} examples/s"),
        progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=num_epochs, loss=float("nan"), rate=0.0)
        yield lambda loss, rate: bar.update(task, advance=1, loss=loss, rate=rate)


def _clear(out: Path) -> None:
    """Make the folder, without the files of a run before."""
    out.mkdir(parents=True, exist_ok=True)
    for name in RUN_FILES:
        (out / name).unlink(missing_ok=True)


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(_json(row) + "\n")


def _json(value: Any, **options) -> str:
    """JSON in which what is not finite is null: NaN is no JSON."""

    def clean(value):
        if isinstance(value, dict):
            return {name: clean(item) for name, item in value.items()}
        if isinstance(value, float) and not np.isfinite(value):
            return None
        return value

    return json.dumps(clean(value), allow_nan=False, **options)


def _results(objective, run: Run, splits: Splits, hparams) -> dict[str, Any]:
    """Loss and squared error by split, beside PCA's squared error."""
    evaluate = jax.jit(objective.evaluate)
    results: dict[str, Any] = {"status": run.status, "stopped_at": run.stopped_at}
    pca = _pca(splits.train, objective.ae.latent_dim)
    for name in ("train", "validation", "test"):
        X = getattr(splits, name)
        if len(X):
            scores = evaluate(run.params, X, hparams)
            scores = {metric: float(value) for metric, value in scores.items()}
            results[name] = {**scores, "pca_squared_error": pca(X)}
    return results


def _pca(X: np.ndarray, latent_dim: int) -> Callable[[np.ndarray], float]:
    """`X -> squared error` of PCA with as many components, fitted to these rows."""
    try:
        from sklearn.decomposition import PCA
    except ImportError as error:
        raise _checks.extra("The comparison with PCA", "cli", error) from error
    # float64, because scikit-learn knows no bfloat16.
    model = PCA(min(latent_dim, *X.shape), svd_solver="covariance_eigh")
    model.fit(X.astype(np.float64))

    def squared_error(X: np.ndarray) -> float:
        X = X.astype(np.float64)
        residual = model.inverse_transform(model.transform(X)) - X
        return float(np.mean(np.sum(residual**2, axis=1)))

    return squared_error


def _write_run(out, options, objective, run: Run, splits, hparams, results) -> None:
    _draw(out, objective.ae, run, splits)
    results_json = _json(results, indent=2) + "\n"
    write_atomically(out / RESULTS_FILE, results_json.encode())
    info = splits.info
    described = {
        "options": dataclasses.asdict(options),
        "hparams": hparams,
        "data": {
            "name": info.name,
            "source": info.source,
            "licence": info.licence,
            "sha256": info.sha256,
            "num_train": len(splits.train),
            "num_validation": len(splits.validation),
            "num_test": len(splits.test),
        },
        "versions": _versions(),
        "device": jax.devices()[0].device_kind,
    }
    jaxae.save(out, objective.ae, run.params, run=described)


def _versions() -> dict[str, str]:
    import jaxlib
    import optax

    modules = (jaxae, jax, jaxlib, optax, np)
    versions = {module.__name__: module.__version__ for module in modules}
    return {"python": sys.version.split()[0], **versions}


def _draw(out: Path, ae: jaxae.Autoencoder, run: Run, splits: Splits) -> None:
    shape = splits.info.image_shape or plots.square_shape(ae.input_dim)
    untied = jax.tree.map(_drawable, ae.parametrization.expand(run.params))
    plots.filters(untied.W_enc, out / "filters.png", shape)
    if not ae.tied:
        plots.filters(untied.W_dec, out / "decoder_filters.png", shape)
    examples = (splits.test if len(splits.test) else splits.train)[:12]
    reconstruct = jax.vmap(ae.reconstruct, in_axes=(None, 0))
    X_hat = reconstruct(run.params, jnp.asarray(examples))
    plots.reconstructions(
        _drawable(examples), _drawable(X_hat), out / "reconstructions.png", shape
    )
    plots.curves(run.metrics, out / "curves.png")


def _drawable(array) -> np.ndarray:
    return np.asarray(array).astype(np.float64)  # matplotlib knows no bfloat16


def _print_results(results: dict[str, Any], latent_dim: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("split", title=None)
    for heading in ("loss", "squared error", f"squared error of PCA({latent_dim})"):
        table.add_column(heading, justify="right")
    for name in ("train", "validation", "test"):
        if name in results:
            row = results[name]
            numbers = (row["loss"], row["squared_error"], row["pca_squared_error"])
            table.add_row(name, *(f"{number:.4f}" for number in numbers))
    Console().print(table)


def _conclude(run: Run, out: Path, options: TrainOptions, was_interrupted) -> int:
    reached = len(run.metrics["train/loss"])
    status = 0
    if run.status == "diverged":
        status = 1
        print(
            f"jaxae: error: the loss or the parameters became non-finite at step "
            f"{run.stopped_at}; what was saved is the state before it. A smaller "
            "--learning-rate would do.",
            file=sys.stderr,
        )
    elif was_interrupted:
        status = INTERRUPTED
        print(f"interrupted after epoch {reached} of {options.epochs}; it is saved.")
    print(f"run folder: {out}")
    return status


VERBS: dict[str, tuple[type, Callable[[Any], int]]] = {"train": (TrainOptions, train)}


if __name__ == "__main__":
    sys.exit(main())
