"""Tables in `.csv` and `.parquet` files, as arrays in memory."""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxae import _checks
from jaxae.data.stored import named_one

SUFFIXES = (".csv", ".parquet")


def column_names(path: Path) -> list[str]:
    """The names of the columns of a `.csv` or `.parquet` file."""
    is_csv = path.suffix.lower() == ".csv"
    return _csv_names(path) if is_csv else _parquet_names(path)


def check_same_columns(names: Mapping[Path, Sequence[str]]) -> None:
    """Check that these tables have the same columns in the same order."""
    first, expected = next(iter(names.items()))
    for path, columns in names.items():
        pairs = enumerate(itertools.zip_longest(expected, columns), 1)
        for number, (name, other) in pairs:
            if name != other:
                raise _checks.ArgumentError(
                    str(path),
                    f"must have the columns of {first}, but column {number} is "
                    f"{_described(other)} and not {_described(name)}",
                    advice="write all files with the same columns in the same order",
                )


def _described(name: str | None) -> str:
    return "missing" if name is None else repr(name)


def _csv_names(path: Path) -> list[str]:
    """The names in the first line, after a check that these are names."""
    pandas = _pandas()
    first = pandas.read_csv(path, header=None, nrows=1)
    if all(_is_number(dtype) for dtype in first.dtypes):
        raise _checks.ArgumentError(
            str(path),
            "has numbers in its first line",
            advice="add a line with the names of the columns",
        )
    names = [str(name) for name in first.iloc[0]]
    _check_separator(path, names)
    return names


def _parquet_names(path: Path) -> list[str]:
    return _without_labels(_parquet().read_schema(path).names)


def _without_labels(names: Sequence[str]) -> list[str]:
    """The names but that of the labels of rows, as pandas stores them."""
    return [name for name in names if name != "__index_level_0__"]


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise _checks.extra("a .csv file", "pandas", "files") from error
    return pandas


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise _checks.extra("a .parquet file", "pyarrow", "files") from error
    return pyarrow.parquet


def read_csv(path: Path) -> np.ndarray:
    """The numbers `[N, D]` of a `.csv` file whose first line names the columns."""
    pandas = _pandas()
    _csv_names(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            # By default, values without a name would become labels of the rows.
            frame = pandas.read_csv(path, low_memory=False, index_col=False)
    except pandas.errors.ParserWarning as warning:
        raise _checks.ArgumentError(
            str(path),
            "has more values in a row than names in its first line",
            advice="name every column, and write decimals with a point",
        ) from warning
    if frame.columns[0] == "Unnamed: 0":  # as to_csv writes the labels of rows
        raise _checks.ArgumentError(
            str(path),
            "has a first column without a name",
            advice="name it, or leave it out by frame.to_csv(path, index=False)",
        )
    _check_rows(path, len(frame))
    _check_columns(path, dict(frame.dtypes))
    _check_complete(path, dict(frame.isna().sum()))
    return frame.to_numpy()


def read_parquet(path: Path, array: str | None) -> np.ndarray:
    """The numbers `[N, D]` of a `.parquet` file, in its columns or in lists.

    The column `array`, or an only column, may hold lists of D numbers.
    """
    table = _parquet().read_table(path)
    if array is not None:
        table = table.select([named_one(table.column_names, array, path)])
    columns = _without_labels(table.column_names)
    lists = [name for name in columns if hasattr(table[name].type, "value_type")]
    if lists and len(columns) > 1:
        raise _checks.ArgumentError(
            "array",
            f"must name the column of {path} to read, since {_columns(lists)} "
            f"{'holds' if len(lists) == 1 else 'hold'} lists",
            repr(array),
        )
    _check_rows(path, len(table))
    _check_complete(path, {name: table[name].null_count for name in columns})
    if lists:
        return _of_lists(path, columns[0], table[columns[0]])
    _check_columns(path, {name: _dtype(table[name]) for name in columns})
    return np.stack([table[name].to_numpy() for name in columns], axis=1)


def _of_lists(path: Path, name: str, column: Any) -> np.ndarray:
    import pyarrow.compute

    lengths = pyarrow.compute.list_value_length(column).unique().to_pylist()
    if len(lengths) != 1:
        raise _checks.ArgumentError(
            str(path),
            f"must have lists of one length in column {name!r}",
            f"{len(lengths)} lengths",
        )
    values = pyarrow.compute.list_flatten(column)
    _check_columns(path, {name: _dtype(values)})
    _check_complete(path, {name: values.null_count})
    return values.to_numpy().reshape(-1, lengths[0])


def _dtype(column: Any) -> Any:
    """The dtype of a column of pyarrow, which has none for lists in lists."""
    return object if column.type.num_fields else column.type.to_pandas_dtype()


def _is_number(dtype: Any) -> bool:
    """Whether this is a dtype of NumPy for numbers, not one of pandas."""
    return isinstance(dtype, np.dtype | type) and np.dtype(dtype).kind in "iuf"


def _check_separator(path: Path, first: Sequence[str]) -> None:
    """Check the fields of the first line, which is one if no comma is in it."""
    for separator in (";", "\t"):
        if len(first) == 1 and separator in first[0]:
            raise _checks.ArgumentError(
                str(path),
                "must have commas between its columns",
                f"the first line {first[0]!r}",
                f"convert it: pandas.read_csv(path, sep={separator!r})"
                ".to_csv(new_path, index=False)",
            )


def _check_rows(path: Path, num_rows: int) -> None:
    if num_rows == 0:
        raise _checks.ArgumentError(str(path), "has no rows under its columns")


def _check_columns(path: Path, dtypes: Mapping[Any, Any]) -> None:
    names = [name for name, dtype in dtypes.items() if not _is_number(dtype)]
    if names:
        raise _checks.ArgumentError(
            str(path),
            f"has no numbers in {_columns(names)}",
            advice="leave out such columns, or encode them as numbers",
        )


def _check_complete(path: Path, num_missing: Mapping[Any, Any]) -> None:
    names = [name for name, count in num_missing.items() if count]
    if names:
        raise _checks.ArgumentError(
            str(path),
            f"has missing values in {_columns(names)}",
            advice="fill them by frame.fillna(value), or drop their rows by "
            "frame.dropna()",
        )


def _columns(names: list[Any]) -> str:
    """Such as "columns 'city', 'land'", at most five names."""
    listed = ", ".join(repr(name) for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{'column' if len(names) == 1 else 'columns'} {listed}{more}"
