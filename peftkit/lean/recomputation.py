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
_LARGE = 2**26  # bytes


def recomputed(
    function: Callable[..., Tensor], *inputs: Tensor, again: Callable[..., Tensor] | None = None, by_rows: bool = False
) -> Tensor:
    """Return function(*inputs), of which only the inputs are kept for the backward pass.

    Args:
        function: Reads nothing else that needs a gradient; its output is a new tensor.
        inputs: What it reads.
        again: What gives the same output in the backward pass; None for `function` itself.
        by_rows: Whether it takes each row, all dimensions but the last, for itself: the backward pass of a large output then
            goes through some rows at a time, so that what lies in between is never whole.
    """
    if not (torch.is_grad_enabled() and all(each.requires_grad for each in inputs)):
        return function(*inputs)
    recipe = Recipe(again or function, inputs[0].device.type, by_rows and _size(inputs[0]) > _LARGE)
    output: Tensor = _Recomputed.apply(function, recipe, *inputs)  # type: ignore[no-untyped-call]
    setattr(output, _ORIGIN, (recipe, inputs, _versions(output, *inputs), _pass()))
    return output


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


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

    def __init__(self, function: Callable[..., Tensor], device: str, in_slices: bool) -> None:
        self._function, self._in_slices = function, in_slices
        self._autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        self._graph: tuple[list[Tensor], Tensor] | None = None

    def output(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the output, without a graph."""
        if self._in_slices:
            with torch.no_grad(), self._as_it_was():
                return self._function(*inputs)
        return self._computed(inputs)[1].detach()

    def gradients(self, inputs: Sequence[Tensor], gradient: Tensor) -> Sequence[Tensor]:
        """Return the gradients of the inputs, given that of the output; nobody needs the output any more."""
        if not self._in_slices:
            leaves, output = self._computed(inputs)
            self._graph = None
            return torch.autograd.grad(output, leaves, gradient)
        found = [torch.empty_like(each, memory_format=torch.contiguous_format) for each in inputs]
        read, written = ([each.flatten(0, -2) for each in tensors] for tensors in (inputs, found))
        given = gradient.flatten(0, -2)
        count = max(1, _LARGE * len(given) // _size(given))
        for start in range(0, len(given), count):
            rows = slice(start, start + count)
            leaves, output = self._computed([each[rows] for each in read])
            self._graph = None
            for place, value in zip(written, torch.autograd.grad(output, leaves, given[rows]), strict=True):
                place[rows] = value
        return found

    def _computed(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return leaves with the values of `inputs`, and the output with its graph down to them."""
        if self._graph is None:
            with torch.enable_grad(), self._as_it_was():
                leaves = [each.detach().requires_grad_() for each in inputs]
                self._graph = leaves, self._function(*leaves)
        return self._graph

    def _as_it_was(self) -> torch.autocast:
        device, dtype, enabled = self._autocast
        return torch.autocast(device, dtype, enabled, cache_enabled=False)


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
        return None, None, *ctx.recipe.gradients(_values(ctx.ways, ctx.saved_tensors), gradient)


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
        return self._recipe.output(_values(self._inputs, saved))


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
