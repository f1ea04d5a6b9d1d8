"""The sublayers of a block: what reads the residual stream, and what writes into it.

A sublayer computes u from the stream x, and the block goes on with x + u. The parts of a block are
told apart by whether they move information between positions: those that do are mixers, and the
linear layers of the others are put together to feed-forward layers.
"""

import re
from collections.abc import Iterator, Set
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

_CROSS = re.compile(r"cross|enc_?dec|^encoder_att", re.IGNORECASE)
_FEED_FORWARD = re.compile(r"MLP|Mlp|FFN|FeedForward|MoE|Moe|Experts")
# Layers that compute a mixer's queries, keys, values or gates.
_READS = re.compile(
    r"^w?(q|k|v|g|query|key|value|queries|keys|qkv|in_proj|dt)(_|$)"
    r"|query_key_value|c_attn|^w?qkv|kv_|_[qkv]_proj$",
    re.IGNORECASE,
)
# Layers that compute its output.
_WRITES = re.compile(
    r"^(o|out|output|dense|proj|projection|c_proj|linear_out|final)(_|$)|(out|o)_proj",
    re.IGNORECASE,
)

Kind = Literal["attention", "cross-attention", "mixer", "feed-forward"]
Named = tuple[str, nn.Module]
"""A module with its name in the model."""


@dataclass(frozen=True)
class Sublayer:
    """A part of a block that reads the residual stream, and whose output is added to it."""

    kind: Kind
    source: str
    """Name of the module whose input is the sublayer's input."""
    writer: str
    """Name of the module whose output is what the sublayer adds: u in x + u."""
    width: int
    """Features of that output."""


def find_sublayers(parts: list[Named], width: int, mixing: Set[str]) -> list[Sublayer]:
    """Return the sublayers that the parts of a block make up, in their order.

    Args:
        parts: The block's parts.
        width: Features of the residual stream.
        mixing: Names of the parts that move information between positions.
    """
    feed_forwards = set()
    for name, part in parts:
        if name not in mixing and is_feed_forward(part):
            feed_forwards.add(name)
    found: list[Sublayer] = []
    unfinished: tuple[Kind, str] | None = None  # a mixer whose output projection is another part
    links: list[_Link] = []  # of the feed-forward layer that is being put together
    for name, part in parts:
        if name in mixing:
            kind = _kind_of(name, part)
            writer = _find_writer(name, part, width, kind)
            unfinished, links = None, []
            if writer is None:
                unfinished = kind, name
            else:
                found.append(Sublayer(kind, name, *writer))
            continue
        if feed_forwards and name not in feed_forwards:
            continue
        for link in _links(name, part, width):
            if unfinished is not None and link.is_projection(width):
                found.append(Sublayer(*unfinished, link.name, width))
                unfinished = None
                continue
            unfinished = None
            links.append(link)
            layers = sum(each.layers for each in links)
            if link.leaves == links[0].enters and layers > 1:
                found.append(Sublayer("feed-forward", links[0].name, link.name, link.leaves))
                links = []
    return found


def is_feed_forward(module: nn.Module) -> bool:
    """Return whether a module is a feed-forward part, by its class's name."""
    return _FEED_FORWARD.search(type(module).__name__) is not None


def called_layers(name: str, module: nn.Module) -> list[Named]:
    """Return the linear layers and convolutions inside a module that are called.

    Left out are those of which another module only reads the weight.
    """
    found = []
    for inner_name, inner in _weighted_layers(name, module):
        owner, _, own = inner_name.removeprefix(name).lstrip(".").rpartition(".")
        if not own or not reads_weight_of(module.get_submodule(owner), own):
            found.append((inner_name, inner))
    return found


def _weighted_layers(name: str, module: nn.Module) -> Iterator[Named]:
    for inner_name, inner in module.named_modules(prefix=name):
        if is_linear(inner) or is_convolution(inner):
            yield inner_name, inner


@dataclass(frozen=True)
class _Link:
    """A part of a feed-forward layer: the features that enter and leave, and its layers' number."""

    name: str
    enters: int
    leaves: int
    layers: int

    def is_projection(self, width: int) -> bool:
        """Return whether it is one layer from the stream to the stream."""
        return self.layers == 1 and self.enters == self.leaves == width


def _links(name: str, part: nn.Module, width: int) -> Iterator[_Link]:
    """Yield a part that works on single positions.

    Where the part also adds the residual and its norm, yield what is inside it.
    """
    layers = called_layers(name, part)
    if isinstance(part, nn.ModuleDict):  # one of many, by a name that the inputs give
        return
    if fused_experts(part):
        yield _Link(name, width, width, 2)
    elif len(layers) == 1:
        layer_name, layer = layers[0]
        yield _Link(layer_name, *features(layer), 1)
    elif layers and _has_stream_norm(part, width):
        for child_name, child in part.named_children():
            yield from _links(f"{name}.{child_name}", child, width)
    elif layers:
        enters = features(layers[0][1])[0]
        outputs = [features(layer)[1] for _, layer in layers]
        leaves = enters if enters in outputs[1:] else outputs[-1]
        yield _Link(name, enters, leaves, len(layers))


def _has_stream_norm(module: nn.Module, width: int) -> bool:
    return any(norm_width(part) == width for part in module.modules())


def _kind_of(name: str, mixer: nn.Module) -> Kind:
    if not any("attention" in type(part).__name__.lower() for part in mixer.modules()):
        return "mixer"
    names = [name.rpartition(".")[2], type(mixer).__name__]
    names += [child_name for child_name, _ in mixer.named_children()]
    if any(_CROSS.search(each) for each in names):
        return "cross-attention"
    return "attention"


def _find_writer(name: str, mixer: nn.Module, width: int, kind: Kind) -> tuple[str, int] | None:
    """Return the name of the module whose output a mixer adds to the stream, and its width.

    It is the last layer that gives `width` features and is no query, key or value. In a block that
    changes the width, it is the last of the layers that are called an output. Where there is none,
    it is the mixer itself, unless that is an attention that holds the stream's norm, too.
    """
    layers = []
    for layer_name, layer in called_layers(name, mixer):
        if not _is_reader(layer_name, name):
            layers.append((layer_name, layer))
    layers = [entry for entry in layers if is_linear(entry[1])] or layers
    for layer_name, layer in reversed(layers):
        if features(layer)[1] == width:
            return layer_name, width
    for layer_name, layer in reversed(layers):
        if any(_WRITES.search(part) for part in layer_name.split(".")[-2:]):
            return layer_name, features(layer)[1]
    if kind != "mixer" and _has_stream_norm(mixer, width):
        return None
    return (name, width) if _computes_values(name, mixer) else None


def _computes_values(name: str, mixer: nn.Module) -> bool:
    """Return whether a mixer has layers besides those of its queries, keys and values."""
    if fused_experts(mixer):
        return True
    return any(not _is_reader(layer, name) for layer, _ in _weighted_layers(name, mixer))


def _is_reader(layer: str, mixer: str) -> bool:
    """Return whether a layer computes a mixer's queries, keys or values, by its name."""
    names = layer.removeprefix(mixer).strip(".").split(".")
    return any(_READS.search(name) for name in names)
