"""Modules that are trained and saved whole, beside the adapter."""

from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn


def train_in_float32(model: PeftModel, name: str) -> None:
    """Hold an adapter's trained copies of modules in float32, and their inputs and outputs in the dtype around them."""

    def cast_up(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)

    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            dtype = next(wrapper.original_module.parameters()).dtype
            if dtype in (torch.bfloat16, torch.float16) and name in wrapper.modules_to_save:

                def cast_back(module: nn.Module, inputs: Any, output: Any, dtype: torch.dtype = dtype) -> Any:
                    return output.to(dtype) if isinstance(output, Tensor) else output

                trained = wrapper.modules_to_save[name].float()
                trained.register_forward_pre_hook(cast_up)
                trained.register_forward_hook(cast_back)
