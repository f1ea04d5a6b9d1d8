"""Steps on fake tensors, which have shapes and no values."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_INDEXING = (
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._unsafe_index.Tensor,
)


class AllNonzero(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts every element of a fake tensor as true: it has no values that would tell.

    Enter it after ``FakeTensorMode``, and after a `LiveStorages` that is to count what it makes.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is _aten.nonzero.default:
            return _positions(args[0], args[0].ndim)
        if func in _INDEXING:
            tensor, indices, *more = args
            numbers: list[Tensor | None] = []
            for index in indices:
                numbers += _as_numbers(index)
            args = tensor, numbers, *more
        return func(*args, **(kwargs or {}))


def _positions(mask: Tensor, *columns: int) -> Tensor:
    """Return the positions of a mask's elements, [elements, *columns]."""
    return torch.empty(mask.numel(), *columns, dtype=torch.int64, device=mask.device)


def _as_numbers(index: Tensor | None) -> list[Tensor | None]:
    """Return a mask as index tensors, one for each of its dimensions; another index as it is."""
    if index is None or index.dtype not in (torch.bool, torch.uint8):
        return [index]
    return [_positions(index) for _ in range(index.ndim)]
