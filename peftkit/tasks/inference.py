"""Run a model over held-out items, in batches that the processes share."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

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

    Items of similar length go into one batch. All processes call `function` equally often, as
    sharded models need: a process without a batch repeats the first and drops the result.

    Args:
        function: Takes a batch of items and returns an output for each.
        items: What to run over.
        accelerator: Knows which process this is.
        batch_size: Items in a batch.
        length: An item's size.
    """
    lengths = np.fromiter(map(length, items), np.int64, len(items))
    order = lengths.argsort(kind="stable")
    batches = range(0, len(order), batch_size)  # each one's first place in the order
    processes, rank = accelerator.num_processes, accelerator.process_index
    found: dict[int, Any] = {}
    for first in range(0, len(batches), processes):  # each process takes one of the next batches
        mine = first + rank
        has_batch = mine < len(batches)
        start = batches[mine] if has_batch else 0
        numbers = order[start : start + batch_size].tolist()
        outputs = function([items[number] for number in numbers])
        if has_batch:
            found |= zip(numbers, outputs, strict=True)
    if processes > 1:
        for share in gather_object([found]):
            found |= share
    return [found[number] for number in range(len(items))]
