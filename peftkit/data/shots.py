"""Shots: a few solved examples before each dialogue or prompt. They are read, and not learned."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from peftkit.data.draws import generator
from peftkit.data.message_formats import Message
from peftkit.data.rows import Row, Rows
from peftkit.errors import ConfigError, DataError


def draw_shots(rows: Rows, numbers: Any, count: int, seed: int) -> Any:
    """Return the numbers of the rows that become shots, an array (shots,).

    They have one format. A dialogue can be one if it is a question and its answer, or several of
    them, without tools.

    Args:
        rows: Rows of `peftkit.data.row_formats`.
        numbers: The rows to draw from, an array.
        count: How many to draw.
        seed: The seed of the draw.

    Raises:
        ConfigError: the rows are texts.
        DataError: too few rows can be shots, or no row would be left to train on.
    """
    found: list[int] = []
    kind = ""
    for number in generator(seed, "data.shots").permutation(numbers):
        row = rows[int(number)]
        kind = kind or row["format"]
        if kind == "text":
            raise ConfigError(
                "data.shots is for dialogues and prompts, not for texts: leave it out"
            )
        if row["format"] == kind and _is_solved(row):
            found.append(int(number))
        if len(found) == count:
            break
    if len(found) < count or count >= len(numbers):
        raise DataError(
            f"data.shots asks for {count} solved examples and for rows to train on; of "
            f"{len(numbers):,} rows, {len(found)} can be such examples (a question and its answer, "
            "without tools): lower data.shots"
        )
    return np.array(found)


def _is_solved(row: Row) -> bool:
    """Return whether a row asks and answers, and needs no tools for it."""
    if row["format"] == "prompt-completion":
        return True
    messages = _without_system(row["messages"])
    roles = [message["role"] for message in messages]
    has_calls = any(message.get("tool_calls") for message in messages)
    is_whole = roles[:1] == ["user"] and roles[-1:] == ["assistant"]
    return is_whole and not has_calls and not row.get("tools") and "tool" not in roles


def make_shot(row: Row) -> Row:
    """Return what is kept of a row as a shot: plain data, without a system message."""
    if row["format"] == "prompt-completion":
        return {key: row[key] for key in ("format", "prompt", "completion")}
    return {"format": "chat", "messages": _read_only(_without_system(row["messages"]))}


def with_shots(row: Row, shots: Sequence[Row]) -> Row:
    """Return a row with the shots before it.

    The messages of a dialogue come after its system message. Before a prompt, each shot is its
    prompt, its completion and a blank line.

    Raises:
        DataError: the row has another format than the shots.
    """
    for shot in shots:
        if shot["format"] != row["format"]:
            raise DataError(
                f"the shots (data.shots) are {shot['format']} rows, and this is a {row['format']} "
                "row: put only rows of one format into the files"
            )
    if not shots:
        return row
    if row["format"] == "prompt-completion":
        solved = [f"{shot['prompt']}{shot['completion']}\n\n" for shot in shots]
        return row | {"prompt": "".join([*solved, row["prompt"]])}
    own = _without_system(row["messages"])
    messages = row["messages"][: len(row["messages"]) - len(own)]
    for shot in shots:
        messages = [*messages, *shot["messages"]]
    return row | {"messages": [*messages, *own]}


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """Return the messages after the system message, which comes first where there is one."""
    has_system = bool(messages) and messages[0]["role"] == "system"
    return list(messages[has_system:])


def _read_only(messages: Sequence[Message]) -> list[Message]:
    """Return messages of which no answer is learned."""
    found = []
    for message in messages:
        is_answer = message["role"] == "assistant"
        found.append(message | {"train": False} if is_answer else dict(message))
    return found
