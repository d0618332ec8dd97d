"""What a ranking is worth: how high the targets stand, and what the lists are like.

Of ranks, for each question (a user and the item that came next): Recall@K, MRR@K, NDCG@K. Of the
lists of the first K items: catalogue coverage, popularity, diversity inside a list. Diversity needs a
distance between items; it is one reference for all models, made from the training log alone, for a
model's own embeddings would let it mark its own work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from model.batch import UNKNOWN_TIME
from model.data.dataset import EvaluationSet
from model.data.interactions import Interactions
from model.evaluation import CUTOFFS

HEAD_SHARE_OF_ITEMS = 0.2
REFERENCE_DIM = 256

GAP_GROUPS: dict[str, tuple[int, float]] = {
    "0_s": (0, 0),
    "1_60_s": (1, 60),
    "1_60_min": (61, 3_600),
    "over_1_h": (3_601, math.inf),
}
"""Seconds between the last behaviour and the target, both ends included."""


def question_metrics(rank: np.ndarray, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, np.ndarray]:
    """What each question contributes to each metric; a metric is the mean over questions.

    recall_at_K: 1 where the target is among the first K   mrr_at_K: 1/rank there, else 0
    ndcg_at_K: 1/log₂(1 + rank) there, else 0 (one relevant item, so the ideal DCG is 1)
    rank: (Q,) 1 being first   -> metric -> (Q,) float64
    """
    metrics: dict[str, np.ndarray] = {}
    for cutoff in cutoffs:
        hit = rank <= cutoff
        metrics[f"recall_at_{cutoff}"] = hit.astype(np.float64)
        metrics[f"mrr_at_{cutoff}"] = np.where(hit, 1.0 / rank, 0.0)
        metrics[f"ndcg_at_{cutoff}"] = np.where(hit, 1.0 / np.log2(1.0 + rank), 0.0)
    return metrics


def list_metrics(
    top: np.ndarray, item_counts: np.ndarray, reference: np.ndarray, cutoffs: Sequence[int] = CUTOFFS
) -> dict[str, float]:
    """What the lists of the first K items are like, all questions together.

    coverage_at_K: share of the M items that stand in at least one list
    log_popularity_at_K: mean of ln(1 + count in training) over all places of all lists (popularity bias)
    head_share_at_K: share of those places held by head items, the most popular fifth of the M items
    diversity_at_K: mean over lists of 1 - the mean cosine of their pairs of items, in `reference`
    top: (Q, L) item indices, best first; a cutoff beyond L reads all L   item_counts: (M,)
    reference: (M, E) unit rows of `item_reference`
    """
    num_items = len(item_counts)
    log_popularity = np.log1p(item_counts)
    is_head = np.zeros(num_items, dtype=bool)
    by_popularity = np.argsort(-item_counts, kind="stable")
    is_head[by_popularity[: max(1, round(HEAD_SHARE_OF_ITEMS * num_items))]] = True
    metrics: dict[str, float] = {}
    for cutoff in cutoffs:
        row = top[:, :cutoff] - 1
        metrics[f"coverage_at_{cutoff}"] = len(np.unique(row)) / num_items
        metrics[f"log_popularity_at_{cutoff}"] = float(log_popularity[row].mean())
        metrics[f"head_share_at_{cutoff}"] = float(is_head[row].mean())
        metrics[f"diversity_at_{cutoff}"] = _diversity(row, reference)
    return metrics


def item_reference(train: Interactions, dim: int = REFERENCE_DIM, seed: int = 0) -> np.ndarray:
    """Item embeddings whose cosine is the share of common users, the similarity of item-kNN.

    Item i is the 0-1 vector of the users who have it in training, so a cosine is common users /
    √(users of i · users of j). With more than `dim` users the vectors are projected on `dim` random
    directions, which keeps every inner product in expectation (Johnson-Lindenstrauss).
    -> (M, dim or U) float32 unit rows, zero for an item that training does not have
    """
    user = np.repeat(np.arange(train.num_users), np.diff(train.offsets))  # (R,)
    pair = np.unique(user * np.int64(train.num_items) + train.item_index - 1)  # repeats count once
    user, item = np.divmod(pair, train.num_items)
    if train.num_users <= dim:
        of_user = np.eye(train.num_users, dtype=np.float32)
    else:
        rng = np.random.default_rng(seed)
        of_user = rng.standard_normal((train.num_users, dim), dtype=np.float32)
    order = np.argsort(item, kind="stable")
    present, first = np.unique(item[order], return_index=True)
    vector = np.zeros((train.num_items, of_user.shape[1]), dtype=np.float32)
    for place, (start, stop) in enumerate(zip(first, [*first[1:], len(order)], strict=True)):
        vector[present[place]] = of_user[user[order[start:stop]]].sum(axis=0)
    norm = np.linalg.norm(vector, axis=1, keepdims=True)
    return np.divide(vector, norm, out=vector, where=norm > 0)


def gap_group(questions: EvaluationSet) -> np.ndarray:
    """The group of GAP_GROUPS of each question's pause before its target, or "unknown".   -> (Q,) str"""
    last_time = questions.interactions.timestamp[questions.end - 1]
    gap = questions.target_time - last_time
    known = (questions.target_time != UNKNOWN_TIME) & (last_time != UNKNOWN_TIME)
    group = np.full(len(questions), "unknown", dtype=object)
    for name, (shortest, longest) in GAP_GROUPS.items():
        group[known & (gap >= shortest) & (gap <= longest)] = name
    return group.astype(str)


def is_above_zero(group: np.ndarray) -> np.ndarray:
    """Which questions have a known pause above 0 before their target.   group: of `gap_group` -> (Q,) bool"""
    return (group != "0_s") & (group != "unknown")


def _diversity(row: np.ndarray, reference: np.ndarray, lists_at_once: int = 256) -> float:
    """Mean over lists of 1 - mean cosine of pairs: Σ_{i≠j} v_i·v_j = |Σ v|² - Σ |v|².   row: (Q, K)"""
    num_listed = row.shape[1]
    if num_listed < 2:
        return 0.0
    total = 0.0
    for first in range(0, len(row), lists_at_once):
        vector = reference[row[first : first + lists_at_once]]  # (q, K, E)
        of_sum = np.square(vector.sum(axis=1)).sum(axis=1)  # (q,)
        of_each = np.square(vector).sum(axis=(1, 2))
        total += float((1 - (of_sum - of_each) / (num_listed * (num_listed - 1))).sum())
    return total / len(row)
