"""What the lint reads of a dialogue."""

import json
from collections.abc import Sequence
from typing import Any

from peftkit.data.lint.items import LintItem


def dialogue_item(messages: Sequence[dict[str, Any]], where: str) -> LintItem:
    """Return the item of a dialogue, whose answer is the last one of the assistant that is learned.

    If one of its answers is empty, so is that of the item.

    Args:
        messages: As `peftkit.data.message_formats` leaves them.
        where: The row's place.
    """
    read, answers = [], []
    for message in messages:
        said = _said(message)
        if message["role"] == "assistant" and message.get("train", True):
            answers.append(said)
        elif said:
            read.append(said)
    if not answers:
        return LintItem(where, "\n".join(read))
    if not all(answers):
        return LintItem(where, "\n".join([*read, *answers]), answer="")
    *earlier, last = answers
    return LintItem(where, "\n".join([*read, *earlier]), answer=last)


def _said(message: dict[str, Any]) -> str:
    """Return the text of a message, and what it calls."""
    parts = [message.get("reasoning_content") or "", message.get("content") or ""]
    for call in message.get("tool_calls") or ():
        parts.append(json.dumps(call.get("function"), ensure_ascii=False, default=str))
    return "\n".join(filter(None, map(str.strip, parts)))
