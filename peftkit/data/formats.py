"""Read JSONL, JSON, CSV and Parquet files, tell by the columns what the rows are, and make all dialogues `messages`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from peftkit.data.samples import sample_file
from peftkit.errors import DataError, nearest

Format = Literal["chat", "prompt-completion", "text"]
FileFormat = Literal["chat", "prompt-completion", "alpaca", "sharegpt", "text"]
Row = dict[str, Any]

_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_COLUMNS: dict[FileFormat, tuple[str, ...]] = {
    "chat": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "text": ("text",),
}
_ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"} | {role: role for role in _ROLES}
_CONSUMED = {
    "alpaca": ("system", "history", "instruction", "input", "output"),
    "sharegpt": ("system", "conversations"),
}


def read_rows(path: str | Path) -> list[Row]:
    """Read all rows of a file, or of one of peftkit's samples (``sample:NAME/SPLIT``), through the `datasets` library.

    Raises:
        DataError: the file does not exist, has another ending, cannot be parsed, or holds no row.
    """
    from datasets import Dataset, disable_progress_bars  # a recipe's need; the library itself runs without it
    from datasets.exceptions import DatasetGenerationError

    file = sample_file(str(path)) if str(path).startswith("sample:") else Path(path)
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


def detect_format(rows: Sequence[Row]) -> FileFormat:
    """Tell the format of rows by their columns; Alpaca's files have a ``text`` too.

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


def converted(rows: Sequence[Row], kind: FileFormat) -> tuple[list[Row], Format]:
    """Return rows in one of peftkit's own formats, and which: Alpaca and ShareGPT rows become chat rows.

    They are rendered by the model's chat template, not by Alpaca's "### Instruction:". Other columns stay.

    - Alpaca: ``system`` (optional), ``history`` (optional, [question, answer] pairs), then ``instruction``, with ``input``
      after an empty line where there is one, and ``output``.
    - ShareGPT: ``system`` (optional), then ``conversations``, a list of {"from", "value"} with human, gpt, system, tool or
      observation in "from"; {"role", "content"} messages are taken as well.

    Raises:
        DataError: names the first bad row by its number, counted from 1; an empty answer is one.
    """
    if kind == "alpaca":
        messages_of = _alpaca_messages
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
        others = {name: value for name, value in row.items() if name not in _CONSUMED[kind]}
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


def _alpaca_messages(row: Row) -> list[dict[str, str]]:
    texts = {name: row.get(name) or "" for name in ("system", "instruction", "input", "output")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise DataError(f"{name!r} is {text!r}; it must be a text")
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise DataError(f"'history' is {history!r}; it must be a list of [question, answer] pairs")
    question = "\n\n".join(filter(None, (texts["instruction"], texts["input"])))
    if not question.strip():
        raise DataError("there is neither an instruction nor an input")
    pairs = [*history, [question, texts["output"]]]
    turns = [turn for pair in pairs for turn in zip(("user", "assistant"), pair, strict=True)]
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
            raise DataError("an answer is empty: there is nothing to learn from it; leave the row out")
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
