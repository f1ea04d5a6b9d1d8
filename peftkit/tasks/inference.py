"""Run a model over held-out items, in batches that the processes share."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

Item = TypeVar("Item")
Output = TypeVar("Output")


def in_shares(
    function: Callable[[list[Item]], Sequence[Output]],
    items: Sequence[Item],
    accelerator: Accelerator,
    *,
    batch_size: int,
    length: Callable[[Item], int] = len,  # type: ignore[assignment]
) -> list[Output]:
    """Return what `function` makes of each item, in the items' order, on every process.

    Items of like length go into one batch. All processes call `function` equally often, as sharded
    models need; a process for which no batch is left repeats the first and throws the result away.

    Args:
        function: Takes a batch of items and returns an output for each.
        items: What to run over.
        accelerator: Tells which process this is.
        batch_size: Items in a batch.
        length: An item's size.
    """
    order = sorted(range(len(items)), key=lambda number: length(items[number]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    processes, rank = accelerator.num_processes, accelerator.process_index
    found: dict[int, Any] = {}
    for first in range(0, math.ceil(len(batches) / processes) * processes, processes):
        is_mine = first + rank < len(batches)
        numbers = batches[first + rank] if is_mine else batches[0]
        outputs = function([items[number] for number in numbers])
        if is_mine:
            found |= zip(numbers, outputs, strict=True)
    if processes > 1:
        found = {
            number: output for share in gather_object([found]) for number, output in share.items()
        }
    return [found[number] for number in range(len(items))]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context for forward passes without gradients, in evaluation mode."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
