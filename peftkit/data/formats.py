"""Read JSONL, JSON, CSV and Parquet files, tell by the columns what the rows are, and make all
dialogues `messages`.
"""

import codecs
import functools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from peftkit.data.samples import sample_file
from peftkit.errors import DataError, nearest

Format = Literal["chat", "prompt-completion", "text"]
FileFormat = Literal["chat", "prompt-completion", "alpaca", "sharegpt", "text"]
Row = dict[str, Any]

_ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
_COLUMNS: dict[FileFormat, tuple[str, ...]] = {
    "chat": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "text": ("text",),
}
_ANSWERS = ("completion", "output")  # what rows may lack where it is to be predicted
_ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"} | {
    role: role for role in _ROLES
}
_CONSUMED = {
    "alpaca": ("system", "history", "instruction", "input", "output"),
    "sharegpt": ("system", "conversations"),
}


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


def detect_format(rows: Sequence[Row], *, labelled: bool = True) -> FileFormat:
    """Tell the format of rows by their columns; Alpaca's files have a ``text`` too.

    Without `labelled`, completions and outputs may be missing.

    Raises:
        DataError: the columns are those of none of the formats.
    """
    present = rows[0].keys()
    for name, columns in _COLUMNS.items():
        if all(column in present for column in columns if labelled or column not in _ANSWERS):
            return name
    needed = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in _COLUMNS.items())
    hints = "".join(
        filter(None, (nearest(name, present) for columns in _COLUMNS.values() for name in columns))
    )
    raise DataError(
        f"the columns {', '.join(map(repr, present))} are none of the known formats ({needed}){hints}"
    )


def converted(
    rows: Sequence[Row], kind: FileFormat, *, labelled: bool = True
) -> tuple[list[Row], Format]:
    """Return rows in one of peftkit's own formats, and which: Alpaca and ShareGPT rows become chat
    rows.

    They are rendered by the model's chat template, not by Alpaca's "### Instruction:". Other
    columns stay; without `labelled` all do, and an Alpaca row without an answer ends with its
    question.

    - Alpaca: ``system`` (optional), ``history`` (optional, [question, answer] pairs), then
      ``instruction``, with ``input`` after an empty line where there is one, and ``output``.
    - ShareGPT: ``system`` (optional), then ``conversations``, a list of {"from", "value"} with
      human, gpt, system, tool or observation in "from"; {"role", "content"} messages are taken as
      well.

    Raises:
        DataError: names the first bad row by its number, counted from 1; an empty answer is one.
    """
    messages_of: Callable[[Row], list[dict[str, str]]]
    if kind == "alpaca":
        messages_of = functools.partial(_alpaca_messages, labelled=labelled)
    elif kind == "sharegpt":
        messages_of = _sharegpt_messages
    else:
        return list(rows), kind
    chats = []
    for number, row in enumerate(rows, 1):
        try:
            messages = messages_of(row)
        except DataError as problem:
            raise DataError(f"row {number}: {problem}") from None
        others = {
            name: value
            for name, value in row.items()
            if not labelled or name not in _CONSUMED[kind]
        }
        chats.append(others | {"messages": messages})
    return chats, "chat"


def check_rows(rows: Sequence[Row], kind: Format) -> None:
    """Check every row's shape.

    Raises:
        DataError: names the first bad row by its number, counted from 1.
    """
    problem = next(_problems(rows, kind), None)
    if problem is not None:
        number, what = problem
        raise DataError(f"row {number}: {what}")


def _alpaca_messages(row: Row, *, labelled: bool) -> list[dict[str, str]]:
    texts = {name: row.get(name) or "" for name in ("system", "instruction", "input", "output")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise DataError(f"{name!r} is {text!r}; it must be a text")
    history = row.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in history
    ):
        raise DataError(f"'history' is {history!r}; it must be a list of [question, answer] pairs")
    question = "\n\n".join(filter(None, (texts["instruction"], texts["input"])))
    if not question.strip():
        raise DataError("there is neither an instruction nor an input")
    pairs = [*history, [question, texts["output"]]]
    turns = [turn for pair in pairs for turn in zip(("user", "assistant"), pair, strict=True)]
    if not labelled and not texts["output"].strip():
        turns.pop()
    return _messages([*_system(texts["system"]), *turns])


def _sharegpt_messages(row: Row) -> list[dict[str, str]]:
    conversation = row.get("conversations")
    if not isinstance(conversation, list) or not conversation:
        raise DataError(f"'conversations' is {conversation!r}; it must be a list of messages")
    turns = []
    for turn in conversation:
        if not isinstance(turn, dict):
            raise DataError(f"{turn!r} is not a message with 'from' and 'value'")
        name = turn.get("from", turn.get("role"))
        if name not in _SHAREGPT_ROLES:
            known = ", ".join(_SHAREGPT_ROLES)
            raise DataError(
                f"a message is from {name!r}, which is none of {known}{nearest(str(name), _SHAREGPT_ROLES)}"
            )
        turns.append((_SHAREGPT_ROLES[name], turn.get("value", turn.get("content"))))
    has_system = turns[0][0] == "system"
    return _messages([*([] if has_system else _system(row.get("system"))), *turns])


def _system(text: str | None) -> list[tuple[str, str]]:
    return [("system", text)] if text else []


def _messages(turns: Sequence[tuple[str, Any]]) -> list[dict[str, str]]:
    for role, text in turns:
        if not isinstance(text, str):
            raise DataError(f"the {role}'s message is {text!r}; it must be a text")
        if role == "assistant" and not text.strip():
            raise DataError(
                "an answer is empty: there is nothing to learn from it; leave the row out"
            )
    return [{"role": role, "content": text} for role, text in turns]


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
        if expect is not None and not (
            isinstance(expect, list) and all(isinstance(each, str) for each in expect)
        ):
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
