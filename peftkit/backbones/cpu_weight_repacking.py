"""4-bit weights on CPUs with AVX512-BF16, which bitsandbytes 0.50 re-packs after an evaluation.

The first forward pass of a ``Linear4bit`` in evaluation mode re-packs its weight there, for an
inference kernel that has no backward pass (``nn/modules.py``, ``Linear4bit.forward``). Later
training steps lose the gradient that flows through the layer, and merging reads garbage.
"""

from typing import Any

from torch import nn

from peftkit.backbones.quantization import is_4bit_layer
from peftkit.errors import BackboneError


def prevent_cpu_repacking(model: nn.Module) -> None:
    """Keep 4-bit weights in the layout that has a backward pass.

    This switches the re-packing off, and unpacks weights that an earlier evaluation has re-packed.
    Re-packing rounds the block scales to bfloat16. An unpacked weight keeps the rounded scales, so
    that the layer computes what it computed before.

    Raises:
        BackboneError: a weight is re-packed, and this version of bitsandbytes cannot unpack it.
    """
    for module in model.modules():
        if is_4bit_layer(module):
            module.support_avx512bf16_for_cpu = False
            state = getattr(module.weight, "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                _unpack(module)


def _unpack(layer: Any) -> None:
    import bitsandbytes

    unpack = getattr(bitsandbytes.functional, "_convert_weight_packed_for_cpu_inverse", None)
    if unpack is None:
        raise BackboneError(
            "an evaluation has re-packed 4-bit weights for this CPU, and bitsandbytes "
            f"{bitsandbytes.__version__} cannot unpack them: load the backbone with "
            "peftkit.load_backbone, or attach before the first evaluation"
        )
    state = layer.weight.quant_state
    scales = state.absmax.T.reshape(-1).float()
    # Quantising the scales a second time would lose more: they stay as they are.
    state.original_nested = False
    layer.weight.data, state = unpack(layer.weight.data, state)
    state.absmax = scales
    layer.weight.quant_state = state
