"""The repeated blocks of a model and, in each, the sublayers: what reads the residual stream and
what writes into it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from peftkit.anatomy.layers import (
    features,
    fused_experts,
    is_convolution,
    is_linear,
    reads_weight_of,
)
from peftkit.anatomy.norms import norm_width

# What moves information between positions, by the last part of its class's name (the model family's
# own name is taken off first, so that a MambaRMSNorm is no mixer). Whatever else holds weights in a
# block works on each position by itself.
_MIXER = re.compile(
    r"attention|attn|mixer|mamba|ssm|deltanet|lstm|rwkv|recurrent|lru|shortconv|convolution|fourier",
    re.IGNORECASE,
)
_CROSS = re.compile(r"cross|enc_?dec|^encoder_att", re.IGNORECASE)
_FEED_FORWARD = re.compile(r"MLP|Mlp|FFN|FeedForward|MoE|Moe|Experts")
_READS = re.compile(
    r"^w?(q|k|v|g|query|key|value|queries|keys|qkv|in_proj|dt)(_|$)|query_key_value|c_attn|^w?qkv|kv_|_[qkv]_proj$",
    re.IGNORECASE,
)
_ODD_MIXERS = {"xLSTMLayer", "LongcatFlashMLA"}
_WRITES = re.compile(
    r"^(o|out|output|dense|proj|projection|c_proj|linear_out|final)(_|$)|(out|o)_proj",
    re.IGNORECASE,
)
# Blocks whose output is not as wide as what their norms see: the layer that gives it.
_OUTPUT = {"MobileBertLayer": "output.bottleneck.dense"}

Kind = Literal["attention", "cross-attention", "mixer", "feed-forward"]


@dataclass(frozen=True)
class Sublayer:
    """A part of a block that reads the residual stream and whose output is added to it."""

    kind: Kind
    source: str
    """Name of the module whose input is the sublayer's input."""
    writer: str
    """Name of the module whose output is what the sublayer adds: u in x + u."""
    width: int
    """Features of that output."""


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
    """The blocks that follow each other: an encoder, a decoder, a vision tower, or a stage of one."""

    name: str
    blocks: tuple[Block, ...]


def stacks(model: nn.Module) -> list[Stack]:
    """Return the stacks of a model in its own order, each with its blocks and their sublayers."""
    groups = _blocks(model, _Reader(model, layers_in_block=2)) or _blocks(
        model, _Reader(model, layers_in_block=1)
    )
    return [Stack(name, tuple(blocks)) for name, blocks in groups.items()]


def is_convolutional(model: nn.Module) -> bool:
    """Tell whether a model is made of convolutions: nothing else in it moves information between
    positions.
    """
    convolves = any(is_convolution(module) for module in model.modules())
    return convolves and not _Reader(model, layers_in_block=1).has_mixers


def _blocks(model: nn.Module, reader: "_Reader") -> dict[str, list[Block]]:
    groups: dict[str, list[Block]] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if id(module) not in seen and reader.is_stack(module):
            seen.update(id(part) for part in module.modules())
            for block_name, block in reader.innermost(name, module):
                groups.setdefault(block_name.rpartition(".")[0], []).append(
                    reader.block(block_name, block)
                )
    return groups


class _Reader:
    """Reads blocks, knowing which modules mix positions. In a model without any, layers of
    convolutions take their place.
    """

    def __init__(self, model: nn.Module, *, layers_in_block: int) -> None:
        family = _family(model)
        self._model = model
        self._layers_in_block = layers_in_block
        self._mixers = {
            id(part) for part in model.modules() if _MIXER.search(_own_name(part, family))
        }

    @property
    def has_mixers(self) -> bool:
        return bool(self._mixers)

    def mixes(self, module: nn.Module) -> bool:
        if self._mixers:
            return any(id(part) in self._mixers for part in module.modules())
        return (
            not type(module).__module__.startswith("torch.nn")
            and len(_layers("", module)) >= self._layers_in_block
        )

    def is_stack(self, module: nn.Module) -> bool:
        """Tell whether a module is a list of blocks or stages."""
        return isinstance(module, nn.ModuleList | nn.Sequential) and any(
            self.mixes(child) for child in module
        )

    def innermost(self, name: str, stack: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Yield the blocks of a stack, going through stages (lists of lists) down to what is one
        block.
        """
        for child_name, child in stack.named_children():
            stage = self._stage(f"{name}.{child_name}", child)
            if stage:
                yield from self.innermost(*stage)
            elif _has_weights(child):
                yield f"{name}.{child_name}", child

    def _stage(self, name: str, module: nn.Module) -> tuple[str, nn.Module] | None:
        """Return the list inside a module of which every entry is a block of its own, if there is
        one.
        """
        beside = [
            part
            for child in module.children()
            for part in (child if isinstance(child, nn.ModuleList) else [child])
        ]
        if not isinstance(module, nn.ModuleList | nn.Sequential) and any(
            map(_is_feed_forward, beside)
        ):
            return None
        for inner_name, inner in module.named_modules(prefix=name):
            if self.is_stack(inner) and all(
                self.mixes(child) or not _has_weights(child) for child in inner
            ):
                return inner_name, inner
        return None

    def block(self, name: str, block: nn.Module) -> Block:
        width = _stream_width(block)
        parts = list(self._parts(name, block))
        if id(block) in self._mixers and not any(self.mixes(part) for _, part in parts):
            parts = [(name, block), *self._beside(name)]
            name = parts[-1][0]
        sublayers = tuple(self._sublayers(parts, width)) if self._mixers else ()
        last = _OUTPUT.get(type(block).__name__)
        if last:
            width = features(block.get_submodule(last))[1]
        elif sublayers:
            width = (
                width
                if any(sublayer.width == width for sublayer in sublayers)
                else sublayers[-1].width
            )
        else:
            width = features(_layers(name, block)[-1][1])[1] if _layers(name, block) else width
        return Block(name, width, sublayers)

    def _beside(self, name: str) -> Iterator[tuple[str, nn.Module]]:
        """Yield what follows an attention that stands in a list by itself: the same entries of the
        lists beside it.
        """
        stack, _, index = name.rpartition(".")
        owner, _, own = stack.rpartition(".")
        for sibling_name, sibling in self._model.get_submodule(owner).named_children():
            length = len(list(self._model.get_submodule(stack).children()))
            same_length = isinstance(sibling, nn.ModuleList) and len(sibling) == length
            if same_length and sibling_name != own and not self.is_stack(sibling):
                yield f"{owner}.{sibling_name}.{index}", sibling.get_submodule(index)

    def _parts(self, name: str, block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Yield the parts of a block, going into lists and into what is a whole block inside it."""
        for child_name, child in block.named_children():
            parts = list(child.children())
            whole = any(map(self.mixes, parts)) and any(map(_is_feed_forward, parts))
            if isinstance(child, nn.ModuleList | nn.Sequential) or (self._mixers and whole):
                yield from self._parts(f"{name}.{child_name}", child)
            else:
                yield f"{name}.{child_name}", child

    def _sublayers(self, parts: list[tuple[str, nn.Module]], width: int) -> Iterator[Sublayer]:
        mixing = {name for name, part in parts if self.mixes(part)}
        named = {name for name, part in parts if name not in mixing and _is_feed_forward(part)}
        unfinished: tuple[Kind, str] | None = (
            None  # a mixer whose output projection is a part beside it
        )
        links: list[_Link] = []  # of the feed-forward layer that is being put together
        for name, part in parts:
            if name in mixing:
                kind = _kind(name, part)
                writer = _writer(name, part, width, kind)
                unfinished, links = None if writer else (kind, name), []
                if writer:
                    yield Sublayer(kind, name, *writer)
            elif name in named or not named:
                for link in _links(name, part, width):
                    if unfinished and link.enters == link.leaves == width and link.layers == 1:
                        yield Sublayer(*unfinished, link.name, width)
                    else:
                        links.append(link)
                    unfinished = None
                    if (
                        links
                        and link.leaves == links[0].enters
                        and sum(one.layers for one in links) > 1
                    ):
                        yield Sublayer("feed-forward", links[0].name, link.name, link.leaves)
                        links = []


@dataclass(frozen=True)
class _Link:
    """A part of a feed-forward layer: the features that enter, those that leave, and how many
    layers lie between.
    """

    name: str
    enters: int
    leaves: int
    layers: int


def _links(name: str, part: nn.Module, width: int) -> Iterator[_Link]:
    """Yield a part that works on single positions, or what is inside it where it also adds the
    residual and its norm.
    """
    layers = _layers(name, part)
    if isinstance(part, nn.ModuleDict):  # one of many, by a name that the inputs give
        return
    if fused_experts(part):
        yield _Link(name, width, width, 2)
    elif len(layers) == 1:
        yield _Link(layers[0][0], *features(layers[0][1]), 1)
    elif layers and any(norm_width(inner) == width for inner in part.modules()):
        for child_name, child in part.named_children():
            yield from _links(f"{name}.{child_name}", child, width)
    elif layers:
        enters = features(layers[0][1])[0]
        returns = any(features(layer)[1] == enters for _, layer in layers[1:])
        yield _Link(name, enters, enters if returns else features(layers[-1][1])[1], len(layers))


def _kind(name: str, mixer: nn.Module) -> Kind:
    if not any("attention" in type(part).__name__.lower() for part in mixer.modules()):
        return "mixer"
    return "cross-attention" if any(map(_CROSS.search, _inner_names(name, mixer))) else "attention"


def _inner_names(name: str, mixer: nn.Module) -> list[str]:
    return [
        name.rpartition(".")[2],
        type(mixer).__name__,
        *(child for child, _ in mixer.named_children()),
    ]


def _writer(name: str, mixer: nn.Module, width: int, kind: Kind) -> tuple[str, int] | None:
    """Return what gives a mixer's contribution to the stream, and its width.

    It is the last layer that gives `width` features and is no query, key or value; in a block that
    changes the width, the last such layer of any; and where there is none, the mixer itself, unless
    it is an attention that holds the stream's norm too.
    """
    layers = [(n, layer) for n, layer in _layers(name, mixer) if not _reads(n, name)]
    layers = [(n, layer) for n, layer in layers if is_linear(layer)] or layers
    fitting = [n for n, layer in layers if features(layer)[1] == width]
    if fitting:
        return fitting[-1], width
    wider = [
        (n, features(layer)[1])
        for n, layer in layers
        if any(map(_WRITES.search, n.split(".")[-2:]))
    ]
    if wider:
        return wider[-1]
    closed = kind == "mixer" or not any(norm_width(part) == width for part in mixer.modules())
    inner = [
        n
        for n, layer in mixer.named_modules(prefix=name)
        if is_linear(layer) or is_convolution(layer)
    ]
    computes = fused_experts(mixer) or any(not _reads(n, name) for n in inner)
    return (name, width) if closed and computes else None


def _reads(layer: str, mixer: str) -> bool:
    """Tell whether a layer of a mixer gives its queries, keys or values, by the names on the way to
    it.
    """
    return any(map(_READS.search, layer.removeprefix(mixer).strip(".").split(".")))


def _layers(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the linear layers and convolutions of a module that it calls."""
    return [
        (inner_name, inner)
        for inner_name, inner in module.named_modules(prefix=name)
        if (is_linear(inner) or is_convolution(inner))
        and not _only_read(inner_name.removeprefix(name).lstrip("."), module)
    ]


def _only_read(inner_name: str, module: nn.Module) -> bool:
    owner, _, own = inner_name.rpartition(".")
    return bool(own) and reads_weight_of(module.get_submodule(owner), own)


def _stream_width(block: nn.Module) -> int:
    """Return the width of the residual stream: that of the block's outermost norm, or else what its
    first layer reads.
    """
    norms = [
        (name.count("."), norm_width(module))
        for name, module in block.named_modules()
        if norm_width(module)
    ]
    if norms:
        return min(norms, key=lambda norm: norm[0])[1]
    layers = _layers("", block)
    return features(layers[0][1])[0] if layers else 0


def _is_feed_forward(module: nn.Module) -> bool:
    return _FEED_FORWARD.search(type(module).__name__) is not None


def _has_weights(module: nn.Module) -> bool:
    """Tell whether a module has weights that are more than a norm's."""
    return any(parameter.dim() > 1 for parameter in module.parameters())


def _family(model: nn.Module) -> str:
    """Return the name that the classes of a model share: "Bert" for BertForSequenceClassification."""
    for ancestor in type(model).__mro__:
        if ancestor.__name__.endswith("PreTrainedModel"):
            return ancestor.__name__.removesuffix("PreTrainedModel")
    return ""


def _own_name(module: nn.Module, family: str) -> str:
    name = type(module).__name__
    return "mixer" if name in _ODD_MIXERS else name.removeprefix(family) or name
