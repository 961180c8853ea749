"""The fingerprint of a run: the values that a resumed run must share with it."""

import functools
import hashlib
from typing import Any

import jax
import jaxlib
import numpy as np
import optax

from jaxae._keys import generator_of
from jaxae._version import __version__
from jaxae.autoencoder.files import describe
from jaxae.data import column_stats
from jaxae.training.config import TrainConfig, settings


def fingerprint(objective, config: TrainConfig, hparams, key, params, data, validation):
    """JSON values that are equal for two runs whose results are to be bit-identical.

    Settings that may change on resume are left out, such as the number of epochs. A
    function is identified by its name only, data by their SHA-256.
    """
    return {
        "version": {
            "jaxae": __version__,
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "optax": optax.__version__,
        },
        "model": describe(objective.ae),
        "corruption": _name(objective.corruption),
        "compute_dtype": objective.compute_dtype,
        "penalties": [penalty.name for penalty in objective.penalties],
        "config": _config(config),
        "hparams": {name: str(value) for name, value in sorted(hparams.items())},
        "generator": generator_of(key),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "params": None if params is None else _sha256(params),
        "data": _data(data),
        "validation": None if validation is None else _data(validation),
    }


def _config(config: TrainConfig) -> dict[str, Any]:
    values = {
        name: getattr(config, name)
        for name, about in settings().items()
        if not about.may_change_on_resume
    }
    return {name: _name(v) if callable(v) else v for name, v in values.items()}


def _name(part: Any) -> str | None:
    """Module and name of a function; the name of a record, else that of its type."""
    if part is None:
        return None
    if isinstance(part, functools.partial):
        return f"{_name(part.func)}{part.args}{part.keywords}"
    if hasattr(part, "__qualname__"):
        return f"{part.__module__}.{part.__qualname__}"
    own = getattr(part, "name", getattr(part, "__name__", None))
    return own or f"{type(part).__module__}.{type(part).__qualname__}"


def _data(data: Any) -> Any:
    if callable(data):
        return _name(data)
    if isinstance(data, tuple):
        return [_data(array) for array in data]
    stats = column_stats(data)
    return {
        "shape": [stats.num_rows, stats.num_columns],
        "dtype": str(stats.dtype),
        "sha256": stats.sha256,
    }


def _sha256(params: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
