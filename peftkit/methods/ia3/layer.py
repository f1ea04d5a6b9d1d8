"""PEFT's IA3 layers, with activations that keep their dtype.

PEFT's own layers on 4- and 8-bit weights leave the product with a float32 vector in float32, which
the attention of a 16-bit model refuses. Written for peft 0.21.
"""

from typing import Any

from peft.import_utils import is_bnb_available
from peft.tuners.ia3 import IA3Layer
from peft.tuners.ia3 import layer as peft_layers
from torch import Tensor, nn


class ScaledLayer:
    """The forward pass of IA3: l * (W x), or W (l * x) where the input is scaled."""

    cast_input_dtype_enabled = True  # PEFT's disable_input_dtype_casting sets it on every layer

    # What PEFT's layers have.
    base_layer: nn.Module
    ia3_l: nn.ParameterDict
    active_adapters: list[str]
    disable_adapters: bool
    merged: bool
    is_feedforward: bool

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the scaled output, (..., out), for x (..., in), in the dtype of W x."""
        vectors = [self.ia3_l[name] for name in self.active_adapters if name in self.ia3_l]
        if self.disable_adapters or self.merged or not vectors:
            plain: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return plain
        scale: Tensor = vectors[0].flatten()  # (in,) or (out,), float32
        for vector in vectors[1:]:
            scale = scale * vector.flatten()
        if self.is_feedforward:
            result: Tensor = self.base_layer((x * scale).to(x.dtype), *args, **kwargs)
            return result
        output: Tensor = self.base_layer(x, *args, **kwargs)
        return (output * scale).to(output.dtype)


class ScaledLinear(ScaledLayer, peft_layers.Linear):
    """IA3 on a float layer, ``nn.Linear`` or ``Conv1D``."""


_SCALED: dict[type, type] = {peft_layers.Linear: ScaledLinear}

if is_bnb_available():
    from peft.tuners.ia3.bnb import Linear4bit, Linear8bitLt

    class ScaledLinear4bit(ScaledLayer, Linear4bit):
        """IA3 on a 4-bit layer."""

    class ScaledLinear8bitLt(ScaledLayer, Linear8bitLt):
        """IA3 on an int8 layer."""

    _SCALED |= {Linear4bit: ScaledLinear4bit, Linear8bitLt: ScaledLinear8bitLt}


def keep_dtypes(model: nn.Module) -> None:
    """Give PEFT's IA3 layers a forward pass whose output has the dtype of the frozen layer's."""
    for layer in model.modules():
        if isinstance(layer, IA3Layer):
            layer.__class__ = _SCALED.get(type(layer), type(layer))
