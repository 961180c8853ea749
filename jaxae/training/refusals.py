"""What training refuses, before any work."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxae import _checks
from jaxae.data import check_array
from jaxae.objective import Objective
from jaxae.training.config import TrainConfig
from jaxae.training.epochs import Data


def check_arguments(objective, key, config, params=None) -> None:
    """Refuse what is not of its type.

    Raises:
      ValueError: naming the argument.
    """
    if not isinstance(objective, Objective):
        raise ValueError(
            f"objective must be a jaxae.Objective, got {objective!r}; "
            "make one with jaxae.Objective(ae)."
        )
    if not isinstance(config, TrainConfig):
        raise ValueError(f"config must be a jaxae.TrainConfig, got {config!r}.")
    _checks.prng_key(key)
    if params is not None:
        objective.ae.check_params(params)


def as_data(
    name: str,
    data: Data,
    objective: Objective,
    dtype,
    config: TrainConfig | None = None,
) -> Data:
    """Checked arrays of that dtype; a source as it is. With config, for training.

    Raises:
      ValueError: for bad values (which row and column), shapes or sizes.
    """
    if callable(data) and config is not None:
        if config.steps_per_epoch is None:
            raise ValueError(
                "steps_per_epoch must say how many batches an epoch takes from a "
                "source, got None; set it in the TrainConfig."
            )
        return data
    pair = data if isinstance(data, tuple) else (data,)
    for part in pair:
        check_array(part, name)
        if part.shape[1] != objective.ae.input_dim:
            raise ValueError(
                f"{name} must have {objective.ae.input_dim} columns for this model, "
                f"got shape {list(part.shape)}."
            )
    num_examples = len(pair[0])
    if any(len(part) != num_examples for part in pair):
        raise ValueError(f"{name} must pair inputs and targets of equal length.")
    objective.ae.observation.validate(np.asarray(pair[-1]))
    if config is not None and config.batch_size > num_examples:
        raise ValueError(
            f"batch_size must be at most the number of examples, got "
            f"{config.batch_size} for {num_examples}."
        )
    arrays = tuple(jnp.asarray(part, dtype) for part in pair)
    return arrays if isinstance(data, tuple) else arrays[0]


def as_hparams(hparams: Mapping[str, Any], dtype) -> dict[str, Array]:
    """Scalars by name as arrays, at least float32, so that they are traced.

    Raises:
      ValueError: for what is not a finite real scalar.
    """
    dtype = jnp.promote_types(dtype, jnp.float32)
    for name, value in hparams.items():
        try:
            is_scalar = np.ndim(value) == 0 and bool(np.isfinite(float(value)))
        except (TypeError, ValueError):
            is_scalar = False
        if not is_scalar:
            raise ValueError(
                f"hparams[{name!r}] must be a finite number, got {value!r}."
            )
    return {name: jnp.asarray(value, dtype) for name, value in hparams.items()}


class _Reads(Mapping):
    """Hyperparameters that note which names are read, and lack none."""

    def __init__(self, hparams):
        self._hparams, self.names = hparams, set()

    def __getitem__(self, name):
        self.names.add(name)
        return self._hparams.get(name, 1.0)

    def get(self, name, default=None):
        """As a dict's; a name that is asked for so is optional."""
        return self[name] if name in self._hparams else default

    def __contains__(self, name):
        return name in self._hparams

    def __iter__(self):
        return iter(self._hparams)

    def __len__(self):
        return len(self._hparams)


def check_hparams(
    objective: Objective, config: TrainConfig, data: Data, hparams: Mapping, key
) -> None:
    """Refuse hyperparameters that nobody reads, or that somebody lacks.

    Raises:
      ValueError: listing the names.
    """
    reads = _Reads(hparams)
    config.optimizer(reads)
    if callable(data):
        jax.eval_shape(lambda key: data(key, reads), key)
    needed = sorted(reads.names | set(objective.hparam_names))
    missing = [name for name in needed if name not in hparams]
    unused = [name for name in hparams if name not in needed]
    if missing or unused:
        found = [f"lacks {', '.join(missing)}"] if missing else []
        found += [f"has {', '.join(unused)}, which nothing reads"] if unused else []
        raise ValueError(
            f"hparams {' and '.join(found)}; this objective and optimizer read: "
            f"{', '.join(needed) or 'none'}."
        )
