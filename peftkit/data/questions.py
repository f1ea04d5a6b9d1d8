"""The questions that held-out rows ask, to try a model on them."""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from peftkit.data.row_formats import Format
from peftkit.data.rows import Row
from peftkit.data.supervised_tokens import render_prompt

_PROMPT_TOKENS = 32  # of a text that the model is asked to continue
_SHOWN_CHARACTERS = 300  # of the text's own continuation


@dataclasses.dataclass(frozen=True)
class Question:
    """What a row asks a model."""

    prompt: str
    """The rendered prompt."""
    shown: str
    """The part of the prompt that is shown in reports."""
    reference: str
    """The row's own answer; empty if it has none."""
    expect: tuple[str, ...] = ()
    """Strings that a right answer contains."""


def read_question(
    row: Row, kind: Format, tokenizer: PreTrainedTokenizerBase, *, system: str | None = None
) -> Question:
    """Return what a row asks.

    A dialogue asks its last question. A row with a prompt asks the prompt. A text asks to continue
    its beginning.
    """
    expect = tuple(row.get("expect") or ())
    if kind == "chat":
        asked, reference = _last_question(row["messages"])
        prompt = render_prompt(
            asked,
            tokenizer,
            system,
            tools=row.get("tools"),
            options=row.get("chat_template_kwargs"),
        )
        return Question(prompt, _shown(asked), reference, expect)
    start = beginning_of_text(tokenizer)
    if kind == "prompt-completion":
        return Question(start + row["prompt"], row["prompt"], row["completion"], expect)
    ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
    half = (len(ids) + 1) // 2
    beginning = tokenizer.decode(ids[: min(_PROMPT_TOKENS, half)])
    continuation = row["text"][len(beginning) :][:_SHOWN_CHARACTERS]
    return Question(start + beginning, beginning, continuation, expect)


def asks(row: Row, kind: Format) -> bool:
    """Return whether a row asks anything: in a dialogue that is a greeting alone, nobody does."""
    if kind != "chat":
        return True
    asked, _ = _last_question(row["messages"])
    return any(message["role"] in ("user", "tool") for message in asked)


def _last_question(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Return the dialogue up to its last question, and the answer, if it has one.

    An answer that is tool calls alone is shown as JSON.
    """
    last = messages[-1]
    if last["role"] == "assistant" and len(messages) > 1:
        answer = last.get("content") or ""
        if not answer.strip() and last.get("tool_calls"):
            answer = json.dumps(last["tool_calls"], ensure_ascii=False)
        return messages[:-1], answer
    return messages, ""


def _shown(asked: list[dict[str, Any]]) -> str:
    """Return the last message that somebody wrote: a tool's result is no question."""
    for message in reversed(asked):
        if message["role"] != "tool" and message.get("content"):
            return str(message["content"])
    return str(asked[-1].get("content") or "")


def beginning_of_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the token that the tokenizer puts before every text, or an empty string.

    Training texts begin with it. Prompts are tokenised without special tokens, so they need it too.
    """
    ids = tokenizer("")["input_ids"]
    first = tokenizer.bos_token_id
    if first is None or ids[:1] != [first]:
        return ""
    return str(tokenizer.bos_token)


def fact_accuracy(asked: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    """Return the share of answers that contain all that is expected of them.

    Questions that expect nothing are left out. If none expects anything, there is no metric.
    """
    right = []
    for question, answer in zip(asked, answers, strict=False):
        if question.expect:
            right.append(has_all_facts(answer, question.expect))
    if not right:
        return {}
    return {"exact-fact accuracy": sum(right) / len(right)}


def has_all_facts(text: str, expected: Sequence[str]) -> bool:
    """Return whether a text contains every expected string as whole words, in any case.

    "9" is not in "9.50" or "19".
    """
    for fact in expected:
        whole_words = rf"(?<![\w.,]){re.escape(fact)}(?!\w|[.,]\d)"
        if not re.search(whole_words, text, re.IGNORECASE):
            return False
    return True
