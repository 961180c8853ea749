"""The options of each verb: names, defaults, help."""

from __future__ import annotations  # so that tyro is needed by who parses, not here

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Annotated

import jax

from jaxae import _checks
from jaxae._keys import generator_of

with contextlib.suppress(ImportError):  # main says what to install
    from tyro import conf

    _Run = Annotated[str, conf.Positional, conf.arg(metavar="RUN")]
    _Data = Annotated[str, conf.Positional, conf.arg(metavar="DATA")]
    _Output = Annotated[str, conf.arg(aliases=["-o"], metavar="FILE")]


@dataclass(frozen=True)
class SharedOptions:
    """What `train` and `sweep` both ask: data, model, objective, optimizer."""

    data: str = "digits"
    """digits, mnist, fashion_mnist, or a path to your own .npy or .npz of [N, D]."""
    array: str | None = None
    """The array to take from an .npz that holds several."""
    data_root: str | None = None
    """A folder to look in first for mnist and fashion_mnist."""
    divide_by: float | None = None
    """Divide the data by this. None: 16 for digits, 255 for images, 1 for your own."""
    scaling: str | None = None
    """Instead, fit to the training rows: unit, standardize, center, none."""
    test_fraction: float = 0.2
    """Rows held out for the test, where the data set has no test split of its own."""
    validation_fraction: float = 0.1
    """Rows held out for the validation curve."""

    latent_dim: int = 64
    """Number of latents H."""
    untied: bool = False
    """Give the decoder weights of its own, instead of the encoder's transposed."""
    no_bias: bool = False
    """Give the encoder no bias; the decoder keeps its own."""
    activation: str = "sigmoid"
    """The encoder's g: sigmoid, tanh, relu, softplus, identity."""
    observation: str = "bernoulli"
    """bernoulli (data in [0, 1]), gaussian (real), gaussian_with(relu), ..."""

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
    schedule: str = "constant"
    """Of the learning rate: constant, linear, cosine, exponential."""
    schedule_steps: int | None = None
    """Updates until the schedule's end. None: all of the run's, less the warm-up."""
    final_fraction: float | None = None
    """Of the learning rate that is left at the schedule's end. None: 0.1."""
    warmup_steps: int | None = None
    """Updates in which the learning rate rises from 0."""
    max_norm: float | None = None
    """Clip gradients to this norm."""
    accumulate: int = 1
    """Steps whose gradients are averaged for one update."""
    epochs: int = 20
    """Passes over the training data."""
    batch_size: int = 128
    """Examples a step."""
    gradient: str = "autodiff"
    """autodiff, or manual for the hand-derived one."""
    seed: int = 0
    """Of the split, the initial parameters, the order and the noise."""
    generator: str | None = None
    """Of random numbers: threefry2x32, rbg, unsafe_rbg, ... None: JAX's default."""
    compute_dtype: str | None = None
    """bfloat16 to compute in it, with float32 parameters and sums."""


@dataclass(frozen=True)
class TrainOptions(SharedOptions):
    """Train an autoencoder on real data and write a run folder."""

    start_from: str | None = None
    """Start from this run folder: its model, its scaling and its parameters."""
    params: str | None = None
    """Start from its parameters alone; tied ones may go on --untied."""
    bias_from_mean: bool = False
    """Start the output bias at the mean of the training data."""
    dtype: str = "float32"
    """Of parameters and computation: bfloat16, float32, float64."""
    on_nonfinite: str = "stop"
    """What to do at a step that makes anything non-finite: stop, or skip it."""

    monitor: str = "validation/loss"
    """The metric whose best epoch is kept, in RUN/best; smaller is better."""
    patience: int | None = None
    """Stop after so many epochs without a better --monitor."""
    checkpoint_minutes: float = 10.0
    """Save the state every so many minutes, besides at the end."""
    checkpoint_steps: int | None = None
    """Save it every so many steps, too."""
    keep_checkpoints: int = 2
    """How many states are kept."""
    memory_budget: int = 1024
    """MiB; larger data stay on disk, and batches are read from there."""

    config: str | None = None
    """Repeat the run of this config.json: what it says are the defaults here."""
    out: str = "runs/train"
    """The run folder to write."""
    overwrite: bool = False
    """Replace the run that the folder holds."""
    resume: bool = False
    """Go on with the run that the folder holds, or start it; done is done."""


@dataclass(frozen=True, kw_only=True)
class SweepOptions(SharedOptions):
    """Train every trial of a space as one program, and write a folder of them."""

    space: Annotated[str, conf.Positional, conf.arg(metavar="SPACE.toml")]
    """What is swept: a name = [values] or { low, high } a line; docs/how_to."""
    num_samples: int | None = None
    """How many points of the space's ranges are drawn."""
    sampler: str = "sobol"
    """How they are drawn: sobol spreads them evenly, random does not."""
    halving_first: int | None = None
    """After so many epochs only the best lanes go on. None: all do."""
    halving_factor: int = 2
    """By which lanes then become fewer, and the epochs until the next time more."""
    halving_metric: str | None = None
    """By which the best go on; smaller is better. None: --metric."""
    metric: str | None = None
    """Of the best lanes; smaller is better. None: validation/loss, else train/loss."""

    engine: str | None = None
    """ray: blocks of lanes as tasks of a Ray cluster. None: in this process."""
    lanes_at_once: int | None = None
    """Lanes in one vmap; 1 for one after the other. None: what is fastest here."""
    memory_budget: int | None = None
    """MiB a device. None: most of what is free."""
    devices: int | None = None
    """Over how many devices lanes are spread. None: all."""

    top: int = 1
    """How many of the best lanes are shown and saved: OUT/best, OUT/top/2, ..."""
    table: str = "csv"
    """How the table is written: csv, or parquet, which needs the extra parquet."""
    out: str = "runs/sweep"
    """The folder to write; one of the same sweep goes on where it stopped."""
    overwrite: bool = False
    """Replace the sweep or run that the folder holds."""


@dataclass(frozen=True)
class GradcheckOptions:
    """Judge gradients: the library's whole catalogue, or a function of yours."""

    function: Annotated[
        str | None, conf.Positional, conf.arg(metavar="[MODULE:FUNCTION]")
    ] = None
    """Your (params, *args) -> scalar, from the current folder. None: the catalogue."""
    params: Annotated[str | None, conf.arg(metavar="FILE")] = None
    """Where to judge: .npz, .npy, .safetensors (a/b is nested), or a run folder."""
    grad: Annotated[str | None, conf.arg(metavar="MODULE:FUNCTION")] = None
    """The gradient you claim, (params, *args) -> like params. None: jax.grad."""
    arg: Annotated[
        tuple[str, ...], conf.UseAppendAction, conf.arg(metavar="FILE|key:SEED|NUMBER")
    ] = ()
    """A further argument of both functions, files as --params; repeat it, in order."""
    has_aux: bool = False
    """The function returns (scalar, aux)."""
    surrogate: Annotated[
        tuple[str, ...], conf.UseAppendAction, conf.arg(metavar="PATH")
    ] = ()
    """A leaf meant to follow autodiff rather than the function; repeat it."""
    x64: bool = False
    """Work in float64; without it, float64 counts as float32, as ever in JAX."""

    only: str | None = None
    """Of the catalogue, the cases whose name contains this."""
    seed: int = 0
    """Of the entries and directions sampled, and of the catalogue's values."""

    out: str | None = None
    """The run folder to write. None: runs/gradcheck, replaced each time."""
    overwrite: bool = False
    """Replace the run that the folder holds."""


@dataclass(frozen=True)
class EncodeOptions:
    """Write the latents of a data set: [N, H]."""

    run: _Run
    """The run folder; RUN/best for its best epoch."""
    data: _Data
    """A path to your .npy or .npz of [N, D], as the run's data were; or a known set."""
    output: _Output
    """The .npy file to write."""
    array: str | None = None
    """The array to take from an .npz that holds several. None: the run's."""


@dataclass(frozen=True)
class ReconstructOptions:
    """Write the reconstructions of a data set, in its own units: [N, D]."""

    run: _Run
    """The run folder; RUN/best for its best epoch."""
    data: _Data
    """A path to your .npy or .npz of [N, D], as the run's data were; or a known set."""
    output: _Output
    """The .npy file to write."""
    array: str | None = None
    """The array to take from an .npz that holds several. None: the run's."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Print the metrics of a trained model, on the run's own data or on others."""

    run: _Run
    """The run folder; RUN/best for its best epoch."""
    data: Annotated[str | None, conf.Positional, conf.arg(metavar="[DATA]")] = None
    """A path to your .npy or .npz of [N, D]. None: the run's own splits."""
    output: Annotated[str | None, conf.arg(aliases=["-o"], metavar="FILE")] = None
    """A JSON file to write the metrics to."""
    array: str | None = None
    """The array to take from an .npz that holds several. None: the run's."""


@dataclass(frozen=True)
class PlotOptions:
    """Draw the pictures of a run again."""

    run: _Run
    """The run folder; RUN/best for its best epoch."""


# No float16: Adam's eps underflows in it, and its sums of squares overflow.
DTYPES = ("bfloat16", "float32", "float64")
_COUNTS = (
    *("latent_dim", "epochs", "batch_size", "accumulate", "schedule_steps"),
    *("patience", "checkpoint_steps", "keep_checkpoints", "memory_budget"),
)


def checked(options: TrainOptions) -> TrainOptions:
    """Options whose numbers can be counted with, each by itself, with a generator.

    Raises:
      ValueError: naming one that cannot.
    """
    if options.dtype not in DTYPES:
        raise ValueError(
            f"--dtype must be one of {', '.join(DTYPES)}, got {options.dtype!r}."
        )
    check_counts(options, _COUNTS)
    # By its name, so that the run is repeated with it whatever JAX's default is then.
    return dataclasses.replace(options, generator=generator_of(key_of(options)))


def check_counts(options: SharedOptions, names: tuple[str, ...]) -> None:
    """Refuse what is no count, or too large for one, among the options of these names.

    Raises:
      ValueError: naming the first.
    """
    for name in names:
        value, option = getattr(options, name), f"--{name.replace('_', '-')}"
        if value is not None and _checks.positive_int(option, value) >= 2**31:
            found = _checks.describe(value)
            raise ValueError(f"{option} must be less than 2**31, got {found}.")


def key_of(options: SharedOptions) -> jax.Array:
    """The key that the options name.

    Raises:
      ValueError: for a seed out of range, or an unknown generator.
    """
    seed = checked_seed(options.seed)
    try:
        return jax.random.key(seed, impl=options.generator)
    except ValueError:
        raise ValueError(
            "--generator must be one that JAX knows, such as threefry2x32, rbg or "
            f"unsafe_rbg, got {options.generator!r}."
        ) from None


def checked_seed(seed: int) -> int:
    """A seed that JAX and NumPy both take.

    Raises:
      ValueError: for any other.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed must be between 0 and 2**32 - 1, got {seed}.")
    return seed
