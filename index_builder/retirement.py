"""Which items of the vocabulary are served tonight: those seen lately, and none that was deleted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from index_builder.fold_in import Pending
from index_builder.item_rows import NEVER_SEEN, ItemRows
from model.data.interactions import DataError, Interactions
from model.data.newest_day import DAY_SECONDS


@dataclass(frozen=True)
class RetirementRule:
    """after_days: an item not seen for so long is retired   below: so is one seen less often in the log read

    A retired item keeps its row, is read in histories, and is served again once the rule no longer holds.
    """

    after_days: int = 90
    below: int = 0

    def __post_init__(self) -> None:
        if self.after_days < 1:
            raise ValueError(f"retire_after must be at least 1 day, got {self.after_days}")
        if self.below < 0:
            raise ValueError(f"retire_below must be at least 0, got {self.below}")


def choose_served(
    log: Interactions, known: ItemRows | None, num_known: int, *, pending: Pending, rule: RetirementRule
) -> ItemRows:
    """The rows of tonight's bundle.

    log: in its numbering   known: the rows of the last bundle, of `num_known` items; None without one
    Raises DataError when the rule leaves no item.
    """
    today = int(log.timestamp.max()) // DAY_SECONDS
    last_seen = _last_seen(log, known, num_known, today)
    row_of = {item_id: row for row, item_id in enumerate(log.item_ids)} if pending else {}
    added = np.array([row_of[item_id] for item_id in pending.similar if item_id in row_of], dtype=np.int64)
    last_seen[added] = np.maximum(last_seen[added], today)
    served = (last_seen != NEVER_SEEN) & (last_seen >= today - rule.after_days)
    often = np.bincount(log.item_index, minlength=log.num_items + 1)[1:] >= rule.below
    often[added] = True
    served &= often
    deleted = _deleted(known, pending, row_of)
    gone = np.array(sorted(deleted), dtype=np.int32)
    served[gone - 1] = False
    if not served.any():
        raise DataError(
            f"no item is left to serve: all are deleted, not seen for {rule.after_days} days "
            f"(--retire-after) or seen less than {rule.below} times (--retire-below)"
        )
    days = np.array([deleted[item] for item in gone.tolist()], dtype=np.int32)
    return ItemRows.of_served(served, last_seen_day=last_seen, deleted=gone, deleted_day=days)


def _last_seen(log: Interactions, known: ItemRows | None, num_known: int, today: int) -> np.ndarray:
    """(V,) int32 days; what a bundle without such a record served counts as seen today."""
    last_seen = np.full(log.num_items, NEVER_SEEN, dtype=np.int32)
    if known is not None and known.last_seen_day is not None:
        last_seen[:num_known] = known.last_seen_day
    elif known is not None:
        last_seen[:num_known][known.served(np.arange(1, num_known + 1)) > 0] = today
    np.maximum.at(last_seen, log.item_index - 1, (log.timestamp // DAY_SECONDS).astype(np.int32))
    return last_seen


def _deleted(known: ItemRows | None, pending: Pending, row_of: dict[str, int]) -> dict[int, int]:
    """Item index -> day. A deletion ends when it is taken back or the item added again, and never by itself:
    that somebody consumed the item later says only that it is still shown somewhere.
    """
    deleted: dict[int, int] = {}
    if known is not None and known.deleted is not None and known.deleted_day is not None:
        deleted = {
            item: day
            for item, day in zip(known.deleted.tolist(), known.deleted_day.tolist(), strict=True)
            if day <= pending.forgotten_until
        }
    for item_id in pending.similar:
        deleted.pop(row_of.get(item_id, -1) + 1, None)
    for item_id, day in pending.deleted.items():
        if item_id in row_of:
            deleted[row_of[item_id] + 1] = day
    return deleted
