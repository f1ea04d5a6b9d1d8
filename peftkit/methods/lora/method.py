"""LoRA (arXiv:2106.09685) as the rest of the library sees it."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer, LoraModel
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn

from peftkit.errors import ConfigError
from peftkit.methods.lora import targets
from peftkit.methods.lora.combining import sum_of_updates
from peftkit.methods.lora.layer import make_layers_lean, show_geometry
from peftkit.methods.lora.settings import Settings
from peftkit.methods.merging import config_of_one_layer, merge_as_peft
from peftkit.methods.method import Arithmetic, Method, Variant
from peftkit.methods.stored import StoredAdapter


class Lora(Method):
    """y = W x + (alpha / r) B A dropout(x), with W frozen."""

    name = "lora"
    title = "LoRA"
    peft_type = "LORA"
    config_class = LoraConfig
    tuner_class = LoraModel
    settings = Settings
    variants: ClassVar[Mapping[str, Variant]] = {
        "lora": Variant(
            "LoRA, r = 16", shown=lambda: LoraConfig(r=16), small=lambda: LoraConfig(r=4)
        )
    }
    wraps_layers = True
    takes_adapter_names = True

    def resolve(self, config: LoraConfig, model: nn.Module) -> LoraConfig:
        return targets.resolve(config, model)

    def left_alone(self, config: LoraConfig, model: nn.Module) -> dict[str, list[str]]:
        return targets.left_alone(config, model)

    def changes_backbone(self, config: LoraConfig) -> bool:
        return targets.changes_backbone(config)

    def settle(self, model: PeftModel) -> None:
        show_geometry(model)

    def make_lean(self, model: PeftModel, arithmetic: Arithmetic) -> Counter[str | None]:
        return make_layers_lean(model, arithmetic)

    def sides(self, config: LoraConfig) -> dict[str, int]:
        ranks = {f"rank_pattern[{key!r}]": rank for key, rank in config.rank_pattern.items()}
        return {"r": config.r, **ranks}

    def merged_layer(
        self, layer: LoraLayer, base: nn.Module, config: LoraConfig, name: str
    ) -> nn.Module:
        if isinstance(layer, ParamWrapper):
            raise ConfigError(
                f"LoRA on the parameter {layer.parameter_name} (target_parameters) cannot be "
                "merged yet"
            )
        single = config_of_one_layer(copy.deepcopy(config))
        single.target_parameters = None
        single.layers_to_transform = single.layer_replication = None
        single.rank_pattern, single.alpha_pattern = {}, {}
        single.r, single.lora_alpha = layer.r[name], layer.lora_alpha[name]
        single.init_lora_weights = True
        single.lora_dropout = 0.0
        return merge_as_peft(layer, base, single, name)

    def sum_of_updates(
        self, adapters: Sequence[StoredAdapter], weights: Sequence[float]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return sum_of_updates(adapters, weights)


METHOD = Lora()
