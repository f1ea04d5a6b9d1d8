"""Fold the adapter of one layer into its weight, as PEFT does it."""

import copy
from typing import Any

from peft import PeftConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from peftkit.methods.peft_registry import quiet_peft

_LAYER = "layer"


def config_of_one_layer(config: Any) -> Any:
    """Return a copy of a config that names a single layer, the one `merge_as_peft` puts it on."""
    single = copy.deepcopy(config)
    single.target_modules = [_LAYER]
    single.exclude_modules = single.modules_to_save = None
    single.task_type = single.base_model_name_or_path = None
    single.inference_mode = True
    return single


def merge_as_peft(
    layer: BaseTunerLayer, base: nn.Module, config: PeftConfig, name: str
) -> nn.Module:
    """Return `base` with the adapter `name` of `layer` folded in, in float32, variants and all.

    Args:
        layer: The adapted layer.
        base: A float32 copy of what it wraps; it is changed.
        config: What `config_of_one_layer` returned, with the sizes of this layer.
        name: The adapter.
    """
    alone = nn.Module()
    alone.layer = base
    with quiet_peft():
        wrapped = get_peft_model(alone, config, adapter_name=name)
    copied: nn.Module = alone.layer
    for key in layer.adapter_layer_names:
        state = getattr(layer, key).state_dict()
        getattr(copied, key).load_state_dict(
            {entry: value.float() for entry, value in state.items()}
        )
    merged: nn.Module = wrapped.merge_and_unload(safe_merge=True).layer
    return merged
