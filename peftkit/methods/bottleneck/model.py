"""Bottleneck adapters in a model: which places they get, and how PEFT puts them there."""

from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from peftkit.anatomy import is_convolution, is_convolutional, stream_norms
from peftkit.errors import ConfigError, TargetError
from peftkit.methods.bottleneck import hooks as taps
from peftkit.methods.bottleneck.config import BottleneckConfig
from peftkit.methods.bottleneck.layer import NOT_LINEAR, BottleneckLayer
from peftkit.methods.bottleneck.sites import sites
from peftkit.methods.peft_registry import register
from peftkit.methods.resolution import resolved_copy

_SITES = "_peftkit_sites"


def resolve(config: BottleneckConfig, model: nn.Module) -> BottleneckConfig:
    """Return a copy of `config` with the task type, the trained head and the trained norms that
    suit `model`.

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
                f"modules_to_save trains {name!r} whole, and {inside[0]!r} in it would get an adapter too"
            )
    setattr(
        resolved, _SITES, places
    )  # no field of the config, so not in its file: every model has its own
    if config.train_layer_norms:
        norms = {
            f"{site.block}.{name}"
            for site in places
            for name, part in model.get_submodule(site.block).named_modules()
            if any(
                part is norm for norm in stream_norms(model.get_submodule(site.block), site.width)
            )
        }
        resolved.modules_to_save = [*(resolved.modules_to_save or ()), *sorted(norms)]
    return resolved


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
                f"{current_key!r} is a list of layers and has no output that an adapter could change"
            )
        block = self.model.get_submodule(site.block)
        tap = taps.open_tap(
            block,
            source=self.model.get_submodule(site.source) if site.source else None,
            norms=stream_norms(block, site.width),
            closes_block=site.closes_block,
            reads_residual=peft_config.parallel_input == "residual",
        )
        layer = dict(target.named_children()).get(taps.CHILD)
        if not isinstance(layer, BottleneckLayer):
            layer = BottleneckLayer(
                site.width, channels_first=is_convolution(target) or is_convolutional(self.model)
            )
            layer._active_adapter = self.active_adapter
            taps.open_host(target, layer)
        device = next((parameter.device for parameter in target.parameters()), torch.device("cpu"))
        layer.add(adapter_name, peft_config, tap, device)

    def _unload_and_optionally_merge(
        self, merge: bool = True, *args: Any, **kwargs: Any
    ) -> nn.Module:
        raise ConfigError(
            NOT_LINEAR if merge else "peftkit.detach(model) takes a bottleneck adapter off"
        )


register("BOTTLENECK", BottleneckConfig, BottleneckModel)
