"""Checkpoints: complete or absent, of this run or rejected."""

import gc
import itertools
import os
import re
import shutil
import subprocess
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxae import _orbax
from jaxae.checkpoints import Checkpoints, locked

ARRAYS = {
    "state.W": jnp.arange(12.0).reshape(3, 4),
    "state.half": jnp.ones(4, jnp.bfloat16) / 3,
    "state.step": jnp.int32(7),
    "history": np.array([[1.5, np.nan], [np.inf, 2.0]]),
}
FINGERPRINT = {"model": {"latent_dim": 3}, "hparams": {"learning_rate": "0.1"}}
NOTES = {"metrics": ["a", "b"], "reason": None}


def save(directory, *steps, arrays=ARRAYS, keep=2):
    with Checkpoints(directory, FINGERPRINT, keep=keep) as checkpoints:
        for step in steps:
            scaled = {name: array * step for name, array in arrays.items()}
            checkpoints.save(step, scaled, NOTES)
        checkpoints.wait()


def restore(directory, fingerprint=FINGERPRINT, like=ARRAYS):
    with Checkpoints(directory, fingerprint) as checkpoints:
        return checkpoints.restore(like)


def assert_is_step(checkpoint, step):
    assert checkpoint.step == step and checkpoint.notes == NOTES
    for name, array in ARRAYS.items():
        expected = np.asarray(array * step)
        assert checkpoint.arrays[name].dtype == expected.dtype
        np.testing.assert_array_equal(np.asarray(checkpoint.arrays[name]), expected)


def files(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def test_the_last_checkpoint_is_restored_bit_identical(tmp_path):
    save(tmp_path / "run", 1, 2, 5)
    assert_is_step(restore(tmp_path / "run"), 5)
    assert sorted(os.listdir(tmp_path / "run")) == ["2", "5"]  # the last two are kept


def test_no_folder_is_left_without_a_save(tmp_path):
    assert restore(tmp_path / "new" / "run") is None
    assert os.listdir(tmp_path) == []
    (tmp_path / "empty").mkdir()
    assert restore(tmp_path / "empty") is None


def test_a_step_saved_again_is_replaced(tmp_path):
    save(tmp_path, 2)
    with Checkpoints(tmp_path, FINGERPRINT) as checkpoints:
        checkpoints.save(2, {"other": jnp.ones(2)}, {"second": True})
        checkpoints.wait()
        checkpoint = checkpoints.restore({"other": jnp.zeros(2)})
    assert checkpoint.notes == {"second": True}
    assert os.listdir(tmp_path) == ["2"]


def test_a_failed_save_of_the_same_step_keeps_the_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 2, keep=1)
    with Checkpoints(tmp_path, FINGERPRINT, keep=1) as checkpoints:

        def fail(*arguments, **keywords):
            raise OSError("disk full")

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._manager, "save", fail)
            with pytest.raises(OSError, match="disk full; earlier .* are intact"):
                checkpoints.save(2, {"other": jnp.ones(2)}, {})
        assert_is_step(checkpoints.restore(ARRAYS), 2)
        checkpoints.save(3, {**ARRAYS, "state.step": jnp.int32(1)}, NOTES)
    assert os.listdir(tmp_path) == ["3"]


def test_a_kill_while_a_step_is_saved_again_keeps_a_checkpoint(tmp_path):
    save(tmp_path, 2)
    (tmp_path / "2").rename(tmp_path / "replaced-2")  # killed before the new one
    assert_is_step(restore(tmp_path), 2)
    shutil.copytree(tmp_path / "2", tmp_path / "replaced-2")  # killed after it
    (tmp_path / "replaced-2" / "_CHECKPOINT_METADATA").write_text("old")
    assert_is_step(restore(tmp_path), 2)
    assert os.listdir(tmp_path) == ["2"]


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    double = jax.jit(lambda W: 2 * W, donate_argnums=0)
    with Checkpoints(tmp_path, FINGERPRINT) as checkpoints:
        W = jnp.ones((500, 500))
        checkpoints.save(1, {"W": W}, {})
        for _ in range(5):
            W = double(W)
        checkpoints.wait()
        checkpoint = checkpoints.restore({"W": jnp.zeros((500, 500))})
    np.testing.assert_array_equal(checkpoint.arrays["W"], np.ones((500, 500)))


@pytest.mark.parametrize(
    "fingerprint, words",
    [
        (
            {**FINGERPRINT, "hparams": {"learning_rate": "0.2"}},
            'hparams.learning_rate is "0.1" there and "0.2" here',
        ),
        (
            {**FINGERPRINT, "model": {"latent_dim": 4}},
            "model.latent_dim is 3 there and 4",
        ),
        ({**FINGERPRINT, "data": "x"}, 'data is null there and "x" here'),
        ({"model": FINGERPRINT["model"]}, "hparams is .* there and null here"),
    ],
)
def test_a_checkpoint_of_another_run_is_rejected_by_the_field_that_differs(
    tmp_path, fingerprint, words
):
    save(tmp_path, 1)
    before = {path: path.read_bytes() for path in files(tmp_path)}
    with pytest.raises(ValueError, match=words) as error:
        restore(tmp_path, fingerprint)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in files(tmp_path)} == before


def test_arrays_of_another_shape_or_dtype_are_rejected(tmp_path):
    save(tmp_path, 1)
    for other, words in (
        (jnp.ones((3, 5)), r"state.W is .float32\[3, 4\]. there and .float32\[3, 5\]"),
        (jnp.ones((3, 4), jnp.bfloat16), "float32.* there and .bfloat16"),
    ):
        with pytest.raises(ValueError, match=words):
            restore(tmp_path, like={**ARRAYS, "state.W": other})
    with pytest.raises(ValueError, match="state.b is null there"):
        restore(tmp_path, like={**ARRAYS, "state.b": jnp.ones(2)})


# ---- damage --------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    raw = bytearray(path.read_bytes() or b"\0")
    raw[len(raw) // 2] ^= 16
    path.write_bytes(raw)


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


HARM = [truncate, flip, os.unlink, replace_by_folder]


def test_damage_to_any_file_is_harmless_or_detected(tmp_path):
    """Every file is damaged, and every kind of damage comes up."""
    assert_harmless_or_detected(tmp_path, itertools.cycle(HARM))


@pytest.mark.slow
@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__)
def test_every_damage_to_every_file_is_harmless_or_detected(tmp_path, harm):
    assert_harmless_or_detected(tmp_path, itertools.repeat(harm))


def assert_harmless_or_detected(tmp_path, harms):
    """Either the damage changed nothing, or the checkpoint before it is restored."""
    save(tmp_path / "sound", 1, 2)
    num_detected = 0
    for file, harm in zip(files(tmp_path / "sound" / "2"), harms):
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(tmp_path / "sound", run)
        harm(run / file.relative_to(tmp_path / "sound"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            checkpoint = restore(run)
        assert_is_step(checkpoint, checkpoint.step)
        if checkpoint.step == 1:
            num_detected += 1
            (warning,) = [w for w in caught if w.category is RuntimeWarning]
            assert "is damaged" in str(warning.message)
            # Moved aside, not deleted.
            assert sorted(os.listdir(run)) == ["1", "damaged-2"]
            save(run, 2)
            assert_is_step(restore(run), 2)
    assert num_detected > 0


def test_damage_to_many_arrays_is_reported_in_one_line(tmp_path):
    """Orbax's own message has the whole specification of an array, in 60 lines."""
    rng = np.random.default_rng(0)
    arrays = {f"p{i}": jnp.asarray(rng.normal(size=(30, 100))) for i in range(9)}
    save(tmp_path, 1, 2, arrays=arrays)
    for file in files(tmp_path / "2" / "arrays" / "ocdbt.process_0" / "d"):
        truncate(file)
    with pytest.warns(RuntimeWarning, match="2 is damaged .*Error reading") as caught:
        assert restore(tmp_path, like=arrays).step == 1
    (warning,) = caught
    assert not re.search("\n|TensorStore|spec", str(warning.message))


READING = """
async def read():
    try:
        await forever
    except BaseException:
        raise Exception("a message\\nof many lines")
"""


@pytest.mark.parametrize("name, num_lines", [("/orbax/read.py", 0), ("/mine.py", 1)])
def test_reads_that_fail_after_the_first_print_nothing(monkeypatch, name, num_lines):
    """A dropped coroutine raises where nothing can catch it, and Python prints that."""
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    names = {"forever": types.coroutine(lambda: (yield))()}
    exec(compile(READING, name, "exec"), names)

    def fail():
        reading = names["read"]()
        reading.send(None)
        cycle = [reading]
        cycle.append(cycle)
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"), _orbax.without_late_errors():
        fail()
    gc.collect()
    assert len(printed) == num_lines


def test_where_every_checkpoint_is_damaged_restore_raises(tmp_path):
    save(tmp_path, 1, 2)
    for file in files(tmp_path):
        truncate(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="no intact checkpoint: all of 2, 1"):
            restore(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def test_a_file_in_place_of_a_checkpoint_is_damage(tmp_path):
    save(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "2")
    for name in ("2", "damaged-2", "03", "notes"):
        (tmp_path / name).write_text(name)
    with pytest.warns(
        RuntimeWarning, match="2 is damaged .expected a folder, found a file"
    ):
        assert_is_step(restore(tmp_path), 1)
    assert (tmp_path / "damaged-2").read_text() == "2"
    assert sorted(os.listdir(tmp_path)) == ["03", "1", "damaged-2", "notes"]
    save(tmp_path, 2)
    assert_is_step(restore(tmp_path), 2)


def test_where_every_checkpoint_is_a_file_restore_raises(tmp_path):
    (tmp_path / "2").touch()
    with pytest.warns(RuntimeWarning, match="2 is damaged"):
        with pytest.raises(ValueError, match="no intact checkpoint: all of 2 are"):
            restore(tmp_path)
    assert os.listdir(tmp_path) == ["2"]


def test_an_unfinished_save_is_removed(tmp_path):
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "1", tmp_path / "3.orbax-checkpoint-tmp")
    assert_is_step(restore(tmp_path), 1)
    assert os.listdir(tmp_path) == ["1"]
    save(tmp_path, 3)
    assert_is_step(restore(tmp_path), 3)


def test_a_file_in_place_of_the_folder_is_rejected(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="must be a folder, but .*file is a file"):
        restore(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


# ---- two processes, a full disk ------------------------------------------------------

IN_ANOTHER_PROCESS = """
import pathlib, sys
from jaxae.checkpoints import locked
try:
    with locked(pathlib.Path(sys.argv[1])):
        print("held")
except ValueError as error:
    print(error)
"""


def other_process(directory):
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_folder_is_locked_against_a_second_process(tmp_path):
    with locked(tmp_path):
        assert "is in use by another process" in other_process(tmp_path)
    assert other_process(tmp_path) == "held"
    assert os.listdir(tmp_path) == []  # the lock is no file


def test_a_new_folder_is_locked_before_the_first_save(tmp_path):
    with Checkpoints(tmp_path / "run", FINGERPRINT) as checkpoints:
        assert "is in use" in other_process(tmp_path / "run")
        with pytest.raises(ValueError, match="is in use by another process"):
            save(tmp_path / "run", 1)
        checkpoints.save(2, ARRAYS, NOTES)
    assert os.listdir(tmp_path / "run") == ["2"]


WITH_A_LIMIT = """
import resource, signal, sys
import numpy as np
from jaxae.checkpoints import Checkpoints
directory = sys.argv[1]
arrays = {"W": np.random.default_rng(0).normal(size=(300, 300))}
with Checkpoints(directory, {}) as checkpoints:
    checkpoints.save(1, arrays, {})
    checkpoints.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails as if full
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        checkpoints.save(2, arrays, {})
        checkpoints.wait()
    except OSError as error:
        print("error:", error)
"""


def test_a_full_disk_raises_one_sentence_and_harms_nothing(tmp_path):
    command = [sys.executable, "-c", WITH_A_LIMIT, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("error: cannot save to checkpoint_dir")
    assert done.stdout.count("\n") == 1
    with Checkpoints(tmp_path / "run", {}) as checkpoints:
        checkpoint = checkpoints.restore({"W": np.zeros((300, 300))})
    assert checkpoint.step == 1
    expected = np.random.default_rng(0).normal(size=(300, 300))
    np.testing.assert_array_equal(checkpoint.arrays["W"], expected)


# ---- other devices -------------------------------------------------------------------

ON_EIGHT_DEVICES = """
import os
os.environ["JAX_PLATFORMS"] = "cpu"
flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = flags + " --xla_force_host_platform_device_count=8"
import sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxae.checkpoints import Checkpoints
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
W = jax.device_put(jnp.arange(64.).reshape(8, 8), NamedSharding(mesh, P("data")))
with Checkpoints(sys.argv[1], {}) as checkpoints:
    checkpoints.save(1, {"W": W, "step": jnp.int32(3)}, {})
    checkpoints.wait()
    four = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4],
                         axis_types=(AxisType.Auto,))
    like = jax.device_put(jnp.zeros((8, 8)), NamedSharding(four, P(None, "data")))
    checkpoint = checkpoints.restore({"W": like, "step": jnp.int32(0)})
    assert checkpoint.arrays["W"].sharding == like.sharding
    np.testing.assert_array_equal(checkpoint.arrays["W"], np.arange(64.).reshape(8, 8))
"""


def test_a_checkpoint_is_restored_on_another_number_of_devices(tmp_path):
    command = [sys.executable, "-c", ON_EIGHT_DEVICES, str(tmp_path / "run")]
    subprocess.run(command, check=True, timeout=120)
    mesh = jax.make_mesh((1,), ("data",))
    like = jax.device_put(jnp.zeros((8, 8)), NamedSharding(mesh, PartitionSpec("data")))
    with Checkpoints(tmp_path / "run", {}) as checkpoints:
        checkpoint = checkpoints.restore({"W": like, "step": jnp.int32(0)})
    np.testing.assert_array_equal(checkpoint.arrays["W"], np.arange(64.0).reshape(8, 8))
