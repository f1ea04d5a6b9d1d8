"""Memory counted by the storages that are alive, on any device.

With fake tensors there is no device, and nothing is computed.
"""

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that were made since it was entered and are alive.

    Views share a storage, which counts once. What a kernel allocates for itself while it runs is
    not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def ignore(self, *tensors: Tensor) -> None:
        """Do not count the storages of `tensors`, should an operation return them."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._known[id(storage)] = weakref.ref(storage)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        inputs = {id(storage) for storage in _storages_of((args, kwargs))}
        for storage in _storages_of(output):
            if id(storage) not in inputs and id(storage) not in self._known:
                self._count(storage)
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def forget(_: object) -> None:
            self.live -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, forget)
        self.live += size
        self.peak = max(self.peak, self.live)

    def reset_peak(self) -> None:
        """Start the peak again at what is alive."""
        self.peak = self.live


def _storages_of(values: Any) -> list[torch.UntypedStorage]:
    """Return the storages of all tensors in nested tuples, lists and dictionaries."""
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]
