"""The catalogue's keys as a few flat arrays: ten million Python strings would take more than the index.

`ItemIds` is read by position, `ItemIndexOf` by key; both are views of the same mapped file and make a
string only of what is asked for. The keys' CRC-32 orders them into buckets, so that a lookup looks at one
or two keys.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from index_builder.mapped_tensors import map_tensors, write_tensors

_BLOCK_ROWS = 65_536
MAX_DICT_ITEMS = 200_000
"""Up to this many a plain dict is cheap enough, and six times as fast to ask."""


def write_item_ids(path: Path, item_ids: Sequence[str]) -> None:
    """Write distinct item ids in their order. Raises ValueError when one occurs twice or is no text."""
    text, length, crc = bytearray(), [], []
    for start in range(0, len(item_ids), _BLOCK_ROWS):
        block = item_ids[start : start + _BLOCK_ROWS]
        if not all(isinstance(item_id, str) for item_id in block):
            raise ValueError("item ids must be distinct strings")
        keys = [item_id.encode() for item_id in block]
        text += b"".join(keys)
        length.append(np.fromiter(map(len, keys), np.int64, len(keys)))
        crc.append(np.fromiter(map(zlib.crc32, keys), np.uint32, len(keys)))
    checksum = np.concatenate(crc)  # (M,)
    _check_distinct(item_ids, checksum)
    offset = np.zeros(len(item_ids) + 1, dtype=np.int64)
    np.cumsum(np.concatenate(length), out=offset[1:])
    bucket = checksum & np.uint32(_num_buckets(len(item_ids)) - 1)
    row = np.argsort(bucket, kind="stable").astype(np.uint32)
    bucket_start = np.searchsorted(bucket[row], np.arange(_num_buckets(len(item_ids)) + 1, dtype=np.int64))
    write_tensors(
        path,
        {
            "text": np.frombuffer(text, dtype=np.uint8),
            "offset": offset,  # (M + 1,) key m is text[offset[m] : offset[m + 1]]
            "bucket_row": row,  # (M,) rows, bucket by bucket
            "bucket_start": bucket_start.astype(np.uint32),  # where in them each bucket begins
        },
    )


def _check_distinct(item_ids: Sequence[str], checksum: np.ndarray) -> None:
    """Only ids of one checksum are compared: a set of all would take as much as the ids.   checksum: (M,)"""
    order = np.argsort(checksum, kind="stable")
    ends = np.flatnonzero(np.diff(checksum[order])) + 1
    sizes = np.diff(ends, prepend=0, append=len(order))
    for start, size in zip((np.cumsum(sizes) - sizes)[sizes > 1], sizes[sizes > 1], strict=True):
        if len({item_ids[row] for row in order[start : start + size]}) < size:
            raise ValueError("item ids must be distinct strings")


def read_item_ids(path: Path) -> tuple[Vocabulary, Mapping[str, int]]:
    """Item ids by row, and item index (row + 1) by item id; mapped. Raises ValueError or KeyError."""
    arrays = map_tensors(path)
    text, offset, row, start = (arrays[name] for name in ("text", "offset", "bucket_row", "bucket_start"))
    num_items = len(row)
    if (
        (text.dtype, offset.dtype, row.dtype, start.dtype) != (np.uint8, np.int64, np.uint32, np.uint32)
        or num_items == 0
        or len(offset) != num_items + 1
        or len(start) != _num_buckets(num_items) + 1
        or (offset[0], offset[-1]) != (0, len(text))
        or (start[0], start[-1]) != (0, num_items)
        or bool((offset[1:] < offset[:-1]).any())
        or bool((start[1:] < start[:-1]).any())
        or int(row.max()) >= num_items
    ):
        raise ValueError("item ids and their buckets do not fit together")
    item_ids = Vocabulary(text, offset, row, start)
    if num_items <= MAX_DICT_ITEMS:
        index_of = {item_id: m + 1 for m, item_id in enumerate(item_ids)}
        if len(index_of) != num_items:
            raise ValueError("item ids must be distinct strings")
        return item_ids, index_of
    return item_ids, ItemIndexOf(item_ids)


class ItemIds(Sequence[str]):
    """Item ids by row.   text: (bytes,) uint8, UTF-8   offset: (M + 1,) int64"""

    def __init__(self, text: np.ndarray, offset: np.ndarray) -> None:
        self.text, self.offset = text, offset
        self._text = memoryview(text.data)
        self._offset = memoryview(offset.data)

    def __len__(self) -> int:
        return len(self._offset) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[m] for m in range(*row.indices(len(self)))]
        if row < 0:
            row += len(self)
        if not 0 <= row < len(self):
            raise IndexError(f"item row {row} of {len(self)}")
        return str(self.key(row), "utf-8")

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def key(self, row: int) -> memoryview:
        """The UTF-8 bytes of a row's item id, not copied."""
        return self._text[self._offset[row] : self._offset[row + 1]]


class Vocabulary(ItemIds):
    """Item ids and their buckets.   bucket_row: (M,) uint32   bucket_start: (buckets + 1,) uint32"""

    def __init__(
        self, text: np.ndarray, offset: np.ndarray, bucket_row: np.ndarray, bucket_start: np.ndarray
    ) -> None:
        super().__init__(text, offset)
        self.bucket_row, self.bucket_start = bucket_row, bucket_start


class ItemIndexOf(Mapping[str, int]):
    """Item index by item id, without a Python object per item."""

    def __init__(self, item_ids: Vocabulary) -> None:
        self._item_ids = item_ids
        self._row = memoryview(item_ids.bucket_row.data)
        self._start = memoryview(item_ids.bucket_start.data)
        self._mask = len(item_ids.bucket_start) - 2

    def get(self, item_id: object, default: int | None = None) -> int | None:  # type: ignore[override]
        """The item index, or `default` for an id that is none of the catalogue's."""
        if not isinstance(item_id, str):
            return default
        try:
            key = item_id.encode()
        except UnicodeEncodeError:
            return default  # a lone surrogate: no catalogue holds one
        bucket = zlib.crc32(key) & self._mask
        for place in range(self._start[bucket], self._start[bucket + 1]):
            row = self._row[place]
            if self._item_ids.key(row) == key:
                return row + 1
        return default

    def __contains__(self, item_id: object) -> bool:
        return self.get(item_id) is not None

    def __getitem__(self, item_id: str) -> int:
        found = self.get(item_id)
        if found is None:
            raise KeyError(item_id)
        return found

    def __len__(self) -> int:
        return len(self._item_ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._item_ids)


def _num_buckets(num_items: int) -> int:
    """A power of two, at least one bucket per item."""
    return 1 << max(0, num_items - 1).bit_length()
