"""What a run would do wrong on these processes, or in this precision, is refused before it starts."""

import os

import torch
from accelerate import Accelerator, DistributedType
from peft.tuners.adalora import AdaLoraLayer
from torch import nn

from peftkit.errors import ConfigError
from peftkit.quantization import model_quantization
from peftkit.training import sharding
from peftkit.training.settings import TrainSettings

_OVERFLOWS_IN_FP16 = ("t5", "mt5", "umt5", "byt5", "longt5", "switch_transformers", "udop", "pop2piano")


def check_precision(precision: str, model: nn.Module) -> None:
    """Refuse what the device or the model cannot compute in.

    Raises:
        ConfigError: bf16 on a GPU that only emulates it; fp16 on a model of the T5 family.
    """
    device = next(model.parameters()).device
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"{torch.cuda.get_device_name(device)} does not compute in bfloat16; set train.precision=fp16, and load the "
            "backbone in float16"
        )
    kind = getattr(getattr(model, "config", None), "model_type", "")
    half = precision == "fp16" or any(parameter.dtype == torch.float16 for parameter in model.parameters())
    if half and kind in _OVERFLOWS_IN_FP16:
        raise ConfigError(
            f"{kind} overflows in float16 and gives NaN; load it in bfloat16 with train.precision=bf16, or in float32 with "
            "train.precision=no"
        )


def check_processes(settings: TrainSettings, model: nn.Module, accelerator: Accelerator) -> None:
    """Refuse what cannot be right on these processes.

    Raises:
        ConfigError: the step is not ``global_batch_size``; ``auto_batch`` on several processes; DeepSpeed; or what FSDP
            cannot do.
    """
    cut = (settings.batch_size, settings.accumulate, accelerator.num_processes)
    if settings.global_batch_size not in (None, cut[0] * cut[1] * cut[2]):
        raise ConfigError(
            f"train.global_batch_size is {settings.global_batch_size}, but batch_size {cut[0]} x accumulate {cut[1]} x "
            f"{cut[2]} process(es) is {cut[0] * cut[1] * cut[2]}"
        )
    if settings.auto_batch and accelerator.num_processes > 1:
        raise ConfigError("train.auto_batch works on one process only; set train.batch_size to what fits")
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _refuse_deepspeed(model)
    if sharding.is_asked_for():
        _check_fsdp(model)


def _refuse_deepspeed(model: nn.Module) -> None:
    if model_quantization(model) is not None:
        raise ConfigError(
            "DeepSpeed ZeRO-3 does not partition bitsandbytes weights: every process would hold the whole backbone; use "
            "recipes/accelerate/fsdp2_qlora.yaml"
        )
    raise ConfigError(
        "this loop does not train under DeepSpeed, which steps and partitions the weights by itself; use "
        "recipes/accelerate/fsdp2_qlora.yaml, or transformers.Trainer"
    )


def _check_fsdp(model: nn.Module) -> None:
    options = {name: os.environ.get(f"FSDP_{name}", "false").lower() for name in _FSDP_OPTIONS}
    for name, remark in _FSDP_OPTIONS.items():
        if options[name] == "true":
            raise ConfigError(f"fsdp_{name.lower()}: true is not supported, {remark}; set it to false")
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError("FSDP 1 cannot shard a frozen backbone beside a trained adapter; set fsdp_version: 2")
    if model_quantization(model) == "int8":
        raise ConfigError("FSDP cannot shard int8 weights, which carry their scales beside them; load the model in nf4")
    if any(isinstance(module, AdaLoraLayer) for module in model.modules()):
        raise ConfigError(
            "AdaLoRA ranks whole triplets and cannot see them in the shards of FSDP; use "
            "recipes/accelerate/ddp.yaml, or one process"
        )
    dtypes = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad}
    if len(dtypes) > 1:
        raise ConfigError(
            f"FSDP wants all trained parameters in one dtype, these are {', '.join(sorted(dtypes))}; cast them to float32"
        )


_FSDP_OPTIONS = {
    "OFFLOAD_PARAMS": "nobody has tried it with quantised weights",
    "CPU_RAM_EFFICIENT_LOADING": "each process loads the backbone by itself",
    "ACTIVATION_CHECKPOINTING": "train.gradient_checkpointing does that",
}
