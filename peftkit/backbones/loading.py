"""Load a frozen 16-, 8- or 4-bit backbone, and its tokenizer."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import transformers
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from peftkit.anatomy import task_head
from peftkit.backbones.cpu_weight_repacking import prevent_cpu_repacking
from peftkit.backbones.quantization import (
    Quantization,
    bitsandbytes_config,
    make_new_layers_plain,
    quantization_of,
)
from peftkit.backbones.quantized_forwards import quiet_int8_layers
from peftkit.backbones.sources import resolve_source
from peftkit.errors import BackboneError, nearest
from peftkit.internals.bitsandbytes_messages import quiet_bitsandbytes
from peftkit.recording import note

Head = Literal[
    "causal-lm",
    "seq2seq-lm",
    "sequence-classification",
    "token-classification",
    "image-classification",
    "speech-seq2seq",
]
AUTO_CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
    "speech-seq2seq": "AutoModelForSpeechSeq2Seq",
}


def load_backbone(
    source: str | Path,
    *,
    task: Head = "causal-lm",
    quantization: Quantization | None = None,
    dtype: torch.dtype | Literal["auto"] = "auto",
    double_quantization: bool = True,
    device: str | torch.device | None = None,
    attention: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
) -> PreTrainedModel:
    """Load a pretrained model, frozen, in evaluation mode, ready for `attach`.

    Linear layers are stored as `quantization` says (NF4 and double quantisation: arXiv:2305.14314,
    section 3; int8: arXiv:2208.07339). Everything else stays in `dtype`; nothing is cast to
    float32. ``peftkit.record(model)["load_backbone"]`` says what was decided, and which modules
    stay in 16 bits.

    Args:
        source: A Hub id, a local directory, a ``.gguf`` file, or ``package:NAME/FILE`` for a file
            that an installed Python package carries. GGUF weights are dequantised once, into a
            cache of bfloat16 safetensors. The path of a ``config.json`` asks for the architecture
            with random weights (seed 0), to be trained from scratch.
        task: The head to load: which of transformers' auto classes.
        quantization: "nf4", "fp4", "int8", or None for 16-bit weights.
        dtype: Dtype of activations and of all that is not quantised. "auto" is bfloat16 where the
            device computes in it, and float16 on older GPUs.
        double_quantization: Quantise the 4-bit block scales too, which saves about 0.4 bit a
            parameter.
        device: Where the model goes; None is this process's GPU if there is one, else the CPU.
        attention: transformers' attention implementation, e.g. "sdpa" or "eager"; None lets
            transformers choose.
        overrides: Attributes to set on the model's config, e.g. ``{"num_labels": 3}``.
        cache_dir: Where dequantised GGUF files go; None is ``$PEFTKIT_CACHE`` or
            ``~/.cache/peftkit``.

    Raises:
        BackboneError: the source cannot be found or read, or an argument is none of those above.
    """
    _check_names(task, quantization)
    place = torch.device(device) if device is not None else default_device()
    resolved_dtype = default_dtype(place) if dtype == "auto" else dtype
    arguments: dict[str, Any] = {
        "dtype": resolved_dtype,
        "device_map": {"": place},
        **(overrides or {}),
    }
    if quantization is not None:
        arguments["quantization_config"] = bitsandbytes_config(
            quantization, resolved_dtype, double_quantization
        )
    if attention is not None:
        arguments["attn_implementation"] = attention
    if "num_labels" in arguments:  # a head for other labels gives way to a new one
        arguments["ignore_mismatched_sizes"] = True
    model, new = _load_pretrained(source, task, resolve_source(source, cache_dir), arguments)
    make_new_layers_plain(model)
    prevent_cpu_repacking(model)
    quiet_int8_layers(model)
    model.requires_grad_(False)
    model.eval()
    decided = {
        "source": str(source),
        "task": task,
        "quantization": quantization,
        "device": str(place),
        "new": new,
        "weights": "random" if str(source).endswith(".json") else "pretrained",
    }
    note(model, "load_backbone", decided | describe_storage(model))
    return model


def _check_names(task: str, quantization: str | None) -> None:
    if task not in AUTO_CLASSES:
        raise BackboneError(
            f"task {task!r} is none of {', '.join(AUTO_CLASSES)}{nearest(task, AUTO_CLASSES)}"
        )
    if quantization is not None and quantization not in get_args(Quantization):
        raise BackboneError(f"quantization {quantization!r} is none of None, 'int8', 'nf4', 'fp4'")


def _load_pretrained(
    source: str | Path, task: Head, location: str, arguments: dict[str, Any]
) -> tuple[PreTrainedModel, list[str]]:
    """Return a model, and the names of its weights that are new and start random."""
    auto_class = getattr(transformers, AUTO_CLASSES[task])
    try:
        with quiet_bitsandbytes():
            model, found = auto_class.from_pretrained(
                location, output_loading_info=True, **arguments
            )
    except (OSError, ValueError, KeyError) as problem:
        raise BackboneError(f"cannot load {source} as {task}: {problem}") from problem
    return model, _new_weights(model, found, str(source))


def _new_weights(model: PreTrainedModel, found: Mapping[str, Any], source: str) -> list[str]:
    """Return the names of the weights that a checkpoint does not have, or has for other labels.

    They start random.

    Raises:
        BackboneError: the checkpoint has weights of other shapes outside of the head.
    """
    other_shape = [str(entry[0]) for entry in found["mismatched_keys"]]
    heads = tuple(f"{name}." for name in task_head(model))
    for name in other_shape:
        if not name.startswith(heads):
            raise BackboneError(
                f"{source} does not fit its config: the weight {name} has another shape"
            )
    return sorted({*found["missing_keys"], *other_shape})


def load_tokenizer(
    source: str | Path, cache_dir: str | Path | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the backbone at `source`, which may be anything `load_backbone` takes.

    A tokenizer without a padding token pads with its end-of-sequence token. Labels never depend on
    the padding token: the attention mask says what is padding.

    Raises:
        BackboneError: there is no tokenizer at `source`.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            resolve_source(source, cache_dir)
        )
    except (OSError, ValueError, KeyError) as problem:
        raise BackboneError(f"cannot load a tokenizer from {source}: {problem}") from problem
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def default_device() -> torch.device:
    """Return this process's GPU, or the CPU.

    The CPU is meant where there is no GPU, or where Accelerate was told to use the CPU.
    """
    wants_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    if torch.cuda.is_available() and not wants_cpu:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16, or float16 on a GPU that can only emulate bfloat16."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def stored_dtype(source: str | Path) -> torch.dtype:
    """Return the dtype of the weights at `source`: float32 where its config names none.

    Raises:
        BackboneError: there is no config at `source`.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(resolve_source(source))
    except (OSError, ValueError, KeyError) as problem:
        raise BackboneError(f"cannot read the config of {source}: {problem}") from problem
    dtype = config.get_text_config().dtype or config.dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def describe_storage(model: nn.Module) -> dict[str, Any]:
    """Return how a model is stored: its class, its bytes by dtype, and what is not quantised.

    The latter are the weight matrices in 16 or 32 bits.
    """
    size_bytes: Counter[str] = Counter()
    not_quantized: dict[str, str] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        kind = quantization_of(module)
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            dtype = str(parameter.dtype).removeprefix("torch.")
            if kind is not None and parameter_name == "weight":
                dtype = kind
            size_bytes[dtype] += parameter.numel() * parameter.element_size()
            if kind is None and parameter.ndim >= 2:
                not_quantized[f"{name}.{parameter_name}"] = f"{tuple(parameter.shape)} {dtype}"
    return {
        "class": type(model).__name__,
        "size_bytes": dict(size_bytes),
        "not_quantized": not_quantized,
    }
