"""What peftkit decided or measured about a model, kept with the model so that it can be asked for."""

from typing import Any

from torch import nn

_ATTRIBUTE = "_peftkit_record"


def record(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return what peftkit decided and measured for `model`: plain data, keyed by the function that did it.

    ``"load_backbone"`` holds source, dtypes, sizes and the modules that stay 16-bit; ``"attach"`` the resolved targets and
    the trained parameters; ``"merge"`` the largest logit difference. A model that peftkit never saw has an empty record.
    """
    get_base_model = getattr(model, "get_base_model", None)
    base = get_base_model() if callable(get_base_model) else model
    return {**getattr(base, _ATTRIBUTE, {}), **model.__dict__.get(_ATTRIBUTE, {})}


def note(model: nn.Module, key: str, entry: dict[str, Any]) -> None:
    """Write `entry` under `key` into the record of `model`."""
    model.__dict__[_ATTRIBUTE] = {**model.__dict__.get(_ATTRIBUTE, {}), key: entry}
