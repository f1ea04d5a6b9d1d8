"""Where a prefix meets attention: softmax([q Pk^T, q K^T]) [Pv; V], whatever code computes it.

`AttentionWithPrefix`, a ``TorchFunctionMode``, watches the tensor operations of one attention
module. At the product of queries and keys, it computes the prefix's scores q Pk^T, as columns
beside the model's scores. What the model then does to each score alone (scale, soft cap, cast,
reshape) is done to these columns too. What says which keys a query may see (masks, position biases)
is not, so every query sees the whole prefix. The softmax is taken over both, and at the product
with the values the prefix's part is added. ``scaled_dot_product_attention`` does all this in one
call: there, keys and values are concatenated.

Nothing outlives the forward pass: a cache never contains the prefix, and gradient checkpointing
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
from peftkit.methods.prefix.matrix_products import Heads, Product, spread_over_heads
from peftkit.methods.prefix.scores import (
    AttentionCall,
    Operation,
    PrefixColumns,
    TensorNotes,
    begins_history,
    follow_features,
    follow_scores,
    is_followed,
    own_position,
)

_TRANSPOSED = ("T", "mT", "H", "mH")


@dataclass(frozen=True)
class Prefix:
    """Learned keys and values of one attention module, and how its heads are laid out."""

    keys: Tensor
    """[groups, n, width of a key]; groups is the number of key-value heads."""
    values: Tensor
    """[groups, n, width of a value]"""
    heads: Heads
    alibi: bool = False
    """Whether the scores get a bias that grows with a key's position (ALiBi, arXiv:2108.12409)."""


class AttentionWithPrefix(TorchFunctionMode):
    """Lets a prefix take part in the one attention module whose forward pass runs inside it.

    Afterwards, `has_joined` is whether the prefix has taken part: whether there was a softmax over
    scores, and the weights of every such softmax have met the values.
    """

    def __init__(self, prefix: Prefix) -> None:
        super().__init__()
        self.prefix = prefix
        self._attention_calls: list[AttentionCall] = []
        self._products = 0
        self._columns = TensorNotes()
        self._histories = TensorNotes()

    @property
    def has_joined(self) -> bool:
        """Whether the prefix has taken part."""
        joined = any(call.done for call in self._attention_calls)
        return joined and all(call.done or call.foreign for call in self._attention_calls)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Any = None,
    ) -> Any:
        """Run one operation of the model, with the prefix where it takes part."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self:
                return _multi_head_attention_forward(*args, **kwargs)
        name = _name_of(func)
        if name in ("softmax", "logsumexp"):
            columns = self._columns.get(args[0] if args else kwargs.get("input"))
            if columns is not None:
                args = args or (kwargs.pop("input"),)
                return self._normalise(columns, Operation(name, func, args, kwargs, None))
        result = func(*args, **kwargs)
        if name in products.NAMES:
            return self._multiply(products.read_product(name, args, kwargs), result)
        if not is_followed(name):
            return result
        if self._columns or self._histories or begins_history(name, args):
            operation = Operation(name, func, args, kwargs, result)
            follow_features(operation, self._histories)
            follow_scores(operation, self._columns, self.prefix.alibi)
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
        """Compute ``scaled_dot_product_attention`` over [Pk; K] and [Pv; V].

        query, key and value are [..., heads, tokens, width].
        """
        prefix, tokens = self.prefix, key.shape[-2]
        count = prefix.keys.shape[1]
        repeats = query.shape[-3] // key.shape[-3] if enable_gqa else 1
        key, value = self._concatenated(prefix.keys, key), self._concatenated(prefix.values, value)
        if attn_mask is not None:
            attn_mask = self._widened(attn_mask, count, tokens)
        elif is_causal and query.shape[-2] == tokens:
            # Aligned at the end, the triangle leaves every query the whole prefix. Fused kernels
            # know this form. Modes that count or fake tensors would make it another class.
            with _disable_current_modes():
                attn_mask = causal_lower_right(tokens, count + tokens)
            if torch.is_autocast_enabled(query.device.type):  # it does not cast beside such a mask
                dtype = torch.get_autocast_dtype(query.device.type)
                query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        elif is_causal:
            seen = torch.ones(query.shape[-2], tokens, dtype=torch.bool, device=query.device).tril()
            attn_mask = F.pad(seen, (count, 0), value=True)
        if attn_mask is not None and enable_gqa:  # with a mask, no fused kernel takes groups
            enable_gqa = False
            key = key.repeat_interleave(repeats, dim=-3)
            value = value.repeat_interleave(repeats, dim=-3)
        self._attention_calls.append(AttentionCall(0, done=True))
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
        """Return the prefix's keys (or values) before the model's, [..., n + tokens, width]."""
        replayed = self._replayed(learned, real).to(real.dtype)
        ours = spread_over_heads(replayed, real.shape[:-2], self.prefix.heads)
        if ours is None or ours.shape[-1] != real.shape[-1]:
            raise TargetError(
                f"a prefix of {tuple(learned.shape)} (heads, tokens, features) does not fit keys "
                f"of {tuple(real.shape)}"
            )
        return torch.cat([ours.expand(*real.shape[:-2], -1, -1), real], dim=-2)

    def _widened(self, mask: Tensor, count: int, tokens: int) -> Tensor:
        """Return a mask [..., queries, n + tokens] in which every query sees the whole prefix."""
        mask = mask.expand(*mask.shape[:-1], tokens)
        if mask.dtype == torch.bool:
            return F.pad(mask, (count, 0), value=True)
        if not self.prefix.alibi:
            return F.pad(mask, (count, 0), value=0.0)
        own = own_position(mask, mask.shape[-2])  # [..., queries, 1]
        return torch.cat([own.expand(*mask.shape[:-1], count), mask], dim=-1)

    # Attention step by step

    def _multiply(self, product: Product | None, result: Tensor) -> Tensor:
        """Return a product, which may be q K^T or that of the weights and V, with the prefix."""
        if product is None:
            return result
        for operand in (product.left, product.right):
            noted = self._columns.get(operand)
            if noted is not None and noted.weights:
                return self._add_values(product, operand is product.left, noted, result)
        if product.width != self.prefix.keys.shape[-1]:
            return result
        real = product.right if product.queries_first else product.left
        keys = self._replayed(self.prefix.keys, real)
        columns = product.scores(keys, self.prefix.heads)  # q Pk^T, [..., queries, n]
        if columns is not None:
            if product.bias is not None and self.prefix.alibi:
                columns = columns + own_position(product.bias, result.shape[-2])
            self._note_scores(result, columns)
        return result

    def _note_scores(self, scores: Tensor, columns: Tensor) -> None:
        self._products += 1
        self._columns.set(scores, PrefixColumns(columns, AttentionCall(self._products)))

    def _add_values(
        self, product: Product, left: bool, columns: PrefixColumns, result: Tensor
    ) -> Tensor:
        """Add the prefix's weights times Pv to the product of the model's weights and V."""
        if columns.attention.done:  # another part of these weights has met its values already
            return result
        values = self._replayed(self.prefix.values, product.right if left else product.left)
        extra = product.values(columns.columns, columns.axis, left, values, self.prefix.heads)
        if extra is None:
            return result
        if not _broadcasts(extra, result):
            columns.attention.foreign = True  # LiLT weighs its layout with the scores of its text
            return result
        columns.attention.done = True
        self._attention_calls.append(columns.attention)
        return result + extra.to(result.dtype)

    def _normalise(self, noted: PrefixColumns, operation: Operation) -> Any:
        """Take the softmax, or its logarithmic normaliser, over the scores of prefix and model."""
        scores, axis = operation.args[0], noted.axis
        if noted.weights or operation.axis(-1) not in (axis, axis + scores.dim()):
            return operation.again(0, scores)  # not over the keys
        together = torch.cat([noted.columns.to(scores.dtype), scores], dim=axis)  # n + keys
        both = operation.again(0, together)
        if operation.name == "logsumexp":
            return both  # the model subtracts it from the scores, and takes exp
        call = AttentionCall(noted.attention.number)
        self._attention_calls.append(call)
        count = noted.columns.shape[axis]
        ours, theirs = both.split([count, both.shape[axis] - count], dim=axis)
        self._columns.set(theirs, PrefixColumns(ours, call, axis, weights=True))
        return theirs

    def _replayed(self, prefix: Tensor, real: Tensor) -> Tensor:
        """Do to the prefix what was done to the model's keys (or values) since the projection."""
        for step in self._histories.get(real) or ():
            prefix = step(prefix)
        return prefix

    # Attention in chunks along the diagonal (Longformer, LED): scores are not one matrix product

    @contextlib.contextmanager
    def in_chunks(self, module: nn.Module) -> Iterator[None]:
        """Replace the two methods with which a module multiplies along the diagonal, if any."""
        multiply = getattr(module, "_sliding_chunks_query_key_matmul", None)
        if multiply is None:
            yield
            return
        weigh: Any = module._sliding_chunks_matmul_attn_probs_value

        def compute_scores(query: Tensor, key: Tensor, window: int) -> Tensor:
            """Return scores of queries [batch, tokens, heads, width], and note the prefix's."""
            found: Tensor = multiply(query, key, window)
            if query.shape[-1] == self.prefix.keys.shape[-1]:
                keys = self.prefix.keys.to(query.dtype)  # [heads, n, width]
                self._note_scores(found, torch.einsum("bthd,hnd->bthn", query, keys))
            return found

        def compute_output(weights: Tensor, value: Tensor, window: int) -> Tensor:
            """Return the weighted values [batch, tokens, heads, width], with the prefix's."""
            found: Tensor = weigh(weights, value, window)
            columns = self._columns.get(weights)
            if columns is not None and not columns.attention.done:
                columns.attention.done = True
                values = self.prefix.values.to(value.dtype)  # [heads, n, width]
                found = found + torch.einsum("bthn,hnd->bthd", columns.columns, values)
            return found

        module.__dict__.update(
            _sliding_chunks_query_key_matmul=compute_scores,
            _sliding_chunks_matmul_attn_probs_value=compute_output,
        )
        try:
            yield
        finally:
            del (
                module._sliding_chunks_query_key_matmul,
                module._sliding_chunks_matmul_attn_probs_value,
            )


def _name_of(func: Any) -> str:
    """Return the name of an operation; an attribute such as x.T is a permutation."""
    name: str = getattr(func, "__name__", "")
    if name != "__get__":
        return name
    attribute = getattr(getattr(func, "__self__", None), "__name__", "")
    return "permute" if attribute in _TRANSPOSED else ""  # x.shape is one too


def _broadcasts(extra: Tensor, result: Tensor) -> bool:
    """Whether `extra` broadcasts to the shape of `result`."""
    sizes = zip(reversed(extra.shape), reversed(result.shape), strict=False)
    return extra.dim() <= result.dim() and all(a in (1, b) for a, b in sizes)


# The code of nn.functional for nn.MultiheadAttention, without its first step, in which it hands
# itself to the mode again. So the mode sees the operations inside one by one.
_multi_head_attention_forward = types.FunctionType(
    F.multi_head_attention_forward.__code__,
    {**F.multi_head_attention_forward.__globals__, "has_torch_function": lambda operands: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)
