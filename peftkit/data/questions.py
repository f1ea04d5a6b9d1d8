"""The questions that held-out rows ask, for trying a model out on them."""

import dataclasses
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from peftkit.data.formats import Format, Row
from peftkit.data.rendering import prompt_text


@dataclasses.dataclass(frozen=True)
class Question:
    """A rendered prompt, the words in it to show, the row's own answer, and strings that a right answer contains."""

    prompt: str
    shown: str
    reference: str
    expect: tuple[str, ...] = ()


def questions(
    rows: Sequence[Row], kind: Format, tokenizer: PreTrainedTokenizerBase, *, system: str | None = None, count: int = 12
) -> list[Question]:
    """Return the questions of all rows with an ``expect`` list; where no row has one, those of the first `count` rows.

    Text rows ask nothing.
    """
    checked = [row for row in rows if row.get("expect")]
    chosen = checked or rows[:count]
    if kind == "prompt-completion":
        adds_bos = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        start = tokenizer.bos_token if adds_bos else ""  # prompts are answered as rendered, and training begins so
        return [
            Question(start + r["prompt"], r["prompt"], r["completion"], tuple(r.get("expect") or ())) for r in chosen
        ]
    dialogues = [
        row for row in chosen if kind == "chat" and row["messages"][-1]["role"] == "assistant" and row["messages"][1:]
    ]
    return [
        Question(
            prompt_text(row["messages"][:-1], tokenizer, system),
            row["messages"][-2]["content"],
            row["messages"][-1]["content"],
            tuple(row.get("expect") or ()),
        )
        for row in dialogues
    ]


def fact_accuracy(asked: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    """Return the share of answers that state what is expected, under its name; nothing where nothing is expected."""
    right = [states(text, question.expect) for question, text in zip(asked, answers, strict=False) if question.expect]
    return {"exact-fact accuracy": sum(right) / len(right)} if right else {}


def states(text: str, expected: Sequence[str]) -> bool:
    """Tell whether a text contains every expected string as whole words, whatever its case; "9" is not in "9.50" or "19"."""
    return all(re.search(rf"(?<![\w.,]){re.escape(e)}(?!\w|[.,]\d)", text, re.IGNORECASE) for e in expected)
