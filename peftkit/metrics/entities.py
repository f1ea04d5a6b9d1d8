"""Metrics of tagged words: entities as wholes (seqeval), or each word's tag."""

from collections.abc import Sequence

from peftkit.metrics.tables import markdown

Tags = Sequence[Sequence[str]]


def are_entities(tags: Sequence[str]) -> bool:
    """Tell whether tags mark entities: "O" and names that begin with "B-" or "I-", or with "E-" or
    "S-" (BIOES).
    """
    return "O" in tags and all(tag == "O" or tag[:2] in ("B-", "I-", "E-", "S-") for tag in tags)


def entity_metrics(true: Tags, predicted: Tags) -> dict[str, float]:
    """Return precision, recall and F1 of whole entities, and the accuracy of words' tags.

    An entity counts where its type, its first and its last word are right.
    """
    from seqeval.metrics import f1_score, precision_score, recall_score

    ours, right = [list(tags) for tags in predicted], [list(tags) for tags in true]
    return {
        "entity_f1": float(f1_score(right, ours, zero_division=0)),
        "entity_precision": float(precision_score(right, ours, zero_division=0)),
        "entity_recall": float(recall_score(right, ours, zero_division=0)),
        **tag_metrics(true, predicted),
    }


def tag_metrics(true: Tags, predicted: Tags) -> dict[str, float]:
    """Return the share of words with the right tag."""
    pairs = [
        pair
        for right, ours in zip(true, predicted, strict=True)
        for pair in zip(right, ours, strict=True)
    ]
    return {"tag_accuracy": sum(a == b for a, b in pairs) / len(pairs)}


def entity_report(true: Tags, predicted: Tags) -> str:
    """Return a Markdown table of precision, recall, F1 and count of each type of entity."""
    from seqeval.metrics import classification_report

    ours, right = [list(tags) for tags in predicted], [list(tags) for tags in true]
    found = classification_report(right, ours, output_dict=True, zero_division=0)
    rows = [
        [
            name,
            *(f"{entry[c]:.3f}" for c in ("precision", "recall", "f1-score")),
            str(entry["support"]),
        ]
        for name, entry in found.items()
    ]
    return markdown(["type", "precision", "recall", "F1", "entities"], rows)
