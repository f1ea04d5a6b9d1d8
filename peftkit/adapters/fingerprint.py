"""Tell whether an adapter belongs to a backbone: its shape, and a sample of its embedding, the same
in every precision.
"""

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from peftkit.errors import AdapterFileError, BaseMismatchError

_SAMPLES = 64
_RELATIVE_TOLERANCE = 2**-7  # one rounding to bfloat16
_WIDTHS = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")


def of(model: nn.Module) -> dict[str, Any]:
    """Return model type, widths and `_SAMPLES` values spread over the input embedding, which is
    never quantised.
    """
    config = getattr(model, "config", None)
    text = (
        config.get_text_config()
        if config is not None and hasattr(config, "get_text_config")
        else config
    )
    widths = {key: getattr(text, key, None) for key in _WIDTHS}
    return {**widths, "samples": _samples(model)}


def as_metadata(fingerprint: dict[str, Any], quantization: str | None) -> str:
    """Return what `save` writes into a safetensors header about the backbone."""
    return json.dumps({"backbone": fingerprint, "quantization": quantization}, sort_keys=True)


def check(metadata: str, model: nn.Module, path: Path) -> None:
    """Compare what a safetensors header says of the backbone with `model`.

    Raises:
        AdapterFileError: the header is not what `as_metadata` writes.
        BaseMismatchError: they differ in type, width or weights.
    """
    try:
        saved = dict(json.loads(metadata)["backbone"])
        samples = [float(value) for value in saved["samples"]]
    except (ValueError, KeyError, TypeError) as problem:
        raise AdapterFileError(
            f"{path}: what its header says of the backbone cannot be read: {problem!r}"
        ) from problem
    here = of(model)
    for key in _WIDTHS:
        if saved.get(key) != here[key]:
            raise BaseMismatchError(
                f"{path} was trained on a backbone with {key} {saved.get(key)}; this one has {here[key]}"
            )
    pairs = list(zip(samples, here["samples"], strict=False))
    scale = max((abs(a) for a, _ in pairs), default=0.0)
    if any(
        not math.isclose(a, b, rel_tol=_RELATIVE_TOLERANCE, abs_tol=_RELATIVE_TOLERANCE * scale)
        for a, b in pairs
    ):
        raise BaseMismatchError(
            f"{path} was trained on a backbone of the same shape with other weights; "
            "load that one, or pass verify_backbone=False to use this one all the same"
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
        weight = next(
            parameter for parameter in model.parameters() if parameter.is_floating_point()
        )
    flat = weight.detach().reshape(-1)
    return [
        float(value) for value in flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES].float().cpu()
    ]


def _before_training(model: nn.Module, module: Any) -> Any:
    """Return what a module was, where it is part of a trained copy that PEFT has put in the place
    of a larger module.
    """
    for wrapper in model.modules():
        copies = getattr(wrapper, "modules_to_save", None)
        for copy in copies.values() if isinstance(copies, nn.ModuleDict) else ():
            name = next((name for name, part in copy.named_modules() if part is module), None)
            if name is not None:
                return wrapper.original_module.get_submodule(name)  # type: ignore[union-attr]
    return module
