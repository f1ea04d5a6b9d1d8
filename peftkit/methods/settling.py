"""What a model needs once PEFT has injected an adapter, whatever the method."""

import functools
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import _ConvNd
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from peftkit.anatomy import is_reversible
from peftkit.methods import taps

_GEOMETRY = ("stride", "padding", "kernel_size", "dilation", "groups", "in_channels", "out_channels")


def settle(model: PeftModel, name: str) -> None:
    """Finish a model into which PEFT has injected the adapter `name`."""
    _train_heads_in_float32(model, name)
    _adapt_shared_layers_once(model.get_base_model())
    _show_geometry(model)
    _keep_statistics(model)
    _give_reversible_layers_a_gradient(model.get_base_model())


def _train_heads_in_float32(model: PeftModel, name: str) -> None:
    """Hold an adapter's trained copies of modules in float32, and their inputs and outputs in the dtype around them."""

    def cast_up(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)

    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            taps.listen_outside(wrapper, wrapper.original_module, *wrapper.modules_to_save.values())
            dtype = next(wrapper.original_module.parameters()).dtype
            if dtype in (torch.bfloat16, torch.float16) and name in wrapper.modules_to_save:

                def cast_back(module: nn.Module, inputs: Any, output: Any, dtype: torch.dtype = dtype) -> Any:
                    return output.to(dtype) if isinstance(output, Tensor) else output

                trained = wrapper.modules_to_save[name].float()
                trained.register_forward_pre_hook(cast_up)
                trained.register_forward_hook(cast_back)


def _adapt_shared_layers_once(backbone: nn.Module) -> None:
    """Give layers that share a weight one adapter: the weight can be merged with one update only (Zamba)."""
    first: dict[tuple[type, int], nn.Module] = {}
    for parent in list(backbone.modules()):
        for name, child in list(parent.named_children()):
            weight = None
            if isinstance(child, BaseTunerLayer) and hasattr(child, "base_layer"):
                weight = getattr(child.get_base_layer(), "weight", None)
            if isinstance(weight, nn.Parameter):
                setattr(parent, name, first.setdefault((type(child), id(weight)), child))


def _show_geometry(model: PeftModel) -> None:
    """Let an adapted convolution tell its stride and padding, which models ask for before they call it."""
    for part in model.modules():
        if isinstance(part, _ConvNd):
            vars(part).update({name: getattr(part.get_base_layer(), name) for name in _GEOMETRY})


def _keep_statistics(model: PeftModel) -> None:
    """Hold the batch norms of the backbone in evaluation, so that training an adapter does not change their statistics."""
    heads = {id(part) for head in model.modules() if isinstance(head, ModulesToSaveWrapper) for part in head.modules()}
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and id(part) not in heads:
            vars(part)["train"] = functools.partial(_stay, part.eval())


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def _give_reversible_layers_a_gradient(backbone: Any) -> None:
    """Let the embeddings' output carry a gradient, which layers that compute their inputs again ask for (Reformer)."""
    if is_reversible(backbone):
        backbone.enable_input_require_grads()
