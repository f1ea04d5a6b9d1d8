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

# PEFT's task type for each family of transformers' auto classes: the order decides where a class is in two of them.
_TASK_TYPES = {
    "SEQ_CLS": ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",),
    "TOKEN_CLS": ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",),
    "QUESTION_ANS": ("MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",),
    "SEQ_2_SEQ_LM": ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES"),
    "CAUSAL_LM": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"),
}


def task_type(model: nn.Module) -> str | None:
    """Return PEFT's task type ("CAUSAL_LM", "SEQ_CLS", ...) for the model's class, or None where PEFT has none for it.

    PEFT's classes for a task hand ``input_ids`` to the model, which one that reads sound or images does not know.
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
    """Tell whether a module is a linear layer: ``nn.Linear``, its quantised subclasses, or transformers' ``Conv1D``."""
    return isinstance(module, nn.Linear | Conv1D)


def is_convolution(module: nn.Module) -> TypeGuard[nn.Conv1d | nn.Conv2d | nn.Conv3d]:
    """Tell whether a module is a convolution that PEFT can adapt: over one, two or three dimensions."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)


def features(layer: nn.Module) -> tuple[int, int]:
    """Return the number of features (channels) that go into a linear layer or convolution, and that come out."""
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if is_convolution(layer):
        return layer.in_channels, layer.out_channels
    raise TypeError(f"{type(layer).__name__} is neither a linear layer nor a convolution")


def fused_experts(module: nn.Module) -> list[str]:
    """Return the names of parameters that hold the weights of many experts, [experts, features, features]."""
    return [
        f"{name}.{own}".lstrip(".")
        for name, part in module.named_modules()
        if "expert" in type(part).__name__.lower()
        for own, parameter in part.named_parameters(recurse=False)
        if parameter.dim() == 3
    ]


def linear_layers(model: nn.Module) -> list[str]:
    """Return the names of all linear layers that compute inside the model: every one but the output embedding and the head."""
    return [name for name, module in _inner_layers(model) if is_linear(module) and not _left_alone(name, module, model)]


def convolutions(model: nn.Module, *, pointwise: bool) -> list[str]:
    """Return the names of the convolutions inside the model that have no groups: all, or those of one position alone."""
    return [
        name
        for name, module in _inner_layers(model)
        if is_convolution(module) and module.groups == 1 and not (pointwise and math.prod(module.kernel_size) > 1)
    ]


def left_alone(model: nn.Module) -> dict[str, list[str]]:
    """Return what a method for linear layers does not reach, by reason: names of layers and of fused parameters."""
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
    """Return why a linear layer cannot carry an update that is added to its output; None where it can."""
    parent, _, own = name.rpartition(".")
    owner: Any = type(model.get_submodule(parent))
    kind: Any = type(layer)
    if own in _read_weights(owner):
        return "the model reads their weights itself, without calling the layer"
    if _gives_something_else(kind):
        return "they are linear layers that take or give something else than one tensor of features (routers, groups)"
    return None


@functools.cache
def _gives_something_else(kind: Any) -> bool:
    """Tell whether a subclass of ``nn.Linear`` in transformers gives several tensors, or multiplies group by group."""
    if not kind.__module__.startswith("transformers.models") or kind.forward in (nn.Linear.forward, Conv1D.forward):
        return False
    forward = ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))
    returns = [node.value for node in ast.walk(forward) if isinstance(node, ast.Return)]
    return "group" in kind.__name__.lower() or any(isinstance(value, ast.Tuple) for value in returns)


@functools.cache
def _read_weights(kind: Any) -> frozenset[str]:
    """Return the children whose ``weight`` the class hands on, or multiplies with, outside of its initialisation.

    Mamba's kernels take the weights of some layers: an update added to what such a layer gives would never be seen.
    """
    if not kind.__module__.startswith("transformers.models"):
        return frozenset()
    found = set()
    for method in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kind)))):
        if isinstance(method, ast.FunctionDef) and not re.search("init|reset", method.name):
            # What counts is self.dt_proj.weight whole, not its dtype, a slice of it, or whether it is a tensor.
            asked = {id(node.value) for node in ast.walk(method) if isinstance(node, ast.Attribute | ast.Subscript)}
            asked |= {id(call.args[0]) for call in ast.walk(method) if _is_isinstance(call)}
            for node in ast.walk(method):
                if isinstance(node, ast.Attribute) and node.attr == "weight" and id(node) not in asked:
                    child = node.value
                    if (
                        isinstance(child, ast.Attribute)
                        and isinstance(child.value, ast.Name)
                        and child.value.id == "self"
                    ):
                        found.add(child.attr)
    return frozenset(found)


def _is_isinstance(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"


def output_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the output embedding (the language-model head), if the model has one."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    if isinstance(head, nn.Module):
        yield head


def task_head(model: nn.Module) -> list[str]:
    """Return the names of the modules that a task adds to the pretrained body and that start out random.

    These are the children beside the body (``classifier``, ``score``, ``pre_classifier``, ``qa_outputs``) that hold
    parameters and are not the output embedding. They must be trained, and saved with the adapter.
    """
    body = getattr(model, "base_model_prefix", "")
    if not body or not hasattr(model, body):
        return []
    outputs = {id(module) for module in output_modules(model)}
    return [
        name
        for name, child in model.named_children()
        if name != body and id(child) not in outputs and any(True for _ in child.parameters())
    ]
