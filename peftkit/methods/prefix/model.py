"""Prefix tuning (arXiv:2101.00190): learned keys and values that every query attends to, beside the
real ones, in each layer.

``head_i = softmax(q_i [Pk; K]^T / sqrt(d)) [Pv; V]``, with Pk and Pv trained and all else frozen.
They are joined inside the attention (`peftkit.methods.prefix.attention`): positions and rotary
angles of real tokens stay what they are, the prefix's keys have no position, and no cache holds
them. Unlike LoRA, a new prefix is not the identity.

With rotary positions, how a query sees the prefix depends on the query's position, so that batches
padded on the left need ``position_ids`` that count real tokens (``generate`` passes them), as
models with learned positions do.
"""

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from peftkit.anatomy import Attention, attentions, why_none
from peftkit.config.numbers import is_number, is_whole
from peftkit.errors import ConfigError, TargetError, nearest
from peftkit.forwards import unwrap_forward, wrap_forward
from peftkit.methods.peft_registry import register
from peftkit.methods.prefix.layer import CHILD, PrefixLayer, attend
from peftkit.methods.resolution import numbered_blocks, resolved_copy

_WRAPPER = "prefix"
_FUSED_KERNELS = re.compile(r"flash|flex|paged", re.IGNORECASE)


@dataclass
class PrefixConfig(PeftConfig):
    """Prefix tuning (arXiv:2101.00190) in every attention of a model.

    Args:
        num_virtual_tokens: Length of the prefix; at least 1. Published: 5 to 200.
        prefix_projection: Reparametrise (equation 3): train an embedding [num_virtual_tokens,
            encoder_hidden_size] and a two-layer tanh network that makes the keys and values of it,
            one for each attention. Steadier to train; the same to infer, as `load` folds it into
            plain keys and values.
        encoder_hidden_size: Width of that embedding and of the network's middle layer; at least 1.
        prefix_dropout: Dropout on keys and values of the prefix, at least 0 and less than 1.
        init_std: Standard deviation of the first keys and values without `prefix_projection`; more
            than 0.
        attention: Which attentions get a prefix: "all", or "self" or "cross" alone (of an
            encoder-decoder).
        target_modules: Names (or ends of names) of attention modules, in place of what `attention`
            finds.
        layers_to_transform: Numbers of the layers that get a prefix; None is all.
        modules_to_save: Modules to train whole, beside the prefix; None trains the task's head.

    Raises:
        ConfigError: names every value that is out of bounds.
    """

    num_virtual_tokens: int = 30
    prefix_projection: bool = False
    encoder_hidden_size: int = 512
    prefix_dropout: float = 0.0
    init_std: float = 0.02
    attention: str = "all"
    target_modules: list[str] | set[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        """Check the values, and name the method to PEFT."""
        super().__post_init__()
        self.peft_type = PeftType("PREFIX")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        _check_bounds(self)


def _check_bounds(config: PrefixConfig) -> None:
    problems = []
    for name in ("num_virtual_tokens", "encoder_hidden_size"):
        value = getattr(config, name)
        if not is_whole(value) or value < 1:
            problems.append(f"{name} is {value!r}; it must be a whole number of at least 1")
    if not is_number(config.prefix_dropout) or not 0 <= config.prefix_dropout < 1:
        problems.append(
            f"prefix_dropout is {config.prefix_dropout!r}; it must be at least 0 and less than 1"
        )
    if not is_number(config.init_std) or config.init_std <= 0:
        problems.append(f"init_std is {config.init_std!r}; it must be more than 0")
    if not isinstance(config.prefix_projection, bool):
        problems.append(
            f"prefix_projection is {config.prefix_projection!r}; it must be true or false"
        )
    if config.attention not in ("all", "self", "cross"):
        problems.append(f"attention is {config.attention!r}; it must be 'all', 'self' or 'cross'")
    if problems:
        raise ConfigError("PrefixConfig: " + "; ".join(problems))


def resolve(config: PrefixConfig, model: nn.Module) -> PrefixConfig:
    """Return a copy of `config` with the attentions, the task type and the trained heads that suit
    `model`.

    Raises:
        ConfigError: a value is out of bounds.
        TargetError: the model has no attention of that kind, or a name in ``target_modules`` is not
            one.
    """
    _check_bounds(config)
    resolved = resolved_copy(config, model)
    resolved.target_modules = {site.name for site in sites(resolved, model)}
    return resolved


def sites(config: PrefixConfig, model: nn.Module) -> list[Attention]:
    """Return the attentions of `model` that get a prefix.

    Raises:
        TargetError: there is none, or a name in ``target_modules`` is no attention.
    """
    what = type(model).__name__
    found = attentions(model)
    if not found:
        raise TargetError(
            f"{what} has no attention that a prefix could join: {why_none(model)}; use LoraConfig or BottleneckConfig"
        )
    saved = [re.compile(rf"(^|.*\.){name}($|\..*)") for name in config.modules_to_save or ()]
    found = [site for site in found if not any(pattern.match(site.name) for pattern in saved)]
    if config.target_modules is not None:
        found = _named(config.target_modules, found, model)
    elif config.attention != "all":
        found = [site for site in found if site.kind == config.attention]
    elif _decodes_alone(model):
        found = [site for site in found if site.kind == "self"]
    if config.layers_to_transform is not None:
        chosen = config.layers_to_transform
        blocks = tuple(
            f"{block.name}."
            for block in numbered_blocks([chosen] if isinstance(chosen, int) else chosen, model)
        )
        found = [site for site in found if f"{site.name}.".startswith(blocks)]
    if not found:
        raise TargetError(
            f"{what} has no attention that attention={config.attention!r} and layers_to_transform="
            f"{config.layers_to_transform!r} leave; it has {_summary(attentions(model))}"
        )
    _check_kernels(found, model)
    return found


def _decodes_alone(model: nn.Module) -> bool:
    """Tell whether a model is the decoder of an encoder-decoder by itself, whose cross-attention
    computes nothing.
    """
    config = getattr(model, "config", None)
    takes = inspect.signature(model.forward).parameters.keys() & {
        "encoder_hidden_states",
        "encoder_outputs",
    }
    return bool(takes) and not getattr(config, "is_encoder_decoder", False)


def _named(
    targets: Iterable[str] | str, found: list[Attention], model: nn.Module
) -> list[Attention]:
    if isinstance(targets, str):
        chosen = [site for site in found if re.fullmatch(targets, site.name)]
        if not chosen:
            raise TargetError(
                f"{targets!r} matches no attention of {type(model).__name__}: {_summary(found)}"
            )
        return chosen
    ends = {part for site in found for part in (site.name, site.name.rpartition(".")[2])}
    for target in targets:
        if not any(_ends_with(site.name, target) for site in found):
            raise TargetError(
                f"{target!r} is no attention of {type(model).__name__}{nearest(target, ends)}"
            )
    return [site for site in found if any(_ends_with(site.name, target) for target in targets)]


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _summary(found: list[Attention]) -> str:
    names = sorted({re.sub(r"\.\d+\.", ".*.", site.name) for site in found})
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def _check_kernels(found: list[Attention], model: nn.Module) -> None:
    for site in found:
        kernel = getattr(
            getattr(model.get_submodule(site.name), "config", None), "_attn_implementation", None
        )
        if isinstance(kernel, str) and _FUSED_KERNELS.search(kernel):
            raise TargetError(
                f"{site.name} computes attention with {kernel}, which a prefix cannot join; load the model with "
                "attn_implementation='sdpa', or call model.set_attn_implementation('sdpa')"
            )


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
        names = (
            peft_config.target_modules or ()
        )  # of many, PEFT keeps the ends that tell them from other modules
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


def fold(model: nn.Module, name: str = "default") -> None:
    """Put plain keys and values in the place of an adapter's networks, so that inference does not
    compute them again.
    """
    for module in model.modules():
        if isinstance(module, PrefixLayer):
            module.fold(name)
    for owner in (model, getattr(model, "base_model", None)):
        config = getattr(owner, "peft_config", {}).get(name)
        if isinstance(config, PrefixConfig):
            config.prefix_projection = False


register("PREFIX", PrefixConfig, PrefixModel)
