"""Which layers are quantised, how, and what weights they compute with.

bitsandbytes is imported where something is quantised, and nowhere else: a float model does without.
"""

import sys
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

Quantization = Literal["int8", "nf4", "fp4"]


def is_4bit_layer(module: nn.Module) -> TypeGuard[Any]:
    """Return whether a module is a 4-bit layer of bitsandbytes."""
    bitsandbytes = _imported_bitsandbytes()
    return bitsandbytes is not None and isinstance(module, bitsandbytes.nn.Linear4bit)


def is_int8_layer(module: nn.Module) -> TypeGuard[Any]:
    """Return whether a module is an int8 layer of bitsandbytes."""
    bitsandbytes = _imported_bitsandbytes()
    return bitsandbytes is not None and isinstance(module, bitsandbytes.nn.Linear8bitLt)


def _imported_bitsandbytes() -> Any:
    """Return bitsandbytes if anybody has imported it: no model has its layers before that."""
    return sys.modules.get("bitsandbytes")


def quantization_of(module: nn.Module) -> Quantization | None:
    """Return how the weight of this one layer is stored; None for one that is not quantised."""
    if is_4bit_layer(module):
        weight: Any = module.weight  # FSDP2 puts a plain parameter in its place
        kind: Quantization = getattr(weight, "quant_type", None) or module.quant_state.quant_type
        return kind
    return "int8" if is_int8_layer(module) else None


def model_quantization(model: nn.Module) -> Quantization | None:
    """Return how the first quantised layer of `model` is stored; None where none is quantised."""
    for module in model.modules():
        kind = quantization_of(module)
        if kind is not None:
            return kind
    return None


def bitsandbytes_config(kind: Quantization, dtype: torch.dtype, double: bool) -> BitsAndBytesConfig:
    """Return the transformers config that stores layers as `kind` and computes in `dtype`."""
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=torch.uint8,
    )


def make_new_layers_plain(model: nn.Module) -> None:
    """Make quantised layers plain where the checkpoint had no weight for them, such as a new head.

    Such a layer is to be trained. transformers 5.23 draws a random weight for it, and leaves it in
    the quantised class without quantising it.
    """
    for name, module in list(model.named_modules()):
        is_quantized = is_4bit_layer(module) or is_int8_layer(module)
        if is_quantized and type(module.weight) is nn.Parameter:
            has_bias = module.bias is not None
            layer = nn.Linear(module.in_features, module.out_features, has_bias, device="meta")
            layer.weight, layer.bias = module.weight, module.bias
            model.set_submodule(name, layer)


def stores_conv1d(module: nn.Module) -> bool:
    """Return whether a quantised layer was transformers' ``Conv1D``, whose weight is [in, out]."""
    return issubclass(getattr(module, "source_cls", nn.Linear), Conv1D)


def dequantized_weight(module: nn.Module) -> Tensor:
    """Return the weight, [out, in], that a linear layer computes with, in 16 or 32 bits.

    4-bit weights come in the layer's compute dtype, int8 weights in float32: the values that the
    forward pass uses.
    """
    weight: Any = module.weight
    if is_4bit_layer(module):
        from bitsandbytes.functional import dequantize_4bit

        dequantized: Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return dequantized
    if is_int8_layer(module):
        codes: Tensor = module.state.CB if module.state.CB is not None else weight.data
        scales: Tensor = module.state.SCB if module.state.SCB is not None else weight.SCB
        return codes.float() * (scales.float().unsqueeze(1) / 127.0)  # [out, in] * [out, 1]
    plain: Tensor = weight.data
    return plain
