"""Learned keys and values joined in the attention itself, whatever code computes it.

``softmax([q Pk^T, q K^T]) [Pv; V]`` asks nothing of the model but its own operations, so the
prefix's columns travel beside the scores. `Joining` watches the tensor operations of one attention
module (a ``TorchFunctionMode``). At the product of queries and keys it computes the prefix's scores
as a companion of the model's. What the model then does to each score alone (scale, soft cap, cast,
reshape) is done to the companion too; what says which keys a query may see (masks, position biases)
is not, so that every query sees the whole prefix. The softmax is taken over both, and at the
product with the values the prefix's part is added. ``scaled_dot_product_attention`` does all this
in one call: there, keys and values are concatenated.

Nothing outlives the forward pass: a cache never holds the prefix, and gradient checkpointing
recomputes it.
"""

import contextlib
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from peftkit.errors import TargetError
from peftkit.methods.prefix import matrix_products as products
from peftkit.methods.prefix.matrix_products import Heads, Product, per_head
from peftkit.methods.prefix.scores import (
    Call,
    Companion,
    Notes,
    Turn,
    begins_history,
    follow_features,
    follow_scores,
    is_followed,
    own_position,
)

_TRANSPOSED = ("T", "mT", "H", "mH")


@dataclass(frozen=True)
class Prefix:
    """Learned keys and values of one attention module, and what must be known of it to join them."""

    keys: Tensor
    """[groups, n, width of a key]; groups is the number of key-value heads."""
    values: Tensor
    """[groups, n, width of a value]"""
    heads: Heads
    alibi: bool = False
    """Whether a bias that grows with a key's position is added to the scores (ALiBi,
    arXiv:2108.12409).
    """


class Joining(TorchFunctionMode):
    """Joins a prefix in the one attention module whose forward pass runs inside it.

    `complete` tells afterwards whether the prefix has taken part in it: whether there was a softmax
    over scores, and the weights of every such softmax have met the values.
    """

    def __init__(self, prefix: Prefix) -> None:
        super().__init__()
        self.prefix = prefix
        self._turns: list[Turn] = []
        self._products = 0
        self._companions, self._histories = Notes(), Notes()

    @property
    def complete(self) -> bool:
        """Whether the prefix has joined."""
        joined = any(turn.done for turn in self._turns)
        return joined and all(turn.done or turn.foreign for turn in self._turns)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Any = None,
    ) -> Any:
        """Run one operation of the model, joined where it is one that the prefix takes part in."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self:
                return _multi_head_attention_forward(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__":  # x.T, and also x.shape
            name = (
                "permute"
                if getattr(getattr(func, "__self__", None), "__name__", "") in _TRANSPOSED
                else ""
            )
        if name in ("softmax", "logsumexp"):
            companion = self._companions.get(args[0] if args else kwargs.get("input"))
            if companion is not None:
                return self._normalise(
                    companion, Call(name, func, args or (kwargs.pop("input"),), kwargs, None)
                )
        result = func(*args, **kwargs)
        if name in products.NAMES:
            return self._multiply(products.read(name, args, kwargs), result)
        if is_followed(name) and (
            self._companions or self._histories or begins_history(name, args)
        ):
            call = Call(name, func, args, kwargs, result)
            follow_features(call, self._histories)
            follow_scores(call, self._companions, self.prefix.alibi)
        return result

    # Attention in one call

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        prefix, tokens = self.prefix, key.shape[-2]
        count = prefix.keys.shape[1]
        repeats = query.shape[-3] // key.shape[-3] if enable_gqa else 1
        key, value = self._concatenated(prefix.keys, key), self._concatenated(prefix.values, value)
        if attn_mask is not None:
            attn_mask = self._widened(attn_mask, count, tokens)
        elif is_causal and query.shape[-2] == tokens:
            # Aligned at the end, the triangle leaves every query the whole prefix; fused kernels
            # know this form.
            with (
                _disable_current_modes()
            ):  # one that counts or fakes tensors would have a tensor of another class made
                attn_mask = causal_lower_right(tokens, count + tokens)
            if torch.is_autocast_enabled(query.device.type):  # which passes this form of a mask by
                dtype = torch.get_autocast_dtype(query.device.type)
                query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        elif is_causal:
            seen = torch.ones(query.shape[-2], tokens, dtype=torch.bool, device=query.device).tril()
            attn_mask = F.pad(seen, (count, 0), value=True)
        if attn_mask is not None and enable_gqa:  # with a mask, no fused kernel takes groups
            enable_gqa = False
            key, value = (
                key.repeat_interleave(repeats, dim=-3),
                value.repeat_interleave(repeats, dim=-3),
            )
        self._turns.append(Turn(0, done=True))
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attn_mask,
            dropout_p=dropout_p,
            scale=scale,
            enable_gqa=enable_gqa,
        )

    def _concatenated(self, learned: Tensor, real: Tensor) -> Tensor:
        """Return the prefix's keys (or values) in front of the model's."""
        ours = per_head(
            self._replayed(learned, real).to(real.dtype), real.shape[:-2], self.prefix.heads
        )
        if ours is None or ours.shape[-1] != real.shape[-1]:
            raise TargetError(
                f"a prefix of {tuple(learned.shape)} (heads, tokens, features) does not fit keys of {tuple(real.shape)}"
            )
        return torch.cat([ours.expand(*real.shape[:-2], -1, -1), real], dim=-2)

    def _widened(self, mask: Tensor, count: int, tokens: int) -> Tensor:
        """Return a mask with columns for the prefix in front: all visible."""
        mask = mask.expand(*mask.shape[:-1], tokens)
        if mask.dtype != torch.bool and self.prefix.alibi:
            return torch.cat(
                [own_position(mask, mask.shape[-2]).expand(*mask.shape[:-1], count), mask], dim=-1
            )
        return F.pad(mask, (count, 0), value=True if mask.dtype == torch.bool else 0.0)

    # Attention step by step

    def _multiply(self, product: Product | None, result: Tensor) -> Tensor:
        if product is None:
            return result
        for operand in (product.left, product.right):
            companion = self._companions.get(operand)
            if companion is not None and companion.weights:
                return self._add_values(product, operand is product.left, companion, result)
        if product.width == self.prefix.keys.shape[-1]:
            keys = self._replayed(
                self.prefix.keys, product.right if product.queries_first else product.left
            )
            columns = product.scores(keys, self.prefix.heads)
            if columns is not None:
                if product.bias is not None and self.prefix.alibi:
                    columns = columns + own_position(product.bias, result.shape[-2])
                self._note_scores(result, columns)
        return result

    def _note_scores(self, scores: Tensor, columns: Tensor) -> None:
        self._products += 1
        self._companions.set(scores, Companion(columns, Turn(self._products)))

    def _add_values(
        self, product: Product, left: bool, companion: Companion, result: Tensor
    ) -> Tensor:
        if (
            companion.turn.done
        ):  # a part of the weights, of which another part has met its values already
            return result
        values = self._replayed(self.prefix.values, product.right if left else product.left)
        extra = product.values(companion.columns, companion.axis, left, values, self.prefix.heads)
        if extra is None:
            return result
        if not _broadcasts(extra, result):
            companion.turn.foreign = True  # LiLT weighs its layout with the scores of its text
            return result
        companion.turn.done = True
        self._turns.append(companion.turn)
        return result + extra.to(result.dtype)

    def _normalise(self, companion: Companion, call: Call) -> Any:
        """Take the softmax (or its normaliser, log sum exp) over the prefix's scores and the
        model's.
        """
        scores, axis = call.args[0], companion.axis
        if companion.weights or call.axis(-1) not in (axis, axis + scores.dim()):
            return call.again(0, scores)  # not over the keys
        both = call.again(0, torch.cat([companion.columns.to(scores.dtype), scores], dim=axis))
        if call.name == "logsumexp":
            return both  # the model subtracts it from the scores, and takes exp
        turn = Turn(companion.turn.number)
        self._turns.append(turn)
        count = companion.columns.shape[axis]
        ours, theirs = both.split([count, both.shape[axis] - count], dim=axis)
        self._companions.set(theirs, Companion(ours, turn, axis, weights=True))
        return theirs

    def _replayed(self, prefix: Tensor, real: Tensor) -> Tensor:
        """Return the prefix after what was done to each of the model's keys (or values) since they
        were projected.
        """
        for step in self._histories.get(real) or ():
            prefix = step(prefix)
        return prefix

    # Attention in chunks along the diagonal (Longformer, LED), whose scores are no product of two
    # tensors

    @contextlib.contextmanager
    def in_chunks(self, module: nn.Module) -> Iterator[None]:
        """Join in the two methods with which a module multiplies along the diagonal, if it has
        them.
        """
        multiply = getattr(module, "_sliding_chunks_query_key_matmul", None)
        if multiply is None:
            yield
            return
        weigh: Any = module._sliding_chunks_matmul_attn_probs_value

        def scores(
            query: Tensor, key: Tensor, window: int
        ) -> Tensor:  # [batch, tokens, heads, features]
            found: Tensor = multiply(query, key, window)
            if query.shape[-1] == self.prefix.keys.shape[-1]:
                self._note_scores(
                    found, torch.einsum("bthd,hnd->bthn", query, self.prefix.keys.to(query.dtype))
                )
            return found

        def output(weights: Tensor, value: Tensor, window: int) -> Tensor:
            found: Tensor = weigh(weights, value, window)
            companion = self._companions.get(weights)
            if companion is not None and not companion.turn.done:
                companion.turn.done = True
                found = found + torch.einsum(
                    "bthn,hnd->bthd", companion.columns, self.prefix.values.to(value.dtype)
                )
            return found

        module.__dict__.update(
            _sliding_chunks_query_key_matmul=scores, _sliding_chunks_matmul_attn_probs_value=output
        )
        try:
            yield
        finally:
            del (
                module._sliding_chunks_query_key_matmul,
                module._sliding_chunks_matmul_attn_probs_value,
            )


def _broadcasts(extra: Tensor, result: Tensor) -> bool:
    sizes = zip(reversed(extra.shape), reversed(result.shape), strict=False)
    return extra.dim() <= result.dim() and all(a in (1, b) for a, b in sizes)


# nn.functional's own code for nn.MultiheadAttention, except that it does not hand itself to the
# mode once more: the operations inside are then seen one by one.
_multi_head_attention_forward = types.FunctionType(
    F.multi_head_attention_forward.__code__,
    {**F.multi_head_attention_forward.__globals__, "has_torch_function": lambda operands: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)
