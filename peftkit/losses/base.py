"""What a loss is, and the two losses of language models.

A loss is a sum over supervised items, so that a step can be normalised by all its items at once.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftkit.labels import IGNORED
from peftkit.lean import has_chunked_loss, summed

Batch = dict[str, Tensor]


class Loss(Protocol):
    """A loss as a sum, and the number of items it sums over.

    A loss may have two more attributes: `is_language_model` (else False), which adds a perplexity
    to evaluations, and `unit` (else "examples"), which is what the items are called.
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
        """Return the number of labels that are not -100, without the first of each row.

        Nothing predicts the first token.
        """
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed cross-entropy, a scalar.

        Args:
            model: A causal language model.
            batch: ``input_ids``, ``attention_mask``, ``labels``, each (batch, tokens).
        """
        if has_chunked_loss(model):
            with summed(shift=1):
                output = model(**batch, use_cache=False)
            if output.logits is None:
                return output.loss  # type: ignore[no-any-return]
        else:
            inputs: dict[str, Any] = dict(batch)
            inputs.pop("labels")
            output = model(**inputs, use_cache=False)
        # The logits at a token are those of the next one.
        logits = output.logits[:, :-1]  # [batch, tokens - 1, vocabulary]
        targets = batch["labels"][:, 1:]  # [batch, tokens - 1]
        supervised = targets != IGNORED
        return F.cross_entropy(logits[supervised].float(), targets[supervised], reduction="sum")


class ModelLoss:
    """The loss that a transformers model computes itself from ``labels``, as a sum.

    The model returns a mean, which is multiplied by the number of supervised items.
    """

    def count(self, batch: Batch) -> int:
        """Return the number of labels that are not -100."""
        return int((batch["labels"] != IGNORED).sum())

    def sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return mean loss x items; without a supervised item, a zero that has a gradient."""
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
    moved = {}
    for name, value in batch.items():
        moved[name] = value.to(device) if isinstance(value, Tensor) else value
    return moved
