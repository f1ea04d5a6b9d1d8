"""Rows with the columns that a task needs, their types checked."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftkit.data.column_names import rename_columns
from peftkit.data.row_files import read_rows
from peftkit.data.rows import Row, Rows
from peftkit.errors import DataError, nearest

ColumnTypes = Mapping[str, tuple[type, ...]]
"""The types that each column may have."""
RowReader = Callable[[str, ColumnTypes, Mapping[str, str]], Rows]
"""A function with the arguments of `read_table_rows`."""

_DESCRIBED = {str: "a text", int: "a whole number", float: "a number", list: "a list"}


def list_paths(path: str | Sequence[str]) -> list[str]:
    """Return the paths of `data.train`, which names one file or several."""
    return [path] if isinstance(path, str) else list(path)


def read_table_rows(path: str, columns: ColumnTypes, renamed: Mapping[str, str]) -> Rows:
    """Return the rows of a file, each with the columns that a task needs.

    Args:
        path: The file, as `peftkit.data.row_files.read_rows` takes it.
        columns: The columns that every row must have, and their types.
        renamed: The file's name for each column that it calls otherwise.

    Raises:
        DataError: a column is missing or has another type. The message names the file, the row
            (counted from 1) and the column.
    """
    rows = read_rows(path)
    in_file = rows.columns
    rows = rename_columns(rows, renamed, optional=renamed.keys() - columns.keys())
    present = rows.columns
    for column in columns:
        if column not in present:
            raise DataError(_missing(path, column, in_file))

    def check(row: Row) -> Row:
        for column, types in columns.items():
            value = row.get(column)
            # To Python, True is a whole number.
            if not isinstance(value, types) or isinstance(value, bool):
                wanted = " or ".join(_DESCRIBED[kind] for kind in types)
                raise DataError(f"{column!r} is {value!r}; it must be {wanted}")
        return row

    return rows.map(check)


def _missing(path: str, column: str, in_file: Sequence[str]) -> str:
    """Return the message about a missing column."""
    hint = nearest(column, in_file)
    if not hint:
        hint = f"; if another column holds it, set data.columns: {{{column}: ITS NAME}}"
    return f"{path} has the columns {', '.join(map(repr, in_file))} and no {column!r}{hint}"


def resolve_files(rows: Rows, column: str, data_file: str) -> Rows:
    """Return the rows with the file that `column` names as an absolute path.

    A relative path is relative to the directory of the data file.

    Raises:
        DataError: a file does not exist. It is raised when the row is read.
    """
    directory = Path(data_file).parent.resolve()

    def resolve(row: Row) -> Row:
        file = directory / row[column]
        if not file.is_file():
            raise DataError(f"there is no file {file}")
        return row | {column: str(file)}

    return rows.map(resolve)


def list_labels(values: Sequence[Any]) -> list[str]:
    """Return the distinct labels as texts: numbers by value, texts in alphabetical order."""
    if all(isinstance(value, int | float) for value in values):
        return [str(value) for value in sorted(set(values))]
    return sorted({str(value) for value in values})
