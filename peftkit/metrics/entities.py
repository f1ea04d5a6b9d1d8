"""Metrics of tagged words: whole entities (seqeval), or the tag of each word."""

from collections.abc import Sequence

from peftkit.metrics.tables import markdown

Tags = Sequence[Sequence[str]]

_PREFIXES = ("B-", "I-", "E-", "S-")


def are_entities(tags: Sequence[str]) -> bool:
    """Return whether tags mark entities: "O" is one, and all others begin with B-, I-, E- or S-."""
    return "O" in tags and all(tag == "O" or tag.startswith(_PREFIXES) for tag in tags)


def entity_metrics(true: Tags, predicted: Tags) -> dict[str, float]:
    """Return precision, recall and F1 of whole entities, and the accuracy of the words' tags.

    An entity is right if its type, its first word and its last word are right.
    """
    from seqeval.metrics import f1_score, precision_score, recall_score

    right, ours = _as_lists(true), _as_lists(predicted)
    metrics = {
        "entity_f1": float(f1_score(right, ours, zero_division=0)),
        "entity_precision": float(precision_score(right, ours, zero_division=0)),
        "entity_recall": float(recall_score(right, ours, zero_division=0)),
    }
    return metrics | tag_metrics(true, predicted)


def tag_metrics(true: Tags, predicted: Tags) -> dict[str, float]:
    """Return the share of words with the right tag."""
    right = words = 0
    for expected, ours in zip(true, predicted, strict=True):
        right += sum(a == b for a, b in zip(expected, ours, strict=True))
        words += len(expected)
    return {"tag_accuracy": right / words}


def entity_report(true: Tags, predicted: Tags) -> str:
    """Return a Markdown table: precision, recall, F1 and count of each type of entity."""
    from seqeval.metrics import classification_report

    found = classification_report(
        _as_lists(true), _as_lists(predicted), output_dict=True, zero_division=0
    )
    rows = []
    for name, entry in found.items():
        rows.append(
            [
                name,
                f"{entry['precision']:.3f}",
                f"{entry['recall']:.3f}",
                f"{entry['f1-score']:.3f}",
                str(entry["support"]),
            ]
        )
    return markdown(["type", "precision", "recall", "F1", "entities"], rows)


def _as_lists(sentences: Tags) -> list[list[str]]:
    """Return tags as the lists of lists that seqeval takes."""
    return [list(tags) for tags in sentences]
