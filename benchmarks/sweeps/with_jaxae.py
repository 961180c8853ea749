"""The lanes in jaxae: as a sweep, one after another, and in a pool of processes."""

import multiprocessing
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxae
from benchmarks.sweeps.work import Work, num_cores
from jaxae.sweeps import program

LONG = 100_000  # epochs for which the number of lanes at once is worth timing
COMPILING = "/jax/core/compile/"  # the durations that JAX reports, nested ones too
COMPILATION = (
    f"{COMPILING}jaxpr_trace_duration",
    f"{COMPILING}jaxpr_to_mlir_module_duration",
    f"{COMPILING}backend_compile_duration",
)


def arguments_of(work: Work, **settings):
    """(objective, data) and the keyword arguments of `train` and `sweep`."""
    ae = jaxae.Autoencoder(input_dim=work.input_dim, latent_dim=work.latent_dim)
    names = ("W", "b_enc", "b_dec")
    params = dict(zip(names, map(jnp.asarray, work.params()), strict=True))
    config = jaxae.TrainConfig(
        num_epochs=work.num_epochs, batch_size=work.batch_size, **settings
    )
    options = {
        "config": config,
        "params": ae.init(jax.random.key(0))._replace(**params),
    }
    return (jaxae.Objective(ae), work.data()), options


def space_of(work: Work) -> dict[str, list]:
    """The space of the sweep."""
    return {"learning_rate": work.rates, "seed": list(range(work.num_seeds))}


# ---- the four sizes ------------------------------------------------------------------


def sweep(**options):
    """One call of `jaxae.sweep`, with the lanes at once of the plan of a long sweep."""
    work = Work(**options)
    key, space = jax.random.key(0), space_of(work)
    arguments, keywords = arguments_of(work._replace(num_epochs=LONG))
    prepared = jaxae.sweeps.prepare(*arguments, space, key=key, **keywords)
    at_once = jaxae.sweeps.plan(prepared).groups[0].lanes_at_once
    arguments, keywords = arguments_of(work, diagnostics=False)

    def run() -> float:
        results = jaxae.sweep(
            *arguments, space, key=key, lanes_at_once=at_once, **keywords
        )
        return float(results.metrics["train/loss"][:, -1].mean())

    run.setting = f"{at_once} at once"
    return run


class Loop:
    """`jaxae.train` of one lane."""

    def __init__(self, work: Work):
        self.arguments, self.keywords = arguments_of(work, diagnostics=False)
        self.train(*work.lanes[0])  # compiles

    def train(self, rate: float, seed: int) -> float:
        """The mean loss of the last epoch."""
        trained = jaxae.train(
            *self.arguments,
            hparams={"learning_rate": rate},
            key=jax.random.fold_in(jax.random.key(0), seed),
            **self.keywords,
        )
        return float(trained.metrics["train/loss"][-1])


def loop(**options):
    """One lane after another."""
    work = Work(**options)
    lanes = Loop(work)
    return lambda: float(np.mean([lanes.train(*lane) for lane in work.lanes]))


def pool(**options):
    """A process a core, which trains one lane after another on it."""
    work = Work(**options)
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for core in os.sched_getaffinity(0):
        cores.put(core)
    processes = context.Pool(num_cores(), _start_worker, (options, cores))
    processes.map(_ready, range(num_cores()), chunksize=1)

    def run() -> float:
        return float(np.mean(processes.map(_train, work.lanes, chunksize=1)))

    run.setting = f"{num_cores()} processes"
    return run


def _start_worker(options, cores) -> None:
    global _lanes
    os.sched_setaffinity(0, {cores.get()})  # before JAX starts its threads
    _lanes = Loop(Work(**options))


def _ready(_) -> None:
    time.sleep(0.1)  # so that each process takes one of these calls


def _train(lane) -> float:
    return _lanes.train(*lane)


# ---- thousands of lanes --------------------------------------------------------------


def whole_call(**options):
    """A sweep and its table as in a new process: nothing is compiled or planned.

    The result has the seconds of compilation and of the compiled program; the rest is
    Python, with the copies between the device and the host.
    """
    work = Work(**options)
    (objective, X), keywords = arguments_of(work)
    clock = Clock()
    jax.monitoring.register_event_duration_secs_listener(clock.add_compilation)
    for name in ("begin", "run", "evaluate_block"):
        setattr(program, name, clock.timed(getattr(program, name)))

    def run() -> dict[str, float]:
        jax.clear_caches()
        clock.reset()
        start = time.perf_counter()
        results = jaxae.sweep(
            objective,
            X,
            space_of(work),
            key=jax.random.key(0),
            validation=X[: work.batch_size],
            **keywords,
        )
        table = results.table
        seconds = time.perf_counter() - start
        return {
            "loss": float(table["train/loss"].mean()),
            "compilation": round(clock.compilation, 3),
            "compiled program": round(clock.program, 3),
            "Python": round(seconds - clock.compilation - clock.program, 3),
            "lanes at once": results.plan.groups[0].lanes_at_once,
        }

    return run


class Clock:
    """The seconds of compilation, and of the compiled program without compilation."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Count from 0."""
        self.program = 0.0
        self._compilations: list[tuple[float, float]] = []  # start, seconds

    def add_compilation(self, event: str, seconds: float, **details) -> None:
        """Count a duration that JAX reports when it ends, instead of those within."""
        del details
        if event in COMPILATION:
            start = time.perf_counter() - seconds
            while self._compilations and self._compilations[-1][0] >= start:
                self._compilations.pop()
            self._compilations.append((start, seconds))

    @property
    def compilation(self) -> float:
        """The seconds of tracing and compilation."""
        return sum(seconds for _, seconds in self._compilations)

    def timed(self, function):
        """The function, which waits for its results and counts their time."""

        def call(*arguments, **keywords):
            jax.block_until_ready((arguments, keywords))
            start, before = time.perf_counter(), self.compilation
            results = jax.block_until_ready(function(*arguments, **keywords))
            seconds = time.perf_counter() - start
            self.program += seconds - (self.compilation - before)
            return results

        return call
