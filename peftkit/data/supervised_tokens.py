"""Which tokens of a row are learned: rows become token ids, with labels on the answers alone.

Dialogues are rendered by the tokenizer's own chat template.
"""

import dataclasses
from collections.abc import Callable, Sequence
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
    """One training example.

    A token that is learned has its own id as its label; every other label is -100. `input_ids` and
    `labels` are of the same length.
    """

    input_ids: list[int]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def supervised(self) -> int:
        """The number of learned tokens. The first token never counts: nothing predicts it."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclasses.dataclass
class Rendered:
    """The examples made from some rows, and counts of what happened to the rows."""

    examples: list[Example] = dataclasses.field(default_factory=list)
    rows: int = 0
    truncated: int = 0
    dropped: int = 0
    split: int = 0

    def __iadd__(self, other: "Rendered") -> "Rendered":
        self.examples += other.examples
        self.rows += other.rows
        self.truncated += other.truncated
        self.dropped += other.dropped
        self.split += other.split
        return self

    def __str__(self) -> str:
        parts = [f"{self.rows} rows -> {len(self.examples)} examples"]
        if self.split:
            parts.append(f"{self.split} dialogues split into one example per answer")
        if self.truncated:
            parts.append(f"{self.truncated} truncated")
        if self.dropped:
            parts.append(f"{self.dropped} dropped, with no supervised token left")
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
    """Turn rows into examples of at most `max_length` tokens.

    Rows with no supervised token left are dropped, and counted.

    Args:
        rows: Checked rows of one format.
        kind: Their format.
        tokenizer: Its chat template renders chat rows.
        max_length: The length of the longest example, in tokens.
        loss_on: "assistant" learns answers and completions; "all" learns every token.
        system: A system message for chat rows that have none.
        cut: Makes several examples of one that is too long. Without it, the end is cut off.

    Raises:
        DataError: more than half of the rows have no supervised token, or the tokenizer cannot
            render them.
    """
    rendered = Rendered(rows=len(rows))
    for row in rows:
        examples = _render_row(row, kind, tokenizer, loss_on, system)
        parts: list[Example] = []
        for example in examples:
            if cut is not None:
                parts += cut(example, max_length)
            else:
                parts.append(_truncate(example, max_length))
        kept = [part for part in parts if part.supervised]
        rendered.examples += kept
        if len(examples) > 1:
            rendered.split += 1
        if cut is None and any(len(example) > max_length for example in examples):
            rendered.truncated += 1
        if not kept:
            rendered.dropped += 1
    if rendered.dropped > len(rows) / 2:
        raise DataError(
            f"{rendered.dropped} of {len(rows)} rows have no supervised token within {max_length} "
            "tokens: raise data.max_length, or see `peftkit preview` for what is supervised"
        )
    return rendered


def _truncate(example: Example, max_length: int) -> Example:
    return Example(example.input_ids[:max_length], example.labels[:max_length])


def _render_row(
    row: Row, kind: Format, tokenizer: PreTrainedTokenizerBase, loss_on: LossOn, system: str | None
) -> list[Example]:
    if kind == "chat":
        return render_dialogue(_with_system(row["messages"], system), tokenizer, loss_on)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if kind == "text":
        ids = tokenizer(row["text"])["input_ids"]
        if ids[-1:] != end:
            ids = [*ids, *end]
        return [Example(ids, list(ids))]
    prompt = tokenizer(row["prompt"])["input_ids"]
    if end and prompt[-1:] == end:  # T5's tokenizers, among others, close every text
        prompt = prompt[:-1]
    answer = [*tokenizer(row["completion"], add_special_tokens=False)["input_ids"], *end]
    prompt_labels = list(prompt) if loss_on == "all" else [IGNORED] * len(prompt)
    return [Example([*prompt, *answer], [*prompt_labels, *answer])]


def render_prompt(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, system: str | None = None
) -> str:
    """Render a dialogue up to where the model's answer begins."""
    return _apply_template(tokenizer, _with_system(messages, system), add_generation_prompt=True)


def _with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """Put the system message first, unless there is one already."""
    if system is None or messages[0]["role"] == "system":
        return list(messages)
    return [{"role": "system", "content": system}, *messages]


def render_dialogue(
    messages: list[Message], tokenizer: PreTrainedTokenizerBase, loss_on: LossOn = "assistant"
) -> list[Example]:
    """Render one dialogue, with labels on the assistant's answers and their end-of-turn tokens.

    If the template marks what the model generates (``{% generation %}``), the marks are used.
    Otherwise the place of each answer is found by rendering the messages before it, and verified:
    the dialogue up to the answer's end must begin the whole dialogue.

    Some templates rewrite earlier turns when a later one follows, for example to drop past
    reasoning. Then the check fails, and each answer becomes an example of its own, rendered as the
    model will see it.

    Raises:
        DataError: the tokenizer has no chat template or returns no character offsets, or the
            template does not put an answer's prompt before the answer.
    """
    _check_tokenizer(tokenizer)
    if loss_on == "all":
        text = _apply_template(tokenizer, messages)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return [Example(ids, list(ids))]
    if _has_generation_marks(tokenizer):
        return [_label_marked(messages, tokenizer)]

    text = _apply_template(tokenizer, messages)
    answers = []
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            answers.append(_find_answer(messages, turn, tokenizer))
    if all(text.startswith(whole) for whole, _ in answers):
        spans = [(start, len(whole)) for whole, start in answers]
        return [_label_spans(text, spans, tokenizer)]
    return [_label_spans(whole, [(start, len(whole))], tokenizer) for whole, start in answers]


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template; use a chat model, or "
            "give rows with 'prompt' and 'completion'"
        )
    if not tokenizer.is_fast:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path} returns no character offsets, which the "
            "loss mask needs"
        )


def _has_generation_marks(tokenizer: PreTrainedTokenizerBase) -> bool:
    template = tokenizer.chat_template
    return "{% generation" in template or "{%- generation" in template


def _label_marked(messages: list[Message], tokenizer: PreTrainedTokenizerBase) -> Example:
    """Label the tokens that the template marks as generated."""
    marked = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    ids = marked["input_ids"]
    is_learned = list(marked["assistant_masks"])
    # Marks may stop before the end-of-turn token, but the model has to learn to stop.
    ends = _end_ids(tokenizer)
    for place in range(1, len(ids)):
        is_first_end = ids[place] in ends and ids[place - 1] not in ends
        if is_first_end and is_learned[place - 1]:
            is_learned[place] = True
    labels = []
    for token, learned in zip(ids, is_learned, strict=True):
        labels.append(token if learned else IGNORED)
    return Example(ids, labels)


def _find_answer(
    messages: list[Message], turn: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[str, int]:
    """Return the dialogue's text up to the end of an answer, and where the answer begins in it."""
    whole = _apply_template(tokenizer, messages[: turn + 1])
    prompt = ""
    if turn:
        prompt = _apply_template(tokenizer, messages[:turn], add_generation_prompt=True)
    if not whole.startswith(prompt):
        raise DataError(
            f"the chat template of {tokenizer.name_or_path} does not put the prompt of turn "
            f"{turn + 1} before its answer, so the two cannot be told apart; add "
            "{% generation %} marks to the template, or set data.loss_on=all"
        )
    # The line break after an end-of-turn token belongs to the template, not to the answer.
    return whole.rstrip(), len(prompt)


def _label_spans(
    text: str, spans: list[tuple[int, int]], tokenizer: PreTrainedTokenizerBase
) -> Example:
    """Tokenise a rendered dialogue, and label the tokens that lie in spans of characters."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = list(encoded["input_ids"])
    labels = []
    for token, offsets in zip(ids, encoded["offset_mapping"], strict=True):
        labels.append(token if _overlaps(offsets, spans) else IGNORED)
    return _with_end(Example(ids, labels), tokenizer)


def _overlaps(offsets: tuple[int, int], spans: list[tuple[int, int]]) -> bool:
    """Return whether a token has a character in one of the spans."""
    start, end = offsets
    return any(start < span_end and end > span_start for span_start, span_end in spans)


def _with_end(example: Example, tokenizer: PreTrainedTokenizerBase) -> Example:
    """End the last answer with the end-of-sequence token, if its template has no end of turn."""
    learned = [place for place, label in enumerate(example.labels) if label != IGNORED]
    end = tokenizer.eos_token_id
    if not learned or end is None or example.labels[learned[-1]] in _end_ids(tokenizer):
        return example
    length = learned[-1] + 1
    return Example([*example.input_ids[:length], end], [*example.labels[:length], end])


def _end_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the special tokens, any of which may end a turn."""
    ids = {tokenizer.eos_token_id, *tokenizer.all_special_ids}
    ids.discard(None)
    return ids


def _apply_template(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    *,
    add_generation_prompt: bool = False,
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as problem:  # a template may raise anything: Jinja2's errors, or Python's
        raise DataError(
            f"the chat template of {tokenizer.name_or_path} refuses a dialogue: {problem}"
        ) from problem
    assert isinstance(text, str)
    return text
