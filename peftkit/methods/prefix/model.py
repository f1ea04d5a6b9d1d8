"""How PEFT injects prefixes, and how their networks are replaced for inference."""

from typing import Any, ClassVar

from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from peftkit.errors import ConfigError
from peftkit.forwards import unwrap_forward, wrap_forward
from peftkit.methods.peft_registry import register
from peftkit.methods.prefix.config import PrefixConfig
from peftkit.methods.prefix.layer import CHILD, PrefixLayer, attend
from peftkit.methods.prefix.sites import sites

_WRAPPER = "prefix"


class PrefixModel(BaseTuner):
    """PEFT's tuner for prefix tuning: puts a `PrefixLayer` into each attention module."""

    prefix = "prefix_"
    tuner_layer_cls = PrefixLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _prepare_adapter_config(
        self, peft_config: PrefixConfig, model_config: dict[str, Any]
    ) -> PrefixConfig:
        self._sites = {site.name: site for site in sites(peft_config, self.model)}
        peft_config.target_modules = set(self._sites)
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config: PrefixConfig, key: str) -> bool:
        # Where there are many, PEFT shortens them to ends that match no other module.
        names = peft_config.target_modules or ()
        return key in names or any(key.endswith(f".{name}") for name in names)

    def _create_and_replace(
        self,
        peft_config: PrefixConfig,
        adapter_name: str,
        target: nn.Module,
        *args: Any,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        layer = getattr(target, CHILD, None)
        if not isinstance(layer, PrefixLayer):
            layer = PrefixLayer(self._sites[current_key])
            wrap_forward(target, attend, _WRAPPER)
            target.add_module(CHILD, layer)
        layer.add(adapter_name, peft_config, next(target.parameters()).device)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        if merge:
            raise ConfigError(
                "a prefix adds keys and values, not weights, and cannot be merged; use unload()"
            )
        for module in self.model.modules():
            if isinstance(getattr(module, CHILD, None), PrefixLayer):
                delattr(module, CHILD)
                unwrap_forward(module, _WRAPPER)
        backbone: nn.Module = self.model
        return backbone


def replace_networks(model: nn.Module, name: str = "default") -> None:
    """Replace an adapter's networks by the keys and values that they compute, for inference."""
    for module in model.modules():
        if isinstance(module, PrefixLayer):
            module.replace_network(name)
    for owner in (model, getattr(model, "base_model", None)):
        config = getattr(owner, "peft_config", {}).get(name)
        if isinstance(config, PrefixConfig):
            config.prefix_projection = False


register("PREFIX", PrefixConfig, PrefixModel)
