"""Quantised layers: what they are, how their weight is read, how it keeps its layout. Only this
file knows bitsandbytes.
"""

import functools
from typing import Any, Literal

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse as unpack_for_cpu
from bitsandbytes.functional import dequantize_4bit
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

Quantization = Literal["int8", "nf4", "fp4"]


def quantization_of(module: nn.Module) -> Quantization | None:
    """Return how the weight of this one layer is stored, or None for a layer that is not quantised."""
    if isinstance(module, bnb.nn.Linear4bit):
        weight: Any = module.weight  # FSDP2 puts a plain parameter in its place
        kind: Quantization = getattr(weight, "quant_type", None) or module.quant_state.quant_type
        return kind
    return "int8" if isinstance(module, bnb.nn.Linear8bitLt) else None


def model_quantization(model: nn.Module) -> Quantization | None:
    """Return the quantisation of the first quantised layer of `model`, or None where there is none."""
    return next((kind for kind in map(quantization_of, model.modules()) if kind), None)


def bitsandbytes_config(kind: Quantization, dtype: torch.dtype, double: bool) -> BitsAndBytesConfig:
    """Return the transformers config that stores linear layers as `kind` and computes in `dtype`."""
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=torch.uint8,
    )


def plain_new_layers(model: nn.Module) -> None:
    """Put plain linear layers where a checkpoint had nothing for a quantised one: a new head, which
    is to be trained.

    transformers 5.23 draws a random weight for such a layer, and leaves it in the quantised class
    without quantising it.
    """
    for name, module in list(model.named_modules()):
        if (
            isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)
            and type(module.weight) is nn.Parameter
        ):
            layer = nn.Linear(
                module.in_features, module.out_features, module.bias is not None, device="meta"
            )
            layer.weight, layer.bias = module.weight, module.bias
            model.set_submodule(name, layer)


def keep_layout(model: nn.Module) -> None:
    """Keep 4-bit weights in the layout that has a backward pass.

    On CPUs with AVX512-BF16, the first evaluation forward of a ``Linear4bit`` re-packs its weight
    for an inference kernel that has no backward: later training steps lose the gradient that flows
    through the layer, and merging reads garbage (bitsandbytes 0.50, nn/modules.py,
    Linear4bit.forward). This switches the re-packing off, and unpacks weights that an earlier
    evaluation has re-packed already. Re-packing rounds the block scales to bfloat16; an unpacked
    weight keeps the rounded scales, so that the layer computes what it computed before.
    """
    for module in model.modules():
        if not isinstance(module, bnb.nn.Linear4bit):
            continue
        module.support_avx512bf16_for_cpu = False
        state: Any = getattr(module.weight, "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            scales = state.absmax.T.reshape(-1).float()
            state.original_nested = (
                False  # the scales stay as they are: quantising them a second time would lose more
            )
            module.weight.data, state = unpack_for_cpu(module.weight.data, state)
            state.absmax = scales
            module.weight.quant_state = state


def stores_conv1d(module: nn.Module) -> bool:
    """Tell whether a quantised layer stands for transformers' ``Conv1D``, whose own weight is (in,
    out).
    """
    return issubclass(getattr(module, "source_cls", nn.Linear), Conv1D)


def release_inputs(model: nn.Module) -> int:
    """Let frozen int8 layers keep nothing of what they read for the backward pass; return their
    number.

    bitsandbytes 0.50 keeps it where gradient checkpointing cannot take it away
    (autograd/_functions.py, ``ctx.A``), though only a trained weight would need it.
    """
    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear8bitLt)]
    for layer in layers:
        vars(layer).setdefault("forward", functools.partial(_int8_forward, layer))
    return len(layers)


def share_dequantized(model: nn.Module) -> int:
    """Let 4-bit layers dequantise once for the second forward pass of a checkpointed block and its
    backward pass.

    Until then the weights of that block stand in 16 bits. Return the number of layers.
    """
    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    for layer in layers:
        vars(layer).setdefault("forward", functools.partial(_4bit_forward, layer))
    return len(layers)


def _4bit_forward(layer: Any, x: Tensor) -> Tensor:
    """Return the product; within checkpointing, which keeps nothing yet, as one with a plain weight
    that autograd asks for.
    """
    is_checkpointed = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    dtype = layer.compute_dtype
    if not (is_checkpointed and x.requires_grad and torch.is_grad_enabled() and dtype is not None):
        result: Tensor = type(layer).forward(layer, x)
        return result
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return functional.linear(x.to(dtype), dequantized_weight(layer).to(dtype), bias).to(x.dtype)


def _int8_forward(layer: Any, x: Tensor) -> Tensor:
    trains = any(parameter.requires_grad for parameter in layer.parameters())
    if trains or not (torch.is_grad_enabled() and x.requires_grad):
        result: Tensor = type(layer).forward(layer, x)
    else:
        result = _Int8Product.apply(x, layer)  # type: ignore[no-untyped-call]
    return result


class _Int8Product(torch.autograd.Function):
    """The product with an int8 weight, and bitsandbytes' gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        result: Tensor = type(layer).forward(layer, x)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        state = ctx.layer.state
        weight = state.CB.to(ctx.dtype, copy=True).mul_(state.SCB.unsqueeze(1).mul(1.0 / 127.0))
        return gradient.to(ctx.dtype) @ weight, None


def dequantized_weight(module: nn.Module) -> Tensor:
    """Return the weight, shape (out, in), that a linear layer computes with, in 16 or 32 bits.

    4-bit weights come in the layer's compute dtype, int8 weights in float32: the values that the
    forward pass uses.
    """
    weight: Any = module.weight
    if isinstance(module, bnb.nn.Linear4bit):
        dequantized: Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return dequantized
    if isinstance(module, bnb.nn.Linear8bitLt):
        codes: Tensor = module.state.CB if module.state.CB is not None else weight.data
        scales: Tensor = module.state.SCB if module.state.SCB is not None else weight.SCB
        return codes.float() * (scales.float().unsqueeze(1) / 127.0)
    plain: Tensor = weight.data
    return plain
