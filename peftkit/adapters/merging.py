"""Fold an adapter into the weights and return a plain 16- or 32-bit transformers model."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peftkit.anatomy import output_modules
from peftkit.backbones.quantization import dequantized_weight, quantization_of, stores_conv1d
from peftkit.errors import ConfigError, NonFiniteError
from peftkit.files import staged_directory
from peftkit.methods.method import Method, method_of
from peftkit.modes import evaluation_mode
from peftkit.recording import note


def merge(
    model: PeftModel,
    dtype: torch.dtype = torch.bfloat16,
    *,
    probe: Mapping[str, Tensor] | None = None,
) -> PreTrainedModel:
    """Return a new, plain transformers model that computes what the adapted model computes.

    `model` stays as it is.

    Each adapted weight is dequantised, gets its update in float32 and is rounded once, to `dtype`:
    W' = W + (alpha / r) B A for LoRA (arXiv:2106.09685, section 4.1), and what PEFT defines for its
    variants; W' = W + s P Λ Q for AdaLoRA (arXiv:2303.10512); W' = l * W for IA3
    (arXiv:2205.05638). Nothing is ever merged into a 4- or 8-bit weight, which would erase most of
    a small update.

    ``record(merged)["merge"]`` holds the largest absolute difference between the two models'
    outputs on the probe batch ("largest_logit_difference"), and the largest absolute output beside
    it.

    Args:
        model: What `attach` or `load` returned, with one active adapter that changes
            weights.
        dtype: torch.bfloat16, torch.float16 or torch.float32.
        probe: Keyword arguments of one forward call, each of shape (batch, ...); by default 2 x 16
            tokens drawn at random.

    Raises:
        ConfigError: the model has no adapter that can be merged, or `dtype` is another.
        NonFiniteError: a merged weight is NaN or infinite.
    """
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ConfigError(
            f"cannot merge into {dtype}; choose torch.bfloat16, torch.float16 or torch.float32"
        )
    name = _adapter_to_merge(model)
    backbone: PreTrainedModel = model.get_base_model()
    state = _merged_state(backbone, model.peft_config[name], name, dtype)
    merged = _plain_model(backbone, state, dtype)
    note(merged, "merge", {"dtype": str(dtype), **_largest_difference(model, merged, probe)})
    return merged


def _merged_state(
    backbone: PreTrainedModel, config: PeftConfig, name: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return the weights of the merged model in `dtype`.

    Raises:
        NonFiniteError: one is NaN or infinite.
    """
    state: dict[str, Tensor] = {}
    with torch.no_grad():
        for key, tensor in _merged_parameters(backbone, method_of(config), config, name):
            if tensor.is_floating_point():
                state[key] = tensor.to(dtype, copy=True)
            else:
                state[key] = tensor.clone()
            if not bool(torch.isfinite(state[key]).all()):
                raise NonFiniteError(f"the merged weight {key} is not finite in {dtype}")
    return state


def _plain_model(
    backbone: PreTrainedModel, state: Mapping[str, Tensor], dtype: torch.dtype
) -> PreTrainedModel:
    """Return a frozen model of the backbone's class with the weights `state`."""
    config = copy.deepcopy(backbone.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = dtype
    if _is_untied(backbone, state):
        config.get_text_config().tie_word_embeddings = False
    with init_empty_weights(include_buffers=False):
        merged: PreTrainedModel = type(backbone)(config)
    merged.load_state_dict(state, strict=False, assign=True)
    merged.tie_weights()
    if getattr(backbone, "generation_config", None) is not None:
        merged.generation_config = copy.deepcopy(backbone.generation_config)
    _copy_buffers(backbone, merged)
    missing = [key for key, parameter in merged.named_parameters() if parameter.is_meta]
    assert not missing, f"no weight for {missing[:3]}"
    merged.requires_grad_(False)
    merged.eval()
    return merged


def _adapter_to_merge(model: PeftModel) -> str:
    """Return the name of the one active adapter.

    Raises:
        ConfigError: there is none, there are several, or it cannot be merged.
    """
    if not isinstance(model, PeftModel):
        raise ConfigError(
            f"{type(model).__name__} has no active adapter to merge; attach or load returns a "
            "model that has one"
        )
    active = list(model.active_adapters)
    if len(active) > 1:
        raise ConfigError(
            f"{', '.join(active)} are active, and one adapter is merged at a time; choose it with "
            "model.set_adapter(name)"
        )
    method_of(model.peft_config[active[0]]).check_mergeable(model, active[0])
    return str(active[0])


def save_merged(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path
) -> None:
    """Write a merged model with its tokenizer, for transformers, vLLM or llama.cpp."""
    with staged_directory(directory) as stage:
        model.save_pretrained(stage)
        tokenizer.save_pretrained(stage)


def _merged_parameters(
    module: nn.Module, method: Method, config: PeftConfig, name: str, prefix: str = ""
) -> Iterator[tuple[str, Tensor]]:
    """Yield names and values of the plain model's weights.

    Quantised weights are dequantised, adapted ones merged, and trained heads are in their places.
    """
    wrapped = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    is_conv1d = stores_conv1d(wrapped)
    if isinstance(module, BaseTunerLayer) and name in module._get_available_adapters():
        module = method.merged_layer(module, _float_copy(wrapped), config, name)
    else:
        module = wrapped
    if isinstance(module, ModulesToSaveWrapper):
        trained = module.modules_to_save
        module = trained[name] if name in trained else module.original_module  # noqa: SIM401
    for key, parameter in module.named_parameters(recurse=False):
        is_quantized = key == "weight" and quantization_of(module) is not None
        tensor = dequantized_weight(module) if is_quantized else parameter.detach()
        if is_conv1d and key == "weight":
            tensor = tensor.T.contiguous()
        yield prefix + key, tensor
    for key, buffer in module.named_buffers(recurse=False):
        if key not in module._non_persistent_buffers_set:
            yield prefix + key, buffer
    for key, child in module.named_children():
        yield from _merged_parameters(child, method, config, name, f"{prefix}{key}.")


def _is_untied(backbone: PreTrainedModel, state: Mapping[str, Tensor]) -> bool:
    """Return whether two tied embeddings differ now, because one of them got an update."""
    if not any(output_modules(backbone)):
        return False
    names = {id(module): name for name, module in backbone.named_modules()}
    weights = []
    for module in (backbone.get_input_embeddings(), backbone.get_output_embeddings()):
        key = f"{names.get(id(module))}.weight"
        if key in state:
            weights.append(state[key])
    return len(weights) == 2 and not torch.equal(*weights)


def _float_copy(base: nn.Module) -> nn.Module:
    """Return a float32 copy of a layer: a dequantised ``nn.Linear`` for a quantised one."""
    if quantization_of(base) is None:
        return copy.deepcopy(base).float()
    weight = dequantized_weight(base).float()
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=base.bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if isinstance(base.bias, Tensor):
        linear.bias = nn.Parameter(base.bias.detach().float(), requires_grad=False)
    return linear


def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
    """Copy buffers, such as rotary frequencies that were stretched after loading."""
    target.to(next(source.parameters()).device)
    values = dict(source.named_buffers())
    for name, buffer in target.named_buffers():
        if name in values:
            buffer.copy_(values[name])


def _random_tokens(model: PreTrainedModel) -> dict[str, Tensor]:
    size = getattr(model.config.get_text_config(), "vocab_size", 0)
    if model.main_input_name != "input_ids" or not size:
        return {}
    ids = torch.randint(size, (2, 16), generator=torch.Generator().manual_seed(0))
    if model.config.is_encoder_decoder:
        return {"input_ids": ids, "decoder_input_ids": ids}
    return {"input_ids": ids}


def _largest_difference(
    adapted: PeftModel, merged: PreTrainedModel, probe: Mapping[str, Tensor] | None
) -> dict[str, Any]:
    batch = _random_tokens(merged) if probe is None else probe
    on_device = {name: value.to(merged.device) for name, value in batch.items()}
    try:
        with torch.no_grad(), evaluation_mode(adapted):
            expected = adapted(**on_device).logits.float()
            found = merged(**on_device).logits.float()
    except Exception as problem:
        if probe is not None:
            raise ConfigError(
                f"the probe batch does not fit {type(merged).__name__}: {problem}"
            ) from problem
        why = "no probe batch was given, and the model asks for more than random tokens"
        return {"largest_logit_difference": None, "why": why}
    return {
        "largest_logit_difference": float((expected - found).abs().max()),
        "largest_logit": float(expected.abs().max()),
    }
