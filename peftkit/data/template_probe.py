"""Find out what a chat template does with a dialogue, from one that has a marked word everywhere.

The probe of a dialogue has its roles and its shape, and a word of its own in place of each content,
each reasoning, each tool, and each tool call. Where a word stands in the rendered text, there
stands what it is put for; and what has no word there is not rendered.
"""

import dataclasses
import json
import re
from typing import Any

from peftkit.data.chat_templates import ChatTemplate, Dialogue
from peftkit.data.message_formats import Message
from peftkit.errors import DataError

_WORD = re.compile(r"Kv7xQ(\d+)Zw9j")


@dataclasses.dataclass(frozen=True)
class Part:
    """What a word of the probe is put for.

    Attributes:
        turn: The number of its message; -1 for a tool.
        kind: "content", "reasoning_content", "tool_calls" or "tools".
    """

    turn: int
    kind: str


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of the probe in a rendered text."""

    number: int
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Probe:
    """A dialogue with a word in place of each of its `parts`; word `n` is put for `parts[n]`."""

    dialogue: Dialogue
    parts: list[Part]

    def words_of(self, turn: int, text: str) -> list[Word]:
        """Return where the words of a message stand in a rendered text."""
        return [word for word in find_words(text) if self.parts[word.number].turn == turn]


def find_words(text: str) -> list[Word]:
    """Return all words of a probe in a rendered text."""
    return [Word(int(found[1]), *found.span()) for found in _WORD.finditer(text)]


def word(number: int) -> str:
    """Return a word of the probe. No template changes it, and no data have it."""
    return f"Kv7xQ{number}Zw9j"


def probe_of(dialogue: Dialogue, turn: int | None = None) -> Probe:
    """Return the probe of a dialogue, or the dialogue with words in one of its messages alone."""
    parts: list[Part] = []
    messages = []
    for number, message in enumerate(dialogue.messages):
        if turn in (None, number):
            message = _with_words(message, number, parts)
        messages.append(message)
    tools = dialogue.tools
    if tools is not None and turn is None:
        tools = [_renamed(tool, parts, -1, "tools") for tool in tools]
    return Probe(dataclasses.replace(dialogue, messages=messages, tools=tools), parts)


def _with_words(message: Message, turn: int, parts: list[Part]) -> Message:
    changed = dict(message)
    for kind in ("reasoning_content", "content"):
        if (message.get(kind) or "").strip():
            changed[kind] = _next_word(parts, turn, kind)
    if message.get("tool_calls"):
        changed["tool_calls"] = [
            _renamed(call, parts, turn, "tool_calls") for call in message["tool_calls"]
        ]
    return changed


def _renamed(entry: dict[str, Any], parts: list[Part], turn: int, kind: str) -> dict[str, Any]:
    """Return a tool or a call with a word for its name, and one for its arguments."""
    inner = entry.get("function")
    if isinstance(inner, dict):
        return entry | {"function": _renamed(inner, parts, turn, kind)}
    changed = entry | {"name": _next_word(parts, turn, kind)}
    if "arguments" in entry:
        argument = _next_word(parts, turn, kind)
        pairs = {argument: argument}
        is_text = isinstance(entry["arguments"], str)
        changed["arguments"] = json.dumps(pairs) if is_text else pairs
    return changed


def _next_word(parts: list[Part], turn: int, kind: str) -> str:
    parts.append(Part(turn, kind))
    return word(len(parts) - 1)


def values_of(dialogue: Dialogue) -> list[str]:
    """Return what the words of the probe are put for, in a dialogue without tools and calls."""
    values = []
    for message in dialogue.messages:
        for kind in ("reasoning_content", "content"):
            value = message.get(kind) or ""
            if value.strip():
                values.append(value)
    return values


_NAMES = {
    "tools": "tools",
    "tool_calls": "the tool_calls of an answer",
    "reasoning_content": "the reasoning_content of an answer",
}
_REMEDY = "choose a template that does with data.chat_template, or leave them out of the rows"


def check_parts(probe: Probe, template: ChatTemplate) -> None:
    """Check that a template renders all that a dialogue has.

    An answer must be rendered where it is the last message. In later turns a template may leave out
    what it said, as many do with reasoning. All other messages, and the tools, must be in the text
    of the whole dialogue.

    Raises:
        DataError: names what is not rendered.
    """
    dialogue = probe.dialogue
    rendered = _numbers(template.render(dialogue))
    last = len(dialogue.messages) - 1
    for turn, message in enumerate(dialogue.messages):
        if message["role"] == "assistant":
            seen = rendered
            if turn < last and not rendered.issuperset(_numbers_of(probe, turn)):
                seen = _numbers(template.render(dialogue.until(turn)))
            _check_seen(probe, turn, seen, template)
        else:
            _check_seen(probe, turn, rendered, template)
    _check_seen(probe, -1, rendered, template)


def _numbers(text: str) -> set[int]:
    return {word.number for word in find_words(text)}


def _numbers_of(probe: Probe, turn: int) -> set[int]:
    return {number for number, part in enumerate(probe.parts) if part.turn == turn}


def _check_seen(probe: Probe, turn: int, seen: set[int], template: ChatTemplate) -> None:
    missing = _numbers_of(probe, turn) - seen
    if not missing:
        return
    kind = probe.parts[min(missing)].kind
    name = _NAMES.get(kind)
    if name is None:  # a content
        message = probe.dialogue.messages[turn]
        name = f"a message of the role {message['role']!r}"
        if message.get("tool_calls"):
            name = "the content of an answer beside its tool_calls"
    raise DataError(f"the chat template of {template.name} does not render {name}: {_REMEDY}")


def needs_text_arguments(template: ChatTemplate, dialogue: Dialogue) -> bool | None:
    """Return whether a template takes the arguments of a tool call as JSON, and not as a dict.

    Some templates add them to a text. That fails for a dict, or writes it with Python's quotes.
    None means that the dialogue does not show it: the template takes it with neither.
    """
    if _writes_arguments(template, probe_of(dialogue)):
        return False
    return True if _writes_arguments(template, probe_of(with_text_arguments(dialogue))) else None


def _writes_arguments(template: ChatTemplate, probe: Probe) -> bool:
    try:
        text = template.render(probe.dialogue)
    except DataError:
        return False
    for number, part in enumerate(probe.parts):
        if part.kind == "tool_calls" and f"'{word(number)}': '{word(number)}'" in text:
            return False
    return True


def with_text_arguments(dialogue: Dialogue) -> Dialogue:
    """Return a dialogue in which the arguments of tool calls are JSON texts."""
    messages = []
    for message in dialogue.messages:
        if message.get("tool_calls"):
            calls = [_with_text_arguments(call) for call in message["tool_calls"]]
            message = message | {"tool_calls": calls}
        messages.append(message)
    return dataclasses.replace(dialogue, messages=messages)


def _with_text_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments")
    if arguments is None or isinstance(arguments, str):
        return call
    written = json.dumps(arguments, ensure_ascii=False)
    return call | {"function": function | {"arguments": written}}
