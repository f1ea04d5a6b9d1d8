"""What peftkit asks of torch's autograd that torch 2.13 does not offer in public.

Each question may go unanswered, where another version of torch has not kept the function. Numbers
are the same then; a step takes more memory.
"""

import sys
from typing import Any

import torch
from torch import Tensor

UNKNOWN = object()
"""What `saved_tensors_hook` returns where torch does not tell."""


def saved_tensors_hook() -> Any:
    """Return the hook that packs saved tensors at present, or None where there is none.

    Each pass through a checkpointed block has a hook of its own. `UNKNOWN` where torch has no
    ``torch._C._autograd._top_saved_tensors_default_hooks``.
    """
    top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if top_hooks is None:
        return UNKNOWN
    hooks = top_hooks(False)
    return None if hooks is None else hooks[0]


def is_checkpointing() -> bool:
    """Return whether saved tensors are packed by a hook; False where torch does not tell."""
    hook = saved_tensors_hook()
    return hook is not None and hook is not UNKNOWN


def count_holders(tensor: Tensor) -> tuple[int, int, int] | None:
    """Return how many hold a tensor: its Python object, the tensor in C++, and its storage.

    The caller's own reference counts. None where torch has no ``torch._C._storage_Use_Count`` or
    ``Tensor._use_count``.
    """
    storage_count = getattr(torch._C, "_storage_Use_Count", None)
    tensor_count = getattr(tensor, "_use_count", None)
    if storage_count is None or tensor_count is None:
        return None
    storage = storage_count(tensor.untyped_storage()._cdata)
    return sys.getrefcount(tensor), tensor_count(), storage
