"""AdaLoRA in a model: how a config is resolved, and how PEFT puts the layers there."""

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

# The fields of LoraConfig that mean something to AdaLoRA. PEFT ignores the others without a word;
# here they are refused.
_HONOURED = {
    "bias", "exclude_modules", "fan_in_fan_out", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha",
    "lora_dropout", "modules_to_save", "r", "target_modules", "trainable_token_indices",
}  # fmt: skip


def resolve(config: AdaLoraConfig, model: nn.Module) -> LoraConfig:
    """Return a copy of `config` with the targets, the task type and the trained heads that suit
    `model`.

    Raises:
        ConfigError: a value is out of bounds, or a field is set that AdaLoRA has no use for.
        TargetError: a name in ``target_modules`` matches no module.
    """
    problems = [*_out_of_bounds(config), *_unused(config), *_wrong_pattern(config, model)]
    if problems:
        raise ConfigError("AdaLoraConfig: " + "; ".join(problems))
    resolved = targets.resolve(config, model, convolutions=False)
    if config.rank_pattern:  # PEFT's pattern has the adapter's name behind the key while it trains
        resolved.rank_pattern = {
            _layer(key) + ".lora_E": kept for key, kept in config.rank_pattern.items()
        }
    return resolved


def _layer(key: str) -> str:
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
        yield f"target_r is {config.target_r}, more than init_r, {config.init_r}; the budget can only fall"
    for name in ("beta1", "beta2"):
        value = getattr(config, name)
        if not isinstance(value, int | float) or not 0 < value < 1:
            yield f"{name} is {value!r}; it must lie between 0 and 1"
    for name, bound in (("lora_alpha", "more than 0"), ("orth_reg_weight", "at least 0")):
        value = getattr(config, name)
        if not is_number(value) or value < 0 or (value == 0 and name == "lora_alpha"):
            yield f"{name} is {value!r}; it must be a finite number, {bound}"
    if not isinstance(config.init_lora_weights, bool):
        yield f"init_lora_weights is {config.init_lora_weights!r}; AdaLoRA has one start of its own, True"


def _unused(config: AdaLoraConfig) -> Iterator[str]:
    """Yield a sentence for each field of LoRA that is set and that AdaLoRA, PEFT's too, would not
    act on.
    """
    others = _HONOURED | PeftConfig.__dataclass_fields__.keys() | {"rank_pattern"}
    for field in fields(LoraConfig):
        if field.name in others or not field.init:
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(config, field.name)
        if value != default and value:
            yield f"{field.name} is {value!r}, which AdaLoRA has no use for; leave it out, or use LoraConfig"


def _wrong_pattern(config: AdaLoraConfig, model: nn.Module) -> Iterator[str]:
    """Yield what is wrong with a saved ``rank_pattern``: layer to list of init_r booleans, True for
    what was kept.
    """
    modules = {name for name, _ in model.named_modules()} if config.rank_pattern else set()
    for key, kept in (config.rank_pattern or {}).items():
        if _layer(key) not in modules:
            yield f"rank_pattern names {key}, which is not a layer of the model"
        elif not isinstance(kept, list) or len(kept) != config.init_r:
            yield f"rank_pattern[{key!r}] must be a list of init_r = {config.init_r} booleans"


def _as_it_is(rank_pattern: dict[str, Any], state_dict: Any, *adapter_name: str) -> Any:
    """Resize nothing: what is pruned has left the weights, and a layer takes the rank of the
    weights loaded into it.
    """
    return state_dict


class AdaLoraTuner(AdaLoraModel):
    """PEFT's AdaLoRA with our layers. Its forward adds nothing to the loss: `allocation` puts the
    penalty into the gradient.
    """

    is_driven = False
    resize_state_dict_by_rank_pattern = resize_modules_by_rank_pattern = staticmethod(_as_it_is)

    def __init__(self, model: nn.Module, config: Any, adapter_name: str, **options: Any) -> None:
        super().__init__(model, config, adapter_name, **options)
        # PEFT asks the whole model for these two, whose tuner is another's where AdaLoRA has joined
        # another method.
        vars(model)["resize_state_dict_by_rank_pattern"] = vars(model)[
            "resize_modules_by_rank_pattern"
        ] = _as_it_is

    def _create_and_replace(
        self, lora_config: AdaLoraConfig, adapter_name: str, target: nn.Module, target_name: str, parent: nn.Module,
        current_key: str, **options: Any,
    ) -> None:  # fmt: skip
        if isinstance(target, AdaLoraLinear):
            target.add_adapter(adapter_name, lora_config)
            return
        if isinstance(target, BaseTunerLayer):
            raise ValueError(
                f"{current_key} carries an adapter of another method, and AdaLoRA cannot share a layer with it"
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
        """Call the model; its loss stays what it is."""
        if (
            self.training
            and torch.is_grad_enabled()
            and not self.is_driven
            and hasattr(self, "trainable_adapter_name")
        ):
            self.is_driven = True  # said once
            logging.getLogger(__name__).warning(
                "AdaLoRA trains without its budget and penalty: nothing allocates ranks for this model. Train it with "
                "peftkit.training.loop.Training, add peftkit.AdaLoraCallback() to transformers.Trainer, or call a "
                "peftkit.methods.adalora.allocation.Allocation in your own loop"
            )
        return self.model(*args, **kwargs)

    def update_and_allocate(self, global_step: int) -> None:
        """Refuse PEFT's entry for loops of one's own: it comes after the step, too late for the
        penalty.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "update_and_allocate comes too late for the penalty; make a peftkit.methods.adalora.allocation.Allocation(model, "
            "optimizer, total_steps) and call its before_step() before and its after_step(step) after optimizer.step()"
        )
