"""Checkpoints of a run: contents, fingerprint, schedule, and deferral of signals."""

import dataclasses
import functools
import hashlib
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import jaxlib
import numpy as np
import optax

from jaxae._keys import as_key_data, generator_of, with_keys
from jaxae._version import __version__
from jaxae.autoencoder.files import describe
from jaxae.checkpoints import Checkpoints
from jaxae.data import column_stats
from jaxae.data.rows import block_shuffle_of
from jaxae.training.config import TrainConfig, settings
from jaxae.training.run import Best, RunState

# ---- as arrays by name, and back -----------------------------------------------------

_HISTORY, _BEST, _BEST_STATE = "history", "best.", "best_state."


def save(checkpoints: Checkpoints, run_state: RunState) -> None:
    """Save the state of a run, in the background; see `Checkpoints.save`."""
    arrays = _by_name(_saved_trees(run_state))
    if run_state.history:
        rows = [list(metrics.values()) for metrics in run_state.history]
        arrays[_HISTORY] = np.array(rows, np.float64)
    notes: dict[str, Any] = {
        "metrics": list(run_state.history[0]) if run_state.history else [],
        "reason": run_state.reason,
    }
    best = run_state.best
    if best is not None:
        arrays |= _by_name(best.params, _BEST)
        arrays |= _by_name(best.state, _BEST_STATE)
        notes["best"] = {"epoch": best.epoch, "value": best.value}
    checkpoints.save(int(run_state.state.step), arrays, notes)


def restore(checkpoints: Checkpoints, initial: RunState) -> RunState | None:
    """Return the last saved state, sharded like the initial one; None without one."""
    params, of_objective = initial.state.params, initial.state.state
    trees = _saved_trees(initial)
    optional = {**_by_name(params, _BEST), **_by_name(of_objective, _BEST_STATE)}
    checkpoint = checkpoints.restore(_by_name(trees), optional)
    if checkpoint is None:
        return None
    arrays, notes = checkpoint.arrays, checkpoint.notes
    history: tuple[dict[str, float], ...] = ()
    if notes["metrics"]:
        rows = np.asarray(arrays[_HISTORY]).tolist()
        history = tuple(dict(zip(notes["metrics"], row, strict=True)) for row in rows)
    best = None
    if "best" in notes:
        best = Best(
            **notes["best"],
            params=_from_names(params, arrays, _BEST),
            state=_from_names(of_objective, arrays, _BEST_STATE),
        )
    trees = _from_names(trees, arrays)
    state = trees["state"]._replace(key=as_key_data(initial.state.key))
    state = with_keys(state, initial.state)
    return RunState(state, trees["means"], history, best, notes["reason"])


def _saved_trees(run_state: RunState) -> dict[str, Any]:
    # Not the key: the user passes it again, and the fingerprint checks it.
    no_key: Any = ()
    state = run_state.state._replace(key=no_key)
    return {"state": as_key_data(state), "means": run_state.means}


def _by_name(tree: Any, prefix: str = "") -> dict[str, Any]:
    return {
        prefix + jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _from_names(like: Any, arrays: dict[str, Any], prefix: str = "") -> Any:
    leaves = [arrays[name] for name in _by_name(like, prefix)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


# ---- what a resumed run must share with the saved one --------------------------------


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
        "penalties": [repr(penalty) for penalty in objective.penalties],
        **_changed_fields(objective),
        "config": _settings(config),
        "hparams": {name: str(value) for name, value in sorted(hparams.items())},
        "generator": generator_of(key),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "params": None if params is None else _sha256(params),
        "data": _data(data),
        "validation": None if validation is None else _data(validation),
    }


def _changed_fields(objective) -> dict[str, Any]:
    """The fields that most objectives leave at their defaults; only those that differ.

    A checkpoint of a version without these fields then still fits.
    """
    prefixes = objective.prefixes and list(objective.prefixes)  # as JSON has it
    fields = {
        "prefixes": prefixes,
        "cut_prefixes": objective.cut_prefixes,
        "dead_after": objective.dead_after,
        "schedules": [repr(schedule) for schedule in objective.schedules],
    }
    return {name: value for name, value in fields.items() if value}


def _settings(config: TrainConfig) -> dict[str, Any]:
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
        return _call(component.func, component.args, component.keywords)
    if hasattr(component, "__qualname__"):
        return f"{component.__module__}.{component.__qualname__}"
    name = getattr(component, "name", getattr(component, "__name__", None))
    if name or not dataclasses.is_dataclass(component):
        return name or _name(type(component))
    fields = [field.name for field in dataclasses.fields(component) if field.compare]
    return _call(type(component), (), {n: getattr(component, n) for n in fields})


def _call(function: Any, arguments: tuple, named: Mapping[str, Any]) -> str:
    values = [*map(_value, arguments)]
    values += [f"{name}={_value(value)}" for name, value in sorted(named.items())]
    return f"{_name(function)}({', '.join(values)})"


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
    stats, shuffle = column_stats(data), block_shuffle_of(data)
    return {
        "shape": [stats.num_rows, stats.num_columns],
        "dtype": str(stats.dtype),
        "sha256": stats.sha256,
        **({} if shuffle is None else {"block_shuffle": list(shuffle)}),
    }


def _sha256(params: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


# ---- when it is saved ----------------------------------------------------------------

_SEGMENT_SECONDS = 0.5  # target duration; a signal waits for the end of its segment
_FIRST_STEPS = 16


class Pace:
    """Adapts the number of steps of a segment to about `_SEGMENT_SECONDS`."""

    def __init__(self, first_steps: int):
        self._called_at, self._num_steps = time.monotonic(), first_steps
        self._may_double = False  # only after a segment of that many steps

    def num_steps(self, at_most: int) -> int:
        """Return the length of the next segment; called once before each segment."""
        now = time.monotonic()
        elapsed, self._called_at = now - self._called_at, now
        if elapsed > 2 * _SEGMENT_SECONDS:
            self._num_steps = max(1, self._num_steps // 2)
        elif elapsed < _SEGMENT_SECONDS and self._may_double:
            self._num_steps *= 2
        self._may_double = self._num_steps <= at_most
        return min(self._num_steps, at_most)


class Checkpointer:
    """Saves a run at the configured intervals and at its end.

    It does nothing if `checkpoints` is None. A context manager that defers SIGINT and
    SIGTERM until the state is saved.
    """

    def __init__(
        self, checkpoints: Checkpoints | None, config: TrainConfig, run_state: RunState
    ):
        self._checkpoints, self._config = checkpoints, config
        is_restored = int(run_state.state.step) > 0 or run_state.reason is not None
        self._saved = _version(run_state) if is_restored else None
        self._saved_at, self._pace = time.monotonic(), Pace(_FIRST_STEPS)
        self._signals = DeferredSignals()

    def __enter__(self) -> "Checkpointer":
        if self._checkpoints is not None:
            self._signals.defer()
        return self

    def __exit__(self, *exception) -> None:
        self._signals.restore()
        if exception[0] not in (None, KeyboardInterrupt):
            self._signals.deliver()  # no later save will deliver it

    @property
    def is_interrupted(self) -> bool:
        """Whether a signal is pending."""
        return self._signals.number is not None

    def segment_length(self, step: int, at_most: int) -> int:
        """Return the number of steps to run before `save_if_due` is called again."""
        if self._checkpoints is None:
            return at_most
        every = self._config.checkpoint_steps
        if every is not None:
            at_most = min(at_most, every - step % every)
        return self._pace.num_steps(at_most)

    def save_if_due(self, run_state: RunState) -> None:
        """Save if config.checkpoint_steps or checkpoint_minutes have passed."""
        if self._checkpoints is None or _version(run_state) == self._saved:
            return
        step = int(run_state.state.step)
        every, minutes = self._config.checkpoint_steps, self._config.checkpoint_minutes
        seconds = time.monotonic() - self._saved_at
        is_step = every is not None and step % every == 0
        if is_step or (minutes is not None and seconds >= 60 * minutes):
            self._save(run_state)

    def finish(self, run_state: RunState) -> None:
        """Save the last state, wait for the disk, and deliver a pending signal."""
        if self._checkpoints is None:
            return
        if _version(run_state) != self._saved:
            self._save(run_state)
        self._checkpoints.wait()
        self._signals.deliver()

    def _save(self, run_state: RunState) -> None:
        assert self._checkpoints is not None
        save(self._checkpoints, run_state)
        self._saved, self._saved_at = _version(run_state), time.monotonic()


def _version(run_state: RunState) -> tuple[int, str | None]:
    """Return step and reason, in which a state differs from every earlier one."""
    return int(run_state.state.step), run_state.reason


# ---- signals -------------------------------------------------------------------------


class DeferredSignals:
    """Defers the first SIGINT or SIGTERM until `deliver` is called.

    The default handlers end the program between any two instructions. A deferred signal
    stays pending until the state is saved; `deliver` then calls the original handler. A
    second signal raises KeyboardInterrupt. Outside the main thread Python allows no
    handlers, and nothing is deferred.
    """

    def __init__(self):
        self.number: int | None = None  # of the pending signal
        self._handlers: dict[int, Any] = {}

    def defer(self) -> None:
        """Replace the handlers, until `restore`."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            # An ignored signal (nohup) stays ignored. None: not installed from Python.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._handlers[number] = signal.signal(number, self._record)

    def restore(self) -> None:
        """Put the handlers back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def deliver(self) -> None:
        """Send a pending signal to its own handler; returns if the handler does."""
        if self.number is None:
            return
        self.restore()
        number, self.number = self.number, None  # delivered once, if the handler raises
        signal.raise_signal(number)

    def _record(self, number, frame) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
