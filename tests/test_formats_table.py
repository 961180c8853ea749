"""The table of docs/how_to/formats.md says what is read, and how it comes back."""

import io
import pathlib

import numpy as np
import pytest
import safetensors.numpy
from test_formats_peers import state_of

from jaxae import formats
from jaxae.formats import _torch

ROOT = pathlib.Path(__file__).parent.parent
GOLDENS = ROOT / "tests" / "goldens" / "formats"
PAGE = (ROOT / "docs" / "how_to" / "formats.md").read_text(encoding="utf-8")
NORMALIZED = ("saelens-layer_norm", "openai-topk")
FOLDERS = sorted(
    path for format in GOLDENS.iterdir() for path in format.iterdir() if path.is_dir()
)


def name_of(path):
    return f"{path.parent.name}-{path.name}"


@pytest.fixture(autouse=True)
def state_dicts(monkeypatch):
    """State dicts instead of files of torch, which the tests do not have."""

    def content(path, values):
        file = io.BytesIO()
        arrays = {n: v for n, v in values.items() if isinstance(v, np.ndarray)}
        np.savez(file, **arrays)
        return file.getvalue()

    monkeypatch.setattr(_torch, "read", lambda path: state_of(path.parent))
    monkeypatch.setattr(_torch, "content", content)


def load_state_dict(path):
    golden = path.with_name("state.npz")
    return np.load(golden if golden.exists() else path)


READERS = {
    ".safetensors": safetensors.numpy.load_file,
    ".npz": np.load,
    ".pt": load_state_dict,
}


def weights_of(folder, format):
    """The tensors of a model's files."""
    files = [folder / n for n in format.files if pathlib.Path(n).suffix in READERS]
    tensors = {}
    for path in filter(pathlib.Path.exists, files):
        tensors.update(READERS[path.suffix](path))
    return tensors


def bits_that_return(path, model, format, folder):
    """The last column: what of a file is the same after `load` and `save`."""
    if format.write is None:
        return "is only read"
    arguments = model.ae, model.params
    formats.save(folder, *arguments, format=format.name, metadata=model.metadata)
    before, after = weights_of(path, format), weights_of(folder, format)
    if set(before) != set(after):
        return "no"
    changed = [n for n in before if before[n].tobytes() != after[n].tobytes()]
    if not changed:
        return "yes"
    return f"all but {', '.join(changed)}" if len(changed) == 1 else "no"


def row_of(path, folder):
    """The row of a golden folder."""
    format = formats.FORMATS[path.parent.name]
    is_normalized = name_of(path) in NORMALIZED
    model = formats.read(path, format=format.name, inputs_normalized=is_normalized)
    kind = model.ae.activation.name.partition("(")[0]
    cells = (
        *(format.name, f"`{path.name}`", kind, ", ".join(model.folded)),
        bits_that_return(path, model, format, folder),
    )
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"


@pytest.mark.parametrize("path", FOLDERS, ids=name_of)
def test_the_table_has_a_row_for_each_kind_of_file(path, tmp_path):
    assert row_of(path, tmp_path) in PAGE.splitlines()


def test_the_table_has_no_other_rows():
    for line in PAGE.splitlines():
        if line.startswith(tuple(f"| {name} | `" for name in formats.FORMATS)):
            _, format, name, *_ = map(str.strip, line.split("|"))
            assert GOLDENS / format / name.strip("`") in FOLDERS
