"""What a training needs before its first step: Accelerator, optimiser, schedule, intervals, a
digest.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from peftkit.config.train import TrainSettings
from peftkit.training.checks import check_precision


def accelerator_for(settings: TrainSettings, model: nn.Module, run_dir: Path) -> Accelerator:
    """Return an Accelerator with the precision that suits the model, and the trackers that the
    settings name.

    Raises:
        ConfigError: the device or the model cannot compute in that precision.
    """
    dtypes = {parameter.dtype for parameter in model.parameters()}
    auto = "bf16" if torch.bfloat16 in dtypes else "fp16" if torch.float16 in dtypes else "no"
    precision = auto if settings.precision == "auto" else settings.precision
    check_precision(precision, model)
    AcceleratorState._reset_state()  # Accelerate keeps one precision for a process, and runs may differ in theirs
    return Accelerator(
        mixed_precision=precision, log_with=list(settings.trackers) or None, project_dir=run_dir
    )


def optimizer_for(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return AdamW (arXiv:1711.05101) over the trained parameters, with weight decay on matrices
    only.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2)
    )


def scheduler_for(
    optimizer: torch.optim.Optimizer, settings: TrainSettings, total_steps: int
) -> LRScheduler:
    """Return the schedule of the learning rate over all steps, one call of ``step`` each."""
    warmup = round(settings.warmup * total_steps if settings.warmup < 1 else settings.warmup)
    name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
    scheduler: LRScheduler = get_scheduler(name, optimizer, warmup, total_steps)
    return scheduler


def steps_between(every: float | None, steps_per_epoch: int) -> int | None:
    """Return an interval in steps: of a fraction of an epoch up to 1, of a number of steps above."""
    if every is None:
        return None
    return max(1, round(every * steps_per_epoch) if every <= 1 else round(every))


def digest_of(examples: Iterable[object]) -> str:
    """Return the sha256 of the examples' ``repr``, which has to say all that is learned from."""
    sha = hashlib.sha256()
    for example in examples:
        sha.update(repr(example).encode())
    return sha.hexdigest()
