"""Gradient checkpointing: blocks that compute their activations again in the backward pass.

The method is that of arXiv:1604.06174.
"""

import functools
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from peftkit.config.train import TrainSettings
from peftkit.errors import ConfigError
from peftkit.memory.storages import LiveStorages
from peftkit.recording import note

_MARGIN = 0.95  # of the memory that is free; what an allocator loses between its blocks is not seen
_ADAMW_BYTES = 8  # two float32 moments of each trained parameter


def checkpoint_blocks(
    model: nn.Module, settings: TrainSettings, loss: Callable[[], Tensor]
) -> str | None:
    """Turn gradient checkpointing on in as many blocks as the settings say.

    A share is taken from the first blocks on: when they are computed again, the last ones have
    already freed what they kept. Checkpointing is without reentrance.

    Args:
        model: On its device.
        settings: ``gradient_checkpointing`` and ``memory_gib``.
        loss: Takes the largest batch forward; "auto" measures two such passes.

    Returns:
        A sentence on what was decided; None if checkpointing is off.

    Raises:
        ConfigError: the model cannot do what the settings say, or a step takes more than
            ``memory_gib`` even with all blocks checkpointed.
    """
    wanted = settings.gradient_checkpointing
    if not wanted:
        return None
    enable: Any = (
        getattr(model, "activation_checkpointing_enable", None)
        or model.gradient_checkpointing_enable
    )
    enable({"use_reentrant": False})
    blocks = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    if wanted is True:
        return _noted(model, len(blocks), len(blocks))
    if not blocks:
        raise ConfigError(
            f"train.gradient_checkpointing is {wanted!r}, but {type(model).__name__} computes all "
            "blocks again or none: set true or false"
        )
    if wanted == "auto":
        count, needed = _fewest(model, blocks, settings, loss)
        return _noted(model, _recompute_first(blocks, count), len(blocks), needed)
    count = max(1, round(float(wanted) * len(blocks)))
    return _noted(model, _recompute_first(blocks, count), len(blocks))


def _noted(model: nn.Module, count: int, blocks: int, needed: float | None = None) -> str:
    """Write the decision into the model's record, and return it as a sentence."""
    entry: dict[str, float] = {"recomputed_blocks": count, "blocks": blocks}
    predicted = ""
    if needed is not None:
        entry["predicted_gib"] = needed
        predicted = f", for which a step needs {needed:.2f} GiB"
    note(model, "checkpointing", entry)
    return f"activations: {count} of {blocks} blocks compute them again{predicted}"


def _recompute_first(blocks: list[GradientCheckpointingLayer], count: int) -> int:
    for number, block in enumerate(blocks):
        block.gradient_checkpointing = number < count
    return count


def _fewest(
    model: nn.Module,
    blocks: list[GradientCheckpointingLayer],
    settings: TrainSettings,
    loss: Callable[[], Tensor],
) -> tuple[int, float]:
    """Return the fewest blocks to compute again for a step to fit, and the GiB that it then needs.

    Two passes are measured, with all blocks checkpointed and with all but the last one. Every block
    is taken to need as much for its activations as the last one.
    """
    device = next(model.parameters()).device
    measure = functools.partial(_measured, model, loss, device)
    kept_by_none, peak = measure()
    _recompute_first(blocks, len(blocks) - 1)
    kept_by_last, _ = measure()
    per_block = max(1, kept_by_last - kept_by_none)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    weights = sum({id(p): p.numel() * p.element_size() for p in model.parameters()}.values())
    fixed = weights + _ADAMW_BYTES * trained + peak
    if settings.memory_gib:
        budget = settings.memory_gib * 2**30
    else:
        budget = weights + _MARGIN * _free(device)
    if settings.memory_gib and fixed > budget:
        raise ConfigError(
            f"train.memory_gib is {settings.memory_gib:g}, and a step needs {fixed / 2**30:.2f} "
            "GiB with all blocks computed again: lower train.batch_size or data.max_length"
        )
    # bytes = fixed + kept * per_block <= budget
    kept = min(len(blocks), max(0, int((budget - fixed) // per_block)))
    return len(blocks) - kept, (fixed + kept * per_block) / 2**30


def _measured(
    model: nn.Module, loss: Callable[[], Tensor], device: torch.device
) -> tuple[int, int]:
    """Return the bytes that a forward pass keeps for the backward pass, and the peak of both."""
    before = {name: parameter.grad for name, parameter in model.named_parameters()}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if device.type == "cuda":
            kept, peak = _on_cuda(loss, device)
        else:
            with LiveStorages() as storages:
                storages.ignore(*model.parameters(), *model.buffers())
                result = loss()
                kept = storages.live
                result.backward()  # type: ignore[no-untyped-call]
                peak = storages.peak
    for name, parameter in model.named_parameters():
        parameter.grad = before[name]
    return kept, peak


def _on_cuda(loss: Callable[[], Tensor], device: torch.device) -> tuple[int, int]:
    torch.cuda.reset_peak_memory_stats(device)
    start = torch.cuda.memory_allocated(device)
    result = loss()
    kept = torch.cuda.memory_allocated(device) - start
    result.backward()  # type: ignore[no-untyped-call]
    return kept, torch.cuda.max_memory_allocated(device) - start


def _free(device: torch.device) -> float:
    """Return how many bytes a training can still take."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    return float(psutil.virtual_memory().available)
