"""`jaxae gradcheck`: the catalogue, and a user's own function."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxae
from jaxae import cli
from jaxae.activations import Activation
from jaxae.cli import gradcheck_cases

FILES = ["config.json", "report.json", "timing.jsonl"]

USER_MODULE = """
import jax, jax.numpy as jnp

def loss(params, x=1.0):
    return jnp.sum((params["layer"]["W"] @ params["b"]) ** 2) * jnp.sum(x)

def right(params, x=1.0):
    return jax.grad(loss)(params, x)

def wrong(params, x=1.0):
    grads = right(params, x)
    return {**grads, "layer": {"W": -grads["layer"]["W"]}}

def other_structure(params):
    return params["b"]

class Losses:
    square = staticmethod(lambda params: (params ** 2).sum())

def with_aux(params):
    return loss(params), {"seen": 1}

def noisy(params, key, scale):
    assert isinstance(scale, float)
    noise = jax.random.normal(key, params["b"].shape, jnp.float32)
    return jnp.sum((params["b"] + scale * noise) ** 2)

def rounded(params):
    b = params["b"]
    return jnp.sum((b + jax.lax.stop_gradient(jnp.round(b) - b)) ** 2) + loss(params)

def in_float64(params):
    return jnp.sum(params["b"] ** 2) / (params["b"].dtype == jnp.float64)

def encoded(params, x):
    return jnp.sum(jnp.tanh(params.W @ x + params.b_enc)) + jnp.sum(params.b_dec ** 2)

def raises(params):
    return helper(params["b"], num_epochs=3)

def helper(b, num_epochs):
    raise ValueError("params must suit num_epochs\\nand more")

def refused_by_jaxae(params):
    return jax.tree.leaves(jaxae_model().loss(params, params["b"]))[0]

def jaxae_model():
    import jaxae
    return jaxae.Autoencoder(input_dim=3, latent_dim=2)

def exits(params):
    raise SystemExit(0)

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with modules, good and bad, and arrays."""
    monkeypatch.chdir(tmp_path)
    modules = {
        "mylosses": USER_MODULE,
        "importer": "import a_thing_that_is_missing",
        "broken": "x = = 3",
        "raising": "\nraise OSError(2, 'no file', 'params')",
    }
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    rng = np.random.default_rng(0)
    W, b = rng.normal(size=(4, 3)), rng.normal(size=3)
    np.savez("p.npz", **{"layer/W": W, "b": b})
    save_file({"layer/W": W.astype("f4"), "b": b.astype("f4")}, "p.safetensors")
    np.save("b.npy", b)
    np.save("objects.npy", np.array([{}]), allow_pickle=True)
    np.savez("clash.npz", **{"a/b": b, "a": b})
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "p.pkl").write_bytes(b"\x80\x04N.")
    yield tmp_path
    for name in modules:
        sys.modules.pop(name, None)


def gradcheck(*arguments):
    """In this process, for speed: the status, and what `report.json` holds."""
    status = cli.main(["gradcheck", "--overwrite", *arguments])
    path = os.path.join("runs", "gradcheck", "report.json")
    report = None
    if os.path.exists(path):
        with open(path) as file:
            report = json.load(file)
    return status, report


def verdicts(report):
    return {path: leaf["verdict"] for path, leaf in report["leaves"].items()}


# ---- a function of your own ----------------------------------------------------------


def test_a_right_gradient_passes_and_a_run_folder_says_what_was_checked(folder, capsys):
    status, report = gradcheck(
        "mylosses:loss", "--params", "p.npz", "--grad", "mylosses:right", "--seed", "7"
    )
    assert status == 0
    assert verdicts(report) == {"b": "correct", "layer/W": "correct"}
    printed = capsys.readouterr().out
    assert "gradcheck: ok" in printed
    assert printed.splitlines()[-1] == "run folder: runs/gradcheck"
    out = folder / "runs" / "gradcheck"
    assert sorted(os.listdir(out)) == FILES
    config = json.loads((out / "config.json").read_text())
    assert config["cases"] == ["mylosses:loss"]
    assert config["options"]["seed"] == 7 and "jax" in config["versions"]
    timing = json.loads((out / "timing.jsonl").read_text())
    assert timing["case"] == "mylosses:loss" and timing["seconds"] > 0


def test_a_wrong_gradient_fails_and_the_report_says_which_leaf(folder, capsys):
    status, report = gradcheck(
        "mylosses:loss", "--params", "p.npz", "--grad", "mylosses:wrong"
    )
    assert status == 1 and not report["ok"]
    assert verdicts(report) == {"b": "correct", "layer/W": "wrong"}
    assert "not ok: layer/W" in capsys.readouterr().out


def test_without_grad_it_checks_autodiff_and_safetensors_nest_like_npz(folder):
    status, report = gradcheck("mylosses:loss", "--params", "p.safetensors")
    assert status == 0 and set(report["leaves"]) == {"b", "layer/W"}


def test_a_dotted_function_of_a_single_array(folder):
    status, report = gradcheck("mylosses:Losses.square", "--params", "b.npy")
    assert status == 0 and verdicts(report) == {"": "correct"}


def test_further_arguments_come_in_order_keys_and_numbers_among_them(folder):
    arguments = ("mylosses:noisy", "--params", "p.npz", "--arg", "key:3")
    status, report = gradcheck(*arguments, "--arg", "-0.5")
    assert status == 0 and report["leaves"]["b"]["verdict"] == "correct"
    status, _ = gradcheck("mylosses:loss", "--params", "p.npz", "--arg", "b.npy")
    assert status == 0


def test_has_aux_and_surrogate(folder):
    arguments = ("mylosses:with_aux", "--params", "p.npz")
    assert gradcheck(*arguments, "--has-aux")[0] == 0
    assert gradcheck(*arguments)[0] == 2
    arguments = ("mylosses:rounded", "--params", "p.npz")
    status, report = gradcheck(*arguments)
    assert status == 1 and report["leaves"]["b"]["verdict"] == "surrogate"
    assert gradcheck(*arguments, "--surrogate", "b")[0] == 0


def test_a_run_folder_gives_the_params_that_it_holds(folder, capsys):
    ae = jaxae.Autoencoder(input_dim=3, latent_dim=2)
    jaxae.save("run", ae, ae.init(jax.random.key(0)))
    arguments = ("mylosses:encoded", "--arg", "b.npy", "--params")
    status, report = gradcheck(*arguments, "run")
    assert status == 0 and set(report["leaves"]) == {"W", "b_enc", "b_dec"}
    with jax.enable_x64(True):
        jaxae.save("wide", ae, ae.init(jax.random.key(0), dtype="float64"))
    assert gradcheck(*arguments, "wide")[0] == 2
    assert "add --x64" in capsys.readouterr().err
    status, report = gradcheck(*arguments, "wide", "--x64")
    assert status == 0 and report["leaves"]["W"]["dtype"] == "float64"
    # The run that is checked is not replaced by its report.
    for params in ("run", os.path.join("run", "params.safetensors")):
        assert gradcheck(*arguments, params, "--out", "run")[0] == 2
        error = capsys.readouterr().err
        assert f"--out run would replace {params}, which --params reads" in error
    for arg in ("run", os.path.join("run", "params.safetensors")):
        command = ("mylosses:encoded", "--params", "wide", "--arg", "1", "--arg", arg)
        assert gradcheck(*command, "--out", "run")[0] == 2
        error = capsys.readouterr().err
        assert f"--out run would replace {arg}, which --arg reads" in error
    assert jaxae.load("run")[0] == ae


def test_as_a_subprocess_in_the_users_folder(folder):
    command = [sys.executable, "-m", "jaxae.cli", "gradcheck", "mylosses:loss"]
    done = subprocess.run(
        [*command, "--params", "p.npz", "--grad", "mylosses:wrong"],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 1 and done.stderr == ""
    assert "WRONG" in done.stdout
    assert done.stdout.splitlines()[-1] == "run folder: runs/gradcheck"


# ---- refusals: one line, nothing written ---------------------------------------------

AT_P = ("--params", "p.npz")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("mylosses:loss",), ["--params must name the parameters at which", ".npz"]),
        (("mylosses:loss", "--params", "no.npz"), ["--params no.npz does not exist"]),
        (
            ("mylosses:loss", "--params", "objects.npy"),
            ["objects.npy", "Object arrays"],
        ),
        (
            ("mylosses:loss", "--params", "text.npz"),
            ["Cannot read text.npz", "np.save"],
        ),
        (("mylosses:loss", "--params", "p.pkl"), ["--params must be a .npz", "p.pkl"]),
        (("mylosses:loss", "--params", "clash.npz"), ["clash.npz holds 'a'"]),
        (("mylosses:loss", "--params", "."), ["config.json does not exist"]),
        (("mylosses:loss", *AT_P, "--arg", "no.npy"), ["--arg no.npy does not exist"]),
        (("mylosses:loss", *AT_P, "--arg", "x"), ["--arg must be a number, key:SEED"]),
        (("mylosses:loss", *AT_P, "--arg", "key:x"), ["key:SEED", "'key:x'"]),
        (("mylosses:loss", *AT_P, "--arg", "key:5000000000"), ["--arg key", "2**32"]),
        (("mylosses:loss", *AT_P, "--arg", "key:" + "9" * 5000), ["2**32 - 1, got st"]),
        (("mylosses:los", *AT_P), ["mylosses has no 'los' (did you mean 'loss'?)"]),
        (("mylosses:number", *AT_P), ["mylosses:number must be a function, got 3"]),
        (("mylosses", *AT_P), ["MODULE:FUNCTION", "got 'mylosses'"]),
        (("./mylosses.py:loss", *AT_P), ["MODULE:FUNCTION", "./mylosses.py"]),
        (("mylosse:loss", *AT_P), ["no module 'mylosse'", "current folder"]),
        (("mylosses:loss", *AT_P, "--grad", "mylosses:x"), ["mylosses:x", "exist"]),
        (("mylosses:loss", *AT_P, "--only", "x"), ["--only", "leave it out"]),
        (("mylosses:loss", *AT_P, "--seed", "-1"), ["--seed must be between"]),
        (("mylosses:loss", *AT_P, "--surrogate", "c"), ["surrogate must", "layer/W"]),
        (
            ("mylosses:loss", *AT_P, "--grad", "mylosses:other_structure"),
            ["mylosses:loss: grad must return", "structure"],
        ),
        (("mylosses:with_aux", *AT_P), ["must return a real scalar", "has_aux"]),
        (("--params", "p.npz"), ["--params needs a function to check"]),
        (("--has-aux",), ["--has-aux needs a function to check"]),
        (("--only", "objektive"), ["--only 'objektive'", "activation/sigmoid"]),
        (("--only", "relu", "--out", "p.npz"), ["--out", "is a file"]),
        # An error of the user's function is reported with its line.
        (
            ("mylosses:raises", *AT_P),
            ["mylosses:raises raised ValueError: params must suit num_epochs ("],
        ),
        (
            ("mylosses:refused_by_jaxae", *AT_P),
            ["refused_by_jaxae raised", "(mylosses"],
        ),
        (("mylosses:exits", *AT_P), ["raised SystemExit: 0 (mylosses.py:"]),
        (("mylosses:noisy", *AT_P), ["mylosses:noisy raised TypeError", "missing 2"]),
        (
            ("importer:loss", *AT_P),
            ["importing importer raised ModuleNotFoundError", "(importer.py:1)"],
        ),
        (("broken:loss", *AT_P), ["importing broken raised SyntaxError", "line 1"]),
        (("raising:loss", *AT_P), ["FileNotFoundError", "params", "(raising.py:2)"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input(folder, arguments, words, capsys):
    before = sorted(os.listdir())
    status, _ = gradcheck(*arguments)
    captured = capsys.readouterr()
    assert status == 2 and captured.out == ""
    assert captured.err.startswith("jaxae: error: ") and captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err, captured.err
    assert sorted({*os.listdir()} - {"__pycache__"}) == before


def test_the_error_says_that_float64_copies_were_used(folder, capsys):
    (folder / "mylosses.py").write_text(
        "import jax.numpy as jnp\n"
        "def loss(params):\n"
        "    is_wide = params['b'].dtype == jnp.float64\n"
        "    if params['b'][0] < 1e9 and is_wide:  # untraceable: Python runs again\n"
        "        raise TypeError('float32 only')\n"
        "    return jnp.sum(params['b'])\n"
    )
    assert gradcheck("mylosses:loss", *AT_P)[0] == 2
    message = capsys.readouterr().err
    assert "float32 only (mylosses.py:5; gradcheck evaluates fn on float64" in message


def test_a_folder_that_holds_a_run_is_rejected_unless_overwrite_is_given(
    folder, capsys
):
    judge = ("gradcheck", "mylosses:Losses.square", "--params", "b.npy")
    assert cli.main([*judge]) == 0
    assert cli.main([*judge]) == 0  # the default folder is replaced
    arguments = (*judge, "--out", "runs/mine")
    assert cli.main([*arguments]) == 0
    assert cli.main([*arguments]) == 2
    message = capsys.readouterr().err
    assert "holds a run already" in message and "--resume" not in message
    assert cli.main([*arguments, "--overwrite"]) == 0


def test_an_interrupt_writes_nothing_and_leaves_the_old_run(
    folder, monkeypatch, capsys
):
    def interrupted(*arguments, **keywords):
        raise KeyboardInterrupt

    assert gradcheck("--only", "activation/relu")[0] == 0
    out = folder / "runs" / "gradcheck"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(sys.modules["jaxae.cli.gradcheck"], "check", interrupted)
    assert gradcheck("--only", "activation/tanh")[0] == cli.INTERRUPTED
    assert "interrupted" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


# ---- the catalogue -------------------------------------------------------------------


def test_the_walk_covers_every_name_of_every_catalogue_with_few_cases():
    result = gradcheck_cases.catalogue()
    sparse = [case for case in result if case.startswith("sparse/")]
    assert len(sparse) <= 40 and len(result) <= 60 + len(sparse)
    for catalogue in (jaxae.activations.SPARSE, jaxae.penalties.SPARSE):
        for name in catalogue:
            of_it = {case for case in sparse if case.startswith(f"sparse/{name}/")}
            assert {case.rsplit("/", 1)[1] for case in of_it} >= {"tied", "untied"}
    for g in jaxae.activations.CATALOGUE:
        assert f"activation/{g}" in result
        for observation in jaxae.observations.CATALOGUE:
            for tying in ("tied", "untied"):
                assert f"objective/{g}/{observation}/{tying}" in result
                assert f"no_bias/gaussian_with/{tying}" in result
    for observation in (*jaxae.observations.CATALOGUE, "gaussian_with"):
        assert f"observation/{observation}" in result
    for kind, catalogue in [
        ("penalty", jaxae.penalties.CATALOGUE),
        ("corruption", jaxae.corruptions.CATALOGUE),
    ]:
        for name in catalogue:
            of_it = [case for case in result if case.startswith(f"{kind}/{name}/")]
            assert {case.rsplit("/", 1)[1] for case in of_it} == {"tied", "untied"}


def test_no_entry_of_any_case_is_zero():
    for make in gradcheck_cases.catalogue().values():
        for leaf in jax.tree.leaves(make(np.random.default_rng(0)).params):
            assert jnp.all(leaf != 0)


def test_the_catalogue_is_judged_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, reports = gradcheck("--only", "sigmoid/gaussian/tied")
    assert status == 0
    assert list(reports) == ["objective/sigmoid/gaussian/tied"]
    [report] = reports.values()
    assert verdicts(report) == {"W": "correct", "b_enc": "correct", "b_dec": "correct"}
    printed = capsys.readouterr().out
    assert "3 correct" in printed and "1 case, all ok" in printed
    assert printed.splitlines()[-1] == "run folder: runs/gradcheck"
    assert sorted(os.listdir("runs/gradcheck")) == FILES


def test_a_case_is_the_same_alone_as_among_others_and_another_for_another_seed(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    _, alone = gradcheck("--only", "activation/tanh")
    _, among = gradcheck("--only", "activation/")
    _, other = gradcheck("--only", "activation/tanh", "--seed", "1")
    name = "activation/tanh"
    assert alone[name] == among[name] != other[name]
    assert set(among) == {f"activation/{g}" for g in jaxae.activations.CATALOGUE}


def test_a_planted_bug_fails_and_the_report_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bad = jaxae.activations.tanh._replace(vjp=lambda a, z, dz: dz * (1 - z))
    monkeypatch.setitem(jaxae.activations.CATALOGUE, "tanh", bad)
    status, reports = gradcheck("--only", "activation/t")
    assert status == 1
    assert verdicts(reports["activation/tanh"]) == {
        "vjp": "wrong",
        "slope": "correct",
        "curvature": "correct",
    }
    printed = capsys.readouterr().out
    assert "2 correct" in printed and "gradcheck: not ok: vjp" in printed
    assert "1 WRONG" in printed and "1 case, 1 not ok: activation/tanh" in printed
    name = "objective/tanh/bernoulli/untied"
    status, reports = gradcheck("--only", name)
    result = verdicts(reports[name])
    assert status == 1 and result["W_enc"] == result["b_enc"] == "wrong"
    assert result["W_dec"] == result["b_dec"] == "correct"


def _one_sided(ae, params, p):
    return jaxae.penalties.Cotangents(z=jnp.ones_like(p.z) / len(p.z))


@pytest.mark.parametrize(
    "catalogue, name, bug, case",
    [
        (
            jaxae.penalties.CATALOGUE,
            "l1",
            {"cotangents": _one_sided},  # right where no latent is negative
            "penalty/l1/tanh/tied",
        ),
        (
            jaxae.observations.CATALOGUE,
            "gaussian",
            {"dloss": lambda eta, x: 2 * (eta - x)},
            "observation/gaussian",
        ),
    ],
)
def test_a_bug_in_another_kind_of_part_fails(
    tmp_path, monkeypatch, catalogue, name, bug, case
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(catalogue, name, catalogue[name]._replace(**bug))
    status, reports = gradcheck("--only", case)
    assert status == 1 and not reports[case]["ok"]


def test_an_error_of_the_library_names_the_case(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bad = jaxae.activations.tanh._replace(vjp=lambda a, z, dz: dz.no_such_thing)
    monkeypatch.setitem(jaxae.activations.CATALOGUE, "tanh", bad)
    assert gradcheck("--only", "activation/tanh") == (2, None)
    message = capsys.readouterr().err
    assert "checking activation/tanh raised AttributeError" in message


def test_new_parts_are_judged_without_a_new_line(tmp_path, monkeypatch):
    """A learned activation, and an observation whose data are counts."""
    monkeypatch.chdir(tmp_path)
    scaled = Activation(
        "scaled",
        apply=lambda a, s: s * jnp.tanh(a),
        vjp=lambda a, z, dz, s: dz * s * (1 - jnp.tanh(a) ** 2),
        init=lambda latent_dim: (jnp.ones(latent_dim),),
        vjp_theta=lambda a, z, dz, s: (dz * jnp.tanh(a),),
    )

    def validate(X):
        if (np.asarray(X) != np.round(X)).any():
            raise ValueError("data must be counts.")

    counts = jaxae.observations.gaussian._replace(
        name="counts",
        loss=lambda eta, x: jnp.sum(jnp.exp(eta) - x * eta, axis=-1),
        dloss=lambda eta, x: jnp.exp(eta) - x,
        sample=lambda key, eta: jax.random.poisson(key, jnp.exp(eta)),
        validate=validate,
    )
    monkeypatch.setitem(jaxae.activations.CATALOGUE, "scaled", scaled)
    monkeypatch.setitem(jaxae.observations.CATALOGUE, "counts", counts)
    status, reports = gradcheck("--only", "activation/scaled")
    assert status == 0
    assert verdicts(reports["activation/scaled"]) == {
        "vjp": "correct",
        "vjp_theta/0": "correct",
    }
    status, reports = gradcheck("--only", "scaled/counts")
    assert status == 0 and len(reports) == 2
    assert gradcheck("--only", "observation/counts")[0] == 0
    make = gradcheck_cases.catalogue()["objective/relu/counts/tied"]
    _, targets = make(np.random.default_rng(0)).args[0]
    validate(targets)


# ---- help ----------------------------------------------------------------------------


def test_help_shows_every_option_with_its_default(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "jaxae.cli", "gradcheck", "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0
    fields = dataclasses.fields(cli.GradcheckOptions)
    for field in fields[1:]:
        assert f"--{field.name.replace('_', '-')} " in done.stdout
    assert "[MODULE:FUNCTION]" in done.stdout
    # A repeatable option has no default.
    num_shown = done.stdout.count("(default: ") + done.stdout.count("(repeatable)")
    assert num_shown == len(fields)


def test_gradcheck_needs_neither_scikit_learn_nor_matplotlib(tmp_path):
    code = (
        "import sys; sys.modules['sklearn'] = sys.modules['matplotlib'] = None\n"
        "from jaxae import cli\n"
        "sys.exit(cli.main(['gradcheck', '--only', 'activation/identity']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
