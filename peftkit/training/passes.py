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

    `prepared` is the model as the processes share it; `explained` makes a context out of "forward"
    or "backward".
    """

    prepared: nn.Module
    loss: Loss
    examples: Sequence[Sized]
    collate: Callable[[Sequence[Sized]], Batch]
    order: Order
    accelerator: Accelerator
    explained: Callable[..., AbstractContextManager[None]]

    def accumulate(self, step: int) -> tuple[float, Tensor]:
        """Add the gradient of the step's mean loss over the items of all processes to the
        parameters; return these items and the summed loss of this process.
        """
        accelerator, batches = self.accelerator, list(self._batches(step))
        count = sum(map(self.loss.count, batches))
        items = float(accelerator.reduce(torch.tensor(float(count), device=accelerator.device)))
        loss = torch.zeros((), device=accelerator.device)
        for number, batch in enumerate(batches):
            # Between passes, FSDP would keep gradients whole to save a reduction; those of an
            # adapter are cheap to reduce.
            reduces = number == len(batches) - 1 or isinstance(self.prepared, FSDPModule)
            with contextlib.nullcontext() if reduces else accelerator.no_sync(self.prepared):
                with self.explained("forward"), accelerator.autocast():
                    summed = self.loss.sum(self.prepared, batch)
                with self.explained("backward"):
                    accelerator.backward(summed * (accelerator.num_processes / items))
            loss += summed.detach()
        return items, loss

    def _batches(self, step: int) -> Iterator[Batch]:
        for numbers in self.order.micro_batches(step, self.accelerator.process_index):
            batch = on_device(
                self.accelerator.device, self.collate([self.examples[i] for i in numbers or [0]])
            )
            if not numbers:  # nothing is left for this process: it takes part with a batch that counts for nothing
                batch["labels"] = torch.full_like(batch["labels"], IGNORED)
                batch.pop("teacher", None)
            yield batch
