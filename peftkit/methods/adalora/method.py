"""AdaLoRA (arXiv:2303.10512) as the rest of the library sees it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peft import AdaLoraConfig, LoraConfig, PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer

from peftkit.errors import ConfigError
from peftkit.methods.adalora.as_lora import as_lora
from peftkit.methods.adalora.budget import Allocation
from peftkit.methods.adalora.layer import AdaLoraLinear, adapted_layers, fit_ranks
from peftkit.methods.adalora.model import AdaLoraTuner, resolve
from peftkit.methods.adalora.settings import Settings
from peftkit.methods.lora.layer import make_layers_lean
from peftkit.methods.method import Arithmetic, Method, Variant
from peftkit.methods.stored import StoredAdapter


class AdaLora(Method):
    """y = W x + s P Lambda Q dropout(x), with W frozen and a rank that falls to a budget."""

    name = "adalora"
    title = "AdaLoRA"
    peft_type = "ADALORA"
    config_class = AdaLoraConfig
    tuner_class = AdaLoraTuner
    settings = Settings
    variants: ClassVar[Mapping[str, Variant]] = {
        "adalora": Variant(
            "AdaLoRA, r = 12 to 8",
            shown=lambda: AdaLoraConfig(init_r=12, target_r=8, total_step=1000),
            small=lambda: AdaLoraConfig(init_r=4, target_r=2, tinit=1, tfinal=2, total_step=8),
            needs="linear layer",
        )
    }
    wraps_layers = True

    def resolve(self, config: AdaLoraConfig, model: nn.Module) -> LoraConfig:
        return resolve(config, model)

    def make_lean(self, model: PeftModel, arithmetic: Arithmetic) -> Counter[str | None]:
        return make_layers_lean(model, arithmetic)

    def sides(self, config: AdaLoraConfig) -> dict[str, int]:
        return {"init_r": config.init_r}

    def fit_shapes(self, model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
        fit_ranks(model, shapes)

    def as_lora(self, model: PeftModel, name: str) -> tuple[LoraConfig, dict[str, Tensor]]:
        return as_lora(model, name)

    def check_mergeable(self, model: PeftModel, name: str) -> None:
        if not adapted_layers(model, name):
            raise ConfigError(
                f"PEFT itself has attached the AdaLoRA adapter {name!r}; load it with "
                "peftkit.load, and merge that"
            )

    def merged_layer(
        self, layer: AdaLoraLinear, base: nn.Module, config: AdaLoraConfig, name: str
    ) -> nn.Module:
        base.get_parameter("weight").add_(layer.get_delta_weight(name).float())
        return base

    def sum_of_updates(
        self, adapters: Sequence[StoredAdapter], weights: Sequence[float]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        raise ConfigError(
            f"{adapters[0].path} is a {self.peft_type} adapter, whose update cannot be added up; "
            "write it as a LoRA adapter with peftkit.export_lora first"
        )

    def training(
        self, model: nn.Module, optimizer: Optimizer, total_steps: int, *, in_place: bool = True
    ) -> Allocation:
        return Allocation(model, optimizer, total_steps, in_place=in_place)


METHOD = AdaLora()
