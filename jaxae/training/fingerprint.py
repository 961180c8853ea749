"""The fingerprint of a run: the values that a resumed run must share with it."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
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
    """Return a dict of JSON values; runs with equal ones give bit-identical results.

    It excludes settings that may change on resume, such as the number of epochs. Arrays
    are identified by their SHA-256, a function by its name only, a partial function
    also by its arguments. A callable object is identified by its `name`; without one,
    by its type and, if it is a dataclass, by its fields.
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


def _name(component: Any) -> str | None:
    """Return the qualified name of a function or type, or the `name` of a record."""
    if component is None:
        return None
    if isinstance(component, functools.partial):
        arguments = [_value(value) for value in component.args]
        arguments += _named_values(component.keywords)
        return f"{_name(component.func)}({', '.join(arguments)})"
    if hasattr(component, "__qualname__"):
        return f"{component.__module__}.{component.__qualname__}"
    name = getattr(component, "name", getattr(component, "__name__", None))
    return name or f"{_name(type(component))}{_fields(component)}"


def _fields(component: Any) -> str:
    if not dataclasses.is_dataclass(component):
        return ""
    fields = [field.name for field in dataclasses.fields(component) if field.compare]
    values = {name: getattr(component, name) for name in fields}
    return f"({', '.join(_named_values(values))})"


def _named_values(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={_value(value)}" for name, value in sorted(values.items())]


def _value(value: Any) -> str:
    """Return a text that is equal in another process, unlike the address in a repr."""
    if isinstance(value, np.ndarray | jax.Array):
        return _sha256(value)
    is_address = type(value).__repr__ is object.__repr__
    return str(_name(value)) if callable(value) or is_address else repr(value)


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
