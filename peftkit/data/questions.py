"""The questions that held-out rows ask, to try a model on them."""

import dataclasses
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from peftkit.data.dialogue_formats import Format
from peftkit.data.row_files import Row
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
        prompt = render_prompt(asked, tokenizer, system)
        return Question(prompt, asked[-1]["content"], reference, expect)
    start = beginning_of_text(tokenizer)
    if kind == "prompt-completion":
        return Question(start + row["prompt"], row["prompt"], row["completion"], expect)
    ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
    half = (len(ids) + 1) // 2
    beginning = tokenizer.decode(ids[: min(_PROMPT_TOKENS, half)])
    continuation = row["text"][len(beginning) :][:_SHOWN_CHARACTERS]
    return Question(start + beginning, beginning, continuation, expect)


def _last_question(messages: list[dict[str, str]]) -> tuple[list[dict[str, str]], str]:
    """Return the dialogue up to its last question, and the answer, if it has one."""
    last = messages[-1]
    if last["role"] == "assistant" and len(messages) > 1:
        return messages[:-1], last["content"]
    return messages, ""


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
