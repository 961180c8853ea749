"""Scalings x' = (x - shift) / scale of data for training, and their inverses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from jaxae import _checks
from jaxae._files import expanded, write_atomically
from jaxae.autoencoder.files import add_checksum, verify_checksum
from jaxae.data.statistics import ColumnStats, column_stats
from jaxae.data.stored import PathLike

SCALING_FILE = "scaling.safetensors"


class Scaling(NamedTuple):
    """x' = (x - shift) / scale, clipped to [0, 1] if `clip`.

    Elementwise, so a scaled row is bit-identical in any block and order.
    """

    name: str
    shift: np.ndarray  # float64 [D], or [] for all columns
    scale: np.ndarray  # float64 [D], or [] for all columns
    clip: bool = False

    def apply(self, X: Any, dtype: Any = np.float32) -> np.ndarray:
        """x' of each row `[..., D]`, as a new array of `dtype`; overflow gives inf.

        Raises:
          ValueError: if X does not hold real numbers, or has another number of columns
            than the scaling.
        """
        self._check_width(X := real("X", X))
        # A shift cancels leading digits, so subtract before rounding to `dtype`.
        intermediate = np.float64 if self.shift.ndim else dtype
        with np.errstate(over="ignore"):
            x = X.astype(intermediate)
            x -= self.shift.astype(intermediate)  # in place, to save memory
            x /= self.scale.astype(intermediate)
            x = x.astype(dtype, copy=False)
        return np.clip(x, 0, 1) if self.clip else x

    def invert(self, X_hat: Any, dtype: Any = np.float64) -> np.ndarray:
        """x = x' scale + shift, `[..., D]` in the data's units; not undoing clipping.

        Raises:
          ValueError: as `apply`.
        """
        self._check_width(X_hat := real("X_hat", X_hat))
        with np.errstate(over="ignore"):
            return (X_hat.astype(np.float64) * self.scale + self.shift).astype(dtype)

    def _check_width(self, X: np.ndarray) -> None:
        shape = np.broadcast_shapes(self.shift.shape, self.scale.shape)
        if shape and X.shape[-1:] != shape:
            raise _checks.ArgumentError(
                "X",
                f"must have {shape[0]} columns, as what {self.name!r} was fitted to",
                f"shape {X.shape}",
            )

    def __repr__(self) -> str:
        shift, scale = _range(self.shift), _range(self.scale)
        return f"Scaling({self.name!r}, shift {shift}, scale {scale})"


def real(name: str, X: Any) -> np.ndarray:
    """X as an array of real numbers; text and complex numbers raise an error."""
    X = np.asarray(_checks.as_array(name, X))
    if X.dtype.kind not in "biuf" and "float" not in X.dtype.name:  # such as bfloat16
        raise _checks.ArgumentError(
            name, "must hold real numbers", _checks.describe(X), "convert it"
        )
    return X


def scaled(X: Any, scale: float | int, dtype: Any = np.float32) -> np.ndarray:
    """X / scale, as a new array of `dtype`; overflow gives inf (see `check_array`)."""
    return Scaling("divide", _number(0), _number(scale)).apply(X, dtype)


def divide(number: float | int) -> Scaling:
    """x' = x / number, such as 255 for the grey levels of images.

    Raises:
      ValueError: if the number is not finite and positive.
    """
    return _check_finite(Scaling("divide", _number(0), _number(number)))


def fit_scaling(name: str, data: Any) -> Scaling:
    """Fit a scaling to data or to their column statistics.

    * "none": x' = x.
    * "unit": maps each column's [low, high] to [0, 1] and clips values outside of it.
    * "standardize": gives each column mean 0 and variance 1.
    * "center": gives each column mean 0 and divides all columns by one number, so that
      the mean of ||x'||^2 is D and the columns keep their relative scales.

    A constant column becomes 0.

    Args:
      name: one of `SCALINGS`.
      data: a `ColumnStats`, or an array or Rows `[N, D]`.

    Raises:
      ValueError: if the name is unknown, the range or the variance of the values
        overflows, or `column_stats` raises.
    """
    fit = _checks.lookup("scaling", SCALINGS, name)
    stats = data if isinstance(data, ColumnStats) else column_stats(data)
    return _check_finite(fit(stats))


def _none(stats: ColumnStats) -> Scaling:
    del stats
    return Scaling("none", _number(0), _number(1))


def _unit(stats: ColumnStats) -> Scaling:
    with np.errstate(over="ignore"):  # `_check_finite` raises
        scale = _zero_to_one(stats.high - stats.low)
    return Scaling("unit", stats.low, scale, clip=True)


def _standardize(stats: ColumnStats) -> Scaling:
    return Scaling("standardize", stats.mean, _zero_to_one(np.sqrt(stats.variance)))


def _center(stats: ColumnStats) -> Scaling:
    with np.errstate(over="ignore"):  # `_check_finite` raises
        scale = _zero_to_one(np.sqrt(stats.variance.mean()))
    return Scaling("center", stats.mean, scale)


SCALINGS: dict[str, Callable[[ColumnStats], Scaling]] = {
    "none": _none,
    "unit": _unit,
    "standardize": _standardize,
    "center": _center,
}


def _zero_to_one(scale: Any) -> np.ndarray:
    return np.where(scale == 0, 1.0, scale)


def _number(value: Any) -> np.ndarray:
    return np.asarray(value, np.float64)


def _check_finite(scaling: Scaling) -> Scaling:
    shift, scale = scaling.shift, scaling.scale
    is_finite = np.isfinite(shift).all() and np.isfinite(scale).all()
    if not (is_finite and (scale > 0).all()):
        raise ValueError(
            f"scaling {scaling.name!r} must have a finite shift and a finite, positive "
            f"scale, got shift {_range(shift)} and scale {_range(scale)}; rescale the "
            "data first."
        )
    return scaling


def _range(values: np.ndarray) -> str:
    return f"{values.min()} to {values.max()}" if values.ndim else str(values)


def save_scaling(directory: PathLike, scaling: Scaling) -> None:
    """Write `scaling.safetensors` to a folder, atomically.

    Raises:
      ValueError: if `directory` is a file, or a shift or scale is not finite.
    """
    directory = expanded(directory)
    if directory.exists() and not directory.is_dir():
        raise _checks.ArgumentError(
            "directory", f"must be a folder, but {directory} is a file"
        )
    _check_finite(scaling)
    shift, scale = (np.asarray(x, order="C") for x in (scaling.shift, scaling.scale))
    tensors = {"shift": shift, "scale": scale}
    description = add_checksum({"name": scaling.name, "clip": scaling.clip}, tensors)
    content = safetensors.numpy.save(tensors, metadata={"scaling": description})
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / SCALING_FILE, content)


def load_scaling(directory: PathLike) -> Scaling:
    """The scaling that `save_scaling` wrote to this folder.

    Raises:
      FileNotFoundError: if the folder holds no scaling.
      ValueError: if the file is damaged or not a scaling.
    """
    path = expanded(directory) / SCALING_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; save_scaling(directory, scaling) writes it."
        )
    with _checks.reading(path, "restore a copy, or fit and save the scaling again"):
        return _check_finite(_read(path))


def _read(path: Path) -> Scaling:
    with safetensors.safe_open(path, framework="numpy") as file:
        description = json.loads((file.metadata() or {}).get("scaling", "null"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    description = verify_checksum(description, tensors)
    match description:
        case {"name": str(name), "clip": bool(clip)} if len(description) == 2:
            _check_tensors(tensors)
            return Scaling(name, tensors["shift"], tensors["scale"], clip)
    raise ValueError(f"its metadata describe no scaling, but {description}")


def _check_tensors(tensors: dict[str, np.ndarray]) -> None:
    is_expected = set(tensors) == {"shift", "scale"} and all(
        tensor.dtype == np.float64 and tensor.ndim <= 1 and tensor.size
        for tensor in tensors.values()
    )
    if not is_expected or tensors["scale"].shape not in ((), tensors["shift"].shape):
        shapes = {name: _checks.describe(tensor) for name, tensor in tensors.items()}
        raise ValueError(f"it holds {shapes}, not a shift and a scale")
