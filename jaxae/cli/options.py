"""The options of each command, and the objects of the library that they describe.

Most options are arguments of `Autoencoder`, `Objective` and `TrainConfig`, with the
same names and defaults.
"""

from __future__ import annotations  # only `main` needs tyro

import contextlib
import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax

from jaxae import (
    _checks,
    activations,
    dead_latents,
    optimizers,
    penalties,
    schedules,
)
from jaxae._checks import ArgumentError
from jaxae._keys import generator_of
from jaxae.autoencoder import Autoencoder, parametrizations
from jaxae.objective import Objective
from jaxae.optimizers import Optimizer
from jaxae.training import TrainConfig
from jaxae.training.config import settings
from jaxae.training.train_step import INIT_SCALE

with contextlib.suppress(ImportError):  # main says what to install
    from tyro import conf

    _Run = Annotated[str, conf.Positional, conf.arg(metavar="RUN")]
    _Data = Annotated[str, conf.Positional, conf.arg(metavar="DATA")]
    _Output = Annotated[str, conf.arg(aliases=["-o"], metavar="FILE")]

# No float16: Adam's eps underflows in it, and its sums of squares overflow.
DTYPES = ("bfloat16", "float32", "float64")


class CommandError(ValueError):
    """An invalid option, or a file that cannot be used; the message is one sentence."""


# ---- train and sweep -----------------------------------------------------------------


@dataclass(frozen=True)
class DataOptions:
    """Which data `train` and `sweep` use."""

    data: str = "digits"
    """digits, mnist, fashion_mnist, or a path to your own [N, D]: .npy, .npz,
    .safetensors, .csv, .parquet or .h5, or a folder or pattern of several."""
    array: str | None = None
    """The array to take from files that hold several."""
    drop_first: int = 0
    """Leave out the first positions of each sequence of activations [N, T, D]."""
    max_row_norm: float | None = None
    """Leave out activations whose norm is above this times the median. None: all."""
    data_root: str | None = None
    """A folder to look in first for mnist and fashion_mnist."""
    divide_by: float | None = None
    """Divide the data by this. None: 16 for digits, 255 for images, 1 for your own."""
    scaling: str | None = None
    """Fitted to the training rows, not --divide-by: unit, standardize, center, none."""
    test_fraction: float = 0.2
    """Fraction of rows held out as test data, unless the dataset has its own."""
    validation_fraction: float = 0.1
    """Fraction of rows held out as validation data."""


@dataclass(frozen=True)
class SharedOptions(DataOptions):
    """The options of both `train` and `sweep`: data, model, objective, optimizer."""

    latent_dim: int = 64
    """H, the number of latents."""
    activation: str = "sigmoid"
    """The encoder's g: sigmoid, tanh, relu, softplus, identity; sparse ones: topk(32),
    abs_topk(8), batch_topk(32), matching_pursuit(32), jumprelu(), gated."""
    observation: str = "bernoulli"
    """The distribution of the inputs: bernoulli (for data in [0, 1]), gaussian, or
    gaussian_with(relu), ..."""
    untied: bool = False
    """Untie the decoder: its weights are its own, not the encoder's transposed."""
    no_bias: bool = False
    """Give the encoder no bias; the decoder keeps its own."""
    pre_bias: bool = False
    """Subtract the decoder's bias from the input of the encoder."""
    aligned: bool = False
    """Untie the decoder; encoder and decoder of each latent have inner product 1."""
    prefixes: str | None = None
    """Ends of nested prefixes of the latents, each decoded by itself: 64,256,1024."""
    cut_prefixes: bool = False
    """Let the loss of a prefix train only its latents after the prefix before it."""

    corruption: str | None = None
    """Noise on the inputs: masking, gaussian, salt_and_pepper."""
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
    init_scale: float | None = None
    """Factor on the initial weights. None: 1."""

    k: int | None = None
    """Replaces the k of the activation, such as topk(32), which it may not exceed."""
    k_start: int | None = None
    """The k of the first step, which changes to --k in --k-steps."""
    k_steps: int | None = None
    """Steps in which k changes from --k-start to --k."""
    bandwidth: float | None = None
    """Replaces the bandwidth of jumprelu."""
    l1_decoder_norm: float | None = None
    """Coefficient of the batch mean of sum |z_j| ||W_dec,j||."""
    l0: float | None = None
    """Coefficient of the mean number of active latents, for jumprelu."""
    tanh_sparsity: float | None = None
    """Coefficient of the batch mean of sum tanh(scale |z_j| ||W_dec,j||)."""
    tanh_sparsity_scale: float | None = None
    """The scale of --tanh-sparsity."""
    gated_l1: float | None = None
    """Coefficient of the L1 penalty on the gates of gated."""
    gated_aux: float | None = None
    """Coefficient of the reconstruction loss of the gates of gated; usually 1."""
    sparsity_warmup_steps: int | None = None
    """Steps in which the coefficients of sparsity penalties rise from 0."""
    aux_k: int | None = None
    """How many dead latents explain the residual of each example, such as 512."""
    aux_k_coefficient: float | None = None
    """Coefficient of --aux-k. None: 1/32."""
    pre_act: float | None = None
    """Coefficient of the distance of dead latents from their thresholds."""
    dead_after: int | None = None
    """Steps without activity after which a latent is dead. None: --resample-every, or
    1000."""
    resample_every: int | None = None
    """Steps between new weights for dead latents. None: never."""
    unit_norm: bool = False
    """Keep the decoder's weights of each latent at norm 1."""

    compute_dtype: str | None = None
    """bfloat16: round to it in matrix products. None: --dtype."""

    epochs: int = 20
    """Passes over the data."""
    batch_size: int = 128
    """Examples a step; the last partial batch of an epoch is dropped."""
    gradient: str = "auto"
    """autodiff for jax.grad, manual for the gradient by hand, auto for the faster."""
    log_every: int = 1
    """An epoch's training metrics are means over every so many steps."""
    optimizer: str = "adam"
    """The optimizer: adam, sgd, momentum, adamw, rmsprop."""
    learning_rate: float = 1e-3
    """The optimizer's step size."""
    momentum: float | None = None
    """For --optimizer momentum."""
    adamw_decay: float | None = None
    """For --optimizer adamw."""
    schedule: str = "constant"
    """Schedule of the learning rate: constant, linear, cosine, exponential."""
    schedule_steps: int | None = None
    """Length of the schedule in updates. None: the run's minus --warmup-steps."""
    final_fraction: float | None = None
    """Fraction of the learning rate at the schedule's end. None: 0.1."""
    warmup_steps: int | None = None
    """Updates in which the learning rate rises from 0."""
    max_norm: float | None = None
    """Clip gradients to this norm."""
    accumulate: int = 1
    """Steps whose gradients are averaged for one update."""
    seed: int = 0
    """Seed of the split, the initial parameters, the order and the noise."""
    generator: str | None = None
    """JAX's random generator: threefry2x32, rbg, unsafe_rbg, ... None: its default."""


@dataclass(frozen=True)
class TrainOptions(SharedOptions):
    """Train an autoencoder on real data and write a run folder."""

    on_nonfinite: str = "stop"
    """If a step makes the loss or the parameters non-finite: stop, or skip the step."""
    no_diagnostics: bool = False
    """Leave out the evaluation of the model at the end of each epoch."""
    monitor: str = "validation/loss"
    """The metric that chooses the best epoch; smaller is better."""
    patience: int | None = None
    """Stop after this many epochs without improvement of --monitor. None: never."""
    checkpoint_steps: int | None = None
    """Steps between checkpoints. None: only --checkpoint-minutes counts."""
    checkpoint_minutes: float | None = 10.0
    """Minutes between checkpoints. None: only --checkpoint-steps counts."""
    keep_checkpoints: int = 2
    """Number of most recent checkpoints to keep."""
    memory_budget: int = 1024
    """MiB; larger .npy and .safetensors files are not read into memory."""
    log: str | None = None
    """Where to log each epoch too: csv, tensorboard, wandb, or several: csv,wandb."""

    start_from: str | None = None
    """Start from this run folder: its model, its scaling and its parameters."""
    params: str | None = None
    """Start from the parameters of this run; with --untied, tied ones are untied."""
    bias_from_mean: bool = False
    """Start the output bias at the mean of the training data."""
    bias_from_median: bool = False
    """Start the output bias at the geometric median of the training data."""
    init_encoder: str | None = None
    """How the encoder starts: as the decoder, or random. None: decoder if sparse."""
    decoder_norm: float | None = None
    """Initial norm of the decoder's weights of each latent. None: 1 if sparse."""
    dtype: str = "float32"
    """Type of parameters and computation: bfloat16, float32, float64."""

    config: str | None = None
    """Repeat the run of this config.json: its options are the defaults here."""
    out: str = "runs/train"
    """The run folder to write."""
    overwrite: bool = False
    """Replace the run in the folder."""
    resume: bool = False
    """Resume the run in the folder, or start it; a finished run is left as it is."""


@dataclass(frozen=True, kw_only=True)
class SweepOptions(SharedOptions):
    """Train every combination of a space as one program, and write a sweep folder."""

    space: Annotated[str, conf.Positional, conf.arg(metavar="SPACE.toml")]
    """The space: one axis per line, name = [values] or { low, high }; docs/how_to."""
    num_samples: int | None = None
    """Number of points drawn from the ranges of the space."""
    sampler: str = "sobol"
    """Sampling of the ranges: sobol (quasi-random) or random (independent)."""
    halving_first: int | None = None
    """Epochs after which only the best lanes are continued. None: all are."""
    halving_factor: int = 2
    """Halving keeps 1 in this many lanes, for this many times the epochs."""
    halving_metric: str | None = None
    """The metric by which halving keeps lanes; smaller is better. None: --metric."""
    metric: str | None = None
    """The metric that ranks lanes, smaller is better. None: validation/loss if any."""

    engine: str | None = None
    """ray: blocks of lanes as tasks of a Ray cluster. None: in this process."""
    lanes_at_once: int | None = None
    """Lanes in one vmap; 1 for lanes in sequence. None: the fastest number here."""
    memory_budget: int | None = None
    """MiB per device. None: most of its free memory."""
    devices: int | None = None
    """Number of devices to spread lanes over. None: all."""

    top: int = 1
    """How many of the best lanes are shown and saved: OUT/best, OUT/top/2, ..."""
    table: str = "csv"
    """Format of the table: csv, or parquet, which needs the extra parquet."""
    out: str = "runs/sweep"
    """The folder to write; an unfinished sweep in it is resumed."""
    overwrite: bool = False
    """Replace the sweep or run in the folder."""


# ---- the other commands -------------------------------------------------------------


@dataclass(frozen=True)
class GradcheckOptions:
    """Check gradients: of all parts of the library, or of your own function."""

    function: Annotated[
        str | None, conf.Positional, conf.arg(metavar="[MODULE:FUNCTION]")
    ] = None
    """Your (params, *args) -> scalar, from the current folder. None: the catalogue."""
    params: Annotated[str | None, conf.arg(metavar="FILE")] = None
    """Where to check: .npz, .npy, .safetensors (a/b is nested), or a run folder."""
    grad: Annotated[str | None, conf.arg(metavar="MODULE:FUNCTION")] = None
    """The gradient to check, (params, *args) -> like params. None: jax.grad."""
    arg: Annotated[
        tuple[str, ...], conf.UseAppendAction, conf.arg(metavar="FILE|key:SEED|NUMBER")
    ] = ()
    """A further argument of both functions; files as in --params. Repeatable."""
    has_aux: bool = False
    """The function returns (scalar, aux)."""
    surrogate: Annotated[
        tuple[str, ...], conf.UseAppendAction, conf.arg(metavar="PATH")
    ] = ()
    """A leaf whose gradient is meant to differ from the function's. Repeatable."""
    x64: bool = False
    """Enable float64; without it, JAX takes float64 arrays as float32."""

    only: str | None = None
    """Only the cases of the catalogue whose names contain this."""
    seed: int = 0
    """Seed of the entries and directions sampled, and of the catalogue's values."""

    out: str | None = None
    """The run folder to write. None: runs/gradcheck, which is replaced."""
    overwrite: bool = False
    """Replace the run that the folder holds."""


@dataclass(frozen=True)
class EncodeOptions:
    """Write the latents of a dataset: [N, H]."""

    run: _Run
    """The run folder, or RUN/best for its best epoch."""
    data: _Data
    """A file or folder of [N, D] in the units of the run's data, or a dataset."""
    output: _Output
    """The .npy file to write."""
    array: str | None = None
    """The array to take from files that hold several. None: the run's."""
    all_rows: bool = False
    """Use also the rows of DATA that the run's --drop-first and --max-row-norm omit."""


@dataclass(frozen=True)
class ReconstructOptions(EncodeOptions):
    """Write the reconstructions of a dataset, in its own units: [N, D]."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Print the metrics of a trained model, on the run's data or on other data."""

    run: _Run
    """The run folder, or RUN/best for its best epoch."""
    data: Annotated[str | None, conf.Positional, conf.arg(metavar="[DATA]")] = None
    """A path to your file or folder of [N, D]. None: the run's own splits."""
    output: Annotated[str | None, conf.arg(aliases=["-o"], metavar="FILE")] = None
    """A JSON file to write the metrics to."""
    array: str | None = None
    """The array to take from files that hold several. None: the run's."""
    all_rows: bool = False
    """Use also the rows of DATA that the run's --drop-first and --max-row-norm omit."""


@dataclass(frozen=True)
class PlotOptions:
    """Draw the pictures of a run again."""

    run: _Run
    """The run folder, or RUN/best for its best epoch."""


@dataclass(frozen=True)
class ConvertOptions:
    """Convert a model from or to the files of another library."""

    source: Annotated[str, conf.Positional, conf.arg(metavar="SOURCE")]
    """A folder, also of a run, a file, or a hub id: owner/repo[@revision][/folder]."""
    out: Annotated[str, conf.Positional, conf.arg(metavar="DIR")]
    """The folder to write."""
    to: str
    """The format to write, such as saelens or jaxae."""
    source_format: str | None = None
    """The format of SOURCE. None: detected from its files."""
    inputs_normalized: bool = False
    """You normalize the inputs as SOURCE asks, and undo it on the outputs."""
    overwrite: bool = False
    """Replace the model that DIR holds."""


@dataclass(frozen=True)
class ReportOptions:
    """Write one HTML page of a run or a sweep: curves, latents, reconstructions."""

    run: Annotated[str, conf.Positional, conf.arg(metavar="RUN_OR_SWEEP")]
    """The folder of a run or a sweep, or RUN/best for its best epoch."""
    data: Annotated[str | None, conf.Positional, conf.arg(metavar="[DATA]")] = None
    """A file or folder of [N, D] on which latents are measured. None: the run's."""
    output: Annotated[str | None, conf.arg(aliases=["-o"], metavar="FILE")] = None
    """The .html file to write. None: report.html in the folder."""
    array: str | None = None
    """The array to take from files that hold several. None: the run's."""
    all_rows: bool = False
    """Use also the rows of DATA that the run's --drop-first and --max-row-norm omit."""
    tokens: Annotated[str | None, conf.arg(metavar="FILE")] = None
    """The token of each row: a .json of texts, or an .npy of texts or ids."""
    vocabulary: Annotated[str | None, conf.arg(metavar="FILE")] = None
    """The text of each id of --tokens: a .json list, or an object from text to id."""
    context: int = 10
    """Tokens shown before and after a row."""
    latents: str | None = None
    """The latents with details: 3,17,40. None: those of largest use."""
    max_latents: int = 200
    """How many latents have details."""
    max_rows: int = 100_000
    """Latents are measured on the first rows of the data, at most so many."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write the latents of a run for SAEDashboard or Neuronpedia."""

    run: _Run
    """The run folder, or RUN/best for its best epoch."""
    data: Annotated[str | None, conf.Positional, conf.arg(metavar="[DATA]")] = None
    """A file or folder of [N, D] on which latents are measured. None: the run's."""
    to: str
    """saedashboard or neuronpedia."""
    source: Annotated[str, conf.arg(metavar="SOURCE.toml")]
    """What the dashboards are called: model, layer, source_set, ...; docs/how_to."""
    tokens: Annotated[str, conf.arg(metavar="FILE")]
    """The token of each row: a .json of texts, or an .npy of texts or ids."""
    vocabulary: Annotated[str | None, conf.arg(metavar="FILE")] = None
    """The text of each id of --tokens: a .json list, or an object from text to id."""
    unembedding: Annotated[str | None, conf.arg(metavar="FILE")] = None
    """An .npy of [D, V], from the decoder's output to the logits of the vocabulary."""
    vectors: bool = False
    """Write the decoder weights of each latent too."""
    context: int = 64
    """Tokens before and after each example."""
    array: str | None = None
    """The array to take from files that hold several. None: the run's."""
    all_rows: bool = False
    """Use also the rows of DATA that the run's --drop-first and --max-row-norm omit."""
    output: Annotated[str, conf.arg(aliases=["-o"], metavar="DIR")]
    """The folder to write, new or empty."""


# ---- names ---------------------------------------------------------------------------

# The hyperparameters that options set.
HPARAMS = (
    *("learning_rate", "momentum", "adamw_decay", "warmup_steps", "max_norm"),
    *("corruption_rate", "kl_sparsity_target", *penalties.CATALOGUE),
    *("schedule_steps", "final_fraction", INIT_SCALE),
    *("k", "k_start", "k_steps", "bandwidth"),
    *("tanh_sparsity_scale", *penalties.SPARSE),
)
_PENALTIES = (*penalties.CATALOGUE, *penalties.SPARSE)
_AUX_K_COEFFICIENT = 1 / 32  # Gao et al., 2024
# The penalties on activity, whose coefficients --sparsity-warmup-steps raises.
_SPARSITY = (
    *("l1", "kl_sparsity", "l1_decoder_norm", "l0", "tanh_sparsity", "gated_l1"),
)
# Where the option of an argument of the library has another name.
_RENAMED = {
    **{"num_epochs": "epochs", "tied": "untied"},
    **{"bias": "no_bias", "diagnostics": "no_diagnostics"},
}
_NEGATED = ("tied", "bias", "diagnostics")  # flags that turn something off
# Where the option of a hyperparameter has another name: --aux-k is the count.
_HPARAM_OPTIONS = {"aux_k": "aux_k_coefficient"}
MODEL_OPTIONS = (
    *("latent_dim", "activation", "observation"),
    *("untied", "no_bias", "pre_bias", "aligned"),
)
# Options that may change on --resume.
FREE_OPTIONS = (
    *("data_root", "log"),
    *(_RENAMED.get(n, n) for n, s in settings().items() if s.may_change_on_resume),
)


def option_name(name: str) -> str:
    """The option that sets an argument, as it is typed: "--epochs" for "num_epochs"."""
    return f"--{_RENAMED.get(name, name).replace('_', '-')}"


def hparam_option(name: str) -> str:
    """The option that sets a hyperparameter: "aux_k_coefficient" for "aux_k"."""
    return _HPARAM_OPTIONS.get(name, name)


def as_option(name: str, value: Any) -> tuple[str, Any]:
    """The option for an axis of a sweep: ("untied", True) for ("tied", False)."""
    option = _RENAMED.get(name, hparam_option(name))
    return option, not value if name in _NEGATED else value


def argument_names(kind: Any) -> dict[str, str]:
    """What errors of the library call its arguments on the command line, by name."""
    options = [field.name for field in dataclasses.fields(kind)]
    names = {name: option_name(name) for name in (*options, *_RENAMED)}
    names |= {f"config.{name}": option_name(name) for name in settings()}
    names |= {"validation": "--validation-fraction", "checkpoint_dir": "--out"}
    names |= {"source": "--data"}
    names |= {"data_mean": "--bias-from-mean or --bias-from-median"}
    names |= {"encoder": "--init-encoder", "every": "--resample-every"}
    names |= {"schedules": "--k-start and --k-steps"}
    if kind is ConvertOptions:
        names |= {"source": "SOURCE", "directory": "DIR", "format": "--source-format"}
    if kind is SweepOptions:  # its hyperparameters may be options, or in the file
        names |= {"first": "--halving-first", "factor": "--halving-factor"}
        return names | {f"hparams['{name}']": name for name in HPARAMS}
    names |= {f"hparams['{n}']": option_name(hparam_option(n)) for n in HPARAMS}
    return names | {"hparams": "the command"}


# ---- checks --------------------------------------------------------------------------

_NOT_COUNTS = ("seed", "warmup_steps", "drop_first")


def validated(options: TrainOptions) -> TrainOptions:
    """The options, checked, with the name of their random generator filled in."""
    _checks.lookup("dtype", dict.fromkeys(DTYPES), options.dtype)
    check_counts(options)
    _check_activation(options.activation)
    if options.aux_k is None and options.aux_k_coefficient is not None:
        raise CommandError(
            "a coefficient of aux_k needs --aux-k, the number of dead latents, such as "
            "--aux-k 512."
        )
    # A repetition uses this generator, whatever JAX's default is then.
    generator = generator_of(random_key(options))
    return dataclasses.replace(options, generator=generator)


def _check_activation(name: str) -> None:
    """Raise for an unknown activation, or for a number that it cannot have."""
    try:
        activations.get(name)
    except ArgumentError as error:
        if error.argument == "activation":
            raise
        # Of the activation's own number, k for example, which is an option too.
        raise CommandError(f"--activation {name}: {error}") from None


def check_counts(options: SharedOptions) -> None:
    """Raise for an integer below 1, or too large for 32 bits."""
    for name, hint in typing.get_type_hints(type(options)).items():
        value = getattr(options, name)
        is_count = hint in (int, int | None) and name not in _NOT_COUNTS
        if is_count and value is not None:
            if _checks.positive_int(option_name(name), value) >= 2**31:
                raise CommandError(
                    f"{option_name(name)} must be less than 2**31, got "
                    f"{_checks.describe(value)}."
                )


def random_key(options: SharedOptions) -> jax.Array:
    """The random key of `--seed` and `--generator`."""
    check_seed(options.seed)
    try:
        return jax.random.key(options.seed, impl=options.generator)
    except ValueError:
        raise CommandError(
            "--generator must be one that JAX knows, such as threefry2x32, rbg or "
            f"unsafe_rbg, got {options.generator!r}."
        ) from None


def check_seed(seed: int) -> None:
    """Raise for a seed that JAX or NumPy rejects."""
    if not 0 <= seed < 2**32:
        raise CommandError(f"--seed must be between 0 and 2**32 - 1, got {seed}.")


# ---- the objects that options describe -----------------------------------------------


def build_autoencoder(options: TrainOptions, input_dim: int) -> Autoencoder:
    """The model for data of that width."""
    return Autoencoder(
        input_dim=input_dim,
        latent_dim=options.latent_dim,
        activation=options.activation,
        observation=options.observation,
        bias=not options.no_bias,
        pre_bias=options.pre_bias,
        **_parametrization(options),
    )


def _parametrization(options: TrainOptions) -> dict[str, Any]:
    if options.aligned:
        return {"parametrization": parametrizations.aligned}
    return {"tied": not options.untied}


def build_objective(options: TrainOptions, ae: Autoencoder) -> Objective:
    """The objective; it has the penalties whose coefficients are given."""
    parts: dict[str, Any] = {
        "corruption": options.corruption,
        "penalties": [
            f"aux_k({options.aux_k})" if name == "aux_k" else name
            for name in _PENALTIES
            if getattr(options, name) is not None
        ],
        "prefixes": _prefixes(options.prefixes),
        "schedules": [schedules.linear(name) for name in _scheduled(options)],
    }
    return Objective(
        ae,
        **parts,
        compute_dtype=options.compute_dtype,
        cut_prefixes=options.cut_prefixes,
        dead_after=_dead_after(options),
    )


def _prefixes(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise CommandError(
            f"--prefixes must be integers such as 64,256,1024, got {text!r}."
        ) from None


def _dead_after(options: TrainOptions) -> int | None:
    if options.dead_after is None:
        return options.resample_every
    return options.dead_after


def _scheduled(options: TrainOptions) -> list[str]:
    """The hyperparameters that change linearly over the first steps."""
    names = _warmed_up(options)
    if options.k_start is not None or options.k_steps is not None:
        names.append("k")
    return names


def _warmed_up(options: TrainOptions) -> list[str]:
    """The penalties whose coefficients rise from 0."""
    if options.sparsity_warmup_steps is None:
        return []
    names = [name for name in _SPARSITY if getattr(options, name) is not None]
    if not names:
        known = ", ".join(map(option_name, _SPARSITY))
        raise CommandError(f"--sparsity-warmup-steps needs one of {known}.")
    return names


def build_evaluation(options: TrainOptions, ae: Autoencoder) -> Objective:
    """The objective of a trained model, with the last value of what has a schedule.

    `ae` is the model for use on one example, as a run folder holds it.
    """
    options = dataclasses.replace(
        options, sparsity_warmup_steps=None, k_start=None, k_steps=None
    )
    return build_objective(options, ae)


def evaluation_hparams(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of `build_evaluation`: the model has its k for good."""
    own = ("k", "k_start", "k_steps")
    return {name: value for name, value in hparams.items() if name not in own}


def build_optimizer(options: TrainOptions, name: str) -> Optimizer:
    """The optimizer of that name with the schedule and so on of the options."""
    return optimizers.build(
        name,
        schedule=options.schedule,
        warmup=options.warmup_steps is not None,
        clip=options.max_norm is not None,
        accumulate=options.accumulate,
        unit_norm=options.unit_norm,
    )


def build_config(options: TrainOptions, ae: Autoencoder) -> TrainConfig:
    """The static configuration of training this model."""
    after_update = None
    if options.resample_every is not None:
        after_update = dead_latents.resample(
            options.resample_every, ae=ae, dead_after=_dead_after(options)
        )
    return TrainConfig(
        num_epochs=options.epochs,
        batch_size=options.batch_size,
        optimizer=build_optimizer(options, options.optimizer),
        gradient=options.gradient,
        log_every=options.log_every,
        after_update=after_update,
        on_nonfinite=options.on_nonfinite,
        diagnostics=not options.no_diagnostics,
        monitor=options.monitor,
        patience=options.patience,
        checkpoint_steps=options.checkpoint_steps,
        checkpoint_minutes=options.checkpoint_minutes,
        keep_checkpoints=options.keep_checkpoints,
        memory_budget=2**20 * options.memory_budget,
    )


def build_hparams(options: TrainOptions, num_examples: int) -> dict[str, float | int]:
    """The hyperparameters that are given, and those of the schedule."""
    values = {name: getattr(options, hparam_option(name)) for name in HPARAMS}
    values = {name: value for name, value in values.items() if value is not None}
    if options.aux_k is not None:
        values.setdefault("aux_k", _AUX_K_COEFFICIENT)
    for name in _warmed_up(options):
        values |= {f"{name}_start": 0, f"{name}_steps": options.sparsity_warmup_steps}
    if options.schedule == "constant":
        return values
    num_steps = options.epochs * (num_examples // options.batch_size)
    num_updates = num_steps // options.accumulate - (options.warmup_steps or 0)
    return {"schedule_steps": max(1, num_updates), "final_fraction": 0.1, **values}
