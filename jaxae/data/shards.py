"""Arrays in several files, read by rows: `Shards`; and activations of a model."""

import glob
import json
import math
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors

from jaxae import _checks
from jaxae._files import expanded
from jaxae.data.files import MAX_HEADER_SIZE, PathLike, parse_header
from jaxae.data.rows import BlockShuffle
from jaxae.data.views import View

SUFFIXES = (".npy", ".npz", ".safetensors")
MASK = "mask"

# ---- arrays in files -----------------------------------------------------------------


class StoredArray(NamedTuple):
    """An array in a file, known by the file's header."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # of its first value in the file, in bytes

    def map(self) -> np.memmap:
        """The array as a memory map; an error if the file was truncated."""
        end = self.offset + math.prod(self.shape) * self.dtype.itemsize
        if (size := os.path.getsize(self.path)) < end:
            raise _checks.ArgumentError(
                "data",
                f"lie in the first {end} bytes of {self.path}, which now has {size}: "
                "the file was truncated or replaced; load it again",
            )
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


def stored_arrays(path: Path) -> dict[str, StoredArray]:
    """The arrays of an `.npy`, `.npz` or `.safetensors` file, by name.

    Only headers are read. The array of an `.npy` file has the name "".
    """
    advice = "store real numbers by np.save or safetensors"
    with _checks.reading(path, advice):
        return _READERS[path.suffix.lower()](path)


def _read_npy(path: Path) -> dict[str, StoredArray]:
    with path.open("rb") as file:
        return {"": _npy_at(path, file, 0, os.path.getsize(path))}


def _npy_at(path: Path, file: Any, start: int, num_bytes: int) -> StoredArray:
    """The array in `.npy` format in `num_bytes` of the file from `start` on."""
    file.seek(start)
    head = file.read(min(MAX_HEADER_SIZE, num_bytes))
    header = parse_header(head, num_bytes)
    if header.order == "F" and len(header.shape) > 1:
        raise ValueError("it is in Fortran order: store np.ascontiguousarray(X)")
    return StoredArray(path, header.dtype, header.shape, start + header.offset)


def _read_npz(path: Path) -> dict[str, StoredArray]:
    arrays = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(
                    "it is compressed, so its rows cannot be read from the disk: store "
                    "it by np.savez"
                )
            # The local header may have another extra field than the directory.
            file.seek(member.header_offset + 26)
            lengths = np.frombuffer(file.read(4), "<u2")
            start = member.header_offset + 30 + int(lengths.sum())
            name = member.filename.removesuffix(".npy")
            arrays[name] = _npy_at(path, file, start, member.file_size)
    return arrays


_SAFETENSORS_DTYPES = {
    **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"},
    **{f"{k}{8 * n}": f"{k.lower()}{n}" for k in "IU" for n in (1, 2, 4, 8)},
    "BOOL": "bool",
}


def _read_safetensors(path: Path) -> dict[str, StoredArray]:
    with safetensors.safe_open(path, framework="numpy"):
        pass  # it checks the header
    arrays = {}
    with path.open("rb") as file:
        # https://github.com/huggingface/safetensors#format
        num_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(num_bytes))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            continue  # of 8 bits, for instance, which `activations` does not read
        dtype = np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]])
        offset = 8 + num_bytes + entry["data_offsets"][0]
        arrays[name] = StoredArray(path, dtype, tuple(entry["shape"]), offset)
    return arrays


_READERS = dict(zip(SUFFIXES, (_read_npy, _read_npz, _read_safetensors), strict=True))

# ---- the rows of several arrays ------------------------------------------------------


class Shards:
    """The rows of stored arrays, one array after the other; they are `Rows`.

    An array `[N, T, D]` has N T rows. A file is open only while rows of it are read.
    """

    def __init__(self, arrays: Sequence[StoredArray], block_shuffle: BlockShuffle):
        self.arrays, self.block_shuffle = tuple(arrays), block_shuffle
        lengths = [math.prod(array.shape[:-1]) for array in self.arrays]
        self._starts = np.cumsum([0, *lengths])
        self.dtype = self.arrays[0].dtype
        self.shape = (int(self._starts[-1]), self.arrays[0].shape[-1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The rows `[n, D]` of a slice or of increasing row numbers, as stored."""
        if isinstance(rows, slice) and rows.step not in (None, 1):
            rows = np.arange(len(self))[rows]
        blocks = [_read(self.arrays[i], local) for i, local in self._by_array(rows)]
        if not blocks:
            return np.empty((0, self.shape[1]), self.dtype)
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def _by_array(self, rows: Any) -> Iterator[tuple[int, slice | np.ndarray]]:
        """The number of each array that has some of the rows, and these in it."""
        starts = self._starts
        if isinstance(rows, slice):
            first, last, _ = rows.indices(len(self))
            cuts = np.clip(starts, first, max(first, last))
        else:
            cuts = np.searchsorted(rows, starts)
        for i in map(int, np.flatnonzero(cuts[1:] > cuts[:-1])):
            cut = slice(cuts[i], cuts[i + 1])
            if isinstance(rows, slice):
                yield i, slice(cut.start - starts[i], cut.stop - starts[i])
            else:
                yield i, rows[cut] - starts[i]


def _read(array: StoredArray, rows: slice | np.ndarray) -> np.ndarray:
    """Rows `[n, D]` of an array, after a check that they are finite."""
    block = array.map().reshape(-1, array.shape[-1])[rows]
    if "float" in array.dtype.name and not np.isfinite(block).all():
        row, column = np.argwhere(~np.isfinite(block))[0]
        numbers = np.arange(math.prod(array.shape[:-1]))[rows]
        place = *np.unravel_index(numbers[row], array.shape[:-1]), column
        raise _checks.ArgumentError(
            "data",
            f"must be finite, but {list(map(int, place))} of {array.path} is "
            f"{block[row, column]}",
            advice="drop or fill it, or leave it out by a mask",
        )
    return block


# ---- activations of a model ----------------------------------------------------------

_BLOCK_BYTES = 2**20  # of a block, as stored
_BUFFER_BYTES = 2**27  # of a buffer, in float32


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
    if drop_first != 0:
        drop_first = _checks.positive_int("drop_first", drop_first)
    if max_norm is not None:
        max_norm = _checks.number("max_norm", max_norm, _checks.POSITIVE)
    pairs = [_activations_and_mask(path, array) for path in shard_paths(source)]
    arrays = [array for array, _ in pairs]
    _check_alike(arrays)
    D, itemsize = arrays[0].shape[-1], arrays[0].dtype.itemsize
    shuffle = BlockShuffle(
        _rows_of("block_rows", block_rows, _BLOCK_BYTES // (D * itemsize)),
        _rows_of("buffer_rows", buffer_rows, _BUFFER_BYTES // (D * 4)),
    )
    rows, index = Shards(arrays, shuffle), None
    if drop_first or any(mask is not None for _, mask in pairs):
        kept = [_is_kept(array, mask, drop_first) for array, mask in pairs]
        index = _nonempty(np.flatnonzero(np.concatenate(kept)))
    if max_norm is not None:
        norms = _norms(View(rows, index))
        is_kept = norms <= max_norm * np.median(norms)
        index = np.flatnonzero(is_kept) if index is None else index[is_kept]
    return View(rows, index)


def shard_paths(source: PathLike) -> list[Path]:
    """The files of a folder or a pattern, or the one file, in natural order."""
    path = expanded(source)
    if path.is_dir():
        paths = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES]
    elif path.is_file():
        paths = [path]
    else:
        paths = [Path(name) for name in glob.glob(str(path))]
    paths = [p for p in paths if not (_is_mask(p) or p.name.startswith("."))]
    if not paths:
        raise FileNotFoundError(
            f"There are no shards {path}: give a folder with {', '.join(SUFFIXES)} "
            "files, or a pattern such as 'acts/*.npy'."
        )
    for path in paths:
        _checks.lookup(f"suffix of {path.name}", _READERS, path.suffix.lower())
    return sorted(paths, key=_natural)


def _natural(path: Path) -> list[Any]:
    # Odd parts are digits, so that numbers are compared with numbers.
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _is_mask(path: Path) -> bool:
    return path.name.endswith(f".{MASK}.npy")


def _activations_and_mask(
    path: Path, name: str | None
) -> tuple[StoredArray, StoredArray | None]:
    arrays = stored_arrays(path)
    mask = arrays.pop(MASK, None)
    beside = path.with_suffix(f".{MASK}.npy")
    if path.suffix.lower() == ".npy" and beside.is_file():
        mask = stored_arrays(beside)[""]
    names = list(arrays) if name is None or path.suffix == ".npy" else [name]
    if len(names) != 1 or names[0] not in arrays:
        raise _checks.ArgumentError(
            "array",
            f"must name one array of {path}, which holds {', '.join(arrays) or 'none'}",
            repr(name),
        )
    array = arrays[names[0]]
    if len(array.shape) not in (2, 3) or 0 in array.shape:
        raise _checks.ArgumentError(
            "source", f"must hold [N, D] or [N, T, D], but {path} has {array.shape}"
        )
    if "float" not in array.dtype.name:
        raise _checks.ArgumentError(
            "source",
            f"must hold floating point numbers, but {path} is {array.dtype}",
            advice="store float16, bfloat16 or float32",
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
                advice="convert all shards to one of them",
            )


def _rows_of(name: str, value: int | None, default: int) -> int:
    return max(1, default) if value is None else _checks.positive_int(name, value)


def _is_kept(
    array: StoredArray, mask: StoredArray | None, drop_first: int
) -> np.ndarray:
    """Whether each row `[N]` or `[N T]` is true in the mask and not dropped."""
    is_kept = np.ones(array.shape[:-1], bool)
    if mask is not None:
        values = mask.map()
        if not np.isin(values, (0, 1)).all():
            raise _checks.ArgumentError(
                "mask", f"of {array.path} must be booleans, or 0 and 1"
            )
        is_kept = values.astype(bool)
    if drop_first:
        if len(array.shape) == 2:
            raise _checks.ArgumentError(
                "drop_first",
                f"needs shards [N, T, D], but {array.path} is {list(array.shape)}",
            )
        is_kept = is_kept & (np.cumsum(is_kept, axis=1) > drop_first)
    return is_kept.ravel()


def _nonempty(index: np.ndarray) -> np.ndarray:
    if not len(index):
        raise _checks.ArgumentError("source", "must have rows that are not left out")
    return index


def _norms(rows: View) -> np.ndarray:
    num_rows = max(1, _BUFFER_BYTES // (4 * rows.shape[1]))
    blocks = (rows[i : i + num_rows] for i in range(0, len(rows), num_rows))
    with np.errstate(over="ignore"):  # infinite norms are above the median
        return np.concatenate([np.linalg.norm(block, axis=1) for block in blocks])
