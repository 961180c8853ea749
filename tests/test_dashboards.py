"""Dashboards have the fields that other programs read, with the right values.

The names of the fields are those of SAEDashboard 0.8.0, whose own classes read these
files: NeuronpediaDashboardBatch(**batch).to_dict() == batch, and its converter makes
the same rows for Neuronpedia.
"""

import datetime
import gzip
import json

import jax
import numpy as np
import pytest

import jaxae
from jaxae import cli, dashboards, data
from jaxae.cli import config_file, run_folder
from jaxae.cli.options import TrainOptions
from jaxae.dashboards import latents, neuronpedia
from jaxae.tokens import Tokens

N, D, H, V = 80, 6, 10, 30
SOURCE = dashboards.Source(
    "toy", 3, "res-mine", "a", dataset="text", creator="Me", creator_id="c1"
)
ACTIVATION = {
    *("bin_min", "bin_max", "bin_contains", "tokens", "values"),
    "qualifying_token_index",
}
FEATURE = {
    "feature_index",
    *(f"neuron_alignment_{name}" for name in ("indices", "values", "l1")),
    *(f"correlated_neurons_{name}" for name in ("indices", "l1", "pearson")),
    *(f"correlated_features_{name}" for name in ("indices", "l1", "pearson")),
    *("neg_str", "neg_values", "pos_str", "pos_values", "frac_nonzero"),
    *("freq_hist_data_bar_values", "freq_hist_data_bar_heights"),
    *("logits_hist_data_bar_heights", "logits_hist_data_bar_values"),
    *("n_prompts_total", "n_tokens_in_prompt", "dataset", "activations"),
    *("decoder_weights_dist", "vector"),
}
# Columns of the tables Neuron and Activation.
NEURON = {
    *("modelId", "layer", "index", "creatorId", "createdAt", "sourceSetName"),
    *("maxActApprox", "hasVector", "vectorLabel", "vectorDefaultSteerStrength"),
    *("hookName", "topkCosSimIndices", "topkCosSimValues"),
    *(FEATURE - {"feature_index", "dataset", "activations"}),
} - {"n_prompts_total", "n_tokens_in_prompt"}
ROW = {
    *("id", "tokens", "index", "layer", "modelId", "maxValue", "maxValueTokenIndex"),
    *("minValue", "values", "dfaValues", "creatorId", "createdAt", "lossValues"),
    *("binMin", "binMax", "binContains", "qualifyingTokenIndex"),
}


@pytest.fixture(scope="module")
def model():
    """A model whose latents 0 and 4 are dead, its data and tokens."""
    ae = jaxae.Autoencoder(
        input_dim=D, latent_dim=H, activation="relu", observation="gaussian", tied=False
    )
    params = ae.init(jax.random.key(0))
    params = params._replace(b_enc=params.b_enc.at[np.array([0, 4])].set(-100.0))
    X = np.random.default_rng(0).normal(size=(N, D)).astype("f4")
    tokens = Tokens(np.array([f"t{i}" for i in range(N)]), np.array([0, 50]))
    return ae, params, X, tokens


@pytest.fixture(scope="module")
def unembedding():
    weights = np.random.default_rng(1).normal(size=(D, V))
    return dashboards.Unembedding(weights, [f"v{i}" for i in range(V)])


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    for module in (latents, neuronpedia):
        monkeypatch.setattr(module, "BATCH", 5)


def read(path):
    content = path.read_bytes()
    text = gzip.decompress(content) if path.suffix == ".gz" else content
    return [json.loads(line) for line in text.splitlines()]


def test_saedashboard_files(model, unembedding, tmp_path):
    ae, params, X, _ = model
    out = dashboards.write_saedashboard(
        tmp_path / "out", SOURCE, *model, unembedding=unembedding, context=4
    )
    names = [
        "batch-0.json",
        "batch-1.json",
        "run_settings.json",
        "skipped_indexes.json",
    ]
    assert sorted(path.name for path in out.iterdir()) == names
    settings = json.loads((out / "run_settings.json").read_text())
    assert settings["sae_set"] == "res-mine" and settings["n_tokens_in_prompt"] == 50
    skipped = json.loads((out / "skipped_indexes.json").read_text())
    assert skipped["skipped_indexes"] == [0, 4] and skipped["layer"] == "3"
    batches = [json.loads((out / name).read_text()) for name in names[:2]]
    for batch in batches:
        assert {*batch} == {"model_id", "layer", "sae_set", "sae_id_suffix", "features"}
        assert (batch["model_id"], batch["layer"]) == ("toy", 3)
    found = [feature for batch in batches for feature in batch["features"]]
    assert [f["feature_index"] for f in found] == [1, 2, 3, 5, 6, 7, 8, 9]
    Z = np.asarray(jax.vmap(ae.encode, (None, 0))(params, X))
    W_dec = np.asarray(params.W_dec)
    for feature in found:
        j, z = feature["feature_index"], Z[:, feature["feature_index"]]
        assert {*feature} == FEATURE
        assert feature["frac_nonzero"] == pytest.approx((z > 0).mean(), abs=1e-5)
        assert feature["neuron_alignment_indices"] == np.argsort(-W_dec[j])[:3].tolist()
        shares = np.abs(np.sort(W_dec[j])[:-4:-1]) / np.abs(W_dec[j]).sum()
        np.testing.assert_allclose(feature["neuron_alignment_l1"], shares, atol=1e-5)
        logits = W_dec[j] @ unembedding.weights
        order = np.argsort(logits)
        assert feature["neg_str"] == [f"v{i}" for i in order[:10]]
        assert feature["pos_str"] == [f"v{i}" for i in order[:-11:-1]]
        values = np.sort(logits)[:-11:-1]
        np.testing.assert_allclose(feature["pos_values"], values, atol=2e-5)
        assert sum(feature["logits_hist_data_bar_heights"]) == V
        assert len(feature["logits_hist_data_bar_values"]) == 50
        heights = feature["freq_hist_data_bar_heights"]
        assert sum(heights) == (z > 0).sum() and heights[-1] > 0
        centres = np.array(feature["freq_hist_data_bar_values"])
        assert centres[-1] == pytest.approx(z.max(), abs=centres[0] + 1e-5)
        check_activations(feature, z)


def check_activations(feature, z):
    """Each example is a window of the tokens, with the values of the latent."""
    order = np.argsort(-z, kind="stable")
    top = [row for row in order[:20].tolist() if z[row] > 0]
    rows = []
    for activation in feature["activations"]:
        assert {*activation} == ACTIVATION
        window = [int(token.removeprefix("t")) for token in activation["tokens"]]
        row = window[activation["qualifying_token_index"]]
        low, high = (0, 50) if row < 50 else (50, N)
        assert window == list(range(max(low, row - 4), min(high, row + 5)))
        np.testing.assert_allclose(activation["values"], z[window], atol=1e-5)
        rows.append(row)
    assert rows[: len(top)] == top
    bins = [(a["bin_min"], a["bin_max"]) for a in feature["activations"]]
    assert {a["bin_contains"] for a in feature["activations"][: len(top)]} == {-1}
    assert {*bins[: len(top)]} == {(-1, round(float(z.max()), 5))}
    for row, (low, high) in zip(rows[len(top) :], bins[len(top) :]):
        assert low - 1e-5 <= z[row] <= high + 1e-5
    contains = feature["activations"][-1]["bin_contains"]
    assert contains == pytest.approx(feature["frac_nonzero"] / 5, abs=1e-5)


def test_neuronpedia_files(model, unembedding, tmp_path):
    when = datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC)
    options = {"unembedding": unembedding, "context": 4, "created_at": when}
    explanations = {3: "three", 0: "<none>"}
    folder = dashboards.write_neuronpedia(
        tmp_path / "np",
        SOURCE,
        *model,
        explanations=explanations,
        vectors=True,
        **options,
    )
    assert folder == tmp_path / "np" / "v1" / "toy" / "3-res-mine__a"
    names = ("model", "release", "source", "sourceset")
    about = {name: read(folder / f"{name}.jsonl") for name in names}
    assert all(len(rows) == 1 for rows in about.values())
    [source], [source_set] = about["source"], about["sourceset"]
    assert source["id"] == "3-res-mine__a" and source["setName"] == source_set["name"]
    assert (
        source["modelId"] == source_set["modelId"] == about["model"][0]["id"] == "toy"
    )
    assert source_set["releaseName"] == about["release"][0]["name"]
    batches = ["batch-0.jsonl.gz", "batch-1.jsonl.gz"]
    rows = {}
    for kind in ("features", "activations"):
        assert sorted(p.name for p in (folder / kind).iterdir()) == batches
        rows[kind] = [row for name in batches for row in read(folder / kind / name)]
        for row in rows[kind]:
            assert (row["modelId"], row["layer"]) == ("toy", "3-res-mine__a")
            assert row["creatorId"] == "c1"
            assert row["createdAt"] == "2026-01-02T03:00:00.000Z"
    assert all({*row} == NEURON for row in rows["features"])
    assert all({*row} == ROW for row in rows["activations"])
    ids = [row["id"] for row in rows["activations"]]
    assert len({*ids}) == len(ids) and {len(i) for i in ids} == {25}
    ae, params, X, _ = model
    Z = np.asarray(jax.vmap(ae.encode, (None, 0))(params, X))
    for row in rows["features"]:
        j = int(row["index"])
        assert row["maxActApprox"] == pytest.approx(Z[:, j].max(), abs=1e-5)
        assert row["hasVector"] and row["vectorDefaultSteerStrength"] > 0
        np.testing.assert_allclose(row["vector"], params.W_dec[j], atol=1e-5)
        assert row["hookName"] == "blocks.3.hook_resid_post"
        assert len(row["topkCosSimIndices"]) == 5 and j not in row["topkCosSimIndices"]
    for row in rows["activations"]:
        values = row["values"]
        assert row["maxValue"] == values[row["maxValueTokenIndex"]] == max(values)
        assert row["minValue"] == min(values) and len(row["tokens"]) == len(values)
    explained = read(folder / "explanations" / "batch-0.jsonl.gz")
    found = {row["index"]: row["description"] for row in explained}
    assert found == {"0": "<none>", "3": "three"}
    assert {row["authorId"] for row in explained} == {"c1"}
    again = dashboards.write_neuronpedia(
        tmp_path / "again",
        SOURCE,
        *model,
        explanations=explanations,
        vectors=True,
        **options,
    )
    for path in folder.rglob("*.*"):
        assert (again / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_fields_that_need_an_unembedding_are_empty_without_one(model, tmp_path):
    out = dashboards.write_saedashboard(tmp_path, SOURCE, *model, context=0)
    [feature, *_] = json.loads((out / "batch-0.json").read_text())["features"]
    assert feature["pos_str"] == feature["logits_hist_data_bar_values"] == []
    assert feature["vector"] == []
    assert {len(a["tokens"]) for a in feature["activations"]} == {1}


def test_a_source_without_suffix_has_a_shorter_id():
    assert dashboards.Source("m", 0, "s").id == "0-s"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"X": np.zeros((3, D + 1), "f4")}, "X must be [N, 6]"),
        ({"X": np.zeros((3, D), "f4")}, "tokens must be one for each of the 3 rows"),
        ({"context": -1}, "context must be at least 0"),
        (
            {"unembedding": (np.zeros((D, 3)), ["a"])},
            "unembedding.weights must be [6, 1]",
        ),
        ({"explanations": {H: "a"}}, "explanations must have latents from 0 to 9"),
        ({"source": dashboards.Source("m", 0, "s")}, "source.creator_id must be"),
        ({"params": ()}, "params must be UntiedParams"),
        ({"directory": ""}, "directory must be a folder"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_written(model, tmp_path, change, words):
    names = ("ae", "params", "X", "tokens")
    arguments = dict(zip(names, model)) | {"directory": tmp_path / "out"}
    arguments |= {"source": SOURCE, **change}
    if "unembedding" in change:
        arguments["unembedding"] = dashboards.Unembedding(*change["unembedding"])
    with pytest.raises(ValueError) as error:
        dashboards.write_neuronpedia(**arguments)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b"])
def test_names_that_no_folder_can_have_are_refused(name):
    with pytest.raises(ValueError, match="source.model must be a name"):
        dashboards.Source(name, 0, "s")


def test_a_folder_with_files_is_not_written_to(model, tmp_path):
    (tmp_path / "mine").write_text("a")
    with pytest.raises(ValueError, match="directory must be a new or an empty folder"):
        dashboards.write_saedashboard(tmp_path, SOURCE, *model)
    with pytest.raises(ValueError, match="directory must be a new or an empty folder"):
        dashboards.write_saedashboard(tmp_path / "mine", SOURCE, *model)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


# ---- the command line ----------------------------------------------------------------


def main(*arguments):
    return cli.main([str(argument) for argument in arguments])


TOML = 'model = "toy"\nlayer = 3\nsource_set = "res-mine"\ncreator_id = "c1"\n'


@pytest.fixture(scope="module")
def home(model, tmp_path_factory):
    """A run folder of the model, its data, their tokens as ids, and a source."""
    ae, params, X, _ = model
    options = TrainOptions(
        latent_dim=H, activation="relu", observation="gaussian", untied=True
    )
    description = {"options": config_file.saved_options(options)}
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        run_folder.save_model(home / "run", ae, params, data.divide(1.0), description)
        np.save("X.npy", X)
        np.save("ids.npy", np.arange(N) % V)
        np.save("unembedding.npy", np.ones((D, V), "f4"))
        np.save("integers.npy", np.ones((D, V), int))
        vocabulary = [f"v{i}" for i in range(V)]
        (home / "vocabulary.json").write_text(json.dumps(vocabulary))
        (home / "texts.json").write_text(json.dumps(vocabulary * 2 + vocabulary[:20]))
        sources = {
            "source": TOML,
            "broken": "model =",
            "unknown": TOML + "sets = 1",
            "wrong": TOML.replace("3", "'3'"),
            "partial": "layer = 3",
        }
        for name, text in sources.items():
            (home / f"{name}.toml").write_text(text)
    return home


@pytest.fixture
def workdir(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


IDS = ("--tokens", "ids.npy", "--vocabulary", "vocabulary.json")
NAMED = ("--source", "source.toml")


@pytest.mark.parametrize("to", ["saedashboard", "neuronpedia"])
def test_a_run_is_exported(workdir, tmp_path, capsys, to):
    out = ("-o", tmp_path / "out", "--unembedding", "unembedding.npy")
    assert main("export", "run", "X.npy", "--to", to, *NAMED, *IDS, *out) == 0
    folder = tmp_path / "out"
    if to == "neuronpedia":
        folder = folder / "v1" / "toy" / "3-res-mine"
        assert {r["index"] for r in read(folder / "features" / "batch-0.jsonl.gz")}
    else:
        assert json.loads((folder / "batch-0.json").read_text())["features"]
    assert capsys.readouterr().out == f"wrote {folder}\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--to", "saelens", *NAMED, *IDS), "--to must be one of neuronpedia, saedash"),
        (("--to", "neuronpedia", *NAMED, "--tokens", "ids.npy"), "--vocabulary"),
        (("--to", "neuronpedia", "--source", "none.toml", *IDS), "none.toml"),
        (
            ("--to", "neuronpedia", "--source", "broken.toml", *IDS),
            "Cannot read broken",
        ),
        (("--to", "neuronpedia", "--source", "unknown.toml", *IDS), "'sets'"),
        (("--to", "neuronpedia", "--source", "wrong.toml", *IDS), "layer must not be"),
        (("--to", "neuronpedia", "--source", "partial.toml", *IDS), "must give model"),
    ]
    + [
        (("--to", "saedashboard", *NAMED, *tokens, "--unembedding", name), words)
        for tokens, name, words in [
            (("--tokens", "texts.json"), "unembedding.npy", "needs --vocabulary"),
            (IDS, "none.npy", "none.npy does not exist"),
            (IDS, "integers.npy", "Cannot read integers.npy: its dtype is int64"),
            (IDS, "X.npy", "must be [6, 30], one column for each text"),
        ]
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence(
    workdir, tmp_path, capsys, options, words
):
    assert main("export", "run", "X.npy", *options, "-o", tmp_path / "out") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("jaxae: error: ") and words in captured.err
    assert not (tmp_path / "out").exists()
