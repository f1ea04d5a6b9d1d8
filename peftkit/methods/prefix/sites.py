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
    """Return a copy of `config` with the attentions, task type and trained heads of `model`.

    Raises:
        ConfigError: a value is out of bounds.
        TargetError: the model has no attention of that kind, or ``target_modules`` names another
            module.
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
            f"{what} has no attention that a prefix could join: {why_none(model)}; use LoraConfig "
            "or BottleneckConfig"
        )
    for name in config.modules_to_save or ():
        saved_whole = re.compile(rf"(^|.*\.){name}($|\..*)")
        found = [site for site in found if not saved_whole.match(site.name)]
    if config.target_modules is not None:
        found = _named(config.target_modules, found, model)
    elif config.attention != "all":
        found = [site for site in found if site.kind == config.attention]
    elif _decodes_alone(model):
        found = [site for site in found if site.kind == "self"]
    if config.layers_to_transform is not None:
        numbers = config.layers_to_transform
        blocks = numbered_blocks([numbers] if isinstance(numbers, int) else numbers, model)
        starts = tuple(f"{block.name}." for block in blocks)
        found = [site for site in found if f"{site.name}.".startswith(starts)]
    if not found:
        raise TargetError(
            f"{what} has no attention that attention={config.attention!r} and layers_to_transform="
            f"{config.layers_to_transform!r} leave; it has {_summarize(attentions(model))}"
        )
    _check_kernels(found, model)
    return found


def _decodes_alone(model: nn.Module) -> bool:
    """Whether a model is the decoder of an encoder-decoder alone: no cross-attention runs."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    parameters = inspect.signature(model.forward).parameters
    return "encoder_hidden_states" in parameters or "encoder_outputs" in parameters


def _named(
    targets: Iterable[str] | str, found: list[Attention], model: nn.Module
) -> list[Attention]:
    if isinstance(targets, str):
        chosen = [site for site in found if re.fullmatch(targets, site.name)]
        if not chosen:
            raise TargetError(
                f"{targets!r} matches no attention of {type(model).__name__}: {_summarize(found)}"
            )
        return chosen
    names: set[str] = set()
    for target in targets:
        matched = {site.name for site in found if f".{site.name}".endswith(f".{target}")}
        if not matched:
            known = {site.name for site in found}
            known |= {name.rpartition(".")[2] for name in known}
            raise TargetError(
                f"{target!r} is no attention of {type(model).__name__}{nearest(target, known)}"
            )
        names |= matched
    return [site for site in found if site.name in names]


def _summarize(found: list[Attention]) -> str:
    names = sorted({re.sub(r"\.\d+\.", ".*.", site.name) for site in found})
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def _check_kernels(found: list[Attention], model: nn.Module) -> None:
    """Refuse fused kernels, which compute attention in one operation that has no prefix."""
    for site in found:
        config = getattr(model.get_submodule(site.name), "config", None)
        kernel = getattr(config, "_attn_implementation", None)
        if isinstance(kernel, str) and _FUSED_KERNELS.search(kernel):
            raise TargetError(
                f"{site.name} computes attention with {kernel}, which a prefix cannot join; load "
                "the model with attn_implementation='sdpa', or call "
                "model.set_attn_implementation('sdpa')"
            )
