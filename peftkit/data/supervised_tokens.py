"""Which tokens of a row are learned: rows become token ids, with labels on the answers alone.

Dialogues are rendered by the tokenizer's own chat template.
"""

import bisect
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from peftkit.data.chat_templates import Span, chat_template_of, read_dialogue
from peftkit.data.learned_texts import Learned, check_dialogue, find_answers
from peftkit.data.message_formats import Message
from peftkit.data.row_formats import Format, LossOn
from peftkit.data.rows import Row
from peftkit.errors import DataError
from peftkit.labels import IGNORED

Cut = Callable[["Example", int], "list[Example]"]


@dataclasses.dataclass(frozen=True)
class Example:
    """One training example.

    A token that is learned has its own id as its label; every other label is -100. `input_ids` and
    `labels` are of the same length. `weight` is that of each of its tokens in the loss.
    """

    input_ids: list[int]
    labels: list[int]
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def supervised(self) -> int:
        """The number of learned tokens. The first token never counts: nothing predicts it."""
        return len(self.labels) - 1 - self.labels[1:].count(IGNORED) if self.labels else 0


def render_batch(
    rows: Sequence[Row],
    kind: Format,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    loss_on: LossOn = "assistant",
    system: str | None = None,
    cut: Cut | None = None,
    counts: Counter[str],
) -> list[list[Example]]:
    """Turn rows into examples of at most `max_length` tokens.

    Args:
        rows: Checked rows of one format.
        kind: Their format.
        tokenizer: Its chat template renders chat rows.
        max_length: The length of the longest example, in tokens.
        loss_on: "assistant" learns answers and completions; "all" learns every token.
        system: A system message for chat rows that have none.
        cut: Makes several examples of one that is too long. Without it, the end is cut off.
        counts: What happened to the rows is added here; `peftkit.data.rendering_counts` says what.

    Returns:
        The examples of each row. A row with no learned token left has none.

    Raises:
        DataError: a row cannot be rendered. The message does not say which.
    """
    if kind == "chat":
        encoded = _encode_dialogues(rows, tokenizer, loss_on, system, counts)
    elif kind == "text":
        encoded = _encode_texts(rows, tokenizer)
    else:
        encoded = _encode_completions(rows, tokenizer, loss_on, counts)
    return [_fit(examples, max_length, cut, counts) for examples in encoded]


def _fit(
    examples: list[Example], max_length: int, cut: Cut | None, counts: Counter[str]
) -> list[Example]:
    """Return the examples of one row, none of them too long, and each with a learned token."""
    counts["rows"] += 1
    parts: list[Example] = []
    for example in examples:
        if cut is not None:
            parts += cut(example, max_length)
        else:
            parts.append(Example(example.input_ids[:max_length], example.labels[:max_length]))
    kept = [part for part in parts if part.supervised]
    if cut is None and any(len(example) > max_length for example in examples):
        counts["truncated"] += 1
        counts["answers_cut"] += any(_cuts_answer(example, max_length) for example in examples)
    counts["dropped"] += not kept
    counts["examples"] += len(kept)
    return kept


def _cuts_answer(example: Example, length: int) -> bool:
    """Return whether an answer goes on where an example is cut."""
    around = example.labels[length - 1 : length + 1]
    return len(around) == 2 and IGNORED not in around


def _encode_texts(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[list[Example]]:
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    encoded = []
    for ids in _tokenize([row["text"] for row in rows], tokenizer)["input_ids"]:
        if ids[-1:] != end:
            ids = [*ids, *end]
        encoded.append([Example(ids, list(ids))])
    return encoded


def _encode_completions(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    loss_on: LossOn,
    counts: Counter[str],
) -> list[list[Example]]:
    end = _end_token(tokenizer)
    prompts = _tokenize([row["prompt"] for row in rows], tokenizer)["input_ids"]
    completions = _tokenize(
        [row["completion"] for row in rows], tokenizer, add_special_tokens=False
    )["input_ids"]
    encoded: list[list[Example]] = []
    for row, prompt, completion in zip(rows, prompts, completions, strict=True):
        if not row["completion"].strip():  # there is nothing to learn but the end
            counts["empty_answers"] += 1
            encoded.append([])
            continue
        if prompt[-1:] == [end]:  # T5's tokenizers, among others, close every text
            prompt = prompt[:-1]
        answer = [*completion, end]
        prompt_labels = list(prompt) if loss_on == "all" else [IGNORED] * len(prompt)
        encoded.append([Example([*prompt, *answer], [*prompt_labels, *answer])])
    return encoded


def _encode_dialogues(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    loss_on: LossOn,
    system: str | None,
    counts: Counter[str],
) -> list[list[Example]]:
    if not tokenizer.is_fast:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path} returns no character offsets, which the "
            "loss mask needs"
        )
    rendered = [_render(row, tokenizer, loss_on, system, counts) for row in rows]
    texts = list(itertools.chain.from_iterable(rendered))
    examples = iter(_label(texts, tokenizer, closes=loss_on == "assistant"))
    encoded = []
    for learned in rendered:
        own = list(itertools.islice(examples, len(learned)))
        if len(own) > 1:
            counts["split"] += 1
            counts["split_examples"] += len(own)
            counts["split_tokens"] += sum(map(len, own))
            counts["unsplit_tokens"] += max(map(len, own))
        encoded.append(own)
    return encoded


def _render(
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    loss_on: LossOn,
    system: str | None,
    counts: Counter[str],
) -> list[Learned]:
    """Return the rendered texts of a chat row, and what is learned of them."""
    dialogue, may_learn = read_dialogue(row, system)
    template = chat_template_of(tokenizer, dialogue)
    for option in dialogue.options:
        counts["options_not_read"] += not template.reads(option)
    dialogue = check_dialogue(template, dialogue)
    if loss_on == "all":
        if _skips_answers(row):
            raise DataError(
                "an answer has 'train': false, which data.loss_on=all would learn: leave "
                "data.loss_on out"
            )
        text = template.render(dialogue)
        return [Learned(text, [(0, len(text))])]
    turns = []
    for turn, message in enumerate(dialogue.messages):
        if may_learn[turn]:
            if _says_something(message):
                turns.append(turn)
            else:
                counts["empty_answers"] += 1
    texts = find_answers(template, dialogue, turns)
    counts["other_prompts"] += any(text.differs for text in texts)
    return texts


def _skips_answers(row: Row) -> bool:
    """Return whether a chat row has an answer that is read, and not learned."""
    return any(message.get("train") is False for message in row["messages"])


def _says_something(answer: Message) -> bool:
    """Return whether there is more to learn of an answer than the end of its turn."""
    texts = (answer["content"], answer.get("reasoning_content") or "")
    return bool(answer.get("tool_calls")) or any(text.strip() for text in texts)


def _label(
    texts: Sequence[Learned], tokenizer: PreTrainedTokenizerBase, *, closes: bool
) -> list[Example]:
    """Tokenise rendered texts, and label the tokens with a learned character.

    With `closes`, the last answer ends with an end token, whatever its template says.
    """
    if not texts:
        return []
    encoded = _tokenize(
        [learned.text for learned in texts],
        tokenizer,
        add_special_tokens=False,
        return_offsets_mapping=True,
    )
    ends = {tokenizer.eos_token_id, *tokenizer.all_special_ids}
    examples = []
    for learned, ids, offsets in zip(
        texts, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        example = Example(ids, _labels(ids, offsets, learned.spans))
        examples.append(_with_end(example, ends, tokenizer) if closes else example)
    return examples


def _labels(ids: list[int], offsets: list[Span], spans: Sequence[Span]) -> list[int]:
    """Return the ids of the tokens that have a character in one of the spans, and -100 elsewhere.

    Tokens, and their offsets, are in the order of the text.
    """
    labels = [IGNORED] * len(ids)
    starts, ends = zip(*offsets, strict=True) if offsets else ((), ())
    for start, end in spans:
        first = bisect.bisect_right(ends, start)
        last = bisect.bisect_left(starts, end)
        labels[first:last] = ids[first:last]
    return labels


def _with_end(example: Example, ends: set[int], tokenizer: PreTrainedTokenizerBase) -> Example:
    """End the last answer with the end-of-sequence token, if its template has no end of turn."""
    length = len(example)
    while length and example.labels[length - 1] == IGNORED:
        length -= 1
    if not length or example.labels[length - 1] in ends:
        return example
    end = _end_token(tokenizer)
    return Example([*example.input_ids[:length], end], [*example.labels[:length], end])


def _end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    end: int | None = tokenizer.eos_token_id
    if end is None:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path} has no end-of-sequence token, so a model "
            "could not learn to stop: name one as eos_token in its tokenizer_config.json"
        )
    return end


def _tokenize(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, **options: Any
) -> dict[str, list[Any]]:
    """Tokenise texts in one call."""
    try:
        encoded: dict[str, list[Any]] = tokenizer(
            texts,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **options,
        )
    except (TypeError, UnicodeError):  # what is raised depends on the tokenizer
        for text in texts:
            _check_characters(text)
        raise
    return encoded


def _check_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise DataError(
            f"a text has half of a surrogate pair ({text[problem.start]!r}), which is no "
            "character: repair the row"
        ) from problem


def render_prompt(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    system: str | None = None,
    *,
    tools: list[dict[str, Any]] | None = None,
    options: dict[str, Any] | None = None,
) -> str:
    """Render a dialogue up to where the model's answer begins.

    Args:
        messages: The dialogue.
        tokenizer: Its chat template renders it.
        system: A system message, if the dialogue has none.
        tools: The tools that the model may call.
        options: More variables of the template, such as ``enable_thinking``.

    Raises:
        DataError: the tokenizer has no chat template, or it does not render the dialogue.
    """
    row = {"messages": messages, "tools": tools, "chat_template_kwargs": options}
    dialogue, _ = read_dialogue(row, system)
    template = chat_template_of(tokenizer, dialogue)
    return template.render(check_dialogue(template, dialogue), prompt=True)
