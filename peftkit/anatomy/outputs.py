"""The tensor of the stream in what a module gives."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def first_tensor(output: Any) -> Tensor:
    """Return what a module adds to the stream, which may stand first in tuples or in a dictionary."""
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
    index = next(i for i, entry in enumerate(output) if entry is not None)
    entries = [*output[:index], with_first_tensor(output[index], value), *output[index + 1 :]]
    return output._make(entries) if hasattr(output, "_make") else type(output)(entries)
