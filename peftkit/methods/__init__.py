"""The tuning methods, one file each. `resolve` completes a config for a model; PEFT injects what it then says."""

from peft import AdaLoraConfig, LoraConfig, PeftConfig
from torch import nn

from peftkit.errors import ConfigError
from peftkit.methods import lora


def resolve(config: PeftConfig, model: nn.Module) -> PeftConfig:
    """Return a copy of `config` with targets, task type and trained heads filled in for `model`.

    Raises:
        ConfigError: a value is out of bounds, or the method is not one of peftkit's.
        TargetError: a target is not in the model.
    """
    if isinstance(config, LoraConfig) and not isinstance(config, AdaLoraConfig):
        return lora.resolve(config, model)
    raise ConfigError(f"{type(config).__name__} is not a method that peftkit attaches yet; use LoraConfig")


def changes_backbone(config: PeftConfig) -> bool:
    """Tell whether attaching writes to the frozen weights."""
    return isinstance(config, LoraConfig) and lora.changes_backbone(config)
