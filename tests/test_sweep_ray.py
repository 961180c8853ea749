"""A sweep on a Ray cluster of two workers on this machine."""

import functools
import os
import signal
import types
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

import jaxae
from jaxae.sweeps import group_trainer, store, sweeper

ray = pytest.importorskip("ray")

# JAX warns of the forks by which ray starts other programs.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called")

KEY = jax.random.key(0)
X = np.random.default_rng(0).uniform(size=(50, 6)).astype("f4")
OBJECTIVE = jaxae.Objective(jaxae.Autoencoder(input_dim=6, latent_dim=4))
SPACE = {"learning_rate": [1e-3, 1e-2, 1e-1], "seed": [0, 1]}


def sweep(**changes):
    return jaxae.sweep(
        OBJECTIVE,
        X,
        SPACE,
        **{
            "config": jaxae.TrainConfig(num_epochs=4, batch_size=8),
            "key": KEY,
            "validation": X[:20],
            "lanes_at_once": 2,
            "memory_budget": 10_000,
            **changes,
        },
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    home = str(tmp_path_factory.mktemp("home"))  # ray writes a token there
    env = {"JAX_PLATFORMS": "cpu", "HOME": home}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", home)
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(
            num_cpus=2,
            _node_ip_address="127.0.0.1",
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": env},
        )
        yield
        ray.shutdown()


@pytest.mark.slow  # without halving, the next test compares the same tables
def test_a_cluster_gives_the_results_of_one_process(cluster):
    halving = jaxae.sweeps.Halving()
    result, expected = sweep(engine="ray", halving=halving), sweep(halving=halving)
    assert result.table.equals(expected.table)
    for lane in range(len(expected)):
        chex.assert_trees_all_equal(result.params(lane), expected.params(lane))


def test_a_killed_worker_loses_nothing(cluster, tmp_path, monkeypatch):
    killed = []
    write = store.Store.write

    def write_and_kill(self, *arguments):
        write(self, *arguments)
        if not killed:
            killed.extend(workers())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    if not Path("/proc").exists():
        pytest.skip("finds its workers in /proc")
    monkeypatch.setattr(store.Store, "write", write_and_kill)
    # Long enough that another block is training while the first one is written.
    config = jaxae.TrainConfig(num_epochs=200, batch_size=8)
    result = sweep(engine="ray", out=tmp_path, config=config)
    assert killed
    assert result.table.equals(sweep(config=config).table)


def workers() -> list[int]:
    """The processes that are training a block; ray names them by their task."""
    titles = {p: p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline")}
    return [int(p.parent.name) for p, t in titles.items() if b"ray::_train_block" in t]


class Local:
    """Ray's functions in this process."""

    put, get = staticmethod(lambda value: value), staticmethod(lambda task: task())

    def wait(self, tasks):
        return tasks[:1], tasks[1:]

    def remote(self, **options):
        def submit(function, *arguments):
            return lambda: function(*arguments)

        return lambda function: types.SimpleNamespace(
            remote=functools.partial(submit, function)
        )


def test_blocks_of_more_than_a_minute_come_back_each_minute(monkeypatch, tmp_path):
    cluster = object.__new__(group_trainer.RayCluster)
    cluster._ray, cluster._descriptions = Local(), {}
    calls, train_block = [], group_trainer._train_block

    def counting(*arguments):
        calls.append(arguments)
        return train_block(*arguments)

    monkeypatch.setattr(group_trainer, "_train_block", counting)
    monkeypatch.setattr(sweeper, "RayCluster", lambda: cluster)
    monkeypatch.setattr(group_trainer, "BLOCK_SECONDS", 0.0)  # a block lasts a minute
    result, expected = sweep(engine="ray", out=tmp_path), sweep()
    assert len(calls) > 3 * len(list(tmp_path.glob("lanes/*")))
    assert result.table.equals(expected.table)


def test_an_unknown_engine_raises():
    with pytest.raises(ValueError, match="engine must be None or 'ray', got 'slurm'"):
        sweep(engine="slurm")


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxae\[ray\]'"):
        sweep(engine="ray")
