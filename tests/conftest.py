"""Shared strictness: types and shapes are checked, silent broadcasts are errors."""

import functools
import gc
import inspect
import os
import shutil
import subprocess
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Most of the suite's time is compilation, and much of it of the same programs, also by
# the processes that tests start. They are kept for one run, and for each worker by
# itself: jax writes a cache's files in place, where another process may read half of
# one.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxae-compiled-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

check_annotations = jaxtyping.jaxtyped


def jaxtyped(*, typechecker):
    """Wrap no function without annotations: closures are defined again by each call."""

    def wrapped(f):
        is_bare = inspect.isfunction(f) and not f.__annotations__
        return f if is_bare else check_annotations(f, typechecker=typechecker)

    return wrapped


# Every shape annotation of the library becomes a runtime check in the tests.
jaxtyping.jaxtyped = jaxtyped
jaxtyping.install_import_hook("jaxae", "beartype.beartype")

jax.config.update("jax_numpy_rank_promotion", "raise")


@functools.cache
def why_no_float16():
    """What XLA says where it cannot compile float16 here, as before F16C; else ''."""
    try:
        jax.jit(lambda x: x * x)(jnp.ones(2, jnp.float16))
    except jax.errors.JaxRuntimeError as error:
        return str(error)
    return ""


def pytest_runtest_setup(item):
    if item.get_closest_marker("float16") and (reason := why_no_float16()):
        pytest.skip(f"XLA cannot compile float16 for this processor: {reason}")


def pytest_addoption(parser):
    parser.addoption(
        "--slow", action="store_true", help="run pairs of parts and long studies too"
    )
    parser.addoption(
        "--default-compiler",
        action="store_true",
        help="compile as users do, in three times the time; --slow does so too",
    )


# XLA compiles a small program in a third of the time with its older emitters of CPU
# code, without LLVM's optimizations, and in one piece. Users have its defaults, as do
# `make test-all` and `make test-portable`.
FAST_COMPILATION = (
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
)


def environment_with(flags):
    return {
        **os.environ,
        "XLA_FLAGS": " ".join([os.environ.get("XLA_FLAGS", ""), *flags]),
    }


def are_known(flags):
    """XLA ends a process with an unknown flag; jaxlib 0.12 has no older emitters."""
    jit = [sys.executable, "-c", "import jax; jax.jit(lambda x: x)(1.0)"]
    done = subprocess.run(jit, env=environment_with(flags), capture_output=True)
    return done.returncode == 0


def pytest_configure(config):
    is_default = config.getoption("--slow") or config.getoption("--default-compiler")
    if is_default or hasattr(config, "workerinput"):  # whose flags are its parent's
        return
    flags = FAST_COMPILATION
    if not are_known(flags):
        flags = [flag for flag in flags if are_known([flag])]
    os.environ.update(environment_with(flags))


def pytest_collection_finish():
    """Collect garbage less often, and not among what was imported: jax is large."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 20)


def pytest_unconfigure():
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    kept = [item for item in items if "slow" not in item.keywords]
    slow = [item for item in items if "slow" in item.keywords]
    items[:] = kept
    config.hook.pytest_deselected(items=slow)


@pytest.fixture
def x64():
    """Float64 for one test, by a context, as a user would have it."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def no_step_norms():
    """Without the norms of steps, which take a quarter of the time of a training."""
    from jaxae.training import diagnostics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnostics, "step_norms", lambda *_, **settings: {})
        yield


@pytest.fixture(scope="session")
def digits():
    """1797 real images of 8 x 8 pixels, in [0, 1]."""
    import jaxae

    found = jaxae.data.digits()
    return jaxae.data.scaled(found.train, found.scale)
