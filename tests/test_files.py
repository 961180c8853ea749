"""Files of every kind, read by `data.load`; those of the command line among them."""

import json
import re
import sys

import h5py
import jax
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import safetensors.numpy

import jaxae
from jaxae import cli, data
from jaxae.cli import reporting

X = np.random.default_rng(0).random((40, 6)).astype(np.float32)


def save_csv(path, X):
    pd.DataFrame(X, columns=[f"c{i}" for i in range(X.shape[1])]).to_csv(
        path, index=False
    )


def save_parquet(path, X):
    pd.DataFrame(X, columns=[f"c{i}" for i in range(X.shape[1])]).to_parquet(path)


def save_lists(path, X):
    flat = pa.array(np.ascontiguousarray(X).ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, X.shape[1])
    pyarrow.parquet.write_table(pa.table({"x": column}), path)


def save_hdf5(path, X):
    with h5py.File(path, "w") as file:
        file["group/x"] = X


def save_shards(path, X):
    path.mkdir()
    np.save(path / "part_2.npy", X[25:])
    safetensors.numpy.save_file({"x": X[:25]}, path / "part_1.safetensors")


def save_tables(save, suffix):
    def save_parts(path, X):
        path.mkdir()
        (path / "_SUCCESS").touch()  # as Spark writes it
        save(path / f"part_10{suffix}", X[25:])
        save(path / f"part_9{suffix}", X[:25])

    return save_parts


SAVE = {
    "X.npy": np.save,
    "X.npz": lambda path, X: np.savez_compressed(path, x=X),
    "X.safetensors": lambda path, X: safetensors.numpy.save_file({"x": X}, path),
    "X.csv": save_csv,
    "X.parquet": save_parquet,
    "lists.parquet": save_lists,
    "X.h5": save_hdf5,
    "X.hdf5": save_hdf5,
    "shards": save_shards,
    "csvs": save_tables(save_csv, ".csv"),
    "parquets": save_tables(save_parquet, ".parquet"),
    "lists": save_tables(save_lists, ".parquet"),
}


@pytest.fixture(params=SAVE, name="path")
def _path(request, tmp_path):
    path = tmp_path / request.param
    SAVE[request.param](path, X)
    return path


def test_every_kind_of_file_gives_its_rows(path):
    dataset = data.load(path)
    is_on_disk = path.name in ("X.h5", "X.hdf5", "shards")
    assert data.is_rows(dataset.train) == is_on_disk
    assert dataset.train.shape == (40, 6)
    np.testing.assert_array_equal(np.asarray(dataset.train).astype("f4"), X)
    assert (dataset.source, dataset.licence) == (str(path), "yours")
    assert dataset.sha256 == data.load(str(path)).sha256


def test_large_files_are_read_by_rows_or_rejected(path):
    tables = ("csvs", "parquets", "lists")
    if path.name in ("X.npz", "X.csv", "X.parquet", "lists.parquet", *tables):
        with pytest.raises(ValueError, match="more than memory_budget=1; only .npy"):
            data.load(path, memory_budget=1)
        return
    rows = data.load(path, memory_budget=1).train
    assert data.is_rows(rows) and rows.shape == (40, 6) and rows.dtype == np.float32
    numbers = np.array([0, 3, 24, 25, 39])
    np.testing.assert_array_equal(data.take(rows, numbers), X[numbers])
    assert data.column_stats(rows).sha256 == data.column_stats(X).sha256
    # Where the rows are does not change the results of training.
    objective = jaxae.Objective(jaxae.Autoencoder(input_dim=6, latent_dim=2))
    params = [
        jaxae.train(
            objective,
            data.load(path, memory_budget=budget).train,
            hparams={"learning_rate": 0.1},
            key=jax.random.key(0),
            config=jaxae.TrainConfig(
                num_epochs=2, batch_size=8, memory_budget=budget, diagnostics=False
            ),
        ).params
        for budget in (1, 2**30)
    ]
    jax.tree.map(np.testing.assert_array_equal, *params)


def test_the_command_line_trains_on_every_kind_of_file(path, tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "draw", lambda *_: None)  # pictures take seconds
    out = tmp_path / "run"
    options = ["--latent-dim", "2", "--epochs", "1", "--batch-size", "8"]
    cli.main(["train", "--data", str(path), *options, "--out", str(out)])
    described = json.loads((out / "config.json").read_text())["data"]
    assert described["source"] == str(path) and described["num_train"] == 28
    cli.main(["encode", str(out), str(path), "-o", str(tmp_path / "z.npy")])
    assert np.load(tmp_path / "z.npy").shape == (40, 2)


@pytest.mark.parametrize("name", ["X.npy", "X.safetensors", "X.h5", "X.parquet"])
def test_integers_of_any_file_need_a_scale(name, tmp_path, capsys):
    SAVE[name](tmp_path / name, (X * 255).astype(np.uint8))
    out = str(tmp_path / "run")
    assert cli.main(["train", "--data", str(tmp_path / name), "--out", out]) == 2
    message = capsys.readouterr().err
    assert "holds uint8, but training needs floats; give --divide-by 255" in message


def test_images_of_any_file_become_rows(tmp_path):
    images = X.reshape(40, 2, 3)
    for name in ("X.npy", "X.npz", "X.safetensors", "X.h5"):
        SAVE[name](tmp_path / name, images)
        dataset = data.load(tmp_path / name)
        assert dataset.image_shape == (2, 3)
        np.testing.assert_array_equal(np.asarray(dataset.train), X)
    rows = data.load(tmp_path / "X.h5").train
    np.testing.assert_array_equal(rows[3:9], X[3:9])


def test_hdf5_files_of_integers_are_scaled_as_they_are_read(tmp_path):
    pixels = (X * 255).astype(np.uint8)
    save_hdf5(tmp_path / "X.h5", pixels)
    rows = data.load(tmp_path / "X.h5").train
    assert rows.dtype == np.uint8 and rows.block_shuffle is not None
    np.testing.assert_array_equal(np.asarray(rows), pixels)
    np.testing.assert_array_equal(rows[-1], pixels[-1])
    train, _ = data.split(rows, 0.5, seed=1)
    view = data.View(train, scaling=data.divide(255))
    assert view.block_shuffle == rows.block_shuffle
    np.testing.assert_array_equal(view[:], data.scaled(pixels[train.index], 255))
    with pytest.raises(ValueError, match=r"uint8; convert it: View\(X, scaling=divide"):
        data.column_stats(rows)


def test_an_array_is_chosen_by_its_name(tmp_path):
    arrays = {"a": X, "b": 2 * X}
    np.savez(tmp_path / "X.npz", **arrays)
    safetensors.numpy.save_file(arrays, tmp_path / "X.safetensors")
    with h5py.File(tmp_path / "X.h5", "w") as file:
        file.update(arrays)
    table = pa.table({**{n: list(x) for n, x in arrays.items()}, "text": ["x"] * 40})
    pyarrow.parquet.write_table(table, tmp_path / "X.parquet")
    for name in ("X.npz", "X.safetensors", "X.h5", "X.parquet"):
        for array, expected in arrays.items():
            train = data.load(tmp_path / name, array=array).train
            np.testing.assert_array_equal(train, expected)
        with pytest.raises(ValueError, match=r"array must name one .* holds a, b.*'c'"):
            data.load(tmp_path / name, array="c")


# ---- what is rejected ----------------------------------------------------------------

CSV = {
    "text": ("a,city,b\n1,x,2\n", r"no numbers in column 'city'; leave out"),
    "texts": ("a,city,land\n1,x,y\n", "no numbers in columns 'city', 'land';"),
    "no names": ("1,2\n3,4\n", "numbers in its first line; add a line with the names"),
    "gap": ("a,b\n1,2\n,3\n", r"missing values in column 'a'; fill them .*drop"),
    "gap of text": ("a,b\n1,x\n,3\n", "no numbers in column 'b'"),
    "index": (
        ",a\n0,1.5\n1,2.5\n",
        r"column without a name; name it, or .*index=False",
    ),
    "labels": ("a,b\n7,1,2\n8,3,4\n", "more values in a row than names"),
    "decimal commas": ("a,b\n1,5,2,5\n", "more values in a row than names"),
    "semicolons": ("a;b\n1;2\n", "commas between its columns.*'a;b'; convert it"),
    "semicolons, decimal commas": ("a;b\n1,5;2,5\n", "commas between its columns"),
    "tabs": ("a\tb\n1\t2\n", "commas between its columns"),
    "ragged": ("a,b\n1,2\n3,4,5\n", "ParserError.*Expected 2 fields"),
    "empty": ("", "EmptyDataError"),
    "only names": ("a,b\n", "no rows under its columns"),
    "booleans": ("a,b\n1,True\n", "no numbers in column 'b'"),
    "not text": ("\udcff\udcfea,b\n1,2\n", "UnicodeDecodeError"),
}


@pytest.mark.parametrize(("text", "message"), CSV.values(), ids=CSV.keys())
def test_csv_files_without_numbers_are_rejected_in_one_sentence(
    text, message, tmp_path
):
    path = tmp_path / "X.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=f"{path}:? .*{message}") as e:
        data.load(path)
    assert "\n" not in str(e.value) and str(e.value).endswith(".")


PARQUET = {
    "text": ({"a": [1.0], "city": ["x"]}, "no numbers in column 'city'"),
    "gap": ({"a": [1.0, None], "b": [1, 2]}, "missing values in column 'a'"),
    "lists of two lengths": (
        {"x": [[1.0, 2.0], [3.0]]},
        "lists of one length in column 'x', got 2 lengths",
    ),
    "missing list": ({"x": [[1.0, 2.0], None]}, "missing values in column 'x'"),
    "gap in a list": ({"x": [[1.0, None]]}, "missing values"),
    "lists of text": ({"x": [["a"]]}, "no numbers"),
    "list among numbers": (
        {"x": [[1.0]], "y": [1.0]},
        "to read, since column 'x' holds lists, got None",
    ),
    "lists": ({"x": [[1.0]], "y": [[1]]}, "since columns 'x', 'y' hold lists"),
    "lists of lists": ({"x": [[[1.0]]]}, "no numbers in column 'x'"),
    "no rows": ({"x": pa.array([], pa.float32())}, "no rows under its columns"),
}


@pytest.mark.parametrize(("columns", "message"), PARQUET.values(), ids=PARQUET.keys())
def test_parquet_files_without_numbers_are_rejected_in_one_sentence(
    columns, message, tmp_path
):
    path = tmp_path / "X.parquet"
    pyarrow.parquet.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match=f"{path}:? .*{message}") as e:
        data.load(path)
    assert "\n" not in str(e.value) and str(e.value).endswith(".")


def swapped(path, X):
    columns = [f"c{i}" for i in (0, 2, 1, 3, 4, 5)]
    pd.DataFrame(X, columns=columns).to_parquet(path)


TABLES = {
    "names": (
        {"a.csv": ("x,y\n1,2\n",), "b.csv": ("x,z\n1,2\n",)},
        r"b\.csv must have the columns of .*a\.csv, but column 2 is 'z' and not 'y'; w",
    ),
    "more columns": (
        {"a.csv": ("x\n1\n",), "b.csv": ("x,z\n1,2\n",)},
        "but column 2 is 'z' and not missing",
    ),
    "fewer columns": (
        {"a.csv": ("x,y\n1,2\n",), "b.csv": ("x\n1\n",)},
        "but column 2 is missing and not 'y'",
    ),
    "order": (
        {"a.parquet": (save_parquet, X), "b.parquet": (swapped, X)},
        r"b\.parquet must have the columns .* column 2 is 'c2' and not 'c1'",
    ),
    "lengths of lists": (
        {"a.parquet": (save_lists, X), "b.parquet": (save_lists, X[:, :3])},
        r"lists of one length in all files, got \[3, 6\]",
    ),
    "both kinds": (
        {"a.csv": (save_csv, X), "b.parquet": (save_parquet, X)},
        r"both \.csv and \.parquet files; write",
    ),
    "no names": (
        {"a.csv": ("1,2\n3,4\n",), "b.csv": ("5,6\n",)},
        r"a\.csv has numbers in its first line",
    ),
    "a broken file": (
        {"a.csv": (save_csv, X), "b.csv": ("",)},
        r"Cannot read .*b\.csv: EmptyDataError",
    ),
}


@pytest.mark.parametrize(("files", "message"), TABLES.values(), ids=TABLES.keys())
def test_tables_of_a_folder_that_differ_are_rejected(files, message, tmp_path):
    for name, (content, *arrays) in files.items():
        path = tmp_path / name
        content(path, *arrays) if arrays else path.write_text(content)
    with pytest.raises(ValueError, match=message) as e:
        data.load(tmp_path)
    assert "\n" not in str(e.value) and str(e.value).endswith(".")


def test_a_pattern_selects_tables_and_an_array_one_of_their_columns(tmp_path):
    for name, factor in (("a_1", 1), ("a_2", 2), ("b_1", 3)):
        table = {"x": list(factor * X), f"text of {name}": ["text"] * 40}
        pyarrow.parquet.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    dataset = data.load(tmp_path / "a_*.parquet", array="x")
    np.testing.assert_array_equal(dataset.train, np.concatenate([X, 2 * X]))
    save_csv(tmp_path / "c.csv", X)
    with pytest.raises(ValueError, match="array is for"):
        data.load(tmp_path / "*.csv", array="x")


def test_labels_of_rows_in_a_parquet_file_are_no_column(tmp_path):
    frame = pd.DataFrame(X, index=np.arange(40)[::-1], columns=list("abcdef"))
    frame.to_parquet(tmp_path / "X.parquet")
    np.testing.assert_array_equal(data.load(tmp_path / "X.parquet").train, X)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones(5), r"its shape is \(5,\): reshape"),
        (np.ones((2, 2), complex), "its dtype is complex128"),
        (np.array([[b"a"]]), r"its dtype is \|S1"),
        (np.ones((0, 3)), r"its shape is \(0, 3\)"),
        (3.0, r"its shape is \(\)"),
    ],
    ids=str,
)
def test_hdf5_datasets_of_other_kinds_are_rejected(value, message, tmp_path):
    path = tmp_path / "X.h5"
    save_hdf5(path, value)
    with pytest.raises(ValueError, match=f"^Cannot read {path}: {message}"):
        data.load(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".parquet", ".h5", ".npz"])
@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"\xff" * 64, b"{}", b"PAR1"])
def test_broken_files_are_rejected_in_one_sentence(suffix, content, tmp_path):
    path = tmp_path / f"X{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^Cannot read {path}: ") as e:
        data.load(path)
    assert "\n" not in str(e.value) and str(e.value).endswith(".")


@pytest.mark.parametrize(
    ("name", "package"),
    [("X.csv", "pandas"), ("X.parquet", "pyarrow.parquet"), ("X.h5", "h5py")],
)
def test_a_missing_package_is_named_with_its_extra(
    name, package, tmp_path, monkeypatch
):
    SAVE[name](tmp_path / name, X)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'jaxae\[files\]'"):
        data.load(tmp_path / name)


# ---- activations on the command line -------------------------------------------------


def test_the_command_line_selects_activations(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reporting, "draw", lambda *_: None)
    tokens = np.random.default_rng(1).random((10, 5, 6)).astype(np.float16)
    tokens[3, 2] *= 1000
    (tmp_path / "acts").mkdir()
    np.save(tmp_path / "acts" / "0.npy", tokens)
    options = ["--latent-dim", "2", "--epochs", "1", "--batch-size", "8"]
    options += ["--observation", "gaussian", "--test-fraction", "0"]
    select = ["--drop-first", "1", "--max-row-norm", "10"]
    out, acts = tmp_path / "run", str(tmp_path / "acts")
    assert (
        cli.main(["train", "--data", acts, *options, *select, "--out", str(out)]) == 0
    )
    described = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    assert described["num_train"] + described["num_validation"] == 39
    assert cli.main(["evaluate", str(out)]) == 0

    def evaluated(*arguments):
        path = tmp_path / "results.json"
        assert cli.main(["evaluate", str(out), *arguments, "-o", str(path)]) == 0
        return json.loads(path.read_text())["data"]["squared_error"]

    # The far token is one of 50 rows, of a norm over 100 times that of the others.
    assert evaluated(acts, "--all-rows") > 100 * evaluated(acts)
    np.save(tmp_path / "acts" / "0.mask.npy", np.arange(50).reshape(10, 5) < 7)
    z = str(tmp_path / "z.npy")
    for source in (acts, f"{acts}/0.npy"):  # one file as the folder, with its mask
        for all_rows, num_rows in (([], 5), (["--all-rows"], 7)):
            arguments = ["encode", str(out), source, "-o", z, *all_rows]
            assert cli.main(arguments) == 0
            assert np.load(z).shape == (num_rows, 2)
    np.save(tmp_path / "flat.npy", tokens[0])
    save_csv(tmp_path / "flat.csv", tokens[0])
    for source, message in (
        ("flat.npy", r"drop_first needs files of \[N, T, D\], but .*; give --all-rows"),
        ("flat.csv", "selects activations by --drop-first or .*; give --all-rows"),
    ):
        capsys.readouterr()
        arguments = ["evaluate", str(out), str(tmp_path / source)]
        assert cli.main(arguments) == 2
        assert re.search(message, capsys.readouterr().err)
        assert cli.main([*arguments, "--all-rows"]) == 0
    capsys.readouterr()
    for data_option, changed, message in (
        ("digits", select, "need --data to be a folder or a pattern of activations"),
        (acts, ["--max-row-norm", "-1"], "--max-row-norm must be finite and positive"),
        (acts, ["--drop-first", "-1"], "--drop-first must be an integer of at least 0"),
        (acts, ["--drop-first", "5"], "must have rows that are not left out"),
    ):
        arguments = ["train", "--data", data_option, *options, *changed]
        assert cli.main([*arguments, "--out", str(tmp_path / "other")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
