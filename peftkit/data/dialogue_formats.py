"""The row formats of language models: chat, prompt and completion, Alpaca, ShareGPT, plain text."""

from collections.abc import Sequence
from typing import Any, Literal

from peftkit.config.sections import DataSettings
from peftkit.data.row_files import Row, read_rows, rename_columns
from peftkit.errors import ConfigError, DataError, nearest

Format = Literal["chat", "prompt-completion", "text"]
FileFormat = Literal["chat", "prompt-completion", "alpaca", "sharegpt", "text"]
Turn = tuple[str, Any]  # a role and what it says

# Alpaca files often have a "text" column too, so "text" comes last.
_COLUMNS: dict[FileFormat, tuple[str, ...]] = {
    "chat": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "text": ("text",),
}
_ANSWERS = ("completion", "output")  # the columns that rows without answers may lack
_ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
# The columns that become messages, and are dropped.
_CONSUMED = {
    "alpaca": ("system", "history", "instruction", "input", "output"),
    "sharegpt": ("system", "conversations"),
}


def read_text_rows(
    settings: DataSettings, path: str, *, labelled: bool = True
) -> tuple[list[Row], Format]:
    """Return the checked rows of a file, in one of peftkit's own formats, and the format.

    Args:
        settings: The config's data section: names of columns, and perhaps the file's format.
        path: The file, as `read_rows` takes it.
        labelled: Whether rows must have answers. If not, prompts and instructions are enough.

    Raises:
        DataError: the file cannot be read, or a row does not fit the format.
        ConfigError: `data.loss_on` asks for answers that the format does not have.
    """
    optional = () if labelled else (*_ANSWERS, "expect")
    rows = rename_columns(read_rows(path), settings.columns, optional)
    given = settings.format
    if given == "auto":
        given = detect_format(rows, labelled=labelled)
    rows, kind = convert_rows(rows, given, labelled=labelled)
    if kind == "prompt-completion" and not labelled:
        rows = [row | {"completion": row.get("completion") or ""} for row in rows]
    check_rows(rows, kind)
    if kind == "text" and settings.loss_on == "assistant":
        raise ConfigError(
            f"data.loss_on: assistant needs rows with answers, and {path} has plain texts: "
            "leave data.loss_on out"
        )
    return rows, kind


def detect_format(rows: Sequence[Row], *, labelled: bool = True) -> FileFormat:
    """Return the format that the columns belong to.

    Args:
        rows: Rows of one file.
        labelled: Whether rows must have the column of the answer.

    Raises:
        DataError: no format has these columns.
    """
    present = rows[0].keys()
    for name, columns in _COLUMNS.items():
        required = set(columns)
        if not labelled:
            required -= set(_ANSWERS)
        if required.issubset(present):
            return name
    needed = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in _COLUMNS.items())
    hints = ""
    for columns in _COLUMNS.values():
        for column in columns:
            hints += nearest(column, present)
    raise DataError(
        f"the columns {', '.join(map(repr, present))} belong to none of the known formats "
        f"({needed}){hints}"
    )


def convert_rows(
    rows: Sequence[Row], kind: FileFormat, *, labelled: bool = True
) -> tuple[list[Row], Format]:
    """Turn Alpaca and ShareGPT rows into chat rows; return all other rows unchanged.

    The model's own chat template will render them, not Alpaca's "### Instruction:". Columns that
    are not part of the format stay. Rows that need no answers keep all their columns, and an Alpaca
    row without an answer ends with its question.

    - Alpaca: ``system`` (optional), ``history`` (optional, [question, answer] pairs), then
      ``instruction``, an empty line and ``input`` if there is one, and ``output``.
    - ShareGPT: ``system`` (optional), then ``conversations``, a list of {"from", "value"} with
      human, gpt, system, tool or observation in "from"; or of {"role", "content"}.

    Args:
        rows: Rows of one file.
        kind: Their format.
        labelled: Whether rows must have answers.

    Returns:
        The rows, and which of peftkit's own formats they have now.

    Raises:
        DataError: a row does not fit, or an answer is empty. The message names the first such row,
            counted from 1.
    """
    if kind != "alpaca" and kind != "sharegpt":
        return list(rows), kind
    chats = []
    for number, row in enumerate(rows, 1):
        try:
            if kind == "alpaca":
                messages = _alpaca_messages(row, labelled=labelled)
            else:
                messages = _sharegpt_messages(row)
        except DataError as problem:
            raise DataError(f"row {number}: {problem}") from None
        chat = dict(row)
        if labelled:
            for column in _CONSUMED[kind]:
                chat.pop(column, None)
        chat["messages"] = messages
        chats.append(chat)
    return chats, "chat"


def _alpaca_messages(row: Row, *, labelled: bool) -> list[dict[str, str]]:
    texts = {name: row.get(name) or "" for name in ("system", "instruction", "input", "output")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise DataError(f"{name!r} is {text!r}; it must be a text")
    history = row.get("history") or []
    if not _is_list_of_pairs(history):
        raise DataError(f"'history' is {history!r}; it must be a list of [question, answer] pairs")
    question = "\n\n".join(filter(None, (texts["instruction"], texts["input"])))
    if not question.strip():
        raise DataError("there is neither an instruction nor an input")

    turns: list[Turn] = []
    if texts["system"]:
        turns.append(("system", texts["system"]))
    for asked, answered in [*history, (question, texts["output"])]:
        turns += [("user", asked), ("assistant", answered)]
    if not labelled and not texts["output"].strip():
        turns.pop()
    return _messages(turns)


def _is_list_of_pairs(value: object) -> bool:
    if not isinstance(value, list):
        return False
    return all(isinstance(entry, list) and len(entry) == 2 for entry in value)


def _sharegpt_messages(row: Row) -> list[dict[str, str]]:
    conversation = row.get("conversations")
    if not isinstance(conversation, list) or not conversation:
        raise DataError(f"'conversations' is {conversation!r}; it must be a list of messages")
    turns: list[Turn] = []
    for message in conversation:
        if not isinstance(message, dict):
            raise DataError(f"{message!r} is not a message with 'from' and 'value'")
        sender = message.get("from", message.get("role"))
        if sender not in _SHAREGPT_ROLES:
            hint = nearest(str(sender), _SHAREGPT_ROLES)
            known = ", ".join(_SHAREGPT_ROLES)
            raise DataError(f"a message is from {sender!r}, which is none of {known}{hint}")
        turns.append((_SHAREGPT_ROLES[sender], message.get("value", message.get("content"))))
    first_role, _ = turns[0]
    if row.get("system") and first_role != "system":
        turns.insert(0, ("system", row["system"]))
    return _messages(turns)


def _messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Return checked turns as messages."""
    for role, text in turns:
        if not isinstance(text, str):
            raise DataError(f"the {role}'s message is {text!r}; it must be a text")
        if role == "assistant" and not text.strip():
            raise DataError(
                "an answer is empty, so there is nothing to learn from it: leave the row out"
            )
    return [{"role": role, "content": text} for role, text in turns]


def check_rows(rows: Sequence[Row], kind: Format) -> None:
    """Check that every row has what its format needs.

    Raises:
        DataError: names the first row that does not fit, counted from 1.
    """
    for number, row in enumerate(rows, 1):
        try:
            _check_row(row, kind)
        except DataError as problem:
            raise DataError(f"row {number}: {problem}") from None


def _check_row(row: Row, kind: Format) -> None:
    expect = row.get("expect")
    if expect is not None and not _is_list_of_texts(expect):
        raise DataError(f"'expect' is {expect!r}; it must be a list of texts")
    if kind == "chat":
        _check_messages(row.get("messages"))
        return
    for column in _COLUMNS[kind]:
        value = row.get(column)
        if not isinstance(value, str):
            raise DataError(f"{column!r} is {value!r}; it must be a text")


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"'messages' is {messages!r}; it must be a list of messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise DataError(f"{message!r} is not a message with a role and a content")
        role = message.get("role")
        if role not in _ROLES:
            hint = nearest(str(role), _ROLES)
            raise DataError(f"role {role!r} is none of {', '.join(_ROLES)}{hint}")
