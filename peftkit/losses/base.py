"""What is minimised: a sum over supervised items, so that a step can be normalised by all of its
items at once.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftkit.labels import IGNORED
from peftkit.lean import has_chunked_loss, summed

Batch = dict[str, Tensor]


class Loss(Protocol):
    """A loss as a sum, and how many items it sums over.

    Two attributes may stand beside the methods: `is_language_model` (False), which adds a
    perplexity to evaluations, and `unit` ("examples"), what the items are called.
    """

    def count(self, batch: Batch) -> int:
        """Return the number of supervised items of a batch."""

    def sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum of the losses of the supervised items, a scalar."""


class CausalLMLoss:
    """Cross-entropy of each supervised token given those before it, in nats, summed.

    Only supervised positions are cast to float32: the softmax over the vocabulary is not computed
    for the others.
    """

    is_language_model = True
    unit = "tokens"

    def count(self, batch: Batch) -> int:
        """Return the number of labels that are not -100, except the first of each row, which
        nothing predicts.
        """
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed cross-entropy. `batch`: ``input_ids``, ``attention_mask``, ``labels``,
        each (batch, tokens).
        """
        if has_chunked_loss(model):
            with summed(shift=1):
                output = model(**batch, use_cache=False)
            if output.logits is None:
                return output.loss  # type: ignore[no-any-return]
        else:
            inputs: dict[str, Any] = {
                name: value for name, value in batch.items() if name != "labels"
            }
            output = model(**inputs, use_cache=False)
        logits, targets = output.logits[:, :-1], batch["labels"][:, 1:]
        supervised = targets != IGNORED
        return F.cross_entropy(logits[supervised].float(), targets[supervised], reduction="sum")


class ModelLoss:
    """The loss that a transformers model computes itself from ``labels``, as a sum: its mean, times
    the supervised items.
    """

    def count(self, batch: Batch) -> int:
        """Return the number of labels that are not -100."""
        return int((batch["labels"] != IGNORED).sum())

    def sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return mean loss x items; a batch without a supervised item gives a zero that has a
        gradient.
        """
        with summed():
            output = model(**batch)
        loss: Tensor
        if output.logits is None:
            loss = output.loss
        elif self.count(batch) == 0:
            loss = torch.nan_to_num(output.logits).sum() * 0.0
        else:
            loss = output.loss.float() * self.count(batch)
        return loss


def on_device(device: torch.device, batch: Batch) -> Batch:
    """Return the batch with its tensors on a device."""
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
