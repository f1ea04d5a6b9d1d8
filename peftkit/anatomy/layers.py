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

# PEFT's task type for each family of transformers' auto classes. A class in two of them gets the
# first one.
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
    "dtype", "device", "shape", "size", "ndim", "dim", "numel", "data", "is_meta", "requires_grad",
}  # fmt: skip


def task_type(model: nn.Module) -> str | None:
    """Return PEFT's task type ("CAUSAL_LM", "SEQ_CLS", ...) for a model's class.

    None where PEFT has none for it: its classes for a task hand ``input_ids`` to the model, which
    models of sound or images do not take.
    """
    if "input_ids" not in inspect.signature(type(model).forward).parameters:
        return None
    name = type(model).__name__
    for task, mappings in _TASK_TYPES.items():
        for mapping in mappings:
            if name in _class_names(mapping):
                return task
    return None


@functools.cache
def _class_names(mapping: str) -> frozenset[str]:
    """Return the names of the model classes in one of transformers' mappings."""
    names: set[str] = set()
    for entry in getattr(modeling_auto, mapping).values():
        names.update((entry,) if isinstance(entry, str) else entry)
    return frozenset(names)


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer.

    That is ``nn.Linear``, its quantised subclasses, or transformers' ``Conv1D``.
    """
    return isinstance(module, nn.Linear | Conv1D)


def is_convolution(module: nn.Module) -> TypeGuard[nn.Conv1d | nn.Conv2d | nn.Conv3d]:
    """Return whether a module is a convolution over one, two or three dimensions."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)


def reads_weight_of(owner: nn.Module, child: str) -> bool:
    """Return whether a module uses the weight of a child itself, without calling the child."""
    kind: Any = type(owner)
    return child in _children_whose_weight_is_read(kind)


def features(layer: nn.Module) -> tuple[int, int]:
    """Return the input and output features (channels) of a linear layer or convolution."""
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if is_convolution(layer):
        return layer.in_channels, layer.out_channels
    raise TypeError(f"{type(layer).__name__} is neither a linear layer nor a convolution")


def is_reversible(model: nn.Module) -> bool:
    """Return whether a model's layers compute their inputs from their outputs in the backward pass.

    These are reversible residual layers (arXiv:1707.04585).
    """
    for module in model.modules():
        code = getattr(type(module).forward, "__code__", None)
        if code is not None and "_ReversibleFunction" in code.co_names:
            return True
    return False


def fused_experts(module: nn.Module) -> list[str]:
    """Return the names of parameters that hold the weights of many experts at once."""
    found = []
    for name, part in module.named_modules():
        if "expert" not in type(part).__name__.lower() or is_linear(part):
            continue
        for own, parameter in part.named_parameters(recurse=False):
            if parameter.dim() > 1:
                found.append(f"{name}.{own}".lstrip("."))
    return found


def linear_layers(model: nn.Module) -> list[str]:
    """Return the names of all linear layers that compute inside the model.

    The output embedding and the head are not among them.
    """
    found = []
    for name, module in _inner_modules(model):
        if is_linear(module) and _why_left_alone(name, module, model) is None:
            found.append(name)
    return found


def convolutions(model: nn.Module, *, pointwise: bool) -> list[str]:
    """Return the names of the convolutions inside the model that have no groups.

    Those that do more than convolve are left out, such as ones that standardise their weights.

    Args:
        model: A transformers model.
        pointwise: Whether to return only those with a kernel of one position.
    """
    plain = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
    found = []
    for name, module in _inner_modules(model):
        if not is_convolution(module) or type(module).forward not in plain or module.groups > 1:
            continue
        if not pointwise or math.prod(module.kernel_size) == 1:
            found.append(name)
    return found


def left_alone(model: nn.Module) -> dict[str, list[str]]:
    """Return what a method for linear layers does not reach, by reason.

    That is names of layers, and of fused parameters.
    """
    found: dict[str, list[str]] = {}
    for name, module in _inner_modules(model):
        reason = _why_left_alone(name, module, model) if is_linear(module) else None
        if reason is not None:
            found.setdefault(reason, []).append(name)
    experts = fused_experts(model)
    if experts:
        found["experts fused into one parameter; target_parameters adapts them"] = experts
    return found


def _inner_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that are neither the output embedding nor part of the head."""
    excluded = {id(module) for module in output_modules(model)}
    heads = tuple(f"{name}." for name in task_head(model))
    for name, module in model.named_modules():
        if id(module) not in excluded and not f"{name}.".startswith(heads):
            yield name, module


def _why_left_alone(name: str, layer: nn.Module, model: nn.Module) -> str | None:
    """Return why a linear layer cannot carry an update that is added to its output, or None."""
    parent, _, own = name.rpartition(".")
    kind: Any = type(layer)
    if reads_weight_of(model.get_submodule(parent), own):
        return "the model reads their weights itself, without calling the layer"
    if _is_no_plain_linear(kind):
        return (
            "they are linear layers that take or give something else than one tensor of features "
            "(routers, groups)"
        )
    return None


@functools.cache
def _is_no_plain_linear(kind: Any) -> bool:
    """Return whether a transformers subclass of ``nn.Linear`` computes something else.

    It may return several tensors, or multiply group by group.
    """
    if not kind.__module__.startswith("transformers.models"):
        return False
    if kind.forward in (nn.Linear.forward, Conv1D.forward):
        return False
    if "group" in kind.__name__.lower():
        return True
    for node in ast.walk(_parse_source(kind.forward)):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
            return True
    return False


@functools.cache
def _children_whose_weight_is_read(kind: Any) -> frozenset[str]:
    """Return the children whose ``weight`` a class hands on or multiplies with.

    Its initialisation does not count. Mamba's kernels, for one, take the weights of some layers: an
    update that is added to the output of such a layer would never be seen.
    """
    if not kind.__module__.startswith("transformers.models"):
        return frozenset()
    found: set[str] = set()
    for method in ast.walk(_parse_source(kind)):
        if isinstance(method, ast.FunctionDef) and not re.search("init|reset", method.name):
            found |= _weights_read_in(method)
    return frozenset(found)


def _weights_read_in(method: ast.FunctionDef) -> set[str]:
    """Return each X of which a method uses ``self.X.weight`` as a whole.

    Its dtype, a slice of it, or whether it is a tensor, does not count.
    """
    only_asked: set[int] = set()
    for node in ast.walk(method):
        if _asks_about(node):
            only_asked.add(id(node.value))
        elif _calls_isinstance(node):
            only_asked.add(id(node.args[0]))
    found = set()
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and node.attr == "weight" and id(node) not in only_asked:
            child = node.value
            if isinstance(child, ast.Attribute) and _is_self(child.value):
                found.add(child.attr)
    return found


def _parse_source(of: Any) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(of)))


def _asks_about(node: ast.AST) -> TypeGuard[ast.Attribute | ast.Subscript]:
    """Return whether code asks for an item or a property of a tensor, such as its dtype."""
    if isinstance(node, ast.Attribute):
        return node.attr in _ABOUT_A_TENSOR
    return isinstance(node, ast.Subscript)


def _calls_isinstance(node: ast.AST) -> TypeGuard[ast.Call]:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    return node.func.id == "isinstance"


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def output_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the output embedding (the language-model head), if the model has one."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    if isinstance(head, nn.Module):
        yield head


def task_head(model: nn.Module) -> list[str]:
    """Return the names of the modules that a task adds to the pretrained body.

    These are the children beside the body (``classifier``, ``score``, ``pre_classifier``,
    ``qa_outputs``) that hold matrices and do not hold the output embedding. They start out random:
    they must be trained, and saved with the adapter. Where a class for classification does not say
    which child is its body, that is the largest one, and the head is what follows it.
    """
    outputs = {id(module) for module in output_modules(model)}
    head = []
    for name in _outside_body(model):
        if not outputs & {id(part) for part in model.get_submodule(name).modules()}:
            head.append(name)
    modules = dict(model.named_modules())
    for name in _HEADS_INSIDE.get(type(model).__name__, ()):
        if name in modules:
            head.append(name)
    return head


def _outside_body(model: nn.Module) -> list[str]:
    """Return the names of the children with matrices that are not the pretrained body."""
    sizes: dict[str, int] = {}
    for name, child in model.named_children():
        if any(parameter.dim() > 1 for parameter in child.parameters()):
            sizes[name] = sum(parameter.numel() for parameter in child.parameters())
    names = list(sizes)
    body = getattr(model, "base_model_prefix", "")
    if body in names:
        return [name for name in names if name != body]
    if type(model).__name__.endswith("Classification") and len(names) > 1:
        largest = max(names, key=sizes.__getitem__)
        return names[names.index(largest) + 1 :]
    return []
