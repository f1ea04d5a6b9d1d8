"""How an AdaLoRA config is resolved for a model, and how PEFT injects the layers."""

import logging
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig
from peft.tuners.adalora import AdaLoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftkit.config.numbers import is_number, is_whole
from peftkit.errors import ConfigError
from peftkit.methods.adalora.layer import AdaLoraLinear
from peftkit.methods.lora import targets

# The fields of LoraConfig that AdaLoRA uses. PEFT ignores the others silently; here they are
# refused.
_USED = {
    "bias",
    "exclude_modules",
    "fan_in_fan_out",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "r",
    "rank_pattern",
    "target_modules",
    "trainable_token_indices",
}


def resolve(config: AdaLoraConfig, model: nn.Module) -> LoraConfig:
    """Return a copy of `config` with the targets, task type and trained heads of `model`.

    Raises:
        ConfigError: a value is out of bounds, or a field is set that AdaLoRA does not use.
        TargetError: a name in ``target_modules`` matches no module.
    """
    problems = [*_out_of_bounds(config), *_unused(config), *_wrong_pattern(config, model)]
    if problems:
        raise ConfigError("AdaLoraConfig: " + "; ".join(problems))
    resolved = targets.resolve(config, model, convolutions=False)
    if config.rank_pattern:
        resolved.rank_pattern = {}
        for key, kept in config.rank_pattern.items():
            resolved.rank_pattern[_layer_of(key) + ".lora_E"] = kept
    return resolved


def _layer_of(key: str) -> str:
    """Return the layer's name in a key of ``rank_pattern``.

    During training, PEFT's keys end in ".lora_E." and the name of the adapter.
    """
    return key.rpartition(".lora_E")[0]


def _out_of_bounds(config: AdaLoraConfig) -> Iterator[str]:
    for name, least in (
        ("init_r", 1),
        ("target_r", 1),
        ("tinit", 0),
        ("tfinal", 0),
        ("deltaT", 1),
        ("total_step", 1),
    ):
        value = getattr(config, name)
        if not is_whole(value) or value < least:
            yield f"{name} is {value!r}; it must be a whole number of at least {least}"
    if is_whole(config.target_r) and is_whole(config.init_r) and config.target_r > config.init_r:
        what = f"target_r is {config.target_r}, more than init_r, {config.init_r}"
        yield f"{what}; the budget can only fall"
    for name in ("beta1", "beta2"):
        value = getattr(config, name)
        if not isinstance(value, int | float) or not 0 < value < 1:
            yield f"{name} is {value!r}; it must lie between 0 and 1"
    for name, bound in (("lora_alpha", "more than 0"), ("orth_reg_weight", "at least 0")):
        value = getattr(config, name)
        if not is_number(value) or value < 0 or (value == 0 and name == "lora_alpha"):
            yield f"{name} is {value!r}; it must be a finite number, {bound}"
    if not isinstance(config.init_lora_weights, bool):
        what = f"init_lora_weights is {config.init_lora_weights!r}"
        yield f"{what}; AdaLoRA has its own initialisation, True"


def _unused(config: AdaLoraConfig) -> Iterator[str]:
    """Yield a sentence for each field that is set and that AdaLoRA does not use."""
    used = _USED | PeftConfig.__dataclass_fields__.keys()
    for field in fields(LoraConfig):
        if field.name in used or not field.init:
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(config, field.name)
        if value != default and value:
            what = f"{field.name} is {value!r}, which AdaLoRA has no use for"
            yield f"{what}; leave it out, or use LoraConfig"


def _wrong_pattern(config: AdaLoraConfig, model: nn.Module) -> Iterator[str]:
    """Yield what is wrong with a saved ``rank_pattern``.

    It has a list of init_r booleans for each layer: True for each triplet that was kept.
    """
    if not config.rank_pattern:
        return
    modules = {name for name, _ in model.named_modules()}
    for key, kept in config.rank_pattern.items():
        if _layer_of(key) not in modules:
            yield f"rank_pattern names {key}, which is not a layer of the model"
        elif not isinstance(kept, list) or len(kept) != config.init_r:
            yield f"rank_pattern[{key!r}] must be a list of init_r = {config.init_r} booleans"


def _leave_unchanged(rank_pattern: dict[str, Any], state_dict: Any, *adapter_name: str) -> Any:
    """Return the weights as they are, in the place of PEFT's resizing.

    Pruned triplets have left the weights, and a layer takes the rank of what is loaded into it.
    """
    return state_dict


class AdaLoraTuner(AdaLoraModel):
    """PEFT's AdaLoRA with our layers.

    Its forward adds nothing to the loss: `allocation` adds the penalty to the gradient.
    """

    is_driven = False
    """Whether an `Allocation` trains the adapter."""
    resize_state_dict_by_rank_pattern = staticmethod(_leave_unchanged)
    resize_modules_by_rank_pattern = staticmethod(_leave_unchanged)

    def __init__(self, model: nn.Module, config: Any, adapter_name: str, **options: Any) -> None:
        super().__init__(model, config, adapter_name, **options)
        # PEFT asks the whole model for these two. Where AdaLoRA has joined another method, the
        # model's tuner is that method's.
        vars(model)["resize_state_dict_by_rank_pattern"] = _leave_unchanged
        vars(model)["resize_modules_by_rank_pattern"] = _leave_unchanged

    def _create_and_replace(
        self,
        lora_config: AdaLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **options: Any,
    ) -> None:
        if isinstance(target, AdaLoraLinear):
            target.add_adapter(adapter_name, lora_config)
            return
        if isinstance(target, BaseTunerLayer):
            raise ValueError(
                f"{current_key} has an adapter of another method, and AdaLoRA cannot share a layer "
                "with it"
            )
        if not isinstance(target, Conv1D) and not hasattr(target, "in_features"):
            raise ValueError(
                f"AdaLoRA adapts linear layers, and {current_key} is a {type(target).__name__}"
            )
        module = AdaLoraLinear(target, current_key, adapter_name, lora_config)
        if adapter_name not in self.active_adapters:
            module.requires_grad_(False)
        self._replace_module(parent, target_name, module, target)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model, without adding to its loss."""
        trains = self.training and torch.is_grad_enabled()
        if trains and hasattr(self, "trainable_adapter_name") and not self.is_driven:
            self.is_driven = True  # so the warning comes once
            logging.getLogger(__name__).warning(
                "AdaLoRA trains without its budget and penalty: nothing allocates ranks for this "
                "model. Train it with peftkit.training.loop.Training, add "
                "peftkit.AdaLoraCallback() to transformers.Trainer, or call a "
                "peftkit.methods.adalora.budget.Allocation in your own loop"
            )
        return self.model(*args, **kwargs)

    def update_and_allocate(self, global_step: int) -> None:
        """Refuse PEFT's call for custom loops: after the step is too late for the penalty.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "update_and_allocate comes too late for the penalty; make a "
            "peftkit.methods.adalora.budget.Allocation(model, optimizer, total_steps), and "
            "call its before_step() before optimizer.step() and its after_step(step) after it"
        )
