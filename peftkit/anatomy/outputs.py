"""The tensor of the residual stream in what a module returns."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def first_tensor(output: Any) -> Tensor:
    """Return the tensor that a module adds to the stream: the first in a tuple or dictionary."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output
    return first_tensor(next(value for value in values if value is not None))


def with_first_tensor(output: Any, value: Tensor) -> Any:
    """Return a module's output with another tensor in the first one's place."""
    if isinstance(output, Tensor):
        return value
    if isinstance(output, Mapping):
        key = next(key for key, entry in output.items() if entry is not None)
        return type(output)(**{**output, key: with_first_tensor(output[key], value)})
    entries = list(output)
    index = next(index for index, entry in enumerate(entries) if entry is not None)
    entries[index] = with_first_tensor(entries[index], value)
    return output._make(entries) if hasattr(output, "_make") else type(output)(entries)
