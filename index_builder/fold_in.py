"""What the store's delta asks of tonight's bundle, and the word that the bundle holds it.

The delta counts in seconds, a bundle's rows in days. A damaged delta is not read as an empty one: deleted
items would be served again. So the night ends before it trains, as bad input, and says how to mend it; the
bundle in service and the delta that its services hold stay in use.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from index_builder.delta import KEEP_DELETED_DAYS, KEEP_ITEMS_DAYS, DeltaFile
from model.data.newest_day import DAY_SECONDS


@dataclass(frozen=True)
class Keeping:
    """items_days: how long the delta keeps an item that the bundle holds   deleted_days: and a deletion"""

    items_days: float = KEEP_ITEMS_DAYS
    deleted_days: float = KEEP_DELETED_DAYS

    def __post_init__(self) -> None:
        for name, days in (("keep_added", self.items_days), ("keep_deleted", self.deleted_days)):
            if not 0 <= days < math.inf:
                raise ValueError(f"{name} must be a number of days, at least 0, got {days}")


@dataclass(frozen=True)
class Pending:
    """similar: new item id -> weights of the item ids consumed with it   deleted: item id -> day since 1970

    forgotten_until: deletions up to that day may have left the delta by age; a later one that is missing
    was taken back
    """

    similar: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    deleted: Mapping[str, int] = field(default_factory=dict)
    forgotten_until: int = 0

    def __bool__(self) -> bool:
        return bool(self.similar or self.deleted)


def pending_items(store_url: str, keeping: Keeping = Keeping()) -> Pending:
    """What the store's delta holds now. Raises DeltaError when it is damaged."""
    delta = DeltaFile(store_url).read()
    today = int(time.time()) // DAY_SECONDS
    return Pending(
        {item.item_id: item.similar for item in delta.items.values()},
        {item_id: at // DAY_SECONDS for item_id, at in delta.deleted.items()},
        forgotten_until=today - math.floor(keeping.deleted_days),
    )


def fold(store_url: str, item_ids: Collection[str], keeping: Keeping = Keeping()) -> None:
    """Take from the delta what a bundle that serves `item_ids` has made needless; may be repeated."""
    DeltaFile(store_url).fold(
        item_ids, keep_items_days=keeping.items_days, keep_deleted_days=keeping.deleted_days
    )
