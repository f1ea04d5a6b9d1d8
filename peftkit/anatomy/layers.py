"""The linear layers, the output embedding and the task head of a model."""

import ast
import functools
import inspect
import math
import re
import textwrap
from collections.abc import Iterator
from typing import Any, TypeGuard

from torch import nn
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D

# PEFT's task type for each family of transformers' auto classes: the order decides where a class is
# in two of them.
_TASK_TYPES = {
    "SEQ_CLS": ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",),
    "TOKEN_CLS": ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",),
    "QUESTION_ANS": ("MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",),
    "SEQ_2_SEQ_LM": (
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    ),
    "CAUSAL_LM": (
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    ),
}

# Classes whose head is a part of their body.
_HEADS_INSIDE = {
    "PerceiverForSequenceClassification": ("perceiver.decoder",),
    "PerceiverForImageClassificationLearned": ("perceiver.decoder",),
}
_ABOUT_A_TENSOR = {
    "dtype",
    "device",
    "shape",
    "size",
    "ndim",
    "dim",
    "numel",
    "data",
    "is_meta",
    "requires_grad",
}


def task_type(model: nn.Module) -> str | None:
    """Return PEFT's task type ("CAUSAL_LM", "SEQ_CLS", ...) for the model's class, or None where
    PEFT has none for it.

    PEFT's classes for a task hand ``input_ids`` to the model, which one that reads sound or images
    does not know.
    """
    name = type(model).__name__
    if "input_ids" not in inspect.signature(type(model).forward).parameters:
        return None
    for task, mappings in _TASK_TYPES.items():
        for mapping in mappings:
            entries = getattr(modeling_auto, mapping).values()
            if any(name in ((entry,) if isinstance(entry, str) else entry) for entry in entries):
                return task
    return None


def is_linear(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer: ``nn.Linear``, its quantised subclasses, or
    transformers' ``Conv1D``.
    """
    return isinstance(module, nn.Linear | Conv1D)


def is_convolution(module: nn.Module) -> TypeGuard[nn.Conv1d | nn.Conv2d | nn.Conv3d]:
    """Tell whether a module is a convolution over one, two or three dimensions."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)


def reads_weight_of(owner: nn.Module, child: str) -> bool:
    """Tell whether a module uses the weight of one of its children itself, without calling the
    child.
    """
    kind: Any = type(owner)
    return child in _read_weights(kind)


def features(layer: nn.Module) -> tuple[int, int]:
    """Return the number of features (channels) that go into a linear layer or convolution, and that
    come out.
    """
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if is_convolution(layer):
        return layer.in_channels, layer.out_channels
    raise TypeError(f"{type(layer).__name__} is neither a linear layer nor a convolution")


def is_reversible(model: nn.Module) -> bool:
    """Tell whether a model's layers compute their inputs again in the backward pass, from their
    outputs (arXiv:1707.04585).
    """
    forwards = (getattr(type(module).forward, "__code__", None) for module in model.modules())
    return any(code is not None and "_ReversibleFunction" in code.co_names for code in forwards)


def fused_experts(module: nn.Module) -> list[str]:
    """Return the names of parameters that hold the weights of many experts at once."""
    return [
        f"{name}.{own}".lstrip(".")
        for name, part in module.named_modules()
        if "expert" in type(part).__name__.lower()
        for own, parameter in part.named_parameters(recurse=False)
        if parameter.dim() > 1 and not is_linear(part)
    ]


def linear_layers(model: nn.Module) -> list[str]:
    """Return the names of all linear layers that compute inside the model: every one but the output
    embedding and the head.
    """
    return [
        name
        for name, module in _inner_layers(model)
        if is_linear(module) and not _left_alone(name, module, model)
    ]


def convolutions(model: nn.Module, *, pointwise: bool) -> list[str]:
    """Return the names of the convolutions inside the model that have no groups: all, or those of
    one position alone.

    Those that do more than to convolve, such as to standardise their weights first, are left out.
    """
    return [
        name
        for name, module in _inner_layers(model)
        if is_convolution(module)
        and type(module).forward in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
        and module.groups == 1
        and not (pointwise and math.prod(module.kernel_size) > 1)
    ]


def left_alone(model: nn.Module) -> dict[str, list[str]]:
    """Return what a method for linear layers does not reach, by reason: names of layers and of
    fused parameters.
    """
    found: dict[str, list[str]] = {}
    for name, module in _inner_layers(model):
        reason = is_linear(module) and _left_alone(name, module, model)
        if reason:
            found.setdefault(reason, []).append(name)
    experts = fused_experts(model)
    if experts:
        found["experts fused into one parameter; target_parameters adapts them"] = experts
    return found


def _inner_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    excluded = {id(module) for module in output_modules(model)}
    heads = tuple(f"{name}." for name in task_head(model))
    for name, module in model.named_modules():
        if id(module) not in excluded and not f"{name}.".startswith(heads):
            yield name, module


def _left_alone(name: str, layer: nn.Module, model: nn.Module) -> str | None:
    """Return why a linear layer cannot carry an update that is added to its output; None where it
    can.
    """
    parent, _, own = name.rpartition(".")
    kind: Any = type(layer)
    if reads_weight_of(model.get_submodule(parent), own):
        return "the model reads their weights itself, without calling the layer"
    if _gives_something_else(kind):
        return "they are linear layers that take or give something else than one tensor of features (routers, groups)"
    return None


@functools.cache
def _gives_something_else(kind: Any) -> bool:
    """Tell whether a subclass of ``nn.Linear`` in transformers gives several tensors, or multiplies
    group by group.
    """
    if not kind.__module__.startswith("transformers.models") or kind.forward in (
        nn.Linear.forward,
        Conv1D.forward,
    ):
        return False
    forward = ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))
    returns = [node.value for node in ast.walk(forward) if isinstance(node, ast.Return)]
    return "group" in kind.__name__.lower() or any(
        isinstance(value, ast.Tuple) for value in returns
    )


@functools.cache
def _read_weights(kind: Any) -> frozenset[str]:
    """Return the children whose ``weight`` the class hands on, or multiplies with, outside of its
    initialisation.

    Mamba's kernels take the weights of some layers: an update added to what such a layer gives
    would never be seen.
    """
    if not kind.__module__.startswith("transformers.models"):
        return frozenset()
    found = set()
    for method in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kind)))):
        if isinstance(method, ast.FunctionDef) and not re.search("init|reset", method.name):
            # What counts is self.dt_proj.weight as a whole, not its dtype, a slice of it, or
            # whether it is a tensor.
            asked = {id(node.value) for node in ast.walk(method) if _asks_about(node)}
            asked |= {id(call.args[0]) for call in ast.walk(method) if _is_isinstance(call)}
            for node in ast.walk(method):
                if (
                    isinstance(node, ast.Attribute)
                    and node.attr == "weight"
                    and id(node) not in asked
                ):
                    child = node.value
                    if (
                        isinstance(child, ast.Attribute)
                        and isinstance(child.value, ast.Name)
                        and child.value.id == "self"
                    ):
                        found.add(child.attr)
    return frozenset(found)


def _asks_about(node: ast.AST) -> TypeGuard[ast.Attribute | ast.Subscript]:
    return isinstance(node, ast.Subscript) or (
        isinstance(node, ast.Attribute) and node.attr in _ABOUT_A_TENSOR
    )


def _is_isinstance(node: ast.AST) -> TypeGuard[ast.Call]:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "isinstance"
    )


def output_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the output embedding (the language-model head), if the model has one."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    if isinstance(head, nn.Module):
        yield head


def task_head(model: nn.Module) -> list[str]:
    """Return the names of the modules that a task adds to the pretrained body and that start out
    random.

    These are the children beside the body (``classifier``, ``score``, ``pre_classifier``,
    ``qa_outputs``) that hold matrices and do not hold the output embedding. They must be trained,
    and saved with the adapter. Where a class for classification does not say which child is its
    body, that is the largest one, and the head is what follows it.
    """
    children = {
        name: child
        for name, child in model.named_children()
        if any(p.dim() > 1 for p in child.parameters())
    }
    body = getattr(model, "base_model_prefix", "")
    if body in children:
        outside = [name for name in children if name != body]
    elif type(model).__name__.endswith("Classification") and len(children) > 1:
        sizes = {
            name: sum(parameter.numel() for parameter in child.parameters())
            for name, child in children.items()
        }
        names = list(children)
        outside = names[names.index(max(sizes, key=lambda name: sizes[name])) + 1 :]
    else:
        outside = []
    outputs = {id(module) for module in output_modules(model)}
    modules = dict(model.named_modules())
    inside = [name for name in _HEADS_INSIDE.get(type(model).__name__, ()) if name in modules]
    return [
        name for name in outside if not outputs & {id(part) for part in children[name].modules()}
    ] + inside
