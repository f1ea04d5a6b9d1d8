"""The norms on the residual stream."""

from torch import nn


def is_norm(module: nn.Module) -> bool:
    """Return whether a module normalises, by its class's name."""
    return "norm" in type(module).__name__.lower()


def norm_width(module: nn.Module) -> int:
    """Return the features of a norm; 0 for a norm without weights, and for any other module."""
    if is_norm(module):
        for weight in module.parameters():
            if weight.dim() == 1:
                return weight.numel()
    return 0


def stream_norms(block: nn.Module, width: int) -> list[nn.Module]:
    """Return a block's norms that are as wide as the residual stream, or that have no weights.

    The block itself may be one.
    """
    found = []
    for part in block.modules():
        if is_norm(part) and norm_width(part) in (width, 0) and not list(part.children()):
            found.append(part)
    return found
