"""Sequences that were read a moment ago, kept in the process for a few milliseconds. Off by default.

An event that this process takes is seen by its next read; one that another replica takes, only once the
entry is too old. A read that began before an event was stored is not kept, however late it ends.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from service.packed_sequence import StoredSequence

MAX_BEHAVIOURS = 200_000
"""Of all entries together, each counting one more: some 30 MB. The oldest entries leave first."""


class Reading:
    """One read of one user's sequence.   found: whether `sequence` is a kept one, which may be None"""

    def __init__(self, keep: Callable[[StoredSequence | None], None]) -> None:
        self.found = False
        self.sequence: StoredSequence | None = None
        self._keep = keep

    def keep(self, sequence: StoredSequence | None) -> None:
        """What Redis holds, to be kept unless it changed meanwhile."""
        self.sequence = sequence
        self._keep(sequence)


class SequenceCache:
    """Entries of one age limit: what was put first also ends first."""

    def __init__(self, max_age_s: float, *, max_behaviours: int = MAX_BEHAVIOURS) -> None:
        self._max_age_s = max_age_s
        self._max_behaviours = max_behaviours
        self._entries: OrderedDict[str, tuple[float, StoredSequence | None]] = OrderedDict()
        self._num_behaviours = 0
        self._under_way: dict[str, object] = {}  # user -> sign of the reads that may still be kept

    @contextmanager
    def reading(self, user_id: str) -> Iterator[Reading]:
        """What is kept of a user, or else the way to keep it."""
        self._drop_old()
        if (entry := self._entries.get(user_id)) is not None:
            found = Reading(lambda sequence: None)
            found.found, found.sequence = True, entry[1]
            yield found
            return
        sign = self._under_way.setdefault(user_id, object())

        def keep(sequence: StoredSequence | None) -> None:
            if self._under_way.get(user_id) is sign:
                self._put(user_id, sequence)

        try:
            yield Reading(keep)
        finally:
            if self._under_way.get(user_id) is sign:
                del self._under_way[user_id]

    def forget(self, user_ids: Iterable[str]) -> None:
        """These users' sequences are changing: drop what is kept and what is being read."""
        for user_id in user_ids:
            self._under_way.pop(user_id, None)
            self._drop(user_id)

    def _put(self, user_id: str, sequence: StoredSequence | None) -> None:
        self._drop(user_id)
        self._entries[user_id] = (time.monotonic() + self._max_age_s, sequence)
        self._num_behaviours += _size(sequence)
        while self._num_behaviours > self._max_behaviours:
            self._drop(next(iter(self._entries)))

    def _drop_old(self) -> None:
        now = time.monotonic()
        while self._entries and next(iter(self._entries.values()))[0] <= now:
            self._drop(next(iter(self._entries)))

    def _drop(self, user_id: str) -> None:
        if (entry := self._entries.pop(user_id, None)) is not None:
            self._num_behaviours -= _size(entry[1])


def _size(sequence: StoredSequence | None) -> int:
    return 1 if sequence is None else 1 + len(sequence)
