"""The tuning methods, one file each. `resolve` completes a config for a model; PEFT injects what it
then says.
"""

import contextlib
from collections.abc import Iterator

from peft import AdaLoraConfig, LoraConfig, PeftConfig, PeftModel, PeftType, PrefixTuningConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from peftkit.errors import ConfigError
from peftkit.methods.adalora import layer as adalora
from peftkit.methods.bottleneck import layer as bottleneck
from peftkit.methods.bottleneck.layer import BottleneckConfig
from peftkit.methods.lora import targets as lora
from peftkit.methods.peft_registry import targets_as_they_are
from peftkit.methods.prefix import from_peft as prefix_import
from peftkit.methods.prefix import model as prefix
from peftkit.methods.prefix.model import PrefixConfig


def resolve(config: PeftConfig, model: nn.Module) -> PeftConfig:
    """Return a copy of `config` with targets, task type and trained heads filled in for `model`.

    Raises:
        ConfigError: a value is out of bounds, or the method is not one of peftkit's.
        TargetError: a target is not in the model.
    """
    if isinstance(config, AdaLoraConfig):
        return adalora.resolve(config, model)
    if isinstance(config, LoraConfig):
        return lora.resolve(config, model)
    if isinstance(config, BottleneckConfig):
        return bottleneck.resolve(config, model)
    if isinstance(config, PrefixConfig):
        return prefix.resolve(config, model)
    raise ConfigError(
        f"{type(config).__name__} is not one of peftkit's methods: LoraConfig, AdaLoraConfig, BottleneckConfig, PrefixConfig"
    )


@contextlib.contextmanager
def injection(config: PeftConfig) -> Iterator[None]:
    """A context in which PEFT injects what `resolve` has said, with the layers that peftkit has in
    place of PEFT's own.
    """
    with (
        targets_as_they_are(),
        adalora.in_place_of_peft()
        if isinstance(config, AdaLoraConfig)
        else contextlib.nullcontext(),
    ):
        yield


def join(model: PeftModel, config: PeftConfig, name: str) -> PeftModel:
    """Inject one more adapter into a model that has some.

    It joins the active adapters of other methods, and takes the place of those of its own. The
    first adapter's tuner stays the model's, and from then on switches the layers of all methods.

    Raises:
        ConfigError: LoRA would join AdaLoRA, or AdaLoRA LoRA: one would wrap the layers of the
            other.
    """
    kinds = {config.peft_type, *(other.peft_type for other in model.peft_config.values())}
    if kinds >= {PeftType.LORA, PeftType.ADALORA}:
        raise ConfigError(
            "LoRA and AdaLoRA cannot be on one model, since both update the weights of its layers; detach first"
        )
    tuner, backbone = model.base_model, model.get_base_model()
    kept = [
        other
        for other in model.active_adapters
        if model.peft_config[other].peft_type != config.peft_type
    ]
    del (
        backbone.peft_config
    )  # the tuners' common dictionary, which PEFT takes for a sign of trouble
    PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](backbone, {name: config}, name)
    model.peft_config[name] = config
    backbone.peft_config = model.peft_config
    tuner.tuner_layer_cls = BaseTunerLayer
    tuner.set_adapter([*kept, name])
    for other, its in model.peft_config.items():
        tuner.set_requires_grad(
            other, requires_grad=other in (*kept, name) and not its.inference_mode
        )
    model.active_adapter = name
    return model


def converted(
    config: PeftConfig, tensors: dict[str, Tensor], model: nn.Module
) -> tuple[PeftConfig, dict[str, Tensor]]:
    """Return config and weights of an adapter file, where it is one of PEFT's prefix tuning as a
    prefix of ours.

    Raises:
        AdapterFileError: that prefix means something else on this model.
    """
    if not isinstance(config, PrefixTuningConfig):
        return config, tensors
    return prefix_import.convert(
        config, tensors, model.get_base_model() if isinstance(model, PeftModel) else model
    )


def simplify(model: PeftModel, name: str) -> None:
    """Put in the place of what an adapter computes anew at every step what need be computed only
    once, for inference.
    """
    prefix.fold(model, name)


def left_alone(config: PeftConfig, model: nn.Module) -> dict[str, list[str]]:
    """Return the weights that a method might be thought to reach and does not, by reason."""
    return lora.left_alone(config, model) if isinstance(config, LoraConfig) else {}


def changes_backbone(config: PeftConfig) -> bool:
    """Tell whether attaching writes to the frozen weights."""
    return isinstance(config, LoraConfig) and lora.changes_backbone(config)
