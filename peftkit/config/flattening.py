"""A tree of values as one mapping, with the dotted keys that the command line takes."""

from collections.abc import Mapping
from typing import Any


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"train.epochs": 3}`` for ``{"train": {"epochs": 3}}``; an empty section is kept."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            for inner_key, inner_value in flatten(value).items():
                flat[f"{key}.{inner_key}"] = inner_value
        else:
            flat[key] = value
    return flat
