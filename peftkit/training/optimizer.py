"""The optimizer and the learning-rate schedule that the settings describe."""

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from peftkit.config.train import TrainSettings


def make_optimizer(model: nn.Module, settings: TrainSettings) -> Optimizer:
    """Return AdamW (arXiv:1711.05101) over the trained parameters; only matrices decay."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (matrices if parameter.ndim >= 2 else others).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
    )


def make_scheduler(optimizer: Optimizer, settings: TrainSettings, total_steps: int) -> LRScheduler:
    """Return the learning-rate schedule over all steps; its ``step`` is called once per step."""
    warmup = settings.warmup  # below 1 a share of all steps
    warmup_steps = round(warmup * total_steps if warmup < 1 else warmup)
    name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
    scheduler: LRScheduler = get_scheduler(name, optimizer, warmup_steps, total_steps)
    return scheduler
