"""Adapters as their files hold them, without a backbone, and weighted sums of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftkit.errors import AdapterFileError, ConfigError


@dataclass(frozen=True)
class StoredAdapter:
    """The contents of an adapter directory, and the weight that it has in a sum."""

    path: Path
    weight: float
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    about: dict[str, Any]
    """What peftkit wrote about the backbone; empty if someone else saved the adapter."""


def normalized(weights: Sequence[float], what: str) -> list[float]:
    """Return the weights divided by their sum.

    Raises:
        ConfigError: they sum to 0; `what` names them in the message.
    """
    total = math.fsum(weights)
    if abs(total) < 1e-9 * max(map(abs, weights)):
        raise ConfigError(f"{what} cannot be normalised: they sum to 0")
    return [weight / total for weight in weights]


def weighted_sum(
    adapters: Sequence[StoredAdapter],
    parts: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
) -> dict[str, Tensor]:
    """Return sum_i w_i x_i of each tensor, computed in float64; counters are rounded.

    Args:
        adapters: Where the tensors come from, for messages.
        parts: For each adapter, the tensors to add up, by name.
        weights: The w_i.

    Raises:
        AdapterFileError: a tensor is missing in one of them, or has another shape.
    """
    for adapter, part in zip(adapters[1:], parts[1:], strict=True):
        _check_same_shapes(adapters[0], parts[0], adapter, part)
    summed = {}
    for key, like in parts[0].items():
        total = torch.zeros((), dtype=torch.float64)
        for weight, part in zip(weights, parts, strict=True):
            total = total + weight * part[key].double()
        if not like.is_floating_point():
            total = total.round()
        summed[key] = total.to(like.dtype)
    return summed


def _check_same_shapes(
    one: StoredAdapter,
    part: Mapping[str, Tensor],
    other: StoredAdapter,
    other_part: Mapping[str, Tensor],
) -> None:
    for key in sorted(part.keys() | other_part.keys()):
        shape = tuple(part[key].shape) if key in part else None
        other_shape = tuple(other_part[key].shape) if key in other_part else None
        if shape != other_shape:
            raise AdapterFileError(
                f"{key} has shape {shape} in {one.path} and {other_shape} in {other.path} (None: "
                "it is missing there); parameters are averaged where shapes are equal"
            )
