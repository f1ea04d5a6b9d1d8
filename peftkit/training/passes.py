"""The forward and backward passes of one step, whatever the number of processes."""

import contextlib
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from peftkit.labels import IGNORED
from peftkit.losses.base import Batch, Loss, on_device
from peftkit.training.order import Order


@dataclass
class Passes:
    """Takes the examples of a step through the model.

    Args:
        prepared: The model as the processes share it.
        loss: The loss.
        examples: The training examples.
        collate: Makes a batch of tensors from a list of examples.
        order: Which examples a step takes.
        accelerator: Its processes share the step.
        explained: Makes a context out of "forward" or "backward" that explains a lack of memory.
    """

    prepared: nn.Module
    loss: Loss
    examples: Sequence[Sized]
    collate: Callable[[Sequence[Sized]], Batch]
    order: Order
    accelerator: Accelerator
    explained: Callable[..., AbstractContextManager[None]]

    def accumulate(self, step: int) -> tuple[float, Tensor]:
        """Add the gradient of the step's mean loss to the parameters.

        With L the sum of the losses of a micro-batch, and n the items of all micro-batches on all p
        processes, each pass adds the gradient of L p / n: the processes average their gradients,
        which leaves the sum of L over all of them, divided by n.

        Returns:
            n, and the sum of L over the micro-batches of this process, a scalar.
        """
        accelerator = self.accelerator
        batches = list(self._batches(step))
        count = sum(map(self.loss.count, batches))
        items = float(accelerator.reduce(torch.tensor(float(count), device=accelerator.device)))
        total = torch.zeros((), device=accelerator.device)
        for number, batch in enumerate(batches):
            with self._reduced_after(is_last=number == len(batches) - 1):
                with self.explained("forward"), accelerator.autocast():
                    summed = self.loss.sum(self.prepared, batch)
                with self.explained("backward"):
                    accelerator.backward(summed * (accelerator.num_processes / items))
            total += summed.detach()
        return items, total

    def _reduced_after(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Return a context for a pass after which the processes reduce gradients, if they have to.

        They do after the last pass; under FSDP after each, because it would keep gradients whole to
        save a reduction, and those of an adapter are cheap to reduce.
        """
        if is_last or isinstance(self.prepared, FSDPModule):
            return contextlib.nullcontext()
        context: AbstractContextManager[None] = self.accelerator.no_sync(self.prepared)
        return context

    def _batches(self, step: int) -> Iterator[Batch]:
        for numbers in self.order.micro_batches(step, self.accelerator.process_index):
            # A process for which nothing is left takes part with a batch that counts for nothing.
            is_empty = not numbers
            examples = [self.examples[number] for number in numbers or [0]]
            batch = on_device(self.accelerator.device, self.collate(examples))
            if is_empty:
                batch["labels"] = torch.full_like(batch["labels"], IGNORED)
                batch.pop("teacher", None)
            yield batch
