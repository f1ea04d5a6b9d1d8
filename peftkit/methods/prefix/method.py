"""Prefix tuning (arXiv:2101.00190) as the rest of the library sees it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from peft import PrefixTuningConfig
from torch import Tensor, nn

from peftkit.methods.method import Method, Variant
from peftkit.methods.prefix.config import PrefixConfig
from peftkit.methods.prefix.from_peft import convert
from peftkit.methods.prefix.model import PrefixModel, replace_networks
from peftkit.methods.prefix.settings import Settings
from peftkit.methods.prefix.sites import resolve


class Prefix(Method):
    """softmax(q [Pk; K]^T / sqrt(d)) [Pv; V], with Pk and Pv trained."""

    name = "prefix"
    title = "a prefix"
    peft_type = "PREFIX"
    config_class = PrefixConfig
    tuner_class = PrefixModel
    settings = Settings
    variants: ClassVar[Mapping[str, Variant]] = {
        "prefix": Variant(
            "prefix, 30 tokens",
            shown=lambda: PrefixConfig(num_virtual_tokens=30),
            small=lambda: PrefixConfig(num_virtual_tokens=3),
            needs="attention",
        )
    }
    starts_as_backbone = False
    converts_from = (PrefixTuningConfig,)

    def resolve(self, config: PrefixConfig, model: nn.Module) -> PrefixConfig:
        return resolve(config, model)

    def sides(self, config: PrefixConfig) -> dict[str, int]:
        if not config.prefix_projection:
            return {"num_virtual_tokens": config.num_virtual_tokens}
        return {
            "num_virtual_tokens": config.num_virtual_tokens,
            "encoder_hidden_size": config.encoder_hidden_size,
        }

    def convert(
        self, config: Any, tensors: dict[str, Tensor], model: nn.Module
    ) -> tuple[PrefixConfig, dict[str, Tensor]]:
        return convert(config, tensors, model)

    def simplify(self, model: nn.Module, name: str) -> None:
        replace_networks(model, name)


METHOD = Prefix()
