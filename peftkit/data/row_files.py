"""Rows from JSONL, JSON, CSV and Parquet files."""

import codecs
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftkit.data.samples import sample_file
from peftkit.errors import DataError, nearest

Row = dict[str, Any]

_ENDINGS = (".jsonl", ".json", ".csv", ".parquet")


def read_rows(path: str | Path) -> list[Row]:
    """Read all rows of a file, or of one of peftkit's samples (``sample:NAME/SPLIT``).

    All rows have the same columns: what a row lacks is None. JSON's values stay as they are written
    (a date is a text); CSV and Parquet are read through the `datasets` library.

    Raises:
        DataError: the file does not exist, has another ending, cannot be parsed, or holds no row.
    """
    file = sample_file(str(path)) if str(path).startswith("sample:") else Path(path)
    if not file.is_file():
        raise DataError(f"there is no data file at {file}")
    if file.suffix not in _ENDINGS:
        raise DataError(f"{file} ends in {file.suffix!r}; data files end in {', '.join(_ENDINGS)}")
    rows = _json_rows(file) if file.suffix in (".jsonl", ".json") else _table_rows(file)
    if not rows:
        raise DataError(f"{file} holds no rows")
    empty: Row = {key: None for row in rows for key in row}
    return [empty | {key: _without_nulls(value) for key, value in row.items()} for row in rows]


def _json_rows(file: Path) -> list[Row]:
    """Return the objects of a file with one on each line, or with one list of them; empty lines
    count for nothing.
    """
    line = 1
    try:
        data = file.read_bytes()
        if data.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
            found = list(enumerate(json.loads(data), 1))
        else:
            found = []
            for line, text in enumerate(data.split(b"\n"), 1):
                if text.strip():
                    found.append((line, json.loads(text)))
    except (OSError, ValueError, RecursionError) as problem:
        line += problem.lineno - 1 if isinstance(problem, json.JSONDecodeError) else 0
        raise DataError(
            f"cannot read {file}, line {line}: {getattr(problem, 'msg', problem)}"
        ) from problem
    for number, row in found:
        if not isinstance(row, dict):
            raise DataError(
                f"cannot read {file}, row {number}: {row!r:.80} is not an object with the row's columns"
            )
    return [row for _, row in found]


def _table_rows(file: Path) -> list[Row]:
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


def rename_columns(
    rows: Sequence[Row], columns: Mapping[str, str], optional: Collection[str] = ()
) -> list[Row]:
    """Rename columns; a renamed column takes the place of one that has its new name in the file.

    Args:
        rows: As `read_rows` returns them.
        columns: For each name that peftkit uses, the name that the file uses.
        optional: Names that peftkit uses; those whose columns the file lacks are left out.

    Raises:
        DataError: the file has no such column.
    """
    present = rows[0].keys()
    columns = {
        ours: theirs
        for ours, theirs in columns.items()
        if ours not in optional or theirs in present
    }
    for wanted in columns.values():
        if wanted not in present:
            raise DataError(
                f"no column {wanted!r} among {', '.join(map(repr, present))}{nearest(wanted, present)}"
            )
    gone = {*columns, *columns.values()}
    return [
        {ours: row.get(theirs) for ours, theirs in columns.items()}
        | {key: value for key, value in row.items() if key not in gone}
        for row in rows
    ]


def _without_nulls(value: Any) -> Any:
    """Drop the keys that Arrow has filled with null because a message of another row has them."""
    if isinstance(value, list):
        return [_without_nulls(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
    return value
