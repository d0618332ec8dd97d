"""Several searches for one user, one answer: an item's score is its best over the user's routes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def merge_routes(
    score: np.ndarray, rows: np.ndarray, *, num_routes: int, top_k: int | Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The best K distinct rows over a user's routes; K distinct ones are there when one route found K.

    score: (B * R, K) larger being better, -inf where rows is -1   rows: (B * R, K), a user's routes together
    top_k: K, or one per user
    -> score (B, K) best first, rows (B, K); -inf and -1 at the end where the routes found fewer
    """
    if num_routes == 1:
        return score, rows
    width = score.shape[1]
    every_score = score.reshape(-1, num_routes * width)  # (B, R * K)
    every_row = rows.reshape(-1, num_routes * width)
    merged_score = np.full((len(every_score), width), -np.inf, dtype=score.dtype)
    merged_rows = np.full((len(every_row), width), -1, dtype=rows.dtype)
    wanted = np.broadcast_to(np.asarray(top_k), len(every_score))
    for user, by_score in enumerate(np.argsort(-every_score, axis=1, kind="stable")):
        found = every_row[user, by_score]
        _, first = np.unique(found, return_index=True)  # of an item's places the one with its best score
        kept = np.sort(first[found[first] >= 0])[: wanted[user]]
        merged_rows[user, : len(kept)] = found[kept]
        merged_score[user, : len(kept)] = every_score[user, by_score[kept]]
    return merged_score, merged_rows
