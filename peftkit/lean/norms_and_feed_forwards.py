"""Norms and feed-forward layers that keep only what they read, and recompute what follows from it.

With it, a decoder block keeps for each token: the inputs of its two norms; queries, keys and
values; the attention's output; and the outputs of the first layers of its feed-forward part. That
is 8 H + 4 Hkv + 4 I bytes in 16 bits, for a hidden width H, key-value width Hkv and inner width I.

Norms and activations are recognised by their classes. A feed-forward layer is recognised by what it
does: its forward pass is run on a miniature of itself, with small random layers. It must call its
first layers with its input and its last layer once, and return the last one's output. What lies
between must depend on nothing but the first layers' outputs, row by row. Anything else is left
alone.
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


def _activation_classes() -> tuple[type[nn.Module], ...]:
    """Return the classes of activations that transformers knows, but for the identity."""
    classes = {nn.GELU}
    for entry in ACT2CLS.values():
        classes.add(entry[0] if isinstance(entry, tuple) else entry)
    return tuple(classes - {LinearActivation})


_ACTIVATIONS = _activation_classes()


def recompute_norms(model: nn.Module) -> int:
    """Let the norms of a model keep only their inputs; return how many norms that is."""
    count = 0
    for module in model.modules():
        if _is_plain_norm(module) and _replace_forward(module, _run_elementwise):
            count += 1
    return count


def recompute_feed_forwards(model: nn.Module) -> int:
    """Let the feed-forward layers of a model keep only the outputs of their first layers.

    Activations outside of these keep only their inputs.

    Returns:
        The number of feed-forward layers and of other activations.
    """
    count = 0
    inside: set[int] = set()
    verdicts: dict[Any, bool] = {}
    for module in model.modules():
        shape = _find_shape(module)
        if shape is None:
            continue
        kind = (type(module), shape, tuple(type(child) for child in module.children()))
        if kind not in verdicts:
            verdicts[kind] = _passes_miniature_test(module, shape)
        run = functools.partial(_run_feed_forward, shape)
        if verdicts[kind] and _replace_forward(module, run):
            inside.update(id(part) for part in module.modules())
            count += 1
    for module in model.modules():
        if id(module) in inside or not _is_plain_activation(module):
            continue
        if _replace_forward(module, _run_elementwise):
            count += 1
    return count


def _replace_forward(module: nn.Module, run: Callable[..., Any]) -> bool:
    """Wrap a module's forward pass; return False where somebody else has replaced it already."""
    if has_foreign_forward(module):
        return False
    wrap_forward(module, run, "lean")
    return True


# Norms and activations


def _is_plain_norm(module: nn.Module) -> bool:
    """Return whether a module normalises one tensor, without running statistics."""
    if not is_norm(module) or isinstance(module, _NormBase) or list(module.children()):
        return False
    required = 0
    for parameter in inspect.signature(type(module).forward).parameters.values():
        if parameter.default is parameter.empty:
            required += 1
    takes_one_tensor = required == 2  # self, and the tensor
    return takes_one_tensor and _saves_more_than_its_output(module)


def _is_plain_activation(module: nn.Module) -> bool:
    """Return whether a module is an activation that saves its input and does not write into it."""
    if not isinstance(module, _ACTIVATIONS) or getattr(module, "inplace", False):
        return False
    return _saves_more_than_its_output(module)


def _saves_more_than_its_output(module: nn.Module) -> bool:
    """Return whether a norm or an activation saves more than weights and its output.

    The layer that reads the output may save that anyway. ReLU saves nothing else, and a function
    that only scales saves nothing at all: they would save more if they saved their inputs.
    """
    frozen = {name: parameter.detach() for name, parameter in module.named_parameters()}
    x = torch.ones(8)
    for weight in frozen.values():
        if weight.dim() == 1:
            x = torch.ones_like(weight)
            break
    saved: set[int] = set()

    def note_saved(tensor: Tensor) -> Tensor:
        saved.add(_storage_id(tensor))
        return tensor.detach()

    try:
        with torch.enable_grad(), saved_tensors_hooks(note_saved, torch.Tensor.detach):
            output = functional_call(module, frozen, x.requires_grad_().expand(2, -1))
            known = {_storage_id(tensor) for tensor in (output, *frozen.values())}
    except Exception:  # it reads another shape
        return True
    return not saved <= known


def _storage_id(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _run_elementwise(
    module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Run a norm or an activation so that only its input is kept.

    One whose weights are trained, or that is called with more than a tensor, runs as usual.
    """
    takes_one_tensor = len(args) == 1 and not kwargs
    if takes_one_tensor and not _is_trained(module) and not torch.compiler.is_compiling():
        return recomputed(forward, *args)
    return forward(*args, **kwargs)


def _is_trained(module: nn.Module) -> bool:
    for parameter in module._parameters.values():
        if parameter is not None and parameter.requires_grad:
            return True
    return False


# Feed-forward layers


@dataclass(frozen=True)
class Shape:
    """The linear layers of a feed-forward part: those that read its input, and the last one.

    A gated one computes ``writer(act(gate(x)) * up(x))`` and has two readers, gate and up.
    """

    readers: tuple[str, ...]
    writer: str
    widths: tuple[int, ...]
    """Output features of each reader, as multiples of the writer's input features."""


def _find_shape(module: nn.Module) -> Shape | None:
    """Return the shape of a module that may be a feed-forward part, or None.

    It has two or three linear layers, no other weights, and no dropout between them.
    """
    layers: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        if is_linear(child):
            layers[name] = child
        elif list(child.parameters()) or (isinstance(child, nn.Dropout) and child.p):
            return None
    if len(layers) not in (2, 3) or module._parameters:
        return None
    *readers, writer = layers
    inner, _ = features(layers[writer])
    inputs, widths = set(), []
    for name in readers:
        enters, leaves = features(layers[name])
        if leaves not in (inner, 2 * inner):
            return None
        inputs.add(enters)
        widths.append(leaves // inner)
    if len(inputs) > 1:
        return None
    return Shape(tuple(readers), writer, tuple(widths))


def _passes_miniature_test(module: nn.Module, shape: Shape) -> bool:
    """Run a module's forward pass with small random layers, to see whether `shape` describes it.

    It must hold that the readers read the input, that each layer is called once, that the writer's
    output is the module's, and that `_compute_between` gives the writer's input for any slice of
    rows.
    """
    reads: dict[str, list[Tensor]] = {name: [] for name in (*shape.readers, shape.writer)}
    outputs: dict[str, Tensor] = {}

    def call_layer(name: str, weight: Tensor, x: Tensor) -> Tensor:
        reads[name].append(x)
        outputs[name] = x @ weight
        return outputs[name]

    generator = torch.Generator().manual_seed(0)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64, device="cpu")
    small = copy.copy(module)
    vars(small)["training"] = True  # a functional dropout would show
    small._modules = {name: child for name, child in module._modules.items() if name not in reads}
    for name, width in zip(shape.readers, shape.widths, strict=True):
        vars(small)[name] = functools.partial(call_layer, name, draw(16, 32 * width))
    vars(small)[shape.writer] = functools.partial(call_layer, shape.writer, draw(32, 16))
    x = draw(2, 3, 16)  # [batch, tokens, hidden]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = type(module).forward(small, x)
            rows = [outputs[name].flatten(0, 1) for name in shape.readers]  # [6, 32 * width]
            first = _compute_between(small, shape, *(part[:1] for part in rows))
            others = _compute_between(small, shape, *(part[1:] for part in rows))
            between = torch.cat([first, others])  # [6, 32]
    except Exception:  # it asks more of its layers than to be called: it is something else
        return False
    if any(len(calls) != 1 for calls in reads.values()) or output is not outputs[shape.writer]:
        return False
    if any(reads[name][0] is not x for name in shape.readers):
        return False
    return torch.equal(between, reads[shape.writer][0].flatten(0, 1))


def _run_feed_forward(
    shape: Shape, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Run a feed-forward part so that only the readers' outputs are kept."""
    takes_one_tensor = len(args) == 1 and not kwargs
    if not takes_one_tensor or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return forward(*args, **kwargs)
    outputs = [getattr(module, name)(args[0]) for name in shape.readers]  # [..., inner * width]
    between = functools.partial(_compute_between, module, shape)
    hidden = recomputed(between, *outputs, by_rows=True)  # act(gate) * up: [..., inner]
    return getattr(module, shape.writer)(hidden)  # [..., hidden]


def _compute_between(module: nn.Module, shape: Shape, *outputs: Tensor) -> Tensor:
    """Return what a feed-forward part hands to its last layer, given its first layers' outputs.

    The module's own forward pass computes it, on a copy whose readers return `outputs` and whose
    writer returns what it reads.
    """
    copied = copy.copy(module)
    for name, output in zip(shape.readers, outputs, strict=True):
        vars(copied)[name] = functools.partial(_return_output, output)
    vars(copied)[shape.writer] = _return_input
    copied._modules = {
        name: child for name, child in module._modules.items() if name not in vars(copied)
    }
    result: Tensor = type(module).forward(copied, outputs[0])
    return result


def _return_output(output: Tensor, x: Tensor) -> Tensor:
    return output


def _return_input(x: Tensor) -> Tensor:
    return x
