"""Read JSONL, JSON, CSV and Parquet files, and tell by the columns what the rows are."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from peftkit.errors import DataError, nearest

Format = Literal["chat", "prompt-completion", "text"]
Row = dict[str, Any]

_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_COLUMNS: dict[Format, tuple[str, ...]] = {
    "chat": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "text": ("text",),
}
_ROLES = ("system", "user", "assistant", "tool")


def read_rows(path: str | Path) -> list[Row]:
    """Read all rows of a file through the `datasets` library.

    Raises:
        DataError: the file does not exist, has another ending, cannot be parsed, or holds no row.
    """
    from datasets import Dataset, disable_progress_bars  # a recipe's need; the library itself runs without it
    from datasets.exceptions import DatasetGenerationError

    file = Path(path)
    if not file.is_file():
        raise DataError(f"there is no data file at {file}")
    if file.suffix not in _READERS:
        raise DataError(f"{file} ends in {file.suffix!r}; data files end in {', '.join(_READERS)}")
    disable_progress_bars()
    read = getattr(Dataset, f"from_{_READERS[file.suffix]}")
    try:
        rows: list[Row] = read(str(file), keep_in_memory=True).to_list()
    except (DatasetGenerationError, ValueError, OSError, StopIteration) as problem:
        raise DataError(f"cannot read {file}: {problem.__cause__ or problem}") from problem
    if not rows:
        raise DataError(f"{file} holds no rows")
    return [{key: _without_nulls(value) for key, value in row.items()} for row in rows]


def rename_columns(rows: Sequence[Row], columns: dict[str, str]) -> list[Row]:
    """Rename columns: `columns` gives, for each name that peftkit uses, the name that the file uses.

    Raises:
        DataError: the file has no such column.
    """
    present = rows[0].keys()
    for wanted in columns.values():
        if wanted not in present:
            raise DataError(f"no column {wanted!r} among {', '.join(map(repr, present))}{nearest(wanted, present)}")
    back = {theirs: ours for ours, theirs in columns.items()}
    return [{back.get(key, key): value for key, value in row.items()} for row in rows]


def detect_format(rows: Sequence[Row]) -> Format:
    """Tell the format of rows by their columns.

    Raises:
        DataError: the columns are those of none of the formats.
    """
    present = rows[0].keys()
    for name, columns in _COLUMNS.items():
        if all(column in present for column in columns):
            return name
    needed = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in _COLUMNS.items())
    hints = "".join(filter(None, (nearest(name, present) for columns in _COLUMNS.values() for name in columns)))
    raise DataError(f"the columns {', '.join(map(repr, present))} are none of the known formats ({needed}){hints}")


def check_rows(rows: Sequence[Row], kind: Format) -> None:
    """Check every row's shape.

    Raises:
        DataError: names the first bad row by its number, counted from 1.
    """
    problem = next(_problems(rows, kind), None)
    if problem is not None:
        number, what = problem
        raise DataError(f"row {number}: {what}")


def _without_nulls(value: Any) -> Any:
    """Drop the keys that Arrow has filled with null because a message of another row has them."""
    if isinstance(value, list):
        return [_without_nulls(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
    return value


def _problems(rows: Sequence[Row], kind: Format) -> Iterator[tuple[int, str]]:
    for number, row in enumerate(rows, 1):
        expect = row.get("expect")
        if expect is not None and not (isinstance(expect, list) and all(isinstance(each, str) for each in expect)):
            yield number, f"'expect' is {expect!r}; it must be a list of texts"
        for column in _COLUMNS[kind]:
            value = row.get(column)
            if column == "messages":
                yield from ((number, what) for what in _message_problems(value))
            elif not isinstance(value, str):
                yield number, f"{column!r} is {value!r}; it must be a text"


def _message_problems(messages: object) -> Iterator[str]:
    if not isinstance(messages, list) or not messages:
        yield f"'messages' is {messages!r}; it must be a list of messages"
        return
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            yield f"{message!r} is not a message with a role and a content"
        elif message.get("role") not in _ROLES:
            yield f"role {message.get('role')!r} is none of {', '.join(_ROLES)}{nearest(str(message.get('role')), _ROLES)}"
