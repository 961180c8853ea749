"""Files of runs and sweeps: what may replace them, and what is damaged or left over."""

import json
import os
import shutil
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest
from test_checkpoints import flip, truncate
from test_cli_using import (
    SAVED,
    SMALL,
    X,
    assert_rejected,
    bytes_of,
    contents_of,
    main,
    train,
)

import jaxae
from jaxae import _files, data, plots
from jaxae.cli import reporting
from jaxae.cli import run_folder as cli_folder
from jaxae.sweeps import store

pytestmark = pytest.mark.usefixtures("no_step_norms")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run, a sweep folder, a model and the checkpoints of a run in Python."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr(reporting, "draw", lambda *arguments: None)
        np.save("X.npy", X)
        assert train("run", *SAVED) == 0
    (home / "run/curves.png").write_bytes(b"\x89PNG")
    jaxae.save(home / "model", *jaxae.load(home / "run"))
    (home / "states/20/about").mkdir(parents=True)
    (home / "states/20/about/metadata").write_text("{}")
    (home / "sweep/lanes/lanes").mkdir(parents=True)
    (home / "sweep/config.json").write_text('{"sweep": {}}')
    for name in ("table.csv", "by_l1.png", "lanes/sweep.json", "space.toml"):
        (home / "sweep" / name).write_text(name)
    shutil.copytree(home / "run/best", home / "sweep/top/2")
    os.symlink("run", home / "link")
    os.symlink("run/config.json", home / "linked.json")
    os.link(home / "run/config.json", home / "hard.json")
    os.link(home / "run/checkpoints/15/about/metadata", home / "hard.npy")
    (home / "results.json").write_text("{}")  # of the user's own, beside a space.toml
    (home / "config.json").write_text('{"mine": true}')
    (home / "space.toml").write_text("learning_rate = [0.1]\n")
    return home


@pytest.fixture
def workdir(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr(reporting, "draw", lambda *arguments: None)
    return home


# ---- what would replace a file of a run ----------------------------------------------

RUN_FILES = [
    *("run/config.json", "run/params.safetensors", "run/curves.png"),
    *("run/results.sha256", "run/best/config.json", "./run//./metrics.jsonl"),
    *("run/best/../results.json", "link/config.json", "linked.json", "hard.json"),
    *("run/checkpoints/15/about/metadata", "run/checkpoints/new.json"),
    *("sweep/config.json", "sweep/table.csv", "sweep/by_l1.png", "sweep/space.toml"),
    *("sweep/lanes/sweep.json", "sweep/top/2/params.safetensors"),
    *("model/config.json", "model/params.safetensors", "states/20/about/metadata"),
]


@pytest.mark.parametrize("output", RUN_FILES)
def test_no_output_replaces_a_file_of_a_run(workdir, capsys, output):
    before = bytes_of(workdir)
    assert main("evaluate", "run", "-o", output) == 2
    assert_rejected(capsys, "--output ", "run, sweep or model", "another file")
    assert bytes_of(workdir) == before


@pytest.mark.parametrize("verb", ["encode", "reconstruct"])
def test_arrays_replace_no_file_of_a_run_either(workdir, capsys, verb):
    before = bytes_of(workdir)
    for output in ("hard.npy", "run/checkpoints/z.npy", "sweep/lanes/z.npy"):
        assert main(verb, "run", "X.npy", "-o", output) == 2
        assert_rejected(capsys, f"--output {output} is a file of the run")
    assert bytes_of(workdir) == before


def test_files_beside_those_of_a_run_are_the_users(workdir, capsys):
    """Also a second time, and beside a user's own config.json."""
    for output in ("run/z.npy", "run/best/z.npy", "z.npy"):
        for _ in range(2):
            assert main("encode", "run", "X.npy", "-o", output) == 0
        os.unlink(output)
    for output in ("run/found.json", "results.json"):
        for _ in range(2):
            assert main("evaluate", "run", "X.npy", "-o", output) == 0
    os.unlink("run/found.json")


def test_the_runs_own_data_are_not_replaced(workdir, capsys):
    before = bytes_of(workdir)
    assert main("evaluate", "run", "-o", "X.npy") == 2
    assert_rejected(capsys, "--output X.npy is the data itself")
    assert bytes_of(workdir) == before


@pytest.mark.parametrize(
    "out", ["run/best", "link/best", "run/checkpoints", "sweep/lanes", "sweep/top/2"]
)
def test_no_run_is_written_into_a_part_of_another(workdir, capsys, out):
    before = bytes_of(workdir)
    for option in ("--overwrite", "--resume"):
        assert train(out, option) == 2
        assert_rejected(capsys, "--out")
    for verb in (("sweep", "space.toml", "--data", "X.npy"), ("gradcheck",)):
        assert main(*verb, "--out", out, "--overwrite") == 2
        assert_rejected(capsys, f"--out {out} is a part of the run or sweep in")
    assert bytes_of(workdir) == before


def test_resume_goes_on_with_runs_of_train_only(workdir, tmp_path, capsys):
    shutil.copytree("run/best", tmp_path / "best")
    gradcheck = {"options": {}, "cases": []}
    (tmp_path / "judged").mkdir()
    (tmp_path / "judged/config.json").write_text(json.dumps(gradcheck))
    before = bytes_of(workdir) | bytes_of(tmp_path)
    for out in ("sweep", "model", tmp_path / "best", tmp_path / "judged"):
        assert train(out, "--resume") == 2
        assert_rejected(capsys, str(out))
    assert bytes_of(workdir) | bytes_of(tmp_path) == before


def test_overwrite_removes_nothing_that_is_read(workdir, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree("run", run)
    np.save(run / "best/X.npy", X)
    before = bytes_of(run)
    for options in (
        ("--params", run),
        ("--params", run / "best"),
        ("--data", run / "best/X.npy"),
    ):
        assert train(run, "--overwrite", *options) == 2
        assert_rejected(capsys, f"which {options[0]} reads")
    judge = ("gradcheck", "module:f", "--params", run / "best/params.safetensors")
    assert main(*judge, "--out", run, "--overwrite") == 2
    assert_rejected(capsys, "which --params reads")
    assert bytes_of(run) == before


@pytest.mark.parametrize("mark", ["", "metrics.jsonl"])
@pytest.mark.parametrize("verb", ["train", "sweep", "gradcheck"])
def test_overwrite_removes_no_checkpoints_of_another_program(
    tmp_path, monkeypatch, capsys, verb, mark
):
    """Which may have a config.json, and even the metrics, of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.toml").write_text("l1 = [0.1]\n")
    model = tmp_path / "project/checkpoints/model.pt"
    model.parent.mkdir(parents=True)
    for path in (model, tmp_path / "project/config.json", tmp_path / "project" / mark):
        path.is_dir() or path.write_text("mine")
    space = ("space.toml",) if verb == "sweep" else ()
    assert main(verb, *space, "--out", "project", "--overwrite") == 2
    assert_rejected(capsys, "--out project has a folder checkpoints that no run wrote")
    assert model.read_text() == "mine"


def test_overwrite_keeps_the_space_that_a_sweep_reads(tmp_path):
    """As when `jaxae sweep space.toml --out . --overwrite` is killed."""
    for name in ("space.toml", "table.csv", "config.json"):
        (tmp_path / name).write_text(name)
    cli_folder.clear(tmp_path, cli_folder.RUN, cli_folder.SWEEP)
    assert os.listdir(tmp_path) == ["space.toml"]


def test_gradcheck_replaces_no_run_unasked(workdir, tmp_path, monkeypatch, capsys):
    """Its default folder is replaced only if gradcheck wrote it."""
    shutil.copytree("run", tmp_path / "runs/gradcheck")
    monkeypatch.chdir(tmp_path)
    before = bytes_of(tmp_path)
    assert main("gradcheck", "--only", "activation/relu") == 2
    assert_rejected(capsys, "--out runs/gradcheck holds a run already")
    assert bytes_of(tmp_path) == before


def test_the_rate_of_a_resumed_epoch_counts_its_own_steps(tmp_path, monkeypatch):
    seconds = iter([0.0, 2.0, 2.0, 4.0, 4.0])
    monkeypatch.setattr(reporting.time, "perf_counter", lambda: next(seconds))
    config = jaxae.TrainConfig(num_epochs=3, batch_size=10)
    metrics = {"train/loss": 1.0}
    reporter = reporting.Reporter(
        tmp_path, config, 15, step=7, history=(metrics,), show=lambda **fields: None
    )
    reporter.on_epoch(metrics)
    reporter.on_epoch(metrics)
    rows = cli_folder.read_rows(tmp_path / cli_folder.TIMING_FILE)
    assert [row["examples_per_second"] for row in rows] == [15.0, 25.0]


# ---- paths and numbers that cannot be ------------------------------------------------


def test_invalid_paths_are_one_sentence(workdir, tmp_path, capsys):
    os.symlink("loop", tmp_path / "loop")
    before = bytes_of(workdir)
    nobody, long, nul = "~nobody-of-that-name/x.npy", "x" * 300 + ".npy", "a\0.npy"
    for arguments, word in (
        (("train", "--data", nobody), "home folder"),
        (("encode", "run", nobody, "-o", "z.npy"), "home folder"),
        (("evaluate", "run", nobody), "home folder"),
        (("gradcheck", "m:f", "--params", nobody), "home folder"),
        (("train", "--data-root", nobody, "--data", "mnist"), "home folder"),
        (("encode", "run", "X.npy", "-o", long), "File name too long"),
        (("encode", "run", long, "-o", "z.npy"), "There is no file xxx"),
        (("train", "--data", "X.npy", "--out", long), "File name too long"),
        (("encode", "run", nul, "-o", "z.npy"), "data is 'a\\x00"),
        (("encode", "run", "X.npy", "-o", nul), "output is 'a\\x00"),
        (("train", "--out", nul), "out is 'a\\x00"),
        (("sweep", nul), "space is 'a\\x00"),
        (("encode", "run", "X.npy", "-o", tmp_path / "loop/z.npy"), "no folder"),
        (("evaluate", "run", "-o", "/dev/full"), "a device"),
        (("evaluate", "run", "-o", "/dev/null"), "a device"),
        (("train", *SMALL, "--out", tmp_path / "loop/run"), "cannot be made"),
        (("train", "--data", "X.npy", "--out", "X.npy"), "is a file"),
        (("train", "--params", tmp_path / "loop", "--data", "X.npy"), "loop"),
    ):
        assert main(*arguments) == 2, arguments
        assert_rejected(capsys, word)
    assert bytes_of(workdir) == before
    assert os.path.exists("/dev/full")


def test_a_name_that_no_encoding_has_is_written_and_printed(workdir, tmp_path, capsys):
    output = os.fsdecode(bytes(tmp_path) + b"/z\xff.npy")
    assert main("encode", "run", "X.npy", "-o", output) == 0
    assert "z\\udcff.npy" in capsys.readouterr().out


def test_homes_of_nobody_are_one_sentence_in_python_too(tmp_path, monkeypatch):
    path = "~nobody-of-that-name/x"
    monkeypatch.setenv("JAXAE_DATA", path)
    objective = jaxae.Objective(jaxae.Autoencoder(input_dim=6, latent_dim=2))
    arguments = {
        **{"hparams": {"learning_rate": 0.1}, "key": jax.random.key(0)},
        "config": jaxae.TrainConfig(num_epochs=1, batch_size=8),
    }
    for call in (
        lambda: data.load(f"{path}.npy"),
        lambda: data.load("mnist", root=path),
        lambda: data.mnist(),
        lambda: jaxae.train(objective, X, **arguments, checkpoint_dir=path),
        lambda: jaxae.sweep(objective, X, {"seed": [0]}, **arguments, out=path),
    ):
        with pytest.raises(ValueError, match="home folder of an? "):
            call()


# ---- damaged after it was done -------------------------------------------------------

MODEL = ("config.json", "params.safetensors", "scaling.safetensors")
RESULTS = [
    *(*MODEL, "metrics.jsonl", "results.json", "results.sha256"),
    *(f"best/{name}" for name in MODEL),
]


@pytest.fixture
def run(workdir, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(workdir / "run", tmp_path / "run")


@pytest.mark.parametrize("harm", [flip, truncate, os.unlink], ids=lambda f: f.__name__)
def test_a_finished_run_that_was_damaged_is_written_again(workdir, run, capsys, harm):
    for name in RESULTS:
        harm(run / name)
        assert train(run, *SAVED, "--resume") == 0
        output = capsys.readouterr().err
        if (harm, name) == (os.unlink, "results.json"):
            assert output == ""  # as after a kill
        else:
            assert output == (
                f"jaxae: note: {run} has files that are missing or not what the run "
                f"wrote: {name}; they are written again from the last state.\n"
            )
        assert contents_of(run) == contents_of(workdir / "run"), name
    shutil.rmtree(run / "best")
    assert train(run, *SAVED, "--resume") == 0
    assert "best/config.json, best/params.safetensors" in capsys.readouterr().err
    assert contents_of(run) == contents_of(workdir / "run")


def test_the_sums_are_those_of_sha256sum(workdir):
    import hashlib

    lines = (workdir / "run/results.sha256").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines[-1:]] == ["results.json"]
    assert {line.split("  ")[1] for line in lines} == {*RESULTS} - {"results.sha256"}
    for sha256, name in (line.split("  ") for line in lines):
        content = (workdir / "run" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == sha256


def test_a_damaged_run_past_the_epochs_asked_for_is_rejected(run, capsys):
    """Else its config.json would have fewer epochs than the run."""
    flip(run / "metrics.jsonl")
    before = bytes_of(run)
    assert train(run, *SAVED, "--resume", epochs=2) == 2
    assert_rejected(capsys, "of 3 epochs with files", ": metrics.jsonl;", "--epochs 3")
    assert bytes_of(run) == before


@pytest.mark.parametrize("left", ["results.json", "results.sha256", "best"])
def test_a_run_that_ended_is_not_started_over_without_its_states(run, capsys, left):
    for name in {"results.json", "results.sha256", "best", "checkpoints"} - {left}:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = bytes_of(run)
    assert train(run, *SAVED, "--resume") == 2
    assert_rejected(capsys, "--resume needs the checkpoints of the run")
    assert bytes_of(run) == before


# ---- what a kill leaves behind -------------------------------------------------------


def hidden(folder):
    return [path for path in folder.rglob(".*") if path.is_file()]


def test_resume_removes_what_a_kill_left_while_best_was_written(workdir, run):
    for name in (".params.safetensors.abcd1234", ".config.json.abcd1234.jaxae-tmp"):
        (run / "best" / name).write_text("{")
        (run / name).write_text("{")
    os.unlink(run / "results.json")
    assert train(run, *SAVED, "--resume") == 0
    assert hidden(run) == [] and contents_of(run) == contents_of(workdir / "run")


class Kill(BaseException):
    """Stands for the end of the process."""


AE = jaxae.Autoencoder(input_dim=6, latent_dim=2)
WRITERS = {
    "save": lambda folder: jaxae.save(folder, AE, AE.init(jax.random.key(0))),
    "save_scaling": lambda folder: data.save_scaling(folder, data.divide(2)),
    "sweep": lambda folder: store.Store(folder, {}).begin([]),
    "json": lambda folder: cli_folder.write_json(folder / "report.json", {}),
    "picture": lambda folder: plots.latent_usage(np.ones((3, 2)), folder / "a.png"),
    "encode": lambda folder: main("encode", "run", "X.npy", "-o", folder / "z.npy"),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_the_next_write_removes_what_a_kill_left(workdir, tmp_path, monkeypatch, write):
    def kill(*arguments):
        raise Kill

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        patch.setattr(os, "unlink", lambda path: None)
        with pytest.raises(Kill):
            write(tmp_path)
    assert len(hidden(tmp_path)) == 1
    write(tmp_path)
    assert hidden(tmp_path) == []


WRITING = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
with files.atomic(pathlib.Path(sys.argv[2])) as file:
    print("open", flush=True)
    sys.stdin.read()
"""


def test_only_what_no_process_writes_is_removed(tmp_path):
    (tmp_path / ".mine.jaxae").write_text("of the user")
    command = [sys.executable, "-c", WRITING, _files.__file__, str(tmp_path / "a")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == b"open\n"
        _files.write_atomically(tmp_path / "b", b"b")
        assert len(hidden(tmp_path)) == 2
        process.kill()
    _files.write_atomically(tmp_path / "b", b"b")
    assert sorted(os.listdir(tmp_path)) == [".mine.jaxae", "b"]


def test_a_file_removed_before_its_lock_is_made_again(tmp_path, monkeypatch):
    mkstemp, calls = tempfile.mkstemp, []

    def removed_once(**arguments):
        handle, name = mkstemp(**arguments)
        if not calls:
            os.unlink(name)
        calls.append(name)
        return handle, name

    monkeypatch.setattr(tempfile, "mkstemp", removed_once)
    _files.write_atomically(tmp_path / "a", b"a")
    assert len(calls) == 2 and (tmp_path / "a").read_bytes() == b"a"
    assert os.listdir(tmp_path) == ["a"]
