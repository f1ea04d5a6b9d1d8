"""What tasks with a fixed set of labels share: how a head names them, and which are unknown."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from peftkit.data.class_names import find_variants
from peftkit.errors import DataError, nearest

_LISTED = 10  # labels that a message names


def label_numbers(labels: Sequence[str]) -> dict[str, int]:
    """Return the number of each label."""
    return {label: number for number, label in enumerate(labels)}


def find_number(label: str, numbers: Mapping[str, int], kind: str) -> int:
    """Return the number of a label.

    Args:
        label: The label of a row, or a tag.
        numbers: The number of each label that was learned.
        kind: What messages call it: "label" or "tag".

    Raises:
        DataError: it is none of those that were learned.
    """
    number = numbers.get(label)
    if number is None:
        raise DataError(
            f"the {kind} {label!r} is none of {listed(list(numbers))}, which the training rows "
            f"have{nearest(label, numbers)}"
        )
    return number


def listed(labels: Sequence[str]) -> str:
    """Return labels in a row, the first of many; those with white space around them in quotes."""
    shown = []
    for label in labels[:_LISTED]:
        shown.append(label if label == label.strip() else repr(label))
    more = len(labels) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def describe_variants(counts: Counter[str], kind: str, counted: str) -> list[str]:
    """Return a sentence about each label that is a class of its own, and likely not meant to be.

    Args:
        counts: How often each label occurs.
        kind: What sentences call it: "label" or "tag".
        counted: What is counted, such as "rows".
    """
    sentences = []
    for name, other in find_variants(counts):
        sentences.append(
            f"the {kind} {name!r} ({counted}: {counts[name]}) differs from {other!r} ({counted}: "
            f"{counts[other]}) only in case or white space, and is a class of its own; if they "
            "mean the same, give them one name in data.label_names"
        )
    return sentences


def describe_unused_names(names: Mapping[str, str], classes: Collection[str]) -> list[str]:
    """Return a sentence about each entry of `data.label_names` that no row needs.

    Args:
        names: The name of each label that gets one.
        classes: The classes of the rows, with these names.
    """
    sentences = []
    for label, name in names.items():
        if name not in classes:
            sentences.append(f"data.label_names gives {label!r} a name, and no row has that label")
    return sentences


def label_overrides(labels: Sequence[str], processor: Any) -> dict[str, Any]:
    """Return the attributes of a backbone's config for a head with these labels.

    A decoder also needs the padding token: its head looks at the last token before the padding.
    """
    overrides: dict[str, Any] = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": label_numbers(labels),
    }
    padding = getattr(processor, "pad_token_id", None)
    if padding is not None:
        overrides["pad_token_id"] = padding
    return overrides


def likeliest(probabilities: Sequence[float]) -> int:
    """Return the number of the label with the highest probability; of equal ones, the first."""
    return probabilities.index(max(probabilities))
