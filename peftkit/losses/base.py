"""What a loss is, and the two losses of language models.

A loss is a sum over supervised items, so that a step can be normalised by all its items at once.
With weights w of the items, a step minimises

    sum of w l / sum of w

over all its items. A batch has ``weights``, of the labels' shape, only where one is not 1.
"""

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftkit.errors import ConfigError
from peftkit.labels import IGNORED
from peftkit.lean import has_chunked_loss, summed

Batch = dict[str, Tensor]
WEIGHTS = "weights"
"""What a batch calls the weights of its items."""

_SAME_LOSS = 1e-2  # how far 16 bits may take a model's mean loss from ours, as a share of it


class Loss(Protocol):
    """A loss as a sum over items, and the number of items: the sum of their weights.

    A loss may have two more attributes: `is_language_model` (else False), which adds a perplexity
    to evaluations, and `unit` (else "examples"), which is what the items are called.
    """

    def count(self, batch: Batch) -> float:
        """Return the number of supervised items of a batch, or the sum of their weights."""

    def sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum of the losses of the supervised items, each times its weight, a scalar."""


class CausalLMLoss:
    """Cross-entropy of each supervised token given those before it, in nats, summed.

    Only supervised positions are cast to float32: the softmax over the vocabulary is not computed
    for the others.
    """

    is_language_model = True
    unit = "tokens"

    def count(self, batch: Batch) -> float:
        """Return the number of labels that are not -100, without the first of each row.

        Nothing predicts the first token. With weights, it is the sum of those labels' weights.
        """
        weights = batch.get(WEIGHTS)
        without_first = None if weights is None else weights[:, 1:]
        return total_weight(batch["labels"][:, 1:] != IGNORED, without_first)

    def sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed cross-entropy, a scalar.

        Args:
            model: A causal language model.
            batch: ``input_ids``, ``attention_mask``, ``labels`` and perhaps ``weights``, each
                (batch, tokens).
        """
        inputs: dict[str, Any] = dict(batch)
        weights = inputs.pop(WEIGHTS, None)
        if has_chunked_loss(model):
            with summed(shift=1, weights=weights):
                output = model(**inputs, use_cache=False)
            if output.logits is None:
                return output.loss  # type: ignore[no-any-return]
        else:
            inputs.pop("labels")
            output = model(**inputs, use_cache=False)
        # The logits at a token are those of the next one.
        logits = output.logits[:, :-1]  # [batch, tokens - 1, vocabulary]
        targets = batch["labels"][:, 1:]  # [batch, tokens - 1]
        return _summed_cross_entropy(logits, targets, None if weights is None else weights[:, 1:])


class ModelLoss:
    """The loss that a transformers model computes itself from ``labels``, as a sum.

    The model returns a mean, which is multiplied by the number of supervised items. With weights,
    it is computed from the model's logits, if it is their cross-entropy.
    """

    def count(self, batch: Batch) -> float:
        """Return the number of labels that are not -100, or the sum of their weights."""
        return total_weight(batch["labels"] != IGNORED, batch.get(WEIGHTS))

    def sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return mean loss x items; without a supervised item, a zero that has a gradient.

        Raises:
            ConfigError: the batch has weights, and the model's loss is no cross-entropy of a logit
                for each label.
        """
        inputs = dict(batch)
        weights = inputs.pop(WEIGHTS, None)
        with summed(weights=weights):
            output = model(**inputs)
        loss: Tensor
        if output.logits is None:
            loss = output.loss
        elif self.count(batch) == 0:
            loss = torch.nan_to_num(output.logits).sum() * 0.0
        elif weights is None:
            loss = output.loss.float() * self.count(batch)
        else:
            loss = _weighted_loss(output, batch["labels"], weights)
        return loss


def total_weight(supervised: Tensor, weights: Tensor | None) -> float:
    """Return the number of supervised items; with weights, the sum of theirs.

    Args:
        supervised: Which items are, booleans.
        weights: Of the same shape, or None where each is 1.
    """
    if weights is None:
        return int(supervised.sum())
    return float(weights[supervised].sum(dtype=torch.float64))


def weighted_sum(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Return the sum of the losses of items, each times its weight, a scalar.

    Args:
        losses: (items,).
        weights: (items,), or None where each is 1.
    """
    return losses.sum() if weights is None else (losses * weights.to(losses)).sum()


def _summed_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Return the summed cross-entropy of the targets that are not -100.

    Args:
        logits: (batch, tokens, vocabulary).
        targets: (batch, tokens).
        weights: (batch, tokens), or None.
    """
    supervised = targets != IGNORED
    found, wanted = logits[supervised].float(), targets[supervised]
    if weights is None:
        return F.cross_entropy(found, wanted, reduction="sum")
    return weighted_sum(F.cross_entropy(found, wanted, reduction="none"), weights[supervised])


def _weighted_loss(output: Any, labels: Tensor, weights: Tensor) -> Tensor:
    """Return a model's loss, with weights, from its output for ``labels``."""
    items = int((labels != IGNORED).sum())
    if output.logits.shape[:-1] == labels.shape:
        plain = float(_summed_cross_entropy(output.logits.detach(), labels, None)) / items
        if math.isclose(plain, float(output.loss.detach()), rel_tol=_SAME_LOSS):
            return _summed_cross_entropy(output.logits, labels, weights)
    raise ConfigError(
        "rows cannot have weights with this model: its loss is not the cross-entropy of one logit "
        "for each label; leave the column 'weight' out"
    )


def on_device(device: torch.device, batch: Batch) -> Batch:
    """Return the batch with its tensors on a device."""
    moved = {}
    for name, value in batch.items():
        moved[name] = value.to(device) if isinstance(value, Tensor) else value
    return moved
