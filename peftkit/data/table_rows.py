"""Rows with the columns that a task names, their types checked."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftkit.data.row_files import Row, read_rows, rename_columns
from peftkit.errors import DataError, nearest

_KINDS = {str: "a text", int: "a whole number", float: "a number", list: "a list"}
ColumnTypes = Mapping[str, tuple[type, ...]]
RowReader = Callable[[str, ColumnTypes, Mapping[str, str]], list[Row]]


def list_paths(path: str | Sequence[str]) -> list[str]:
    """Return the paths of `data.train`, which may be one or several."""
    return [path] if isinstance(path, str) else list(path)


def read_table_rows(path: str, columns: ColumnTypes, renamed: Mapping[str, str]) -> list[Row]:
    """Return the rows of a file, each with the columns that a task needs.

    Args:
        path: What `peftkit.data.row_files.read_rows` reads.
        columns: The types of each column that every row must have.
        renamed: The file's names for columns.

    Raises:
        DataError: names the file, the row counted from 1, and the column that is missing or of
            another type.
    """
    rows = read_rows(path)
    theirs = list(rows[0])
    rows = rename_columns(rows, renamed, optional=renamed.keys() - columns.keys())
    for name in columns:
        if name not in rows[0]:
            hint = (
                nearest(name, theirs)
                or f"; if another column holds it, set data.columns: {{{name}: ITS NAME}}"
            )
            raise DataError(
                f"{path} has the columns {', '.join(map(repr, theirs))} and no {name!r}{hint}"
            )
    for number, row in enumerate(rows, 1):
        for name, kinds in columns.items():
            if not isinstance(row.get(name), kinds) or isinstance(row[name], bool):
                described = " or ".join(_KINDS[kind] for kind in kinds)
                raise DataError(
                    f"{path}, row {number}: {name!r} is {row.get(name)!r}; it must be {described}"
                )
    return rows


def resolve_files(rows: Sequence[Row], column: str, data_file: str) -> list[Row]:
    """Return rows whose `column` names a file as an absolute path; a relative one is taken from the
    data file's directory.

    Raises:
        DataError: names the row, counted from 1, whose file does not exist.
    """
    directory = Path(data_file).parent.resolve()
    for number, row in enumerate(rows, 1):
        if not (directory / row[column]).is_file():
            raise DataError(
                f"{data_file}, row {number}: there is no file {directory / row[column]}"
            )
    return [row | {column: str(directory / row[column])} for row in rows]


def list_labels(values: Sequence[Any]) -> list[str]:
    """Return the different labels as texts: numbers in their order, texts in the alphabet's."""
    numeric = all(isinstance(value, int | float) for value in values)
    return [
        str(value)
        for value in (sorted(set(values)) if numeric else sorted({str(value) for value in values}))
    ]
