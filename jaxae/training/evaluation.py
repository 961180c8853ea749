"""What is looked at when an epoch has ended."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxae import _checks
from jaxae import data as data_module
from jaxae.training import diagnostics, epochs
from jaxae.training.config import TrainConfig
from jaxae.training.progress import Best, Progress

PROBE_ROWS = 10_000  # of the training data, so many are looked at
_PROBE_BATCHES = 8  # of a source
_DEFAULT = TrainConfig().monitor


class Evaluator:
    """Ends an epoch: the means of its steps, and a look at the model that they made.

    The model is looked at on the validation data, and on the same rows of the training
    data every time: all, or some `PROBE_ROWS` spread over them. The gradient is that of
    the first `batch_size` of these, with the same noise every time.
    """

    def __init__(self, job: Any):
        self._job = job
        self._probe = (
            probe(job.data, job.key, job.hparams) if job.config.diagnostics else None
        )

    def end_epoch(self, progress: Progress) -> Progress:
        """With one more row of history, and its best epoch."""
        row: dict[str, Any] = _prefixed("train", progress.means.read(self._job.config))
        if self._job.config.diagnostics:
            row |= self._diagnose(progress.state)
        if self._job.validation is not None:
            scores = self._evaluate(self._job.validation, progress.state)
            row |= _prefixed("validation", scores)
        row = {name: float(value) for name, value in row.items()}
        history = (*progress.history, row)
        return progress._replace(
            means=jax.tree.map(jnp.zeros_like, progress.means),
            history=history,
            best=self._better(progress, row, len(history)),
        )

    def _better(self, progress: Progress, row: dict, epoch: int) -> Best | None:
        self._check_monitor(row)
        value, best = row.get(self._job.config.monitor, math.nan), progress.best
        if math.isnan(value) or (best is not None and not value < best.value):
            return best
        # A copy: the state goes on, and is donated.
        return Best(epoch, value, jax.tree.map(jnp.copy, progress.state.params))

    def _check_monitor(self, row: dict) -> None:
        """Refuse a metric that there is not, once their names are known.

        The default one may be missing: without validation data nothing is kept, and
        nobody asked for it.
        """
        config = self._job.config
        is_asked_for = config.patience is not None or config.monitor != _DEFAULT
        if is_asked_for and config.monitor not in row:
            raise ValueError(
                f"monitor must be a metric of the run, got {config.monitor!r}"
                f"{_checks.closest(config.monitor, row)}; known: {', '.join(row)}."
            )

    def _diagnose(self, state) -> dict[str, Any]:
        job, size = self._job, self._job.config.batch_size
        seen = self._evaluate(self._probe, state)
        # Of these "train/" has the epoch's own means.
        for name in ("loss", "reconstruction", *map(str, job.objective.penalties)):
            del seen[name]
        batch = jax.tree.map(lambda part: part[:size], self._probe)
        norms = diagnostics.of_step(
            state,
            batch,
            state.key,
            job.hparams,
            objective=job.objective,
            config=job.config,
        )
        return {**_prefixed("train", seen), **norms}

    def _evaluate(self, X: Any, state) -> dict[str, float]:
        job = self._job
        return diagnostics.evaluate(
            job.objective, state.params, X, job.hparams, state.state
        )


def _prefixed(part: str, metrics: dict[str, Any]) -> dict[str, Any]:
    return {f"{part}/{name}": value for name, value in metrics.items()}


def probe(data: Any, key, hparams) -> Any:
    """The rows of the training data that are looked at, on the device."""
    if callable(data):
        return _drawn(key, hparams, source=data)
    every = math.ceil(epochs.num_rows(data) / PROBE_ROWS)
    rows = np.arange(0, epochs.num_rows(data), every)

    def chosen(part):
        is_here = isinstance(part, jax.Array)
        return part[rows] if is_here else data_module.take(part, rows)

    parts = data if isinstance(data, tuple) else (data,)
    probes = tuple(jnp.asarray(chosen(part)) for part in parts)
    return probes if isinstance(data, tuple) else probes[0]


@functools.partial(jax.jit, static_argnames="source")
def _drawn(key, hparams, *, source) -> Any:
    keys = jax.random.split(key, _PROBE_BATCHES)
    batches = [source(key, hparams) for key in keys]

    def joined(*parts):  # each an array, or a list that stands for one
        return jnp.concatenate(list(map(jnp.asarray, parts)))

    return jax.tree.map(joined, *batches, is_leaf=lambda part: isinstance(part, list))
