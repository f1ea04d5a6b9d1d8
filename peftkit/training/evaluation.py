"""The loss on held-out examples, exact whatever the batch size and the number of processes."""

import math
from collections.abc import Callable, Sequence, Sized
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from peftkit.data.examples import lengths_of
from peftkit.errors import DataError
from peftkit.losses.base import Batch, CausalLMLoss, Loss, on_device
from peftkit.modes import evaluation_mode


def evaluate(
    model: nn.Module,
    examples: Sequence[Sized],
    collate: Callable[[Sequence[Any]], Batch],
    accelerator: Accelerator,
    *,
    batch_size: int = 8,
    loss: Loss | None = None,
) -> dict[str, float]:
    """Return the loss per supervised item (nats), and the perplexity if it is a language model's.

    Memory does not grow with the number of examples. Each module is left in the mode in which it
    came.

    Args:
        model: The model.
        examples: Held-out examples; ``len`` of one is its length.
        collate: Makes a batch of tensors from a list of examples.
        accelerator: Its processes share the examples.
        batch_size: Examples in one forward pass.
        loss: None is the cross-entropy of each supervised token.

    Raises:
        DataError: no item of the examples is supervised.
    """
    loss = loss or CausalLMLoss()
    # The longest come first: what does not fit in memory shows at once.
    by_length = np.argsort(-lengths_of(examples), kind="stable").tolist()
    batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    totals = torch.zeros(2, dtype=torch.float64, device=accelerator.device)  # [loss, items]
    with evaluation_mode(model), torch.no_grad():
        for numbers in batches[accelerator.process_index :: accelerator.num_processes]:
            batch = collate([examples[number] for number in numbers])
            batch = on_device(accelerator.device, batch)
            count = torch.tensor(float(loss.count(batch))).to(totals)
            with accelerator.autocast():
                summed = loss.sum(model, batch)
            totals += torch.stack([summed.double(), count])
    total, items = accelerator.reduce(totals).tolist()
    if not items:
        raise DataError("there is nothing to evaluate: no item of these rows has a label")
    metrics = {"loss": total / items}
    if getattr(loss, "is_language_model", False):
        metrics["perplexity"] = math.exp(min(total / items, 700.0))
    return metrics
