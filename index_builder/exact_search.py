"""Exact scores and exact search in plain numpy and torch: what approximate answers are held to and end in."""

from __future__ import annotations

import numpy as np
import torch

from model.two_tower import Metric

MAX_SCORE = float(np.finfo(np.float32).max)
"""Scores stay finite: an overflow is the best or the worst score there is."""

_CHUNK = 65_536


def exact_scores(embeddings: np.ndarray, query: np.ndarray, metric: Metric) -> np.ndarray:
    """Scores of every embedding against one query, larger being better.

    embeddings: (M, D)   query: (D,)   -> (M,) float32, the inner product or minus the squared distance
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if metric == "inner_product":
            scores = embeddings @ query
        else:
            scores = np.empty(len(embeddings), dtype=np.float32)
            for start in range(0, len(embeddings), _CHUNK):
                difference = embeddings[start : start + _CHUNK] - query
                scores[start : start + _CHUNK] = 0.0 - np.einsum("md,md->m", difference, difference)
    return np.nan_to_num(scores, nan=-MAX_SCORE, posinf=MAX_SCORE, neginf=-MAX_SCORE)


def search_exactly(
    embeddings: np.ndarray, query: np.ndarray, metric: Metric, *, top_k: int, excluded: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The best rows that are not excluded, best first, lower row first among equals.

    embeddings: (M, D)   query: (D,)   excluded: distinct rows   -> scores (K',), rows (K',) with
    K' = min(top_k, M - excluded)
    """
    allowed = np.ones(len(embeddings), dtype=bool)
    allowed[excluded] = False
    rows = np.flatnonzero(allowed)
    if 2 * len(rows) < len(embeddings):
        scores = exact_scores(embeddings[rows], query, metric)  # few are left: the rest is not even read
    else:
        scores = exact_scores(embeddings, query, metric)[rows]
    if top_k < len(scores):
        last = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        contenders = np.flatnonzero(scores >= last)
        rows, scores = rows[contenders], scores[contenders]
    order = np.argsort(-scores, kind="stable")[:top_k]
    return scores[order], rows[order]


def rescore(embeddings: torch.Tensor, queries: np.ndarray, rows: np.ndarray, metric: Metric) -> np.ndarray:
    """Exact scores of a few rows of each query.

    embeddings: (M, D)   queries: (B, D)   rows: (B, F), of which -1 stands for none   -> (B, F)
    """
    batch_size, fetch = rows.shape
    found = torch.from_numpy(rows).clamp(min=0).flatten()  # (B·F,)
    candidates = embeddings.index_select(0, found).view(batch_size, fetch, -1)  # (B, F, D)
    users = torch.from_numpy(queries)  # (B, D)
    if metric == "inner_product":
        scores = torch.bmm(candidates, users[:, :, None])[:, :, 0]
    else:
        scores = -(candidates - users[:, None, :]).square().sum(dim=2)
    return torch.nan_to_num(scores, nan=-MAX_SCORE, posinf=MAX_SCORE, neginf=-MAX_SCORE).numpy()
