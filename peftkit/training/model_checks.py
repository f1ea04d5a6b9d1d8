"""Checks once the model is loaded: its precision, and the processes that are to train it."""

import torch
from accelerate import Accelerator
from torch import nn

from peftkit.backbones.quantization import model_quantization
from peftkit.config.train import TrainSettings
from peftkit.errors import ConfigError
from peftkit.methods.method import methods_on
from peftkit.training.launch_checks import check_launch, uses_fsdp

_OVERFLOWS_IN_FP16 = (
    "t5",
    "mt5",
    "umt5",
    "byt5",
    "longt5",
    "switch_transformers",
    "udop",
    "pop2piano",
)


def check_precision(precision: str, model: nn.Module) -> None:
    """Refuse a precision in which the device or the model cannot compute.

    Raises:
        ConfigError: bf16 on a GPU that only emulates it; fp16 on a model of the T5 family.
    """
    device = next(model.parameters()).device
    if (
        precision == "bf16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise ConfigError(
            f"{torch.cuda.get_device_name(device)} does not compute in bfloat16; set "
            "train.precision=fp16, and load the backbone in float16"
        )
    kind = getattr(getattr(model, "config", None), "model_type", "")
    dtypes = {parameter.dtype for parameter in model.parameters()}
    is_half = precision == "fp16" or torch.float16 in dtypes
    if is_half and kind in _OVERFLOWS_IN_FP16:
        raise ConfigError(
            f"{kind} overflows in float16 and gives NaN; load it in bfloat16 with "
            "train.precision=bf16, or in float32 with train.precision=no"
        )


def check_processes(settings: TrainSettings, model: nn.Module, accelerator: Accelerator) -> None:
    """Refuse settings and models that these processes would train wrongly.

    Raises:
        ConfigError: what `peftkit.training.launch_checks.check_launch` refuses; trained parameters
            of several dtypes under FSDP; or an Accelerator that accumulates gradients itself.
    """
    why_not_sharded = None
    for method in methods_on(model):
        why_not_sharded = why_not_sharded or method.settings.why_not_sharded
    check_launch(settings, model_quantization(model), why_not_sharded, accelerator.num_processes)
    dtypes = set()
    for parameter in model.parameters():
        if parameter.requires_grad:
            dtypes.add(str(parameter.dtype).removeprefix("torch."))
    if uses_fsdp() and len(dtypes) > 1:
        raise ConfigError(
            "FSDP needs all trained parameters in one dtype, and these are in "
            f"{', '.join(sorted(dtypes))}; cast them to float32"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise ConfigError(
            f"the Accelerator has gradient_accumulation_steps "
            f"{accelerator.gradient_accumulation_steps}, by which it would divide every gradient; "
            "leave it at 1 and set train.accumulate"
        )
