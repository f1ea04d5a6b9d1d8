"""A model and its optimizer, made ready for the processes that train them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from peftkit.methods.method import method_training
from peftkit.training import fsdp
from peftkit.training.state import TrainingState


@dataclass
class Prepared:
    """What a step works with.

    Attributes:
        state: The model, optimizer and schedule themselves.
        model: The model as the processes share it.
        optimizer: The optimizer as Accelerate steps it.
    """

    state: TrainingState
    model: nn.Module
    optimizer: Any


def prepare(
    model: nn.Module,
    accelerator: Accelerator,
    total_steps: int,
    make_optimizer: Callable[[nn.Module], Optimizer],
    make_scheduler: Callable[[Optimizer, int], LRScheduler],
) -> Prepared:
    """Share a model out over the processes, and make what trains it.

    Args:
        model: On its device.
        accelerator: Its processes share the model.
        total_steps: Optimizer steps of the whole training.
        make_optimizer: Makes the optimizer, once the model's parameters are what is trained.
        make_scheduler: Makes the schedule from the optimizer and `total_steps`.
    """
    shards = fsdp.Shards(model, accelerator) if fsdp.is_in_use() else None
    optimizer = make_optimizer(model)
    if shards is not None:
        prepared_model, prepared_optimizer = model, accelerator.prepare_optimizer(optimizer)
    else:
        prepared_model, prepared_optimizer = accelerator.prepare(model, optimizer)
        # The loop does its own autocast; Accelerate's, on the model's forward, would cast all
        # logits to float32.
        accelerator.unwrap_model(prepared_model, keep_fp32_wrapper=False)
    scheduler = make_scheduler(optimizer, total_steps)
    in_place = accelerator.num_processes == 1
    method = method_training(model, optimizer, total_steps, in_place=in_place)
    state = TrainingState(model, optimizer, scheduler, method, total_steps, shards)
    return Prepared(state, prepared_model, prepared_optimizer)
