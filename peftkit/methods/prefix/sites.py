"""Which attentions of a model get a prefix."""

import inspect
import re
from collections.abc import Iterable

from torch import nn

from peftkit.anatomy import Attention, attentions, why_none
from peftkit.errors import TargetError, nearest
from peftkit.methods.prefix.config import PrefixConfig, check_bounds
from peftkit.methods.resolution import numbered_blocks, resolved_copy

_FUSED_KERNELS = re.compile(r"flash|flex|paged", re.IGNORECASE)


def resolve(config: PrefixConfig, model: nn.Module) -> PrefixConfig:
    """Return a copy of `config` with the attentions, the task type and the trained heads that suit
    `model`.

    Raises:
        ConfigError: a value is out of bounds.
        TargetError: the model has no attention of that kind, or a name in ``target_modules`` is not
            one.
    """
    check_bounds(config)
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
