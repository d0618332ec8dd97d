"""How much of exact search an index finds, and how wide it must be searched to find what was asked."""

from __future__ import annotations

import numpy as np
import torch

from index_builder.ann import AnnIndex
from index_builder.exact_search import rescore
from index_builder.faiss_library import faiss, faiss_metric
from model.two_tower import Metric

_MAX_RESCORED = 12


def ann_overlap(index: AnnIndex, embeddings: np.ndarray, queries: np.ndarray, top_k: int = 100) -> float:
    """The share of the exact top K that `index` finds, averaged over queries; ties with the last count.

    embeddings: (M, D)   queries: (B, D), at least one   -> 0..1
    """
    return _Truth(embeddings, queries, index.metric, top_k).overlap_of(index)


def tune(index: AnnIndex, queries: np.ndarray, *, target_overlap: float = 0.99, top_k: int = 100) -> float:
    """Give `index` the least width whose overlap reaches the target; returns the overlap on `queries` (B, D).

    Other users will see a little more or less: the overlap must exceed the target by its standard error.
    More candidates get an exact score only where no width reaches it.
    """
    truth = _Truth(index.embeddings, queries, index.metric, top_k)
    too_narrow = 0
    while not truth.reached(index, target_overlap):
        too_narrow = index.width
        if index.width < index.max_width:
            index.width = min(index.width * 2, index.max_width)
        elif 0 < index.rescored < _MAX_RESCORED:
            index.rescored, too_narrow = index.rescored * 2, 0
        else:
            return truth.overlap_of(index)
    while index.width - too_narrow > max(1, index.width // 16):
        wide, index.width = index.width, (index.width + too_narrow) // 2
        if not truth.reached(index, target_overlap):
            too_narrow, index.width = index.width, wide
    return truth.overlap_of(index)


class _Truth:
    """What an exact search of some queries finds, to measure an index against.

    embeddings: (M, D)   queries: (B, D)
    """

    def __init__(self, embeddings: np.ndarray, queries: np.ndarray, metric: Metric, top_k: int) -> None:
        if len(queries) == 0:
            raise ValueError("ann_overlap needs at least one query, got none")
        self._items = torch.from_numpy(embeddings)
        self._queries = np.ascontiguousarray(queries, dtype=np.float32)
        self._top_k = min(top_k, len(embeddings))
        values, _ = faiss.knn(self._queries, embeddings, self._top_k, metric=faiss_metric(metric))
        last_score = values[:, -1] if metric == "inner_product" else -values[:, -1]  # (B,) at rank K
        self._needed = last_score - _rounding_error(embeddings, self._queries, metric)  # (B,)

    def overlap_of(self, index: AnnIndex) -> float:
        """The share of it that `index` finds."""
        return float(self._shares(index).mean())

    def reached(self, index: AnnIndex, target: float) -> bool:
        """Whether that share is the asked one for users in general, by one standard error."""
        shares = self._shares(index)
        return bool(shares.mean() - shares.std() / len(shares) ** 0.5 >= target)

    def _shares(self, index: AnnIndex) -> np.ndarray:
        """Of each query.   -> (B,)"""
        _, rows = index.search(self._queries, self._top_k)
        scores = rescore(self._items, self._queries, rows, index.metric)  # (B, K)
        return ((scores >= self._needed[:, None]) & (rows >= 0)).mean(axis=1)


def _rounding_error(embeddings: np.ndarray, queries: np.ndarray, metric: Metric) -> np.ndarray:
    """By how much two float32 evaluations of one score may differ.   -> (B,)"""
    largest = float(np.einsum("md,md->m", embeddings, embeddings).max()) ** 0.5
    norms = np.linalg.norm(queries, axis=1)
    return 1e-6 * (norms * largest if metric == "inner_product" else (norms + largest) ** 2)
