"""Cheap functions whose output nobody keeps: the backward pass computes it again from the inputs, once for all who need it.

What stands between the matrix products of a block (norms, activations, gates) is cheap to compute and as large as what it
reads. Autograd keeps it twice: the function keeps what its own backward pass needs, and the adapted layer that reads the
output keeps that. Here both keep the inputs alone. The layer that needs the output first computes it again, and the function
takes the gradient through that very computation, so one more forward pass of something cheap is all that it costs.

The function runs as it is, so the numbers are those it always gave.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

_ORIGIN = "_peftkit_origin"


def recomputed(function: Callable[..., Tensor], *inputs: Tensor, again: Callable[..., Tensor] | None = None) -> Tensor:
    """Return function(*inputs), of which only the inputs are kept for the backward pass.

    Args:
        function: Reads nothing else that needs a gradient; its output is a new tensor.
        inputs: What it reads.
        again: What gives the same output in the backward pass; None for `function` itself.
    """
    if not (torch.is_grad_enabled() and all(each.requires_grad for each in inputs)):
        return function(*inputs)
    recipe = Recipe(again or function, inputs[0].device.type)
    output: Tensor = _Recomputed.apply(function, recipe, *inputs)  # type: ignore[no-untyped-call]
    setattr(output, _ORIGIN, (recipe, inputs, _versions(output, *inputs), _pass()))
    return output


def _versions(*tensors: Tensor) -> list[int]:
    """Return how often each of several tensors was changed in place."""
    return [each._version for each in tensors]


def _pass() -> Any:
    """Return the hook that takes saved tensors at present, or None: each pass through a checkpointed block has its own.

    The second pass gets the block's inputs as tensors that perhaps do not know where they come from (where they were
    offloaded, or where another checkpointed block is around it), and must save what the first pass has saved.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return None if hooks is None else hooks[0]


class Recipe:
    """How an output is computed again. It holds tensors only between the first use in a backward pass and the last."""

    def __init__(self, function: Callable[..., Tensor], device: str) -> None:
        self._function = function
        self._autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        self._graph: tuple[list[Tensor], Tensor] | None = None

    def graph(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return leaves with the values of `inputs`, and the output with its graph down to them."""
        if self._graph is None:
            device, dtype, enabled = self._autocast
            with torch.enable_grad(), torch.autocast(device, dtype, enabled, cache_enabled=False):
                leaves = [each.detach().requires_grad_() for each in inputs]
                self._graph = leaves, self._function(*leaves)
        return self._graph

    def forget(self) -> None:
        """Let go of what was computed again."""
        self._graph = None


class _Recomputed(Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], recipe: Recipe, *inputs: Tensor) -> Tensor:
        ctx.recipe = recipe
        ctx.ways, tensors = _ways(inputs)
        ctx.save_for_backward(*tensors)
        return function(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        leaves, output = ctx.recipe.graph(_values(ctx.ways, ctx.saved_tensors))
        ctx.recipe.forget()
        return None, None, *torch.autograd.grad(output, leaves, gradient)


class Kept:
    """What the backward pass needs to have the output of a recomputed function again: the way there from other tensors."""

    def __init__(self, recipe: Recipe, inputs: list[tuple["Kept | None", int]]) -> None:
        self._recipe, self._inputs = recipe, inputs

    @classmethod
    def of(cls, tensor: Tensor) -> "tuple[Kept, list[Tensor]] | None":
        """Return the way to a tensor and the tensors to save for it; None for one that must be saved itself."""
        origin = getattr(tensor, _ORIGIN, None)
        if origin is None:
            return None
        recipe, inputs, versions, made_in = origin
        if made_in is not _pass() or versions != _versions(tensor, *inputs):
            return None  # from outside of a checkpointed block; or changed in place since: the way leads elsewhere
        ways, tensors = _ways(inputs)
        return cls(recipe, ways), tensors

    def value(self, saved: Sequence[Tensor]) -> Tensor:
        """Return the tensor, without a graph, from what was saved for it."""
        return self._recipe.graph(_values(self._inputs, saved))[1].detach()


def _ways(inputs: Sequence[Tensor]) -> tuple[list[tuple[Kept | None, int]], list[Tensor]]:
    """Return the way to each of several tensors, with the number of tensors to save for it, and all these tensors."""
    ways: list[tuple[Kept | None, int]] = []
    tensors: list[Tensor] = []
    for each in inputs:
        way, saved = Kept.of(each) or (None, [each.detach()])
        ways.append((way, len(saved)))
        tensors += saved
    return ways, tensors


def _values(ways: Sequence[tuple[Kept | None, int]], saved: Sequence[Tensor]) -> list[Tensor]:
    """Return the values of several tensors, given the tensors saved for all of them, one after the other."""
    values, start = [], 0
    for way, count in ways:
        own = saved[start : start + count]
        values.append(own[0] if way is None else way.value(own))
        start += count
    return values
