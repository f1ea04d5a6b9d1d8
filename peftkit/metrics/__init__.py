"""How good predictions are: classes, rankings, entities, texts. Established libraries count."""

import re

_LOWER = {
    "loss",
    "perplexity",
    "error",
    "wer",
    "cer",
    "ter",
    "mae",
    "mse",
    "rmse",
    "nll",
    "brier",
    "ece",
    "distance",
}


def lower_is_better(metric: str) -> bool:
    """Return whether less is better, judged by the metric's name: losses, perplexities, errors."""
    words = re.split(r"[\W_]+", metric.lower())
    return not _LOWER.isdisjoint(words)
