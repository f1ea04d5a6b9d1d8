"""Metrics of ranked lists of candidates, one list per user or query; and of predicted scores."""

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
    """Return the means over groups of NDCG, reciprocal rank, and hit rates at 1 and 3.

    Groups with one candidate, or with nothing relevant, have no ranking to judge and are left out.
    Candidates with equal scores count for NDCG as the mean of their orders (scikit-learn). For the
    other metrics, the wrong candidates come first.

    Args:
        groups: The group, such as a user or a query, of each candidate.
        relevance: How right each candidate is; 0 is wrong.
        scores: The model's scores; the highest comes first.
        cutoff: How many candidates of each list count.
    """
    from sklearn.metrics import ndcg_score

    lists: dict[Hashable, list[tuple[float, float]]] = defaultdict(list)
    for group, right, score in zip(groups, relevance, scores, strict=True):
        lists[group].append((float(right), float(score)))

    gains, reciprocals, first, among_three = [], [], [], []
    for candidates in lists.values():
        if not _is_ranking(candidates):
            continue
        right, score = np.array(candidates).T  # [candidates], [candidates]
        gains.append(ndcg_score(right[None], score[None], k=cutoff))
        rank = _first_rank(right, score)
        reciprocals.append(1 / rank if rank <= cutoff else 0.0)
        first.append(rank == 1)
        among_three.append(rank <= 3)
    if not gains:
        return {}
    return {
        f"ndcg@{cutoff}": float(np.mean(gains)),
        f"mrr@{cutoff}": float(np.mean(reciprocals)),
        "hit_rate@1": float(np.mean(first)),
        "hit_rate@3": float(np.mean(among_three)),
    }


def _is_ranking(candidates: Sequence[tuple[float, float]]) -> bool:
    """Return whether a list has several candidates, and a relevant one among them."""
    return len(candidates) > 1 and any(right > 0 for right, _ in candidates)


def _first_rank(relevance: np.ndarray, scores: np.ndarray) -> int:
    """Return the rank, from 1, of the relevant candidate with the highest score.

    Wrong candidates with the same score come before it.
    """
    best = scores[relevance > 0].max()
    return int(1 + (scores[relevance <= 0] >= best).sum())


def score_metrics(true: Sequence[float], scores: Sequence[float]) -> dict[str, float]:
    """Return Spearman's and Pearson's correlation and the mean absolute error of scores."""
    from scipy.stats import pearsonr, spearmanr

    error = float(np.mean(np.abs(np.subtract(true, scores))))
    if len(true) < 2 or len(set(true)) == 1 or len(set(scores)) == 1:
        return {"mean_absolute_error": error}  # the correlation with a constant is not defined
    return {
        "spearman": float(spearmanr(true, scores).statistic),
        "pearson": float(pearsonr(true, scores).statistic),
        "mean_absolute_error": error,
    }
