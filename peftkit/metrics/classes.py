"""Metrics of one class for each row."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from peftkit.metrics.tables import markdown


def class_metrics(
    labels: Sequence[str],
    true: Sequence[int],
    predicted: Sequence[int],
    probabilities: Sequence[Sequence[float]],
) -> dict[str, float]:
    """Return accuracy, macro F1, the mean of -log p of the right class (nll) and, for two classes,
    F1 of the second and area under the ROC curve.

    Args:
        labels: The classes' names.
        true: The right class of each row, as a number.
        predicted: The class that was chosen for each row.
        probabilities: Of each class, for each row: (rows, classes).
    """
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score  # takes a second to import

    everything = range(len(labels))
    metrics = {
        "accuracy": float(accuracy_score(true, predicted)),
        "macro_f1": float(
            f1_score(true, predicted, labels=list(everything), average="macro", zero_division=0)
        ),
        "nll": float(
            -np.log(np.maximum(np.asarray(probabilities)[range(len(true)), true], 1e-12)).mean()
        ),
    }
    if len(labels) == 2:
        metrics["f1"] = float(f1_score(true, predicted, zero_division=0))
        if len(set(true)) == 2:
            metrics["auc"] = float(roc_auc_score(true, np.asarray(probabilities)[:, 1]))
    return metrics


def class_report(labels: Sequence[str], true: Sequence[int], predicted: Sequence[int]) -> str:
    """Return a Markdown table of precision, recall, F1 and rows of each class, and their means."""
    from sklearn.metrics import classification_report

    found: Any = classification_report(
        true,
        predicted,
        labels=range(len(labels)),
        target_names=list(labels),
        output_dict=True,
        zero_division=0,
    )
    names = [*labels, "macro avg", "weighted avg"]
    columns = ("precision", "recall", "f1-score", "support")
    rows = [
        [name, *(f"{found[name][c]:.3f}" for c in columns[:3]), f"{found[name]['support']:.0f}"]
        for name in names
    ]
    return markdown(["class", "precision", "recall", "F1", "rows"], rows)


def confusion(
    labels: Sequence[str], true: Sequence[int], predicted: Sequence[int]
) -> dict[str, Any]:
    """Return how often each class (rows) was taken for each (columns): ``{"labels": ..., "counts":
    ...}``.
    """
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(true, predicted, labels=range(len(labels)))
    return {"labels": list(labels), "counts": counts.tolist()}


def best_threshold(true: Sequence[int], positive: Sequence[float]) -> float:
    """Return the probability of the second class from which choosing it gives the highest F1 on
    these rows.
    """
    from sklearn.metrics import precision_recall_curve

    precision, recall, thresholds = precision_recall_curve(true, positive)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[int(f1[:-1].argmax())])
