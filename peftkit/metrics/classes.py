"""Metrics of one class per row."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from peftkit.metrics.tables import markdown

_TINY = 1e-12  # instead of 0, which has no logarithm and divides nothing


def class_metrics(
    labels: Sequence[str],
    true: Sequence[int],
    predicted: Sequence[int],
    probabilities: Sequence[Sequence[float]],
) -> dict[str, float]:
    """Return accuracy, macro F1, and the mean of -log p of the right class (``nll``).

    With two classes there are also the F1 of the second class, and the area under the ROC curve
    (``auc``) if both classes occur.

    Args:
        labels: The names of the classes.
        true: The right class of each row, as a number.
        predicted: The predicted class of each row.
        probabilities: The probability of each class, for each row: (rows, classes).
    """
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score  # takes a second to import

    classes = list(range(len(labels)))
    macro_f1 = f1_score(true, predicted, labels=classes, average="macro", zero_division=0)
    by_class = np.asarray(probabilities)  # [rows, classes]
    of_right_class = by_class[range(len(true)), true]  # [rows]
    metrics = {
        "accuracy": float(accuracy_score(true, predicted)),
        "macro_f1": float(macro_f1),
        "nll": float(-np.log(np.maximum(of_right_class, _TINY)).mean()),
    }
    if len(labels) == 2:
        metrics["f1"] = float(f1_score(true, predicted, zero_division=0))
        if len(set(true)) == 2:
            metrics["auc"] = float(roc_auc_score(true, by_class[:, 1]))
    return metrics


def class_report(labels: Sequence[str], true: Sequence[int], predicted: Sequence[int]) -> str:
    """Return a Markdown table: precision, recall, F1 and rows of each class, and their means."""
    from sklearn.metrics import classification_report

    found: Any = classification_report(
        true,
        predicted,
        labels=range(len(labels)),
        target_names=list(labels),
        output_dict=True,
        zero_division=0,
    )
    rows = []
    for name in (*labels, "macro avg", "weighted avg"):
        entry = found[name]
        rows.append(
            [
                name,
                f"{entry['precision']:.3f}",
                f"{entry['recall']:.3f}",
                f"{entry['f1-score']:.3f}",
                f"{entry['support']:.0f}",
            ]
        )
    return markdown(["class", "precision", "recall", "F1", "rows"], rows)


def confusion(
    labels: Sequence[str], true: Sequence[int], predicted: Sequence[int]
) -> dict[str, Any]:
    """Return how often each class was predicted as each class.

    Returns:
        ``{"labels": [...], "counts": [[...], ...]}``: a row of counts for each true class, and in
        it a column for each predicted class.
    """
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(true, predicted, labels=range(len(labels)))
    return {"labels": list(labels), "counts": counts.tolist()}


def best_threshold(true: Sequence[int], positive: Sequence[float]) -> float:
    """Return the threshold with the highest F1 on some rows.

    A row is of the second class if that class's probability is at least the threshold.

    Args:
        true: The right class of each row, 0 or 1.
        positive: The probability of the second class, for each row.
    """
    from sklearn.metrics import precision_recall_curve

    precision, recall, thresholds = precision_recall_curve(true, positive)
    f1 = 2 * precision * recall / np.maximum(precision + recall, _TINY)  # [thresholds + 1]
    return float(thresholds[int(f1[:-1].argmax())])
