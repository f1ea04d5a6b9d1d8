"""What of a row nobody reads: said once a file, so that nothing is dropped without a word."""

from collections.abc import Collection, Iterable
from typing import Any

from peftkit.data.message_formats import ROLES, unread_keys
from peftkit.data.row_formats import FORMAT_COLUMNS, FileFormat, columns_read, is_conversational
from peftkit.data.row_values import parse_json
from peftkit.data.rows import Row
from peftkit.errors import DataError

_OF_DIALOGUES = ("expect", "weight", "group", "format", "unused")
_OF_TABLES = ("weight", "group", "teacher")
_HARMLESS = ("id", "index", "parallel_tool_calls")  # the last is a setting of OpenAI's API


def unused_keys(row: Row, kind: FileFormat) -> list[str]:
    """Return what of a row reaches neither the text, nor the mask, nor the loss.

    Names that are known to be harmless, such as ``id``, are left out, and so is what is empty.

    Args:
        row: A row of a file, before `peftkit.data.row_formats.convert_row`.
        kind: The file's format.

    Returns:
        Columns as ``"'topic'"``, and keys of messages as ``"'mood' in 'messages'"``, each once.
    """
    read = {*columns_read(row, kind), *_OF_DIALOGUES, *_HARMLESS}
    dialogues = _columns_of_messages(row, kind)
    if _has_two_systems(row, dialogues):
        read.remove("system")
    unused = []
    for column, value in row.items():
        if column in dialogues:
            for message in _messages_in(value):
                unused += [f"{key!r} in {column!r}" for key in unread_keys(message)]
        elif column not in read and value is not None and value not in ("", [], {}):
            unused.append(repr(column))
    return list(dict.fromkeys(unused))


def describe_unused(columns: Iterable[str], read: Collection[str]) -> list[str]:
    """Return a sentence about the columns of a table that nobody reads, if there are any.

    Args:
        columns: The columns that the rows have.
        read: Those that the task reads.
    """
    known = {*read, *_OF_TABLES, *_HARMLESS}
    unused = [repr(column) for column in columns if column not in known]
    return [f"not learned from: {', '.join(unused)}"] if unused else []


def _columns_of_messages(row: Row, kind: FileFormat) -> tuple[str, ...]:
    is_pair = kind == "prompt-completion" and is_conversational(row)
    return FORMAT_COLUMNS[kind] if is_pair or kind in ("chat", "sharegpt") else ()


def _messages_in(value: object) -> list[Any]:
    try:
        messages = parse_json(value, "a column")
    except DataError:  # whoever converts the row says so
        return []
    return messages if isinstance(messages, list) else []


def _has_two_systems(row: Row, dialogues: tuple[str, ...]) -> bool:
    """Return whether the first message takes the place of another system message in the row."""
    for column in dialogues:
        for message in _messages_in(row.get(column)):
            if not isinstance(message, dict):
                return False
            role = message.get("role", message.get("from"))
            said = message.get("content", message.get("value"))
            is_system = isinstance(role, str) and ROLES.get(role) == "system"
            return is_system and said != row.get("system")
    return False
