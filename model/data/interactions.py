"""Interactions in memory: who consumed what and when, and the rules that chose them.

One user's rows lie together, oldest first, so that a sequence is a slice and nothing is copied.
`R` rows, `U` users, `M` items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Collection
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from model.batch import UNKNOWN_TIME, Sequence

Duplicates = Literal["keep", "first", "last"]


class DataError(ValueError):
    """A log, an option or a rule that cannot be used: one line with the field, the value and the remedy."""


@dataclass(frozen=True)
class RuleCount:
    """What is left after a rule.

    rule: what was done, in words   note: what else a reader should know, empty when there is nothing
    """

    rule: str
    users: int
    items: int
    interactions: int
    note: str = ""


@dataclass(frozen=True)
class Rules:
    """Which interactions are kept; applied in this order, each once.

    1. Exact repeats (same user, item and time, at the log's own resolution) are one event delivered
       twice: the first is kept, always. A log without times has no exact repeats.
    2. duplicates: what becomes of a user's further interactions with the same item. "keep" (default)
       keeps them all, for repeated consumption is behaviour; "first" and "last" keep one.
    3. min_interactions: users with fewer are dropped. Items are not filtered.
    4. max_per_user: only a user's last N are kept; None keeps all.

    Rows with equal times keep the order of the file, and files the order in which they were given.
    """

    min_interactions: int = 5
    max_per_user: int | None = None
    duplicates: Duplicates = "keep"

    def __post_init__(self) -> None:
        if self.min_interactions < 1:
            raise DataError(f"min_interactions must be at least 1, got {self.min_interactions}")
        if self.max_per_user is not None and self.max_per_user < 1:
            raise DataError(f"max_per_user must be at least 1 or left out, got {self.max_per_user}")
        if self.duplicates not in get_args(Duplicates):
            choices = ", ".join(get_args(Duplicates))
            raise DataError(f"duplicates must be one of {choices}, got {self.duplicates!r}")


@dataclass(frozen=True, eq=False)
class Interactions:
    """Interactions of U users with M items, sorted by user, then time, ties in file order.

    user_ids: U strings   item_ids: M strings; item_ids[m] has the item index m + 1 (0 is padding)
    offsets: (U + 1,) int64; the rows of user u are offsets[u]..offsets[u + 1]
    item_index: (R,) int32 in 1..M   timestamp: (R,) int64 unix seconds, or UNKNOWN_TIME throughout
    report: the counts after reading and after each rule
    fingerprint: SHA-256 (hex) over ids and arrays: the dataset's id
    """

    user_ids: list[str]
    item_ids: list[str]
    offsets: np.ndarray
    item_index: np.ndarray
    timestamp: np.ndarray
    report: tuple[RuleCount, ...]
    fingerprint: str

    @classmethod
    def create(
        cls,
        *,
        user_ids: list[str],
        item_ids: list[str],
        offsets: np.ndarray,
        item_index: np.ndarray,
        timestamp: np.ndarray,
        report: tuple[RuleCount, ...] = (),
    ) -> Interactions:
        """Interactions with their fingerprint.   Shapes and order as the class says; they are not checked."""
        return cls(
            user_ids=user_ids,
            item_ids=item_ids,
            offsets=offsets,
            item_index=item_index,
            timestamp=timestamp,
            report=report,
            fingerprint=_fingerprint(user_ids, item_ids, offsets, item_index, timestamp),
        )

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @property
    def has_times(self) -> bool:
        """False for a log without times: order is all that is known."""
        return len(self.timestamp) > 0 and bool(self.timestamp[0] != UNKNOWN_TIME)

    def item_counts(self) -> np.ndarray:
        """(M,) how often each item occurs."""
        return np.bincount(self.item_index, minlength=self.num_items + 1)[1:]

    def __len__(self) -> int:
        return len(self.item_index)

    def sequence(self, user: int, end: int | None = None, request_time: int = UNKNOWN_TIME) -> Sequence:
        """The rows offsets[user]..end (exclusive; None: all) of a user, as views.   user: 0..U-1"""
        start, stop = int(self.offsets[user]), int(self.offsets[user + 1])
        end = stop if end is None else end
        if not start <= end <= stop:
            raise ValueError(f"end must be in {start}..{stop} for user {user}, got {end}")
        return Sequence(self.item_index[start:end], self.timestamp[start:end], request_time)


def _fingerprint(user_ids: list[str], item_ids: list[str], *arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for ids in (user_ids, item_ids):
        digest.update(f"{len(ids)};".encode())
        _update_with_ids(digest, ids)
    for array, kind in zip(arrays, ("<i8", "<i4", "<i8"), strict=True):
        digest.update(f"{len(array)};".encode())
        digest.update(np.ascontiguousarray(array, dtype=kind).data)
    return digest.hexdigest()


def _update_with_ids(digest: hashlib._Hash, ids: Collection[str], chunk: int = 1 << 16) -> None:
    """Feed ids, each ended by a zero byte, which no id may hold."""
    for start in range(0, len(ids), chunk):
        digest.update("".join(f"{name}\x00" for name in ids[start : start + chunk]).encode())
