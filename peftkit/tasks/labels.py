"""What tasks with a fixed set of labels share: how a head names them, and which are unknown."""

from collections.abc import Sequence
from typing import Any


def label_overrides(labels: Sequence[str], processor: Any) -> dict[str, Any]:
    """Return the attributes of a backbone's config for a head with these labels.

    A decoder also needs the padding token: its head looks at the last token before the padding.
    """
    overrides: dict[str, Any] = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    padding = getattr(processor, "pad_token_id", None)
    if padding is not None:
        overrides["pad_token_id"] = padding
    return overrides


def likeliest(probabilities: Sequence[float]) -> int:
    """Return the number of the label with the highest probability; of equal ones, the first."""
    return probabilities.index(max(probabilities))
