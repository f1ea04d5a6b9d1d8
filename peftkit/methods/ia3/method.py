"""IA3 (arXiv:2205.05638) as the rest of the library sees it. PEFT injects the layers."""

from collections.abc import Mapping
from typing import ClassVar

from peft import IA3Config, PeftModel
from peft.tuners.ia3 import IA3Layer, IA3Model
from torch import nn

from peftkit.methods.ia3.layer import keep_dtypes
from peftkit.methods.ia3.settings import Settings
from peftkit.methods.ia3.targets import resolve
from peftkit.methods.merging import config_of_one_layer, merge_as_peft
from peftkit.methods.method import Method, Variant


class IA3(Method):
    """l * (W x), or W (l * x) in a feed-forward layer, with W frozen and a trained vector l."""

    name = "ia3"
    title = "IA3"
    peft_type = "IA3"
    config_class = IA3Config
    tuner_class = IA3Model
    settings = Settings
    variants: ClassVar[Mapping[str, Variant]] = {
        "ia3": Variant("IA3", shown=IA3Config, small=IA3Config, needs="attention")
    }
    wraps_layers = True

    def resolve(self, config: IA3Config, model: nn.Module) -> IA3Config:
        return resolve(config, model)

    def settle(self, model: PeftModel) -> None:
        keep_dtypes(model)

    def merged_layer(
        self, layer: IA3Layer, base: nn.Module, config: IA3Config, name: str
    ) -> nn.Module:
        single = config_of_one_layer(config)
        single.feedforward_modules = single.target_modules if layer.is_feedforward else []
        return merge_as_peft(layer, base, single, name)


METHOD = IA3()
