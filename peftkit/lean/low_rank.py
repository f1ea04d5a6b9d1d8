"""The low-rank update x -> s B A dropout(x) (arXiv:2106.09685, Eq. 3), which keeps no copy of anything for the backward pass.

Of x (tokens, in) it keeps x itself, in the dtype that the backbone gives it: layers that read the same x share it, and where x
can be computed again cheaply, not even that (`recomputation`). Beside it: A x (tokens, r), and the two matrices. Dropout is
drawn again from the generator's state, so that no masked copy and no mask is kept, and the masks are those of PEFT.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from peftkit.lean.recomputation import Kept, recomputed


def low_rank(x: Tensor, a: Tensor, b: Tensor, scale: float, dtype: torch.dtype, *, exact: bool = False) -> Tensor:
    """Return the update s B A x, (..., out).

    Args:
        x: (..., in).
        a: (r, in).
        b: (out, r).
        scale: s.
        dtype: Dtype of the matrix products, and of the result.
        exact: Round where PEFT rounds: multiply B A x with s, and not A x.
    """
    update: Tensor = _LowRank.apply(x, a, b, scale, dtype, exact, Kept.of(x))  # type: ignore[no-untyped-call]
    return update


def _product(x: Tensor, a: Tensor, b: Tensor, scale: float, exact: bool) -> tuple[Tensor, Tensor]:
    """Return the update, and the A x that the gradient of B is made with."""
    inner = F.linear(x, a)
    if exact:
        return F.linear(inner, b) * scale, inner
    inner *= scale
    return F.linear(inner, b), inner


class _LowRank(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, scale: float, dtype: torch.dtype, exact: bool, kept: Any
    ) -> Tensor:
        ctx.scale, ctx.exact, ctx.dtypes = scale, exact, (x.dtype, a.dtype, b.dtype)
        a, b = a.to(dtype), b.to(dtype)
        update, inner = _product(x.to(dtype), a, b, scale, exact)
        if kept is None:
            ctx.kept = None
            ctx.save_for_backward(a, b, inner, x)
        else:
            ctx.kept, tensors = kept
            ctx.save_for_backward(a, b, inner, *tensors)
        return update

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        a, b, inner, *saved = ctx.saved_tensors
        x = saved[0] if ctx.kept is None else ctx.kept.value(saved)
        (x_dtype, a_dtype, b_dtype), (needs_x, needs_a, needs_b, *_) = ctx.dtypes, ctx.needs_input_grad
        rows = _rows(gradient).to(b.dtype)
        if ctx.exact:
            rows = rows * ctx.scale
        of_b = rows.T.mm(_rows(inner)).to(b_dtype) if needs_b else None
        inner = rows.mm(b)
        if not ctx.exact:
            inner *= ctx.scale
        of_a = inner.T.mm(_rows(x).to(b.dtype)).to(a_dtype) if needs_a else None
        shape = x.shape
        del x, saved  # computed again, it is as large as its gradient
        of_x = inner.mm(a).to(x_dtype).view(shape) if needs_x else None
        return of_x, of_a, of_b, None, None, None, None


def _rows(x: Tensor) -> Tensor:
    """Return x (..., features) as a matrix; features may be 0, where AdaLoRA has left a layer no rank."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def dropped(x: Tensor, p: float, dtype: torch.dtype) -> Tensor:
    """Return dropout(x), drawn in a dtype, of which nothing is kept: it is drawn again."""
    generator = torch.cuda.default_generators[x.device.index] if x.device.type == "cuda" else torch.default_generator
    state = generator.get_state()

    def drop(x: Tensor) -> Tensor:
        return F.dropout(x.to(dtype), p)

    def drop_again(x: Tensor) -> Tensor:
        present = generator.get_state()
        generator.set_state(state)
        output = drop(x)
        generator.set_state(present)
        return output

    return recomputed(drop, x, again=drop_again)
