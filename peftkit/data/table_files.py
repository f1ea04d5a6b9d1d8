"""Tables: CSV and TSV, whose cells are texts; Parquet and Arrow, whose columns have types."""

import contextlib
import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from peftkit.data.arrow_files import count_read
from peftkit.data.data_file import DataFile
from peftkit.data.rows import Row, Rows
from peftkit.errors import DataError

_BATCH_CHARACTERS = 2**20  # of cells in one Arrow batch
_BATCH_BYTES = 8 * 2**20
_DELIMITERS = (",", ";", "\t", "|")
_RECORDS_TO_COMPARE = 20
_ARROW_FILE_MARK = b"ARROW1"


def read_csv(file: DataFile) -> Iterator[Any]:
    """Yield Arrow batches of a CSV file, whose cells are texts; an empty cell is null.

    The first line names the columns. Cells are separated by commas, or by what else splits the
    first lines evenly: semicolons, tabs or bars. Rows that are empty throughout are left out.
    """
    with file.reading(), file.text(newline="") as lines:
        first = _first_records(lines)
    yield from _read_cells(file, _find_delimiter(first))


def read_tsv(file: DataFile) -> Iterator[Any]:
    """Yield Arrow batches of a file that is like CSV, with tabs between the cells."""
    yield from _read_cells(file, "\t")


def _first_records(lines: Iterable[str]) -> str:
    found = ""
    for number, line in enumerate(lines):
        if number == _RECORDS_TO_COMPARE:
            break
        found += line
    return found


def _find_delimiter(first: str) -> str:
    """Return what separates the cells, given the first lines of a file."""
    splitting = []
    for delimiter in _DELIMITERS:
        widths = []
        with contextlib.suppress(csv.Error):  # the last record may be cut off
            for record in _parse_cells(io.StringIO(first, newline=""), delimiter):
                widths.append(len(record))
        widths = [width for width in widths if width]
        if widths and widths[0] > 1:
            if min(widths) == max(widths):
                return delimiter
            splitting.append(delimiter)
    return splitting[0] if splitting else ","


def _read_cells(file: DataFile, delimiter: str) -> Iterator[Any]:
    import pyarrow as pa

    records = _records(file, delimiter)
    columns = check_names(file, next(records, (1, []))[1])
    schema = pa.schema([pa.field(column, pa.string()) for column in columns])
    batch: list[list[str]] = []
    size = 0
    for line, record in records:
        if len(record) != len(columns):
            raise DataError(
                f"{file.path}, line {line}: the row that ends here has {len(record)} cells and not "
                f"{len(columns)}, as the first row has; a cell with a separator or a line break in "
                "it must be in quotation marks"
            )
        if any(record):
            batch.append(record)
            size += sum(map(len, record))
        if size > _BATCH_CHARACTERS:
            yield _to_batch(batch, schema)
            batch, size = [], 0
    if batch:
        yield _to_batch(batch, schema)


def _records(file: DataFile, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each row that has any, and the line on which it ends."""
    with file.reading(), file.text(newline="") as lines, _long_cells():
        reader = _parse_cells(lines, delimiter)
        try:
            for record in reader:
                if record:
                    yield reader.line_num, record
        except csv.Error as problem:
            raise DataError(
                f"cannot read {file.path}, line {reader.line_num}: {problem}; a cell in quotation "
                "marks ends with one, and one inside of it is written twice"
            ) from problem


def _parse_cells(lines: Iterable[str], delimiter: str) -> Any:
    return csv.reader(lines, delimiter=delimiter, strict=True)


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """Let the csv module, which has one limit for the process, read cells of any length."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def check_names(file: DataFile, names: Sequence[Any]) -> list[str]:
    """Return the names of columns without white space around them.

    Raises:
        DataError: one is empty, or there twice.
    """
    found: list[str] = []
    for number, name in enumerate(names, 1):
        column = str(name if name is not None else "").strip("\ufeff \t\r\n\v\f\u00a0")
        if not column:
            raise DataError(
                f"{file.path}: column {number} has no name; the first row must name every column "
                "(pandas writes a column without a name unless you give it index=False)"
            )
        if column in found:
            raise DataError(f"{file.path}: two columns are called {column!r}; rename one")
        found.append(column)
    if not found:
        raise DataError(f"{file.path} holds no rows")
    return found


def _to_batch(records: list[list[str]], schema: Any) -> Any:
    import pyarrow as pa

    columns = []
    for cells in zip(*records, strict=True):
        columns.append(pa.array([cell or None for cell in cells], pa.string()))
    return pa.record_batch(columns, schema=schema)


def read_parquet(file: DataFile) -> Iterator[Any]:
    """Yield the Arrow batches of a Parquet file."""
    import pyarrow.parquet as pq

    with _arrow_errors(file), file.reading(), file.open() as source:
        parquet = pq.ParquetFile(source, pre_buffer=False, buffer_size=2**20)
        check_names(file, parquet.schema_arrow.names)
        size = 0
        for group in range(parquet.num_row_groups):
            size += parquet.metadata.row_group(group).total_byte_size
        rows = max(1, parquet.metadata.num_rows)
        per_batch = min(2**16, max(1, _BATCH_BYTES * rows // max(1, size)))
        yield from parquet.iter_batches(batch_size=per_batch)


def read_arrow(file: DataFile) -> Iterator[Any]:
    """Yield the Arrow batches of an Arrow stream, as `datasets` writes them, or an Arrow file."""
    import pyarrow as pa

    with _arrow_errors(file), file.reading(), file.open() as source:
        is_stream = source.read(len(_ARROW_FILE_MARK)) != _ARROW_FILE_MARK
        source.seek(0)
        if is_stream:
            yield from pa.ipc.open_stream(source)
            return
        batches = pa.ipc.open_file(source)
        for number in range(batches.num_record_batches):
            yield batches.get_batch(number)


@contextlib.contextmanager
def _arrow_errors(file: DataFile) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, ValueError) as problem:
        if isinstance(problem, DataError):
            raise
        first = str(problem).partition("\n")[0]
        raise DataError(f"cannot read {file.path}: {first}; it is cut off or damaged") from problem


def table_rows(file: DataFile, table: Any) -> Rows:
    """Return the rows of a table in Arrow."""
    columns = [(name, table.column(name)) for name in table.column_names]
    names = class_names(table.schema.metadata or {})
    path, digest = file.path, file.digest  # and not the bytes of a small file

    def read(number: int) -> Row:
        count_read()
        row = {}
        for column, values in columns:
            row[column] = to_value(values[number].as_py(), names.get(column))
        return row

    return Rows(read, len(table), lambda number: f"{path}, row {number + 1}", lambda: digest)


def class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Return the names of the classes in each column that `datasets` has as a `ClassLabel`.

    Args:
        metadata: The metadata of an Arrow schema, into which `datasets` writes its features.
    """
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    found = {}
    for column, feature in features.items():
        inner = feature
        while isinstance(inner, Mapping) and "feature" in inner:
            inner = inner["feature"]
        if isinstance(inner, Mapping) and inner.get("_type") == "ClassLabel" and inner.get("names"):
            found[column] = list(inner["names"])
    return found


def to_value(value: Any, names: Sequence[str] | None = None) -> Any:
    """Return a value of a table as a row has it.

    - Null entries of nested objects are left out: Arrow adds them where another row has the key.
    - The number of a class becomes its name, and -1, which stands for no class, None.
    - NaN becomes None: pandas writes it where a number is missing.
    """
    if isinstance(value, list):
        return [to_value(entry, names) for entry in value]
    if isinstance(value, dict):
        return {key: to_value(entry) for key, entry in value.items() if entry is not None}
    if names is not None and type(value) is int:
        return names[value] if 0 <= value < len(names) else None
    return None if isinstance(value, float) and value != value else value
