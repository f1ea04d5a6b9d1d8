"""The places of a bottleneck adapter in a model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from peftkit.anatomy import Block, is_reversible
from peftkit.errors import TargetError
from peftkit.methods.resolution import matching, numbered_blocks

if TYPE_CHECKING:
    from peftkit.methods.bottleneck.config import BottleneckConfig


@dataclass(frozen=True)
class Site:
    """One place for an adapter: it changes the output of the module `host`."""

    host: str
    width: int
    block: str
    source: str | None = None
    """The module whose input a parallel adapter reads."""
    closes_block: bool = False
    """The host is the block itself: where its output is that of a norm, the norm is applied again.
    """


def sites(config: "BottleneckConfig", model: nn.Module) -> list[Site]:
    """Return the places of a config's adapters in a model, in the model's order.

    Raises:
        TargetError: the model has no such place, or a name or layer index of the config matches
            nothing.
    """
    name = type(model).__name__
    blocks = numbered_blocks(config.layers_to_transform, model)
    places = {site.host: site for block in blocks for site in _in_block(config, block)}
    if config.target_modules is not None:
        return _named(config, model, places, blocks)
    if not blocks:
        raise TargetError(f"{name} has no repeated blocks that a bottleneck adapter could go into")
    if config.placement == "pfeiffer" and is_reversible(model):
        raise TargetError(
            f"placement='pfeiffer' adapts the output of a block, and the reversible blocks of {name} have two that are "
            "computed from each other; use placement='houlsby'"
        )
    if not places:
        needed = (
            "an attention or feed-forward layer"
            if config.placement == "houlsby"
            else "a feed-forward layer"
        )
        raise TargetError(
            f"placement={config.placement!r} needs blocks with {needed}, and those of {name} have none that was found; "
            "placement='pfeiffer' works on every block"
        )
    return list(places.values())


def _in_block(config: "BottleneckConfig", block: Block) -> list[Site]:
    if config.placement == "pfeiffer":
        return [Site(block.name, block.width, block.name, closes_block=True)]
    if config.placement == "houlsby":
        return [Site(part.writer, part.width, block.name) for part in block.sublayers]
    beside = block.of_kind("feed-forward") or block.of_kind("mixer")
    return [Site(part.writer, part.width, block.name, source=part.source) for part in beside]


def _named(
    config: "BottleneckConfig", model: nn.Module, places: dict[str, Site], blocks: list[Block]
) -> list[Site]:
    """Return the places that the config names itself: those that the placement knows, or the
    outputs of other layers.
    """
    names = (
        [config.target_modules]
        if isinstance(config.target_modules, str)
        else sorted(config.target_modules or ())
    )
    chosen: dict[str, Site] = {}
    modules = dict(model.named_modules())
    for name in names:
        for module in matching(name, model):
            inside = next(
                (block.name for block in blocks if f"{module}.".startswith(f"{block.name}.")),
                module,
            )
            width = getattr(modules[module], "out_features", None) or getattr(
                modules[module], "nf", None
            )
            if module in places:
                chosen[module] = places[module]
            elif width and config.placement in ("houlsby", "pfeiffer"):
                chosen[module] = Site(module, width, inside)
            else:
                raise TargetError(
                    f"{module!r} is no place for placement={config.placement!r} in {type(model).__name__}; "
                    f"the places are such as {', '.join(list(places)[:3])}"
                )
    return list(chosen.values())
