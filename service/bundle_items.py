"""The item ids of one bundle, where sequences come in and candidates go out; immutable like its engine."""

from __future__ import annotations

import copy
from collections.abc import Sequence as Collection
from itertools import repeat

import numpy as np

from index_builder.bundle import Bundle
from service.candidate_list import CandidateList, Listed, Written
from service.packed_sequence import PackedSequence, StoredSequence
from service.wire_format import NativeItems


class BundleItems:
    """Ids of the bundle's items by row of its index, then those of new items."""

    def __init__(self, bundle: Bundle, native: NativeItems | None = None) -> None:
        """native: of the same bundle; Python reads and writes when None"""
        self._index_of = bundle.item_index_of
        self._native = native
        self._num_rows = len(bundle.item_ids)
        self._ids: Collection[str] = bundle.item_ids
        self._added: Collection[str] = ()
        if native is None and isinstance(self._index_of, dict):
            # The bundle holds a string per item anyway: to read one is a hundred times cheaper from a list.
            names, served = list(self._index_of), bundle.rows.item_index
            self._ids = names if served is None else [names[item - 1] for item in served.tolist()]

    def with_added(self, item_ids: Collection[str]) -> BundleItems:
        """The same, and new items: row M + i is the i-th of them."""
        changed = copy.copy(self)
        changed._added = item_ids
        changed._native = self._native and self._native.with_added(item_ids)
        return changed

    def known(self, behaviours: StoredSequence) -> tuple[np.ndarray, np.ndarray]:
        """The behaviours with items that the model knows.   -> item indices (N,), timestamps (N,), int64"""
        if self._native is not None and isinstance(behaviours, PackedSequence):
            return self._native.known(behaviours.value, len(behaviours))
        # One pass in C each: this runs for every request, over up to `sequence_max_length` behaviours.
        found = list(map(self._index_of.get, behaviours.item_ids, repeat(0)))
        known, timestamp = np.array(found, np.int64), np.array(behaviours.timestamps, np.int64)
        if 0 in found:
            there = known > 0
            known, timestamp = known[there], timestamp[there]
        return known, timestamp

    def listed(self, rows: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> list[CandidateList]:
        """The candidates of each answer.

        rows: (B, K) int64   scores: (B, K) float32   counts: (B,) int64 of each answer, from the first on
        """
        numbers = counts.tolist()
        if self._native is not None:
            return list(map(Written, self._native.written(rows, scores, counts), numbers))
        return [
            Listed(map(self._id, of_user[:number]), of_scores[:number])
            for of_user, of_scores, number in zip(rows.tolist(), scores.tolist(), numbers, strict=True)
        ]

    def _id(self, row: int) -> str:
        return self._ids[row] if row < self._num_rows else self._added[row - self._num_rows]
