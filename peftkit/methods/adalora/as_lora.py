"""An AdaLoRA adapter as the plain LoRA adapter (arXiv:2106.09685) that computes the same."""

import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel
from torch import Tensor
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from peftkit.errors import ConfigError
from peftkit.methods.adalora.layer import TRIPLET_DIMENSION, adapted_layers
from peftkit.methods.peft_registry import adapter_tensors

_KEPT = (
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "modules_to_save",
    "revision",
    "target_modules",
    "task_type",
    "trainable_token_indices",
)


def as_lora(model: PeftModel, name: str) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Return config and weights of the LoRA adapter that computes what the adapter `name` does.

    The update is a product B A of the same rank: A = Q, and B = s P Lambda. All layers get the
    largest rank, filled up with zeros, and lora_alpha is that rank, so the scale is 1: vLLM, SGLang
    and llama.cpp read no patterns of ranks. Trained heads and biases stay as they are.

    Raises:
        ConfigError: PEFT itself attached the adapter.
    """
    layers = adapted_layers(model, name)
    if not layers:
        raise ConfigError(
            "PEFT itself has attached this AdaLoRA adapter; load it with peftkit.load, and export "
            "that"
        )
    tensors = adapter_tensors(model, name)
    rank = max(1, *(layer.r[name] for layer in layers))
    for layer in layers:
        prefix = f"base_model.model.{layer.name}"
        for key in TRIPLET_DIMENSION:
            del tensors[f"{prefix}.{key}"]
        with torch.no_grad():
            a, b = layer.factors(name)  # (r, in), (out, r)
        missing = rank - layer.r[name]
        tensors[f"{prefix}.lora_A.weight"] = F.pad(a, (0, 0, 0, missing))
        tensors[f"{prefix}.lora_B.weight"] = F.pad(b, (0, missing))
    config: AdaLoraConfig = model.peft_config[name]
    kept = {field: getattr(config, field) for field in _KEPT}
    is_conv1d = any(isinstance(layer.get_base_layer(), Conv1D) for layer in layers)
    return LoraConfig(r=rank, lora_alpha=rank, fan_in_fan_out=is_conv1d, **kept), tensors
