"""Norms and feed-forward layers that keep what they read, and compute again what lies between two
matrix products.

With it a block of a decoder keeps, for each token, its two norms' inputs, queries, keys and values,
the attention's output, and what the first layers of its feed-forward part give: 8 H + 4 Hkv + 4 I
bytes in 16 bits, for widths H, Hkv and I.

Norms and activations are known by their classes. A feed-forward layer is known by what it does: its
forward pass is run on a miniature of itself with small layers, which must call its first layers
with its input, its last layer once, and give the last one's output; and what lies between must
depend on the first layers' outputs alone, row by row. What does not do so is left alone.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from transformers.activations import ACT2CLS, LinearActivation

from peftkit.anatomy import features, is_linear, is_norm
from peftkit.forwards import has_foreign_forward, wrap_forward
from peftkit.lean.recomputation import recomputed

_ACTIVATIONS = tuple(
    {nn.GELU}
    | {entry[0] if isinstance(entry, tuple) else entry for entry in ACT2CLS.values()}
    - {LinearActivation}
)


def recompute_norms(model: nn.Module) -> int:
    """Let the norms of a model keep their inputs alone; return their number."""
    return sum(
        _put_forward(module, _run_function) for module in model.modules() if _is_plain_norm(module)
    )


def recompute_feed_forwards(model: nn.Module) -> int:
    """Let the feed-forward layers and activations of a model keep what their first layers give;
    return their number.
    """
    found = 0
    inside: set[int] = set()
    known: dict[Any, bool] = {}
    for module in model.modules():
        shape = _shape(module)
        if shape is not None:
            kind = (type(module), shape, tuple(type(child) for child in module.children()))
            if kind not in known:
                known[kind] = _is_told_by_miniature(module, shape)
            if known[kind] and _put_forward(module, functools.partial(_run_feed_forward, shape)):
                inside.update(id(part) for part in module.modules())
                found += 1
    return found + sum(
        _put_forward(module, _run_function)
        for module in model.modules()
        if id(module) not in inside and _is_plain_activation(module)
    )


def _put_forward(module: nn.Module, run: Callable[..., Any]) -> bool:
    """Put another forward pass in the place of a module's own; not where somebody else has done so."""
    if has_foreign_forward(module):
        return False
    wrap_forward(module, run, "lean")
    return True


def _is_plain_norm(module: nn.Module) -> bool:
    """Tell whether a module normalises one tensor, without statistics of its own."""
    if not is_norm(module) or isinstance(module, _NormBase) or list(module.children()):
        return False
    needed = [
        p
        for p in inspect.signature(type(module).forward).parameters.values()
        if p.default is p.empty
    ]
    return len(needed) == 2 and _keeps_input(module)  # itself, and the tensor


def _is_plain_activation(module: nn.Module) -> bool:
    return (
        isinstance(module, _ACTIVATIONS)
        and not getattr(module, "inplace", False)
        and _keeps_input(module)
    )


def _keeps_input(module: nn.Module) -> bool:
    """Tell whether a norm or an activation keeps more than weights and its output, which whoever
    reads it may keep anyway.

    ReLU keeps its output alone, and what only scales keeps nothing: these would keep more if they
    kept their inputs.
    """
    frozen = {name: parameter.detach() for name, parameter in module.named_parameters()}
    x = torch.ones_like(
        next((weight for weight in frozen.values() if weight.dim() == 1), torch.empty(8))
    )
    kept: set[int] = set()

    def note(tensor: Tensor) -> Tensor:
        kept.add(_storage(tensor))
        return tensor.detach()

    try:
        with torch.enable_grad(), saved_tensors_hooks(note, torch.Tensor.detach):
            output = functional_call(module, frozen, x.requires_grad_().expand(2, -1))
            own = {_storage(each) for each in (output, *frozen.values())}
    except Exception:  # it reads another shape
        return True
    return not kept <= own


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _run_function(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a norm or an activation; one whose weights are trained, or that is called with more than
    a tensor, as ever.
    """
    plain = (
        len(args) == 1
        and not kwargs
        and not any(p is not None and p.requires_grad for p in module._parameters.values())
    )
    if plain and not torch.compiler.is_compiling():
        return recomputed(forward, *args)
    return forward(*args, **kwargs)


@dataclass(frozen=True)
class Shape:
    """The layers of a feed-forward part: those that read its input, and the one that gives its
    output.
    """

    readers: tuple[str, ...]
    writer: str
    widths: tuple[int, ...]
    """Features that each reader gives, as multiples of those that the writer reads."""


def _shape(module: nn.Module) -> Shape | None:
    """Return the shape of a module that may be a feed-forward part: two or three linear layers, and
    no other weights.
    """
    layers = {name: child for name, child in module.named_children() if is_linear(child)}
    others = [child for child in module.children() if not is_linear(child)]
    if (
        len(layers) not in (2, 3)
        or module._parameters
        or any(list(other.parameters()) for other in others)
    ):
        return None
    if any(isinstance(other, nn.Dropout) and other.p for other in others):
        return None
    *readers, writer = layers
    width = features(layers[writer])[0]
    enters, leaves = zip(*(features(layers[name]) for name in readers), strict=True)
    if len(set(enters)) > 1 or any(each not in (width, 2 * width) for each in leaves):
        return None
    return Shape(tuple(readers), writer, tuple(each // width for each in leaves))


def _is_told_by_miniature(module: nn.Module, shape: Shape) -> bool:
    """Run a module's forward pass with small layers; tell whether it is the feed-forward part that
    `shape` says.
    """
    read: dict[str, list[Tensor]] = {name: [] for name in (*shape.readers, shape.writer)}
    given: dict[str, Tensor] = {}

    def run(name: str, weight: Tensor, x: Tensor) -> Tensor:
        read[name].append(x)
        given[name] = x @ weight
        return given[name]

    generator = torch.Generator().manual_seed(0)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64, device="cpu")
    small = copy.copy(module)
    vars(small)["training"] = True  # a dropout of its own would show
    small._modules = {name: child for name, child in module._modules.items() if name not in read}
    for name, width in zip(shape.readers, shape.widths, strict=True):
        vars(small)[name] = functools.partial(run, name, draw(16, 32 * width))
    vars(small)[shape.writer] = functools.partial(run, shape.writer, draw(32, 16))
    x = draw(2, 3, 16)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = type(module).forward(small, x)
            rows = [given[name].flatten(0, 1) for name in shape.readers]
            between = torch.cat(
                [
                    _between(small, shape, *(each[part] for each in rows))
                    for part in (slice(1), slice(1, 6))
                ]
            )
    except Exception:  # it asks its layers for more than to be called: it is something else
        return False
    called_once = all(len(each) == 1 for each in read.values())
    return (
        called_once
        and output is given[shape.writer]
        and all(read[name][0] is x for name in shape.readers)
        and torch.equal(between, read[shape.writer][0].flatten(0, 1))
    )


def _run_feed_forward(
    shape: Shape, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    if len(args) != 1 or kwargs or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return forward(*args, **kwargs)
    given = [getattr(module, name)(args[0]) for name in shape.readers]
    return getattr(module, shape.writer)(
        recomputed(functools.partial(_between, module, shape), *given, by_rows=True)
    )


def _between(module: nn.Module, shape: Shape, *given: Tensor) -> Tensor:
    """Return what a feed-forward part hands to its last layer, from what its first layers gave."""
    between = copy.copy(module)
    for name, output in zip(shape.readers, given, strict=True):
        vars(between)[name] = functools.partial(_give, output)
    vars(between)[shape.writer] = _pass_on
    between._modules = {
        name: child for name, child in module._modules.items() if name not in vars(between)
    }
    result: Tensor = type(module).forward(between, given[0])
    return result


def _give(output: Tensor, x: Tensor) -> Tensor:
    return output


def _pass_on(x: Tensor) -> Tensor:
    return x
