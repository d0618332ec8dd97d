"""How often items stand near each other: all M × M counts, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from model.data.interactions import Interactions

_MAX_CELLS = 2**24  # pairs of items counted at a time
_MAX_PAIRS = 2**22  # pairs of rows gathered before they are counted


def count_pairs(train: Interactions, distances: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """How often item j stands d behaviours after item i in a user's sequence, summed over d in `distances`.

    -> blocks of rows i: (first row, (b, M) float32)
    """
    num_items = train.num_items
    item = train.item_index.astype(np.int64) - 1  # (R,)
    user = np.repeat(np.arange(train.num_users), np.diff(train.offsets))
    by_item = np.argsort(item, kind="stable")
    start = np.searchsorted(item[by_item], np.arange(num_items + 1))
    block = max(1, _MAX_CELLS // num_items)
    for first in range(0, num_items, block):
        size = min(block, num_items - first)
        rows = by_item[start[first] : start[first + size]]
        counts = np.zeros(size * num_items, dtype=np.float32)
        at_once = max(1, _MAX_PAIRS // max(len(rows), 1))
        for number in range(0, len(distances), at_once):
            cells = []
            for distance in distances[number : number + at_once]:
                one, other = _pairs(user, rows, distance)
                cells.append((item[one] - first) * num_items + item[other])
            counts += np.bincount(np.concatenate(cells), minlength=len(counts))
        yield first, counts.reshape(size, num_items)


def _pairs(user: np.ndarray, rows: np.ndarray, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Those of `rows` whose row `distance` further on is the same user's, and that row.   -> (P,), (P,)"""
    other = rows + distance
    inside = (other >= 0) & (other < len(user))
    rows, other = rows[inside], other[inside]
    same = user[rows] == user[other]
    return rows[same], other[same]
