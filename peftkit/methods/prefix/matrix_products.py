"""Repeats the two matrix products of attention for a prefix, in the layout of the model's code."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NAMES = frozenset(("matmul", "__matmul__", "__rmatmul__", "bmm", "baddbmm", "einsum"))


@dataclass(frozen=True)
class Heads:
    """How the heads of an attention are found in its tensors."""

    number: int
    """Heads of the queries."""
    before_blocks: bool = False
    """Whether axes of blocks or windows follow that of the heads.

    Otherwise the heads have the last axis before the tokens.
    """
    batches: tuple[int, ...] = ()
    """Sizes that the batch may have."""

    @property
    def batches_times_heads(self) -> list[int]:
        """Sizes that an axis over batch and heads may have."""
        return [batch * self.number for batch in self.batches]

    def axis(self, sizes: Sequence[int], groups: int) -> int | None:
        """Return which axis (batch first) is that of the heads, or of the groups of heads."""
        axes = range(1, len(sizes)) if self.before_blocks else range(len(sizes) - 1, 0, -1)
        for wanted in (self.number, groups):
            for axis in axes:
                if sizes[axis] == wanted:
                    return axis
        return None


@dataclass(frozen=True)
class Product:
    """A product of two activations: ``factor * left @ right + bias``, or an einsum."""

    left: Tensor
    right: Tensor
    letters: tuple[str, str, str] | None = None
    """The axes of the left operand, the right operand and the output of an einsum."""
    factor: float = 1
    bias: Tensor | None = None

    @property
    def queries_first(self) -> bool:
        """Whether the left operand has the queries: the scores' last axis is that of the keys."""
        return self.letters is None or self.letters[2][-1:] in self.letters[1]

    @property
    def width(self) -> int | None:
        """How many features are summed over; None if this is not queries times keys."""
        if self.letters is None:
            return self.left.shape[-1]
        left, right, output = self.letters
        summed = [letter for letter in left if letter in right and letter not in output]
        shared = [letter for letter in left if letter in right and letter in output]
        if len(summed) != 1 or not shared or (output[-1] in left) == (output[-1] in right):
            return None  # a table of positions shares no batch with the queries
        return self.left.shape[left.index(summed[0])]

    def scores(self, keys: Tensor, heads: Heads) -> Tensor | None:
        """Return the scores of keys [groups, n, width] in this product's layout, n its last axis.

        None is returned where no axis can be that of the heads: this is another product.
        """
        query = self.left if self.queries_first else self.right
        keys = keys.to(query.dtype)
        if self.letters is None:
            here = spread_over_heads(keys, query.shape[:-2], heads)
            if here is None:
                return None
            return query @ here.mT * self.factor  # [..., queries, n]
        left, right, output = self.letters
        if not self.queries_first:
            left, right = right, left
        summed = [letter for letter in left if letter in right and letter not in output]
        return _einsum(query, left, keys, output[-1] + summed[0], output, right, heads)

    def values(
        self, weights: Tensor, axis: int, left: bool, values: Tensor, heads: Heads
    ) -> Tensor | None:
        """Return the prefix's weights times its values, in this product's layout.

        None is returned where the heads, or the features of the values, are not found.

        Args:
            weights: Laid out like one operand of the product, with n at `axis`.
            axis: The axis of n, counted from the end.
            left: Whether it is the left operand.
            values: [groups, n, width].
            heads: How to find the heads.
        """
        values = values.to(weights.dtype)
        if self.letters is not None:
            own, other, output = self.letters
            if not left:
                own, other = other, own
            width = [letter for letter in other if letter not in own]
            if own[axis] in output or len(width) != 1:
                return None
            return _einsum(weights, own, values, own[axis] + width[0], output, other, heads)
        here = spread_over_heads(values, weights.shape[:-2], heads)
        if here is None:
            return None
        return weights @ here if left else here.mT @ weights


def read_product(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Product | None:
    """Return a call of one of `NAMES` as a product.

    None is returned where an operand is a weight, or the call has another form.
    """
    if name == "einsum":
        return _read_einsum(args)
    if name == "baddbmm":
        named = dict(zip(("input", "batch1", "batch2"), args, strict=False)) | kwargs
        factor, beta = named.get("alpha", 1), named.get("beta", 1)
        bias = named["input"] * beta if beta else None
        product = Product(named["batch1"], named["batch2"], None, factor, bias)
    else:
        left, right = [*args, *kwargs.values()][:2]
        product = Product(right, left) if name == "__rmatmul__" else Product(left, right)
    if not _is_activation(product.left) or not _is_activation(product.right):
        return None
    return product if product.right.dim() > 2 else None


def _read_einsum(args: Sequence[Any]) -> Product | None:
    """Return an einsum of two activations as a product, with a letter for every axis."""
    operands = args[1] if len(args) == 2 and not isinstance(args[1], Tensor) else args[1:]
    if not isinstance(args[0], str) or "->" not in args[0] or len(operands) != 2:
        return None
    left, right = operands
    if not _is_activation(left) or not _is_activation(right):
        return None
    inputs, output = args[0].replace(" ", "").split("->")
    left_term, right_term = inputs.split(",")
    spare = "".join(letter for letter in "ABCDEFGHIJ" if letter not in args[0])
    in_left = _count_unnamed(left, left_term)
    in_right = _count_unnamed(right, right_term)
    most = max(in_left, in_right)
    # The axes of an ellipsis are aligned at their end.
    letters = (
        left_term.replace("...", spare[most - in_left : most]),
        right_term.replace("...", spare[most - in_right : most]),
        output.replace("...", spare[:most]),
    )
    return Product(left, right, letters)


def _count_unnamed(x: Tensor, term: str) -> int:
    """Return how many axes of an operand the ellipsis in its term stands for."""
    return x.dim() - len(term.replace("...", "")) if "..." in term else 0


def _is_activation(x: Any) -> bool:
    """Whether x is a matrix, or has more axes, and was computed; it is not a weight."""
    return (
        isinstance(x, Tensor)
        and x.is_floating_point()
        and x.dim() > 1
        and not isinstance(x, nn.Parameter)
    )


def spread_over_heads(prefix: Tensor, lead: Sequence[int], heads: Heads) -> Tensor | None:
    """Return the prefix in a form that broadcasts to [*lead, n, width], each head with its group.

    None is returned where no axis is that of the heads.

    Args:
        prefix: [groups, n, width].
        lead: The axes of a tensor of the model before [tokens, features]: (batch, heads),
            (batch * heads,), (batch, groups, heads per group), (batch, heads, blocks), or anything
            where all heads share one group.
        heads: How to find the heads.
    """
    groups = prefix.shape[0]
    if groups == 1:
        return prefix[0]
    in_group = heads.number // groups
    spread = prefix.repeat_interleave(in_group, dim=0)  # [heads, n, width]
    if len(lead) == 1:
        if lead[0] in heads.batches_times_heads:
            return spread.repeat(lead[0] // heads.number, 1, 1)
        return prefix if lead[0] == groups else None
    has_groups = len(lead) == 3 and groups < heads.number and lead[1] == groups
    if has_groups and lead[2] in (1, in_group):
        return prefix.unsqueeze(1)  # [groups, 1, n, width]
    axis = heads.axis(lead, groups)
    if axis is None:
        return None
    found = spread if lead[axis] == heads.number else prefix
    ones = [1] * (len(lead) - axis - 1)  # for the axes between heads and tokens
    return found.reshape(found.shape[0], *ones, *found.shape[1:])


def _einsum(
    x: Tensor, own: str, prefix: Tensor, axes: str, output: str, other: str, heads: Heads
) -> Tensor | None:
    """Contract x with the prefix [groups, n, width]; `axes` are its last two axes' letters."""
    shared = [letter for letter in own if letter in output and letter in other]
    groups = prefix.shape[0]
    if groups == 1:
        return torch.einsum(f"{own},{axes}->{output}", x, prefix[0])
    sizes = [x.shape[own.index(letter)] for letter in shared]
    axis = heads.axis(sizes, groups)
    if axis is None:
        return None
    found = prefix
    if sizes[axis] != groups:
        found = prefix.repeat_interleave(heads.number // groups, dim=0)  # [heads, n, width]
    return torch.einsum(f"{own},{shared[axis]}{axes}->{output}", x, found)
