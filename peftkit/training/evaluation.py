"""The loss on held-out examples, exact whatever the batch size and the number of processes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from peftkit.training.objective import Batch, CausalLanguageModel, Objective, on_device


def evaluate(
    model: nn.Module,
    examples: Sequence[Any],
    collate: Callable[[Sequence[Any]], Batch],
    accelerator: Accelerator,
    *,
    batch_size: int = 8,
    objective: Objective | None = None,
) -> dict[str, float]:
    """Return loss per supervised item (nats) and perplexity over all examples, exact whatever the batch size.

    Memory does not grow with the number of examples. The model is left in the mode in which it came.
    """
    objective = objective or CausalLanguageModel()
    by_length = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
    batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    totals = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    training = model.training
    model.eval()
    with torch.no_grad(), accelerator.autocast():
        for numbers in batches[accelerator.process_index :: accelerator.num_processes]:
            batch = on_device(accelerator.device, collate([examples[i] for i in numbers]))
            totals += torch.stack(
                [objective.loss(model, batch).double(), torch.tensor(float(objective.count(batch))).to(totals)]
            )
    model.train(training)
    loss, count = accelerator.reduce(totals).tolist()
    return {"loss": loss / count, "perplexity": math.exp(min(loss / count, 700.0))}
