"""Where bottleneck adapters go in a model."""

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
    """Whether the host is the block itself; where a norm ends the block, it is applied again."""


def sites(config: "BottleneckConfig", model: nn.Module) -> list[Site]:
    """Return the places of a config's adapters in a model, in the model's order.

    Raises:
        TargetError: the model has no such place, or a name or layer index in the config matches
            nothing.
    """
    name = type(model).__name__
    blocks = numbered_blocks(config.layers_to_transform, model)
    places: dict[str, Site] = {}
    for block in blocks:
        for site in _in_block(config, block):
            places[site.host] = site
    if config.target_modules is not None:
        return _named(config, model, places, blocks)
    if not blocks:
        raise TargetError(f"{name} has no repeated blocks that a bottleneck adapter could go into")
    if config.placement == "pfeiffer" and is_reversible(model):
        raise TargetError(
            "placement='pfeiffer' adapts the output of a block, and the reversible blocks of "
            f"{name} have two that are computed from each other; use placement='houlsby'"
        )
    if not places:
        needed = "a feed-forward layer"
        if config.placement == "houlsby":
            needed = "an attention or feed-forward layer"
        raise TargetError(
            f"placement={config.placement!r} needs blocks with {needed}, and none was found in "
            f"those of {name}; placement='pfeiffer' works on every block"
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
    """Return the places that the config names in ``target_modules``.

    These are places of the placement, or, for houlsby and pfeiffer, the outputs of other layers.
    """
    targets = config.target_modules or ()
    names = [targets] if isinstance(targets, str) else sorted(targets)
    takes_any_output = config.placement in ("houlsby", "pfeiffer")
    chosen: dict[str, Site] = {}
    for name in names:
        for module in matching(name, model):
            width = _output_width(model.get_submodule(module))
            if module in places:
                chosen[module] = places[module]
            elif width and takes_any_output:
                chosen[module] = Site(module, width, _block_of(module, blocks))
            else:
                raise TargetError(
                    f"{module!r} is no place for placement={config.placement!r} in "
                    f"{type(model).__name__}; places are, for example, "
                    f"{', '.join(list(places)[:3])}"
                )
    return list(chosen.values())


def _output_width(module: nn.Module) -> int | None:
    """Return the output features of a linear layer or a ``Conv1D``, else None."""
    width: int | None = getattr(module, "out_features", None) or getattr(module, "nf", None)
    return width


def _block_of(module: str, blocks: list[Block]) -> str:
    """Return the name of the first block that contains a module, or the module's own."""
    for block in blocks:
        if f"{module}.".startswith(f"{block.name}."):
            return block.name
    return module
