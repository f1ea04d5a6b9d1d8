"""Tokenise texts and pairs of texts, many at a time, and count those that are cut."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

CUT = "cut"
"""What the counts call texts that were longer than an example."""


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    counts: Counter[str],
    *,
    max_length: int,
) -> list[dict[str, Any]]:
    """Return the encoding of each text.

    Args:
        tokenizer: Any tokenizer.
        texts: One text for each row.
        counts: Takes the number of texts that were cut.
        max_length: Longest encoding, in tokens.
    """
    return _encode(tokenizer, {"text": list(texts)}, counts, max_length)


def encode_targets(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    counts: Counter[str],
    *,
    max_length: int,
) -> list[list[int]]:
    """Return the tokens of each text that a model is to write; the arguments are as above."""
    encodings = _encode(tokenizer, {"text_target": list(texts)}, counts, max_length)
    return [encoding["input_ids"] for encoding in encodings]


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    others: Sequence[str],
    counts: Counter[str],
    *,
    max_length: int,
) -> list[dict[str, Any]]:
    """Return the encoding of each pair of texts; of a long pair, the longer text is cut.

    Some tokenizers put no special token between the texts of a pair; for them a line break
    separates the two.
    """
    alone = tokenizer.num_special_tokens_to_add(pair=False)
    has_separator = tokenizer.num_special_tokens_to_add(pair=True) > alone
    if has_separator:
        inputs = {"text": list(texts), "text_pair": list(others)}
        return _encode(tokenizer, inputs, counts, max_length)
    joined = [f"{text}\n{other}" for text, other in zip(texts, others, strict=True)]
    return encode_texts(tokenizer, joined, counts, max_length=max_length)


def cut(ids: Sequence[list[int]], counts: Counter[str], *, max_length: int) -> list[list[int]]:
    """Return the first `max_length` tokens of each text."""
    counts[CUT] += sum(len(each) > max_length for each in ids)
    return [each[:max_length] for each in ids]


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    inputs: Mapping[str, Sequence[str]],
    counts: Counter[str],
    max_length: int,
) -> list[dict[str, Any]]:
    """Return what a tokenizer makes of each entry of its arguments.

    Long entries are read again by themselves. Of a pair, tokenizers make all the combinations of
    parts that they cut off: for a whole batch at once, that takes gigabytes.
    """
    found = tokenizer(**inputs, verbose=False)
    encodings = []
    for number, values in enumerate(zip(*found.values(), strict=True)):
        encoding = dict(zip(found, values, strict=True))
        if len(encoding["input_ids"]) > max_length:
            entry = {name: texts[number] for name, texts in inputs.items()}
            encoding = dict(tokenizer(**entry, truncation=True, max_length=max_length))
            counts[CUT] += 1
        encodings.append(encoding)
    return encodings
