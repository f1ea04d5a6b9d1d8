"""Turn rows into token ids and labels: the tokenizer's own chat template, and the loss on the
answers alone.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from peftkit.data.dialogue_formats import Format
from peftkit.data.row_files import Row
from peftkit.errors import DataError
from peftkit.labels import IGNORED

LossOn = Literal["assistant", "all"]
Message = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Example:
    """One training example: `labels` are the ids where they are learned and -100 elsewhere; both of
    the same length.
    """

    input_ids: list[int]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def supervised(self) -> int:
        """How many tokens are learned: those with a label and a token before them."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclasses.dataclass
class Rendered:
    """The examples of a data set, and what happened on the way."""

    examples: list[Example] = dataclasses.field(default_factory=list)
    rows: int = 0
    truncated: int = 0
    dropped: int = 0
    split: int = 0

    def __iadd__(self, other: "Rendered") -> "Rendered":
        self.examples += other.examples
        for name in ("rows", "truncated", "dropped", "split"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def __str__(self) -> str:
        parts = [f"{self.rows} rows -> {len(self.examples)} examples"]
        parts += [f"{self.split} dialogues split into one example an answer"] if self.split else []
        parts += [f"{self.truncated} truncated"] if self.truncated else []
        parts += [f"{self.dropped} dropped, with no supervised token left"] if self.dropped else []
        return ", ".join(parts)


def render_rows(
    rows: Sequence[Row],
    kind: Format,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    loss_on: LossOn = "assistant",
    system: str | None = None,
    cut: Callable[[Example, int], list[Example]] | None = None,
) -> Rendered:
    """Render all rows, truncated to `max_length` tokens; rows left without a supervised token are
    dropped and counted.

    Args:
        rows: Checked rows of one format.
        kind: Their format.
        tokenizer: Its chat template renders chat rows.
        max_length: The longest example, in tokens; what is longer is cut at its end.
        loss_on: "assistant" learns the answers (and completions); "all" every token.
        system: A system message for chat rows that have none.
        cut: Makes several examples of one that is too long, instead of truncating it.

    Raises:
        DataError: more than half of the rows have no supervised token, or the tokenizer cannot
            render them.
    """
    rendered = Rendered(rows=len(rows))
    for row in rows:
        examples = _render_row(row, kind, tokenizer, loss_on, system)
        parts = [part for example in examples for part in (cut or _truncated)(example, max_length)]
        kept = [part for part in parts if part.supervised]
        rendered.examples += kept
        rendered.split += len(examples) > 1
        rendered.truncated += cut is None and any(len(example) > max_length for example in examples)
        rendered.dropped += not kept
    if rendered.dropped > len(rows) / 2:
        raise DataError(
            f"{rendered.dropped} of {len(rows)} rows have no supervised token within {max_length} tokens: "
            "raise data.max_length, or see `peftkit preview` for what is supervised"
        )
    return rendered


def _truncated(example: Example, max_length: int) -> list[Example]:
    return [Example(example.input_ids[:max_length], example.labels[:max_length])]


def render_prompt(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, system: str | None = None
) -> str:
    """Render the messages before an answer, ready for the model to write it."""
    return _template(tokenizer, with_system(messages, system), add_generation_prompt=True)


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """Put the system message before messages that begin with none."""
    first = (
        []
        if system is None or messages[0]["role"] == "system"
        else [{"role": "system", "content": system}]
    )
    return [*first, *messages]


def _render_row(
    row: Row, kind: Format, tokenizer: PreTrainedTokenizerBase, loss_on: LossOn, system: str | None
) -> list[Example]:
    if kind == "chat":
        return render_dialogue(with_system(row["messages"], system), tokenizer, loss_on)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if kind == "text":
        ids = tokenizer(row["text"])["input_ids"]
        ids = ids if ids[-1:] == end else [*ids, *end]
        return [Example(ids, list(ids))]
    prompt = tokenizer(row["prompt"])["input_ids"]
    answer = [*tokenizer(row["completion"], add_special_tokens=False)["input_ids"], *end]
    if tokenizer.eos_token_id is not None and prompt and prompt[-1] == tokenizer.eos_token_id:
        prompt = prompt[:-1]  # tokenizers of the T5 kind close every text
    learned = list(prompt) if loss_on == "all" else [IGNORED] * len(prompt)
    return [Example([*prompt, *answer], learned + answer)]


def render_dialogue(
    messages: list[Message], tokenizer: PreTrainedTokenizerBase, loss_on: LossOn = "assistant"
) -> list[Example]:
    """Render one dialogue, with labels on the assistant's turns: content and end-of-turn token.

    Where the template marks generations (``{% generation %}``), these marks are the labels.
    Otherwise each turn's place is found by rendering the messages before it, and verified: that
    text must begin the whole. Templates that rewrite earlier turns when a later one follows (those
    that drop past reasoning) fail this; then each answer becomes an example of its own, rendered as
    the model will see it.

    Raises:
        DataError: the tokenizer has no chat template or no character offsets, or the template does
            not put the prompt of an answer before the answer.
    """
    _check_tokenizer(tokenizer)
    if loss_on == "all":
        ids = tokenizer(_template(tokenizer, messages), add_special_tokens=False)["input_ids"]
        return [Example(ids, list(ids))]
    if "{% generation" in tokenizer.chat_template or "{%- generation" in tokenizer.chat_template:
        marked = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = marked["input_ids"], list(marked["assistant_masks"])
        ends = _end_ids(tokenizer)
        for place in range(
            1, len(ids)
        ):  # marks may stop before the end-of-turn token, which has to be learned too
            mask[place] = mask[place] or (
                mask[place - 1] and ids[place] in ends and ids[place - 1] not in ends
            )
        return [
            Example(ids, [i if learned else IGNORED for i, learned in zip(ids, mask, strict=True)])
        ]
    text = _template(tokenizer, messages)
    spans = [_answer_span(messages, turn, tokenizer) for turn in _answers(messages)]
    if all(text.startswith(whole) for whole, _ in spans):
        return [_label(text, [(start, len(whole)) for whole, start in spans], tokenizer)]
    return [_label(whole, [(start, len(whole))], tokenizer) for whole, start in spans]


def _answers(messages: list[Message]) -> Iterable[int]:
    return (turn for turn, message in enumerate(messages) if message["role"] == "assistant")


def _answer_span(
    messages: list[Message], turn: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[str, int]:
    """Return the dialogue's text up to the end of an answer, and the place where the answer begins
    in it.
    """
    whole = _template(tokenizer, messages[: turn + 1])
    prompt = _template(tokenizer, messages[:turn], add_generation_prompt=True) if turn else ""
    if not whole.startswith(prompt):
        raise DataError(
            f"the chat template of {tokenizer.name_or_path} does not put the prompt of turn {turn + 1} before its answer, so "
            "the answer cannot be told from the prompt; add {% generation %} marks to the template, or set data.loss_on=all"
        )
    return whole.rstrip(), len(
        prompt
    )  # the line break after an end-of-turn token is the template's, not the answer's


def _label(text: str, spans: list[tuple[int, int]], tokenizer: PreTrainedTokenizerBase) -> Example:
    """Tokenise a rendered dialogue once, and label the tokens that lie in the spans of characters."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = list(encoded["input_ids"])
    inside = [
        any(start < to and end > since for since, to in spans)
        for start, end in encoded["offset_mapping"]
    ]
    labels = [i if learned else IGNORED for i, learned in zip(ids, inside, strict=True)]
    learned_ids = [label for label in labels if label != IGNORED]
    if (
        learned_ids
        and learned_ids[-1] not in _end_ids(tokenizer)
        and tokenizer.eos_token_id is not None
    ):
        last = max(place for place, label in enumerate(labels) if label != IGNORED) + 1
        ids, labels = (
            [*ids[:last], tokenizer.eos_token_id],
            [*labels[:last], tokenizer.eos_token_id],
        )
    return Example(ids, labels)


def _end_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return {
        token for token in (tokenizer.eos_token_id, *tokenizer.all_special_ids) if token is not None
    }


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template; use a chat model, or give rows with "
            "'prompt' and 'completion'"
        )
    if not tokenizer.is_fast:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path} gives no character offsets, which the loss mask needs"
        )


def _template(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    *,
    add_generation_prompt: bool = False,
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except (
        Exception
    ) as problem:  # whatever a template raises by itself: jinja2's own errors, or Python's
        raise DataError(
            f"the chat template of {tokenizer.name_or_path} refuses a dialogue: {problem}"
        ) from problem
    assert isinstance(text, str)
    return text
