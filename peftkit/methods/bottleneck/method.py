"""Bottleneck adapters as the rest of the library sees them."""

from collections.abc import Mapping
from typing import ClassVar

from peft import PeftModel
from torch import nn

from peftkit.methods.bottleneck.config import BottleneckConfig
from peftkit.methods.bottleneck.hooks import follow_wrappers
from peftkit.methods.bottleneck.model import BottleneckModel, resolve
from peftkit.methods.bottleneck.settings import Settings
from peftkit.methods.method import Method, Variant


def _variant(placement: str, label: str, needs: str | None) -> Variant:
    return Variant(
        f"bottleneck, {label}, d / 16",
        shown=lambda: BottleneckConfig(placement=placement),
        small=lambda: BottleneckConfig(placement=placement, reduction_factor=4),
        needs=needs,
    )


class Bottleneck(Method):
    """x + s W_up sigma(W_down x), at one of four places in each block."""

    name = "bottleneck"
    title = "a bottleneck adapter"
    peft_type = "BOTTLENECK"
    config_class = BottleneckConfig
    tuner_class = BottleneckModel
    settings = Settings
    variants: ClassVar[Mapping[str, Variant]] = {
        "houlsby": _variant("houlsby", "houlsby", needs="feed-forward layer"),
        "pfeiffer": _variant("pfeiffer", "pfeiffer", needs=None),
        "scaled_parallel": _variant(
            "scaled_parallel", "scaled parallel", needs="feed-forward layer"
        ),
    }

    def resolve(self, config: BottleneckConfig, model: nn.Module) -> BottleneckConfig:
        return resolve(config, model)

    def settle(self, model: PeftModel) -> None:
        follow_wrappers(model)

    def sides(self, config: BottleneckConfig) -> dict[str, int]:
        if config.bottleneck_dim is None:
            return {}
        return {"bottleneck_dim": config.bottleneck_dim}


METHOD = Bottleneck()
