"""Files of other libraries: recognition, the hub, jaxae's own folder as a format."""

import pathlib
import re
import sys

import huggingface_hub.constants
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxae
from jaxae import cli, formats

AE = jaxae.Autoencoder(
    input_dim=3, latent_dim=4, activation="relu", observation="gaussian", tied=False
)


def params_of(ae, seed=0):
    """Random parameters of a model, its biases and what its activation learns too."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(ae.init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes
    )


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True)


@pytest.fixture
def folder(tmp_path):
    """A model folder of jaxae."""
    jaxae.save(tmp_path / "model", AE, params_of(AE), run={"why": "a test"})
    return tmp_path / "model"


def test_a_folder_of_jaxae_is_a_format_too(folder, tmp_path):
    ae, params = formats.load(folder)
    assert ae == AE
    assert_same_bits(params, params_of(AE))
    assert formats.metadata(folder) == {"why": "a test"}
    copy = tmp_path / "copy"
    formats.save(copy, ae, params, format="jaxae", metadata=formats.metadata(folder))
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == {
        p.name: p.read_bytes() for p in folder.iterdir()
    }


# ---- model cards ---------------------------------------------------------------------


def front_matter(folder):
    """The lines between the two --- of a model card."""
    _, matter, text = (folder / "README.md").read_text().split("---\n", 2)
    return dict(line.split(": ", 1) for line in matter.splitlines()), text


def code_of(text):
    return re.search(r"```python\n(.*)```", text, re.DOTALL)[1]


def test_a_saved_model_has_a_model_card_that_says_how_to_load_it(folder):
    matter, text = front_matter(folder)
    assert matter == {"library_name": "jaxae", "tags": "[autoencoder]"}
    for row in ("`relu`", "untied", "| latents | 4 |", "| parameters | 31 |"):
        assert row in text
    names = {}
    exec(code_of(text).replace("FOLDER", str(folder)), names)
    assert names["ae"] == AE


def test_the_card_of_another_format_names_its_library(tmp_path):
    ae = jaxae.Autoencoder(
        input_dim=3, latent_dim=4, activation="topk(2)", observation="gaussian"
    )
    formats.save(tmp_path, ae, params_of(ae), format="saelens")
    matter, text = front_matter(tmp_path)
    assert matter["library_name"] == "saelens"
    assert matter["tags"] == "[autoencoder, sparse-autoencoder]"
    assert "sae_lens" in code_of(text)


def test_a_card_is_replaced_and_a_readme_of_the_user_is_kept(folder):
    wider = jaxae.Autoencoder(input_dim=3, latent_dim=9)
    jaxae.save(folder, wider, params_of(wider))
    assert "| latents | 9 |" in (folder / "README.md").read_text()
    (folder / "README.md").write_bytes(b"\xff mine")
    jaxae.save(folder, AE, params_of(AE))
    assert (folder / "README.md").read_bytes() == b"\xff mine"


# ---- the source ----------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The cache of the hub, offline, with a model in owner/repo and owner/repo/sub."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repo = tmp_path / "cache" / "models--owner--repo"
    snapshot, blobs = repo / "snapshots" / COMMIT, repo / "blobs"
    jaxae.save(tmp_path / "saved", AE, params_of(AE))
    blobs.mkdir(parents=True)
    for folder in (snapshot, snapshot / "sub" / "folder"):
        folder.mkdir(parents=True)
        for number, path in enumerate(sorted((tmp_path / "saved").iterdir())):
            (blobs / str(number)).write_bytes(path.read_bytes())
            (folder / path.name).symlink_to(blobs / str(number))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        *("owner/repo", "owner/repo/sub/folder", "hf://owner/repo/sub/folder/"),
        *(f"owner/repo@{COMMIT}", "hf://owner/repo@main/sub/folder"),
    ],
)
def test_a_hub_id_is_read_from_the_cache_without_a_network(hub, source):
    assert_same_bits(formats.load(source)[1], params_of(AE))


def test_only_the_files_of_the_formats_are_downloaded(hub, monkeypatch, folder):
    asked = []

    def download(repo, **choices):
        asked.append((repo, choices))
        return folder

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    formats.load("a/b@v1", format="jaxae")
    expected = ["config.json", "params.safetensors", "scaling.safetensors"]
    assert asked == [("a/b", {"revision": "v1", "allow_patterns": expected})]
    with pytest.raises(ValueError, match="none of the formats"):
        formats.load("a/b/c")
    assert {"c/cfg.json", "c/sae_weights.safetensors"} <= {
        *asked[1][1]["allow_patterns"]
    }


def test_a_path_that_exists_is_taken_before_a_hub_id(hub, tmp_path):
    other = jaxae.Autoencoder(input_dim=3, latent_dim=9)
    jaxae.save(tmp_path / "owner" / "repo", other, params_of(other))
    assert formats.load("owner/repo")[0] == other
    assert formats.load("hf://owner/repo")[0] == AE


@pytest.mark.parametrize(
    "source, error, message",
    [
        ("owner/none", ValueError, "repository 'owner/none' of the hub cannot be read"),
        ("owner/repo/none", ValueError, "none of the formats jaxae, saelens"),
        ("hf://owner", ValueError, "such as 'owner/repo/folder', got 'hf://owner'"),
        ("none", FileNotFoundError, "none does not exist; give a file, a folder or a"),
        ("./owner", FileNotFoundError, "owner does not exist; give a file"),
        ("https://huggingface.co/owner/repo", FileNotFoundError, "or a hub id such as"),
        ("../owner/repo", FileNotFoundError, "does not exist"),
        ("/owner/repo", FileNotFoundError, "does not exist"),
        (pathlib.Path("owner/repo"), FileNotFoundError, "owner/repo does not exist"),
        ("", ValueError, "source must be a folder's path"),
        (3, ValueError, "source must be a folder's path"),
    ],
)
def test_a_source_that_is_not_there_is_one_sentence(hub, source, error, message):
    with pytest.raises(error, match=message):
        formats.load(source)


def test_without_huggingface_hub_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = r"'owner/repo' is not a file.*pip install 'jaxae\[formats\]'"
    with pytest.raises(ImportError, match=message):
        formats.load("owner/repo")


def test_a_folder_of_model_folders_names_them(tmp_path):
    for name in ("a", "b/c"):
        formats.save(tmp_path / name, AE, params_of(AE), format="saelens")
    message = "none of the formats.*one of its folders, such as a, b/c"
    with pytest.raises(ValueError, match=message):
        formats.load(tmp_path)


def test_the_format_is_found_out_or_given(folder):
    with pytest.raises(
        ValueError, match="does not have the format 'saelens'.*cfg.json"
    ):
        formats.load(folder, format="saelens")
    with pytest.raises(ValueError, match="format must be one of .*jaxae, .*saelens"):
        formats.load(folder, format="torch")
    formats.save(folder, AE, params_of(AE), format="saelens")
    with pytest.raises(ValueError, match="more than one format: jaxae, saelens; give"):
        formats.load(folder)
    assert formats.load(folder, format="saelens")[0] == AE
    with pytest.raises(ValueError, match="inputs_normalized must be"):
        formats.load(folder, inputs_normalized="yes")


def test_save_replaces_no_file_of_a_model_of_another_format(tmp_path):
    ae = jaxae.Autoencoder(
        input_dim=3,
        latent_dim=4,
        activation="topk(2)",
        observation="gaussian",
        tied=False,
    )
    formats.save(tmp_path, ae, params_of(ae), format="saelens")
    message = "directory must not hold a model of saelens, which has a cfg.json"
    with pytest.raises(ValueError, match=message):
        formats.save(tmp_path, ae, params_of(ae), format="sparsify")
    assert formats.load(tmp_path)[0] == ae


def test_save_refuses_before_it_writes(tmp_path):
    params = params_of(AE)
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ((tmp_path / "file", AE, params, "saelens"), "directory must be a folder"),
        ((tmp_path / "a", AE, params, "torch"), "format must be one of"),
        ((tmp_path / "a", params, AE, "saelens"), "ae must be"),
        ((tmp_path / "a", AE, params[:2], "saelens"), "params must be UntiedParams"),
        (("", AE, params, "saelens"), "directory must be"),
    ):
        *positional, name = arguments
        with pytest.raises(ValueError, match=message):
            formats.save(*positional, format=name)
    with pytest.raises(ValueError, match="metadata must be a dict"):
        formats.save(tmp_path / "a", AE, params, format="saelens", metadata=[1])
    for name in formats.WRITABLE:
        with pytest.raises(ValueError, match="must be JSON values"):
            formats.save(tmp_path / "a", AE, params, format=name, metadata={"a": {1}})
    for leaf, value in (("W_dec", np.nan), ("b_enc", np.inf)):
        broken = params._replace(**{leaf: getattr(params, leaf).at[-1].set(value)})
        message = f"params.{leaf} must be finite"
        with pytest.raises(ValueError, match=message):
            jaxae.save(tmp_path / "a", AE, broken)
        for name in formats.WRITABLE:
            with pytest.raises(ValueError, match=message):
                formats.save(tmp_path / "a", AE, broken, format=name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("format", ["jaxae", "saelens"])
def test_save_leaves_no_scale_that_would_apply_to_the_new_model(tmp_path, format):
    formats.save(tmp_path, AE, params_of(AE), format=format)
    formats.save(tmp_path, AE, params_of(AE, 1), format=format)  # replaces the model
    assert_same_bits(formats.load(tmp_path)[1], params_of(AE, 1))
    name = formats.FORMATS[format].scale_file
    (tmp_path / name).write_text('{"scaling_factor": 2.0}')
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"directory must not hold a {name}"):
        formats.save(tmp_path, AE, params_of(AE), format=format)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


# ---- the scaling of a run ------------------------------------------------------------


@pytest.mark.parametrize(
    "choices", [{}, {"tied": True, "pre_bias": True}, {"skip": True}]
)
@pytest.mark.parametrize("name", ["standardize", "center"])
def test_the_scaling_of_a_run_is_folded_into_the_model(name, choices, tmp_path):
    choices = {"tied": False, **choices}
    fields = {"activation": "gated", "observation": "gaussian"}
    ae = jaxae.Autoencoder(input_dim=3, latent_dim=4, **fields, **choices)
    params = params_of(ae)
    X = np.random.default_rng(0).normal([1, 2, 3], [4, 5, 6], (20, 3))
    scaling = jaxae.data.fit_scaling(name, X)
    jaxae.save(tmp_path, ae, params)
    jaxae.data.save_scaling(tmp_path, scaling)
    model = formats.read(tmp_path)
    assert model.folded == (f"the scaling '{name}' of the data",)
    x_hat = jax.vmap(ae.reconstruct, (None, 0))(params, scaling.apply(X))
    expected = scaling.invert(x_hat)
    found = jax.vmap(model.ae.reconstruct, (None, 0))(model.params, np.float32(X))
    # Float32 sums of products as large as W shift, of another order.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    again, same = formats.load(tmp_path, inputs_normalized=True)
    assert again == ae
    assert_same_bits(same, params)


def test_the_options_of_a_run_with_paths_of_its_machine_stay_there(tmp_path):
    ae = jaxae.Autoencoder(input_dim=3, latent_dim=4, observation="gaussian")
    run = {"options": {"data": "secret/x.npy"}, "data": {"source": "/secret/x.npy"}}
    jaxae.save(tmp_path / "run", ae, params_of(ae), run=run)
    assert formats.metadata(tmp_path / "run") == {}
    jaxae.save(tmp_path / "model", ae, params_of(ae), run={"note": "mine"})
    assert formats.metadata(tmp_path / "model") == {"note": "mine"}


def test_a_scaling_that_cannot_be_folded_is_refused(folder):
    X = np.arange(6.0).reshape(2, 3)
    jaxae.data.save_scaling(folder, jaxae.data.fit_scaling("none", X))
    assert formats.read(folder).folded == ()
    jaxae.data.save_scaling(folder, jaxae.data.fit_scaling("unit", X))  # clips
    with pytest.raises(ValueError, match="the scaling 'unit', which cannot be folded"):
        formats.load(folder)
    assert formats.load(folder, inputs_normalized=True)[0] == AE


# ---- jaxae convert -------------------------------------------------------------------


def test_convert_writes_another_format_and_says_what_it_is(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["convert", str(folder), str(out), "--to", "saelens"]) == 0
    assert capsys.readouterr().out == f"wrote {out}: saelens, {AE}\n"
    assert_same_bits(formats.load(out)[1], params_of(AE))
    assert formats.metadata(out)["why"] == "a test"
    scaling = jaxae.data.divide(2)
    jaxae.data.save_scaling(folder, scaling)
    command = ["convert", str(folder), str(out), "--to", "saelens", "--overwrite"]
    assert cli.main(command) == 0
    assert "; folded: the scaling 'divide' of the data" in capsys.readouterr().out
    assert cli.main([*command, "--inputs-normalized"]) == 0
    assert_same_bits(formats.load(out)[1], params_of(AE))


def test_convert_keeps_float64(tmp_path):
    with jax.enable_x64(True):
        params = jaxae.autoencoder.parametrizations.as_dtype(params_of(AE), "float64")
        jaxae.save(tmp_path / "model", AE, params)
    arguments = [str(tmp_path / "model"), str(tmp_path / "out"), "--to", "saelens"]
    assert cli.main(["convert", *arguments]) == 0
    with jax.enable_x64(True):
        assert_same_bits(formats.load(tmp_path / "out")[1], params)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("none", "out", "--to", "jaxae"), "none does not exist"),
        (
            ("model", "out", "--to", "torch"),
            "--to must be one of .*jaxae.*got",
        ),
        (
            ("model", "out", "--to", "jaxae", "--source-format", "x"),
            "--source-format must be one of",
        ),
        (("model", "model", "--to", "saelens"), "model is not empty.*--overwrite"),
        (
            ("model", "model", "--to", "saelens", "--overwrite"),
            "model holds a model of another format",
        ),
        (("model", "file", "--to", "saelens"), "must be a folder, but file is a file"),
        (("model", "run", "--to", "saelens", "--overwrite"), "run holds a run"),
        (("model", "run/best", "--to", "saelens"), "a part of the run"),
        (("bernoulli", "out", "--to", "saelens"), "ae has observation bernoulli"),
        (("unit", "out", "--to", "saelens"), "set --inputs-normalized"),
        (("sweep", "out", "--to", "saelens"), "is the folder of a sweep"),
    ],
)
def test_convert_refuses_in_one_sentence(
    folder, tmp_path, monkeypatch, capsys, arguments, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    bernoulli = jaxae.Autoencoder(input_dim=3, latent_dim=4)
    jaxae.save("bernoulli", bernoulli, params_of(bernoulli))
    jaxae.save("unit", AE, params_of(AE))
    unit = jaxae.data.fit_scaling("unit", np.arange(6.0).reshape(2, 3))
    jaxae.data.save_scaling("unit", unit)
    for name, text in (
        ("run/metrics.jsonl", ""),
        ("sweep/config.json", '{"sweep": 1}'),
    ):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(text)
    assert cli.main(["convert", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(words, line), line
    assert not (tmp_path / "out").exists()
