"""The two products of attention, repeated for learned keys and values in whatever layout the
model's own code has.
"""

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
    """Whether axes of blocks or windows follow that of the heads; otherwise it is the last before
    the tokens.
    """
    batches: tuple[int, ...] = ()
    """What the batch size may be."""

    @property
    def batches_times_heads(self) -> list[int]:
        """What the size of an axis may be that runs over batch and heads."""
        return [batch * self.number for batch in self.batches]

    def axis(self, sizes: Sequence[int], groups: int) -> int | None:
        """Return which of the axes (batch first) is that of the heads, or of the groups of heads."""
        axes = range(1, len(sizes)) if self.before_blocks else range(len(sizes) - 1, 0, -1)
        return next(
            (axis for wanted in (self.number, groups) for axis in axes if sizes[axis] == wanted),
            None,
        )


@dataclass(frozen=True)
class Product:
    """A product of two activations, taken apart: ``factor * left @ right + bias``, or an einsum
    with its `letters`.
    """

    left: Tensor
    right: Tensor
    letters: tuple[str, str, str] | None = None
    factor: float = 1
    bias: Tensor | None = None

    @property
    def queries_first(self) -> bool:
        """Whether the left operand holds the queries, when the last axis of the scores is that of
        the keys.
        """
        return self.letters is None or self.letters[2][-1:] in self.letters[1]

    @property
    def width(self) -> int | None:
        """How many features are summed over; None where the operation is no product of queries and
        keys.
        """
        if self.letters is None:
            return self.left.shape[-1]
        left, right, output = self.letters
        summed = [letter for letter in left if letter in right and letter not in output]
        shared = [letter for letter in left if letter in right and letter in output]
        if len(summed) != 1 or not shared or (output[-1] in left) == (output[-1] in right):
            return None  # a table of positions shares no batch with the queries
        return self.left.shape[left.index(summed[0])]

    def scores(self, keys: Tensor, heads: Heads) -> Tensor | None:
        """Return the scores of keys [groups, n, width], laid out as this product's, with n for its
        last axis.

        None where no axis can be that of the heads: this is a product of something else.
        """
        query = self.left if self.queries_first else self.right
        keys = keys.to(query.dtype)
        if self.letters is None:
            here = per_head(keys, query.shape[:-2], heads)
            return None if here is None else query @ here.mT * self.factor
        left, right, output = self.letters
        if not self.queries_first:
            left, right = right, left
        summed = next(letter for letter in left if letter in right and letter not in output)
        return _einsum(query, left, keys, output[-1] + summed, output, right, heads)

    def values(
        self, weights: Tensor, axis: int, left: bool, values: Tensor, heads: Heads
    ) -> Tensor | None:
        """Return what `weights`, the prefix's part of one operand, give of values [groups, n,
        width].

        Args:
            weights: laid out as that operand, with n at `axis`.
            axis: where n stands, counted from the end.
            left: whether it is the left operand.
            values: the prefix's values.
            heads: how to find the heads. None is returned where they, or the features of the
                values, are not found.
        """
        values = values.to(weights.dtype)
        if self.letters is not None:
            own, other, output = (
                self.letters if left else (self.letters[1], self.letters[0], self.letters[2])
            )
            width = [letter for letter in other if letter not in own]
            if own[axis] in output or len(width) != 1:
                return None
            return _einsum(weights, own, values, own[axis] + width[0], output, other, heads)
        here = per_head(values, weights.shape[:-2], heads)
        if here is None:
            return None
        return weights @ here if left else here.mT @ weights


def read(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Product | None:
    """Return the call of one of `NAMES` taken apart, or None where an operand is a weight, or it
    has another form.
    """
    if name == "einsum":
        return _read_einsum(args)
    if name == "baddbmm":
        named = dict(zip(("input", "batch1", "batch2"), args, strict=False)) | kwargs
        factor, beta = named.get("alpha", 1), named.get("beta", 1)
        product = Product(
            named["batch1"], named["batch2"], None, factor, named["input"] * beta if beta else None
        )
    else:
        left, right = [*args, *kwargs.values()][:2]
        product = Product(right, left) if name == "__rmatmul__" else Product(left, right)
    return (
        product
        if _computed(product.left) and _computed(product.right) and product.right.dim() > 2
        else None
    )


def _read_einsum(args: Sequence[Any]) -> Product | None:
    operands = args[1] if len(args) == 2 and not isinstance(args[1], Tensor) else args[1:]
    if (
        not isinstance(args[0], str)
        or "->" not in args[0]
        or len(operands) != 2
        or not all(map(_computed, operands))
    ):
        return None
    inputs, output = args[0].replace(" ", "").split("->")
    terms = inputs.split(",")
    spare = "".join(letter for letter in "ABCDEFGHIJ" if letter not in args[0])
    unnamed = [
        x.dim() - len(term.replace("...", "")) for x, term in zip(operands, terms, strict=True)
    ]
    most = max([n for n, term in zip(unnamed, terms, strict=True) if "..." in term], default=0)
    named = [
        term.replace("...", spare[most - n : most]) for n, term in zip(unnamed, terms, strict=True)
    ]
    left, right = operands
    return Product(left, right, (named[0], named[1], output.replace("...", spare[:most])))


def _computed(x: Any) -> bool:
    return (
        isinstance(x, Tensor)
        and x.is_floating_point()
        and x.dim() > 1
        and not isinstance(x, nn.Parameter)
    )


def per_head(prefix: Tensor, lead: Sequence[int], heads: Heads) -> Tensor | None:
    """Return the prefix [groups, n, width] so that it broadcasts to [*lead, n, width], every query
    head with its group.

    `lead` are the axes of a tensor of the model before [tokens, features]: (batch, heads), (batch *
    heads,), (batch, groups, heads per group), (batch, heads, blocks), or anything at all where all
    heads share one group. None where no axis is that of the heads.
    """
    groups = prefix.shape[0]
    if groups == 1:
        return prefix[0]
    spread = prefix.repeat_interleave(heads.number // groups, dim=0)
    if len(lead) == 1:
        if lead[0] in heads.batches_times_heads:
            return spread.repeat(lead[0] // heads.number, 1, 1)
        return prefix if lead[0] == groups else None
    if (
        len(lead) == 3
        and groups < heads.number
        and lead[1] == groups
        and lead[2] in (1, heads.number // groups)
    ):
        return prefix.unsqueeze(1)
    axis = heads.axis(lead, groups)
    if axis is None:
        return None
    found = spread if lead[axis] == heads.number else prefix
    return found.reshape(found.shape[0], *[1] * (len(lead) - axis - 1), *found.shape[1:])


def _einsum(
    x: Tensor, own: str, prefix: Tensor, axes: str, output: str, other: str, heads: Heads
) -> Tensor | None:
    """Contract x with the prefix [groups, n, width], whose last two axes have the letters `axes`."""
    shared = [letter for letter in own if letter in output and letter in other]
    groups = prefix.shape[0]
    if groups == 1:
        return torch.einsum(f"{own},{axes}->{output}", x, prefix[0])
    sizes = [x.shape[own.index(letter)] for letter in shared]
    axis = heads.axis(sizes, groups)
    if axis is None:
        return None
    found = (
        prefix if sizes[axis] == groups else prefix.repeat_interleave(heads.number // groups, dim=0)
    )
    return torch.einsum(f"{own},{shared[axis]}{axes}->{output}", x, found)
