"""Converts prefixes that PEFT's own prefix tuning has trained, where both mean the same.

PEFT passes its keys and values to the model as a cache, so the real tokens have the positions n,
n + 1, ...; here they have 0, 1, ... For rotary positions R, the difference is a rotation of the
prefix's keys: ``(R(t + n) q) . k = (R(t) q) . (R(-n) k)``. Elsewhere the two are different
functions: with learned positions the real tokens differ, with windows PEFT's prefix leaves the
window, with ALiBi or relative biases it has a distance.
"""

import sys
from typing import Any

import torch
from peft import PrefixTuningConfig
from torch import Tensor, nn

from peftkit.anatomy.attention import Attention, attentions
from peftkit.errors import AdapterFileError
from peftkit.methods.prefix.config import PrefixConfig
from peftkit.methods.prefix.layer import CHILD

_WEIGHTS = "prompt_embeddings"


def convert(
    config: PrefixTuningConfig, tensors: dict[str, Tensor], model: nn.Module
) -> tuple[PrefixConfig, dict[str, Tensor]]:
    """Return config and weights of a prefix for `model` that computes what PEFT's computes on it.

    Args:
        config: PEFT's config.
        tensors: ``prompt_embeddings`` [n, layers * 2 * groups * width]: a key and a value for each
            layer in turn.
        model: A decoder with rotary positions and full attention.

    Raises:
        AdapterFileError: PEFT's prefix means something else on the model, or the shapes do not fit.
    """
    sites = attentions(model)
    reason = _difference(model, sites)
    if reason:
        raise AdapterFileError(
            f"PEFT's prefix tuning and peftkit's differ on {type(model).__name__}: {reason}; train "
            "a new one with PrefixConfig"
        )
    learned = tensors.get(_WEIGHTS)
    first = sites[0]
    size = len(sites) * 2 * first.groups * first.key_width
    if learned is None or learned.dim() != 2 or learned.shape[1] != size:
        shape = None if learned is None else tuple(learned.shape)
        raise AdapterFileError(
            f"{_WEIGHTS} has shape {shape}; {len(sites)} attentions with {first.groups} key-value "
            f"heads of {first.key_width} features need ({config.num_virtual_tokens}, {size})"
        )
    count = learned.shape[0]
    layers = learned.float().reshape(count, len(sites), 2, first.groups, first.key_width)
    layers = layers.permute(1, 2, 3, 0, 4)  # [layers, key and value, groups, n, width]
    converted = {}
    for site, (keys, values) in zip(sites, layers, strict=True):
        key = f"base_model.model.{site.name}.{CHILD}"
        converted[f"{key}.prefix_key"] = _rotated(keys, -count, model, site)
        converted[f"{key}.prefix_value"] = values.contiguous()
    ours = PrefixConfig(num_virtual_tokens=count, task_type=config.task_type)
    ours.base_model_name_or_path, ours.revision = config.base_model_name_or_path, config.revision
    ours.modules_to_save = getattr(config, "modules_to_save", None)
    for key, value in tensors.items():
        if key != _WEIGHTS:
            converted[key] = value
    return ours, converted


def _difference(model: nn.Module, sites: list[Attention]) -> str | None:
    """Return why PEFT's prefix means something else on a model than ours; None if it does not."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    has_encoder = getattr(config, "is_encoder_decoder", False)
    if not sites or has_encoder or any(site.kind == "cross" for site in sites):
        return "PEFT's reaches the decoder's self-attention alone"
    shapes = {(site.groups, site.key_width, site.value_width) for site in sites}
    if len(shapes) > 1 or sites[0].key_width != sites[0].value_width:
        return "its attentions differ in the shape of their keys and values"
    kinds = set(getattr(text, "layer_types", None) or ())
    if kinds - {"full_attention"} or (not kinds and getattr(text, "sliding_window", None)):
        return "it has attention over a window, which PEFT's prefix leaves"
    rotary = _rotary(model)
    if rotary is None or any(site.alibi for site in sites):
        return "its positions are not rotary, and PEFT's prefix moves those of the real tokens"
    if getattr(rotary, "rope_type", "default") in ("dynamic", "longrope"):
        return "its rotary angles depend on the length, to which PEFT's prefix counts"
    return None


def _rotary(model: nn.Module) -> nn.Module | None:
    found = [module for name, module in model.named_modules() if name.endswith("rotary_emb")]
    return found[0] if len(found) == 1 and hasattr(found[0], "inv_freq") else None


def _rotated(keys: Tensor, position: int, model: nn.Module, site: Attention) -> Tensor:
    """Return keys [groups, n, width], rotated as the model rotates a key at `position`."""
    rotary = _rotary(model)
    source = sys.modules[type(model.get_submodule(site.name)).__module__]
    apply = getattr(source, "apply_rotary_pos_emb", None)
    try:
        assert rotary is not None
        assert apply is not None

        def turn(x: Tensor, by: int) -> Tensor:
            device: Any = rotary.inv_freq.device
            x = x.to(device).unsqueeze(0)
            angles = rotary(x, torch.full((1, x.shape[2]), by, device=device))
            scale = getattr(rotary, "attention_scaling", 1.0)
            turned: Tensor = apply(x, x, *(part / scale for part in angles))[1]
            return turned[0].cpu()

        turned = turn(keys, position)
        understood = torch.allclose(turn(turned, -position), keys.cpu(), atol=1e-4)
    except (AssertionError, TypeError, RuntimeError, ValueError, AttributeError):
        understood = False
    if not understood:
        raise AdapterFileError(
            f"the rotary positions of {type(model).__name__} are not applied in a way that peftkit "
            "can undo; train a new prefix with PrefixConfig"
        )
    return turned.contiguous()
