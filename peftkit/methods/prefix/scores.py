"""What is done to the scores of attention between their product and the values, repeated for the
prefix's columns.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

# What changes each score, or each feature of a key, by itself: done to the prefix too.
_ALIKE = frozenset({
    "tanh", "to", "float", "half", "bfloat16", "double", "type", "type_as", "clone", "contiguous", "nan_to_num",
    "dropout", "dropout_", "cuda", "cpu", "neg", "__neg__", "normalize", "exp"
})  # fmt: skip
_SCALING = frozenset({
    "mul", "multiply", "__mul__", "__rmul__", "mul_", "__imul__", "div", "divide", "true_divide", "__truediv__",
    "__rtruediv__", "div_", "__itruediv__"
})  # fmt: skip
_ADDING = frozenset({
    "add", "__add__", "__radd__", "add_", "__iadd__", "sub", "subtract", "__sub__", "__rsub__", "sub_", "__isub__"
})  # fmt: skip
# What rules keys out one by one: the prefix is not among them.
_MASKING = frozenset({
    "masked_fill", "masked_fill_", "where", "clamp", "clamp_", "clamp_min", "clip", "maximum", "minimum", "max",
    "min", "tril", "triu", "__setitem__", "index_put_"
})  # fmt: skip
_RESHAPING = frozenset({
    "view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "expand", "expand_as", "view_as"
})  # fmt: skip
_MOVING = frozenset({
    "transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis"
})  # fmt: skip
_PARTING = frozenset({
    "split", "chunk", "unbind", "__getitem__", "cat", "repeat", "repeat_interleave"
})  # fmt: skip
_COPYING = _ALIKE | _RESHAPING | _MOVING | _PARTING
_KNOWN = _COPYING | _SCALING | _ADDING | _MASKING | {"narrow"}


@dataclass
class Turn:
    """One attention that the prefix takes part in: it is done when its weights have met the values."""

    number: int
    done: bool = False
    foreign: bool = False
    """Whether the weights met values of another width, of a second stream, in which the prefix's
    are taken for zero.
    """


@dataclass(frozen=True)
class Companion:
    """The prefix's columns of a tensor of scores, or of the weights that the softmax makes of them."""

    columns: Tensor
    turn: Turn
    axis: int = -1
    """Where the keys are, counted from the end."""
    weights: bool = False
    """Whether the softmax has been taken."""


class Notes:
    """What is known about tensors while they live, by identity."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], Any]] = {}

    def __bool__(self) -> bool:
        """Tell whether anything has been noted."""
        return bool(self._known)

    def get(self, x: Any) -> Any:
        """Return what is known about a tensor, or None."""
        reference, known = self._known.get(id(x), (None, None))
        return known if reference is not None and reference() is x else None

    def set(self, x: Tensor, known: Any) -> None:
        """Note something about a tensor."""
        self._known[id(x)] = (weakref.ref(x), known)


@dataclass(frozen=True)
class Call:
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
        args = tuple(
            x if i == position else arg if other is None else other
            for i, arg in enumerate(self.args)
        )
        return self.func(*args, **self.kwargs)

    def axis(self, default: Any = None) -> Any:
        """Return the axis that it works along."""
        return self.kwargs.get("dim", self.args[1] if len(self.args) > 1 else default)


def is_followed(name: str) -> bool:
    """Tell whether an operation of this name is one that may be done to scores, keys or values."""
    return name in _KNOWN


def begins_history(name: str, args: tuple[Any, ...]) -> bool:
    """Tell whether an operation scales a tensor by a number, or normalises it."""
    return name == "normalize" or (
        name in _SCALING and len(args) == 2 and (_is_number(args[0]) or _is_number(args[1]))
    )


def follow_features(call: Call, histories: Notes) -> None:
    """Note by what numbers keys and values are scaled, or that they are normalised, on their way to
    the products.

    The history of a tensor is a tuple of functions that do to a prefix what was done to each of its
    vectors.
    """
    for position, x in enumerate(call.operands):
        if not isinstance(x, Tensor):
            continue
        history = histories.get(x)
        if call.name == "normalize" or (
            call.name in _SCALING and len(call.args) == 2 and _is_number(call.args[1 - position])
        ):

            def step(prefix: Tensor, position: int = position) -> Any:
                return call.again(position, prefix)

            histories.set(call.result, (*(history or ()), step))
        elif history is not None and call.name in _COPYING:
            for part in call.result if isinstance(call.result, tuple | list) else (call.result,):
                histories.set(part, history)
        if history is not None:
            return


def follow_scores(call: Call, companions: Notes, alibi: bool) -> None:
    """Give the result of an operation on scores its companion, where the operation is one that
    keeps scores scores.
    """
    known = [
        (companions.get(x), position)
        for position, x in enumerate(call.operands)
        if isinstance(x, Tensor)
    ]
    known = [(companion, position) for companion, position in known if companion is not None]
    if not known or not isinstance(call.result, Tensor):
        return
    # Of two terms of a sum, the first made is q K^T; the others are products of queries with
    # positions.
    companion, position = min(known, key=lambda pair: pair[0].turn.number)
    followed = _followed(call, companion, position, companions, alibi)
    if followed is not None:
        companions.set(call.result, followed)


def _followed(
    call: Call, companion: Companion, position: int, companions: Notes, alibi: bool
) -> Companion | None:
    x, axis, columns = call.operands[position], companion.axis, companion.columns
    name, result = call.name, call.result
    if name in _MOVING:
        marked = call.again(
            position, torch.empty([2 if d == x.dim() + axis else 1 for d in range(x.dim())])
        )
        return replace(
            companion, columns=call.again(position, columns), axis=marked.shape.index(2) - x.dim()
        )
    changed = _changed(call, companion, position, companions, alibi)
    if changed is None:
        return None
    wanted = list(result.shape)
    wanted[axis] = changed.shape[axis]
    if list(changed.shape) != wanted:
        if not all(
            have in (1, want)
            for have, want in zip(reversed(changed.shape), reversed(wanted), strict=False)
        ):
            return None
        changed = changed.expand(wanted)
    return replace(companion, columns=changed, weights=companion.weights or name == "exp")


def _changed(
    call: Call, companion: Companion, position: int, companions: Notes, alibi: bool
) -> Tensor | None:
    """Return the columns after an operation that leaves the axis of the keys where it is; None for
    one unknown.
    """
    x, axis, columns = call.operands[position], companion.axis, companion.columns
    name, result = call.name, call.result
    changed: Tensor | None = None
    if name in _SCALING or name in _ADDING:
        changed = _calculated(call, companion, position, alibi)
    elif name in _ALIKE:
        changed = call.again(position, columns)
    elif name in _MASKING or (name == "narrow" and call.axis() in (axis, axis + x.dim())):
        changed = columns
    elif name == "cat":
        changed = _concatenated(call, companion, companions)
    elif name in _RESHAPING and axis == -1 and result.dim() and result.shape[-1] == x.shape[-1]:
        changed = columns.reshape(*result.shape[:-1], columns.shape[-1])
    elif (
        name == "__getitem__" and (index := _past_the_keys(call.args[1], x.dim(), axis)) is not None
    ):
        changed = columns[index]
    return changed


def _calculated(call: Call, companion: Companion, position: int, alibi: bool) -> Tensor | None:
    """Follow sums, differences, products and quotients with a number, or with a tensor alike for
    all keys.
    """
    x, axis = call.args[position], companion.axis
    other = call.args[1 - position] if len(call.args) > 1 else None
    if not isinstance(other, Tensor) or not other.dim() or size(other, axis) != x.shape[axis]:
        changed: Tensor = call.again(position, companion.columns)
        return changed
    if alibi and not companion.weights and axis == -1:
        changed = call.again(position, companion.columns, own_position(other, x.shape[-2]))
        return changed
    return companion.columns


def _concatenated(call: Call, companion: Companion, companions: Notes) -> Tensor | None:
    axis, dims = call.axis(0), call.result.dim()
    if axis in (companion.axis, companion.axis + dims):
        return companion.columns
    parts = [companions.get(x) for x in call.operands]
    if any(part is None for part in parts):
        return None
    return torch.cat([part.columns for part in parts], dim=axis)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) or (isinstance(x, Tensor) and x.numel() == 1)


def size(x: Tensor, axis: int) -> int:
    """Return the length of an axis, counted from the end, that a tensor may be too short to have."""
    return x.shape[axis] if x.dim() >= -axis else 1


def _past_the_keys(index: Any, dims: int, axis: int) -> tuple[Any, ...] | None:
    """Return an index without what it says about the axis of the keys; None where it does more than
    cut along axes.
    """
    entries = list(index) if isinstance(index, tuple) else [index]
    if not all(isinstance(entry, int | slice) or entry is Ellipsis for entry in entries):
        return None
    missing = [slice(None)] * (dims - sum(entry is not Ellipsis for entry in entries))
    where = entries.index(Ellipsis) if Ellipsis in entries else len(entries)
    entries[where : where + 1] = missing
    if not isinstance(entries[axis], slice) or any(
        isinstance(entry, int) for entry in entries[dims + axis :]
    ):
        return None
    entries[axis] = slice(None)
    return tuple(entries)


def own_position(bias: Tensor, queries: int) -> Tensor:
    """Return the bias [..., queries or 1, keys] that each query gives the key of its own position:
    [..., queries, 1].

    ALiBi may be written as slope * key position, which equals slope * -distance only after the
    softmax. Beside it, a bias of 0 would place the prefix at the first token, or at the last. This
    places it where the query is.
    """
    if size(bias, -2) == 1:
        own = bias[..., bias.shape[-1] - queries :]
        own = own.squeeze(-2) if bias.dim() > 1 else own
    else:
        own = bias.diagonal(bias.shape[-1] - queries, -2, -1)
    hidden = own <= torch.finfo(bias.dtype).min / 2  # a padded query is masked from itself
    return own.masked_fill(hidden, 0.0).unsqueeze(-1)
