"""The repeated blocks of a model, in their stacks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from peftkit.anatomy.layers import features, is_convolution, is_linear
from peftkit.anatomy.norms import norm_width
from peftkit.anatomy.sublayers import (
    Kind,
    Named,
    Sublayer,
    called_layers,
    find_sublayers,
    is_feed_forward,
)

# What moves information between positions, by the name of its class. The model family's own name is
# taken off first, so that a MambaRMSNorm is no mixer. Whatever else has weights in a block works on
# each position by itself.
_MIXER = re.compile(
    r"attention|attn|mixer|mamba|ssm|deltanet|lstm|rwkv|recurrent|lru"
    r"|shortconv|convolution|fourier",
    re.IGNORECASE,
)
_ODD_MIXERS = {"xLSTMLayer", "LongcatFlashMLA"}
# The layer that gives a block's output, where that is not as wide as what the block's norms see.
_OUTPUT = {"MobileBertLayer": "output.bottleneck.dense"}


@dataclass(frozen=True)
class Block:
    """One of the repeated layers of a stack."""

    name: str
    width: int
    """Features of its output."""
    sublayers: tuple[Sublayer, ...]

    def of_kind(self, *kinds: Kind) -> tuple[Sublayer, ...]:
        """Return its sublayers of these kinds, in order."""
        return tuple(sublayer for sublayer in self.sublayers if sublayer.kind in kinds)


@dataclass(frozen=True)
class Stack:
    """Blocks that follow each other: an encoder, a decoder, a vision tower, or a stage of one."""

    name: str
    blocks: tuple[Block, ...]


def stacks(model: nn.Module) -> list[Stack]:
    """Return the stacks of a model in its own order, each with its blocks and their sublayers."""
    mixers = _find_mixers(model)
    for layers_in_block in (2, 1):
        found = _Reader(model, mixers, layers_in_block).read_stacks()
        if found:
            return found
    return []


def feed_forward_outputs(model: nn.Module) -> list[str]:
    """Return the linear layers with which feed-forward sublayers end, one for each expert.

    Experts that are fused into one parameter have none.
    """
    found: dict[str, None] = {}
    for stack in stacks(model):
        for block in stack.blocks:
            for part in block.of_kind("feed-forward"):
                found |= dict.fromkeys(_last_layers(model, part))
    return list(found)


def _last_layers(model: nn.Module, part: Sublayer) -> list[str]:
    """Return, of each module in a sublayer, the last linear layer that is as wide as the stream."""
    writer = model.get_submodule(part.writer)
    if is_linear(writer):
        return [part.writer]
    last_of: dict[str, str] = {}
    for name, layer in writer.named_modules():
        if is_linear(layer) and features(layer)[1] == part.width:
            last_of[name.rpartition(".")[0]] = f"{part.writer}.{name}"
    return list(last_of.values())


def is_convolutional(model: nn.Module) -> bool:
    """Return whether only convolutions move information between positions in a model."""
    convolves = any(is_convolution(module) for module in model.modules())
    return convolves and not _find_mixers(model)


def _find_mixers(model: nn.Module) -> set[int]:
    """Return the ids of the modules that move information between positions."""
    family = _family_name(model)
    found = set()
    for module in model.modules():
        name = type(module).__name__
        own_name = name.removeprefix(family) or name
        if name in _ODD_MIXERS or _MIXER.search(own_name):
            found.add(id(module))
    return found


def _family_name(model: nn.Module) -> str:
    """Return what the names of a model's classes begin with: "Bert" in BertForMaskedLM."""
    for ancestor in type(model).__mro__:
        if ancestor.__name__.endswith("PreTrainedModel"):
            return ancestor.__name__.removesuffix("PreTrainedModel")
    return ""


class _Reader:
    """Reads the blocks of a model.

    In a model without mixers, modules with at least `layers_in_block` layers take their place.
    """

    def __init__(self, model: nn.Module, mixers: set[int], layers_in_block: int) -> None:
        self._model = model
        self._mixers = mixers
        self._layers_in_block = layers_in_block

    def read_stacks(self) -> list[Stack]:
        """Return the stacks of the model, in its order."""
        blocks: dict[str, list[Block]] = {}
        seen: set[int] = set()
        for name, module in self._model.named_modules():
            if id(module) in seen or not self._is_stack(module):
                continue
            seen.update(id(part) for part in module.modules())
            for block_name, block in self._innermost_blocks(name, module):
                stack = block_name.rpartition(".")[0]
                blocks.setdefault(stack, []).append(self._read_block(block_name, block))
        return [Stack(name, tuple(members)) for name, members in blocks.items()]

    def _mixes(self, module: nn.Module) -> bool:
        """Return whether a module, or one inside it, moves information between positions."""
        if self._mixers:
            return any(id(part) in self._mixers for part in module.modules())
        if type(module).__module__.startswith("torch.nn"):
            return False
        return len(called_layers("", module)) >= self._layers_in_block

    def _is_stack(self, module: nn.Module) -> bool:
        """Return whether a module is a list of blocks or stages."""
        return _is_list(module) and any(self._mixes(child) for child in module.children())

    def _innermost_blocks(self, name: str, stack: nn.Module) -> Iterator[Named]:
        """Yield the blocks of a stack, going through stages, which are lists of blocks."""
        for child_name, child in stack.named_children():
            stage = self._find_stage(f"{name}.{child_name}", child)
            if stage is not None:
                yield from self._innermost_blocks(*stage)
            elif _has_matrices(child):
                yield f"{name}.{child_name}", child

    def _find_stage(self, name: str, module: nn.Module) -> Named | None:
        """Return the list inside a module of which every entry is a block of its own, if any."""
        if not _is_list(module) and _has_feed_forward_child(module):
            return None
        for inner_name, inner in module.named_modules(prefix=name):
            if self._is_stack(inner) and all(
                self._mixes(child) or not _has_matrices(child) for child in inner.children()
            ):
                return inner_name, inner
        return None

    def _read_block(self, name: str, block: nn.Module) -> Block:
        width = _stream_width(block)
        parts = list(self._parts(name, block))
        if id(block) in self._mixers and not any(self._mixes(part) for _, part in parts):
            # The block is an attention alone; what follows it stands in another list.
            parts = [(name, block), *self._parts_beside(name)]
            name = parts[-1][0]
        sublayers: list[Sublayer] = []
        if self._mixers:
            mixing = {part_name for part_name, part in parts if self._mixes(part)}
            sublayers = find_sublayers(parts, width, mixing)
        return Block(name, _output_width(name, block, sublayers, width), tuple(sublayers))

    def _parts_beside(self, name: str) -> Iterator[Named]:
        """Yield what follows an attention that stands in a list by itself.

        That is the same entry of the lists of the same length beside it.
        """
        stack, _, index = name.rpartition(".")
        owner, _, own = stack.rpartition(".")
        length = len(list(self._model.get_submodule(stack).children()))
        for sibling_name, sibling in self._model.get_submodule(owner).named_children():
            same_length = isinstance(sibling, nn.ModuleList) and len(sibling) == length
            if same_length and sibling_name != own and not self._is_stack(sibling):
                yield f"{owner}.{sibling_name}.{index}", sibling.get_submodule(index)

    def _parts(self, name: str, block: nn.Module) -> Iterator[Named]:
        """Yield the parts of a block, going into lists and into whole blocks inside it."""
        for child_name, child in block.named_children():
            if _is_list(child) or (self._mixers and self._is_whole_block(child)):
                yield from self._parts(f"{name}.{child_name}", child)
            else:
                yield f"{name}.{child_name}", child

    def _is_whole_block(self, module: nn.Module) -> bool:
        parts = list(module.children())
        has_mixer = any(self._mixes(part) for part in parts)
        return has_mixer and any(is_feed_forward(part) for part in parts)


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.Sequential)


def _has_feed_forward_child(module: nn.Module) -> bool:
    """Return whether a child of a module, or an entry of a list that is one, is a feed-forward."""
    for child in module.children():
        parts = list(child) if isinstance(child, nn.ModuleList) else [child]
        if any(is_feed_forward(part) for part in parts):
            return True
    return False


def _has_matrices(module: nn.Module) -> bool:
    """Return whether a module has more weights than those of norms."""
    return any(parameter.dim() > 1 for parameter in module.parameters())


def _stream_width(block: nn.Module) -> int:
    """Return the features of the residual stream in a block.

    It is the width of the block's outermost norm, or else what its first layer reads.
    """
    found: tuple[int, int] | None = None  # how deep in the block the norm is, and its width
    for name, module in block.named_modules():
        width = norm_width(module)
        depth = name.count(".")
        if width and (found is None or depth < found[0]):
            found = depth, width
    if found is not None:
        return found[1]
    layers = called_layers("", block)
    return features(layers[0][1])[0] if layers else 0


def _output_width(name: str, block: nn.Module, sublayers: list[Sublayer], width: int) -> int:
    """Return the features of a block's output, given the width of its residual stream."""
    output = _OUTPUT.get(type(block).__name__)
    if output is not None:
        return features(block.get_submodule(output))[1]
    if sublayers:
        writes_stream = any(sublayer.width == width for sublayer in sublayers)
        return width if writes_stream else sublayers[-1].width
    layers = called_layers(name, block)
    return features(layers[-1][1])[1] if layers else width
