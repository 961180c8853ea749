"""Start-up: imports, the time to the first training step, and compilation.

Imports and first steps are whole processes, from their start; all have compiled
bytecode and files in the operating system's cache. A first step ends with the first
call of the compiled steps, which trains up to an epoch of 22 steps: of the first model
of examples/demo.py, or of `jaxae train --data digits`. PyTorch and "jax.jit" are
floors: its first step on data as large, and the first program of JAX. With the
persistent cache, JAX_COMPILATION_CACHE_DIR names a folder that an earlier process has
filled, and JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS is 0.

Calls are `jaxae.train` and `jaxae.sweep` with one step in a process that has started.
`jax.clear_caches()` precedes the first calls, so their times beyond those of the later
calls are tracing and compilation.

Not measured: the first import of a new installation, which compiles bytecode and reads
the disk.
"""

import tempfile
from typing import Any

from benchmarks.results import compared
from benchmarks.turns import Program, take_turns

MODELS = ((20, 5), (784, 500), (784, 4096))
LANES = (1, 512)


def run(num_rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Compare imports, first steps, and calls by size and by number of lanes."""
    if quick:
        return run_quick(num_rounds)
    with tempfile.TemporaryDirectory() as folder:
        steps = first_steps(folder)
        cases = [
            compare({"part": "import"}, "import jax, optax", imports(), num_rounds),
            compare({"part": "first step"}, "the demo", steps, num_rounds),
        ]
    for input_dim, latent_dim in MODELS:
        case = {"part": "train", "input_dim": input_dim, "latent_dim": latent_dim}
        cases.append(compare_calls(case, num_rounds))
    for num_lanes in LANES:
        case = {"part": "sweep", "num_lanes": num_lanes}
        cases.append(compare_calls(case, num_rounds))
    return cases


def run_quick(num_rounds: int) -> list[dict[str, Any]]:
    """One process that ends with its first step."""
    with tempfile.TemporaryDirectory() as folder:
        name = "the demo, persistent cache"
        steps = {name: first_steps(folder)[name]}
        return [compare({"part": "first step"}, name, steps, num_rounds, 0)]


def compare(
    case: dict[str, Any],
    reference: str,
    programs: dict[str, Program],
    num_rounds: int,
    num_uncounted: int = 1,
) -> dict[str, Any]:
    """The times of one case."""
    times = take_turns(programs, num_rounds, num_uncounted)
    return {
        "case": case,
        "contestants": compared(times, reference),
        "versions": {name: entry.versions for name, entry in times.items()},
    }


def compare_calls(case: dict[str, Any], num_rounds: int) -> dict[str, Any]:
    """The first and the later calls of `train` or `sweep`, which give equal losses."""
    function = f"startup.calls:{case['what']}"
    sizes = {name: value for name, value in case.items() if name != "part"}
    programs = {
        "first call": Program(function, {"is_first": True} | sizes),
        "later call": Program(function, {"is_first": False} | sizes),
    }
    entry = compare(case, "later call", programs, num_rounds)
    first, later = (entry["contestants"][name]["result"] for name in programs)
    if first != later:
        raise AssertionError(f"the losses differ: {first} and {later}.")
    return entry


def process(*arguments: str, **more: Any) -> Program:
    """A Python process with these arguments."""
    return Program("startup.processes:start", {"arguments": arguments}, **more)


def imports() -> dict[str, Program]:
    """Processes that import."""
    statements = ("import numpy", "import jax", "import jax, optax", "import jaxae")
    return {
        "python": process("-c", ""),
        **{statement: process("-c", statement) for statement in statements},
        "import torch": process("-c", "import torch", is_peer=True),
    }


def first_steps(cache: str) -> dict[str, Program]:
    """Processes that end with their first training step."""
    cached = {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    module = ("-m", "benchmarks.startup.first_step")
    entries = {
        "python": process("-c", ""),
        "jax.jit": process("-c", "import jax; jax.jit(lambda x: x + 1)(1.0)"),
        "PyTorch": process("-m", "benchmarks.startup.with_torch", is_peer=True),
    }
    for name, argument in {"the demo": "demo", "jaxae train": "train"}.items():
        entries[name] = process(*module, argument)
        entries[f"{name}, persistent cache"] = process(
            *module, argument, environment=cached
        )
    return entries
