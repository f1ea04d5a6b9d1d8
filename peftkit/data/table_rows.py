"""Rows with the columns that a task needs, their values checked."""

from collections.abc import Callable, Mapping
from pathlib import Path

from peftkit.data.column_names import missing_columns, rename_columns
from peftkit.data.row_files import RowSource, read_rows, source_directory, source_name
from peftkit.data.rows import Row, Rows
from peftkit.data.table_values import ReadValue, read_path
from peftkit.errors import DataError

Columns = Mapping[str, ReadValue]
"""The columns that every row must have, and what reads their values."""
RowReader = Callable[[RowSource, Columns, Mapping[str, str], str | None], Rows]
"""A function with the arguments of `read_table_rows`."""


def read_table_rows(
    source: RowSource, columns: Columns, renamed: Mapping[str, str], encoding: str | None = None
) -> Rows:
    """Return the rows of a source, each with the columns that a task needs.

    Args:
        source: Where the rows are, as `peftkit.data.row_files.read_rows` takes it.
        columns: The columns that every row must have, and what reads their values: one of
            `peftkit.data.table_values`.
        renamed: The source's name for each column that it calls otherwise.
        encoding: The encoding of text files, as `read_rows` takes it.

    Raises:
        DataError: a column is missing. Reading a row raises it too, where a value is not what its
            column holds; an `EmptyRowError`, where it is missing or blank.
    """
    optional = renamed.keys() - columns.keys()
    rows = rename_columns(read_rows(source, encoding=encoding), renamed, optional=optional)
    if not set(columns).issubset(rows.columns):
        raise DataError(missing_columns(rows, columns, source_name(source)))

    def check(row: Row) -> Row:
        for column, read in columns.items():
            row[column] = read(row.get(column), column)
        return row

    return rows.map(check)


def read_file_rows(
    source: RowSource,
    columns: Columns,
    renamed: Mapping[str, str],
    encoding: str | None = None,
    *,
    file_column: str,
) -> Rows:
    """Return rows as `read_table_rows` does, with the file that a column names as absolute path.

    A relative path is relative to the directory of the data, and ~ is the home directory.

    Raises:
        DataError: as `read_table_rows`; and where a row is read whose file does not exist.
    """
    directory = source_directory(source)
    rows = read_table_rows(source, {**columns, file_column: read_path}, renamed, encoding)

    def resolve(row: Row) -> Row:
        try:
            file = directory / Path(row[file_column]).expanduser()
            is_directory, is_file = file.is_dir(), file.is_file()
        except (OSError, RuntimeError) as problem:  # too long a name, or a home of nobody
            raise DataError(f"{file_column!r} names no file: {problem}") from None
        if is_directory:
            raise DataError(f"{file} is a directory; {file_column!r} must name a file")
        if not is_file:
            raise DataError(f"there is no file {file}")
        return row | {file_column: str(file)}

    return rows.map(resolve, depends_on=str(directory))
