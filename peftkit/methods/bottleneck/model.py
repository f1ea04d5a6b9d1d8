"""How a bottleneck config is resolved for a model, and how PEFT injects the adapters."""

from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from peftkit.anatomy import is_convolution, is_convolutional, stream_norms
from peftkit.errors import ConfigError, TargetError
from peftkit.methods.bottleneck.config import BottleneckConfig
from peftkit.methods.bottleneck.hooks import CHILD, add_to_host, prepare_input
from peftkit.methods.bottleneck.layer import NOT_LINEAR, BottleneckLayer
from peftkit.methods.bottleneck.sites import Site, sites
from peftkit.methods.peft_registry import register
from peftkit.methods.resolution import resolved_copy

_SITES = "_peftkit_sites"


def resolve(config: BottleneckConfig, model: nn.Module) -> BottleneckConfig:
    """Return a copy of `config` with the task type, trained head and trained norms of `model`.

    Raises:
        TargetError: the model has no place for the adapters, or a name of the config matches
            nothing.
    """
    resolved = resolved_copy(config, model)
    places = sites(resolved, model)
    for name in resolved.modules_to_save or ():
        inside = [site.host for site in places if f".{site.host}.".find(f".{name}.") >= 0]
        if inside:
            raise TargetError(
                f"modules_to_save trains {name!r} whole, and {inside[0]!r} in it would get an "
                "adapter too"
            )
    # Not a field of the config, so not in its file: every model has other sites.
    setattr(resolved, _SITES, places)
    if config.train_layer_norms:
        norms = _norms_of_blocks(places, model)
        resolved.modules_to_save = [*(resolved.modules_to_save or ()), *norms]
    return resolved


def _norms_of_blocks(places: list[Site], model: nn.Module) -> list[str]:
    """Return the sorted names of the norms on the residual stream in the blocks with adapters."""
    found: set[str] = set()
    for site in places:
        block = model.get_submodule(site.block)
        norms = {id(norm) for norm in stream_norms(block, site.width)}
        for name, part in block.named_modules():
            if id(part) in norms:
                found.add(f"{site.block}.{name}")
    return sorted(found)


class BottleneckModel(BaseTuner):
    """PEFT's tuner for `BottleneckConfig`."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _prepare_adapter_config(
        self, peft_config: BottleneckConfig, model_config: dict[str, Any]
    ) -> BottleneckConfig:
        found = getattr(peft_config, _SITES, None) or sites(peft_config, self.model)
        self._sites = {site.host: site for site in found}
        peft_config.target_modules = list(self._sites)
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config: BottleneckConfig, key: str) -> bool:
        names = peft_config.target_modules or ()
        return key in names or any(key.endswith(f".{name}") for name in names)

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        site = self._sites[current_key]
        if isinstance(target, nn.Sequential | nn.ModuleList):
            raise TargetError(
                f"{current_key!r} is a list of layers and has no output for an adapter to change"
            )
        block = self.model.get_submodule(site.block)
        reads = prepare_input(
            block,
            source=self.model.get_submodule(site.source) if site.source else None,
            norms=stream_norms(block, site.width),
            closes_block=site.closes_block,
            reads_residual=peft_config.parallel_input == "residual",
        )
        layer = dict(target.named_children()).get(CHILD)
        if not isinstance(layer, BottleneckLayer):
            channels_first = is_convolution(target) or is_convolutional(self.model)
            layer = BottleneckLayer(site.width, channels_first=channels_first)
            layer._active_adapter = self.active_adapter
            add_to_host(target, layer)
        first = next(target.parameters(), None)
        device = torch.device("cpu") if first is None else first.device
        layer.add(adapter_name, peft_config, reads, device)

    def _unload_and_optionally_merge(
        self, merge: bool = True, *args: Any, **kwargs: Any
    ) -> nn.Module:
        if merge:
            raise ConfigError(NOT_LINEAR)
        raise ConfigError("take a bottleneck adapter off with peftkit.detach(model)")


register("BOTTLENECK", BottleneckConfig, BottleneckModel)
