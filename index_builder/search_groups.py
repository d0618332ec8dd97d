"""The bookkeeping of one search call: which queries go together, what may be returned, what came back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_FETCH_CPU = 16_384
"""Beyond it one exact pass over the embeddings is no slower than a huge heap."""


@dataclass(frozen=True)
class Group:
    """Queries that are searched alike.

    fetch: candidates asked of the engine, each   keep: how many of them may be needed
    width: how much of an approximate index they visit   members: their places in the batch
    skip: rows that the engine is to mask, for a single one
    """

    fetch: int
    keep: int
    width: int
    members: np.ndarray
    skip: np.ndarray | None = None


class Answer:
    """The answer of a batch while it is filled.   scores, rows: (B, K), -inf and -1 where nothing came"""

    def __init__(self, wanted: np.ndarray) -> None:
        self.wanted = wanted
        self.rows = np.full((len(wanted), int(wanted.max(initial=0))), -1, dtype=np.int64)
        self.scores = np.full(self.rows.shape, -np.inf, dtype=np.float32)

    def put(self, member: int, scores: np.ndarray, rows: np.ndarray) -> None:
        """Make the first results, as many as were asked for, the answer of one query."""
        count = min(int(self.wanted[member]), len(rows))
        self.scores[member, :count] = scores[:count]
        self.rows[member, :count] = rows[:count]


def is_allowed(rows: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """Which results may be returned.   rows: (F,)   excluded: sorted, distinct   -> (F,) bool"""
    found = rows >= 0
    if not len(excluded):
        return found
    place = np.minimum(np.searchsorted(excluded, rows), len(excluded) - 1)
    return found & (excluded[place] != rows)


def checked_exclusions(
    exclude: Sequence[np.ndarray | None] | None, batch_size: int, num_items: int
) -> list[np.ndarray]:
    """Sorted, distinct, existing rows for every query. Raises ValueError for another number of entries."""
    none = np.empty(0, dtype=np.int64)
    if exclude is None:
        return [none] * batch_size
    if len(exclude) != batch_size:
        raise ValueError(f"exclude must have one entry per query, got {len(exclude)} for {batch_size}")
    excluded = []
    for rows in exclude:
        rows = none if rows is None else np.unique(np.asarray(rows, dtype=np.int64))
        excluded.append(rows[(rows >= 0) & (rows < num_items)])
    return excluded
