"""Tokens: the text of each row of activations, to show what surrounds a row.

A file of tokens is one of

* `.json`: a list of N texts, or a list of documents, each a list of texts;
* `.npy`: N texts or N integer ids, or `[documents, tokens]` of them.

Ids need a vocabulary, a `.json` file: a list of texts, or an object from text to id as
tokenizers save it. Row i of the data is token i, counted through all documents.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxae import _checks
from jaxae._checks import ArgumentError
from jaxae._files import expanded


class Tokens(NamedTuple):
    """The tokens of N rows.

    Attributes:
      values: `[N]`, texts, or ids into the vocabulary.
      starts: `[documents]`, the first row of each document, ascending from 0.
      vocabulary: `[V]`, the text of each id; None if the values are texts.
    """

    values: Any
    starts: Any
    vocabulary: Any = None

    def window(self, row: int, size: int) -> slice:
        """Rows from `size` before to `size` after a row, of the same document."""
        document = int(np.searchsorted(self.starts, row, "right"))
        ends = [*self.starts[document : document + 1], len(self.values)]
        first = max(int(self.starts[document - 1]), row - size)
        return slice(first, min(int(ends[0]), row + size + 1))

    def texts(self, rows: slice) -> list[str]:
        """The texts of these rows."""
        values = self.values[rows]
        if self.vocabulary is not None:
            values = [self.vocabulary[i] for i in values]
        return [str(value) for value in values]


def load(path: Any, vocabulary: Any = None) -> Tokens:
    """Read the tokens of a file, and the vocabulary of their ids if it holds ids.

    Args:
      path: a `.json` or `.npy` file, as described above.
      vocabulary: a `.json` file with the text of each id.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file holds anything else, ids are given without a vocabulary or
        texts with one, or an id is not in the vocabulary.
    """
    path = _existing(path)
    values, starts = _read_npy(path) if path.suffix == ".npy" else _read_json(path)
    if (values.dtype.kind == "U") == (vocabulary is not None):
        kind, advice = ("texts", "leave {vocabulary} out")
        if vocabulary is None:
            kind, advice = ("ids", "give {vocabulary}, the text of each id")
        raise ArgumentError("tokens", f"are {kind} in {path}", advice=advice)
    if vocabulary is None:
        return Tokens(values, starts)
    texts = _read_vocabulary(_existing(vocabulary))
    if values.min() < 0 or values.max() >= len(texts):
        raise ArgumentError(
            "tokens",
            f"must be ids from 0 to {len(texts) - 1}, the size of the vocabulary",
            f"{values.min()} to {values.max()} in {path}",
        )
    return Tokens(values, starts, texts)


def check(tokens: Tokens, num_rows: int, context: int) -> None:
    """Raise if tokens are not those of so many rows, or the context is negative."""
    if len(tokens.values) != num_rows:
        problem = f"must be one for each of the {num_rows} rows"
        raise ArgumentError("tokens", problem, str(len(tokens.values)))
    if context < 0:
        raise ArgumentError("context", "must be at least 0", str(context))


_FORM = (
    "must be a .json file with a list of texts or of lists of texts, or a .npy file "
    "with texts or integer ids, [N] or [documents, tokens]"
)


def _existing(path: Any) -> Path:
    path = expanded(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a .json or .npy file.")
    return path


def _read_npy(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with _checks.reading(path, "store an array of texts or ids by np.save"):
        values = np.lib.format.open_memmap(path, mode="r")  # never unpickles
    if values.ndim not in (1, 2) or values.dtype.kind not in "iuU" or not values.size:
        raise ArgumentError("tokens", _FORM, f"{_checks.describe(values)} in {path}")
    length = values.shape[1] if values.ndim == 2 else values.size
    return values.reshape(-1), np.arange(0, values.size, length)


def _read_json(path: Path) -> tuple[np.ndarray, np.ndarray]:
    documents = _parse(path)
    if isinstance(documents, list) and all(isinstance(t, str) for t in documents):
        documents = [documents]
    is_nested = isinstance(documents, list) and all(
        isinstance(d, list) and all(isinstance(t, str) for t in d) for d in documents
    )
    if not is_nested or not any(documents):
        raise ArgumentError("tokens", _FORM, f"something else in {path}")
    documents = [document for document in documents if document]
    lengths = [len(document) for document in documents]
    starts = np.cumsum([0, *lengths[:-1]])
    return np.array([text for document in documents for text in document]), starts


def _read_vocabulary(path: Path) -> list[str]:
    content = _parse(path)
    if isinstance(content, dict) and all(type(i) is int for i in content.values()):
        size = max(content.values(), default=-1) + 1
        texts = [""] * min(size, 2**24)
        for text, i in content.items():
            if 0 <= i < len(texts):
                texts[i] = text
        content = texts
    if not (isinstance(content, list) and all(isinstance(t, str) for t in content)):
        raise ArgumentError(
            "vocabulary",
            "must be a .json file with a list of texts, or an object from text to id",
            f"something else in {path}",
        )
    return content


def _parse(path: Path) -> Any:
    with _checks.reading(path, "give a .json or .npy file"):
        return json.loads(path.read_bytes())
