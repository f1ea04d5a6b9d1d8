"""Pad examples of unequal length into one batch."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from peftkit.data.row_weights import add_weights
from peftkit.data.supervised_tokens import Example
from peftkit.errors import DataError
from peftkit.labels import IGNORED

_MULTIPLE = 8  # tensor cores work on tiles of 8 tokens


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that fills short examples.

    Raises:
        DataError: the tokenizer has none, and no end-of-sequence token in its place.
    """
    token: int | None = tokenizer.pad_token_id
    if token is None:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path} has neither a padding token nor an "
            "end-of-sequence token: name one as pad_token or eos_token in its "
            "tokenizer_config.json"
        )
    return token


@dataclasses.dataclass(frozen=True)
class PadRight:
    """Pad examples at the right, to a multiple of `multiple` tokens.

    The attention mask says what is padding. The padding token does not: it may be the
    end-of-sequence token, which is learned elsewhere in the batch.

    Shapes: ``input_ids``, ``attention_mask``, ``labels``, and ``weights`` where one is not 1:
    (batch, longest example).
    """

    pad_token_id: int
    multiple: int = _MULTIPLE

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        longest = max(map(len, examples))
        width = -(-longest // self.multiple) * self.multiple  # rounded up
        shape = (len(examples), width)
        input_ids = torch.full(shape, self.pad_token_id)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORED)
        for row, example in enumerate(examples):
            length = len(example)
            input_ids[row, :length] = torch.tensor(example.input_ids)
            attention_mask[row, :length] = 1
            labels[row, :length] = torch.tensor(example.labels)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        return add_weights(batch, examples)


def pad_with(
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, Tensor]]:
    """Return a function that pads a tokenizer's encodings at the right into one batch.

    The padded length is a multiple of 8 tokens.

    Raises:
        DataError: the tokenizer has no token for it.
    """
    padding_token(tokenizer)

    def pad(encodings: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = tokenizer.pad(
            list(encodings),
            return_tensors="pt",
            pad_to_multiple_of=_MULTIPLE,
            padding_side="right",
        )
        return dict(batch)

    return pad
