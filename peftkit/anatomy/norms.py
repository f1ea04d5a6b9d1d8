"""The norms on the residual stream."""

from torch import nn


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module normalises, by its class's name."""
    return "norm" in type(module).__name__.lower()


def norm_width(module: nn.Module) -> int:
    """Return the features of a norm; 0 for one without weights, and for what is no norm."""
    return (
        next((weight.numel() for weight in module.parameters() if weight.dim() == 1), 0)
        if is_norm(module)
        else 0
    )


def stream_norms(block: nn.Module, width: int) -> list[nn.Module]:
    """Return the norms of a block, or the block itself, that are as wide as the residual stream, or
    have no weights.
    """
    return [
        part
        for part in block.modules()
        if is_norm(part) and norm_width(part) in (width, 0) and not list(part.children())
    ]
