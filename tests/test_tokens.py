"""Tokens are read from each form of file, and windows stay within a document."""

import json

import numpy as np
import pytest

from jaxae import tokens

WORDS = ["a", "b", "c", "d", "e", "f"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, content):
    if name.endswith(".npy"):
        np.save(name, content)
    else:
        with open(name, "w") as file:
            json.dump(content, file)


@pytest.mark.parametrize(
    ("name", "content", "vocabulary", "starts"),
    [
        ("t.json", WORDS, None, [0]),
        ("t.json", [["a", "b"], [], ["c", "d", "e", "f"]], None, [0, 2]),
        ("t.npy", np.array(WORDS), None, [0]),
        ("t.npy", np.array(WORDS).reshape(3, 2), None, [0, 2, 4]),
        ("t.npy", np.arange(6), WORDS, [0]),
        ("t.npy", np.arange(6, dtype="u2").reshape(2, 3), WORDS, [0, 3]),
        ("t.npy", np.arange(6), {w: i for i, w in enumerate(WORDS)}, [0]),
    ],
)
def test_each_form_gives_the_same_texts(folder, name, content, vocabulary, starts):
    write(name, content)
    if vocabulary is not None:
        write("v.json", vocabulary)
    found = tokens.load(name, None if vocabulary is None else "v.json")
    assert found.texts(slice(0, 6)) == WORDS
    assert found.texts(slice(4, 5)) == ["e"]
    assert np.array(found.starts).tolist() == starts and len(found.values) == 6


def test_a_window_ends_with_its_document():
    found = tokens.Tokens(np.arange(10), np.array([0, 4, 5]))
    windows = [found.window(row, 2) for row in range(10)]
    expected = [
        (0, 3),
        (0, 4),
        (0, 4),
        (1, 4),
        (4, 5),
        (5, 8),
        (5, 9),
        (5, 10),
        (6, 10),
    ]
    assert [(w.start, w.stop) for w in windows] == [*expected, (7, 10)]
    assert found.window(6, 0) == slice(6, 7)


@pytest.mark.parametrize(
    ("name", "content", "vocabulary", "words"),
    [
        ("t.json", [1, 2], None, "must be a .json file with a list of texts"),
        ("t.json", {"a": 1}, None, "something else in t.json"),
        ("t.json", [], None, "tokens must be"),
        ("t.json", [[]], None, "tokens must be"),
        ("t.json", ["a", ["b"]], None, "tokens must be"),
        ("t.json", WORDS, WORDS, "tokens are texts in t.json; leave vocabulary out"),
        ("t.npy", np.arange(3), None, "tokens are ids in t.npy; give vocabulary"),
        ("t.npy", np.zeros(3), None, "tokens must be"),
        ("t.npy", np.zeros((2, 2, 2), int), None, "tokens must be"),
        ("t.npy", np.zeros(0, int), None, "tokens must be"),
        ("t.npy", np.array([1, 6]), WORDS, "ids from 0 to 5"),
        ("t.npy", np.array([-1, 2]), WORDS, "got -1 to 2 in t.npy"),
        ("t.npy", np.arange(3), [1, 2, 3], "vocabulary must be"),
        ("t.npy", np.arange(3), {"a": "b"}, "vocabulary must be"),
        ("t.npy", np.arange(3), [], "ids from 0 to -1"),
    ],
)
def test_other_files_are_refused_in_a_sentence(
    folder, name, content, vocabulary, words
):
    write(name, content)
    if vocabulary is not None:
        write("v.json", vocabulary)
    with pytest.raises(ValueError) as error:
        tokens.load(name, None if vocabulary is None else "v.json")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_missing_and_damaged_files_are_named(folder):
    with pytest.raises(FileNotFoundError, match="none.json does not exist"):
        tokens.load("none.json")
    for name, content in {"t.json": b"{", "t.npy": b"\x93NUMPY", "t.txt": b"a"}.items():
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"Cannot read {name}"):
            tokens.load(name)
    np.save("o.npy", np.array(["a", None]), allow_pickle=True)
    with pytest.raises(ValueError, match="Cannot read o.npy"):
        tokens.load("o.npy")
    with pytest.raises(FileNotFoundError, match="no.npy"):
        tokens.load("no.npy")
