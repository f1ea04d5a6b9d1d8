"""Nested state as a JSON value and named tensors, with every number and key as it was."""

from typing import Any

from torch import Tensor

from peftkit.errors import CheckpointError
from peftkit.training.fsdp import whole

_PLAIN = (str, bool, int, float, type(None))

# In JSON, a dictionary with one of these keys alone stands for what JSON does not have.
_TENSOR, _TUPLE, _ITEMS = "$tensor", "$tuple", "$items"
_MARKS = {_TENSOR, _TUPLE, _ITEMS}


def split_state(state: Any, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Return a state as a JSON value, and its tensors by name.

    Every process has to call this where tensors are shared out.

    Args:
        state: Tensors, numbers, text, None, and lists, tuples and dictionaries of them.
        name: What it is, for an error, such as "optimizer".

    Returns:
        The JSON value, and whole tensors by names like "state.0.exp_avg". A tensor that is in the
        state twice is there once.

    Raises:
        CheckpointError: the state holds something else.
    """
    splitting = _Splitting(name)
    return splitting.split(state, ()), splitting.tensors


class _Splitting:
    """One call of `split_state`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._names: dict[int, str] = {}  # by the id of a tensor
        self.tensors: dict[str, Tensor] = {}

    def split(self, value: Any, keys: tuple[object, ...]) -> Any:
        """Return a part of the state, found under `keys`, as a JSON value."""
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, Tensor):
            return {_TENSOR: self._put(value, keys)}
        if isinstance(value, list | tuple):
            parts = [self.split(each, (*keys, number)) for number, each in enumerate(value)]
            return parts if isinstance(value, list) else {_TUPLE: parts}
        if isinstance(value, dict) and all(isinstance(key, _PLAIN) for key in value):
            items = [[key, self.split(each, (*keys, key))] for key, each in value.items()]
            return dict(items) if _has_text_keys(value) else {_ITEMS: items}
        place = ".".join(map(str, (self._name, *keys)))
        raise CheckpointError(
            f"{place} is a {type(value).__name__}, which a checkpoint cannot hold; it takes "
            "tensors, numbers, text, None, and lists, tuples and dictionaries of them"
        )

    def _put(self, tensor: Tensor, keys: tuple[object, ...]) -> str:
        """Put a tensor among the others, and return its name."""
        if id(tensor) not in self._names:
            name = ".".join(map(str, keys))
            if name in self.tensors:  # keys may have dots themselves
                name = f"{name}#{len(self.tensors)}"
            self._names[id(tensor)] = name
            self.tensors[name] = whole(tensor)
        return self._names[id(tensor)]


def join_state(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the state that `split_state` took apart."""
    if isinstance(value, list):
        return [join_state(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _TUPLE in value:
        return tuple(join_state(each, tensors) for each in value[_TUPLE])
    items = value[_ITEMS] if _ITEMS in value else value.items()
    return {key: join_state(each, tensors) for key, each in items}


def _has_text_keys(value: dict[Any, Any]) -> bool:
    """Whether JSON has this dictionary as it is: text as keys, and no mark among them."""
    return all(isinstance(key, str) for key in value) and not _MARKS & value.keys()
