"""Cross-entropy over a vocabulary and its gradient in one pass, without the logits of all tokens.

A chunk of tokens is taken through the head, to logits z. Its loss, -log softmax(z)[target] in
float32, and the gradient of that, softmax(z) - onehot(target), are computed in the place of the
logits. The head takes the gradient back to the hidden states, and the logits are gone before the
next chunk comes. So the head is multiplied with as often as usual. What takes 14 bytes for each
token and entry of the vocabulary otherwise takes 4, for one chunk.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# The number of chunks, unless they are too large then, or too small to keep a processor busy.
_CHUNKS = 8
_FEWEST_TOKENS = 64  # in a chunk
_LARGEST_CHUNK = 2**25  # logits: 128 MiB in 16 bits with their gradient
_LARGEST_FLOAT32 = 2**22  # logits whose softmax is computed at a time
# The gradient of a likely token may be as small as 1 / vocabulary, where float16 has few bits left.
_FLOAT16_SCALE = 1024.0

Head = Callable[[Tensor], Tensor]
"""Takes hidden states [tokens, width] to logits [tokens, vocabulary]."""


def summed_cross_entropy(
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    trained: Sequence[nn.Parameter],
    weights: Tensor | None = None,
) -> Tensor:
    """Return the sum over tokens of the cross-entropy, in nats, a float32 scalar.

    Args:
        hidden: The head's input, [tokens, width].
        targets: The token that each predicts, [tokens].
        head: Makes the logits of each token from its own hidden state alone.
        trained: The parameters in the head that take a gradient.
        weights: Of the loss of each token, [tokens], above 0; None is 1 for each.
    """
    if weights is not None and len(weights):
        # At most 1 inside, where the gradient of the logits may have few bits.
        largest = weights.max()
        loss = _summed(hidden, targets, head, trained, (weights / largest).float())
        return loss * largest.to(loss)
    return _summed(hidden, targets, head, trained, None)


def _summed(
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    trained: Sequence[nn.Parameter],
    weights: Tensor | None,
) -> Tensor:
    if not torch.is_grad_enabled():
        return _loss_and_gradients(hidden, targets, weights, head, ())[0]
    result: Tensor = _SummedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        targets, weights, head, hidden, *trained
    )
    return result


class _SummedCrossEntropy(Function):
    """Computes the gradients with the loss, and only scales them in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        targets: Tensor,
        weights: Tensor | None,
        head: Head,
        hidden: Tensor,
        *trained: nn.Parameter,
    ) -> Tensor:
        wanted: list[Tensor] = []
        for tensor, is_needed in zip((hidden, *trained), ctx.needs_input_grad[3:], strict=True):
            if is_needed:
                wanted.append(tensor)
        loss, gradients = _loss_and_gradients(hidden, targets, weights, head, wanted)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [tensor.dtype for tensor in wanted]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> Any:
        found = iter(zip(ctx.saved_tensors, ctx.dtypes, strict=True))
        gradients: list[Tensor | None] = []
        for is_needed in ctx.needs_input_grad[3:]:
            if is_needed:
                gradient, dtype = next(found)
                gradients.append((gradient * factor).to(dtype))
            else:
                gradients.append(None)
        return None, None, None, *gradients


def _loss_and_gradients(
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    head: Head,
    wanted: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Return the summed loss, and its gradient for each of `wanted`.

    These are parameters, whose gradients are summed up in float32, and perhaps `hidden`.
    """
    loss = torch.zeros((), device=hidden.device)
    totals = [_zero_gradient(each, is_hidden=each is hidden) for each in wanted]
    start, stop = 0, _FEWEST_TOKENS  # the first chunk tells how large the vocabulary is
    while start < len(hidden):
        part = hidden[start:stop].detach().requires_grad_(bool(wanted))  # [chunk, width]
        with torch.set_grad_enabled(bool(wanted)):
            logits = head(part)  # [chunk, vocabulary]
        of_logits, scale = torch.empty_like(logits) if wanted else None, _gradient_scale(logits)
        rows = max(_FEWEST_TOKENS, min(len(hidden) // _CHUNKS, _LARGEST_CHUNK // logits.shape[-1]))
        of_chunk = None if weights is None else weights[start:stop]
        found = _loss_of_logits(logits.detach(), targets[start:stop], of_logits, of_chunk)
        loss += found.to(loss.device)
        if wanted:
            leaves = [part if each is hidden else each for each in wanted]
            gradients = torch.autograd.grad(logits, leaves, of_logits, allow_unused=True)
            for total, gradient, each in zip(totals, gradients, wanted, strict=True):
                if gradient is not None:
                    place = total[start:stop] if each is hidden else total
                    place.add_(gradient, alpha=1 / scale)
            del gradients, gradient
        del logits, of_logits  # before those of the next chunk are made
        start, stop = stop, stop + rows
    return loss, totals


def _zero_gradient(tensor: Tensor, *, is_hidden: bool) -> Tensor:
    """Return zeros for a gradient: the hidden states' in their dtype, but for float16."""
    keeps_dtype = is_hidden and tensor.dtype != torch.float16
    return torch.zeros_like(tensor, dtype=tensor.dtype if keeps_dtype else torch.float32)


def _gradient_scale(logits: Tensor) -> float:
    """Return the factor on the gradient of the logits on its way through the head."""
    return _FLOAT16_SCALE if logits.dtype == torch.float16 else 1.0


def _loss_of_logits(
    logits: Tensor, targets: Tensor, gradient: Tensor | None, weights: Tensor | None
) -> Tensor:
    """Return the summed loss of logits, and write its gradient, scaled, into `gradient`.

    Some rows at a time are computed in float32, at most a quarter of them.

    Args:
        logits: [tokens, vocabulary].
        targets: [tokens].
        gradient: Takes the gradient, [tokens, vocabulary]; None where none is wanted.
        weights: [tokens], at most 1; None is 1 for each.
    """
    loss = torch.zeros((), device=logits.device)
    scale = _gradient_scale(logits)
    rows = max(1, min(_LARGEST_FLOAT32, logits.numel() // 4) // logits.shape[-1])
    for start in range(0, len(logits), rows):
        log_probs = torch.log_softmax(logits[start : start + rows], -1, dtype=torch.float32)
        index = targets[start : start + rows].to(logits.device).unsqueeze(-1)  # [rows, 1]
        found = log_probs.gather(-1, index)  # [rows, 1]
        factors = None
        if weights is not None:
            factors = weights[start : start + rows].to(logits.device).unsqueeze(-1)  # [rows, 1]
            found = found * factors
        loss -= found.sum()
        if gradient is not None:
            minus_one = torch.full_like(index, -1.0, dtype=torch.float32)
            difference = log_probs.exp_().scatter_add_(-1, index, minus_one)  # softmax - onehot
            if factors is not None:
                difference.mul_(factors)
            gradient[start : start + rows] = difference if scale == 1.0 else difference.mul_(scale)
    return loss
