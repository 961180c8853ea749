"""The options of each verb, and the objects of the library that they describe.

Most options are arguments of `Autoencoder`, `Objective` and `TrainConfig`: their types,
defaults and descriptions are read from there.
"""

from __future__ import annotations  # only `main` needs tyro

import contextlib
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import jax

from jaxae import (
    _checks,
    activations,
    corruptions,
    observations,
    optimizers,
    penalties,
)
from jaxae._keys import generator_of
from jaxae.autoencoder import Autoencoder
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

# The options that are hyperparameters.
HPARAMS = (
    *("learning_rate", "momentum", "adamw_decay", "warmup_steps", "max_norm"),
    *("corruption_rate", "kl_sparsity_target", *penalties.CATALOGUE),
    *("schedule_steps", "final_fraction", INIT_SCALE),
)
# No float16: Adam's eps underflows in it, and its sums of squares overflow.
DTYPES = ("bfloat16", "float32", "float64")

# ---- options that are arguments of the library ---------------------------------------

# Where the option of an argument has another name.
_RENAMED = {
    **{"num_epochs": "epochs", "tied": "untied"},
    **{"bias": "no_bias", "diagnostics": "no_diagnostics"},
}
_NEGATED = ("tied", "bias", "diagnostics")  # flags that turn something off
_MEBIBYTES = ("memory_budget",)
_DEFAULTS = {"latent_dim": 64}
# Arguments that follow from the data and from the other options.
_OMITTED = ("input_dim", "ae", "penalties", "steps_per_epoch")
_PARTS = ("activation", "observation", "corruption", "optimizer")  # given by name
_SHARED = ("num_epochs", "batch_size", "optimizer", "gradient", "log_every")
_HELP = {
    "activation": f"The encoder's g: {', '.join(activations.CATALOGUE)}.",
    "observation": (
        f"The distribution of the inputs: {', '.join(observations.CATALOGUE)}, "
        "gaussian_with(relu), ...; bernoulli is for data in [0, 1]."
    ),
    "tied": "Untie the decoder: its weights are its own, not the encoder's transposed.",
    "bias": "Give the encoder no bias; the decoder keeps its own.",
    "pre_bias": "Subtract the decoder's bias from the input of the encoder.",
    "corruption": f"Noise on the inputs: {', '.join(corruptions.CATALOGUE)}.",
    "compute_dtype": "bfloat16: round to it in matrix products. None: --dtype.",
    "optimizer": f"The optimizer: {', '.join(optimizers.CATALOGUE)}.",
    "diagnostics": "Leave out the evaluation of the model at the end of each epoch.",
    "memory_budget": "MiB; larger data stay on disk, and batches are read from there.",
}


def option_name(name: str) -> str:
    """The option that sets an argument, as it is typed: "--epochs" for "num_epochs"."""
    return f"--{_RENAMED.get(name, name).replace('_', '-')}"


def as_option(name: str, value: Any) -> tuple[str, Any]:
    """The option for an argument: ("untied", True) for ("tied", False)."""
    return _RENAMED.get(name, name), not value if name in _NEGATED else value


def argument_names(kind: Any) -> dict[str, str]:
    """What errors of the library call its arguments on the command line, by name."""
    names = {field.name: option_name(field.name) for field in dataclasses.fields(kind)}
    names |= {name: option_name(name) for name in _RENAMED}
    names |= {f"config.{name}": option_name(name) for name in _parameters(TrainConfig)}
    names |= {"validation": "--validation-fraction", "checkpoint_dir": "--out"}
    names |= {"data_mean": "--bias-from-mean"}
    if kind is SweepOptions:  # its hyperparameters may be options, or in the file
        return names | {f"hparams['{name}']": name for name in HPARAMS}
    names |= {f"hparams['{name}']": option_name(name) for name in HPARAMS}
    return names | {"hparams": "the command"}


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The arguments of a class that are options."""
    parameters = inspect.signature(cls).parameters
    return {name: one for name, one in parameters.items() if _is_option(one)}


def _is_option(parameter: inspect.Parameter) -> bool:
    """Whether text can be its value; a function is given in Python only."""
    members = typing.get_args(parameter.annotation) or (parameter.annotation,)
    is_plain = all(m in (int, float, bool, str, types.NoneType) for m in members)
    is_part = parameter.name in _PARTS
    return is_part or (is_plain and parameter.name not in _OMITTED)


def _option(parameter: inspect.Parameter) -> tuple[str, Any, Any]:
    """The name, type and default of the option for an argument."""
    name, hint = parameter.name, parameter.annotation
    default: Any = _DEFAULTS.get(name, parameter.default)
    if name in _PARTS:
        hint = str | None if default is None else str
        if default is not None:
            default = getattr(default, "name", None) or default.__name__
    if hint in (bool, bool | None):  # flags are False by default
        hint, default = bool, False
    if name in _MEBIBYTES:
        default //= 2**20
    return _RENAMED.get(name, name), hint, default


def _described(cls: type) -> dict[str, str]:
    """What the docstring of a class says of each attribute."""
    _, _, section = (inspect.getdoc(cls) or "").partition("\nAttributes:\n")
    entries = re.findall(r"^  (\w+): (.+(?:\n    .+)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _options_of(base: type, *sources: tuple[type, Iterable[str]]) -> Any:
    """`base` with an option for each of these arguments of classes of the library."""
    options, help_texts = [], []
    for cls, names in sources:
        described, parameters = _described(cls), _parameters(cls)
        for name in names:
            option, hint, default = _option(parameters[name])
            options.append((option, hint, dataclasses.field(default=default)))
            text = _HELP.get(name, described.get(name, ""))
            help_texts.append(f"  {option}: {text[:1].upper()}{text[1:]}")
    made = dataclasses.make_dataclass(
        f"{base.__name__}OfLibrary", options, bases=(base,), frozen=True
    )
    made.__doc__ = "\n".join(["Options.", "", "Attributes:", *help_texts])
    return made


def arguments(cls: type, options: Any) -> dict[str, Any]:
    """The arguments of a class of the library, as the options set them."""
    values = {}
    for name in _parameters(cls):
        value = getattr(options, _RENAMED.get(name, name))
        if name in _NEGATED:
            value = not value
        if name in _MEBIBYTES:
            value *= 2**20
        values[name] = value
    return values


MODEL_OPTIONS = tuple(_RENAMED.get(name, name) for name in _parameters(Autoencoder))
# Options that may change on --resume.
FREE_OPTIONS = (
    "data_root",
    *(_RENAMED.get(n, n) for n, s in settings().items() if s.may_change_on_resume),
)

# ---- train and sweep -----------------------------------------------------------------


@dataclass(frozen=True)
class DataOptions:
    """Which data `train` and `sweep` use."""

    data: str = "digits"
    """digits, mnist, fashion_mnist, or a path to your own .npy or .npz of [N, D]."""
    array: str | None = None
    """The array to take from an .npz that holds several."""
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


_SharedBase: Any = _options_of(
    DataOptions,
    (Autoencoder, _parameters(Autoencoder)),
    (Objective, _parameters(Objective)),
    (TrainConfig, _SHARED),
)


@dataclass(frozen=True)
class SharedOptions(_SharedBase):
    """The options of both `train` and `sweep`: data, model, objective, optimizer."""

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


_TrainBase: Any = _options_of(
    SharedOptions,
    (TrainConfig, [name for name in _parameters(TrainConfig) if name not in _SHARED]),
)


@dataclass(frozen=True)
class TrainOptions(_TrainBase):
    """Train an autoencoder on real data and write a run folder."""

    start_from: str | None = None
    """Start from this run folder: its model, its scaling and its parameters."""
    params: str | None = None
    """Start from the parameters of this run; with --untied, tied ones are untied."""
    bias_from_mean: bool = False
    """Start the output bias at the mean of the training data."""
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


# ---- the other verbs -----------------------------------------------------------------


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
    """A .npy or .npz file of [N, D] in the units of the run's data, or a dataset."""
    output: _Output
    """The .npy file to write."""
    array: str | None = None
    """The array to take from an .npz that holds several. None: the run's."""


@dataclass(frozen=True)
class ReconstructOptions(EncodeOptions):
    """Write the reconstructions of a dataset, in its own units: [N, D]."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Print the metrics of a trained model, on the run's data or on other data."""

    run: _Run
    """The run folder, or RUN/best for its best epoch."""
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
    """The run folder, or RUN/best for its best epoch."""


# ---- checks --------------------------------------------------------------------------

_NOT_COUNTS = ("seed", "warmup_steps")


def validated(options: TrainOptions) -> TrainOptions:
    """The options, checked, with the name of their random generator filled in.

    Raises:
      ValueError: for an option that is out of range.
    """
    _checks.lookup("dtype", dict.fromkeys(DTYPES), options.dtype)
    check_counts(options)
    # A repetition uses this generator, whatever JAX's default is then.
    generator: Any = {"generator": generator_of(random_key(options))}
    return dataclasses.replace(options, **generator)


def check_counts(options: SharedOptions) -> None:
    """Raise for an integer below 1, or too large for 32 bits.

    Raises:
      ValueError: the message names the first.
    """
    for name, hint in typing.get_type_hints(type(options)).items():
        value = getattr(options, name)
        is_count = hint in (int, int | None) and name not in _NOT_COUNTS
        if is_count and value is not None:
            if _checks.positive_int(option_name(name), value) >= 2**31:
                raise ValueError(
                    f"{option_name(name)} must be less than 2**31, got "
                    f"{_checks.describe(value)}."
                )


def random_key(options: SharedOptions) -> jax.Array:
    """The random key of `--seed` and `--generator`.

    Raises:
      ValueError: for a seed out of range, or an unknown generator.
    """
    check_seed(options.seed)
    try:
        return jax.random.key(options.seed, impl=options.generator)
    except ValueError:
        raise ValueError(
            "--generator must be one that JAX knows, such as threefry2x32, rbg or "
            f"unsafe_rbg, got {options.generator!r}."
        ) from None


def check_seed(seed: int) -> None:
    """Raise for a seed that JAX or NumPy rejects."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed must be between 0 and 2**32 - 1, got {seed}.")


# ---- the objects that options describe -----------------------------------------------


def build_autoencoder(options: TrainOptions, input_dim: int) -> Autoencoder:
    """The model for data of that width."""
    return Autoencoder(input_dim=input_dim, **arguments(Autoencoder, options))


def build_objective(options: TrainOptions, ae: Autoencoder) -> Objective:
    """The objective; it has the penalties whose coefficients are given."""
    catalogue = penalties.CATALOGUE
    chosen = [catalogue[n] for n in catalogue if getattr(options, n) is not None]
    return Objective(ae, penalties=tuple(chosen), **arguments(Objective, options))


def build_optimizer(options: TrainOptions, name: str) -> Optimizer:
    """The optimizer of that name with the schedule and so on of the options."""
    return optimizers.build(
        name,
        schedule=options.schedule,
        warmup=options.warmup_steps is not None,
        clip=options.max_norm is not None,
        accumulate=options.accumulate,
    )


def build_config(options: TrainOptions) -> TrainConfig:
    """The static configuration of training."""
    values = arguments(TrainConfig, options)
    values["optimizer"] = build_optimizer(options, options.optimizer)
    return TrainConfig(**values)


def build_hparams(options: TrainOptions, num_examples: int) -> dict[str, float | int]:
    """The hyperparameters that are given, and those of the schedule."""
    values = {name: getattr(options, name) for name in HPARAMS}
    values = {name: value for name, value in values.items() if value is not None}
    if options.schedule == "constant":
        return values
    num_steps = options.epochs * (num_examples // options.batch_size)
    num_updates = num_steps // options.accumulate - (options.warmup_steps or 0)
    return {"schedule_steps": max(1, num_updates), "final_fraction": 0.1, **values}
