"""Tokenise pairs of texts."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, text: str, other: str, *, max_length: int
) -> Mapping[str, Any]:
    """Return the encoding of two texts.

    Some tokenizers put no special token between the texts of a pair; for them a line break
    separates the two.
    """
    alone = tokenizer.num_special_tokens_to_add(pair=False)
    has_separator = tokenizer.num_special_tokens_to_add(pair=True) > alone
    texts = (text, other) if has_separator else (f"{text}\n{other}",)
    encoding: Mapping[str, Any] = tokenizer(*texts, truncation=True, max_length=max_length)
    return encoding
