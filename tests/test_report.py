"""The page of a run or a sweep: its data, its safety, and its use in a browser."""

import base64
import hashlib
import html.parser
import io
import json
import re
import shlex
import shutil

import browser
import jax
import matplotlib.image
import numpy as np
import pandas as pd
import pytest

import jaxae
from jaxae import cli, report
from jaxae.cli import reporting
from jaxae.cli.options import TrainOptions
from jaxae.cli.report import _command
from jaxae.report import images, page, sweeps
from jaxae.report import latents as latents_of_page
from jaxae.tokens import Tokens

HOSTILE = ["</script>", "<script>hacked = 1</script>", "<img src=x onerror=hacked=1>"]
N, D, H = 90, 16, 12


class Elements(html.parser.HTMLParser):
    """The start tags of a page, and the text of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append(data)


def read(path):
    """The data of a page, after a check of all that a page must be."""
    text = path.read_text(encoding="utf-8")
    found = Elements(text)
    names = [tag for tag, _ in found.tags]
    assert text.startswith("<!DOCTYPE html>") and names.count("script") == 2
    assert names.count("title") == names.count("h1") == names.count("main") == 1
    assert ("html", {"lang": "en"}) in found.tags
    # Nothing is loaded: neither an address nor an element that could have one.
    assert not {"link", "iframe", "img", "object"} & {*names}
    assert {*re.findall(r"https?://[^\"' ]+", text)} <= {"http://www.w3.org/2000/svg"}
    policy = next(a["content"] for _, a in found.tags if "http-equiv" in a)
    data, script = found.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"'sha256-{digest}'" in policy
    return json.loads(data)


def sections(content):
    return {section["title"]: section for section in content["sections"]}


def block(content, title, kind):
    return next(b for b in sections(content)[title]["blocks"] if b["type"] == kind)


@pytest.fixture(scope="module")
def model():
    """A sparse model and its data; latents 0 and 1 are dead."""
    ae = jaxae.Autoencoder(
        input_dim=D, latent_dim=H, activation="relu", observation="gaussian", tied=False
    )
    params = ae.init(jax.random.key(0))
    params = params._replace(b_enc=params.b_enc.at[:2].set(-100.0))
    X = np.random.default_rng(0).normal(size=(N, D)).astype("f4")
    return ae, params, X


@pytest.fixture
def latents(model):
    ae, params, X = model
    return np.asarray(jax.vmap(ae.encode, (None, 0))(params, X))


METRICS = {
    "train/loss": np.array([3.0, 2.0, np.nan]),
    "validation/loss": np.array([3.5, 2.5, 2.0]),
    "gradient/W": np.ones(3),
    "gradient/encoder/W": np.full(3, 0.5),
    "gradient/decoder/W": np.full(3, 0.7),
}


# ---- a run ---------------------------------------------------------------------------


def test_the_page_of_a_run_shows_what_its_latents_respond_to(model, latents, tmp_path):
    ae, params, X = model
    results = {"test": {"loss": 1.5, "squared_error": np.inf}, "train": {"loss": 1}}
    path = report.write_run(
        *model,
        tmp_path / "page.html",
        metrics=METRICS,
        results=results,
        about={"data": "<b>mine</b>"},
        command="jaxae train --out a",
    )
    content = read(path)
    assert list(sections(content)) == [
        *("What was run", "Results", "Curves", "Filters", "Latents"),
        *("Reconstructions", "Gradient paths"),
    ]
    assert block(content, "What was run", "facts")["items"] == [["data", "<b>mine</b>"]]
    results = block(content, "Results", "table")
    assert results["columns"] == ["split", "loss", "squared error"]
    assert results["rows"] == [["test", 1.5, None], ["train", 1, None]]
    first, second = block(content, "Curves", "lines")["lines"]
    assert (first["label"], first["y"]) == ("train", [3, 2, None])
    assert (second["label"], second["x"]) == ("validation", [1, 2, 3])
    paths = block(content, "Gradient paths", "lines")
    labels = ["W", "W, encoder path", "W, decoder path"]
    assert [line["label"] for line in paths["lines"]] == labels
    found = block(content, "Latents", "latents")
    assert [row[0] for row in found["rows"]] == list(range(H))
    density = (latents != 0).mean(axis=0)
    np.testing.assert_allclose([r[1] for r in found["rows"]], density, rtol=1e-3)
    assert {int(j) for j in found["details"]} == {*range(2, H)}
    for j, detail in found["details"].items():
        z, groups = latents[:, int(j)], detail["groups"]
        order = np.argsort(-z, kind="stable")[:12]
        shown = [example["row"] for example in groups[0]["examples"]]
        assert shown == [row for row in order.tolist() if z[row] > 0]
        examples = [example for group in groups for example in group["examples"]]
        for example in examples:
            assert example["value"] == pytest.approx(z[example["row"]], rel=1e-3)
            assert str(example["row"]) in found["inputs"]
        assert sum(detail["histogram"]["counts"]) == (z > 0).sum()
    use = density * latents.sum(axis=0) / np.maximum((latents != 0).sum(axis=0), 1)
    assert found["first"] == use.argmax()
    reconstructions = block(content, "Reconstructions", "reconstructions")["items"]
    rows = np.unique(np.linspace(0, N - 1, 12).astype(int))
    X_hat = np.asarray(jax.vmap(ae.reconstruct, (None, 0))(params, X[rows]))
    errors = ((X_hat - X[rows]) ** 2).sum(axis=1)
    found = [item["error"] for item in reconstructions]
    np.testing.assert_allclose(found, errors, rtol=1e-3)
    assert all(i["input"]["src"].startswith("data:image/png") for i in reconstructions)


def test_tokens_are_shown_with_their_context_and_cannot_become_html(
    model, latents, tmp_path
):
    words = [f"w{i}" for i in range(N)]
    for row in range(N):
        words[row] = HOSTILE[row % 3] if row % 2 else words[row]
    tokens = Tokens(np.array(words), np.array([0, 30, 45]))
    path = report.write_run(
        *model, tmp_path / "page.html", tokens=tokens, context=3, title=HOSTILE[1]
    )
    content = read(path)  # which counts the scripts of the page
    assert content["title"] == HOSTILE[1]
    found = block(content, "Latents", "latents")
    assert found["inputs"] == {}
    for j, detail in found["details"].items():
        for group in detail["groups"]:
            for example in group["examples"]:
                row, at = example["row"], example["at"]
                first = max(row - 3, max(s for s in (0, 30, 45) if s <= row))
                last = first + len(example["tokens"])
                assert row == first + at
                assert last == min(row + 4, min(e for e in (30, 45, N) if e > row))
                assert example["tokens"] == words[first:last]
                z = latents[first:last, int(j)]
                np.testing.assert_allclose(example["values"], z, rtol=1e-3, atol=1e-6)


def test_rows_that_are_no_images_are_drawn_as_their_values(tmp_path):
    ae = jaxae.Autoencoder(input_dim=5, latent_dim=3)
    X = np.random.default_rng(0).uniform(size=(7, 5)).astype("f4")
    params = ae.init(jax.random.key(0))
    content = read(report.write_run(ae, params, X, tmp_path / "page.html"))
    assert list(sections(content)) == ["Latents", "Reconstructions"]
    inputs = block(content, "Latents", "latents")["inputs"]
    for row, drawn in inputs.items():
        np.testing.assert_allclose(drawn["values"], X[int(row)], rtol=1e-3)


def test_wide_rows_without_tokens_have_numbers_only(tmp_path):
    ae = jaxae.Autoencoder(input_dim=257, latent_dim=2)
    X = np.random.default_rng(0).uniform(size=(3, 257)).astype("f4")
    params = ae.init(jax.random.key(0))
    content = read(report.write_run(ae, params, X, tmp_path / "page.html"))
    assert list(sections(content)) == ["Latents"]
    assert block(content, "Latents", "latents")["inputs"] == {}


def test_the_page_says_what_is_left_out(model, tmp_path, monkeypatch):
    monkeypatch.setattr(latents_of_page, "_MAX_TABLE_ROWS", 5)
    path = tmp_path / "page.html"
    content = read(report.write_run(*model, path, max_latents=3, max_rows=40))
    assert f"40 of {N} rows" in content["lead"]
    found = block(content, "Latents", "latents")
    assert len(found["details"]) == 3 and len(found["rows"]) == 5
    text = sections(content)["Latents"]["text"]
    assert "The table leaves out 7 latents of little use" in text
    assert "7 latents that are not dead have no details" in text
    examples = [g["examples"] for d in found["details"].values() for g in d["groups"]]
    assert max(e["row"] for group in examples for e in group) < 40
    content = read(report.write_run(*model, path, latents=[0, 5], max_rows=N))
    assert {*block(content, "Latents", "latents")["details"]} == {"0", "5"}


def test_the_largest_page_is_bounded_whatever_the_size_of_an_image(tmp_path):
    ae = jaxae.Autoencoder(input_dim=96 * 64, latent_dim=2)
    X = np.random.default_rng(0).uniform(size=(30, 96 * 64)).astype("f4")
    params = ae.init(jax.random.key(0))
    shape = {"image_shape": (96, 64)}
    content = read(report.write_run(ae, params, X, tmp_path / "page.html", **shape))
    assert "shrunk if a side exceeds 32 pixels" in sections(content)["Filters"]["text"]
    source = block(content, "Latents", "latents")["inputs"].popitem()[1]["src"]
    found = decode(source)
    assert found.shape[:2] == (32, 22)


def decode(source):
    """The pixels of a data URI, by matplotlib."""
    content = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    return matplotlib.image.imread(io.BytesIO(content), format="png")


def test_images_are_png_files_of_the_right_grey_levels_and_colours():
    image = np.array([[0.0, 0.5, 1.0], [2.0, -1.0, 0.25]])
    expected = np.clip(image, 0, 1)
    found = decode(images.grey(image, 0.0, 1.0))
    np.testing.assert_allclose(
        found[..., :3].mean(-1) if found.ndim > 2 else found, expected, atol=1 / 255
    )
    weights = np.array([[-2.0, 0.0, 2.0, 1.0]])
    blue, white, red, light = decode(images.diverging(weights))[0, :, :3]
    assert blue[2] > blue[0] and red[0] > red[2] and np.ptp(white) == 0
    assert red[0] < light[0] < white[0] and red[2] < light[2] < white[2]
    images.diverging(np.zeros((2, 2)))  # without a division by 0
    images.diverging(np.array([[np.inf, np.nan]]))  # nor a warning


def test_a_model_of_huge_weights_is_shown_without_warnings(model, tmp_path):
    ae, params, X = model
    params = params._replace(W_dec=1e30 * params.W_dec)
    content = read(report.write_run(ae, params, X, tmp_path / "page.html"))
    items = block(content, "Reconstructions", "reconstructions")["items"]
    assert any(item["error"] > 1e50 for item in items)


def test_numbers_are_rounded_and_those_that_are_not_finite_are_null():
    values = {"a": np.float32(1 / 3), "b": [np.nan, np.inf, 1e-30], "c": np.int64(7)}
    assert page._clean(values) == {"a": 0.3333, "b": [None, None, 1e-30], "c": 7}


def test_long_lines_keep_their_ends():
    [line] = page.lines("loss", {"train": np.arange(2501.0)})["lines"]
    assert len(line["x"]) <= 1001 and (line["x"][0], line["x"][-1]) == (1, 2501)
    np.testing.assert_array_equal(line["x"], line["y"] + 1)


ONE_TOKEN_A_ROW = Tokens(np.array(["a"] * N), np.array([0]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"X": np.zeros((3, D + 1), "f4")}, "X must be [N, 16]"),
        ({"held_out": np.zeros((3, 2), "f4")}, "held_out must be [N, 16]"),
        (
            {"tokens": Tokens(np.array(["a"]), np.array([0]))},
            "each of the 90 rows, got 1",
        ),
        ({"image_shape": (3, 5)}, "image_shape must be that of 16 inputs"),
        ({"latents": [H]}, "latents must be from 0 to 11"),
        ({"latents": [-1]}, "latents must be"),
        ({"latents": []}, "latents must be"),
        ({"max_latents": 0}, "max_latents must be"),
        ({"max_rows": 0}, "max_rows must be"),
        ({"context": -1, "tokens": ONE_TOKEN_A_ROW}, "context must be at least 0"),
        ({"path": "."}, "path must be a file, got the folder ."),
        ({"params": None}, "params must be UntiedParams"),
    ],
)
def test_bad_arguments_of_a_run_are_named_and_nothing_is_written(
    model, tmp_path, change, words
):
    ae, params, X = model
    arguments = {"params": params, "X": X, "path": tmp_path / "page.html", **change}
    with pytest.raises(ValueError) as error:
        report.write_run(ae, **arguments)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_page_needs_an_existing_folder(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        report.write_run(*model, tmp_path / "none" / "page.html")


# ---- a sweep -------------------------------------------------------------------------


def lanes(num_rates=4, num_seeds=2):
    """A table as of `jaxae.sweep`: the last rate diverges, one lane is halved."""
    rows = [
        {"learning_rate": 10.0**-i, "activation": a, "seed": s}
        for i in range(num_rates)
        for a in ("relu", "tanh")
        for s in range(num_seeds)
    ]
    frame = pd.DataFrame(rows)
    frame["train/loss"] = frame["validation/loss"] = np.arange(len(frame)) + 1.0
    frame["status"] = ["diverged"] * 2 + ["finished"] * (len(frame) - 2)
    frame["stopped_at"] = pd.array([17, 17] + [None] * (len(frame) - 2), "Int64")
    frame.loc[2, "status"] = "halved"
    return frame.rename_axis("lane")


def test_the_page_of_a_sweep_ranks_its_lanes_and_names_failures(tmp_path):
    frame = lanes()
    curves = {"validation/loss": np.arange(32.0).reshape(16, 2)}
    path = report.write_sweep(frame, tmp_path / "page.html", curves=curves)
    content = read(path)
    assert content["lead"].startswith("16 lanes: 13 finished, 1 stopped early, 2 diver")
    best = block(content, "Best lanes", "table")
    assert best["columns"] == [
        *("lane", "learning_rate", "activation", "seed", "validation/loss")
    ]
    assert [row[0] for row in best["rows"]] == list(range(3, 11))
    chart = block(content, "Best lanes", "lines")["lines"]
    assert (chart[0]["label"], chart[0]["y"]) == ("lane 3", [6, 7])
    failures = block(content, "Failures", "table")
    assert [(row[0], row[-1]) for row in failures["rows"]] == [(0, 17), (1, 17)]
    every = block(content, "All lanes", "table")
    assert [row[0] for row in every["rows"]] == [*range(3, 16), 2, 0, 1]
    assert [row[-1] for row in every["rows"]] == [None] * 14 + [17, 17]
    explorer = block(content, "Metric against axes", "explorer")
    assert [*explorer["axes"]] == ["learning_rate", "activation"]
    assert explorer["status"][-3:] == ["halved", "diverged", "diverged"]


def test_a_sweep_without_axes_or_failures_has_no_such_sections(tmp_path):
    frame = lanes(1, 4).query("activation == 'relu'")[2:].reset_index(drop=True)
    content = read(report.write_sweep(frame, tmp_path / "page.html"))
    assert list(sections(content)) == ["Best lanes", "All lanes"]


def test_the_lanes_of_a_large_sweep_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "_MAX_TABLE_ROWS", 6)
    content = read(report.write_sweep(lanes(), tmp_path / "page.html"))
    assert "The other 10 lanes are left out" in content["lead"]
    assert len(block(content, "All lanes", "table")["rows"]) == 6


@pytest.mark.parametrize(
    ("sweep", "metric", "words"),
    [
        ("table.csv", None, "sweep must be"),
        (pd.DataFrame({"a": []}), None, "sweep must be"),
        (lanes(), "loss", "metric must be one of train/loss, validation/loss"),
    ],
)
def test_bad_arguments_of_a_sweep_are_named(tmp_path, sweep, metric, words):
    with pytest.raises(ValueError, match=words):
        report.write_sweep(sweep, tmp_path / "page.html", metric=metric)
    assert not list(tmp_path.iterdir())


def test_curves_of_other_lanes_are_refused(tmp_path):
    curves = {"validation/loss": np.zeros((3, 2))}
    with pytest.raises(ValueError, match="must be .16, num_epochs.*got shape .3, 2"):
        report.write_sweep(lanes(), tmp_path / "page.html", curves=curves)


# ---- the command line ----------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Data of 60 rows, a run, a sweep, and tokens of the data."""
    home = tmp_path_factory.mktemp("home")
    X = np.random.default_rng(0).uniform(size=(60, 9)).astype("f4")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr(reporting, "draw", lambda *_: None)
        np.save("X.npy", X)
        (home / "tokens.json").write_text(json.dumps([HOSTILE * 10, ["a", "b"] * 15]))
        np.save("ids.npy", np.arange(60) % 3)
        (home / "vocabulary.json").write_text(json.dumps(HOSTILE))
        (home / "space.toml").write_text(
            "learning_rate = [1e-3, 1e-2]\nlatent_dim = [2, 4]\n"
        )
        shared = ("--data", "X.npy", "--epochs", "2", "--batch-size", "8")
        assert main("train", *shared, "--latent-dim", "6", "--out", "run") == 0
        # In sequence, so that no number of lanes is measured.
        sweep = ("sweep", "space.toml", *shared, "--lanes-at-once", "1")
        assert main(*sweep, "--out", "sweep") == 0
    return home


@pytest.fixture
def workdir(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


def main(*arguments):
    return cli.main([str(argument) for argument in arguments])


def test_a_run_folder_is_reported_with_its_command_and_all_rows(workdir, capsys):
    before = {p: p.read_bytes() for p in (workdir / "run").rglob("*") if p.is_file()}
    assert main("report", "run") == 0
    assert capsys.readouterr().out.startswith("wrote run/report.html: ")
    content = read(workdir / "run" / "report.html")
    assert content["title"] == "Run run" and "60 rows" in content["lead"]
    assert block(content, "What was run", "code")["text"] == (
        "jaxae train --data X.npy --latent-dim 6 --epochs 2 --batch-size 8"
    )
    facts = dict(block(content, "What was run", "facts")["items"])
    assert facts["status"] == "finished" and "sigmoid" in facts["model"]
    assert "42 train" in facts["data"] and "jax " in facts["versions"]
    rows = block(content, "Results", "table")["rows"]
    assert [row[0] for row in rows] == ["train", "validation", "test"]
    assert all(path.read_bytes() == raw for path, raw in before.items())
    assert main("report", "run") == 0  # again, in the place of the page


def test_tokens_and_other_data_are_reported(workdir):
    out = ("-o", "page.html")
    assert main("report", "run", "X.npy", "--tokens", "tokens.json", *out) == 0
    content = read(workdir / "page.html")
    found = block(content, "Latents", "latents")
    texts = {t for e in examples_of(found) for t in e["tokens"]}
    assert {*HOSTILE, "a", "b"} == texts
    ids = ("--tokens", "ids.npy", "--vocabulary", "vocabulary.json", "--context", "1")
    options = ("--latents", "3,1", "--max-rows", "20")
    assert main("report", "run/best", *ids, *options, *out) == 0
    found = block(read(workdir / "page.html"), "Latents", "latents")
    assert {*found["details"]} == {"1", "3"} and found["first"] == 3
    assert {len(e["tokens"]) for e in examples_of(found)} <= {2, 3}
    assert {t for e in examples_of(found) for t in e["tokens"]} == {*HOSTILE}


def examples_of(found):
    groups = [group for d in found["details"].values() for group in d["groups"]]
    return [example for group in groups for example in group["examples"]]


def test_a_sweep_folder_is_reported_and_its_best_lane(workdir):
    assert main("report", "sweep") == 0
    content = read(workdir / "sweep" / "report.html")
    assert len(block(content, "All lanes", "table")["rows"]) == 4
    command = block(content, "What was run", "code")["text"]
    assert command.startswith("jaxae sweep space.toml --data X.npy --epochs 2 --batch")
    assert block(content, "Best lanes", "lines")["lines"][0]["x"] == [1, 2]
    assert main("report", "sweep/best") == 0
    content = read(workdir / "sweep" / "best" / "report.html")
    blocks = sections(content)["What was run"]["blocks"]
    assert [b["type"] for b in blocks] == ["facts"]  # no command repeats a lane
    assert (
        "learning_rate"
        in dict(block(content, "What was run", "facts")["items"])["lane"]
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("report", "none"), "none/config.json does not exist"),
        (("report", "run", "none.npy"), "none.npy"),
        (("report", "run", "--tokens", "none.json"), "none.json does not exist"),
        (("report", "run", "--tokens", "ids.npy"), "--vocabulary"),
        (("report", "run", "--vocabulary", "vocabulary.json"), "needs --tokens"),
        (("report", "run", "--latents", "a"), "--latents must be integers"),
        (("report", "run", "--latents", "6"), "--latents must be from 0 to 5"),
        (("report", "run", "--max-latents", "0"), "--max-latents must be"),
        (("report", "run", "--max-rows", "0"), "--max-rows must be"),
        (
            ("report", "run", "X.npy", "--tokens", "tokens.json", "--context", "-1"),
            "--context must be",
        ),
        (("report", "run", "-o", "page.txt"), "must name an .html file"),
        (("report", "run", "-o", "none/page.html"), "there is no folder none"),
        (("report", "sweep", "X.npy"), "DATA is for the report of a run"),
        (("report", "sweep", "--tokens", "tokens.json"), "--tokens is for the report"),
        (("report", "X.npy"), "X.npy"),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence(
    workdir, capsys, arguments, words
):
    assert main(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("jaxae: error: ") and words in captured.err


def test_a_damaged_table_is_named(workdir, capsys, tmp_path):
    shutil.copytree(workdir / "sweep", tmp_path / "sweep")
    (tmp_path / "sweep" / "metrics.npz").write_bytes(b"PK")
    assert main("report", tmp_path / "sweep") == 2
    assert "metrics.npz" in capsys.readouterr().err
    (tmp_path / "sweep" / "metrics.npz").unlink()
    (tmp_path / "sweep" / "table.csv").write_bytes(b"")
    assert main("report", tmp_path / "sweep") == 2
    assert "table.csv" in capsys.readouterr().err
    (tmp_path / "sweep" / "table.csv").unlink()
    assert main("report", tmp_path / "sweep") == 2
    assert "no table of its lanes" in capsys.readouterr().err


def test_damaged_descriptions_are_left_out(workdir, tmp_path):
    shutil.copytree(workdir / "run", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    config |= {"data": 3, "versions": "x", "trial": {"values": 4}}
    path.write_text(json.dumps(config))
    (tmp_path / "run" / "results.json").write_text("[1")
    assert main("report", tmp_path / "run", "X.npy", "-o", tmp_path / "page.html") == 0
    facts = dict(block(read(tmp_path / "page.html"), "What was run", "facts")["items"])
    assert [*facts][:2] == ["model", "latents measured on"]
    assert facts["status"] == "unfinished" and facts["lane"] == "None"


def test_a_command_can_be_typed_again():
    options = TrainOptions(data="my data.npy", untied=True, checkpoint_minutes=None)
    command = _command(["jaxae", "train"], options, TrainOptions())
    assert shlex.split(command) == [
        *("jaxae", "train", "--data", "my data.npy", "--untied"),
        *("--checkpoint-minutes", "None"),
    ]


# ---- in a browser --------------------------------------------------------------------

WIDTHS = (400, 1400)


@pytest.fixture(scope="module")
def chromium():
    """One browser for all tests; on machines without it they are skipped."""
    if browser.PROGRAM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with browser.chromium() as tab:
        yield tab


@pytest.fixture
def tab(chromium):
    """The tab; a test fails if the page logs an error or asks for anything."""
    chromium.events.clear()
    yield chromium
    chromium.run("0")  # so that all events before it have come
    assert chromium.complaints() == [] and chromium.requests() == []


def fits(tab):
    """No part of the page is wider than the window."""
    return tab.run("document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture(scope="module")
def pages(model, tmp_path_factory):
    """The pages of a run with images, of one with tokens, and of a sweep."""
    folder = tmp_path_factory.mktemp("pages")
    tokens = Tokens(np.array(HOSTILE * 30), np.array([0, 45]))
    frame = lanes()
    curves = {"validation/loss": np.random.default_rng(0).uniform(size=(16, 40))}
    return {
        "images": report.write_run(*model, folder / "images.html", metrics=METRICS),
        "tokens": report.write_run(*model, folder / "tokens.html", tokens=tokens),
        "sweep": report.write_sweep(frame, folder / "sweep.html", curves=curves),
    }


@pytest.mark.parametrize("name", ["images", "tokens", "sweep"])
def test_pages_fit_narrow_and_wide_windows_in_both_colours(tab, pages, name):
    colours = set()
    for width in WIDTHS:
        for dark in (False, True):
            tab.open(pages[name], width, dark=dark)
            assert fits(tab), width
            body = "getComputedStyle(document.body)"
            colours.add(tab.run(f"{body}.backgroundColor + {body}.color"))
    assert len(colours) == 2
    assert tab.run("typeof hacked") == "undefined"


def test_a_click_on_a_latent_shows_its_examples(tab, pages):
    tab.open(pages["images"], 1400)
    heading = "document.querySelector('.detail h3').textContent"
    before = tab.run(heading)
    other = 2 + (before == "Latent 2")
    tab.click(f".browser tbody tr:nth-child({other + 1}) th button")
    assert tab.run(heading) == f"Latent {other}" != before
    assert tab.run("document.querySelectorAll('.detail .images img').length") > 0
    assert tab.run("document.querySelector('tr.chosen th').textContent") == str(other)
    tab.click(".browser tbody tr:nth-child(1) th button")
    assert tab.run(heading) == "Latent 0"
    assert "0 on every row" in tab.run("document.querySelector('.detail').textContent")
    tab.click(".images button")  # a filter
    shown = tab.run("document.querySelector('.images figcaption').textContent")
    assert tab.run(heading) == f"Latent {shown}"


def test_tokens_are_text_with_the_value_of_the_latent(tab, pages):
    tab.open(pages["tokens"], 400)
    texts = tab.run(
        "[...document.querySelectorAll('.token')].map((t) => t.textContent)"
    )
    assert {*texts} == {*HOSTILE}
    title = tab.run("document.querySelector('.token.at').title")
    value = tab.run("document.querySelector('.contexts .value').textContent")
    assert re.fullmatch(r"row \d+: " + re.escape(value), title)
    assert tab.run("typeof hacked") == "undefined"


def test_tables_sort_and_find(tab, pages):
    tab.open(pages["tokens"], 1400)
    first = "document.querySelector('.browser tbody th').textContent"
    column = "[...document.querySelectorAll('.browser tbody td:nth-child(2)')]"
    numbers = f"{column}.map((td) => Number(td.textContent))"
    assert tab.run(first) == "0"
    for is_descending in (True, False):
        tab.click(".browser thead th:nth-child(2) button")
        values = tab.run(numbers)
        assert values == sorted(values, reverse=is_descending)
    head = "document.querySelector('.browser thead th:nth-child(2)')"
    assert tab.run(f"{head}.ariaSort") == "ascending"


def test_long_tables_have_pages_and_a_search(tab, tmp_path):
    frame = lanes(20)
    tab.open(report.write_sweep(frame, tmp_path / "page.html"), 400)
    table = "section:last-child"
    place = f"document.querySelector('{table} .controls span').textContent"
    assert tab.run(place) == "1 to 25 of 80"
    tab.click(f"{table} .controls button:nth-of-type(2)")
    assert tab.run(place) == "26 to 50 of 80"
    field = f"document.querySelector('{table} input')"
    event = f"{field}.dispatchEvent(new Event('input'))"
    tab.run(f"({field}.value = 'tanh diverged', {event})")
    assert tab.run(place) == "no row matches"
    tab.run(f"({field}.value = 'relu diverged', {event})")
    assert tab.run(place) == "1 to 2 of 2"


def test_charts_show_the_values_under_the_pointer_and_by_keys(tab, pages):
    tab.open(pages["images"], 1400)
    legend = "document.querySelector('.legend').textContent"
    tab.wait(f"{legend}.includes('epoch 3')")
    assert tab.run(legend) == "epoch 3train –validation 2"
    box = "document.querySelector('figure svg').getBoundingClientRect()"
    x, y = tab.run(f"[{box}.x + 55, {box}.y + 50]")
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert tab.run(legend) == "epoch 1train 3validation 3.5"
    tab.run("document.querySelector('figure svg').focus()")
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key="ArrowRight")
    assert tab.run(legend) == "epoch 2train 2validation 2.5"


def test_the_reader_of_a_sweep_chooses_axes(tab, pages):
    tab.open(pages["sweep"], 400)
    cells = (
        "[...document.querySelectorAll('.cells tbody tr')].map((tr) => tr.innerText)"
    )
    rows = [row.split() for row in tab.run(cells)]
    # The mean over two seeds at 1, 0.1, ...; lanes 0 and 1 diverged, 2 is halved.
    assert rows == [
        ["tanh", "15.5", "11.5", "7.5", "4"],
        ["relu", "13.5", "9.5", "5.5", "✕"],
    ]
    assert tab.run("document.querySelector('.cells td.best').innerText") == "4"
    change = "(f, v) => {f.value = v; f.dispatchEvent(new Event('change'))}"
    second = "document.querySelectorAll('select')[2]"
    tab.run(f"({change})({second}, 'none')")
    assert tab.run("document.querySelectorAll('.cells').length") == 0
    assert fits(tab)
