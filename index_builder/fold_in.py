"""What was added and deleted since the last bundle, and the word that tonight's bundle holds it.

STAND-IN: there is no `index_builder/delta.py` yet. When it is here, these two functions are all that changes:

    def pending_items(store_url):
        delta = DeltaFile(store_url).read()
        return Pending({item.item_id: item.similar for item in delta.items.values()},
                       {item_id: at // DAY_SECONDS for item_id, at in delta.deleted.items()})

    def fold(store_url, item_ids):
        DeltaFile(store_url).fold(item_ids)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Pending:
    """similar: new item id -> weights of the item ids consumed with it   deleted: item id -> day since 1970

    keeps_deleted_days: how long a delta keeps a deletion; one that is missing sooner was taken back
    """

    similar: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    deleted: Mapping[str, int] = field(default_factory=dict)
    keeps_deleted_days: float = 30.0

    def __bool__(self) -> bool:
        return bool(self.similar or self.deleted)


def pending_items(store_url: str) -> Pending:
    """What the store's delta holds now."""
    return Pending()


def fold(store_url: str, item_ids: Collection[str]) -> None:
    """Take from the delta what a bundle that serves `item_ids` has made needless; may be repeated."""
