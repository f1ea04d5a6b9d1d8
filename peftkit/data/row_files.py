"""Rows from JSONL, JSON, CSV and Parquet files.

A large file is copied once into an Arrow file of the cache, which all processes map into their
memory.
"""

import codecs
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from peftkit.config.shipped import PACKAGE_PREFIX, package_file
from peftkit.data.arrow_files import written_table
from peftkit.data.rows import Row, Rows
from peftkit.data.samples import sample_file
from peftkit.errors import DataError, nearest

_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_BATCH_BYTES = 8 * 2**20  # of JSON text in one Arrow batch
_SMALL_FILE_BYTES = 4 * 2**20  # is kept in memory
_FORMAT = 1  # of the files in the cache


def read_rows(path: str | Path) -> Rows:
    """Return the rows of a file, a sample (``sample:NAME/SPLIT``), or ``package:NAME/FILE``.

    JSON values stay as they are written, so a date stays a text. The `datasets` library reads CSV
    and Parquet.

    Raises:
        DataError: the file does not exist, has an unknown ending, cannot be parsed, or has no rows.
            Reading a row raises it too, where a line is not a JSON object.
    """
    file = _find(str(path))
    if not file.is_file():
        raise DataError(f"there is no data file at {file}")
    if file.suffix not in _SUFFIXES:
        raise DataError(f"{file} ends in {file.suffix!r}; data files end in {', '.join(_SUFFIXES)}")
    is_json = file.suffix in (".jsonl", ".json")
    digest = _digest(file)
    table = written_table(
        f"rows-{file.suffix[1:]}-{_FORMAT}-{digest[:32]}",
        partial(_copy_json if is_json else _copy_table, file),
        is_small=file.stat().st_size <= _SMALL_FILE_BYTES,
    )
    rows = _json_rows(file, table, digest) if is_json else _table_rows(file, table, digest)
    if not rows:
        raise DataError(f"{file} holds no rows")
    return rows


def _find(path: str) -> Path:
    if path.startswith("sample:"):
        return sample_file(path)
    if path.startswith(PACKAGE_PREFIX):
        return package_file(path, DataError)
    return Path(path)


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()
    except OSError as problem:
        raise DataError(f"cannot read {file}: {problem}") from problem


def _copy_json(file: Path, sink: Any) -> None:
    """Write the texts of a file's objects, and the line that each begins on, as Arrow."""
    import pyarrow as pa

    schema = pa.schema({"json": pa.binary(), "line": pa.int32()})
    with pa.ipc.new_stream(sink, schema) as writer:
        texts: list[bytes] = []
        lines: list[int] = []
        size = 0
        for line, text in _json_texts(file):
            texts.append(text)
            lines.append(line)
            size += len(text)
            if size > _BATCH_BYTES:
                writer.write_batch(pa.record_batch([texts, lines], schema=schema))
                texts, lines, size = [], [], 0
        if texts:
            writer.write_batch(pa.record_batch([texts, lines], schema=schema))


def _json_texts(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the objects of a file, one per line or all in one list, and the line of each.

    Of a list, the line is the place in the list. Empty lines are left out.
    """
    with file.open("rb") as lines:
        if lines.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
            for number, value in enumerate(_parse_json(file.read_bytes(), file, line=1), 1):
                yield number, json.dumps(value).encode()
            return
        lines.seek(0)
        # Not splitlines(): a JSON text may contain other line separators, such as U+2028.
        for line, text in enumerate(lines, 1):
            text = text.removeprefix(codecs.BOM_UTF8) if line == 1 else text
            if text.strip():
                yield line, text.rstrip(b"\r\n")


def _json_rows(file: Path, table: Any, digest: str) -> Rows:
    """Return the rows of a table that `_copy_json` wrote."""
    texts, lines = table.column("json"), table.column("line")

    def read(number: int) -> Row:
        value = _parse_json(texts[number].as_py(), file, lines[number].as_py())
        if not isinstance(value, dict):
            raise DataError(f"cannot read {where(number)}: {value!r:.80} is not an object")
        return value

    def where(number: int) -> str:
        return f"{file}, row {lines[number]}"

    return Rows(read, len(table), where, lambda: digest)


def _parse_json(text: bytes, file: Path, line: int) -> Any:
    """Parse JSON that begins on line `line` of `file`; errors name the line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        line += problem.lineno - 1
        raise DataError(f"cannot read {file}, line {line}: {problem.msg}") from problem
    except (ValueError, RecursionError) as problem:  # not UTF-8, or nested too deeply
        raise DataError(f"cannot read {file}, line {line}: {problem}") from problem


def _copy_table(file: Path, sink: Any) -> None:
    """Write the rows of a CSV or Parquet file as Arrow."""
    import pyarrow as pa

    try:
        from datasets import Dataset, disable_progress_bars
        from datasets.exceptions import DatasetGenerationError
    except ModuleNotFoundError as problem:
        raise DataError(
            f"{file.suffix} files need the datasets library: pip install 'peftkit[recipes]'"
        ) from problem

    disable_progress_bars()
    read = Dataset.from_csv if file.suffix == ".csv" else Dataset.from_parquet
    try:
        table = read(str(file), keep_in_memory=True).data.table
    except (DatasetGenerationError, ValueError, OSError, StopIteration) as problem:
        raise DataError(f"cannot read {file}: {problem.__cause__ or problem}") from problem
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _table_rows(file: Path, table: Any, digest: str) -> Rows:
    """Return the rows of a table that `_copy_table` wrote."""

    def read(number: int) -> Row:
        row = {}
        for column in table.column_names:
            row[column] = _without_nulls(table.column(column)[number].as_py())
        return row

    return Rows(read, len(table), lambda number: f"{file}, row {number + 1}", lambda: digest)


def _without_nulls(value: Any) -> Any:
    """Drop null entries of nested objects: Arrow adds them where another row has the key."""
    if isinstance(value, list):
        return [_without_nulls(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
    return value


def rename_columns(rows: Rows, columns: Mapping[str, str], optional: Collection[str] = ()) -> Rows:
    """Rename columns. A renamed column replaces one that already has its new name.

    Args:
        rows: Rows as `read_rows` returns them.
        columns: The file's name for each of peftkit's names.
        optional: The peftkit names whose columns the file may lack.

    Raises:
        DataError: the file lacks a column that is not optional.
    """
    if not columns:
        return rows
    present = rows.columns
    renamed = {}
    for ours, theirs in columns.items():
        if theirs in present:
            renamed[ours] = theirs
        elif ours not in optional:
            names = ", ".join(map(repr, present))
            raise DataError(f"no column {theirs!r} among {names}{nearest(theirs, present)}")
    replaced = {*renamed, *renamed.values()}

    def rename(row: Row) -> Row:
        values = {ours: row.get(theirs) for ours, theirs in renamed.items()}
        for column, value in row.items():
            if column not in replaced:
                values[column] = value
        return values

    return rows.map(rename)
