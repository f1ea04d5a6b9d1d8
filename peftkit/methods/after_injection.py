"""Finishes a model after PEFT has injected an adapter, whatever the method."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from peftkit.anatomy import is_reversible
from peftkit.errors import ConfigError
from peftkit.methods.method import methods_on


def settle(model: PeftModel, name: str) -> None:
    """Finish a model into which PEFT has injected the adapter `name`."""
    for method in methods_on(model):
        method.settle(model)
    _train_heads_in_float32(model, name)
    _refuse_adapters_by_row(model)
    _adapt_shared_layers_once(model.get_base_model())
    _keep_statistics(model)
    _give_reversible_layers_a_gradient(model.get_base_model())


def _train_heads_in_float32(model: PeftModel, name: str) -> None:
    """Train an adapter's copies of 16-bit modules in float32.

    Their inputs and outputs keep the dtype of the modules around them.
    """
    for wrapper in model.modules():
        if not isinstance(wrapper, ModulesToSaveWrapper) or name not in wrapper.modules_to_save:
            continue
        first = next(wrapper.original_module.parameters(), None)
        if first is not None and first.dtype in (torch.bfloat16, torch.float16):
            trained = wrapper.modules_to_save[name].float()
            trained.register_forward_pre_hook(_cast_up, with_kwargs=True)
            trained.register_forward_hook(functools.partial(_cast_back, first.dtype))


def _cast_up(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    cast: tuple[Any, Any] = tree_map(lambda x: x.float() if _is_float(x) else x, (args, kwargs))
    return cast


def _cast_back(dtype: torch.dtype, module: nn.Module, args: Any, output: Any) -> Any:
    if _is_float(output):
        return output.to(dtype)
    if isinstance(output, tuple | list):
        cast = [_cast_back(dtype, module, args, entry) for entry in output]
        return output._make(cast) if hasattr(output, "_make") else type(output)(cast)
    return output


def _is_float(x: Any) -> TypeGuard[Tensor]:
    return isinstance(x, Tensor) and x.is_floating_point()


def _refuse_adapters_by_row(model: PeftModel) -> None:
    """Refuse ``adapter_names``, an adapter for each row, where a method would ignore it."""
    if not all(method.takes_adapter_names for method in methods_on(model)):
        vars(model.base_model)["_enable_peft_forward_hooks"] = _no_adapters_by_row


@contextlib.contextmanager
def _no_adapters_by_row(*args: Any, **kwargs: Any) -> Iterator[None]:
    if kwargs.get("adapter_names") is not None:
        raise ConfigError(
            "adapter_names needs LoRA adapters alone on the model; with other methods all rows of "
            "a batch get the same adapters: run one batch for each, after model.set_adapter(name)"
        )
    yield


def _adapt_shared_layers_once(backbone: nn.Module) -> None:
    """Give layers that share a weight one adapter, as in Zamba.

    The weight can only be merged with one update.
    """
    first: dict[tuple[type, type, int], nn.Module] = {}
    for parent in list(backbone.modules()):
        for name, child in list(parent.named_children()):
            base: Any = None
            if isinstance(child, BaseTunerLayer) and hasattr(child, "base_layer"):
                base = child.get_base_layer()
            weight = getattr(base, "weight", None)
            if isinstance(weight, nn.Parameter):
                # With the types: an embedding and a head that is tied to it are two layers.
                key = (type(child), type(base), id(weight))
                setattr(parent, name, first.setdefault(key, child))


def _keep_statistics(model: PeftModel) -> None:
    """Hold the backbone's batch norms in evaluation mode: training leaves their statistics."""
    heads: set[int] = set()
    for head in model.modules():
        if isinstance(head, ModulesToSaveWrapper):
            heads.update(id(part) for part in head.modules())
    for part in model.modules():
        if id(part) in heads:
            vars(part).pop("train", None)  # copied from a backbone that has an adapter already
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and id(part) not in heads:
            vars(part)["train"] = functools.partial(_stay, part.eval())


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def _give_reversible_layers_a_gradient(backbone: Any) -> None:
    """Let the embeddings' output require a gradient, as reversible layers (Reformer) need."""
    if is_reversible(backbone):
        backbone.enable_input_require_grads()
