"""Cross-entropy over a vocabulary without the logits of all tokens at once, and its gradient, made
in the same pass.

A chunk of tokens is taken through the head; its loss, -log softmax(z)[target] in float32, and the
gradient of that, softmax(z) - onehot(target), are computed where the logits stand; the head takes
the gradient back to the hidden states, and the logits are gone before the next chunk comes. So the
head is multiplied with twice, as always, and 14 bytes for each token and entry of the vocabulary
become 4 for those of one chunk.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

_CHUNKS = (
    8  # so many chunks, if that makes them neither too large nor too small to keep a processor busy
)
_FEWEST_TOKENS = 64
_LARGEST_CHUNK = 2**25  # logits: 128 MiB in 16 bits with their gradient
_LARGEST_FLOAT32 = 2**22  # logits whose softmax is computed at a time
_FLOAT16_SCALE = 1024.0  # the gradient of a likely token is no smaller than 1 / vocabulary, where float16 has few bits left

Head = Callable[[Tensor], Tensor]
"""Takes hidden states (tokens, width) to logits (tokens, vocabulary)."""


def summed_cross_entropy(
    hidden: Tensor, targets: Tensor, head: Head, trained: Sequence[nn.Parameter]
) -> Tensor:
    """Return the sum over tokens of the cross-entropy, in nats, a float32 scalar.

    Args:
        hidden: The head's input, (tokens, width).
        targets: The token that each predicts, (tokens,).
        head: What makes logits, each token for itself.
        trained: The parameters in the head that take a gradient.
    """
    if not torch.is_grad_enabled():
        return _forward(hidden, targets, head, ())[0]
    result: Tensor = _SummedCrossEntropy.apply(targets, head, hidden, *trained)  # type: ignore[no-untyped-call]
    return result


class _SummedCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any, targets: Tensor, head: Head, hidden: Tensor, *trained: nn.Parameter
    ) -> Tensor:
        wanted = [
            each
            for each, needed in zip((hidden, *trained), ctx.needs_input_grad[2:], strict=True)
            if needed
        ]
        loss, gradients = _forward(hidden, targets, head, wanted)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [each.dtype for each in wanted]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> Any:
        found = iter(zip(ctx.saved_tensors, ctx.dtypes, strict=True))
        made = [next(found) if needed else None for needed in ctx.needs_input_grad[2:]]
        return None, None, *((each[0] * factor).to(each[1]) if each else None for each in made)


def _forward(
    hidden: Tensor, targets: Tensor, head: Head, wanted: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return the loss and its gradient for each of `wanted`: `hidden`, perhaps, and parameters,
    whose gradients are summed up in float32.
    """
    loss = torch.zeros((), device=hidden.device)
    keeps = hidden.dtype if hidden.dtype != torch.float16 else torch.float32
    gradients = [
        torch.zeros_like(each, dtype=keeps if each is hidden else torch.float32) for each in wanted
    ]
    start, stop = 0, _FEWEST_TOKENS  # the first chunk tells how large the vocabulary is
    while start < len(hidden):
        part = hidden[start:stop].detach().requires_grad_(bool(wanted))
        with torch.set_grad_enabled(bool(wanted)):
            logits = head(part)
        of_logits, scale = torch.empty_like(logits) if wanted else None, _scale(logits)
        rows = max(_FEWEST_TOKENS, min(len(hidden) // _CHUNKS, _LARGEST_CHUNK // logits.shape[-1]))
        loss += _of_logits(logits.detach(), targets[start:stop], of_logits).to(loss.device)
        if wanted:
            leaves = [part if each is hidden else each for each in wanted]
            found = torch.autograd.grad(logits, leaves, of_logits, allow_unused=True)
            for total, gradient, each in zip(gradients, found, wanted, strict=True):
                if gradient is not None:
                    (total[start:stop] if each is hidden else total).add_(gradient, alpha=1 / scale)
            del found, gradient
        del logits, of_logits  # before those of the next chunk are made
        start, stop = stop, stop + rows
    return loss, gradients


def _scale(logits: Tensor) -> float:
    """Return by what the gradient of the logits is multiplied on its way through the head."""
    return _FLOAT16_SCALE if logits.dtype == torch.float16 else 1.0


def _of_logits(logits: Tensor, targets: Tensor, gradient: Tensor | None) -> Tensor:
    """Return the summed loss of logits (tokens, vocabulary), and write its gradient, scaled, into
    `gradient`.

    Some rows at a time are computed in float32, at most a quarter of them.
    """
    loss = torch.zeros((), device=logits.device)
    rows = max(1, min(_LARGEST_FLOAT32, logits.numel() // 4) // logits.shape[-1])
    for start in range(0, len(logits), rows):
        logarithms = torch.log_softmax(logits[start : start + rows], -1, dtype=torch.float32)
        index = targets[start : start + rows].to(logits.device).unsqueeze(-1)
        loss -= logarithms.gather(-1, index).sum()
        if gradient is not None:
            difference = logarithms.exp_().scatter_add_(
                -1, index, torch.full_like(index, -1.0, dtype=torch.float32)
            )
            scale = _scale(logits)
            gradient[start : start + rows] = difference if scale == 1.0 else difference.mul_(scale)
    return loss
