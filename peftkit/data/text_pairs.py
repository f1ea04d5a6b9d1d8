"""Tokenise pairs of texts."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, text: str, other: str, *, max_length: int
) -> Mapping[str, Any]:
    """Return the encoding of a pair of texts; with a line break between them, where the tokenizer
    puts nothing there.
    """
    separates = tokenizer.num_special_tokens_to_add(
        pair=True
    ) > tokenizer.num_special_tokens_to_add(pair=False)
    texts = (text, other) if separates else (f"{text}\n{other}",)
    encoding: Mapping[str, Any] = tokenizer(*texts, truncation=True, max_length=max_length)
    return encoding
