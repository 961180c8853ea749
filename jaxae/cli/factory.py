"""From options to a model, an objective, an optimizer and their numbers."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

import jaxae
from jaxae import optimizers
from jaxae.autoencoder.files import CONFIG_FILE
from jaxae.cli import run_folder
from jaxae.cli.options import TrainOptions

HPARAMS = (
    *("learning_rate", "momentum", "adamw_decay", "warmup_steps", "max_norm"),
    *("corruption_rate", "kl_sparsity_target", *jaxae.penalties.CATALOGUE),
)


def autoencoder(options: TrainOptions, input_dim: int) -> jaxae.Autoencoder:
    """The model for data of that width."""
    return jaxae.Autoencoder(
        input_dim=input_dim,
        latent_dim=options.latent_dim,
        activation=jaxae.activations.get(options.activation),
        observation=jaxae.observations.get(options.observation),
        tied=not options.untied,
        bias=not options.no_bias,
    )


def objective(options: TrainOptions, ae: jaxae.Autoencoder) -> jaxae.Objective:
    """What is minimised: a penalty is added by giving its coefficient."""
    corruption = None
    if options.corruption is not None:
        corruption = jaxae.corruptions.get(options.corruption)
    catalogue = jaxae.penalties.CATALOGUE
    return jaxae.Objective(
        ae,
        corruption=corruption,
        penalties=tuple(
            catalogue[name] for name in catalogue if getattr(options, name) is not None
        ),
        compute_dtype=options.compute_dtype,
    )


def config(options: TrainOptions) -> jaxae.TrainConfig:
    """The fixed choices of training."""
    optimizer = optimizers.build(
        options.optimizer,
        schedule=options.schedule,
        warmup=options.warmup_steps is not None,
        clip=options.max_norm is not None,
        accumulate=options.accumulate,
    )
    return jaxae.TrainConfig(
        num_epochs=options.epochs,
        batch_size=options.batch_size,
        optimizer=optimizer,
        gradient=options.gradient,
        on_nonfinite=options.on_nonfinite,
        monitor=options.monitor,
        patience=options.patience,
        checkpoint_minutes=options.checkpoint_minutes,
        checkpoint_steps=options.checkpoint_steps,
        keep_checkpoints=options.keep_checkpoints,
        memory_budget=2**20 * options.memory_budget,
    )


def hparams(options: TrainOptions, num_examples: int) -> dict[str, float | int]:
    """The numbers that were given, and those of the schedule."""
    names = (*HPARAMS, "schedule_steps", "final_fraction")
    given = {name: getattr(options, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    if options.schedule == "constant":
        return given
    length = _schedule_length(options, num_examples)
    return {"schedule_steps": length, "final_fraction": 0.1, **given}


def _schedule_length(options: TrainOptions, num_examples: int) -> int:
    num_steps = options.epochs * (num_examples // options.batch_size)
    return max(1, num_steps // options.accumulate - (options.warmup_steps or 0))


# The options that `--start-from` takes from a run.
_OF_MODEL = ("latent_dim", "untied", "no_bias", "activation", "observation")
_OF_SCALING = ("scaling", "divide_by")


def with_run(options: TrainOptions, run: str) -> TrainOptions:
    """The options with the model, the scaling and the dtype of a run to start from.

    Raises:
      FileNotFoundError, ValueError: as `run_folder.read_config`.
    """
    path = Path(run) / CONFIG_FILE
    config = run_folder.read_config(path)
    of_run = run_folder.as_options(TrainOptions, config["options"], path)
    names = (*_OF_MODEL, *_OF_SCALING, "dtype")
    taken = {name: getattr(of_run, name) for name in names}
    return dataclasses.replace(options, start_from=run, **taken)


def check_start(options: TrainOptions) -> None:
    """Refuse options that disagree with the run that `--start-from` names.

    Raises:
      ValueError: naming one.
    """
    if options.start_from is None:
        return
    if options.params is not None:
        raise ValueError("--start-from and --params exclude each other; give one.")
    of_run = with_run(options, options.start_from)
    for name in (*_OF_MODEL, *_OF_SCALING):
        was, now = getattr(of_run, name), getattr(options, name)
        if was != now:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"--start-from {options.start_from} takes the model and the scaling of "
                f"that run, where {option} is {run_folder.given(was)}, and it is "
                f"{run_folder.given(now)} here; leave {option} out."
            )


def params_of(options: TrainOptions, ae: jaxae.Autoencoder) -> Any:
    """The parameters of the run to start from, untied where this model is.

    Raises:
      ValueError: if they are another model's.
    """
    option = "--params" if options.start_from is None else "--start-from"
    run = options.start_from or options.params
    assert run is not None
    other, params = jaxae.load(run)
    if other.input_dim != ae.input_dim:
        raise ValueError(
            f"{option} {run} holds a model of {other.input_dim} columns, but --data "
            f"{options.data} has {ae.input_dim}."
        )
    if other.tied and not ae.tied:
        other, params = dataclasses.replace(other, tied=False), jaxae.untie(params)  # type: ignore[call-arg]
    if other != ae:
        raise ValueError(
            f"{option} {run} holds another model: {other}, and these options say {ae}."
        )
    dtype = jax.numpy.dtype(options.dtype)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)
