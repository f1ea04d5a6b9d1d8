"""Metrics of ranked lists: one list of candidates for each user or query."""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np


def ranking_metrics(
    groups: Sequence[Hashable],
    relevance: Sequence[float],
    scores: Sequence[float],
    *,
    cutoff: int = 10,
) -> dict[str, float]:
    """Return the means over groups of NDCG, reciprocal rank and hit rate within the first `cutoff`
    candidates.

    Groups of one candidate, and those with nothing relevant, have no ranking to judge and are left
    out. Equal scores count as the mean of their orders for NDCG (scikit-learn), and against the
    model for the two others.

    Args:
        groups: Whose list each candidate belongs to.
        relevance: How right each candidate is; 0 is wrong.
        scores: The model's scores; the highest comes first.
        cutoff: How far down the lists is looked.
    """
    from sklearn.metrics import ndcg_score

    lists: dict[Hashable, list[tuple[float, float]]] = defaultdict(list)
    for group, right, score in zip(groups, relevance, scores, strict=True):
        lists[group].append((float(right), float(score)))
    judged = [
        np.array(entries)
        for entries in lists.values()
        if len(entries) > 1 and any(r > 0 for r, _ in entries)
    ]
    if not judged:
        return {}
    ranks = [_first_rank(entries) for entries in judged]
    return {
        f"ndcg@{cutoff}": float(
            np.mean([ndcg_score(e[None, :, 0], e[None, :, 1], k=cutoff) for e in judged])
        ),
        f"mrr@{cutoff}": float(np.mean([1 / rank if rank <= cutoff else 0.0 for rank in ranks])),
        "hit_rate@1": float(np.mean([rank == 1 for rank in ranks])),
        "hit_rate@3": float(np.mean([rank <= 3 for rank in ranks])),
    }


def score_metrics(true: Sequence[float], scores: Sequence[float]) -> dict[str, float]:
    """Return Spearman's and Pearson's correlation and the mean absolute error of predicted scores."""
    from scipy.stats import pearsonr, spearmanr

    error = float(np.mean(np.abs(np.subtract(true, scores))))
    if len(true) < 2 or len(set(true)) == 1 or len(set(scores)) == 1:
        return {"mean_absolute_error": error}  # a correlation with a constant is not defined
    return {
        "spearman": float(spearmanr(true, scores).statistic),
        "pearson": float(pearsonr(true, scores).statistic),
        "mean_absolute_error": error,
    }


def _first_rank(entries: np.ndarray) -> int:
    """Return the place, from 1, of the best-scored relevant candidate, behind all wrong ones with
    the same score.
    """
    relevance, scores = entries[:, 0], entries[:, 1]
    best = scores[relevance > 0].max()
    return int(1 + (scores[relevance <= 0] >= best).sum())
