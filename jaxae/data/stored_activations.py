"""Activations of a model, stored in many files: `activations`."""

import glob
import math
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxae import _checks
from jaxae._files import expanded
from jaxae.data.shards import Shards
from jaxae.data.stored import (
    SUFFIXES,
    PathLike,
    StoredArray,
    array_names,
    named_one,
    stored_array,
)
from jaxae.data.views import View

_MASK, _MASK_SUFFIX = "mask", ".mask.npy"


def activations(
    source: PathLike,
    *,
    array: str | None = None,
    drop_first: int = 0,
    max_norm: float | int | None = None,
    block_rows: int | None = None,
    buffer_rows: int | None = None,
) -> View:
    """The activations of a model that are stored in many files, as Rows in float32.

    The files, or shards, are read in the order of their names, where numbers count as
    numbers: `part_2` before `part_10`. They hold arrays `[N, D]`, or `[N, T, D]` of
    which each of the N T vectors is a row, in float16, bfloat16, float32 or float64;
    all of one width D and one dtype.

    A mask `[N]` or `[N, T]` of booleans, or of 0 and 1, leaves out the rows where it is
    false. It is the array named `mask` of the same `.npz` or `.safetensors` file, or
    the file `part_2.mask.npy` beside `part_2.npy`.

    Only the headers and masks are read here, and all rows once if `max_norm` is given.
    Training then reads blocks of `block_rows` consecutive rows in random order, and
    shuffles them in a buffer (`BlockShuffle`).

    Args:
      source: a folder of `.npy`, `.npz` (not compressed) and `.safetensors` files, a
        pattern such as "acts/layer8_*.npy", or one file.
      array: the name of the array in each `.npz` or `.safetensors` file; None for the
        only one other than `mask`.
      drop_first: leave out the first positions of each sequence, those without a mask
        counted; for `[N, T, D]` only. Language models often give the first token an
        activation far larger than all others.
      max_norm: leave out rows whose norm exceeds `max_norm` times the median norm.
      block_rows: the number of rows of a block; None for about 1 MiB.
      buffer_rows: the number of rows that are shuffled together; None for 128 MiB of
        float32. Training holds two such buffers.

    Raises:
      ValueError: before any work, if a file is not one of the above, or shards differ
        in width or dtype; if no row is left; while rows are read, for the first value
        that is not finite (which file and where).
      FileNotFoundError: if there are no such files.
    """
    drop_first = _checks.integer("drop_first", drop_first, at_least=0)
    if max_norm is not None:
        max_norm = _checks.number("max_norm", max_norm, _checks.POSITIVE)
    sizes = {"block_rows": block_rows, "buffer_rows": buffer_rows}
    sizes = {
        name: _checks.positive_int(name, size)
        for name, size in sizes.items()
        if size is not None
    }
    pairs = [_activations_and_mask(path, array) for path in shard_paths(source)]
    arrays = [array for array, _ in pairs]
    _check_alike(arrays)
    rows = Shards(
        [a._replace(shape=(math.prod(a.shape[:-1]), a.shape[-1])) for a in arrays],
        np.float32,
        **sizes,
    )
    is_kept = np.concatenate([_is_kept(*pair, drop_first) for pair in pairs])
    if max_norm is not None and is_kept.any():
        index = np.flatnonzero(is_kept)
        norms = _norms(View(rows, index))
        is_kept[index] = norms <= max_norm * np.median(norms)
    if not is_kept.any():
        raise _checks.ArgumentError(
            "source",
            "must have rows that are not left out by masks, drop_first or max_norm",
        )
    return View(rows, None if is_kept.all() else np.flatnonzero(is_kept))


def shard_paths(source: PathLike) -> list[Path]:
    """The files of a folder or a pattern, or the one file, in natural order."""
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise _checks.ArgumentError(
            "source",
            "must be one folder, pattern or file, such as 'acts/*.npy'",
            _checks.describe(source),
        )
    path = expanded(source)
    paths = matching(path, SUFFIXES) or [path]
    masks = [p for p in paths if p.name.endswith(_MASK_SUFFIX)]
    _check_masks(masks)
    paths = [p for p in paths if os.path.isfile(p) and p not in masks]
    if not paths:
        raise FileNotFoundError(
            f"There are no {', '.join(SUFFIXES)} files at {path}: give the folder that "
            "holds them, or a pattern such as 'acts/*.npy'."
        )
    for path in paths:
        if path.suffix.lower() not in SUFFIXES:
            raise _checks.ArgumentError(
                "source",
                f"must have files {', '.join(SUFFIXES)}",
                str(path),
            )
    return sorted(paths, key=natural)


def matching(path: Path, suffixes: Collection[str]) -> list[Path]:
    """The files of these suffixes in a folder, or all that match a pattern."""
    if os.path.isdir(path):
        return [p for p in path.iterdir() if p.suffix.lower() in suffixes]
    return list(map(Path, glob.glob(str(path))))


def _check_masks(masks: list[Path]) -> None:
    """Check that each is beside its array: another mask would be of no effect."""
    for mask in masks:
        path = mask.with_name(mask.name.removesuffix(_MASK_SUFFIX) + ".npy")
        if not os.path.isfile(path):
            raise _checks.ArgumentError(
                "source",
                f"has the mask {mask}, but no file {path.name} beside it",
                advice="name the mask after its .npy file; in .npz and .safetensors "
                "files it is the array named 'mask'",
            )


def files_of(source: PathLike) -> list[Path]:
    """The shards, and the files of their masks."""
    paths = shard_paths(source)
    return [*paths, *filter(os.path.isfile, map(_mask_beside, paths))]


def is_of_shards(path: Path) -> bool:
    """Whether this is a folder or a pattern, and not a file."""
    # os.path, because a Path raises an error for a name that is too long.
    is_pattern = glob.has_magic(str(path)) and not os.path.exists(path)
    return os.path.isdir(path) or is_pattern


def natural(path: Path) -> list[Any]:
    """The key of an order by name in which numbers are compared as numbers."""
    # Odd parts are digits.
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _mask_beside(path: Path) -> Path:
    return path.with_suffix(_MASK_SUFFIX)


def _activations_and_mask(
    path: Path, name: str | None
) -> tuple[StoredArray, StoredArray | None]:
    mask = None
    with _checks.reading(path, "store real numbers by np.save or safetensors"):
        names = array_names(path)
        if _MASK in names:
            names.remove(_MASK)
            mask = stored_array(path, _MASK)
        if names == [""]:  # of an .npy file
            name = None
        array = stored_array(path, named_one(names, name, path))
    beside = _mask_beside(path)
    if path.suffix.lower() == ".npy" and os.path.isfile(beside):
        with _checks.reading(beside, "store booleans by np.save"):
            mask = stored_array(beside, "")
    if len(array.shape) not in (2, 3) or 0 in array.shape:
        raise _checks.ArgumentError(
            "source", f"must hold [N, D] or [N, T, D], but {path} has {array.shape}"
        )
    if "float" not in array.dtype.name:
        raise _checks.ArgumentError(
            "source",
            f"must hold floating point numbers, but {path} is {array.dtype}",
            advice="store float16, bfloat16 or float32, or give a pattern of the "
            "right files, such as 'acts/layer8_*.npy'",
        )
    if mask is not None and mask.shape != array.shape[:-1]:
        raise _checks.ArgumentError(
            "mask",
            f"of {path} must have shape {array.shape[:-1]}",
            str(mask.shape),
        )
    return array, mask


def _check_alike(arrays: Sequence[StoredArray]) -> None:
    first = arrays[0]
    for array in arrays:
        if array.shape[-1] != first.shape[-1] or array.dtype != first.dtype:
            raise _checks.ArgumentError(
                "source",
                f"must have one width and one dtype, but {first.path} is "
                f"{first.dtype}{list(first.shape)} and {array.path} is "
                f"{array.dtype}{list(array.shape)}",
                advice="convert the files, or give a pattern of some, such as "
                "'acts/layer8_*.npy'",
            )


def _is_kept(
    array: StoredArray, mask: StoredArray | None, drop_first: int
) -> np.ndarray:
    """Whether each row `[N]` or `[N T]` is true in the mask and not dropped."""
    is_kept = np.ones(array.shape[:-1], bool)
    if mask is not None:
        values = mask.read()
        if not np.isin(values, (0, 1)).all():
            raise _checks.ArgumentError(
                "mask", f"of {array.path} must be booleans, or 0 and 1"
            )
        is_kept = values.astype(bool)
    if drop_first:
        if len(array.shape) == 2:
            raise _checks.ArgumentError(
                "drop_first",
                f"needs files of [N, T, D], but {array.path} is {list(array.shape)}",
            )
        is_kept = is_kept & (np.cumsum(is_kept, axis=1) > drop_first)
    return is_kept.ravel()


def _norms(rows: View) -> np.ndarray:
    num_rows = max(1, 2**26 // (rows.shape[1] * rows.dtype.itemsize))
    blocks = (rows[i : i + num_rows] for i in range(0, len(rows), num_rows))
    with np.errstate(over="ignore"):  # infinite norms are above the median
        return np.concatenate([np.linalg.norm(block, axis=1) for block in blocks])
