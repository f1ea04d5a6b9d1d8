"""The forward and backward pass of LoRA's update s B A dropout(x) (arXiv:2106.09685, Eq. 3).

It keeps no copy of anything for the backward pass. It saves x (tokens, in) itself, in the dtype
that the backbone gives it. Layers that read the same x share it, and where x can be recomputed
cheaply, not even x is saved (`recomputation`). It also saves A x (tokens, r) and the two matrices.
Dropout is drawn again from the generator's state: neither a mask nor a masked copy is saved, and
the masks are PEFT's.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from peftkit.lean.recomputation import Kept, recomputed
from peftkit.random_state import device_generator


class Update:
    """The update s B A x of one layer's output: begun before W x, and added to it afterwards.

    It is two nodes of the autograd graph. The first reads x, saves what is needed, and passes x on
    to the frozen layer. The second adds the update to W x within the product with B. In the
    backward pass the first node gets the gradient of the output from the second, and that of x from
    the frozen layer, to which it adds its own within the product with A. So neither the update nor
    its gradient is written to a separate tensor and read again.

    Args:
        x: (..., in).
        a: (r, in).
        b: (out, r).
        scale: s.
        dtype: Dtype of the matrix products.
        exact: Round where PEFT rounds: multiply B A x with s, and not A x.
    """

    def __init__(
        self,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        scale: float,
        dtype: torch.dtype,
        *,
        exact: bool = False,
    ) -> None:
        self.scale = scale
        self.dtype = dtype
        self.exact = exact
        self.kept = Kept.of(x)
        self.inner: Tensor
        """A x, (tokens, r)."""
        self.b: Tensor
        self.x: Tensor
        """x, for the frozen layer to read."""
        self._placeholder, self.x = _Begin.apply(self, x, a, b)  # type: ignore[no-untyped-call]

    def added_to(self, result: Tensor) -> Tensor:
        """Return W x with the update, (..., out), in the dtype of W x."""
        output: Tensor = _End.apply(result, self._placeholder, self)  # type: ignore[no-untyped-call]
        return output

    def alone(self) -> Tensor:
        """Return the update, (..., out), in the dtype of the matrix products."""
        output: Tensor = _End.apply(None, self._placeholder, self)  # type: ignore[no-untyped-call]
        return output


class _Begin(Function):
    """Computes A x, and returns a placeholder for the update, and x.

    The placeholder takes no memory; through it the update's gradient arrives.
    """

    @staticmethod
    def forward(ctx: Any, update: Update, x: Tensor, a: Tensor, b: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.scale, ctx.exact, ctx.dtypes = update.scale, update.exact, (x.dtype, a.dtype, b.dtype)
        a, b = a.to(update.dtype), b.to(update.dtype)
        inner = _rows(x).to(update.dtype).mm(a.T)  # A x, (tokens, r)
        if not update.exact:
            inner *= update.scale
        ctx.kept, tensors = update.kept or (None, (x,))
        ctx.save_for_backward(a, b, inner, *tensors)
        update.inner, update.b = inner, b
        if not ctx.needs_input_grad[1]:
            ctx.mark_non_differentiable(x)
        return inner.new_empty(()).expand(*x.shape[:-1], len(b)), x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, of_rest: Tensor | None = None) -> Any:
        if gradient is None:
            return None, of_rest, None, None
        a, b, inner, *saved = ctx.saved_tensors
        x = saved[0] if ctx.kept is None else ctx.kept.value(saved)
        x_dtype, a_dtype, b_dtype = ctx.dtypes
        _, needs_x, needs_a, needs_b = ctx.needs_input_grad
        of_x = of_a = of_b = None
        rows = _rows(gradient).to(b.dtype)  # dL/dy, (tokens, out)
        if ctx.exact:
            rows = rows * ctx.scale
        if needs_b:
            of_b = rows.T.mm(inner).to(b_dtype)  # dL/dB = s dL/dy^T A x, (out, r)
        inner = rows.mm(b)  # (tokens, r)
        if not ctx.exact:
            inner *= ctx.scale
        if needs_a:
            of_a = inner.T.mm(_rows(x).to(b.dtype)).to(a_dtype)  # dL/dA, (r, in)
        shape = x.shape
        del x, saved  # where x was recomputed, it takes as much memory as its gradient
        if needs_x:
            of_x = _sum_with_product(of_rest, inner, a, shape, x_dtype)  # (..., in)
        return None, of_x, of_a, of_b


class _End(Function):
    """Computes B A x, and its sum with W x."""

    @staticmethod
    def forward(ctx: Any, result: Tensor | None, placeholder: Tensor, update: Update) -> Tensor:
        dtype = update.inner.dtype if result is None else result.dtype
        output = _sum_with_product(result, update.inner, update.b.T, placeholder.shape, dtype)
        return output * update.scale if update.exact else output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient if ctx.needs_input_grad[0] else None, gradient, None


def _sum_with_product(
    addend: Tensor | None, left: Tensor, right: Tensor, shape: torch.Size, dtype: torch.dtype
) -> Tensor:
    """Return addend + left @ right.

    Args:
        addend: In the shape of the result, or None.
        left: (tokens, r).
        right: (r, features).
        shape: Shape of the result, (..., features).
        dtype: Dtype of the result.
    """
    output = left.new_empty(shape)
    if addend is not None and addend.dtype == left.dtype:
        torch.addmm(_rows(addend), left, right, out=_rows(output))
        return output
    torch.mm(left, right, out=_rows(output))
    if addend is not None:
        output.add_(addend)
    return output.to(dtype)


def _rows(x: Tensor) -> Tensor:
    """Return x (..., features) as a matrix (tokens, features)."""
    width = x.shape[-1]  # 0 where AdaLoRA has left a layer no rank
    return x.reshape(-1 if width else math.prod(x.shape[:-1]), width)


def dropped(x: Tensor, p: float, dtype: torch.dtype) -> Tensor:
    """Return dropout(x), computed in `dtype`; nothing is saved, as the mask can be drawn again."""
    generator = device_generator(x.device)
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
