"""Which blocks of a model keep their activations, and which compute them again in the backward pass
(arXiv:1604.06174).
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
    """Let as many blocks of a model as the settings say compute their activations again; return
    what was decided.

    Without reentrance. Of a share, it is the first blocks: the last ones have let go of what they
    kept when the first are computed again.

    Args:
        model: On its device.
        settings: ``gradient_checkpointing`` and ``memory_gib``.
        loss: Takes the largest batch forward; for "auto", which measures two such passes.

    Raises:
        ConfigError: the model cannot do what the settings say, or a step takes more than
            ``memory_gib`` whatever is done.
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
            f"train.gradient_checkpointing is {wanted!r}, but {type(model).__name__} computes all blocks again or none: "
            "set true or false"
        )
    if wanted == "auto":
        count, needed = _fewest(model, blocks, settings, loss)
        return _noted(model, _recompute_first(blocks, count), len(blocks), needed)
    return _noted(
        model, _recompute_first(blocks, max(1, round(float(wanted) * len(blocks)))), len(blocks)
    )


def _noted(model: nn.Module, count: int, blocks: int, needed: float | None = None) -> str:
    entry = {"recomputed_blocks": count, "blocks": blocks} | (
        {} if needed is None else {"predicted_gib": needed}
    )
    note(model, "checkpointing", entry)
    predicted = "" if needed is None else f", for which a step needs {needed:.2f} GiB"
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
    """Return the fewest blocks to compute again so that a step fits, and the GiB that it then
    needs.

    Each block takes as much more, if it keeps its activations, as the last one does.
    """
    device = next(model.parameters()).device
    measure = functools.partial(_measured, model, loss, device)
    everywhere, peak = measure()
    _recompute_first(blocks, len(blocks) - 1)
    more = max(1, measure()[0] - everywhere)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    weights = sum({id(p): p.numel() * p.element_size() for p in model.parameters()}.values())
    fixed = weights + _ADAMW_BYTES * trained + peak
    budget = (
        settings.memory_gib * 2**30 if settings.memory_gib else weights + _MARGIN * _free(device)
    )
    if settings.memory_gib and fixed > budget:
        raise ConfigError(
            f"train.memory_gib is {settings.memory_gib:g}, and a step needs {fixed / 2**30:.2f} GiB with all blocks computed "
            "again: lower train.batch_size or data.max_length"
        )
    kept = min(len(blocks), max(0, int((budget - fixed) // more)))
    return len(blocks) - kept, (fixed + kept * more) / 2**30


def _measured(
    model: nn.Module, loss: Callable[[], Tensor], device: torch.device
) -> tuple[int, int]:
    """Return the bytes that a forward pass leaves for the backward pass, and those of the peak of
    both.
    """
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
    """Return the bytes that a training can still take."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    return float(psutil.virtual_memory().available)
