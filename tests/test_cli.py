"""The command line, as a user meets it: a subprocess."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from judges import assert_falls

import jaxae
from jaxae import cli
from jaxae.cli import config_file, options, reporting

pytestmark = pytest.mark.usefixtures("no_step_norms")

PICTURES = ["curves.png", "filters.png", "latents.png", "reconstructions.png"]
FOLDERS = ["best", "checkpoints"]
FILES = [
    "README.md",
    "results.sha256",
    "config.json",
    "metrics.jsonl",
    "params.safetensors",
    "results.json",
    "scaling.safetensors",
    "timing.jsonl",
]


def run(*arguments, cwd, **keywords):
    return subprocess.run(
        [sys.executable, "-m", "jaxae.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        **keywords,
    )


def train(tmp_path, *arguments):
    """In this process, for speed; the way in and out is tested as a subprocess."""
    out = tmp_path / "run"
    status = cli.main(["train", "--epochs", "2", "--out", str(out), *arguments])
    return status, out


@pytest.fixture
def no_pictures(monkeypatch):
    """Without pictures, for speed."""
    monkeypatch.setattr(reporting, "draw", lambda *arguments: None)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- the main job --------------------------------------------------------------------


def test_train_writes_one_run_folder_and_says_where(tmp_path):
    done = run("train", "--epochs", "3", "--latent-dim", "9", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # quiet where there is no terminal
    assert done.stdout.splitlines()[-1] == "run folder: runs/train"
    assert "of PCA(9)" in done.stdout
    assert (
        "pictures: filters.png, reconstructions.png, curves.png, latents.png"
        in done.stdout
    )
    out = tmp_path / "runs" / "train"
    assert sorted(os.listdir(out)) == sorted(FILES + FOLDERS + PICTURES)

    rows = lines(out / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert_falls([row["train/loss"] for row in rows])
    assert {"epoch", "seconds", "examples_per_second"} == set(
        lines(out / "timing.jsonl")[0]
    )
    for name in PICTURES:
        assert (out / name).read_bytes().startswith(b"\x89PNG")

    config = json.loads((out / "config.json").read_text())
    assert config["model"]["latent_dim"] == 9 and config["options"]["epochs"] == 3
    assert config["data"]["num_test"] == 359 and len(config["data"]["sha256"]) == 64
    assert {"python", "jax", "jaxae", "optax"} <= set(config["versions"])

    # What is reported is what the saved model does.
    ae, params = jaxae.load(out)
    results = json.loads((out / "results.json").read_text())
    digits = jaxae.data.digits()
    _, test, _ = jaxae.data.split(digits.train, 0.2, 0.1, seed=0)
    test = jaxae.data.scaled(test, digits.scale)
    result = jaxae.Objective(ae).evaluate(params, test, {})
    np.testing.assert_allclose(results["test"]["loss"], result["loss"], rtol=1e-6)


def test_results_print_pca_honestly(tmp_path, no_pictures):
    from sklearn.decomposition import PCA

    _, out = train(tmp_path, "--latent-dim", "16")
    digits = jaxae.data.digits()
    rest, test, _ = jaxae.data.split(digits.train / 16, 0.2, 0.1, seed=0)
    pca = PCA(16).fit(rest)
    expected = ((pca.inverse_transform(pca.transform(test)) - test) ** 2).sum(1).mean()
    result = json.loads((out / "results.json").read_text())["test"]["pca_squared_error"]
    np.testing.assert_allclose(result, expected, rtol=1e-3)


@pytest.mark.slow  # test_cli_using.py repeats a run by its config, and its pictures
def test_two_runs_of_one_command_are_identical_but_for_the_clock(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        train(tmp_path / name)
    one, two = (tmp_path / name / "run" for name in ("one", "two"))
    for name in ("metrics.jsonl", "params.safetensors", "results.json", *PICTURES):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_a_run_is_repeated_with_its_generator_whatever_the_default_is(
    tmp_path, monkeypatch, no_pictures
):
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", np.random.default_rng(0).uniform(size=(100, 6)))
    options = ("--data", "rows.npy", "--latent-dim", "3", "--batch-size", "20")
    options = (*options, "--epochs", "1", "--corruption", "masking")
    options = (*options, "--corruption-rate", "0.5")
    with jax.default_prng_impl("rbg"):  # as the variable JAX_DEFAULT_PRNG_IMPL sets it
        assert cli.main(["train", *options, "--out", "rbg"]) == 0
    config = json.loads((tmp_path / "rbg" / "config.json").read_text())
    assert config["options"]["generator"] == "rbg"
    assert cli.main(["train", "--config", "rbg/config.json", "--out", "again"]) == 0
    first, again = (
        (tmp_path / name / "params.safetensors").read_bytes()
        for name in ("rbg", "again")
    )
    assert first == again


SINGLY = [
    ("--untied", "--activation", "relu", "--observation", "gaussian"),
    ("--gradient", "manual", "--optimizer", "momentum", "--momentum", "0.9"),
    ("--optimizer", "adamw", "--adamw-decay", "0.01", "--bias-from-mean"),
    ("--corruption", "masking", "--corruption-rate", "0.3", "--l1", "0.01"),
    ("--contractive", "0.01", "--weight-decay", "1e-4"),
    ("--kl-sparsity", "0.1", "--kl-sparsity-target", "0.05"),
    ("--dtype", "float64", "--gradient", "manual"),
    ("--dtype", "bfloat16", "--optimizer", "sgd", "--learning-rate", "0.01"),
    ("--validation-fraction", "0", "--test-fraction", "0.5"),
    ("--test-fraction", "0"),
    ("--no-bias", "--gradient", "manual", "--observation", "gaussian_with(relu)"),
    ("--log-every", "2", "--no-diagnostics"),
]
TOGETHER = [  # each of these options too, in fewer runs
    SINGLY[0] + SINGLY[1] + SINGLY[9],
    SINGLY[2] + SINGLY[3] + SINGLY[6],
    SINGLY[4] + SINGLY[5] + SINGLY[8],
    SINGLY[7] + SINGLY[10] + SINGLY[11],
]


@pytest.mark.parametrize(
    "arguments",
    [*TOGETHER, *(pytest.param(one, marks=pytest.mark.slow) for one in SINGLY)],
    ids=" ".join,
)
def test_every_option_trains(tmp_path, monkeypatch, arguments):
    if "--untied" not in arguments:  # for speed
        monkeypatch.setattr(reporting, "draw", lambda *arguments: None)
    status, out = train(tmp_path, "--latent-dim", "8", *arguments)
    assert status == 0
    rows = lines(out / "metrics.jsonl")
    assert_falls([row["train/loss"] for row in rows])
    assert (out / "decoder_filters.png").exists() == ("--untied" in arguments)
    model = json.loads((out / "config.json").read_text())["model"]
    assert model["bias"] == ("--no-bias" not in arguments)


def test_gradient_manual_equals_autodiff(tmp_path, no_pictures):
    losses = []
    for gradient in ("manual", "autodiff"):
        arguments = ("--gradient", gradient, "--overwrite", "--no-diagnostics")
        _, out = train(tmp_path, *arguments)
        losses.append([row["train/loss"] for row in lines(out / "metrics.jsonl")])
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_your_own_data(tmp_path, no_pictures, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.save("real.npy", rng.normal(size=(200, 7)))
    np.save("bytes.npy", rng.integers(0, 256, size=(200, 5, 5), dtype=np.uint8))
    np.savez("two.npz", a=rng.uniform(size=(200, 3)), b=np.zeros(3))
    complete = ("--test-fraction", "0", "--validation-fraction", "0")
    complete = (*complete, "--no-diagnostics")  # for speed
    arguments = ("--data", "real.npy", "--observation", "gaussian", *complete)
    status, out = train(tmp_path, *arguments)
    assert status == 0
    assert json.loads((out / "config.json").read_text())["model"]["input_dim"] == 7
    arguments = ("--data", "bytes.npy", "--divide-by", "255", "--overwrite", *complete)
    assert train(tmp_path, *arguments)[0] == 0
    arguments = ("--data", "two.npz", "--array", "a", "--overwrite", *complete)
    assert train(tmp_path, *arguments)[0] == 0


# ---- options -------------------------------------------------------------------------


def test_options_have_the_defaults_of_the_library():
    defaults = options.TrainOptions()
    ae = options.build_autoencoder(defaults, 7)
    assert options.build_config(defaults, ae) == jaxae.TrainConfig()
    assert ae == jaxae.Autoencoder(input_dim=7, latent_dim=64)
    assert options.build_objective(defaults, ae) == jaxae.Objective(ae)


def test_every_setting_of_training_is_an_option_unless_it_is_a_function():
    names = {field.name for field in dataclasses.fields(options.TrainOptions)}
    renamed = {"num_epochs": "epochs", "diagnostics": "no_diagnostics"}
    for field in dataclasses.fields(jaxae.TrainConfig):
        is_for_python = field.name in ("steps_per_epoch", "after_update")
        assert (renamed.get(field.name, field.name) in names) != is_for_python


OLD_OPTIONS = {
    **{"data": "digits", "array": None, "data_root": None, "divide_by": None},
    **{"scaling": None, "test_fraction": 0.2, "validation_fraction": 0.1},
    **{"latent_dim": 64, "untied": False, "no_bias": False, "activation": "sigmoid"},
    **{"observation": "bernoulli", "corruption": None, "corruption_rate": None},
    **{"l1": None, "kl_sparsity": None, "kl_sparsity_target": None},
    **{"contractive": None, "weight_decay": None, "optimizer": "adam"},
    **{"learning_rate": 0.001, "momentum": None, "adamw_decay": None},
    **{"schedule": "constant", "schedule_steps": None, "final_fraction": None},
    **{"warmup_steps": None, "max_norm": None, "accumulate": 1, "epochs": 20},
    **{"batch_size": 128, "gradient": "autodiff", "seed": 0, "generator": None},
    **{"compute_dtype": None, "start_from": None, "params": None},
    **{"bias_from_mean": False, "dtype": "float32", "on_nonfinite": "stop"},
    **{"monitor": "validation/loss", "patience": None, "checkpoint_minutes": 10.0},
    **{"checkpoint_steps": None, "keep_checkpoints": 2, "memory_budget": 1024},
}


def test_the_options_of_a_run_of_an_earlier_version_are_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"options": OLD_OPTIONS}))
    expected = options.TrainOptions(gradient="autodiff")  # its default then
    assert config_file.read_options(path) == expected


# ---- help ----------------------------------------------------------------------------


def test_help_shows_every_option_with_its_default_and_every_known_name(tmp_path):
    done = run("train", "--help", cwd=tmp_path, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0
    for field in dataclasses.fields(cli.TrainOptions):
        assert f"--{field.name.replace('_', '-')} " in done.stdout
    assert done.stdout.count("(default: ") == len(dataclasses.fields(cli.TrainOptions))
    catalogues = (
        jaxae.activations.CATALOGUE,
        jaxae.activations.SPARSE,
        jaxae.observations.CATALOGUE,
        jaxae.corruptions.CATALOGUE,
        jaxae.optimizers.CATALOGUE,
        jaxae.data.NAMES,
    )
    for catalogue in catalogues:
        for name in catalogue:
            assert name in done.stdout


def test_usage(tmp_path, capsys):
    assert cli.main(["--help"]) == 0
    assert "train" in capsys.readouterr().out
    assert cli.main([]) == 2
    assert cli.main(["--version"]) == 0
    assert jaxae.__version__ in capsys.readouterr().out


# ---- bad input: one sentence, no traceback, nothing written --------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files that a user may bring, good and bad, in the working folder."""
    monkeypatch.chdir(tmp_path)
    X = np.random.default_rng(0).uniform(size=(40, 6))
    np.save("good.npy", X)
    np.save("ints.npy", (255 * X).astype(np.uint8))
    np.save("complex.npy", X.astype(complex))
    np.save("vector.npy", X[0])
    np.save("empty.npy", X[:0])
    np.save("object.npy", np.array([{}, {}]), allow_pickle=True)
    np.savez("several.npz", first=X, second=X)
    pathlib.Path("text.npy").write_text("not an array")
    pathlib.Path("file").write_text("")
    for name, value in (("nan", np.nan), ("inf", np.inf), ("high", 1.5)):
        bad = X.copy()
        bad[3, 2] = value
        np.save(f"{name}.npy", bad)
    return tmp_path


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            ("--activation", "sigmod"),
            ["--activation must be one of abs_topk", "'sigmod'"],
        ),
        (("--observation", "poison"), ["--observation must be", "bernoulli, gaussian"]),
        (("--optimizer", "adm"), ["--optimizer must be", "did you mean 'adam'"]),
        (("--corruption", "noise"), ["--corruption must be", "masking"]),
        (("--data", "mnst"), ["mnst", "digits", "fashion_mnist"]),
        (("--data", "none.npy"), ["none.npy"]),
        (("--data", "text.npy"), ["text.npy"]),
        (("--data", "object.npy"), ["object.npy", "object"]),
        (("--data", "several.npz"), ["several.npz", "first", "second"]),
        (("--data", "vector.npy"), ["vector.npy"]),
        (("--data", "empty.npy"), ["empty.npy"]),
        (("--data", "complex.npy"), ["complex"]),
        (("--data", "ints.npy"), ["uint8", "--divide-by"]),
        (("--data", "nan.npy"), ["nan", "row 3, column 2"]),
        (("--data", "inf.npy"), ["inf", "row 3, column 2"]),
        (("--data", "high.npy"), ["[0, 1] for bernoulli", "found 1.5"]),
        (("--data", "good.npy", "--batch-size", "64"), ["--batch-size", "64 for"]),
        (("--divide-by", "0"), ["--divide-by", "positive"]),
        (("--latent-dim", "0"), ["--latent-dim", "at least 1, got 0"]),
        (("--latent-dim", "-4"), ["--latent-dim", "at least 1, got -4"]),
        (("--epochs", "0"), ["--epochs", "at least 1, got 0"]),
        (("--seed", "-1"), ["--seed", "-1"]),
        (("--dtype", "int32"), ["--dtype", "bfloat16, float32, float64", "int32"]),
        (("--dtype", "float16"), ["--dtype", "bfloat16, float32, float64"]),
        (("--gradient", "magic"), ["gradient", "autodiff", "magic"]),
        (("--momentum", "0.9"), ["has --momentum, which nothing reads"]),
        (("--optimizer", "momentum"), ["lacks --momentum"]),
        (("--corruption", "masking"), ["lacks --corruption-rate"]),
        (
            ("--corruption", "masking", "--corruption-rate", "1.5"),
            ["--corruption-rate", "at most 1", "got 1.5"],
        ),
        (
            (
                "--kl-sparsity",
                "1",
                "--kl-sparsity-target",
                ".1",
                "--activation",
                "relu",
            ),
            ["between 0 and 1", "relu", "use sigmoid"],
        ),
        (("--out", ""), ["--out"]),
        (("--learning-rate", "nan"), ["--learning-rate", "finite"]),
        (("--test-fraction", "1.5"), ["ractions"]),
        (("--out", "file"), ["--out", "is a file"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input(folder, arguments, words, capsys):
    before = sorted(os.listdir())
    status = cli.main(["train", *arguments])
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.startswith("jaxae: error: ") and captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err, captured.err
    assert sorted(os.listdir()) == before  # nothing half-written


BAD_USAGE = [
    ("train", "--latent-dim", "many"),
    ("train", "--unknown"),
    ("train", "--activation", "sigmod"),
    ("trian",),
]


@pytest.mark.parametrize(
    "arguments",
    [BAD_USAGE[0], *(pytest.param(a, marks=pytest.mark.slow) for a in BAD_USAGE[1:])],
)
def test_bad_input_as_a_subprocess_has_no_traceback(tmp_path, arguments):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr and "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError("of 9 TB"), "out of memory (MemoryError: of 9 TB)"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore"),
            "out of memory (JaxRuntimeError: RESOURCE_EXHAUSTED: out of",
        ),
        (
            jax.errors.JaxRuntimeError("INTERNAL: an illegal address\nmore"),
            "JAX or its device failed (JaxRuntimeError: INTERNAL: an illegal address)",
        ),
    ],
    ids=["host", "device", "fault"],
)
def test_only_exhausted_memory_is_called_too_large(
    monkeypatch, capsys, error, sentence
):
    def failing(options):
        raise error

    command = cli.SUBCOMMANDS["plot"]._replace(run=failing)
    monkeypatch.setitem(cli.SUBCOMMANDS, "plot", command)
    assert cli.main(["plot", "run"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"jaxae: error: {sentence}") and printed.count("\n") == 1


@pytest.mark.parametrize("arguments", BAD_USAGE)
def test_bad_usage_has_status_2_and_no_traceback(
    tmp_path, monkeypatch, capsys, arguments
):
    monkeypatch.chdir(tmp_path)
    try:
        status = cli.main([*arguments])
    except SystemExit as ended:
        status = ended.code
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == "" and captured.err and "Traceback" not in captured.err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [("train", "--help"), pytest.param(("--help",), marks=pytest.mark.slow)],
)
def test_a_reader_who_goes_away_is_no_error(arguments):
    """As with `head -c 20`, which closes the pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "jaxae.cli", *arguments],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (141, "")


def contents(out):
    return {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_a_folder_that_holds_a_run_is_rejected_unless_overwrite_is_given(
    tmp_path, no_pictures, capsys
):
    _, out = train(tmp_path)
    (out / "notes.txt").write_text("mine")
    before = contents(out)
    assert train(tmp_path)[0] == 2
    assert "holds a run already" in capsys.readouterr().err
    assert contents(out) == before
    # Bad input leaves the old run alone, also with --overwrite.
    assert train(tmp_path, "--overwrite", "--batch-size", "9999")[0] == 2
    assert contents(out) == before
    assert train(tmp_path, "--overwrite", "--seed", "1")[0] == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert len(lines(out / "metrics.jsonl")) == 2
    assert (out / "params.safetensors").read_bytes() != before["params.safetensors"]


def test_a_diverging_run_says_so_saves_the_finite_state_and_fails(
    tmp_path, no_pictures, capsys
):
    arguments = ("--learning-rate", "1e30", "--optimizer", "sgd")
    arguments += ("--activation", "identity", "--observation", "gaussian")
    status, out = train(tmp_path, *arguments)
    assert status == 1
    assert "became non-finite at step" in capsys.readouterr().err
    _, params = jaxae.load(out)
    assert np.isfinite(params.W).all()
    for path in (out / "metrics.jsonl", out / "results.json"):
        assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()


def test_a_missing_extra_names_the_command_that_installs_it(tmp_path):
    code = (
        "import sys; sys.modules['tyro'] = None\n"
        "from jaxae import cli\nsys.exit(cli.main(['train']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "pip install 'jaxae[cli]'" in done.stderr and "Traceback" not in done.stderr


# ---- Ctrl-C --------------------------------------------------------------------------


def start(tmp_path, *options):
    """A training that does not end by itself."""
    return subprocess.Popen(
        [sys.executable, "-m", "jaxae.cli", "train", "--epochs", "1000000", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )


def interrupt(process, path, number=signal.SIGINT):
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    return out, err


# In make test the process of test_cli_failures.py is ended by SIGINT, and one signal of
# either kind is raised without a process.
@pytest.mark.slow
def test_sigterm_ends_as_tidy_as_ctrl_c(tmp_path):
    process = start(tmp_path)
    out = tmp_path / "runs" / "train"
    interrupt(process, out / "metrics.jsonl", number=signal.SIGTERM)
    assert process.returncode == cli.INTERRUPTED
    jaxae.load(out)


@pytest.mark.slow
def test_ctrl_c_ends_tidy_with_what_was_reached_saved(tmp_path):
    process = start(tmp_path)
    out = tmp_path / "runs" / "train"
    printed, err = interrupt(process, out / "metrics.jsonl")
    assert process.returncode == cli.INTERRUPTED
    assert "Traceback" not in err and "jaxae: stopping" in err
    assert "interrupted after epoch" in printed
    assert printed.splitlines()[-1] == "run folder: runs/train"
    assert sorted(os.listdir(out)) == sorted(FILES + FOLDERS + PICTURES)
    jaxae.load(out)
    assert json.loads((out / "results.json").read_text())["status"] in (
        "stopped",
        "interrupted",
    )
