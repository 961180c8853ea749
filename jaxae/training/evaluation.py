"""The metrics of an epoch that has ended."""

import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxae import data as data_module
from jaxae.training import diagnostics, epochs
from jaxae.training.epochs import Means, TrainState

if TYPE_CHECKING:
    from jaxae.training.loop import PreparedRun

PROBE_ROWS = 10_000  # of the training data, at most, of which diagnostics are computed
_PROBE_BATCHES = 8  # of a source
_PROBE_KEY = 2**32 - 1  # folded into a run's key for them


class Evaluator:
    """Computes the metrics of an epoch: the means of its steps, and an evaluation.

    The model is evaluated on the validation data and, with config.diagnostics, on the
    probe: the same rows of the training data after every epoch (`probe`). The gradient
    norms are those of the probe's first batch, with the same noise every time.
    """

    def __init__(self, prepared: "PreparedRun"):
        self._prepared = prepared
        self._probe = None
        if prepared.config.diagnostics:
            self._probe = probe(prepared.data, prepared.key, prepared.hparams)

    def metrics(self, state: TrainState, means: Means) -> dict[str, float]:
        """By name: "train/loss", "validation/loss", ...

        Args:
          state: the state after the epoch.
          means: of the epoch's steps.
        """
        metrics = _prefixed("train", means.read(self._prepared.config))
        if self._probe is not None:
            metrics |= self._diagnostics(state)
        if self._prepared.validation is not None:
            scores = self._evaluate(self._prepared.validation, state)
            metrics |= _prefixed("validation", scores)
        return {name: float(value) for name, value in metrics.items()}

    def _diagnostics(self, state: TrainState) -> dict[str, Any]:
        objective, config = self._prepared.objective, self._prepared.config
        scores = self._evaluate(self._probe, state)
        # For these, "train/" is the mean over the epoch's steps.
        for name in diagnostics.names_of_step(objective):
            del scores[name]
        batch = jax.tree.map(lambda rows: rows[: config.batch_size], self._probe)
        norms = diagnostics.of_step(
            state,
            batch,
            state.key,
            self._prepared.hparams,
            objective=objective,
            config=config,
        )
        return {**_prefixed("train", scores), **norms}

    def _evaluate(self, X: Any, state: TrainState) -> dict[str, float]:
        objective, hparams = self._prepared.objective, self._prepared.hparams
        return diagnostics.evaluate(objective, state.params, X, hparams, state.state)


def _prefixed(split: str, metrics: dict[str, Any]) -> dict[str, Any]:
    return {f"{split}/{name}": value for name, value in metrics.items()}


def probe(data: Any, key, hparams) -> Any:
    """At most `PROBE_ROWS` rows spread evenly over the training data, on the device."""
    if callable(data):
        return _draw_probe(key, hparams, source=data)
    every = math.ceil(epochs.num_rows(data) / PROBE_ROWS)
    numbers = np.arange(0, epochs.num_rows(data), every)

    def take(rows):
        if isinstance(rows, jax.Array):
            return rows[numbers]
        return jnp.asarray(data_module.take(rows, numbers))

    return jax.tree.map(take, data)


@functools.partial(jax.jit, static_argnames="source")
def _draw_probe(key, hparams, *, source) -> Any:
    # Not split(key), whose first two keys draw the parameters and the training data.
    keys = jax.random.split(jax.random.fold_in(key, _PROBE_KEY), _PROBE_BATCHES)
    batches = [source(key, hparams) for key in keys]

    def concatenate(*arrays):  # each an array, or a list that stands for one
        return jnp.concatenate(list(map(jnp.asarray, arrays)))

    return jax.tree.map(concatenate, *batches, is_leaf=lambda a: isinstance(a, list))
