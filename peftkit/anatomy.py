"""What a transformers model is made of, found from its structure. Everything that must know where things are asks here."""

from collections.abc import Iterator

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
    """Return PEFT's task type ("CAUSAL_LM", "SEQ_CLS", ...) for the model's class, or None where PEFT has none for it."""
    name = type(model).__name__
    for task, mappings in _TASK_TYPES.items():
        for mapping in mappings:
            entries = getattr(modeling_auto, mapping).values()
            if any(name in ((entry,) if isinstance(entry, str) else entry) for entry in entries):
                return task
    return None


def is_linear(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer: ``nn.Linear``, its quantised subclasses, or transformers' ``Conv1D``."""
    return isinstance(module, nn.Linear | Conv1D)


def linear_layers(model: nn.Module) -> list[str]:
    """Return the names of all linear layers that compute inside the model: every one but the output embedding and the head."""
    excluded = {id(module) for module in output_modules(model)}
    heads = tuple(f"{name}." for name in task_head(model))
    return [
        name
        for name, module in model.named_modules()
        if is_linear(module) and id(module) not in excluded and not f"{name}.".startswith(heads)
    ]


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
