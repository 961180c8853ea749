"""x' = (x - shift) / scale: from the data's units to what is trained on, and back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from jaxae import _checks
from jaxae._files import write_atomically
from jaxae.autoencoder.files import add_checksum, verify_checksum
from jaxae.data.files import PathLike
from jaxae.data.statistics import ColumnStats, column_stats

SCALING_FILE = "scaling.safetensors"


class Scaling(NamedTuple):
    """x' = (x - shift) / scale, clipped to [0, 1] where `clip`; elementwise.

    A row's bits are therefore the same in whichever block or order it is scaled.
    """

    name: str
    shift: np.ndarray  # float64 [D], or [] for one number
    scale: np.ndarray  # float64 [D], or [] for one number
    clip: bool = False

    def apply(self, X: Any, dtype: Any = np.float32) -> np.ndarray:
        """x' of each row `[..., D]`, as a new array of `dtype`; what overflows is inf.

        Raises:
          ValueError: for what is no real numbers, or another number of columns than the
            scaling's.
        """
        self._check_width(X := real("X", X))
        # A shift cancels leading digits, so they must not have been rounded off before.
        wide = np.float64 if self.shift.ndim else dtype
        with np.errstate(over="ignore"):
            x = X.astype(wide)
            x -= self.shift.astype(wide)  # in place: memory is what this costs
            x /= self.scale.astype(wide)
            x = x.astype(dtype, copy=False)
        return np.clip(x, 0, 1) if self.clip else x

    def invert(self, X_hat: Any, dtype: Any = np.float64) -> np.ndarray:
        """x = x' scale + shift, `[..., D]` in the data's units; clipping is not undone.

        Raises:
          ValueError: as `apply`.
        """
        self._check_width(X_hat := real("X_hat", X_hat))
        with np.errstate(over="ignore"):
            return (X_hat.astype(np.float64) * self.scale + self.shift).astype(dtype)

    def _check_width(self, X: np.ndarray) -> None:
        shape = np.broadcast_shapes(self.shift.shape, self.scale.shape)
        if shape and X.shape[-1:] != shape:
            raise ValueError(
                f"X must have {shape[0]} columns, as what {self.name!r} was fitted "
                f"to, got shape {X.shape}."
            )

    def __repr__(self) -> str:
        shift, scale = _range(self.shift), _range(self.scale)
        return f"Scaling({self.name!r}, shift {shift}, scale {scale})"


def real(name: str, X: Any) -> np.ndarray:
    """X as an array of real numbers; NumPy would parse text, drop imaginary parts."""
    X = np.asarray(_checks.as_array(name, X))
    if X.dtype.kind not in "biuf" and "float" not in X.dtype.name:  # as bfloat16
        raise ValueError(
            f"{name} must hold real numbers, got {_checks.describe(X)}: convert it."
        )
    return X


def scaled(X: Any, scale: float | int, dtype: Any = np.float32) -> np.ndarray:
    """X / scale, as a new array of `dtype`; what overflows is inf (`check_array`)."""
    return Scaling("divide", _number(0), _number(scale)).apply(X, dtype)


def divide(number: float | int) -> Scaling:
    """x' = x / number: 255 for images' grey levels.

    Raises:
      ValueError: for a number that is not finite and positive.
    """
    return _checked(Scaling("divide", _number(0), _number(number)))


def fit_scaling(name: str, data: Any) -> Scaling:
    """The scaling of that name, of `SCALINGS`, for what a `ColumnStats` found.

    An array or Rows `[N, D]` are surveyed first.

    "none" leaves values; "unit" maps each column's [low, high] to [0, 1] and clips what
    lies outside; "standardize" gives columns mean 0 and variance 1; "center" gives them
    mean 0 and divides all by one number, so that the mean of ||x'||^2 is D and columns
    keep their proportions. A constant column is only shifted, to 0, and then clipped by
    "unit".

    Raises:
      ValueError: an unknown name; values whose range or variance overflows; what
        `column_stats` refuses.
    """
    fit = _checks.lookup("scaling", SCALINGS, name)
    return _checked(fit(data if isinstance(data, ColumnStats) else column_stats(data)))


def _none(stats: ColumnStats) -> Scaling:
    del stats
    return Scaling("none", _number(0), _number(1))


def _unit(stats: ColumnStats) -> Scaling:
    with np.errstate(over="ignore"):  # refused by `_checked`
        scale = _or_one(stats.high - stats.low)
    return Scaling("unit", stats.low, scale, clip=True)


def _standardize(stats: ColumnStats) -> Scaling:
    return Scaling("standardize", stats.mean, _or_one(np.sqrt(stats.variance)))


def _center(stats: ColumnStats) -> Scaling:
    with np.errstate(over="ignore"):  # refused by `_checked`
        scale = _or_one(np.sqrt(stats.variance.mean()))
    return Scaling("center", stats.mean, scale)


SCALINGS: dict[str, Callable[[ColumnStats], Scaling]] = {
    "none": _none,
    "unit": _unit,
    "standardize": _standardize,
    "center": _center,
}


def _or_one(scale: Any) -> np.ndarray:
    return np.where(scale == 0, 1.0, scale)


def _number(value: Any) -> np.ndarray:
    return np.asarray(value, np.float64)


def _checked(scaling: Scaling) -> Scaling:
    shift, scale = scaling.shift, scaling.scale
    is_finite = np.isfinite(shift).all() and np.isfinite(scale).all()
    if not (is_finite and (scale > 0).all()):
        raise ValueError(
            f"scaling {scaling.name!r} must have a finite shift and a finite, positive "
            f"scale, got shift {_range(shift)} and scale {_range(scale)}; rescale the "
            "data by hand first."
        )
    return scaling


def _range(values: np.ndarray) -> str:
    return f"{values.min()} to {values.max()}" if values.ndim else str(values)


def save_scaling(directory: PathLike, scaling: Scaling) -> None:
    """Write `scaling.safetensors` to a folder, whole or not at all.

    Raises:
      ValueError: `directory` is a file; a shift or scale that is not finite.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"directory must be a folder, but {directory} is a file.")
    _checked(scaling)
    shift, scale = (np.asarray(x, order="C") for x in (scaling.shift, scaling.scale))
    tensors = {"shift": shift, "scale": scale}
    kind = add_checksum({"name": scaling.name, "clip": scaling.clip}, tensors)
    content = safetensors.numpy.save(tensors, metadata={"scaling": kind})
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / SCALING_FILE, content)


def load_scaling(directory: PathLike) -> Scaling:
    """The scaling that `save_scaling` wrote to this folder.

    Raises:
      FileNotFoundError: if it wrote none.
      ValueError: for a file that is damaged or no scaling.
    """
    path = Path(directory) / SCALING_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; save_scaling(directory, scaling) writes it."
        )
    with _checks.reading(path, "restore a copy, or fit and save the scaling again"):
        return _checked(_read(path))


def _read(path: Path) -> Scaling:
    with safetensors.safe_open(path, framework="numpy") as file:
        kind = json.loads((file.metadata() or {}).get("scaling", "null"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    kind = verify_checksum(kind, tensors)
    if not isinstance(kind, dict) or set(kind) != {"name", "clip"}:
        raise ValueError("it does not say which scaling it is")
    if not isinstance(kind["name"], str) or not isinstance(kind["clip"], bool):
        raise ValueError(f"it says that it is the scaling {kind}")
    _check_tensors(tensors)
    return Scaling(kind["name"], tensors["shift"], tensors["scale"], kind["clip"])


def _check_tensors(tensors: dict[str, np.ndarray]) -> None:
    found = {name: _checks.describe(tensor) for name, tensor in tensors.items()}
    is_expected = set(tensors) == {"shift", "scale"} and all(
        tensor.dtype == np.float64 and tensor.ndim <= 1 and tensor.size
        for tensor in tensors.values()
    )
    if not is_expected or tensors["scale"].shape not in ((), tensors["shift"].shape):
        raise ValueError(f"it holds {found}, not a shift and a scale")
