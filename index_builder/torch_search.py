"""Exact search as one matrix product and a top-K, on whatever device torch has; exclusions are masked.

For a GPU and up to a few million items nothing is simpler, and no neighbour is missed. On a CPU it is the
form to compare with: FAISS's `flat` does the same without writing every score down.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from index_builder.exact_search import MAX_SCORE
from model.two_tower import Metric

_MAX_SCORES = 1 << 25  # 128 MiB of scores at a time
_MAX_SCORES_GPU = 1 << 29


class TorchSearch:
    """The item embeddings as a tensor.   embeddings: (M, D) float32"""

    def __init__(self, embeddings: np.ndarray, metric: Metric, device: str = "cpu") -> None:
        self.metric = metric
        self.device = device
        self._items = torch.from_numpy(embeddings).to(device)  # (M, D)
        self._max_scores = _MAX_SCORES if device == "cpu" else _MAX_SCORES_GPU

    def search(
        self, queries: np.ndarray, top_k: int, excluded: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best `top_k` rows of each query that are not excluded, best first.

        queries: (B, D)   excluded: per query distinct rows   -> scores (B, K), rows (B, K); row -1 with
        score -inf where fewer are left
        """
        num_items = len(self._items)
        group = max(1, self._max_scores // num_items)
        scores = np.full((len(queries), top_k), -np.inf, dtype=np.float32)
        rows = np.full((len(queries), top_k), -1, dtype=np.int64)
        with torch.inference_mode():
            for start in range(0, len(queries), group):
                members = slice(start, start + group)
                best, found = self._search_group(queries[members], min(top_k, num_items), excluded[members])
                scores[members, : best.shape[1]], rows[members, : best.shape[1]] = best, found
        rows[scores == -np.inf] = -1
        return scores, rows

    def _search_group(
        self, queries: np.ndarray, top_k: int, excluded: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        scores = self._scores(torch.from_numpy(queries).to(self.device))  # (B, M)
        for member, out in enumerate(excluded):
            if len(out):
                scores[member, torch.from_numpy(out).to(self.device)] = -torch.inf
        best, rows = scores.topk(top_k, dim=1)
        return best.cpu().numpy(), rows.cpu().numpy()

    def _scores(self, users: torch.Tensor) -> torch.Tensor:
        """(B, D) -> (B, M), finite"""
        if self.metric == "inner_product":
            scores = users @ self._items.T
        else:
            # not |x|² - 2x·u + |u|², which cancels where items are near
            scores = -torch.cdist(users, self._items, compute_mode="donot_use_mm_for_euclid_dist").square_()
        return scores.nan_to_num_(nan=-MAX_SCORE, posinf=MAX_SCORE, neginf=-MAX_SCORE)
