"""Cheap functions whose output nobody keeps: the backward pass computes it again from the inputs,
once for all who need it.

What stands between the matrix products of a block (norms, activations, gates) is cheap to compute
and as large as what it reads. Autograd keeps it twice: the function keeps what its own backward
pass needs, and the adapted layer that reads the output keeps that. Here both keep the inputs alone.
The layer that needs the output first computes it again, and the function takes the gradient through
that very computation, so one more forward pass of something cheap is all that it costs.

The function runs as it is, so the numbers are those it always gave; large ones it gives some rows
at a time.
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
    """Return function(*inputs), of which only the inputs are kept for the backward pass.

    Args:
        function: Reads nothing else that needs a gradient; its output is a new tensor.
        inputs: What it reads.
        again: What gives the same output in the backward pass; None for `function` itself.
        by_rows: Whether it takes each row, all dimensions but the last, for itself: a large output
            and its gradient are then computed some rows at a time, so that what lies in between is
            never whole.
    """
    if not (torch.is_grad_enabled() and all(each.requires_grad for each in inputs)):
        return function(*inputs)
    recomputation = Recomputation(
        again or function, inputs[0].device.type, by_rows and _size(inputs[0]) > _LARGE
    )
    _alone()
    output: Tensor = _Recomputed.apply(function, recomputation, *inputs)  # type: ignore[no-untyped-call]
    setattr(output, _ORIGIN, (recomputation, inputs, _versions(output, *inputs), _pass()))
    return output


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _versions(*tensors: Tensor) -> list[int]:
    """Return how often each of several tensors was changed in place."""
    return [each._version for each in tensors]


def _pass() -> Any:
    """Return the hook that takes saved tensors at present, or None: each pass through a
    checkpointed block has its own.

    The second pass gets the block's inputs as tensors that perhaps do not know where they come from
    (where they were offloaded, or where another checkpointed block is around it), and must save
    what the first pass has saved.
    """
    return saved_tensors_hook()


class Recomputation:
    """How an output is computed again. It holds tensors only between the first use in a backward
    pass and the last.
    """

    def __init__(self, function: Callable[..., Tensor], device: str, in_slices: bool) -> None:
        self._function, self.in_slices = function, in_slices
        self._autocast = (
            device,
            torch.get_autocast_dtype(device),
            torch.is_autocast_enabled(device),
        )
        self._graph: tuple[list[Tensor], Tensor] | None = None

    def output(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the output, without a graph."""
        if not self.in_slices:
            return self._computed(inputs)[1].detach()
        read, shape = [each.flatten(0, -2) for each in inputs], inputs[0].shape[:-1]
        output: Tensor | None = None
        with torch.no_grad(), self._as_it_was():
            for rows in _slices(read[0]):
                part = self._function(*(each[rows] for each in read))
                if output is None:
                    output = part.new_empty(*shape, part.shape[-1])
                    written = output.flatten(0, -2)
                written[rows] = part
        assert output is not None
        return output

    def gradients(
        self, inputs: Sequence[Tensor], gradient: Tensor, *, overwrite: bool = False
    ) -> Sequence[Tensor]:
        """Return the gradients of the inputs, given that of the output; nobody needs the output any
        more.

        In slices, where `overwrite` allows it, the gradient of the first input takes the place of
        that of the output.
        """
        if not self.in_slices:
            leaves, output = self._computed(inputs)
            self._graph = None
            return torch.autograd.grad(output, leaves, gradient)
        found = [
            torch.empty_like(each, memory_format=torch.contiguous_format) for each in inputs[1:]
        ]
        first = inputs[0]
        fits = gradient.is_contiguous() and (gradient.shape, gradient.dtype) == (
            first.shape,
            first.dtype,
        )
        found.insert(
            0,
            gradient
            if overwrite and fits
            else torch.empty_like(first, memory_format=torch.contiguous_format),
        )
        read, written = ([each.flatten(0, -2) for each in tensors] for tensors in (inputs, found))
        given = gradient.flatten(0, -2)
        for rows in _slices(read[0]):
            leaves, output = self._computed([each[rows] for each in read])
            self._graph = None
            for place, value in zip(
                written, torch.autograd.grad(output, leaves, given[rows]), strict=True
            ):
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


def _slices(matrix: Tensor) -> Iterator[slice]:
    """Yield slices that take a large matrix apart, some rows at a time."""
    count = max(1, _LARGE * len(matrix) // _size(matrix))
    yield from (slice(start, start + count) for start in range(0, len(matrix), count))


class _Recomputed(Function):
    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., Tensor], recomputation: Recomputation, *inputs: Tensor
    ) -> Tensor:
        ctx.recomputation = recomputation
        ctx.ways, tensors = _ways(inputs)
        ctx.save_for_backward(*tensors)
        return recomputation.output(inputs) if recomputation.in_slices else function(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        holders = count_holders(gradient)
        overwrite = holders is not None and holders == _alone()
        return (
            None,
            None,
            *ctx.recomputation.gradients(
                _values(ctx.ways, ctx.saved_tensors), gradient, overwrite=overwrite
            ),
        )


class _Alone(Function):
    """Tells how many hold the gradient that a backward pass is given, where nobody else does."""

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
def _alone() -> tuple[int, int, int] | None:
    found: list[tuple[int, int, int] | None] = []
    with torch.enable_grad():
        output = _Alone.apply(found, torch.ones((), requires_grad=True))  # type: ignore[no-untyped-call]
        (-output).backward()  # which saves nothing: it may be a checkpointed block that asks first
    return found[0]


class Kept:
    """What the backward pass needs to have the output of a recomputed function again: the way there
    from other tensors.
    """

    def __init__(
        self, recomputation: Recomputation, inputs: list[tuple["Kept | None", int]]
    ) -> None:
        self._recomputation, self._inputs = recomputation, inputs

    @classmethod
    def of(cls, tensor: Tensor) -> "tuple[Kept, list[Tensor]] | None":
        """Return the way to a tensor and the tensors to save for it; None for one that must be
        saved itself.
        """
        origin = getattr(tensor, _ORIGIN, None)
        if origin is None:
            return None
        recomputation, inputs, versions, made_in = origin
        if made_in is UNKNOWN:
            return None
        if made_in is not _pass() or versions != _versions(tensor, *inputs):
            return None  # from outside of a checkpointed block; or changed in place since: the way leads elsewhere
        ways, tensors = _ways(inputs)
        return cls(recomputation, ways), tensors

    def value(self, saved: Sequence[Tensor]) -> Tensor:
        """Return the tensor, without a graph, from what was saved for it."""
        return self._recomputation.output(_values(self._inputs, saved))


def _ways(inputs: Sequence[Tensor]) -> tuple[list[tuple[Kept | None, int]], list[Tensor]]:
    """Return the way to each of several tensors, with the number of tensors to save for it, and all
    these tensors.
    """
    ways: list[tuple[Kept | None, int]] = []
    tensors: list[Tensor] = []
    for each in inputs:
        way, saved = Kept.of(each) or (None, [each.detach()])
        ways.append((way, len(saved)))
        tensors += saved
    return ways, tensors


def _values(ways: Sequence[tuple[Kept | None, int]], saved: Sequence[Tensor]) -> list[Tensor]:
    """Return the values of several tensors, given the tensors saved for all of them, one after the
    other.
    """
    values, start = [], 0
    for way, count in ways:
        own = saved[start : start + count]
        values.append(own[0] if way is None else way.value(own))
        start += count
    return values
