"""Failures: each ends in one sentence, or in a run that can be resumed."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cli_using import (
    SAVED,
    SMALL,
    X,
    assert_rejected,
    bytes_of,
    contents_of,
    lines,
    main,
    make_home,
    train,
)

import jaxae
from jaxae.cli import config_file, data_splits, reporting
from jaxae.cli.options import TrainOptions

pytestmark = pytest.mark.usefixtures("no_step_norms")

FUZZ = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture
def workdir(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr(reporting, "draw", lambda *arguments: None)
    return home


class Crash(Exception):
    """Ends a run as a kill does, but not this process."""


def at_step(monkeypatch, step, act):
    """Call `act` once, when the run has reached that step."""
    is_done = []

    def on_step(self, at):
        if at >= step and not is_done:
            is_done.append(True)
            act()

    monkeypatch.setattr(reporting.Reporter, "on_step", on_step)


def crash():
    raise Crash


def crash_at(monkeypatch, step, out, *options, epochs=3):
    with monkeypatch.context() as patch:
        at_step(patch, step, crash)
        with pytest.raises(Crash):
            train(out, *SAVED, "--resume", *options, epochs=epochs)


def resume(out, epochs=3):
    return train(out, *SAVED, "--resume", epochs=epochs)


# ---- crashes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step", [7, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 15))]
)
def test_a_crash_is_recovered_bit_identically(
    workdir, tmp_path, monkeypatch, step, capsys
):
    """With everything a kill may leave: half a line, a file, a checkpoint."""
    run = tmp_path / "run"
    crash_at(monkeypatch, step, run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "train/lo')
    with (run / "timing.jsonl").open("ab") as file:
        file.write(b"\xff\n")
    (run / ".config.json.abc").write_text("{")
    (run / "checkpoints/14.orbax-checkpoint-tmp/arrays").mkdir(parents=True)
    assert resume(run) == 0
    assert capsys.readouterr().err == ""
    assert contents_of(run) == contents_of(workdir / "run")
    names = {path.name for path in run.rglob("*")}
    assert not {".config.json.abc", "14.orbax-checkpoint-tmp"} & names


def test_a_run_longer_than_one_that_ended_is_done_only_when_it_is(
    workdir, tmp_path, monkeypatch
):
    """After a crash between the last step and the last file."""
    run = tmp_path / "run"
    shutil.copytree("run", run)
    with monkeypatch.context() as patch:
        patch.setattr(reporting, "draw", lambda *arguments: crash())
        with pytest.raises(Crash):
            resume(run, epochs=4)
    assert not (run / "results.json").exists()
    assert resume(run, epochs=4) == 0
    assert train(tmp_path / "whole", *SAVED, epochs=4) == 0
    assert contents_of(run) == contents_of(tmp_path / "whole")


def test_during_a_run_its_folder_holds_the_latest_parameters(
    workdir, tmp_path, monkeypatch
):
    shutil.copytree("run", tmp_path / "run")
    crash_at(monkeypatch, 16, tmp_path / "run", epochs=4)
    for name in ("config.json", "params.safetensors"):
        result = (tmp_path / "run" / name).read_bytes()
        expected = (workdir / "run" / name).read_bytes()
        assert result == expected.replace(b'"epochs": 3', b'"epochs": 4')


def test_a_run_that_skipped_every_step_says_so(workdir, tmp_path, capsys):
    options = ("--on-nonfinite", "skip", "--optimizer", "sgd")
    options += ("--observation", "gaussian", "--learning-rate", "1e38")
    assert train(tmp_path / "run", *options) == 0
    dead, skipped = capsys.readouterr().err.splitlines()
    assert "all latents are dead" in dead
    assert skipped.startswith("jaxae: note: 5 of the 5 steps of the last epoch were sk")


# ---- signals -------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_resumes_bit_identically(
    workdir, tmp_path, monkeypatch, number, capsys
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda: signal.raise_signal(number))
        assert resume(run) == 130
    captured = capsys.readouterr()
    assert captured.err == "\njaxae: stopping; press Ctrl-C again to stop at once.\n"
    assert "continue it with --resume" in captured.out
    assert json.loads((run / "results.json").read_text())["status"] == "interrupted"
    assert len(lines(run / "metrics.jsonl")) == 1
    jaxae.load(run)
    assert main("encode", run, "X.npy", "-o", tmp_path / "z.npy") == 0
    assert resume(run) == 0
    assert contents_of(run) == contents_of(workdir / "run")


def test_a_second_signal_stops_at_once_and_loses_nothing(
    workdir, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"

    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        at_step(patch, 7, twice)
        assert resume(run) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert {"4"} <= set(os.listdir(run / "checkpoints"))
    jaxae.load(run)
    assert resume(run) == 0
    assert contents_of(run) == contents_of(workdir / "run")


def test_a_signal_before_the_first_step_leaves_nothing(workdir, tmp_path, monkeypatch):
    load = data_splits.load

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        return load(*arguments)

    monkeypatch.setattr(data_splits, "load", interrupted)
    assert resume(tmp_path / "run") == 130
    assert os.listdir(tmp_path) == []


# ---- two processes -------------------------------------------------------------------


def test_a_second_process_is_rejected_and_the_first_continues(
    workdir, tmp_path, capsys
):
    run = tmp_path / "run"
    options = ("train", *SMALL, "--epochs", "1000000", "--out", str(run))
    first = subprocess.Popen(
        [sys.executable, "-m", "jaxae.cli", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: (run / "metrics.jsonl").exists() and epochs(run), first)
        for option, words in (
            ((), "holds a run already"),
            (("--resume",), "in use by another process"),
            (("--overwrite",), "in use by another process"),
        ):
            assert train(run, *option, epochs=1_000_000) == 2
            assert_rejected(capsys, words)
        reached = epochs(run)
        wait_for(lambda: epochs(run) > reached, first)
    finally:
        first.send_signal(signal.SIGINT)  # Ctrl-C
        _, err = first.communicate(timeout=120)
    assert first.returncode == 130 and "Traceback" not in err
    assert [row["epoch"] for row in lines(run / "metrics.jsonl")] == [
        *range(1, epochs(run) + 1)
    ]


def epochs(run):
    return (run / "metrics.jsonl").read_bytes().count(b"\n")


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


# ---- disks ---------------------------------------------------------------------------


@contextlib.contextmanager
def limited():
    """Limit the size of files, as if the disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_reported_and_the_run_resumes_once_there_is_room(
    workdir, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch, limited() as limit:
        at_step(patch, 7, limit)
        status = resume(run)
    assert status == 2
    assert_rejected(capsys, "File too large", "resume")
    states = [name for name in os.listdir(run / "checkpoints") if name.isdigit()]
    assert states
    jaxae.load(run)
    assert resume(run) == 0
    assert contents_of(run) == contents_of(workdir / "run")


def test_a_full_disk_leaves_no_half_of_an_output(workdir, tmp_path, capsys):
    (tmp_path / "z.npy").write_text("mine")
    with limited() as limit:
        limit()
        status = main("encode", "run", "X.npy", "-o", tmp_path / "z.npy")
    assert status == 2
    assert_rejected(capsys, "File too large", "make room")
    assert (tmp_path / "z.npy").read_text() == "mine"
    assert os.listdir(tmp_path) == ["z.npy"]


def test_a_disk_that_is_truly_full_ends_no_process(workdir, tmp_path, capsys):
    """A memory map would: 50,000 rows do not fit into 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"there is no mount: {error}")
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted: {done.stderr}")
    try:
        assert main("encode", "run", "big.npy", "-o", disk / "z.npy") == 2
        assert_rejected(capsys, "No space left on device", "make room")
        assert os.listdir(disk) == []
        assert train(disk / "run", "--latent-dim", "9999") == 2
        assert_rejected(capsys, "No space left on device")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_made_is_named(workdir, capsys):
    before = bytes_of(workdir)
    assert train("X.npy/run") == 2
    assert_rejected(capsys, "--out X.npy/run cannot be made: Not a directory")
    assert main("encode", "run", "X.npy", "-o", "X.npy/z.npy") == 2
    assert_rejected(capsys, "there is no folder X.npy")
    assert bytes_of(workdir) == before


def test_a_folder_that_may_not_be_written_to_is_named(
    workdir, tmp_path, monkeypatch, capsys
):
    """The call that opens files fails, because root may write anywhere."""

    def deny(*, dir, prefix, suffix):
        raise PermissionError(13, "Permission denied", f"{dir}/{prefix}xyz")

    shutil.copytree("run", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkstemp", deny)
        for arguments in (
            ("encode", "run", "X.npy", "-o", tmp_path / "z.npy"),
            ("evaluate", "run", "-o", tmp_path / "found.json"),
        ):
            assert main(*arguments) == 2
            assert_rejected(capsys, str(tmp_path), "Permission denied", "grant access")
        assert resume(tmp_path / "run", epochs=4) == 2
        assert_rejected(capsys, str(tmp_path), "Permission denied", "grant access")
    assert os.listdir(tmp_path) == ["run"]
    assert resume(tmp_path / "run", epochs=4) == 0


@pytest.mark.parametrize("name", ["params.safetensors", "metrics.jsonl", "curves.png"])
def test_a_folder_in_the_place_of_a_file_is_rejected(workdir, tmp_path, name, capsys):
    run = tmp_path / "run"
    shutil.copytree("run", run)
    (run / name).unlink()
    (run / name / "inside").mkdir(parents=True)
    before = bytes_of(run)
    for option in ("--overwrite", "--resume"):
        assert train(run, *SAVED, option) == 2
        assert_rejected(capsys, "--out", f"has a folder {name}, which must be a file")
    if name == "metrics.jsonl":
        assert main("plot", run) == 2
        assert_rejected(capsys, name, "Is a directory")
    if name == "params.safetensors":
        assert main("encode", run, "X.npy", "-o", tmp_path / "z.npy") == 2
        assert_rejected(capsys, name)
    assert bytes_of(run) == before and os.listdir(tmp_path) == ["run"]


def test_a_file_in_the_place_of_a_folder_is_rejected(workdir, tmp_path, capsys):
    shutil.copytree("run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    (tmp_path / "run/checkpoints").write_text("mine")
    before = bytes_of(tmp_path)
    for option in ("--overwrite", "--resume"):
        assert train(tmp_path / "run", *SAVED, option) == 2
        assert_rejected(capsys, "has a file checkpoints, which must be a folder")
    assert bytes_of(tmp_path) == before


# ---- damaged states ------------------------------------------------------------------


@pytest.fixture(scope="module")
def crashed(home):
    """A run that crashed with two checkpoints, the last of step 10."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        crash_at(patch, 11, "crashed")
    assert sorted(os.listdir(home / "crashed/checkpoints")) == ["10", "8"]
    return home / "crashed"


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 16
    path.write_bytes(raw)


@pytest.mark.parametrize(
    "which, harm",
    [
        ("about/metadata", truncate),
        ("arrays/d/*", flip),
        ("*/d/*", truncate),
        ("manifest", flip),
        pytest.param("about/metadata", flip, marks=pytest.mark.slow),
        pytest.param("arrays/d/*", truncate, marks=pytest.mark.slow),
        pytest.param("*/d/*", flip, marks=pytest.mark.slow),
        pytest.param("manifest", truncate, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_damaged_state_is_reported_and_recovered_bit_identically(
    workdir, crashed, tmp_path, which, harm, capsys
):
    run = tmp_path / "run"
    shutil.copytree(crashed, run)
    pattern = "arrays/manifest.ocdbt" if which == "manifest" else which
    pattern = "arrays/ocdbt.process_0/d/*" if which == "*/d/*" else pattern
    files = list((run / "checkpoints/10").glob(pattern))
    assert files
    for file in files:
        harm(file)
    assert resume(run) == 0
    output = capsys.readouterr().err.splitlines()
    assert len(output) <= 1  # damage to a part that no checkpoint needs is not noticed
    if output:
        assert output[0].startswith("jaxae: note: ") and "is damaged" in output[0]
    assert output or which != "about/metadata"
    assert contents_of(run) == contents_of(workdir / "run")


def test_where_every_state_is_damaged_the_run_is_rejected(
    workdir, crashed, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(crashed, run)
    for file in (run / "checkpoints").rglob("metadata"):
        truncate(file)
    before = bytes_of(run)
    assert resume(run) == 2
    assert_rejected(capsys, "--out", "10, 8 are damaged", "remove the folder")
    assert bytes_of(run) == before


def test_files_where_the_states_were_start_nothing_over(workdir, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(workdir / "run", run)
    states = [path for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
    for state in states:
        shutil.rmtree(state)
        state.write_text("x")
    before = bytes_of(run)
    assert resume(run, epochs=4) == 2
    assert_rejected(capsys, "15, 14 are damaged", "restore a copy")
    for state in states:
        state.rename(state.with_name(f"damaged-{state.name}"))
    assert resume(run, epochs=4) == 2
    assert_rejected(capsys, "holds none; restore them")
    assert bytes_of(run).keys() != before.keys() and len(bytes_of(run)) == len(before)


# ---- damaged files -------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)
OPTIONS = sorted(config_file.saved_options(TrainOptions()))
NUMBERS = st.sampled_from([0, -1, 1, 2, 3, 10**12, 10**400, 0.5, 1e400, -0.1, 1e-300])
WORDS = st.sampled_from(
    ["", "X.npy", "none", "relu", "float64", "\ud800", "\0", "a\nb"]
)


def mutated(config, changes):
    """The config with some options changed; `...` leaves one out."""
    options = {**config["options"], **changes}
    saved = {name: value for name, value in options.items() if value is not ...}
    return {**config, "options": saved}


CHANGES = st.dictionaries(
    st.sampled_from(OPTIONS),
    JSON | NUMBERS | WORDS | st.just(...),
    min_size=1,
    max_size=2,
)


def assert_sound_or_error(status, capsys):
    captured = capsys.readouterr()
    assert status in (0, 2)
    errors = [
        line for line in captured.err.splitlines() if not line.startswith("jaxae: note")
    ]
    assert len(errors) == (status == 2), captured.err
    if status == 2:
        assert errors[0].startswith("jaxae: error: ")


@FUZZ
@given(st.binary(max_size=99) | JSON.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_for_a_config_are_options_or_a_sentence(tmp_path, raw):
    path = tmp_path / "config.json"
    path.write_bytes(raw)
    read(path)
    path.write_bytes(b'{"options": ' + raw + b"}")
    read(path)


@FUZZ
@given(CHANGES)
def test_any_change_of_a_config_is_options_or_a_sentence(workdir, tmp_path, changes):
    config = json.loads((workdir / "run/config.json").read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(mutated(config, changes)))
    read(path)


def read(path):
    try:
        options = config_file.read_options(path)
    except ValueError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert isinstance(options, TrainOptions)


@settings(FUZZ, max_examples=8)
@given(st.binary(max_size=20) | CHANGES)
def test_a_run_of_any_config_is_sound_or_rejected(workdir, tmp_path, capsys, changes):
    is_sound_or_rejected(workdir, tmp_path, capsys, changes)


@pytest.mark.slow
@settings(FUZZ, max_examples=100)
@given(st.binary(max_size=20) | CHANGES)
def test_many_runs_of_any_config(workdir, tmp_path, capsys, changes):
    is_sound_or_rejected(workdir, tmp_path, capsys, changes)


def is_sound_or_rejected(workdir, tmp_path, capsys, changes):
    config = json.loads((workdir / "run/config.json").read_text())
    path, out = tmp_path / "config.json", tmp_path / "new"
    if isinstance(changes, bytes):
        path.write_bytes(changes)
    else:
        path.write_text(json.dumps(mutated(config, changes)))
    shutil.rmtree(out, ignore_errors=True)
    status = main("train", "--config", path, "--epochs", "1", "--out", out)
    assert_sound_or_error(status, capsys)
    if status == 0:
        results = json.loads((out / "results.json").read_text())
        assert results["status"] == "finished"
        options = json.loads((out / "config.json").read_text())["options"]
        with jax.enable_x64(options["dtype"] == "float64"):
            jaxae.load(out)


CUTS = st.tuples(st.integers(0, 2000), st.integers(0, 60), st.binary(max_size=8))


@pytest.mark.parametrize(
    "name",
    ["config.json", "params.safetensors", "scaling.safetensors", "metrics.jsonl"],
)
@settings(FUZZ, max_examples=40)
@given(raw=st.binary(max_size=99) | CUTS)
def test_any_bytes_in_a_run_folder_are_used_or_reported(
    workdir, tmp_path, capsys, name, raw
):
    """Any bytes, and the right ones with a piece replaced."""
    run, z = tmp_path / "run", tmp_path / "z.npy"
    if not run.exists():
        shutil.copytree("run", run, ignore=shutil.ignore_patterns("checkpoints"))
    z.unlink(missing_ok=True)
    complete = (workdir / "run" / name).read_bytes()
    if isinstance(raw, tuple):
        at, length, piece = raw
        at %= len(complete)
        raw = complete[:at] + piece + complete[at + length :]
    (run / name).write_bytes(raw)
    if name == "metrics.jsonl":
        assert_sound_or_error(main("plot", run), capsys)
        return
    status = main("encode", run, "X.npy", "-o", z)
    assert_sound_or_error(status, capsys)
    assert z.exists() == (status == 0)
    if status == 0:
        assert np.load(z).shape == (len(X), 4)
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "z.npy"}
