"""Put examples of unequal length into one batch."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from peftkit.data.supervised_tokens import Example
from peftkit.labels import IGNORED


@dataclasses.dataclass(frozen=True)
class PadRight:
    """Pad a batch at the right, to a multiple of `multiple` tokens.

    The attention mask tells what is padding, never the padding token, which may be the
    end-of-sequence token.

    Shapes: ``input_ids``, ``attention_mask``, ``labels``: (batch, longest example).
    """

    pad_token_id: int
    multiple: int = 8

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        longest = max(len(example.input_ids) for example in examples)
        width = -(-longest // self.multiple) * self.multiple

        def padded(values: list[int], filler: int) -> list[int]:
            return values + [filler] * (width - len(values))

        return {
            "input_ids": torch.tensor(
                [padded(example.input_ids, self.pad_token_id) for example in examples]
            ),
            "attention_mask": torch.tensor(
                [padded([1] * len(example.input_ids), 0) for example in examples]
            ),
            "labels": torch.tensor([padded(example.labels, IGNORED) for example in examples]),
        }


def pad_with(
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, Tensor]]:
    """Return a function that pads a tokenizer's encodings at the right, to a multiple of 8 tokens,
    into one batch.
    """

    def pad(encodings: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = tokenizer.pad(
            list(encodings), return_tensors="pt", pad_to_multiple_of=8, padding_side="right"
        )
        return dict(batch)

    return pad
