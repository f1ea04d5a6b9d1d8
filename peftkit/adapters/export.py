"""Write an adapter in the form that servers and converters read: plain LoRA of one rank, with the
scale in the weights.
"""

from pathlib import Path

import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from peftkit.adapters.saving import adapter_tensors, write_adapter
from peftkit.errors import ConfigError
from peftkit.methods.adalora.layer import adapted_layers


def export_lora(model: PeftModel, directory: str | Path, *, name: str = "default") -> None:
    """Write an AdaLoRA adapter as the plain LoRA adapter (arXiv:2106.09685) that computes the same.

    The update is a product B A of the same ranks: A is lora_A, and B = s lora_B diag(lora_E). All
    layers get the largest of the ranks, filled up with zeros, and lora_alpha is that rank, so that
    the scale is 1: vLLM, SGLang and llama.cpp read no patterns of ranks. Trained heads and biases
    are written beside it, as they are.

    Raises:
        ConfigError: `model` has no AdaLoRA adapter of that name; a LoRA adapter is written by
            `save`.
        NonFiniteError: a weight is NaN or infinite. Nothing is written.
    """
    config = model.peft_config.get(name) if isinstance(model, PeftModel) else None
    if not isinstance(config, AdaLoraConfig):
        raise ConfigError(
            f"{type(model).__name__} has no AdaLoRA adapter {name!r} to export; peftkit.save writes other adapters as they are"
        )
    layers = adapted_layers(model, name)
    if not layers:
        raise ConfigError(
            "PEFT itself has attached this AdaLoRA adapter; load it with peftkit.load, and export that"
        )
    tensors = adapter_tensors(model, name)
    rank = max(1, *(layer.r[name] for layer in layers))
    for layer in layers:
        prefix = f"base_model.model.{layer.name}"
        for key in ("lora_A", "lora_E", "lora_B"):
            del tensors[f"{prefix}.{key}"]
        with torch.no_grad():
            a, b = layer.factors(name)
        missing = rank - layer.r[name]
        tensors[f"{prefix}.lora_A.weight"] = F.pad(a, (0, 0, 0, missing))
        tensors[f"{prefix}.lora_B.weight"] = F.pad(b, (0, missing))
    is_conv1d = any(isinstance(layer.get_base_layer(), Conv1D) for layer in layers)
    write_adapter(model.get_base_model(), _plain(config, rank, is_conv1d), tensors, directory)


def _plain(config: AdaLoraConfig, rank: int, fan_in_fan_out: bool) -> LoraConfig:
    """Return the config of a LoRA adapter on the same layers."""
    kept = (
        "base_model_name_or_path", "bias", "exclude_modules", "layers_pattern", "layers_to_transform", "lora_dropout",
        "modules_to_save", "revision", "target_modules", "task_type", "trainable_token_indices",
    )  # fmt: skip
    values = {name: getattr(config, name) for name in kept}
    return LoraConfig(r=rank, lora_alpha=rank, fan_in_fan_out=fan_in_fan_out, **values)
