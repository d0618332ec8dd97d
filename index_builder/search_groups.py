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

    def put_allowed(
        self, members: np.ndarray, scores: np.ndarray, rows: np.ndarray, allowed: np.ndarray
    ) -> np.ndarray:
        """The same of several queries at once, leaving out what is not allowed.

        members: (b,)   scores, rows, allowed: (b, F)   -> (b,) how many results each got
        """
        place = allowed.cumsum(axis=1)  # (b, F) from 1
        wanted = self.wanted[members]
        query, column = np.nonzero(allowed & (place <= wanted[:, None]))
        into, at = members[query], place[query, column] - 1
        self.scores[into, at] = scores[query, column]
        self.rows[into, at] = rows[query, column]
        return np.minimum(place[:, -1], wanted)


def check_entries(exclude: Sequence[np.ndarray | None] | None, batch_size: int) -> None:
    """Raises ValueError unless there is one entry for each query."""
    if exclude is not None and len(exclude) != batch_size:
        raise ValueError(f"exclude must have one entry per query, got {len(exclude)} for {batch_size}")


class Exclusions:
    """The rows that each query of a batch must not get: one sorted array of query * M + row for all of them.

    counts: (B,) existing rows that are excluded
    """

    def __init__(self, exclude: Sequence[np.ndarray | None] | None, batch_size: int, num_items: int) -> None:
        """Rows that do not exist are ignored."""
        if exclude is None:
            exclude = [None] * batch_size
        each = [_NONE if rows is None else np.asarray(rows, dtype=np.int64) for rows in exclude]
        self._num_items = num_items
        self._keys = _NONE
        self.counts = np.zeros(batch_size, dtype=np.int64)
        if not any(map(len, each)):
            return
        rows = np.concatenate(each)
        keys = rows + num_items * np.repeat(np.arange(batch_size), list(map(len, each)))
        exists = (rows >= 0) & (rows < num_items)
        keys = np.sort(keys if exists.all() else keys[exists])
        again = np.flatnonzero(keys[1:] == keys[:-1])
        self._keys = np.delete(keys, again) if len(again) else keys
        self.counts = np.bincount(self._keys // num_items, minlength=batch_size)

    def of(self, member: int) -> np.ndarray:
        """(E,) the excluded rows of one query, sorted and distinct."""
        return self.places(member, member + 1)

    def places(self, first: int, last: int) -> np.ndarray:
        """(E,) where the excluded rows of queries first .. last - 1 stand in an array of all their scores."""
        start, end = np.searchsorted(self._keys, [first * self._num_items, last * self._num_items])
        return self._keys[start:end] - first * self._num_items

    def allowed(self, members: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Which results may be returned.   members: (b,)   rows: (b, F)   -> (b, F) bool"""
        if not len(self._keys):
            return rows >= 0
        return (rows >= 0) & is_allowed(rows + self._num_items * members[:, None], self._keys)


def is_allowed(rows: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """Which results may be returned.   rows: (F,)   excluded: sorted, distinct   -> (F,) bool"""
    found = rows >= 0
    if not len(excluded):
        return found
    place = np.minimum(np.searchsorted(excluded, rows), len(excluded) - 1)
    return found & (excluded[place] != rows)


_NONE = np.empty(0, dtype=np.int64)
