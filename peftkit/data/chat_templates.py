"""A tokenizer's chat template: it turns a dialogue into text."""

import dataclasses
import functools
import json
import re
from collections.abc import Hashable
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from peftkit.data.message_formats import Message
from peftkit.data.rows import Row
from peftkit.errors import DataError

Span = tuple[int, int]  # the first character, and the first one after the last

_TEMPLATES = 64  # compiled templates that are kept
# A row's chat_template_kwargs must not set what peftkit passes itself.
_OWN_ARGUMENTS = frozenset(
    {"messages", "conversations", "tools", "chat_template", "add_generation_prompt"}
    | {"continue_final_message", "return_assistant_tokens_mask"}
)


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """What a chat template is given.

    Attributes:
        messages: Each has a role and a content, which may be empty.
        tools: The schemas of the tools that the assistant may call.
        options: More variables of the template, such as ``enable_thinking``.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def until(self, turn: int) -> "Dialogue":
        """Return the dialogue up to and with a turn."""
        return dataclasses.replace(self, messages=self.messages[: turn + 1])

    def followed_by(self, message: Message) -> "Dialogue":
        """Return the dialogue with one more message."""
        return dataclasses.replace(self, messages=[*self.messages, message])

    @functools.cached_property
    def shape(self) -> Hashable:
        """Return what dialogues have in common that a template treats alike."""
        turns = []
        for message in self.messages:
            calls = len(message.get("tool_calls") or ())
            has_reasoning = bool((message.get("reasoning_content") or "").strip())
            filled = bool(message["content"].strip())
            keys = ("name" in message, "tool_call_id" in message)
            turns.append((message["role"], filled, calls, has_reasoning, keys))
        options = json.dumps(self.options, sort_keys=True, default=str) if self.options else ""
        return tuple(turns), len(self.tools or ()), options


def read_dialogue(row: Row, system: str | None = None) -> tuple[Dialogue, list[bool]]:
    """Return the dialogue of a chat row, and which of its messages may be learned.

    Args:
        row: Has ``messages``, and may have ``tools`` and ``chat_template_kwargs``.
        system: A system message for a row that has none.

    Raises:
        DataError: ``chat_template_kwargs`` sets what is not for a row to set.
    """
    messages: list[Message] = []
    learned = []
    if system is not None and row["messages"][0]["role"] != "system":
        messages.append({"role": "system", "content": system})
        learned.append(False)
    for given in row["messages"]:
        message = {"content": ""}
        for key, value in given.items():
            if value is not None and key != "train":
                message[key] = value
        messages.append(message)
        learned.append(message["role"] == "assistant" and given.get("train") is not False)
    options = row.get("chat_template_kwargs") or {}
    taken = sorted(_OWN_ARGUMENTS.intersection(options))
    if taken:
        raise DataError(
            f"'chat_template_kwargs' has {taken[0]!r}, which is not for a row to set: leave it out"
        )
    return Dialogue(messages, row.get("tools") or None, options), learned


@dataclasses.dataclass
class ChatTemplate:
    """A chat template with the special tokens of its tokenizer.

    Attributes:
        text: The Jinja source.
        special_tokens: What the template may write as ``bos_token``, ``eos_token`` and so on.
        name: The tokenizer's name, for messages.
        ends: The special tokens, any of which may end a turn.
        found: What was found out about dialogues of one shape, by `peftkit.data.learned_texts`.
    """

    text: str
    special_tokens: dict[str, Any]
    name: str
    ends: tuple[str, ...]
    found: dict[Hashable, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.marks_answers = re.search(r"\{%-?\s*generation\s*-?%\}", self.text) is not None
        """Whether the template marks what a model generates (``{% generation %}``)."""

    def render(self, dialogue: Dialogue, *, prompt: bool = False) -> str:
        """Return a dialogue as text.

        Args:
            dialogue: The dialogue.
            prompt: Whether to add what precedes an answer.

        Raises:
            DataError: the template refuses the dialogue, or fails on it.
        """
        text, _ = self._run(dialogue, prompt=prompt)
        return text

    def render_marked(self, dialogue: Dialogue) -> tuple[str, list[Span]]:
        """Return a dialogue as text, and what the template marks in it as generated.

        Raises:
            DataError: the template refuses the dialogue, or fails on it.
        """
        return self._run(dialogue, marks=self.marks_answers)

    def reads(self, option: str) -> bool:
        """Return whether the template has a variable of this name."""
        return re.search(rf"\b{re.escape(option)}\b", self.text) is not None

    def _run(
        self, dialogue: Dialogue, *, prompt: bool = False, marks: bool = False
    ) -> tuple[str, list[Span]]:
        try:
            (text,), spans = render_jinja_template(
                [dialogue.messages],
                dialogue.tools,
                chat_template=self.text,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=marks,
                **self.special_tokens | dialogue.options,
            )
        except Exception as problem:  # a template may raise anything: Jinja2's errors, or Python's
            words = " ".join(str(problem).split()) or type(problem).__name__
            raise DataError(
                f"the chat template of {self.name} refuses this dialogue: {words}"
            ) from problem
        return text, spans[0] if marks else []


def chat_template_of(
    tokenizer: PreTrainedTokenizerBase, dialogue: Dialogue | None = None
) -> ChatTemplate:
    """Return a tokenizer's chat template; of several, the one that is meant for the dialogue.

    Raises:
        DataError: there is none.
    """
    if not tokenizer.chat_template:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template: set "
            "data.chat_template (to chatml, for example), use a chat model, or give rows with "
            "'prompt' and 'completion'"
        )
    tools = None if dialogue is None else dialogue.tools
    try:
        text = tokenizer.get_chat_template(tools=tools)
    except ValueError as problem:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path} has several chat templates, and none is "
            "its default: set data.chat_template"
        ) from problem
    return _chat_template(
        text,
        tuple((name, str(token)) for name, token in tokenizer.special_tokens_map.items()),
        tokenizer.name_or_path,
        tuple(tokenizer.all_special_tokens),
    )


@functools.lru_cache(_TEMPLATES)
def _chat_template(
    text: str, special_tokens: tuple[tuple[str, Any], ...], name: str, ends: tuple[str, ...]
) -> ChatTemplate:
    return ChatTemplate(text, dict(special_tokens), name, ends)
