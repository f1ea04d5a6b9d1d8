"""Sums of the updates of LoRA adapters: sum_i w_i (alpha_i / r_i) B_i A_i, as one LoRA adapter."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor
from torch.nn import functional as F

from peftkit.errors import AdapterFileError, ConfigError
from peftkit.files import WEIGHTS_NAME
from peftkit.methods.stored import StoredAdapter, normalized, weighted_sum

# The two factors of an update, as linear layers and embeddings name them in a file.
_FACTORS = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))
_ENDS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
# What a config says where B A times a scale is the whole update.
_PLAIN: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "kasa_config": None,
    "layer_replication": None,
    "lora_bias": False,
    "monteclora_config": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "velora_config": None,
}
_WHICH_LAYERS = ("exclude_modules", "layers_pattern", "layers_to_transform")


@dataclass(frozen=True)
class Update:
    """The update of one layer in one adapter: scale x B A."""

    a: Tensor
    """(r, in), or (r, in, kernel ...) of a convolution; float32."""
    b: Tensor
    """(out, r), or (out, r, 1 ...); float32."""
    scale: float


class Layer(NamedTuple):
    """A layer in a file: its name, and the names of its two factors."""

    name: str
    a_key: str
    b_key: str

    @property
    def module(self) -> str:
        """The layer's name in the backbone."""
        return self.name.removeprefix("base_model.model.")


def sum_of_updates(
    adapters: Sequence[StoredAdapter], weights: Sequence[float]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and tensors of one LoRA adapter whose update is the weighted sum of several.

    sum_i w_i s_i B_i A_i = [w_1 s_1 B_1, w_2 s_2 B_2, ...] [A_1; A_2; ...], so the factors are put
    behind each other, and the new rank is the sum of the ranks. All layers get the largest rank,
    filled up with zeros.

    Raises:
        ConfigError: an update is more than scale x B A, or belongs to changed weights.
        AdapterFileError: a factor is missing, or shapes differ.
    """
    for adapter in adapters:
        _check_plain(adapter)
    updates = [_updates(adapter) for adapter in adapters]
    layers: dict[Layer, None] = {}
    for each in updates:
        layers |= dict.fromkeys(each)
    stacked: dict[Layer, tuple[Tensor, Tensor]] = {}
    for layer in layers:
        down, up = [], []
        for each, weight in zip(updates, weights, strict=True):
            if layer in each:
                update = each[layer]
                down.append(update.a)
                up.append(weight * update.scale * update.b)
        _check_stackable(layer, down, up)
        stacked[layer] = torch.cat(down), torch.cat(up, dim=1)  # (sum of r, in), (out, sum of r)
    rank = max(a.shape[0] for a, _ in stacked.values())
    tensors = _mean_of_whole(adapters)
    for layer, (a, b) in stacked.items():
        missing = rank - a.shape[0]
        tensors[f"{layer.name}.{layer.a_key}"] = F.pad(a, [0, 0] * (a.dim() - 1) + [0, missing])
        tensors[f"{layer.name}.{layer.b_key}"] = F.pad(b, [0, 0] * (b.dim() - 2) + [0, missing])
    changed = {
        "r": rank,
        "lora_alpha": rank,  # so the scale is 1
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "init_lora_weights": True,
        "fan_in_fan_out": any(adapter.config.get("fan_in_fan_out") for adapter in adapters),
    }
    return adapters[0].config | changed | _targets(adapters, list(layers)), tensors


def _check_plain(adapter: StoredAdapter) -> None:
    """Refuse an update that is more than scale x B A beside the backbone's own weight."""
    for key, plain in _PLAIN.items():
        if (adapter.config.get(key) or plain) != plain:
            raise ConfigError(
                f"{adapter.path} has {key}={adapter.config[key]!r}, so that its update is not B A "
                "alone and cannot be added up; take how='parameters' for adapters of one start"
            )
    init = adapter.config.get("init_lora_weights")
    if isinstance(init, str) and init not in ("gaussian", "orthogonal", "eva"):
        raise ConfigError(
            f"{adapter.path} has init_lora_weights={init!r}, so that its update may belong to "
            "changed weights of the backbone"
        )


def _updates(adapter: StoredAdapter) -> dict[Layer, Update]:
    """Return the update of each layer of an adapter."""
    config, path = adapter.config, adapter.path / WEIGHTS_NAME
    alphas = config.get("alpha_pattern") or {}
    found: dict[Layer, Update] = {}
    for key, a in adapter.tensors.items():
        for a_key, b_key in _FACTORS:
            if not key.endswith(f".{a_key}"):
                continue
            layer = Layer(key.removesuffix(f".{a_key}"), a_key, b_key)
            b = adapter.tensors.get(f"{layer.name}.{b_key}")
            if b is None:
                raise AdapterFileError(f"{path}: {layer.name}.{b_key} is missing")
            rank = a.shape[0]
            alpha = alphas.get(get_pattern_key(alphas.keys(), layer.module), config["lora_alpha"])
            scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
            found[layer] = Update(a.float(), b.float(), scale)
    for key in adapter.tensors:
        if ".lora_" in key and not key.endswith(_ENDS):
            raise AdapterFileError(f"{path} is not plain LoRA: {key}")
    if not found:
        raise AdapterFileError(f"{path} is not plain LoRA: it has no factors")
    return found


def _check_stackable(layer: Layer, down: Sequence[Tensor], up: Sequence[Tensor]) -> None:
    shapes = {(a.shape[1:], b.shape[0], b.shape[2:]) for a, b in zip(down, up, strict=True)}
    if len(shapes) > 1:
        raise AdapterFileError(
            f"the adapters have different shapes at {layer.module}; they belong to different "
            "backbones"
        )
    for a, b in zip(down, up, strict=True):
        if a.shape[0] != b.shape[1]:
            raise ConfigError(
                f"{layer.module} is a convolution in groups, whose updates cannot be added up"
            )


def _targets(adapters: Sequence[StoredAdapter], layers: Sequence[Layer]) -> dict[str, Any]:
    """Return the fields that choose the layers.

    These are the adapters' own where they agree, else the layers by name.
    """
    first = adapters[0].config
    agree = True
    for adapter in adapters:
        for key in _WHICH_LAYERS:
            agree = agree and adapter.config.get(key) == first.get(key)
    targets: list[Any] = [adapter.config.get("target_modules") for adapter in adapters]
    if agree and all(isinstance(target, list) for target in targets):
        return {"target_modules": sorted(set().union(*targets))}
    if agree and all(target == targets[0] for target in targets):
        return {}
    names = {layer.module for layer in layers}
    return {"target_modules": sorted(names), **dict.fromkeys(_WHICH_LAYERS)}


def _mean_of_whole(adapters: Sequence[StoredAdapter]) -> dict[str, Tensor]:
    """Return the mean of the tensors that are not factors: heads and biases, trained whole."""
    parts = []
    for adapter in adapters:
        whole = {key: each for key, each in adapter.tensors.items() if not key.endswith(_ENDS)}
        parts.append(whole)
    if not any(parts):
        return {}
    what = "the weights of heads and biases, which are averaged,"
    return weighted_sum(adapters, parts, normalized([each.weight for each in adapters], what))
