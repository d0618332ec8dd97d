"""`item_rows.safetensors`: which rows of the model are served, and what a nightly build must know of each.

A row of the item table keeps its place from night to night. A retired item keeps its row too: histories
that hold it are still read, and it may come back; it only has no row in the index. So two numberings meet
here and nowhere else: the item index (row of the model) and the served index (row of the index plus one).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from index_builder.mapped_tensors import map_tensors, write_tensors

NEVER_SEEN = -1
_NAMES = ("item_index", "served_index", "last_seen_day", "deleted", "deleted_day")


@dataclass(frozen=True, eq=False)
class ItemRows:
    """`M` served items of a vocabulary of `V`.

    item_index: (M,) int32 ascending, of each served item; None when every item is served
    served_index: (V + 1,) int32 by item index, 0 for an item that is not served; None with item_index
    last_seen_day: (V,) int32 days since 1970 on which an item was last consumed or added, NEVER_SEEN before
        that; None when it is not known
    deleted: (X,) int32 item indices that were deleted   deleted_day: (X,) int32 on which days
    """

    item_index: np.ndarray | None = None
    served_index: np.ndarray | None = None
    last_seen_day: np.ndarray | None = None
    deleted: np.ndarray | None = None
    deleted_day: np.ndarray | None = None

    @classmethod
    def of_served(cls, served: np.ndarray, **known: np.ndarray) -> ItemRows:
        """served: (V,) bool of item indices 1..V   known: last_seen_day, deleted, deleted_day"""
        if served.all():
            return cls(**known)
        served_index = np.zeros(len(served) + 1, dtype=np.int32)
        np.cumsum(served, out=served_index[1:])
        served_index[1:][~served] = 0
        item_index = (np.flatnonzero(served) + 1).astype(np.int32)
        return cls(item_index, served_index, **known)

    def served(self, item_index: np.ndarray) -> np.ndarray:
        """Served indices of item indices, 0 for one that is not served.   (N,) -> (N,)"""
        return item_index if self.served_index is None else self.served_index[item_index]

    def is_served(self, item_index: int | None) -> bool:
        """Whether an item of the vocabulary is served; None is none of it."""
        return item_index is not None and (self.served_index is None or self.served_index[item_index] > 0)

    def ids(self, vocabulary: Sequence[str]) -> Sequence[str]:
        """The M ids of served items.   vocabulary: the V of all"""
        return vocabulary if self.item_index is None else ServedIds(vocabulary, self.item_index)

    def embeddings(self, of_all: np.ndarray) -> np.ndarray:
        """The rows of served items.   of_all: (V, D) -> (M, D)"""
        return of_all if self.item_index is None else of_all[self.item_index - 1]


class ServedIds(Sequence[str]):
    """The ids of the served items, read from the vocabulary.   item_index: (M,) int32"""

    def __init__(self, vocabulary: Sequence[str], item_index: np.ndarray) -> None:
        self._vocabulary = vocabulary
        self._item_index = memoryview(item_index.data)

    def __len__(self) -> int:
        return len(self._item_index)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[m] for m in range(*row.indices(len(self)))]
        return self._vocabulary[self._item_index[row] - 1]

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


def write_item_rows(path: Path, rows: ItemRows, num_items: int) -> None:
    """Write what is known of a vocabulary of `num_items`; what is not stays out of the file."""
    arrays = {"num_items": np.array([num_items], dtype=np.int64)}
    for name in _NAMES:
        array = getattr(rows, name)
        if array is not None and len(array):
            arrays[name] = np.asarray(array, dtype=np.int32)
    write_tensors(path, arrays)


def read_item_rows(path: Path, num_items: int) -> ItemRows:
    """The rows of a vocabulary of `num_items`, mapped. Raises ValueError when they do not fit it."""
    arrays = map_tensors(path)
    if arrays.pop("num_items").tolist() != [num_items]:
        raise ValueError(f"it does not belong to a vocabulary of {num_items}")
    for name, array in arrays.items():
        if name not in _NAMES or array.ndim != 1 or array.dtype != np.int32 or not len(array):
            raise ValueError(f"tensor {name!r} does not belong here")
    rows = ItemRows(**arrays)
    _check_served(rows, num_items)
    if rows.last_seen_day is not None and len(rows.last_seen_day) != num_items:
        raise ValueError(f"{len(rows.last_seen_day)} days for {num_items} items")
    if (rows.deleted is None) != (rows.deleted_day is None):
        raise ValueError("deleted and deleted_day belong together")
    if rows.deleted is not None and rows.deleted_day is not None:
        in_vocabulary = 1 <= rows.deleted.min() <= rows.deleted.max() <= num_items
        if not in_vocabulary or len(rows.deleted) != len(rows.deleted_day):
            raise ValueError("the deleted items do not fit the vocabulary")
    return rows


def _check_served(rows: ItemRows, num_items: int) -> None:
    if (rows.item_index is None) != (rows.served_index is None):
        raise ValueError("item_index and served_index belong together")
    if rows.item_index is None or rows.served_index is None:
        return
    expected = np.arange(1, len(rows.item_index) + 1)
    if (
        len(rows.served_index) != num_items + 1
        or not 1 <= rows.item_index.min() <= rows.item_index.max() <= num_items
        or bool((np.diff(rows.item_index) <= 0).any())
        or np.count_nonzero(rows.served_index) != len(expected)
        or not np.array_equal(rows.served_index[rows.item_index], expected)
    ):
        raise ValueError("served items and their indices do not fit together")
