"""Combine adapters at the level of their files, without a backbone: sums of updates, and means of
parameters.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor
from torch.nn import functional as F

from peftkit.errors import AdapterFileError, BaseMismatchError, ConfigError
from peftkit.files import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    read_header,
    read_json,
    read_tensors,
    recover,
    staged_directory,
    write_json,
    write_tensors,
)

_RELATIVE_TOLERANCE = 2**-7  # of the backbone's sampled weights: one rounding to bfloat16
_FACTORS = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))
_ENDS = tuple(f".{name}" for pair in _FACTORS for name in pair)
_PLAIN: dict[str, Any] = {  # what a LoRA adapter's config says where B A times a scale is all of its update
    "alora_invocation_tokens": None, "arrow_config": None, "kasa_config": None, "layer_replication": None,
    "lora_bias": False, "monteclora_config": None, "target_parameters": None, "trainable_token_indices": None,
    "use_bdlora": None, "use_dora": False, "use_qalora": False, "velora_config": None,
}  # fmt: skip
_WHICH_LAYERS = ("exclude_modules", "layers_pattern", "layers_to_transform")
_NOT_COMPUTED_WITH = (  # fields that may differ between adapters whose parameters are averaged
    "auto_mapping", "base_model_name_or_path", "deltaT", "dropout", "inference_mode", "lora_dropout", "orth_reg_weight",
    "peft_version", "revision", "target_modules", "tfinal", "tinit", "total_step",
)  # fmt: skip


@dataclass(frozen=True)
class _Adapter:
    path: Path
    weight: float
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    about: dict[
        str, Any
    ]  # what peftkit has written about the backbone; empty in an adapter that somebody else has saved


def combine(
    adapters: Mapping[str | Path, float],
    output: str | Path,
    *,
    how: Literal["update", "parameters"] = "update",
    normalize: bool | None = None,
    verify_backbone: bool = True,
) -> None:
    """Combine adapters of one backbone into one, and write it as a PEFT directory, whole or not at
    all.

    "update" adds up what plain LoRA adapters (arXiv:2106.09685) do to the weights: sum_i w_i
    (alpha_i / r_i) B_i A_i, exactly, as one LoRA adapter whose rank is the sum of theirs and whose
    scale is 1. A layer that an adapter leaves alone counts as zero. A negative weight takes an
    update away: task arithmetic (arXiv:2212.04089).

    "parameters" takes the mean of every parameter by itself: a soup (arXiv:2203.05482) of adapters
    of any one method and of equal shapes, trained from the same start. The mean of two LoRA
    adapters' factors is not the mean of their updates.

    What is trained whole, such as a head, is averaged in both, with weights that sum to 1.

    Args:
        adapters: Adapter directories and their weights; a weight is finite and not 0.
        output: The directory to write; other files in it stay.
        how: What is added up.
        normalize: Divide the weights by their sum; None does so for "parameters" only.
        verify_backbone: False combines adapters of different backbones of the same shapes.

    Raises:
        ConfigError: a weight is no number or 0, the weights sum to 0 where they are normalised,
            `output` is one of the adapters, or they cannot be combined in this way.
        AdapterFileError: a directory is incomplete or damaged, or shapes differ.
        BaseMismatchError: the adapters were trained on different backbones.
        NonFiniteError: a weight is NaN or infinite. Nothing is written.
    """
    if how not in ("update", "parameters"):
        raise ConfigError(f"how is {how!r}; it is 'update' or 'parameters'")
    _check_arguments(adapters, Path(output))
    given = [_read(Path(path), weight) for path, weight in adapters.items()]
    for other in given[1:]:
        kinds = [str(each.config.get("peft_type")) for each in (given[0], other)]
        if kinds[0] != kinds[1]:
            raise ConfigError(
                f"{given[0].path} is a {kinds[0]} adapter, and {other.path} a {kinds[1]} adapter"
            )
        if verify_backbone:
            _check_same_backbone(given[0], other)
    weights = [each.weight for each in given]
    if normalize or (normalize is None and how == "parameters"):
        weights = _normalized(weights, "the weights")
    config, tensors = (_sum_of_updates if how == "update" else _sum_of_parameters)(given, weights)
    quantizations = {each.about.get("quantization") for each in given}
    about = given[0].about | {
        "quantization": quantizations.pop() if len(quantizations) == 1 else None
    }
    header = {"peftkit": json.dumps(about, sort_keys=True)} if given[0].about else {}
    with staged_directory(Path(output)) as stage:
        write_json(stage / CONFIG_NAME, config)
        write_tensors(stage / WEIGHTS_NAME, tensors, header)


def _check_arguments(adapters: Mapping[str | Path, float], output: Path) -> None:
    if not adapters:
        raise ConfigError("there is no adapter to combine")
    for path, weight in adapters.items():
        if not math.isfinite(weight) or weight == 0:
            raise ConfigError(
                f"the weight of {path} is {weight}; it must be a finite number, and not 0"
            )
        if Path(path).resolve() == output.resolve():
            raise ConfigError(f"{output} is one of the adapters; name another directory to write")


def _read(path: Path, weight: float) -> _Adapter:
    recover(path)
    config = read_json(path / CONFIG_NAME)
    metadata, _ = read_header(path / WEIGHTS_NAME)
    try:
        about = dict(json.loads(metadata["peftkit"])) if "peftkit" in metadata else {}
        list(map(abs, about["backbone"]["samples"]) if about else ())
    except (ValueError, TypeError, KeyError) as problem:
        raise AdapterFileError(
            f"{path}: what its header says of the backbone cannot be read: {problem!r}"
        ) from problem
    return _Adapter(path, weight, config, read_tensors(path / WEIGHTS_NAME), about)


def _check_same_backbone(one: _Adapter, other: _Adapter) -> None:
    """Compare what the headers say of the backbones, or, where one of them says nothing, their
    names in the configs.
    """
    override = "pass verify_backbone=False to combine them all the same"
    if not (one.about and other.about):
        key = "base_model_name_or_path"
        if one.config.get(key) != other.config.get(key):
            raise BaseMismatchError(
                f"{one.path} names the backbone {one.config.get(key)}, and {other.path} {other.config.get(key)}; if that is "
                f"the same model under two names, {override}"
            )
        return
    mine, theirs = (dict(each.about["backbone"]) for each in (one, other))
    samples, others = mine.pop("samples"), theirs.pop("samples")
    for key in mine.keys() | theirs.keys():
        if mine.get(key) != theirs.get(key):
            raise BaseMismatchError(
                f"{one.path} was trained on a backbone with {key} {mine.get(key)}, and {other.path} with {theirs.get(key)}"
            )
    near = _RELATIVE_TOLERANCE * max(map(abs, samples), default=0.0)
    pairs = zip(samples, others, strict=False)
    if not all(math.isclose(a, b, rel_tol=_RELATIVE_TOLERANCE, abs_tol=near) for a, b in pairs):
        raise BaseMismatchError(
            f"{one.path} and {other.path} were trained on backbones of the same shape with different weights; {override}"
        )


def _normalized(weights: Sequence[float], what: str) -> list[float]:
    total = math.fsum(weights)
    if abs(total) < 1e-9 * max(map(abs, weights)):
        raise ConfigError(f"{what} cannot be normalised: they sum to 0")
    return [weight / total for weight in weights]


def _sum_of_updates(
    given: Sequence[_Adapter], weights: Sequence[float]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and tensors of one LoRA adapter whose update is the weighted sum of the
    updates.
    """
    for each in given:
        _check_plain(each)
    parts = [_factors(each) for each in given]
    layers = dict.fromkeys(layer for part in parts for layer in part)
    stacked: dict[tuple[str, str, str], tuple[Tensor, Tensor]] = {}
    for layer in layers:
        present = [
            (part[layer], weight)
            for part, weight in zip(parts, weights, strict=True)
            if layer in part
        ]
        down = [a for (a, _, _), _ in present]
        up = [weight * scale * b for (_, b, scale), weight in present]
        _check_stackable(layer[0], down, up)
        stacked[layer] = torch.cat(down), torch.cat(up, dim=1)
    rank = max(a.shape[0] for a, _ in stacked.values())
    tensors = _mean_of_whole(given)
    for (name, a_key, b_key), (a, b) in stacked.items():
        missing = rank - a.shape[0]
        tensors[f"{name}.{a_key}"] = F.pad(a, [0, 0] * (a.dim() - 1) + [0, missing])
        tensors[f"{name}.{b_key}"] = F.pad(b, [0, 0] * (b.dim() - 2) + [0, missing])
    changed = {
        "r": rank, "lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False,
        "init_lora_weights": True, **_targets(given, [name for name, _, _ in layers]),
        "fan_in_fan_out": any(each.config.get("fan_in_fan_out") for each in given),
    }  # fmt: skip
    return given[0].config | changed, tensors


def _check_plain(adapter: _Adapter) -> None:
    """Refuse what is more, or else, than W + scale B A with the backbone's own W."""
    kind = adapter.config.get("peft_type")
    if kind != "LORA":
        advice = (
            "; write it as a LoRA adapter with peftkit.export_lora first"
            if kind == "ADALORA"
            else ""
        )
        raise ConfigError(
            f"{adapter.path} is a {kind} adapter, whose update cannot be added up{advice}"
        )
    for key, plain in _PLAIN.items():
        if (adapter.config.get(key) or plain) != plain:
            raise ConfigError(
                f"{adapter.path} has {key}={adapter.config[key]!r}, so that its update is not B A alone and cannot be added "
                "up; take how='parameters' for adapters of one start"
            )
    init = adapter.config.get("init_lora_weights")
    if isinstance(init, str) and init not in ("gaussian", "orthogonal", "eva"):
        raise ConfigError(
            f"{adapter.path} has init_lora_weights={init!r}, so that its update may stand on changed weights of the backbone"
        )


def _factors(adapter: _Adapter) -> dict[tuple[str, str, str], tuple[Tensor, Tensor, float]]:
    """Return A, B and the scale of each layer, in float32, by the layer's name and the names of its
    two factors.
    """
    config, found = adapter.config, {}
    for key, tensor in adapter.tensors.items():
        pair = next((pair for pair in _FACTORS if key.endswith(f".{pair[0]}")), None)
        if pair is None:
            continue
        name = key.removesuffix(f".{pair[0]}")
        other = adapter.tensors.get(f"{name}.{pair[1]}")
        if other is None:
            raise AdapterFileError(f"{adapter.path / WEIGHTS_NAME}: {name}.{pair[1]} is missing")
        pattern = config.get("alpha_pattern") or {}
        alpha = pattern.get(get_pattern_key(pattern.keys(), _layer(name)), config["lora_alpha"])
        rank = tensor.shape[0]
        scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        found[name, *pair] = tensor.float(), other.float(), scale
    odd = [key for key in adapter.tensors if ".lora_" in key and not key.endswith(_ENDS)]
    if odd or not found:
        raise AdapterFileError(
            f"{adapter.path / WEIGHTS_NAME} is not plain LoRA: {(odd or ['it has no factors'])[0]}"
        )
    return found


def _check_stackable(name: str, down: Sequence[Tensor], up: Sequence[Tensor]) -> None:
    if len({(a.shape[1:], b.shape[0], b.shape[2:]) for a, b in zip(down, up, strict=True)}) > 1:
        raise AdapterFileError(
            f"the adapters have different shapes at {_layer(name)}; they belong to different backbones"
        )
    if any(a.shape[0] != b.shape[1] for a, b in zip(down, up, strict=True)):
        raise ConfigError(
            f"{_layer(name)} is a convolution in groups, whose updates cannot be added up"
        )


def _layer(name: str) -> str:
    return name.removeprefix("base_model.model.")


def _targets(given: Sequence[_Adapter], names: Sequence[str]) -> dict[str, Any]:
    """Return the fields that choose the layers: those of the adapters where they agree, else the
    layers by name.
    """
    first = given[0].config
    agree = all(each.config.get(key) == first.get(key) for each in given for key in _WHICH_LAYERS)
    targets = [each.config.get("target_modules") for each in given]
    if agree and all(isinstance(target, list) for target in targets):
        return {"target_modules": sorted({name for target in targets for name in target})}  # type: ignore[union-attr]
    if agree and all(target == targets[0] for target in targets):
        return {}
    return {
        "target_modules": sorted({_layer(name) for name in names}),
        **dict.fromkeys(_WHICH_LAYERS),
    }


def _mean_of_whole(given: Sequence[_Adapter]) -> dict[str, Tensor]:
    """Return the mean of what is no factor of LoRA: heads and biases, which are trained whole."""
    parts = [
        {key: value for key, value in each.tensors.items() if not key.endswith(_ENDS)}
        for each in given
    ]
    if not any(parts):
        return {}
    weights = _normalized(
        [each.weight for each in given], "the weights of heads and biases, which are averaged,"
    )
    return _weighted_sum(given, parts, weights)


def _sum_of_parameters(
    given: Sequence[_Adapter], weights: Sequence[float]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and tensors of an adapter whose parameters are weighted sums."""
    first = given[0]
    for other in given[1:]:
        differ = [
            key
            for key in sorted(first.config.keys() | other.config.keys())
            if key not in _NOT_COMPUTED_WITH
            and (first.config.get(key) or None) != (other.config.get(key) or None)
        ]
        if differ:
            raise ConfigError(
                f"{first.path} and {other.path} differ in {', '.join(differ)}, so that the mean of their parameters means "
                "nothing; take how='update' for LoRA"
            )
    return first.config, _weighted_sum(given, [each.tensors for each in given], weights)


def _weighted_sum(
    given: Sequence[_Adapter], parts: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
) -> dict[str, Tensor]:
    """Return sum_i w_i x_i of each tensor, computed in float64; counters are rounded."""
    for other, part in zip(given[1:], parts[1:], strict=True):
        shapes, others = (
            {key: tuple(value.shape) for key, value in each.items()} for each in (parts[0], part)
        )
        if shapes != others:
            key = next(
                key
                for key in sorted(shapes.keys() | others.keys())
                if shapes.get(key) != others.get(key)
            )
            raise AdapterFileError(
                f"{key} has shape {shapes.get(key)} in {given[0].path} and {others.get(key)} in {other.path} (None: it is "
                "missing there); parameters are averaged where shapes are equal"
            )
    summed = {}
    for key, like in parts[0].items():
        total = sum(
            (w * part[key].double() for w, part in zip(weights, parts, strict=True)),
            torch.zeros(()).double(),
        )
        summed[key] = (
            total.to(like.dtype) if like.is_floating_point() else total.round().to(like.dtype)
        )
    return summed
