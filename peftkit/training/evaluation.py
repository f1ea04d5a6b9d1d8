"""The loss on held-out examples, exact whatever the batch size and the number of processes."""

import math
from collections.abc import Callable, Sequence, Sized
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from peftkit.errors import DataError
from peftkit.losses.base import Batch, CausalLMLoss, Loss, on_device


def evaluate(
    model: nn.Module,
    examples: Sequence[Sized],
    collate: Callable[[Sequence[Any]], Batch],
    accelerator: Accelerator,
    *,
    batch_size: int = 8,
    loss: Loss | None = None,
) -> dict[str, float]:
    """Return the loss per supervised item (nats) over all examples, exact whatever the batch size;
    of a language model, the perplexity too.

    Memory does not grow with the number of examples. The model is left in the mode in which it
    came.
    """
    loss = loss or CausalLMLoss()
    by_length = sorted(
        range(len(examples)), key=lambda i: -len(examples[i])
    )  # what does not fit shows at once
    batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    totals = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for numbers in batches[accelerator.process_index :: accelerator.num_processes]:
                batch = on_device(accelerator.device, collate([examples[i] for i in numbers]))
                count = torch.tensor(float(loss.count(batch))).to(totals)
                with accelerator.autocast():
                    summed = loss.sum(model, batch)
                totals += torch.stack([summed.double(), count])
    finally:
        model.train(training)
    total, items = accelerator.reduce(totals).tolist()
    if not items:
        raise DataError("there is nothing to evaluate: no item of these rows has a label")
    metrics = {"loss": total / items}
    if getattr(loss, "is_language_model", False):
        metrics["perplexity"] = math.exp(min(total / items, 700.0))
    return metrics
