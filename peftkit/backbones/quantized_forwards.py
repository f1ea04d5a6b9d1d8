"""Forward passes of frozen quantised layers that save memory, time or messages."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from peftkit.backbones.quantization import dequantized_weight, is_4bit_layer, is_int8_layer
from peftkit.forwards import has_foreign_forward, wrap_forward
from peftkit.internals.bitsandbytes_messages import quiet_bitsandbytes
from peftkit.internals.torch_autograd import is_checkpointing


def quiet_int8_layers(model: nn.Module) -> None:
    """Let int8 layers compute without a warning at each call."""
    for module in model.modules():
        if is_int8_layer(module):
            wrap_forward(module, _run_quietly, "quiet int8")


def _run_quietly(layer: nn.Module, forward: Callable[..., Tensor], x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # bitsandbytes does not warn then
        return forward(x)
    with quiet_bitsandbytes():
        return forward(x)


def release_int8_inputs(model: nn.Module) -> int:
    """Let frozen int8 layers keep nothing of what they read for the backward pass.

    bitsandbytes 0.50 keeps it where gradient checkpointing cannot take it away
    (``autograd/_functions.py``, ``ctx.A``), though only a trained weight would need it.

    Returns:
        The number of int8 layers.
    """
    layers = [module for module in model.modules() if is_int8_layer(module)]
    for layer in layers:
        if not has_foreign_forward(layer):
            wrap_forward(layer, _multiply_int8, "int8 without inputs")
    return len(layers)


def _multiply_int8(layer: nn.Module, forward: Callable[..., Tensor], x: Tensor) -> Tensor:
    trains = any(parameter.requires_grad for parameter in layer.parameters())
    if trains or not (torch.is_grad_enabled() and x.requires_grad):
        return forward(x)
    product: Tensor = _Int8Product.apply(x, layer, forward)  # type: ignore[no-untyped-call]
    return product


class _Int8Product(torch.autograd.Function):
    """The product with an int8 weight, and bitsandbytes' gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any, forward: Callable[..., Tensor]) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        state = ctx.layer.state
        scales = state.SCB.unsqueeze(1).mul(1.0 / 127.0)  # [out, 1]
        weight = state.CB.to(ctx.dtype, copy=True).mul_(scales)  # [out, in]
        return gradient.to(ctx.dtype) @ weight, None, None  # dx = dy @ W


def share_dequantized_weights(model: nn.Module) -> int:
    """Let 4-bit layers dequantise once for a checkpointed block's second forward and its backward.

    In between, the weights of that block are there in 16 bits.

    Returns:
        The number of 4-bit layers.
    """
    layers = [module for module in model.modules() if is_4bit_layer(module)]
    for layer in layers:
        if not has_foreign_forward(layer):
            wrap_forward(layer, _multiply_4bit, "4-bit, dequantised once")
    return len(layers)


def _multiply_4bit(layer: Any, forward: Callable[..., Tensor], x: Tensor) -> Tensor:
    """Return the product; in a checkpointed block, as one with a plain weight that autograd saves.

    The first forward pass of a checkpointed block keeps nothing of what is saved in it.
    """
    dtype = layer.compute_dtype
    is_trained_through = x.requires_grad and torch.is_grad_enabled()
    if dtype is None or not is_trained_through or not is_checkpointing():
        return forward(x)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    weight = dequantized_weight(layer).to(dtype)  # [out, in]
    return F.linear(x.to(dtype), weight, bias).to(x.dtype)
