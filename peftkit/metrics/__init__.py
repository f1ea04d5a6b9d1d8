"""How good predictions are: classes, rankings, entities, texts. Well-kept libraries do the
counting.
"""

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
    """Tell from a metric's name whether less of it is better: losses, perplexities and errors of
    all kinds.
    """
    return not _LOWER.isdisjoint(re.split(r"[\W_]+", metric.lower()))
