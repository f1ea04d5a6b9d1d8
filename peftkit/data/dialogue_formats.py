"""The formats of rows that a language model learns from: chat, prompt and completion, Alpaca,
ShareGPT, plain text.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from peftkit.config.sections import DataSettings
from peftkit.data.row_files import Row, read_rows, rename_columns
from peftkit.errors import ConfigError, DataError, nearest

Format = Literal["chat", "prompt-completion", "text"]
FileFormat = Literal["chat", "prompt-completion", "alpaca", "sharegpt", "text"]

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


def read_text_rows(
    settings: DataSettings, path: str, *, labelled: bool = True
) -> tuple[list[Row], Format]:
    """Return the checked rows of a file, under peftkit's names for the columns, and their format.

    Args:
        settings: Names of columns, and the format.
        path: What `read_rows` reads.
        labelled: Rows must have the texts that a model learns to write; else prompts and
            instructions alone will do.

    Raises:
        DataError: the file cannot be read, or a row is not what the format asks for.
    """
    rows = rename_columns(
        read_rows(path), settings.columns, optional=() if labelled else (*_ANSWERS, "expect")
    )
    given = detect_format(rows, labelled=labelled) if settings.format == "auto" else settings.format
    rows, kind = convert_rows(rows, given, labelled=labelled)
    if kind == "prompt-completion" and not labelled:
        rows = [row | {"completion": row.get("completion") or ""} for row in rows]
    check_rows(rows, kind)
    if kind == "text" and settings.loss_on == "assistant":
        raise ConfigError(
            f"data.loss_on: assistant needs rows with answers; {path} has texts: leave data.loss_on out"
        )
    return rows, kind


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


def convert_rows(
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
