"""Which backbone an adapter belongs to: its shape and a sample of its embedding.

The embedding is never quantised, so the fingerprint is the same in every precision.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from peftkit.errors import AdapterFileError, BaseMismatchError

_SAMPLES = 64
_TOLERANCE = 2**-7  # relative, of a sampled weight: one rounding to bfloat16
_WIDTHS = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")
_HEADER = "peftkit"  # the key of the safetensors header


def fingerprint_of(model: nn.Module) -> dict[str, Any]:
    """Return the model type, the widths and `_SAMPLES` values of the input embedding."""
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    widths = {key: getattr(config, key, None) for key in _WIDTHS}
    return {**widths, "samples": _samples(model)}


def header_of(model: nn.Module, quantization: str | None) -> dict[str, str]:
    """Return what `save` writes into a safetensors header about the backbone."""
    about = {"backbone": fingerprint_of(model), "quantization": quantization}
    return as_header(about)


def as_header(about: Mapping[str, Any]) -> dict[str, str]:
    """Return the safetensors header that `read_about` reads."""
    return {_HEADER: json.dumps(about, sort_keys=True)}


def read_about(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Return what a safetensors header says about the backbone; empty if someone else wrote it.

    Raises:
        AdapterFileError: the entry is not what `as_header` writes.
    """
    if _HEADER not in metadata:
        return {}
    try:
        about = dict(json.loads(metadata[_HEADER]))
        samples = about["backbone"]["samples"]
        about["backbone"]["samples"] = [float(value) for value in samples]
    except (ValueError, KeyError, TypeError) as problem:
        raise AdapterFileError(
            f"{path}: what its header says of the backbone cannot be read: {problem!r}"
        ) from problem
    return about


def differing_key(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Return the first key in which two fingerprints differ; None if they are of one backbone.

    The key is "samples" where two backbones have the same shape and different weights.
    """
    for key in _WIDTHS:
        if one.get(key) != other.get(key):
            return key
    largest = max((abs(value) for value in one["samples"]), default=0.0)
    for a, b in zip(one["samples"], other["samples"], strict=False):
        if not math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE * largest):
            return "samples"
    return None


def check_backbone(about: Mapping[str, Any], model: nn.Module, path: Path) -> None:
    """Compare what an adapter's header says of its backbone with `model`.

    Raises:
        BaseMismatchError: they differ in type, width or weights.
    """
    saved, here = about["backbone"], fingerprint_of(model)
    key = differing_key(saved, here)
    if key == "samples":
        raise BaseMismatchError(
            f"{path} was trained on a backbone of the same shape with other weights; "
            "load that one, or pass verify_backbone=False to use this one all the same"
        )
    if key is not None:
        raise BaseMismatchError(
            f"{path} was trained on a backbone with {key} {saved.get(key)}; this one has "
            f"{here[key]}"
        )


def _samples(model: nn.Module) -> list[float]:
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except NotImplementedError:
        embedding = None
    embedding = _before_training(model, embedding)
    for wrapped in ("original_module", "base_layer"):  # an embedding that is trained, or adapted
        embedding = getattr(embedding, wrapped, embedding)
    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, Tensor):
        weight = next(p for p in model.parameters() if p.is_floating_point())
    flat = weight.detach().reshape(-1)
    stride = max(1, flat.numel() // _SAMPLES)
    values: list[float] = flat[::stride][:_SAMPLES].float().cpu().tolist()
    return values


def _before_training(model: nn.Module, module: Any) -> Any:
    """Return the frozen original of `module`, where PEFT trains a copy of a larger part with it."""
    for wrapper in model.modules():
        copies = getattr(wrapper, "modules_to_save", None)
        if not isinstance(copies, nn.ModuleDict):
            continue
        for copy in copies.values():
            for name, part in copy.named_modules():
                if part is module:
                    original: Any = wrapper.original_module
                    return original.get_submodule(name)
    return module
