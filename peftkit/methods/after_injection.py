"""What a model needs once PEFT has injected an adapter, whatever the method."""

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
    """Hold an adapter's trained copies of modules in float32, and their inputs and outputs in the
    dtype around them.
    """
    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            dtype = next(
                (parameter.dtype for parameter in wrapper.original_module.parameters()), None
            )
            if dtype in (torch.bfloat16, torch.float16) and name in wrapper.modules_to_save:
                trained = wrapper.modules_to_save[name].float()
                trained.register_forward_pre_hook(_cast_up, with_kwargs=True)
                trained.register_forward_hook(functools.partial(_cast_back, dtype))


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
    """Refuse ``adapter_names``, an adapter for each row, where a method has part in the model that
    would not heed it.
    """
    if not all(method.takes_adapter_names for method in methods_on(model)):
        vars(model.base_model)["_enable_peft_forward_hooks"] = _no_adapters_by_row


@contextlib.contextmanager
def _no_adapters_by_row(*args: Any, **kwargs: Any) -> Iterator[None]:
    if kwargs.get("adapter_names") is not None:
        raise ConfigError(
            "adapter_names needs LoRA adapters alone on the model; of other methods all rows of a batch see the same: run one "
            "batch for each adapter, after model.set_adapter(name)"
        )
    yield


def _adapt_shared_layers_once(backbone: nn.Module) -> None:
    """Give layers that share a weight one adapter: the weight can be merged with one update only
    (Zamba).
    """
    first: dict[tuple[type, type, int], nn.Module] = {}
    for parent in list(backbone.modules()):
        for name, child in list(parent.named_children()):
            base: Any = None
            if isinstance(child, BaseTunerLayer) and hasattr(child, "base_layer"):
                base = child.get_base_layer()
            weight = getattr(base, "weight", None)
            if isinstance(
                weight, nn.Parameter
            ):  # an embedding and a head that is tied to it are two layers
                setattr(
                    parent, name, first.setdefault((type(child), type(base), id(weight)), child)
                )


def _keep_statistics(model: PeftModel) -> None:
    """Hold the batch norms of the backbone in evaluation, so that training an adapter does not
    change their statistics.
    """
    heads = {
        id(part)
        for head in model.modules()
        if isinstance(head, ModulesToSaveWrapper)
        for part in head.modules()
    }
    for part in model.modules():
        if id(part) in heads:
            vars(part).pop("train", None)  # copied from a backbone that has an adapter already
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and id(part) not in heads:
            vars(part)["train"] = functools.partial(_stay, part.eval())


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def _give_reversible_layers_a_gradient(backbone: Any) -> None:
    """Let the embeddings' output carry a gradient, which layers that compute their inputs again ask
    for (Reformer).
    """
    if is_reversible(backbone):
        backbone.enable_input_require_grads()
