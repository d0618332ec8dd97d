"""Exact search in plain numpy: the last resort of an index that came back short."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
    scores = exact_scores(embeddings, query, metric)
    rows = np.delete(np.arange(len(scores)), excluded)
    scores = scores[rows]
    if top_k < len(scores):
        last = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        contenders = np.flatnonzero(scores >= last)
        rows, scores = rows[contenders], scores[contenders]
    order = np.argsort(-scores, kind="stable")[:top_k]
    return scores[order], rows[order]


@dataclass
class Answer:
    """The answer of a batch while it is filled, and what each query may and must get.

    scores, rows: (B, K)   wanted: (B,)   excluded: per query distinct rows
    blocked: (M,) bool, scratch, false between calls
    """

    scores: np.ndarray
    rows: np.ndarray
    wanted: np.ndarray
    excluded: list[np.ndarray]
    blocked: np.ndarray

    @classmethod
    def empty(cls, wanted: np.ndarray, excluded: list[np.ndarray], num_items: int) -> Answer:
        """All rows -1 with score -inf."""
        rows = np.full((len(wanted), int(wanted.max(initial=0))), -1, dtype=np.int64)
        scores = np.full(rows.shape, -np.inf, dtype=np.float32)
        return cls(scores, rows, wanted, excluded, np.zeros(num_items, dtype=bool))

    def put(self, member: int, scores: np.ndarray, rows: np.ndarray) -> bool:
        """Make the allowed results of one query its answer; false when there should be more of them: the
        caller then puts a fuller one over it.

        scores, rows: (F,) best first, -1 where nothing was found
        """
        excluded, wanted = self.excluded[member], int(self.wanted[member])
        self.blocked[excluded] = True
        allowed = np.flatnonzero((rows >= 0) & ~self.blocked[rows])[:wanted]
        self.blocked[excluded] = False
        self.rows[member, : len(allowed)] = rows[allowed]
        self.scores[member, : len(allowed)] = scores[allowed]
        return len(allowed) >= min(wanted, len(self.blocked) - len(excluded))
