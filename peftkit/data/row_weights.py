"""The weight of a row in the loss: from its column to a batch.

A row with weight 2 counts as much as two rows. A batch has weights only where one is not 1.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from peftkit.data.row_values import quote
from peftkit.errors import DataError

_COUNT = "weighted"


def row_weight(row: Mapping[str, Any]) -> float:
    """Return the weight of a row: its column ``weight``, or 1 if it has none or a blank one.

    Raises:
        DataError: the weight is not a number above 0.
    """
    weight = row.get("weight")
    if weight is None or weight == "":
        return 1.0
    number = _number(weight)
    if not 0 < number < math.inf:
        raise DataError(
            f"'weight', the row's weight in the loss, is {quote(weight)}; it must be a number "
            "above 0"
        )
    return number


def _number(value: object) -> float:
    """Return the number that a value is, or that a CSV file's text spells; else one that is not."""
    is_plain = isinstance(value, int | float | str) and not isinstance(value, bool)
    try:
        return float(value) if is_plain else math.nan  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        return math.nan


def counted_weight(row: Mapping[str, Any], counts: Counter[str]) -> float:
    """Return the weight of a row, and count the row if that is not 1."""
    weight = row_weight(row)
    counts[_COUNT] += weight != 1
    return weight


def describe_weights(counts: Counter[str]) -> str:
    """Return how many rows have another weight than 1, for the end of a remark; else nothing."""
    count = counts[_COUNT]
    return f", {count:,} with a weight of their own in the loss" if count else ""


def add_weights(batch: dict[str, Tensor], examples: Sequence[Any]) -> dict[str, Tensor]:
    """Return a batch with the examples' ``weights``, of the labels' shape, if one is not 1.

    Args:
        batch: Has ``labels``, (examples,) or (examples, tokens).
        examples: Each has a `weight`.
    """
    weights = torch.tensor([example.weight for example in examples])  # [examples]
    if not (weights != 1).any():
        return batch
    labels = batch["labels"]
    by_item = weights.view(-1, *[1] * (labels.ndim - 1)).expand(labels.shape)
    return batch | {"weights": by_item}
