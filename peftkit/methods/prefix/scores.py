"""Repeats for the prefix's columns what a model does to its attention scores.

Between q K^T and the product with the values, a model scales, casts, masks and reshapes its scores.
What changes each score alone is done to the prefix's columns too. What rules out keys is not.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

# Changes each score, or each feature of a key, by itself: done to the prefix too.
_ALIKE = frozenset({
    "tanh", "to", "float", "half", "bfloat16", "double", "type", "type_as", "clone",
    "contiguous", "nan_to_num", "dropout", "dropout_", "cuda", "cpu", "neg", "__neg__",
    "normalize", "exp",
})  # fmt: skip
_SCALING = frozenset({
    "mul", "multiply", "__mul__", "__rmul__", "mul_", "__imul__", "div", "divide",
    "true_divide", "__truediv__", "__rtruediv__", "div_", "__itruediv__",
})  # fmt: skip
_ADDING = frozenset({
    "add", "__add__", "__radd__", "add_", "__iadd__", "sub", "subtract", "__sub__", "__rsub__",
    "sub_", "__isub__",
})  # fmt: skip
# Rules out keys one by one, of which the prefix is none: not done to it.
_MASKING = frozenset({
    "masked_fill", "masked_fill_", "where", "clamp", "clamp_", "clamp_min", "clip", "maximum",
    "minimum", "max", "min", "tril", "triu", "__setitem__", "index_put_",
})  # fmt: skip
_RESHAPING = frozenset({
    "view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "expand", "expand_as",
    "view_as",
})  # fmt: skip
_MOVING = frozenset({
    "transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis",
})  # fmt: skip
_PARTING = frozenset({
    "split", "chunk", "unbind", "__getitem__", "cat", "repeat", "repeat_interleave",
})  # fmt: skip
_COPYING = _ALIKE | _RESHAPING | _MOVING | _PARTING
_KNOWN = _COPYING | _SCALING | _ADDING | _MASKING | {"narrow"}


@dataclass
class AttentionCall:
    """One softmax over scores; it is done once its weights have met the values."""

    number: int
    done: bool = False
    foreign: bool = False
    """Whether the weights met values of another width, those of a second stream.

    There the prefix's values count as zero.
    """


@dataclass(frozen=True)
class PrefixColumns:
    """The prefix's columns beside a tensor of scores, or of the weights after the softmax."""

    columns: Tensor
    """Shaped like the scores, with n entries on the axis of the keys."""
    attention: AttentionCall
    axis: int = -1
    """The axis of the keys, counted from the end."""
    weights: bool = False
    """Whether the softmax has been taken."""


class TensorNotes:
    """What is known about tensors while they live, by identity."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], Any]] = {}

    def __bool__(self) -> bool:
        """Whether anything has been noted."""
        return bool(self._known)

    def get(self, x: Any) -> Any:
        """Return what is known about a tensor, or None."""
        if id(x) not in self._known:
            return None
        reference, known = self._known[id(x)]
        return known if reference() is x else None  # an id may be used again

    def set(self, x: Tensor, known: Any) -> None:
        """Note something about a tensor."""
        self._known[id(x)] = (weakref.ref(x), known)


@dataclass(frozen=True)
class Operation:
    """An operation of the model: its name, function, arguments and result."""

    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    @property
    def operands(self) -> tuple[Any, ...]:
        """The positional arguments, with those of ``cat`` taken out of their list."""
        if self.name == "cat" and self.args and isinstance(self.args[0], list | tuple):
            return tuple(self.args[0])
        return self.args

    def again(self, position: int, x: Any, other: Any = None) -> Any:
        """Run it with another operand at `position`, and `other`, if given, for the rest."""
        args = list(self.args)
        if other is not None:
            args = [other] * len(args)
        if position < len(args):
            args[position] = x
        return self.func(*args, **self.kwargs)

    def axis(self, default: Any = None) -> Any:
        """Return the axis along which it works."""
        return self.kwargs.get("dim", self.args[1] if len(self.args) > 1 else default)


def is_followed(name: str) -> bool:
    """Whether an operation of this name may be done to scores, keys or values."""
    return name in _KNOWN


def begins_history(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an operation scales a tensor by a number, or normalises it."""
    if name == "normalize":
        return True
    if name not in _SCALING or len(args) != 2:
        return False
    return _is_number(args[0]) or _is_number(args[1])


def follow_features(operation: Operation, histories: TensorNotes) -> None:
    """Note how keys and values are scaled or normalised on their way to the products.

    The history of a tensor is a tuple of functions. They do to a prefix what was done to each of
    the tensor's vectors.
    """
    for position, x in enumerate(operation.operands):
        if not isinstance(x, Tensor):
            continue
        history = histories.get(x)
        scales = operation.name in _SCALING and len(operation.args) == 2
        if operation.name == "normalize" or (scales and _is_number(operation.args[1 - position])):

            def step(prefix: Tensor, position: int = position) -> Any:
                return operation.again(position, prefix)

            histories.set(operation.result, (*(history or ()), step))
        elif history is not None and operation.name in _COPYING:
            is_several = isinstance(operation.result, tuple | list)
            for part in operation.result if is_several else (operation.result,):
                histories.set(part, history)
        if history is not None:
            return


def follow_scores(operation: Operation, noted: TensorNotes, alibi: bool) -> None:
    """Note the prefix's columns beside the result of an operation on scores, if it keeps them."""
    if not isinstance(operation.result, Tensor):
        return
    columns: PrefixColumns | None = None
    position = 0
    for number, x in enumerate(operation.operands):
        found: PrefixColumns | None = noted.get(x) if isinstance(x, Tensor) else None
        if found is None:
            continue
        # Of two terms of a sum, the first made is q K^T; the others are products of queries with
        # positions.
        if columns is None or found.attention.number < columns.attention.number:
            columns, position = found, number
    if columns is None:
        return
    followed = _follow(operation, columns, position, noted, alibi)
    if followed is not None:
        noted.set(operation.result, followed)


def _follow(
    operation: Operation, prefix: PrefixColumns, position: int, noted: TensorNotes, alibi: bool
) -> PrefixColumns | None:
    """Return the prefix's columns after an operation; None where they cannot be followed."""
    x, axis = operation.operands[position], prefix.axis
    if operation.name in _MOVING:
        # A small tensor whose only long axis is that of the keys shows where this axis goes.
        shape = [1] * x.dim()
        shape[axis] = 2
        marked = operation.again(position, torch.empty(shape))
        moved = operation.again(position, prefix.columns)
        return replace(prefix, columns=moved, axis=marked.shape.index(2) - x.dim())
    changed = _change(operation, prefix, position, noted, alibi)
    if changed is None:
        return None
    wanted = list(operation.result.shape)
    wanted[axis] = changed.shape[axis]
    if list(changed.shape) != wanted:
        for have, want in zip(reversed(changed.shape), reversed(wanted), strict=False):
            if have not in (1, want):
                return None
        changed = changed.expand(wanted)
    return replace(prefix, columns=changed, weights=prefix.weights or operation.name == "exp")


def _change(
    operation: Operation, prefix: PrefixColumns, position: int, noted: TensorNotes, alibi: bool
) -> Tensor | None:
    """Return the columns after an operation that leaves the axis of the keys in its place.

    None is returned for an operation that is not known.
    """
    x, axis, columns = operation.operands[position], prefix.axis, prefix.columns
    name, result = operation.name, operation.result
    changed: Tensor | None = None
    if name in _SCALING or name in _ADDING:
        changed = _calculate(operation, prefix, position, alibi)
    elif name in _ALIKE:
        changed = operation.again(position, columns)
    elif name in _MASKING or (name == "narrow" and operation.axis() in (axis, axis + x.dim())):
        changed = columns
    elif name == "cat":
        changed = _concatenate(operation, prefix, noted)
    elif name in _RESHAPING and axis == -1 and result.dim() and result.shape[-1] == x.shape[-1]:
        changed = columns.reshape(*result.shape[:-1], columns.shape[-1])
    elif name == "__getitem__":
        index = _index_without_keys(operation.args[1], x.dim(), axis)
        if index is not None:
            changed = columns[index]
    return changed


def _calculate(
    operation: Operation, prefix: PrefixColumns, position: int, alibi: bool
) -> Tensor | None:
    """Add, subtract, multiply or divide by a number, or by a tensor that is alike for all keys."""
    x, axis = operation.args[position], prefix.axis
    other = operation.args[1 - position] if len(operation.args) > 1 else None
    differs_by_key = (
        isinstance(other, Tensor) and other.dim() and size(other, axis) == x.shape[axis]
    )
    if not differs_by_key:
        changed: Tensor = operation.again(position, prefix.columns)
        return changed
    assert isinstance(other, Tensor)
    if alibi and not prefix.weights and axis == -1:
        changed = operation.again(position, prefix.columns, own_position(other, x.shape[-2]))
        return changed
    return prefix.columns


def _concatenate(operation: Operation, prefix: PrefixColumns, noted: TensorNotes) -> Tensor | None:
    """Return the columns beside concatenated scores: along another axis, they are too."""
    axis, dims = operation.axis(0), operation.result.dim()
    if axis in (prefix.axis, prefix.axis + dims):
        return prefix.columns
    columns = []
    for x in operation.operands:
        part: PrefixColumns | None = noted.get(x)
        if part is None:
            return None
        columns.append(part.columns)
    return torch.cat(columns, dim=axis)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) or (isinstance(x, Tensor) and x.numel() == 1)


def size(x: Tensor, axis: int) -> int:
    """Return the length of an axis counted from the end; 1 where the tensor has fewer axes."""
    return x.shape[axis] if x.dim() >= -axis else 1


def _index_without_keys(index: Any, dims: int, axis: int) -> tuple[Any, ...] | None:
    """Return an index that keeps all keys and is otherwise the same.

    None is returned where the index does more than cut along axes.
    """
    entries = list(index) if isinstance(index, tuple) else [index]
    named = 0
    where = len(entries)
    for number, entry in enumerate(entries):
        if entry is Ellipsis:
            where = min(where, number)
        elif isinstance(entry, int | slice):
            named += 1
        else:
            return None
    entries[where : where + 1] = [slice(None)] * (dims - named)  # written out for the ellipsis
    if not isinstance(entries[axis], slice):
        return None
    if any(isinstance(entry, int) for entry in entries[dims + axis :]):
        return None  # an axis that goes would move that of the keys
    entries[axis] = slice(None)
    return tuple(entries)


def own_position(bias: Tensor, queries: int) -> Tensor:
    """Return the bias that each query gives the key of its own position, [..., queries, 1].

    ALiBi may be written as slope * key position, which equals slope * -distance only after the
    softmax. Beside that, a bias of 0 would place the prefix at the first token, or at the last.
    This places it where the query is.

    Args:
        bias: [..., queries or 1, keys].
        queries: The number of queries, which are the last of the keys.
    """
    if size(bias, -2) == 1:
        own = bias[..., bias.shape[-1] - queries :]  # [..., 1, queries]
        own = own.squeeze(-2) if bias.dim() > 1 else own
    else:
        own = bias.diagonal(bias.shape[-1] - queries, -2, -1)  # [..., queries]
    hidden = own <= torch.finfo(bias.dtype).min / 2  # a padded query is masked from itself
    return own.masked_fill(hidden, 0.0).unsqueeze(-1)
