"""The messages of a dialogue, however they are written, as chat templates take them.

OpenAI's way is ``{"role", "content"}``, ShareGPT's is ``{"from", "value"}``. Names of roles and
keys may be mixed.
"""

import re
from collections.abc import Sequence
from typing import Any

from peftkit.data.row_values import check_text, parse_json, quote
from peftkit.data.tool_calls import ToolCall, read_tool_calls
from peftkit.errors import DataError, EmptyRowError, nearest

Message = dict[str, Any]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}
_ROLE_KEYS = ("role", "from")
_CONTENT_KEYS = ("content", "value")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_CALL_KEYS = ("tool_calls", "function_call")
_MARK_KEYS = ("train", "weight")
_KEPT = ("name", "tool_call_id")
_READ = {*_ROLE_KEYS, *_CONTENT_KEYS, *_REASONING_KEYS, *_CALL_KEYS, *_MARK_KEYS, *_KEPT}
_HARMLESS = {"id", "index", "annotations", "timestamp", "created", "created_at"}
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
_TEXT_PARTS = ("text", "input_text", "output_text")  # of OpenAI's chat completions and responses


def read_messages(value: object, column: str) -> list[Message]:
    """Return messages as ``{"role", "content"}`` and, where they have them, these keys.

    ``tool_calls``, ``reasoning_content``, ``name``, ``tool_call_id``; and ``train: False`` on an
    answer that is read and not learned. A role is system, user, assistant or tool; a content is a
    text.

    Args:
        value: A list of messages, or a JSON text of one.
        column: Where it stands; named in messages.

    Raises:
        EmptyRowError: there is no message.
        DataError: a message cannot be read.
    """
    messages = parse_json(value, repr(column))
    if messages is None or messages == []:
        raise EmptyRowError(
            f"{column!r} holds no messages: leave the row out, or set data.skip_empty"
        )
    if not isinstance(messages, list):
        raise DataError(f"{column!r} is {quote(value)}; it must be a list of messages")
    return [_read_message(message) for message in messages]


def unread_keys(message: object) -> list[str]:
    """Return the keys of a message that hold something that nobody reads, in the file's order."""
    if not isinstance(message, dict):
        return []
    unread = []
    for key, value in message.items():
        is_empty = value is None or value in ("", [], {})
        if key not in _READ and key not in _HARMLESS and not is_empty:
            unread.append(str(key))
    return unread


def check_answers(messages: Sequence[Message], *, must_have_one: bool = True) -> None:
    """Check that something is learned from a dialogue, and no answer is empty.

    Args:
        messages: As `read_messages` returns them.
        must_have_one: Whether at least one answer must be learned.

    Raises:
        EmptyRowError: an answer that is learned has neither a text nor tool calls, or no answer is
            learned.
    """
    learned = 0
    for message in messages:
        if message["role"] != "assistant" or not message.get("train", True):
            continue
        if not message["content"].strip() and "tool_calls" not in message:
            raise EmptyRowError(
                "an answer is empty, so there is nothing to learn from it: leave the row out, or "
                "set data.skip_empty"
            )
        learned += 1
    if must_have_one and not learned:
        raise EmptyRowError(
            "no message of the assistant is to be learned: leave the row out, or set "
            "data.skip_empty"
        )


def _read_message(message: object) -> Message:
    if not isinstance(message, dict):
        raise DataError(f"{quote(message)} is not a message with a role and a content")
    written = _read_role(message)
    role = ROLES[written]
    if written == "function_call":
        message = _with_calls(message)
    content = _only_one(message, _CONTENT_KEYS)
    calls = _read_calls(message)
    read: Message = {"role": role, "content": _read_content(content, role, message, calls)}
    reasoning = _read_reasoning(message)
    if role != "assistant" and (calls or reasoning):
        what = "tool calls" if calls else "reasoning"
        raise DataError(f"the {role}'s message has {what}, and only an assistant's can have them")
    if reasoning:
        read["reasoning_content"] = reasoning
    if calls:
        read["tool_calls"] = calls
    for key in _KEPT:
        if message.get(key) is not None:
            read[key] = check_text(message[key], f"the {key!r} of a message")
    is_learned = _read_mark(message, role)
    if role == "assistant" and not is_learned:
        read["train"] = False
    return read


def _with_calls(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose content is a function call as one with the call beside it.

    LLaMA-Factory takes a thought before the call, ``<think>...</think>``.
    """
    content = _only_one(message, _CONTENT_KEYS)
    changed = message | dict.fromkeys(_CONTENT_KEYS)
    thought = _THOUGHT.match(content) if isinstance(content, str) else None
    if thought is not None:
        changed["thinking"] = thought[1].strip()
        content = content[thought.end() :]
    changed["function_call"] = read_tool_calls(content, "the function call")
    return changed


def _read_role(message: dict[str, Any]) -> str:
    """Return a message's role, as the file names it."""
    role = _only_one(message, _ROLE_KEYS)
    if not isinstance(role, str) or role not in ROLES:
        hint = nearest(str(role), ROLES)
        raise DataError(
            f"a message is from {quote(role)}, which is none of {', '.join(ROLES)}{hint}"
        )
    return role


def _only_one(message: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """Return the value of a key that has several names; None if it has none.

    Raises:
        DataError: two of the names have different values, and neither is empty.
    """
    found = None
    name = ""
    for key in keys:
        value = message.get(key)
        if value is None or value == found:
            continue
        if found and value:
            raise DataError(
                f"a message has both {name!r} and {key!r}, which mean the same: leave one out"
            )
        if not found:
            found, name = value, key
    return found


def _read_calls(message: dict[str, Any]) -> list[ToolCall]:
    """Return the calls in ``tool_calls``, or in OpenAI's older ``function_call``."""
    calls = _only_one(message, _CALL_KEYS)
    return [] if calls is None else read_tool_calls(calls, "'tool_calls'")


def _read_content(content: object, role: str, message: Message, calls: Sequence[ToolCall]) -> str:
    """Return a content as one text: parts are joined, and null beside tool calls is empty."""
    place = f"the {role}'s message"
    if content is None:
        unread = unread_keys(message)
        if role == "assistant" and (calls or not unread):
            return ""
        raise DataError(f"{place} has no content: {quote(message)}{_nearest_content(unread)}")
    if not isinstance(content, list):
        return check_text(content, place)
    texts = []
    for part in content:
        texts.append(_read_part(part, place))
    return "".join(texts)


def _nearest_content(unread: Sequence[str]) -> str:
    for key in _CONTENT_KEYS:
        hint = nearest(key, unread)
        if hint:
            return hint
    return ""


def _read_part(part: object, place: str) -> str:
    if isinstance(part, str):
        return check_text(part, place)
    if not isinstance(part, dict):
        raise DataError(f"{place} has the part {quote(part)}, which is not a text")
    if part.get("type") not in _TEXT_PARTS:
        raise DataError(
            f"{place} has a part of type {quote(part.get('type'))}; only parts of type 'text' can "
            "be read"
        )
    return check_text(part.get("text"), f"a text in {place}")


def _read_reasoning(message: dict[str, Any]) -> str:
    reasoning = _only_one(message, _REASONING_KEYS)
    if not reasoning:
        return ""
    text = check_text(reasoning, "the reasoning of a message")
    return text if text.strip() else ""


def _read_mark(message: dict[str, Any], role: str) -> bool:
    """Return whether a message is learned: ``train``, or OpenAI's ``weight``, says that it is not.

    Raises:
        DataError: the two contradict each other, or ask to learn what no assistant says.
    """
    marks = set()
    for key in _MARK_KEYS:
        value = message.get(key)
        if value is None:
            continue
        if value not in (0, 1):  # False and True, too
            raise DataError(
                f"{key!r} of a message is {quote(value)}; it must be true or false, or 1 or 0"
            )
        marks.add(bool(value))
    if len(marks) > 1:
        raise DataError("'train' and 'weight' of a message contradict each other: leave one out")
    if True in marks and role != "assistant":
        raise DataError(
            f"the {role}'s message is marked to be learned, and only the assistant's are: leave "
            "the mark out"
        )
    return False not in marks
