"""Which items are consumed together with new ones, counted from a log's sessions.

A session is a run of one user's interactions without a pause of `session_gap_s`; in it the nearest
`WINDOW` behaviours on either side count, each once per occurrence. A log without times is one session a user.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import numpy as np

from index_builder.delta import NewItem
from model.data.interactions import Interactions

SESSION_GAP_S = 1_800
WINDOW = 10
NUM_SIMILAR = 32


def find_new_items(log: Interactions, known: Collection[str], *, min_occurrences: int) -> list[str]:
    """The items of a log that occur at least so often and are not known, most frequent first."""
    counts = np.bincount(log.item_index, minlength=log.num_items + 1)[1:]  # (M,)
    frequent = np.flatnonzero(counts >= min_occurrences)
    frequent = frequent[np.argsort(-counts[frequent], kind="stable")]
    return [log.item_ids[m] for m in frequent.tolist() if log.item_ids[m] not in known]


def count_similar(
    log: Interactions, item_ids: Iterable[str], *, known: Collection[str], session_gap_s: int = SESSION_GAP_S
) -> dict[str, dict[str, float]]:
    """For each item that occurs in the log beside known ones: up to NUM_SIMILAR of those, with counts.

    known: what may stand for another item: what a bundle has embeddings of
    """
    index_of = {item_id: m + 1 for m, item_id in enumerate(log.item_ids)}
    wanted = np.array([index_of[item_id] for item_id in item_ids if item_id in index_of], dtype=np.int64)
    usable = np.array([False, *(item_id in known for item_id in log.item_ids)])  # (M + 1,)
    usable[wanted] = False
    places = np.flatnonzero(np.isin(log.item_index, wanted))
    return similar_at(log, places, usable, session_gap_s=session_gap_s)


def similar_at(
    log: Interactions, places: np.ndarray, usable: np.ndarray, *, session_gap_s: int = SESSION_GAP_S
) -> dict[str, dict[str, float]]:
    """For the item at each of some rows of a log: what stands beside it, with counts.

    places: (P,) rows   usable: (M + 1,) bool, the item indices that count
    """
    session = _sessions(log, session_gap_s)  # (R,)
    pairs = []
    for distance in range(1, WINDOW + 1):
        for beside in (places - distance, places + distance):
            inside = (beside >= 0) & (beside < len(log))
            at, other = places[inside], beside[inside]
            together = (session[at] == session[other]) & usable[log.item_index[other]]
            pairs.append(np.stack([log.item_index[at[together]], log.item_index[other[together]]]))
    return _largest(np.concatenate(pairs, axis=1), log.item_ids)


def define_items(items: Iterable[NewItem], similar: Mapping[str, Mapping[str, float]]) -> list[NewItem]:
    """The items with what was counted for them; what somebody said of an item's likes stands instead."""
    return [item if item.similar else replace(item, similar=similar.get(item.item_id, {})) for item in items]


def _sessions(log: Interactions, session_gap_s: int) -> np.ndarray:
    """-> (R,) a number that two rows share when they are of one session"""
    begins = np.zeros(len(log), dtype=bool)
    begins[log.offsets[:-1]] = True
    if log.has_times:
        begins[1:] |= np.diff(log.timestamp) > session_gap_s
    return np.cumsum(begins)


def _largest(pairs: np.ndarray, item_ids: list[str]) -> dict[str, dict[str, float]]:
    """pairs: (2, P) item indices, an item and one beside it   -> the most frequent partners of each item"""
    found, counts = np.unique(pairs, axis=1, return_counts=True)
    order = np.lexsort((-counts, found[0]))
    similar: dict[str, dict[str, float]] = {}
    for item, other, count in zip(*found[:, order].tolist(), counts[order].tolist(), strict=True):
        of_item = similar.setdefault(item_ids[item - 1], {})
        if len(of_item) < NUM_SIMILAR:
            of_item[item_ids[other - 1]] = float(count)
    return similar
