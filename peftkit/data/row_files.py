"""Rows from JSONL, JSON, CSV and Parquet files."""

import codecs
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftkit.config.shipped import PACKAGE_PREFIX, package_file
from peftkit.data.samples import sample_file
from peftkit.errors import DataError, nearest

Row = dict[str, Any]

_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def read_rows(path: str | Path) -> list[Row]:
    """Read all rows of a file, a sample (``sample:NAME/SPLIT``), or ``package:NAME/FILE``.

    Every row has every column; a value that is missing in the file is None. JSON values stay as
    they are written, so a date stays a text. The `datasets` library reads CSV and Parquet.

    Raises:
        DataError: the file does not exist, has an unknown ending, cannot be parsed, or has no rows.
    """
    file = _find(str(path))
    if not file.is_file():
        raise DataError(f"there is no data file at {file}")
    if file.suffix not in _SUFFIXES:
        raise DataError(f"{file} ends in {file.suffix!r}; data files end in {', '.join(_SUFFIXES)}")
    rows = _read_json(file) if file.suffix in (".jsonl", ".json") else _read_table(file)
    if not rows:
        raise DataError(f"{file} holds no rows")
    return _with_all_columns(rows)


def _find(path: str) -> Path:
    if path.startswith("sample:"):
        return sample_file(path)
    if path.startswith(PACKAGE_PREFIX):
        return package_file(path, DataError)
    return Path(path)


def _read_json(file: Path) -> list[Row]:
    """Return the objects of a file: one per line, or all in one list. Empty lines are skipped."""
    try:
        data = file.read_bytes()
    except OSError as problem:
        raise DataError(f"cannot read {file}: {problem}") from problem
    if data.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
        numbered = list(enumerate(_parse_json(data, file, line=1), 1))
    else:
        numbered = []
        # Not splitlines(): a JSON text may contain other line separators, such as U+2028.
        for line, text in enumerate(data.split(b"\n"), 1):
            if text.strip():
                numbered.append((line, _parse_json(text, file, line)))
    rows = []
    for number, value in numbered:
        if not isinstance(value, dict):
            raise DataError(
                f"cannot read {file}, row {number}: {value!r:.80} is not an object with columns"
            )
        rows.append(value)
    return rows


def _parse_json(text: bytes, file: Path, line: int) -> Any:
    """Parse JSON that begins on line `line` of `file`; errors name the line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        line += problem.lineno - 1
        raise DataError(f"cannot read {file}, line {line}: {problem.msg}") from problem
    except (ValueError, RecursionError) as problem:  # not UTF-8, or nested too deeply
        raise DataError(f"cannot read {file}, line {line}: {problem}") from problem


def _read_table(file: Path) -> list[Row]:
    """Return the rows of a CSV or Parquet file."""
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
        rows: list[Row] = read(str(file), keep_in_memory=True).to_list()
    except (DatasetGenerationError, ValueError, OSError, StopIteration) as problem:
        raise DataError(f"cannot read {file}: {problem.__cause__ or problem}") from problem
    return rows


def _with_all_columns(rows: list[Row]) -> list[Row]:
    """Give every row every column, in the order in which the columns first occur."""
    empty: Row = {}
    for row in rows:
        empty |= dict.fromkeys(row)
    complete = []
    for row in rows:
        values = dict(empty)
        for column, value in row.items():
            values[column] = _without_nulls(value)
        complete.append(values)
    return complete


def _without_nulls(value: Any) -> Any:
    """Drop null entries of nested objects: Arrow adds them where another row has the key."""
    if isinstance(value, list):
        return [_without_nulls(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
    return value


def rename_columns(
    rows: Sequence[Row], columns: Mapping[str, str], optional: Collection[str] = ()
) -> list[Row]:
    """Rename columns. A renamed column replaces one that already has its new name.

    Args:
        rows: Rows as `read_rows` returns them.
        columns: The file's name for each of peftkit's names.
        optional: The peftkit names whose columns the file may lack.

    Raises:
        DataError: the file lacks a column that is not optional.
    """
    present = rows[0].keys()
    renamed = {}
    for ours, theirs in columns.items():
        if theirs in present:
            renamed[ours] = theirs
        elif ours not in optional:
            names = ", ".join(map(repr, present))
            raise DataError(f"no column {theirs!r} among {names}{nearest(theirs, present)}")
    replaced = {*renamed, *renamed.values()}
    found = []
    for row in rows:
        values = {ours: row.get(theirs) for ours, theirs in renamed.items()}
        for column, value in row.items():
            if column not in replaced:
                values[column] = value
        found.append(values)
    return found
