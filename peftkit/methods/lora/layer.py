"""PEFT's LoRA layers with the forward pass of `forward_backward`, on 4-, 8- and 16-bit layers.

A layer keeps PEFT's class as its base, and with it merging, saving and everything else. Only the
forward pass of plain LoRA is replaced. PEFT's path is taken by DoRA and the other variants, an
adapter for each row, a bias in B, matrices with hooks or gathered by others, and compiled code.
Written for peft 0.21.
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
    """Begin an adapter's update s B A dropout(x), in the dtype in which PEFT computes it.

    Args:
        layer: The adapted layer.
        adapter: The adapter's name.
        x: (..., in).
        a: (r, in).
        b: (out, r).
        scale: s.
        exact: Whether to round where PEFT rounds.

    Returns:
        What the frozen layer must read in the place of x, and the update.
    """
    device, dropout = x.device.type, layer.lora_dropout[adapter]
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else a.dtype
    if type(dropout) is nn.Dropout and dropout.training:
        # PEFT's layers for 4 and 8 bits leave the cast to autocast, and ask only for CUDA's. The
        # others always cast.
        is_left_to_autocast = layer.rounds_update and torch.is_autocast_enabled("cuda")
        casts = layer.cast_input_dtype_enabled and not is_left_to_autocast
        read = dropped(x, dropout.p, a.dtype if casts else x.dtype)
        return x, Update(read, a, b, scale, dtype, exact=exact)
    update = Update(x, a, b, scale, dtype, exact=exact)
    return update.x, update


def adapted(base_layer: nn.Module, x: Tensor, updates: Sequence[tuple[Tensor, Update]]) -> Tensor:
    """Return W x plus the updates that were begun on x, (..., out), in the dtype of W x."""
    result: Tensor = base_layer(updates[-1][0] if updates else x)
    for _, update in updates:
        result = update.added_to(result)
    return result


class LeanForward:
    """The forward pass of a LoRA layer: y = W x + sum over the adapters of s B A dropout(x).

    y has the dtype of W x. The update is begun before W x: gradient checkpointing stops recomputing
    a block once it has all saved tensors, and W x saves none, so the last product of each block is
    not recomputed. With ``arithmetic = "exact"``, for tests, order and rounding are PEFT's.
    """

    arithmetic: Arithmetic = "lean"
    rounds_update = False
    """Whether PEFT's class rounds the update to the dtype of W x, instead of their sum."""

    # Attributes of PEFT's layers.
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
        begun = [self._begin_update(x, adapter) for adapter in adapters]
        return adapted(self.base_layer, x, begun)

    def _begin_update(self, x: Tensor, adapter: str) -> tuple[Tensor, Update]:
        a: Any = self.lora_A[adapter].weight
        b: Any = self.lora_B[adapter].weight
        scale, exact = self.scaling[adapter], self.arithmetic == "exact"
        return update_of(self, adapter, x, a, b, scale, exact=exact)

    def _exactly(self, x: Tensor, adapters: list[str]) -> Tensor:
        """Return what PEFT returns, bit for bit."""
        result: Tensor = self.base_layer(x)
        dtype = result.dtype
        for adapter in adapters:
            update = self._begin_update(x, adapter)[1].alone()
            result = result + (update.to(dtype) if self.rounds_update else update)
        return result.to(dtype)

    def why_not(self) -> str | None:
        """Return why the forward pass takes PEFT's path now, or None if it does not."""
        if self.arithmetic == "peft":
            return "lean.layers is off"
        if self.disable_adapters or self.merged_adapters:
            return "the adapter is switched off or merged"
        for adapter in self.active_adapters:
            if adapter not in self.lora_A:
                continue
            if adapter in self.lora_variant:
                return f"{type(self.lora_variant[adapter]).__name__} is PEFT's own"
            if self.lora_bias[adapter]:
                return "lora_bias adds a bias to B"
            if not (_is_plain(self.lora_A[adapter]) and _is_plain(self.lora_B[adapter])):
                return "A or B is sharded, gathered by others, or has hooks"
        return None


def _keeps_for_backward(x: Tensor) -> bool:
    """Whether tensors are saved for a backward pass; in compiled code the compiler decides."""
    return torch.is_grad_enabled() and x.is_floating_point() and not torch.compiler.is_compiling()


def _is_plain(module: nn.Module) -> bool:
    """Whether reading a linear layer's weight is as good as calling the layer."""
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
    """Set the arithmetic of a layer; return why it takes PEFT's path, or None if it does not."""
    kind: Any = _LEAN.get(type(layer))
    if kind is not None:
        layer.__class__ = kind
    if not hasattr(layer, "arithmetic"):
        return f"{type(layer).__name__} is PEFT's own"
    layer.arithmetic = arithmetic
    return layer.why_not() if isinstance(layer, LeanForward) else None


def make_layers_lean(model: nn.Module, arithmetic: Arithmetic) -> Counter[str | None]:
    """Set the arithmetic of all LoRA layers, and count them by why they take PEFT's path."""
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    return Counter(make_lean(layer, arithmetic) for layer in layers)


def show_geometry(model: nn.Module) -> None:
    """Show the stride and padding of adapted convolutions, which some models read."""
    for part in model.modules():
        if isinstance(part, _ConvNd):
            base = part.get_base_layer()
            for name in _GEOMETRY:
                vars(part)[name] = getattr(base, name)
