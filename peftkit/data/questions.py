"""The questions that held-out rows ask, for trying a model out on them."""

import dataclasses
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from peftkit.data.dialogue_formats import Format
from peftkit.data.row_files import Row
from peftkit.data.supervised_tokens import render_prompt

_PROMPT_TOKENS = 32  # of a text that is to be continued
_SHOWN_CHARACTERS = 300  # of how it went on


@dataclasses.dataclass(frozen=True)
class Question:
    """A rendered prompt, the words in it to show, the row's own answer, and strings that a right
    answer contains.
    """

    prompt: str
    shown: str
    reference: str
    expect: tuple[str, ...] = ()


def read_question(
    row: Row, kind: Format, tokenizer: PreTrainedTokenizerBase, *, system: str | None = None
) -> Question:
    """Return what a row asks: its last question, its prompt, or the beginning of its text to go on
    with.
    """
    expect = tuple(row.get("expect") or ())
    start = beginning_of_text(tokenizer)
    if kind == "chat":
        messages = row["messages"]
        asked = messages[:-1] if messages[-1]["role"] == "assistant" and messages[1:] else messages
        reference = messages[-1]["content"] if len(asked) < len(messages) else ""
        return Question(
            render_prompt(asked, tokenizer, system), asked[-1]["content"], reference, expect
        )
    if kind == "prompt-completion":
        return Question(start + row["prompt"], row["prompt"], row["completion"], expect)
    ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
    beginning = tokenizer.decode(ids[: min(_PROMPT_TOKENS, (len(ids) + 1) // 2)])
    return Question(
        start + beginning, beginning, row["text"][len(beginning) :][:_SHOWN_CHARACTERS], expect
    )


def beginning_of_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the token that the tokenizer puts before every text of a training, if any: prompts are
    answered as rendered.
    """
    ids, bos = tokenizer("")["input_ids"], tokenizer.bos_token_id
    return str(tokenizer.bos_token) if bos is not None and ids[:1] == [bos] else ""


def fact_accuracy(asked: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    """Return the share of answers that state what is expected, under its name; nothing where
    nothing is expected.
    """
    right = [
        has_all_facts(text, question.expect)
        for question, text in zip(asked, answers, strict=False)
        if question.expect
    ]
    return {"exact-fact accuracy": sum(right) / len(right)} if right else {}


def has_all_facts(text: str, expected: Sequence[str]) -> bool:
    """Tell whether a text contains every expected string as whole words, whatever its case; "9" is
    not in "9.50" or "19".
    """
    return all(
        re.search(rf"(?<![\w.,]){re.escape(e)}(?!\w|[.,]\d)", text, re.IGNORECASE) for e in expected
    )
