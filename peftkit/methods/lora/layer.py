"""PEFT's LoRA layers with the update of `low_rank` in them, on float, 4-bit and 8-bit layers alike.

A layer keeps PEFT's class as its base, and with it merging, saving and all else; only the forward
pass of plain LoRA is another. DoRA and the other variants, an adapter for each row, a bias in B,
matrices that somebody else gathers or listens to, and compiled code take PEFT's path. This stands
on peft 0.21.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from peft.import_utils import is_bnb_available
from peft.tuners import lora
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import _ConvNd
from torch import Tensor, nn

from peftkit.methods.lora.forward_backward import Update, dropped
from peftkit.methods.method import Arithmetic

_GEOMETRY = (
    "stride",
    "padding",
    "kernel_size",
    "dilation",
    "groups",
    "in_channels",
    "out_channels",
)


def update_of(
    layer: Any,
    adapter: str,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float = 1.0,
    *,
    exact: bool = False,
) -> tuple[Tensor, Update]:
    """Begin an adapter's update s B A dropout(x) in the dtype in which PEFT computes it for `x`,
    (..., in).

    Returns:
        What the frozen layer is to read in the place of x, and the update.
    """
    device, dropout = x.device.type, layer.lora_dropout[adapter]
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else a.dtype
    if type(dropout) is nn.Dropout and dropout.training:
        # PEFT's layers for 4 and 8 bits leave the cast to autocast, and look for that of CUDA;
        # others always cast.
        casts = layer.cast_input_dtype_enabled and not (
            layer.rounds_update and torch.is_autocast_enabled("cuda")
        )
        return x, Update(
            dropped(x, dropout.p, a.dtype if casts else x.dtype), a, b, scale, dtype, exact=exact
        )
    update = Update(x, a, b, scale, dtype, exact=exact)
    return update.x, update


def adapted(base_layer: nn.Module, x: Tensor, updates: Sequence[tuple[Tensor, Update]]) -> Tensor:
    """Return W x with updates begun on x, in the dtype of W x."""
    result: Tensor = base_layer(updates[-1][0] if updates else x)
    for _, update in updates:
        result = update.added_to(result)
    return result


class LeanForward:
    """The forward pass of a LoRA layer: y = W x + sum over the active adapters of s B A dropout(x),
    in the dtype of W x.

    The update comes before W x. Gradient checkpointing stops to compute a block again once it has
    all that it needs, and of W x nothing is ever needed: so the last product of each block is not
    computed again. With ``arithmetic = "exact"``, which is for tests, the order and the rounding
    are PEFT's.
    """

    arithmetic: Arithmetic = "lean"
    rounds_update = False
    """Whether PEFT's class rounds the update to the dtype of W x before it adds them, and not their
    sum.
    """

    # What PEFT's layers have.
    base_layer: nn.Module
    active_adapters: list[str]
    disable_adapters: bool
    merged_adapters: list[str]
    lora_A: nn.ModuleDict  # noqa: N815
    lora_B: nn.ModuleDict  # noqa: N815
    lora_bias: dict[str, bool]
    lora_variant: dict[str, Any]
    scaling: dict[str, float]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return y (..., out) for x (..., in)."""
        if args or kwargs or not _keeps_for_backward(x) or self.why_not():
            return super().forward(x, *args, **kwargs)  # type: ignore[misc, no-any-return]
        adapters = [adapter for adapter in self.active_adapters if adapter in self.lora_A]
        if self.arithmetic == "exact":
            return self._exactly(x, adapters)
        return adapted(self.base_layer, x, [self._update(x, adapter) for adapter in adapters])

    def _update(self, x: Tensor, adapter: str) -> tuple[Tensor, Update]:
        a: Any = self.lora_A[adapter].weight
        b: Any = self.lora_B[adapter].weight
        return update_of(
            self, adapter, x, a, b, self.scaling[adapter], exact=self.arithmetic == "exact"
        )

    def _exactly(self, x: Tensor, adapters: list[str]) -> Tensor:
        """Return what PEFT returns, bit for bit."""
        result: Tensor = self.base_layer(x)
        dtype = result.dtype
        for adapter in adapters:
            update = self._update(x, adapter)[1].alone()
            result = result + (update.to(dtype) if self.rounds_update else update)
        return result.to(dtype)

    def why_not(self) -> str | None:
        """Return why the forward pass takes PEFT's path at present, or None where it does not."""
        if self.arithmetic == "peft":
            return "lean.layers is off"
        if self.disable_adapters or self.merged_adapters:
            return "the adapter is switched off or merged"
        for adapter in self.active_adapters:
            if adapter in self.lora_A:
                if adapter in self.lora_variant:
                    return f"{type(self.lora_variant[adapter]).__name__} is PEFT's own"
                if self.lora_bias[adapter]:
                    return "lora_bias adds a bias to B"
                if not (_is_plain(self.lora_A[adapter]) and _is_plain(self.lora_B[adapter])):
                    return "A or B is sharded, gathered by others, or listened to"
        return None


def _keeps_for_backward(x: Tensor) -> bool:
    """Tell whether there is anything to save: not in evaluation; and a compiler decides for itself
    what to keep.
    """
    return torch.is_grad_enabled() and x.is_floating_point() and not torch.compiler.is_compiling()


def _is_plain(module: nn.Module) -> bool:
    """Tell whether reading a linear layer's weight is as good as calling the layer."""
    return (
        type(module) is nn.Linear
        and type(module._parameters["weight"]) is nn.Parameter
        and not (module._forward_pre_hooks or module._forward_hooks or "forward" in vars(module))
    )


class LeanLinear(LeanForward, lora.Linear):
    """LoRA on a float layer, ``nn.Linear`` or ``Conv1D``."""


_LEAN: dict[type, type] = {lora.Linear: LeanLinear}

if is_bnb_available():
    from peft.tuners.lora.bnb import Linear4bit, Linear8bitLt

    class LeanLinear4bit(LeanForward, Linear4bit):
        """LoRA on a 4-bit layer."""

        rounds_update = True

    class LeanLinear8bitLt(LeanForward, Linear8bitLt):
        """LoRA on an int8 layer."""

        rounds_update = True

    _LEAN |= {Linear4bit: LeanLinear4bit, Linear8bitLt: LeanLinear8bitLt}


def make_lean(layer: LoraLayer, arithmetic: Arithmetic) -> str | None:
    """Give a layer the lean forward pass, or take it away, and return None; or return why it takes
    PEFT's path.
    """
    kind: Any = _LEAN.get(type(layer))
    if kind is not None:
        layer.__class__ = kind
    if not hasattr(layer, "arithmetic"):
        return f"{type(layer).__name__} is PEFT's own"
    layer.arithmetic = arithmetic
    return layer.why_not() if isinstance(layer, LeanForward) else None


def make_layers_lean(model: nn.Module, arithmetic: Arithmetic) -> Counter[str | None]:
    """Give LoRA layers the lean forward pass; count them by why they take PEFT's path, or None."""
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    return Counter(make_lean(layer, arithmetic) for layer in layers)


def show_geometry(model: nn.Module) -> None:
    """Let an adapted convolution tell its stride and padding, which models ask for."""
    for part in model.modules():
        if isinstance(part, _ConvNd):
            base = part.get_base_layer()
            vars(part).update({name: getattr(base, name) for name in _GEOMETRY})
