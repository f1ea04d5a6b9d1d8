"""Cheap functions whose output is not kept: the backward pass computes it again from the inputs.

What stands between the matrix products of a block (norms, activations, gates) is cheap to compute,
and its output is as large as its input. Autograd keeps both: the function saves what its own
backward pass needs, and the adapted layer that reads the output saves that. Here both keep only the
inputs. In the backward pass, the layer comes first and computes the output again. The function then
takes its gradient through that very computation. All that it costs is one more forward pass of
something cheap.

The function runs as it is, so the numbers stay the same. Large outputs are computed some rows at a
time.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from peftkit.internals.torch_autograd import UNKNOWN, count_holders, saved_tensors_hook

_ORIGIN = "_peftkit_origin"
_LARGE = 2**25  # bytes


def recomputed(
    function: Callable[..., Tensor],
    *inputs: Tensor,
    again: Callable[..., Tensor] | None = None,
    by_rows: bool = False,
) -> Tensor:
    """Return ``function(*inputs)``, of which only the inputs are kept for the backward pass.

    Args:
        function: Reads nothing else that needs a gradient; its output is a new tensor.
        inputs: What it reads.
        again: Gives the same output in the backward pass; None is `function` itself.
        by_rows: Whether each row, which is all dimensions but the last, depends on nothing but the
            same row of the inputs. A large output and its gradient are then computed some rows at a
            time, so that what lies in between is never whole.
    """
    if not torch.is_grad_enabled() or not all(each.requires_grad for each in inputs):
        return function(*inputs)
    in_slices = by_rows and _size_bytes(inputs[0]) > _LARGE
    recomputation = Recomputation(again or function, inputs[0].device.type, in_slices)
    _holders_of_an_unshared_gradient()  # measured here: it must not run inside a backward pass
    output: Tensor = _Recomputed.apply(  # type: ignore[no-untyped-call]
        function, recomputation, *inputs
    )
    origin = _Origin(recomputation, inputs, _versions(output, *inputs), saved_tensors_hook())
    setattr(output, _ORIGIN, origin)
    return output


class Recomputation:
    """How an output is computed again.

    It holds tensors only between the first and the last use in a backward pass.
    """

    def __init__(self, function: Callable[..., Tensor], device: str, in_slices: bool) -> None:
        self.in_slices = in_slices
        self._function = function
        self._device = device
        self._autocast_dtype = torch.get_autocast_dtype(device)
        self._autocast_enabled = torch.is_autocast_enabled(device)
        self._graph: tuple[list[Tensor], Tensor] | None = None
        """Leaves with the inputs' values, and the output that was computed from them."""

    def output(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the output, without a graph."""
        if not self.in_slices:
            return self._computed(inputs)[1].detach()
        read = [each.flatten(0, -2) for each in inputs]  # each [rows, features]
        output: Tensor | None = None
        with torch.no_grad(), self._same_autocast():
            for rows in _slices(read[0]):
                part = self._function(*(each[rows] for each in read))
                if output is None:  # the first part tells how wide it is
                    output = part.new_empty(*inputs[0].shape[:-1], part.shape[-1])
                    written = output.flatten(0, -2)  # [rows, output features]
                written[rows] = part
        assert output is not None
        return output

    def gradients(
        self, inputs: Sequence[Tensor], gradient: Tensor, *, overwrite: bool = False
    ) -> Sequence[Tensor]:
        """Return the gradients of the inputs, and let go of the output: nobody needs it any more.

        Args:
            inputs: What the function has read.
            gradient: That of the output.
            overwrite: Whether the first input's gradient may be written over it, in slices.
        """
        if not self.in_slices:
            leaves, output = self._computed(inputs)
            self._graph = None
            return torch.autograd.grad(output, leaves, gradient)
        found = [_empty_like(each) for each in inputs[1:]]
        fits = gradient.shape == inputs[0].shape and gradient.dtype == inputs[0].dtype
        if overwrite and fits and gradient.is_contiguous():
            found.insert(0, gradient)
        else:
            found.insert(0, _empty_like(inputs[0]))
        read = [each.flatten(0, -2) for each in inputs]  # each [rows, features]
        written = [each.flatten(0, -2) for each in found]
        given = gradient.flatten(0, -2)  # [rows, output features]
        for rows in _slices(read[0]):
            leaves, output = self._computed([each[rows] for each in read])
            self._graph = None
            parts = torch.autograd.grad(output, leaves, given[rows])
            for place, part in zip(written, parts, strict=True):
                place[rows] = part
        return found

    def _computed(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return leaves with the values of `inputs`, and the output with its graph down to them."""
        if self._graph is None:
            with torch.enable_grad(), self._same_autocast():
                leaves = [each.detach().requires_grad_() for each in inputs]
                self._graph = leaves, self._function(*leaves)
        return self._graph

    def _same_autocast(self) -> torch.autocast:
        """Return a context with the automatic mixed precision of the first forward pass."""
        return torch.autocast(
            self._device, self._autocast_dtype, self._autocast_enabled, cache_enabled=False
        )


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _size_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _slices(matrix: Tensor) -> Iterator[slice]:
    """Yield slices of at most `_LARGE` bytes, but at least a row, that cover a matrix."""
    count = max(1, _LARGE * len(matrix) // _size_bytes(matrix))
    for start in range(0, len(matrix), count):
        yield slice(start, start + count)


class _Recomputed(Function):
    """Runs a function, and saves the way to its inputs."""

    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., Tensor], recomputation: Recomputation, *inputs: Tensor
    ) -> Tensor:
        ctx.recomputation = recomputation
        ctx.ways, tensors = _ways_to(inputs)
        ctx.save_for_backward(*tensors)
        return recomputation.output(inputs) if recomputation.in_slices else function(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        holders = count_holders(gradient)
        overwrite = holders is not None and holders == _holders_of_an_unshared_gradient()
        inputs = _values(ctx.ways, ctx.saved_tensors)
        gradients = ctx.recomputation.gradients(inputs, gradient, overwrite=overwrite)
        return None, None, *gradients


class _CountHolders(Function):
    """Notes how many hold the gradient that its backward pass is given."""

    @staticmethod
    def forward(ctx: Any, found: list[tuple[int, int, int] | None], x: Tensor) -> Tensor:
        ctx.found = found
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ctx.found.append(count_holders(gradient))
        return None, None


@functools.cache
def _holders_of_an_unshared_gradient() -> tuple[int, int, int] | None:
    """Return how many hold a gradient in a backward pass where nobody else uses it.

    None where torch does not tell: no gradient is written over then.
    """
    found: list[tuple[int, int, int] | None] = []
    with torch.enable_grad():
        x = torch.ones((), requires_grad=True)
        output = _CountHolders.apply(found, x)  # type: ignore[no-untyped-call]
        # Negation saves nothing: the first to ask may be a checkpointed block.
        (-output).backward()
    return found[0]


class _Origin:
    """Where a recomputed tensor comes from: an attribute of that tensor."""

    def __init__(
        self,
        recomputation: Recomputation,
        inputs: tuple[Tensor, ...],
        versions: list[int],
        hook: Any,
    ) -> None:
        self.recomputation = recomputation
        self.inputs = inputs
        self._versions = versions
        self._hook = hook

    def is_valid_for(self, tensor: Tensor) -> bool:
        """Return whether the backward pass may compute `tensor` again instead of keeping it.

        Not if it or an input was changed in place since. And not if it comes from outside of the
        checkpointed block that runs at present: the second pass gets the block's inputs as tensors
        that may not know where they come from (where they were offloaded, or inside of another
        checkpointed block), and it must save what the first pass has saved.
        """
        if self._hook is UNKNOWN or self._hook is not saved_tensors_hook():
            return False
        return self._versions == _versions(tensor, *self.inputs)


def _versions(*tensors: Tensor) -> list[int]:
    """Return how often each of several tensors was changed in place."""
    return [each._version for each in tensors]


class Kept:
    """The way to a recomputed output from other tensors, which are saved in its place."""

    def __init__(self, recomputation: Recomputation, inputs: list["_Way"]) -> None:
        self._recomputation, self._inputs = recomputation, inputs

    @classmethod
    def of(cls, tensor: Tensor) -> "tuple[Kept, list[Tensor]] | None":
        """Return the way to a tensor and the tensors to save for it.

        None for a tensor that must be saved itself.
        """
        origin: _Origin | None = getattr(tensor, _ORIGIN, None)
        if origin is None or not origin.is_valid_for(tensor):
            return None
        ways, tensors = _ways_to(origin.inputs)
        return cls(origin.recomputation, ways), tensors

    def value(self, saved: Sequence[Tensor]) -> Tensor:
        """Return the tensor, without a graph, from what was saved for it."""
        return self._recomputation.output(_values(self._inputs, saved))


_Way = tuple[Kept | None, int]
"""The way to a tensor, None where it was saved itself, and how many tensors were saved for it."""


def _ways_to(tensors: Sequence[Tensor]) -> tuple[list[_Way], list[Tensor]]:
    """Return the way to each of several tensors, and all that must be saved for them, in order."""
    ways: list[_Way] = []
    saved: list[Tensor] = []
    for each in tensors:
        kept = Kept.of(each)
        if kept is None:
            ways.append((None, 1))
            saved.append(each.detach())
        else:
            way, own = kept
            ways.append((way, len(own)))
            saved += own
    return ways, saved


def _values(ways: Sequence[_Way], saved: Sequence[Tensor]) -> list[Tensor]:
    """Return the values of several tensors from all that was saved for them, in order."""
    values, start = [], 0
    for way, count in ways:
        own = saved[start : start + count]
        values.append(own[0] if way is None else way.value(own))
        start += count
    return values
